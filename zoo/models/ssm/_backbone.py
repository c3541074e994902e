"""Stacks of state space layers with residuals, as S4's code has them, and a classifier around one.

Modules and parameters have the names of that code (state-spaces/s4), so that its checkpoints load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.cache import Cache
from zoo.layers.s4 import S4Block, dropout_of, linear_with
from zoo.layers.ssm_recurrence import SSMState

#: Builds a layer of a width; ``forward(x, lengths, state, rate)`` keeps the shape ``[B, L, H]``.
MakeLayer = Callable[[int], nn.Module]


class ScaleNorm(nn.Module):
    """A root mean square of one, times one weight for all features (arXiv 1910.05895)."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., H]`` to the same."""
        return self.scalar * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


class Norm(nn.Module):
    """LayerNorm or ScaleNorm over the features, or BatchNorm over all sequences and steps, of
    ``[B, L, H]``."""

    def __init__(self, d_model: int, kind: str) -> None:
        super().__init__()
        if kind not in ("layer", "batch", "scale"):
            raise ZooError(f"norm is 'layer', 'batch' or 'scale', not '{kind}'")
        self.norm: nn.Module = ScaleNorm()
        if kind != "scale":
            self.norm = nn.LayerNorm(d_model) if kind == "layer" else nn.BatchNorm1d(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, H]`` to the same."""
        if isinstance(self.norm, nn.BatchNorm1d):
            return self.norm(x.flatten(0, 1)).view_as(x)
        return self.norm(x)


class FeedForward(nn.Module):
    """Two linear layers of each step by itself.

    Args:
        d_model: width.
        expand: the inner width is so many times that.
        dropout, tie_dropout: between them.
        activation: between them.
    """

    def __init__(
        self,
        d_model: int,
        expand: float = 2,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        inner = int(expand * d_model)
        self.ff = nn.Sequential(
            linear_with(d_model, inner, activation),
            dropout_of(dropout, tie_dropout),
            nn.Linear(inner, d_model),
        )

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: None = None, rate: float = 1.0
    ) -> Tensor:
        """``[B, L, H]`` to the same; the other arguments are those of all layers."""
        return self.ff(x)


class ResidualBlock(nn.Module):
    """A layer with its residual and its norm, before the layer or after the sum.

    Args:
        d_model: width.
        layer: what it is around.
        norm: "layer", "batch" or None.
        prenorm: where the norm is.
        dropout, tie_dropout: after the layer.
        residual: whether the input is added.
    """

    def __init__(
        self,
        d_model: int,
        layer: nn.Module,
        norm: str | None = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.prenorm, self.residual = prenorm, residual
        self.layer = layer
        self.norm = nn.Identity() if norm is None else Norm(d_model, norm)
        self.drop = dropout_of(dropout, tie_dropout)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: SSMState | None = None,
        rate: float = 1.0,
    ) -> Tensor:
        """``[B, L, H]`` to the same."""
        y = self.norm(x) if self.prenorm else x
        y = self.layer(y, lengths, state, rate)
        y = x + self.drop(y) if self.residual else y
        return y if self.prenorm else self.norm(y)


class Backbone(nn.Module):
    """Blocks of one width.

    Args:
        d_model: width.
        n_layers: how often the layers follow each other.
        layers: builders of the layers of one repetition.
        norm, prenorm, dropout, tie_dropout, residual: see :class:`ResidualBlock`; with ``prenorm``
            there is a last norm.
        dropinp: dropout of the input.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        layers: Sequence[MakeLayer],
        norm: str | None = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        residual: bool = True,
        dropinp: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop = dropout_of(dropinp, tie_dropout)
        self.layers = nn.ModuleList(
            ResidualBlock(d_model, make(d_model), norm, prenorm, dropout, tie_dropout, residual)
            for _ in range(n_layers)
            for make in layers
        )
        self.norm = Norm(d_model, norm) if prenorm and norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        cache: Cache | None = None,
        rate: float = 1.0,
    ) -> Tensor:
        """``[B, L, H]`` to the same.

        Args:
            x: steps.
            lengths: of the sequences ``[B]``.
            cache: of :meth:`allocate_cache`: x goes on where it stands, and it advances.
            rate: sampling is so many times slower than in training.
        """
        x = self.drop(x)
        states = iter(() if cache is None else cache.layers)
        for block in self.layers:
            state = next(states) if cache is not None and _has_state(block.layer) else None
            x = block(x, lengths, state, rate)
        return self.norm(x)

    def allocate_cache(self, batch_size: int, mode: str | None = None, rate: float = 1.0) -> Cache:
        """The states before the first step, for the weights as they are now.

        Args:
            batch_size: number of sequences.
            mode: how a step is made, see the kernels' ``recurrence``.
            rate: as in :meth:`forward`.

        Raises:
            ZooError: if a layer looks ahead.
        """
        layers = [block.layer for block in self.layers if _has_state(block.layer)]
        return Cache([layer.allocate_state(batch_size, mode, rate) for layer in layers])


def _has_state(layer: nn.Module) -> bool:
    return hasattr(layer, "allocate_state")


class Decoder(nn.Module):
    """One vector of a sequence, and logits of it.

    Args:
        d_model: width of the steps.
        num_classes: of the logits.
        decoder: "pool", the mean of all steps, or "last".
        paired: two vectors are compared: an inner layer over both, their difference and product.
    """

    def __init__(self, d_model: int, num_classes: int, mode: str, paired: bool) -> None:
        super().__init__()
        if mode not in ("pool", "last"):
            raise ZooError(f"the decoder's mode is 'pool' or 'last', not '{mode}'")
        self.mode, self.paired = mode, paired
        if paired:
            self.classifier = nn.Sequential(
                nn.Linear(4 * d_model, d_model), nn.GELU(), nn.Linear(d_model, num_classes)
            )
        else:
            self.output_transform = nn.Linear(d_model, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """``[B, L, H]`` to logits; paired sequences follow each other in the batch."""
        if lengths is None:
            y = x.mean(1) if self.mode == "pool" else x[:, -1]
        elif self.mode == "last":
            y = x[torch.arange(len(x), device=x.device), lengths - 1]
        else:
            inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            y = (x * inside[..., None]).sum(1) / lengths[:, None]
        if not self.paired:
            return self.output_transform(y)
        a, b = y[0::2], y[1::2]
        return self.classifier(torch.cat([a, b, a - b, a * b], dim=-1))


class SequenceModel(nn.Module):
    """A classifier of sequences, a :class:`zoo.models.ssm._protocol.SequenceClassifier`.

    Args:
        backbone: over ``[B, L, H]``.
        d_model: H.
        num_classes: classes; or outputs of a regression.
        d_input: features of a step; None for tokens.
        vocab_size: number of tokens; None for features.
        decoder: its mode, see :class:`Decoder`.
        paired: whether two sequences are compared.

    Raises:
        ZooError: if it is not said, or said twice, what a step is.
    """

    def __init__(
        self,
        backbone: Backbone,
        d_model: int,
        num_classes: int,
        d_input: int | None,
        vocab_size: int | None,
        decoder: str = "pool",
        paired: bool = False,
    ) -> None:
        super().__init__()
        if (d_input is None) == (vocab_size is None):
            raise ZooError(
                f"a step is d_input features or one of vocab_size tokens: give one of them, got "
                f"{d_input} and {vocab_size}"
            )
        self.d_input, self.vocab_size, self.paired = d_input, vocab_size, paired
        self.encoder: nn.Module
        if d_input is None:
            self.encoder = nn.Embedding(vocab_size or 0, d_model)
        else:
            self.encoder = nn.Linear(d_input, d_model)
        self.model = backbone
        self.decoder = Decoder(d_model, num_classes, decoder, paired)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Logits ``[B, num_classes]``.

        Args:
            inputs: features ``[B, L, F]`` or tokens ``[B, L]``; paired ``[B, 2, L, ...]``.
            lengths: steps of each sequence, ``[B]`` or ``[B, 2]``; padding follows them.
            rate: sampling is so many times slower than in training.
        """
        if self.paired:
            inputs, lengths = inputs.flatten(0, 1), None if lengths is None else lengths.flatten()
        x = self.model(self.encoder(inputs), lengths, rate=rate)
        return self.decoder(x, lengths)

    def weight_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: those of the kernels have rates of their own and no decay."""
        return kernel_groups(self, weight_decay)

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of S4's code, of any version, under the names here."""
        return rename_s4(state)


def s4_layer(**settings: Any) -> MakeLayer:
    """Builder of an S4 block over ``[B, L, H]``."""
    return lambda d_model: S4Block(d_model, transposed=False, **settings)


def kernel_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in groups for an optimizer, as S4's code has them.

    A, B and dt of the kernels have no decay, and their own learning rate where they were given one;
    everything else has both in common.
    """
    special: dict[float | None, list[nn.Parameter]] = {}
    seen = set()
    for module in model.modules():
        rates = getattr(module, "learning_rates", None)
        for name, lr in rates().items() if rates is not None else ():
            parameter = module.get_parameter(name)
            special.setdefault(lr, []).append(parameter)
            seen.add(id(parameter))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": weight_decay}]
    for lr, parameters in special.items():
        rate = {} if lr is None else {"lr": lr}
        groups.append({"params": parameters, "weight_decay": 0.0, **rate})
    return groups


#: Names around the layers there: patterns, and what they are here.
_OUTER = [
    (r"^model\.model\.", "model."),
    (r"^(encoder|decoder)(\.\d+)+\.", r"\1."),
    (r"^decoder\.retrieval\.", "decoder."),
]
#: Names of old versions: patterns, and what they became.
_RENAMED = [
    *_OUTER,
    (r"kernel\.kernel\.L$", "kernel.l_kernel"),
    (r"kernel\.kernel\.", "kernel."),
    (r"(?<!layer\.)layer\.(kernel\.|D$)", r"layer.layer.\1"),
    (r"kernel\.log_dt$", "kernel.inv_dt"),
    (r"kernel\.(inv_w_real|log_w_real|inv_A_real|log_A_real)$", "kernel.A_real"),
    (r"kernel\.w_imag$", "kernel.A_imag"),
]


def rename_outer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of what is around the layers in S4's code, as they are here."""
    renamed = {}
    for key, value in state.items():
        for pattern, new in _OUTER:
            key = re.sub(pattern, new, key)
        renamed[key] = value
    return renamed


def rename_s4(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of S4's code as those of its fourth version, which are ours.

    Before that version the step size was ``log_dt``, imaginary parts had the other sign, B, C and P
    lacked a dimension in places, and the length was that of tables in the checkpoint. The first two
    versions had a second low-rank factor Q, which must be P.

    Args:
        state: keys and tensors.

    Raises:
        ZooError: if Q differs from P, which the later parameters cannot say.
    """
    old = {key for key in state if re.search(r"kernel\.(log_dt)$", key)}
    kernels = {key.removesuffix("log_dt") for key in old}
    renamed: dict[str, Tensor] = {}
    for key, value in _without_tables(dict(state), kernels).items():
        stem = next((k for k in kernels if key.startswith(k)), None)
        name = key.removeprefix(stem) if stem else ""
        if name in ("w_imag", "A_imag"):
            value = -value
        elif name == "log_dt" and value.dim() == 1:
            value = value[:, None]
        elif name == "B" and value.dim() == 3:
            value = value[None]
        elif key.endswith("output_linear.0.weight") and value.dim() == 3:
            value = value.squeeze(-1)  # a convolution of width 1 in some versions
        for pattern, new in _RENAMED:
            key = re.sub(pattern, new, key)
        renamed[key] = value
    return renamed


def _without_tables(state: dict[str, Tensor], kernels: set[str]) -> dict[str, Tensor]:
    """Without what the first two versions kept beside the parameters."""
    for stem in kernels:
        tables = [state.pop(stem + name, None) for name in ("omega", "nodes", "z")]
        length = next((2 * (len(t) - 1) for t in tables if t is not None), None)
        if length is not None:
            state[stem + "L"] = torch.tensor(length)
        w = state.pop(stem + "w", None)
        if w is not None:
            state[stem + "log_w_real"] = (-w[..., 0]).clamp(min=1e-4).log()
            state[stem + "w_imag"] = w[..., 1]
        Q, P = state.pop(stem + "Q", None), state.get(stem + "P")
        if Q is not None and P is not None:
            conjugate = P * torch.tensor([1.0, -1.0])
            if not (torch.allclose(Q, P, atol=1e-5) or torch.allclose(Q, conjugate, atol=1e-5)):
                raise ZooError(
                    f"{stem}Q is not {stem}P: the matrix diag(w) - P Q* of this checkpoint, of the "
                    "first version of S4, has no parameters here; train with Q tied to P"
                )
    return state
