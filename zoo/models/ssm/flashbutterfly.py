"""Long convolutions and FlashButterfly (Fu et al., ICML 2023, arXiv 2302.06646).

Kernels as long as the sequence are parameters, kept sparse and smooth by a squash: no state space.
Layer, kernels and gradients agree with the authors' code on random weights (HazyResearch/safari,
commit 02220c6). Where that differs from the paper: its standalone network's convolution sees both
sides, as its transform is as long as the kernel of twice the length (``circular`` here); inputs
shorter than the kernel wrap around there, and are causal here. ``causal: false`` stores twice the
taps there without any other effect, and is not offered. The fused kernels of the paper were never
published; :func:`zoo.ops.butterfly_conv` has its three passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.devices import without_autocast
from zoo.errors import ZooError, check_choice
from zoo.layers.cache import LayerState
from zoo.layers.precision import at_least_fp32
from zoo.models.registry import register_model
from zoo.models.ssm._flashbutterfly_kernels import BlockFFT, LongConvKernel
from zoo.models.ssm.h3 import H3LM, H3Config
from zoo.ops import fft_conv

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "id": nn.Identity, "glu": nn.GLU}


class LongConv(nn.Module):
    """Every feature convolved with its kernels, a skip, and a layer that mixes (figure 2).

    Args:
        d_model: H.
        l_max: L, taps of a kernel.
        channels: C kernels for each feature.
        bidirectional: as many kernels look ahead, from the next step on.
        circular: kernels of 2 L taps, the second half of which looks ahead (the authors'
            standalone layer).
        activation, postact: after the convolution and after the linear layer; "glu" doubles the
            layer; None for no layer.
        dropout, tie_dropout: after the activation; tied, of whole channels.
        block_fft_conv, block_fft_conv_args: transforms by :class:`BlockFFT`.
        kernel_args: of :class:`LongConvKernel`.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        channels: int = 1,
        bidirectional: bool = False,
        circular: bool = False,
        activation: str = "gelu",
        postact: str | None = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        block_fft_conv: bool = False,
        block_fft_conv_args: Mapping[str, Any] | None = None,
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        for name, word in (("activation", activation), ("postact", postact or "id")):
            check_choice(f"LongConv: {name}", word, ACTIVATIONS)
        if circular and (bidirectional or block_fft_conv):
            raise ZooError(
                "LongConv: circular kernels look ahead as they are, by the plain transform"
            )
        if postact is None and channels > 1:
            raise ZooError("LongConv: several channels need a layer that joins them, postact: id")
        self.l_max, self.bidirectional, self.circular = l_max, bidirectional, circular
        self.D = nn.Parameter(torch.randn(channels, d_model))
        self.kernel = LongConvKernel(
            d_model, 2 * l_max if circular else l_max, channels * (1 + bidirectional), **kernel_args
        )
        self.block_fft_u: BlockFFT | None = None
        self.block_fft_k: BlockFFT | None = None
        if block_fft_conv:
            self.block_fft_u, self.block_fft_k = (
                BlockFFT(**(block_fft_conv_args or {})) for _ in range(2)
            )
        self.activation = ACTIVATIONS[activation]()
        self.dropout = (nn.Dropout1d if tie_dropout else nn.Dropout)(dropout)
        self.output_linear: nn.Module = nn.Identity()
        if postact is not None:
            width = 2 * d_model if postact == "glu" else d_model
            self.output_linear = nn.Sequential(
                nn.Linear(channels * d_model, width), ACTIVATIONS[postact]()
            )

    def forward(self, u: Tensor) -> Tensor:
        """[B, H, L] to the same."""
        length = u.shape[-1]
        if length > self.l_max:
            raise ZooError(
                f"LongConv: the kernels have {self.l_max} taps, got an input of {length} steps: "
                "set l_max"
            )
        k, ahead = self.kernel(), None  # [C, H, L]
        if self.circular:
            k = F.pad(k, (0, 2 * length))[..., : 2 * length]
            k, ahead = k[..., :length], k[..., length:].flip(-1)
        elif self.bidirectional:
            k, ahead = k.chunk(2)
        if self.block_fft_u is None or self.block_fft_k is None:
            y = fft_conv(u, k, self.D, k_future=ahead)  # [B, C, H, L]
        else:
            y = self._butterfly(at_least_fp32(u), k[..., :length], ahead)
        y = self.dropout(self.activation(y.flatten(1, 2).to(u.dtype)))
        return self.output_linear(y.transpose(1, 2)).transpose(1, 2)

    def _butterfly(self, u: Tensor, k: Tensor, ahead: Tensor | None) -> Tensor:
        assert self.block_fft_u is not None and self.block_fft_k is not None
        length = u.shape[-1]
        n = max(2, 1 << (2 * length - 1).bit_length())
        if ahead is not None:
            behind = F.pad(ahead[..., :length].flip(-1), (n - length - k.shape[-1], 0))
            k = torch.cat([k, behind], dim=-1)
        with without_autocast(u):
            spectrum = self.block_fft_u(u, n)[:, None] * self.block_fft_k(k, n)
            y = torch.fft.ifft(spectrum).real[..., :length]
            return y + at_least_fp32(self.D)[..., None] * u[:, None]


class BatchNorm(nn.BatchNorm1d):
    """Over [B, L, H]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, H] to the same."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class LongConvModel(nn.Module):
    """Long convolutions beside a residual stream, for classification (a
    :class:`~zoo.models.ssm._protocol.SequenceClassifier`).

    Args:
        d_input: F, features of a step; None for tokens.
        num_classes: of the answer.
        vocab_size: tokens, padding (0) included; None for features.
        d_model: width.
        n_layers: layers.
        l_max: longest input.
        dropout: of layers and of whole channels behind them.
        prenorm: norms before the layers, else after the addition.
        norm: "layer" or "batch".
        paired: two sequences are compared, by a small network over their means.
        layer_args: of :class:`LongConv`.
    """

    def __init__(
        self,
        d_input: int | None = None,
        num_classes: int = 10,
        vocab_size: int | None = None,
        d_model: int = 256,
        n_layers: int = 6,
        l_max: int = 1024,
        dropout: float = 0.1,
        prenorm: bool = False,
        norm: str = "layer",
        paired: bool = False,
        **layer_args: Any,
    ) -> None:
        super().__init__()
        check_choice("LongConvModel: norm", norm, ("layer", "batch"))
        if (d_input is None) == (vocab_size is None):
            raise ZooError("LongConvModel: expected one of d_input and vocab_size")
        self.d_input, self.vocab_size, self.paired, self.prenorm = (
            d_input,
            vocab_size,
            paired,
            prenorm,
        )
        self.encoder: nn.Module
        if vocab_size is None:
            self.encoder = nn.Linear(d_input or 0, d_model)
        else:
            self.encoder = nn.Embedding(vocab_size, d_model, padding_idx=0)
        self.conv_layers = nn.ModuleList(
            LongConv(d_model, l_max, dropout=dropout, **layer_args) for _ in range(n_layers)
        )
        kind = nn.LayerNorm if norm == "layer" else BatchNorm
        self.norms = nn.ModuleList(kind(d_model) for _ in range(n_layers))
        self.dropouts = nn.ModuleList(nn.Dropout1d(dropout) for _ in range(n_layers))
        self.decoder: nn.Module = nn.Linear(d_model, num_classes)
        if paired:
            self.decoder = nn.Sequential(
                nn.Linear(4 * d_model, d_model), nn.ReLU(), nn.Linear(d_model, num_classes)
            )

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [B, L, F] or tokens [B, L], of a paired model [B, 2, L, ...], and how many of
        the steps are there [B] ([B, 2]) -> logits [B, num_classes]."""
        if self.paired:
            both = self._means(inputs.flatten(0, 1), None if lengths is None else lengths.flatten())
            a, b = both.unflatten(0, (-1, 2)).unbind(1)
            return self.decoder(torch.cat([a, b, a - b, a * b], dim=-1))
        return self.decoder(self._means(inputs, lengths))

    def _means(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        x = self.encoder(inputs)  # [B, L, H]
        there = None
        if lengths is not None:
            there = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        for layer, norm, dropout in zip(self.conv_layers, self.norms, self.dropouts, strict=True):
            z = norm(x) if self.prenorm else x
            z = z if there is None else z * there  # a convolution that looks ahead sees no padding
            x = x + dropout(layer(z.transpose(1, 2))).transpose(1, 2)
            x = x if self.prenorm else norm(x)
        if there is None or lengths is None:
            return x.mean(1)
        return (x * there).sum(1) / lengths[:, None]

    def no_weight_decay(self) -> set[str]:
        """The kernels."""
        return {n for n, _ in self.named_parameters() if n.endswith(".kernel.kernel")}

    def remap_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of the authors' standalone network, whose layers hold their kernels themselves."""
        return {
            f"{name}.kernel" if name.split(".")[2:] == ["kernel"] else name: tensor
            for name, tensor in state_dict.items()
        }


class History(LayerState):
    """What a layer of long convolutions has read: it has no smaller state.

    Attributes:
        k, kv: inputs of its two convolutions, ``[B, H, n]``.
    """

    constant_size = False

    def __init__(self, k: Tensor, kv: Tensor) -> None:
        self.k, self.kv = k, kv

    def tensors(self) -> list[Tensor]:
        """Both."""
        return [self.k, self.kv]

    def clone(self) -> History:
        """A copy that shares no memory."""
        return History(self.k.clone(), self.kv.clone())

    def select(self, rows: Sequence[int]) -> History:
        """A copy of these sequences."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.k.device)
        return History(self.k[index], self.kv[index])

    @classmethod
    def stack(cls, states: Sequence[History]) -> History:
        """One batch after the other; before the shorter ones there was nothing, which is zero."""
        size = max(state.k.shape[-1] for state in states)

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat([F.pad(part, (size - part.shape[-1], 0)) for part in parts])

        return cls(joined([state.k for state in states]), joined([state.kv for state in states]))

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` positions, of sequences that are equally long."""
        if length > self.k.shape[-1]:
            raise ZooError(f"{self.k.shape[-1]} positions cannot be cut back to {length}")
        self.k, self.kv = self.k[..., :length], self.kv[..., :length]


class H3Conv(nn.Module):
    """H3's layer with long convolutions in the place of its two state space models (section 5.1).

    Args:
        d_model: width of the tokens.
        l_max: taps of the kernels, and the longest text.
        kernel_args: of :class:`LongConvKernel`; ``channels`` is 1.
    """

    def __init__(self, d_model: int, l_max: int = 2048, **kernel_args: Any) -> None:
        super().__init__()
        self.l_max = l_max
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.k_kernel = LongConvKernel(d_model, l_max, **kernel_args)
        self.k_D = nn.Parameter(torch.randn(d_model))
        self.kernel = LongConvKernel(d_model, l_max, **kernel_args)
        self.D = nn.Parameter(torch.randn(d_model))
        self.output_linear = nn.Linear(d_model, d_model)

    def forward(self, u: Tensor, state: History | None = None) -> Tensor:
        """[B, L, d] to the same; ``state`` of :meth:`allocate_state` takes in what is read."""
        before = 0 if state is None else state.k.shape[-1]
        if before + u.shape[1] > self.l_max:
            raise ZooError(
                f"H3Conv: the kernels have {self.l_max} taps, got {before + u.shape[1]} tokens: "
                "set ssm_cfg.l_max"
            )
        q, k, v = (f(u).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        k_read = k
        k = fft_conv(k, self.k_kernel()[0], self.k_D, previous=None if state is None else state.k)
        kv = k * v
        y = fft_conv(kv, self.kernel()[0], self.D, gate_after=q,
                     previous=None if state is None else state.kv)  # fmt: skip
        if state is not None:
            state.k = torch.cat([state.k.to(k), k_read], dim=-1)
            state.kv = torch.cat([state.kv.to(kv), kv], dim=-1)
        return self.output_linear(y.transpose(1, 2))

    def allocate_state(self, batch_size: int) -> History:
        """Nothing yet."""
        nothing = self.D.new_zeros(batch_size, len(self.D), 0)
        return History(nothing, nothing)


class H3ConvLM(H3LM):
    """The language model of :mod:`zoo.models.ssm.h3` with these layers; ``ssm_cfg`` is theirs."""

    mixer_class = H3Conv

    def no_weight_decay(self) -> set[str]:
        """The kernels."""
        return {n for n, _ in self.named_parameters() if n.endswith("kernel.kernel")}


def _classifier(settings: dict[str, Any], overrides: dict[str, Any]) -> LongConvModel:
    return LongConvModel(**(settings | overrides))


@register_model(parameters=7_877_130)
def longconv_cifar(**overrides: Any) -> LongConvModel:
    """Long convolutions of the authors' standalone CIFAR network: 6 layers, width 256."""
    settings = dict(d_input=3, num_classes=10, d_model=256, n_layers=6, l_max=1024, channels=2,
                    circular=True, lam=0.001, kernel_dropout=0.2, dropout=0.1)  # fmt: skip
    return _classifier(settings, overrides)


@register_model(parameters=12_607_498)
def longconv_lra_image(**overrides: Any) -> LongConvModel:
    """Long convolutions for images as sequences of grey pixels: 6 layers, width 512."""
    settings = dict(d_input=1, num_classes=10, d_model=512, n_layers=6, l_max=1024, channels=2,
                    lam=0.003, kernel_dropout=0.2, dropout=0.1, tie_dropout=True)  # fmt: skip
    return _classifier(settings, overrides)


@register_model(parameters=155_131_392)
def h3_conv_125m(**overrides: Any) -> H3ConvLM:
    """H3 of long convolutions, 155 M parameters: 12 layers, width 768, two of attention."""
    settings: dict[str, Any] = dict(
        d_model=768,
        n_layer=12,
        attn_layer_idx=[1, 8],
        attn_cfg=dict(num_heads=12),
        ssm_cfg=dict(l_max=2048, lam=0.003, kernel_dropout=0.2),
    )
    return H3ConvLM(H3Config(**(settings | overrides)))
