"""FlashRNN: LSTM, GRU, Elman and sLSTM networks of many heads (arXiv 2412.07752).

The paper is about kernels: with a recurrent matrix that is block diagonal, one block a head, all
steps of a non-linear recurrence run in one call, the matrix staying on the chip. The kernels are
:func:`zoo.ops.recurrent_cell`; here stand the layer around them, a stack of layers that loads what
``torch.nn.LSTM``, ``GRU`` and ``RNN`` have learnt, and the layer as a mixer of the causal language
models here. No weights were published, and the paper states no model: sizes are ours.

States and gradients agree with the authors' plain-PyTorch code. They differ in two things on
purpose. Which sequences of an sLSTM start fresh is decided for each element, as the authors' CUDA
kernels do, not for all at once; and the gradient of the scale m is exact, where the authors' own
backward pass takes m for a constant, which shows in gradients of start states alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, check_choice
from zoo.layers.cache import CellState
from zoo.models.language.mamba import MambaLM, build
from zoo.models.registry import register_model
from zoo.ops import recurrent_cell

#: Gates of W, of R and of b, and states.
SIZES = {"elman": (1, 1, 1, 1), "lstm": (4, 4, 4, 2), "gru": (3, 3, 4, 1), "slstm": (4, 4, 4, 4)}
#: Which of the biases makes a network remember at the start.
FORGET = {"lstm": 1, "slstm": 1}


class RecurrentLayer(nn.Module):
    """W x for all steps at once, then the recurrence.

    Args:
        input_size: width of x.
        num_heads: N, which do not see each other.
        head_dim: D.
        function: "lstm", "gru", "elman" or "slstm".
    """

    def __init__(self, input_size: int, num_heads: int, head_dim: int, function: str) -> None:
        super().__init__()
        check_choice("function", function, SIZES)
        inputs, recurrent, biases, states = SIZES[function]
        self.function, self.num_heads, self.head_dim = function, num_heads, head_dim
        self.num_states = states
        self.W = nn.Linear(input_size, inputs * num_heads * head_dim, bias=False)
        self.R = nn.Parameter(torch.empty(recurrent, num_heads, head_dim, head_dim))
        self.b = nn.Parameter(torch.zeros(biases, num_heads, head_dim))
        nn.init.normal_(self.R, std=head_dim**-0.5 / math.sqrt(2))
        if function in FORGET:  # memories from short to long
            spread = torch.linspace(1, 5, head_dim).expand(num_heads, head_dim)
            with torch.no_grad():
                self.b[FORGET[function]] = spread

    def forward(self, x: Tensor, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, T, input_size] and states [S, B, 1, N, D] to h [B, T, N D] and the last states."""
        Wx = self.W(x).unflatten(-1, (-1, self.num_heads, self.head_dim))  # [B, T, gates, N, D]
        found, last = recurrent_cell(Wx, self.R, self.b, states, self.function)
        return found[0].flatten(2).to(x.dtype), last


class FlashRNN(nn.Module):
    """Layers of a recurrent network, one on the other; with one head that of PyTorch.

    Args:
        input_size: width of the input.
        num_heads, head_dim: N and D of each layer, whose width is N D.
        num_layers: how many.
        function: "lstm", "gru", "elman" or "slstm".
    """

    def __init__(
        self,
        input_size: int = 768,
        num_heads: int = 12,
        head_dim: int = 64,
        num_layers: int = 1,
        function: str = "lstm",
    ) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.layers = nn.ModuleList(
            RecurrentLayer(width if i else input_size, num_heads, head_dim, function)
            for i in range(num_layers)
        )

    def forward(self, x: Tensor, states: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """[B, T, input_size] to [B, T, N D] and the last states of each layer, [S, B, 1, N, D].

        Args:
            x: inputs.
            states: of each layer before the first step, zeros by default.
        """
        last = []
        for i, layer in enumerate(self.layers):
            x, end = layer(x, None if states is None else states[i])
            last.append(end)
        return x, last

    def remap_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of ``torch.nn.LSTM``, ``GRU`` and ``RNN`` to ours, for one head.

        Raises:
            ZooError: for their networks of two directions or with projections.
        """
        if "weight_ih_l0" not in state_dict:
            return dict(state_dict)
        found: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, RecurrentLayer)
            names = [f"{kind}_l{i}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            if not set(names[:2]) <= set(state_dict) or layer.num_heads != 1:
                raise ZooError(
                    "the weights are of torch.nn.LSTM, GRU or RNN and this model has "
                    f"{len(self.layers)} layers of {layer.num_heads} heads: expected as many "
                    "layers as they have, num_heads 1 and head_dim their hidden_size"
                )
            W, R = (state_dict[name] for name in names[:2])
            zero = W.new_zeros(len(W))
            into, around = (state_dict.get(name, zero) for name in names[2:])
            if layer.function == "gru":  # there r, z, n; R and b have n's recurrent part first
                R = torch.cat([R.chunk(3)[2], *R.chunk(3)[:2]])
                r, z, n = around.chunk(3)
                input_r, input_z, input_n = into.chunk(3)
                b = torch.cat([n, input_r + r, input_z + z, input_n])
            else:
                b = into + around
            D = layer.head_dim
            found[f"layers.{i}.W.weight"] = W
            found[f"layers.{i}.R"] = R.reshape(-1, 1, D, D)
            found[f"layers.{i}.b"] = b.reshape(-1, 1, D)
        used = 2 * len(self.layers) * (2 if "bias_ih_l0" in state_dict else 1)
        if len(state_dict) != used:
            raise ZooError(
                f"the weights are of a torch.nn network with {len(state_dict)} tensors, of which "
                f"{used} fit {len(self.layers)} layers in one direction without projections"
            )
        return found


class RecurrentMixer(nn.Module):
    """A recurrent layer in the place of attention: norm of each head, then a projection.

    Args:
        d_model: width of the tokens.
        num_heads: N; the layer is as wide as the tokens.
        function: "lstm", "gru", "elman" or "slstm".
    """

    def __init__(self, d_model: int, num_heads: int = 4, function: str = "slstm") -> None:
        super().__init__()
        if d_model % num_heads:
            raise ZooError(f"{num_heads} heads do not divide the {d_model} channels")
        self.layer = RecurrentLayer(d_model, num_heads, d_model // num_heads, function)
        self.norm = nn.GroupNorm(num_heads, d_model)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, state: CellState | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """[B, L, d_model] to the same.

        Args:
            x: tokens.
            state: of :meth:`allocate_state`: x goes on where it stands; replaced by that after x.
            seq_idx: is refused, as the cells cannot start anew inside of a sequence.
        """
        if seq_idx is not None:
            raise ZooError("a recurrent cell cannot keep documents apart: seq_idx cannot be given")
        before = None if state is None else state.states.transpose(0, 1)[:, :, None]
        h, last = self.layer(x, before)
        if state is not None:
            state.states = last[:, :, 0].transpose(0, 1)
        h = self.norm(h.flatten(0, 1)).unflatten(0, h.shape[:2])  # over the channels of a head
        return self.out_proj(h)

    def allocate_state(self, batch_size: int) -> CellState:
        """The state before the first token."""
        layer = self.layer
        size = (batch_size, layer.num_states, layer.num_heads, layer.head_dim)
        return CellState(layer.R.new_zeros(size))


@register_model(parameters=2_558_976)
def flashrnn_lstm(**overrides: Any) -> FlashRNN:
    """An LSTM layer of 12 heads of 64."""
    return FlashRNN(**(dict(function="lstm") | overrides))


@register_model(parameters=1_920_000)
def flashrnn_gru(**overrides: Any) -> FlashRNN:
    """A GRU layer of 12 heads of 64."""
    return FlashRNN(**(dict(function="gru") | overrides))


@register_model(parameters=639_744)
def flashrnn_elman(**overrides: Any) -> FlashRNN:
    """An Elman layer of 12 heads of 64."""
    return FlashRNN(**(dict(function="elman") | overrides))


@register_model(parameters=2_558_976)
def flashrnn_slstm(**overrides: Any) -> FlashRNN:
    """An sLSTM layer of 12 heads of 64."""
    return FlashRNN(**(dict(function="slstm") | overrides))


@register_model(parameters=133_061_376)
def flashrnn_lm(**overrides: Any) -> MambaLM:
    """A language model of 12 sLSTM layers of width 768 with gated MLPs; other cells by ssm_cfg."""
    settings = dict(
        d_model=768,
        n_layer=12,
        d_intermediate=2048,
        ssm_cfg={"layer": "RNN", "num_heads": 12, "function": "slstm"},
    )
    return build(settings, overrides)
