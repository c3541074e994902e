"""``Mamba``, ``Mamba2``, ``Mamba2Simple`` of mamba_ssm: our layers with its arguments and caches.

Parameters, their names, shapes and dtypes are those of mamba_ssm. What only chooses between code
paths of it is taken and has no effect.
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers import mamba, mamba2
from zoo.layers.cache import RecurrentState

__all__ = ["Mamba", "Mamba2", "Mamba2Simple"]

Device = torch.device | str | None


def on_device(device: Device) -> AbstractContextManager[Any]:
    """Where parameters that are made meanwhile are to be."""
    return nullcontext() if device is None else torch.device(device)


def cast(module: nn.Module, dtype: torch.dtype | None, keep: Container[str] = ()) -> None:
    """Bring all parameters but those of these names to a dtype."""
    for name, parameter in module.named_parameters():
        if dtype is not None and name not in keep:
            parameter.data = parameter.data.to(dtype)


class _Recurrent:
    """How mamba_ssm keeps the state of a layer: two tensors in a dictionary, changed in place."""

    layer_idx: int | None

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """State of the convolution and of the scan before the first token."""
        state: RecurrentState = self.allocate_state(batch_size)  # type: ignore[attr-defined]
        dtype = dtype or state.conv.dtype
        return state.conv.to(dtype), state.ssm.to(dtype)

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token ``[B, 1, d_model]``; the states are changed in place and returned too."""
        if hidden_states.shape[1] != 1:
            raise ZooError(f"step takes one token at a time, not {hidden_states.shape[1]}")
        out = self._go_on(
            hidden_states, RecurrentState(conv_state, ssm_state), conv_state, ssm_state
        )
        return out, conv_state, ssm_state

    def _start(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """Tokens ``[B, L, d_model]`` from the beginning of a text, whatever the states held."""
        state = self.allocate_state(len(x))  # type: ignore[attr-defined]
        return self._go_on(x, state, conv_state, ssm_state)

    def _go_on(
        self, x: Tensor, state: RecurrentState, conv_state: Tensor, ssm_state: Tensor
    ) -> Tensor:
        layer: Any = mamba.Mamba if isinstance(self, mamba.Mamba) else mamba2.Mamba2
        out: Tensor = layer.forward(self, x, state)
        with torch.no_grad():
            conv_state.copy_(state.conv)
            ssm_state.copy_(state.ssm)
        return out

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.layer_idx is None:
            raise ZooError(f"{type(self).__name__}: generation needs layer_idx in the constructor")
        kept = inference_params.key_value_memory_dict
        if self.layer_idx not in kept:
            kept[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        elif initialize_states:
            for state in kept[self.layer_idx]:
                state.zero_()
        return kept[self.layer_idx]


class Mamba(_Recurrent, mamba.Mamba):
    """:class:`zoo.layers.mamba.Mamba` with the arguments of ``mamba_ssm.Mamba``.

    Args:
        d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_init, dt_scale: as there.
        dt_init_floor, conv_bias, bias: as there.
        use_fast_path: taken; there is one path.
        layer_idx: key of the layer's state in ``inference_params``.
        device, dtype: of the parameters; A_log and D stay float32.
        bimamba_type, if_divide_out, init_layer_scale: of Vision Mamba's branch, as there.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:
        with on_device(device):
            super().__init__(
                d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_init, dt_scale,
                dt_init_floor, conv_bias, bias, bimamba_type, if_divide_out, init_layer_scale,
            )  # fmt: skip
        cast(self, dtype, keep=("A_log", "A_b_log", "D", "D_b", "gamma"))
        self.d_model, self.d_conv, self.expand = d_model, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.init_layer_scale = init_layer_scale
        self.activation, self.act = "silu", nn.SiLU()
        for name in ("A_log", "A_b_log", "D", "D_b"):
            if hasattr(self, name):
                getattr(self, name)._no_weight_decay = True
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:  # type: ignore[override]
        """``[B, L, d_model]`` to the same.

        Args:
            hidden_states: tokens.
            inference_params: of :class:`zoo.compat.generation.InferenceParams`; the first call
                takes any number of tokens, those after it one.
        """
        if inference_params is None:
            return super().forward(hidden_states)
        states = self._get_states_from_cache(inference_params, len(hidden_states))
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, *states)[0]
        return self._start(hidden_states, *states)


class Mamba2(_Recurrent, mamba2.Mamba2, PyTorchModelHubMixin):
    """:class:`zoo.layers.mamba2.Mamba2` with the arguments of ``mamba_ssm.Mamba2``.

    Args:
        d_model, d_state, d_conv, conv_init, expand, headdim, d_ssm, ngroups: as there.
        A_init_range, D_has_hdim, rmsnorm, norm_before_gate, dt_min, dt_max: as there.
        dt_init_floor, dt_limit, bias, conv_bias, chunk_size: as there.
        use_mem_eff_path: taken; there is one path.
        layer_idx: key of the layer's state in ``inference_params``.
        process_group, sequence_parallel: tensor parallelism is not provided.
        device, dtype: of the parameters; D stays float32.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = mamba2.ANY_STEP,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if process_group is not None:
            raise ZooError(
                "Mamba2 of zoo.compat is not tensor-parallel; process_group must be None"
            )
        with on_device(device):
            super().__init__(
                d_model, d_state, d_conv, conv_init, expand, headdim, d_ssm, ngroups, A_init_range,
                D_has_hdim, rmsnorm, norm_before_gate, dt_min, dt_max, dt_init_floor, dt_limit,
                bias, conv_bias, chunk_size,
            )  # fmt: skip
        cast(self, dtype, keep=("D",))
        self.d_model, self.d_conv, self.expand = d_model, d_conv, expand
        self.d_inner = expand * d_model
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        self.activation, self.act = "silu", nn.SiLU()
        for parameter in (self.A_log, self.D, self.dt_bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(  # type: ignore[override]
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """``[B, L, d_model]`` to the same.

        Args:
            u: tokens; ``[B L, d_model]`` with ``seqlen`` = L.
            seqlen: see ``u``.
            seq_idx: int32 ``[B, L]``, the packed sequence of each token.
            cu_seqlens: ``[S + 1]`` where each of S packed sequences starts, for a batch of 1 with
                ``inference_params``, which then keep S states. Tokens behind the last are padding.
            inference_params: as for :class:`Mamba`.
        """
        x = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if inference_params is None:
            out = super().forward(x, seq_idx=seq_idx)
        else:
            rows = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
            states = self._get_states_from_cache(inference_params, rows)
            if inference_params.seqlen_offset > 0:
                out = self.step(x, *states)[0]
            elif cu_seqlens is None:
                out = self._start(x, *states)
            else:
                out = self._start_packed(x, cu_seqlens, *states)
        return out if seqlen is None else out.flatten(0, 1)

    def _start_packed(
        self, x: Tensor, cu_seqlens: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> Tensor:
        if len(x) != 1:
            raise ZooError(f"cu_seqlens describes the sequences of a batch of 1, not of {len(x)}")
        out = torch.zeros_like(x)
        bounds = cu_seqlens.tolist()
        for row, (start, end) in enumerate(pairwise(bounds)):
            own = conv_state[row : row + 1], ssm_state[row : row + 1]
            if end > start:
                out[:, start:end] = self._start(x[:, start:end], *own)
            else:
                for state in own:
                    state.zero_()
        return out


class Mamba2Simple(mamba2.Mamba2):
    """:class:`zoo.layers.mamba2.Mamba2` with the arguments of mamba_ssm's ``Mamba2Simple``.

    Args:
        d_model, d_state, d_conv, conv_init, expand, headdim, ngroups, A_init_range: as there.
        dt_min, dt_max, dt_init_floor, dt_limit, bias, conv_bias, chunk_size: as there.
        learnable_init_states: learn the state before the first token.
        activation: "silu" or "swish", which is the same.
        use_mem_eff_path, layer_idx: taken, without effect.
        device, dtype: of the parameters; D stays float32.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = mamba2.ANY_STEP,
        learnable_init_states: bool = False,
        activation: str = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in ("silu", "swish"):
            raise ZooError(f"activation is 'silu' or 'swish', not {activation!r}")
        with on_device(device):
            super().__init__(
                d_model, d_state, d_conv, conv_init, expand, headdim, None, ngroups, A_init_range,
                dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor, dt_limit=dt_limit,
                bias=bias, conv_bias=conv_bias, chunk_size=chunk_size,
            )  # fmt: skip
            self.init_states = None
            if learnable_init_states:
                self.init_states = nn.Parameter(torch.zeros(self.nheads, headdim, d_state))
        cast(self, dtype, keep=("D",))
        self.d_model, self.d_conv, self.expand = d_model, d_conv, expand
        self.d_inner, self.layer_idx = expand * d_model, layer_idx
        self.learnable_init_states, self.activation = learnable_init_states, activation
        for parameter in (self.A_log, self.D, self.dt_bias, self.init_states):
            if parameter is not None:
                parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """``[B, L, d_model]`` to the same; ``seq_idx`` not together with learned states."""
        if self.init_states is None:
            return super().forward(u, seq_idx=seq_idx)
        state = self.allocate_state(len(u))
        # A copy, which a step may write to.
        state.ssm = self.init_states.to(state.ssm.dtype).repeat(len(u), 1, 1, 1)
        return super().forward(u, state, seq_idx)
