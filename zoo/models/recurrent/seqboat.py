"""SeqBoat: a gated attention unit that each token turns on or off (NeurIPS 2023, arXiv 2306.11197).

Liliang Ren, Yang Liu, Shuohang Wang, Yichong Xu, Chenguang Zhu, ChengXiang Zhai. Sparse Modular
Activation for Efficient Sequence Modeling.

Moving averages read every token. A router then decides token by token whether attention is needed;
the tokens that need it are packed into a shorter sequence, look around in a window of that, and go
back to where they stood. No loss asks for few tokens.

Outputs, router and gradients agree with the authors' standalone layer. There, a batch of which one
sequence activates all tokens is not packed, so that the windows of the others count all their
tokens in that call; here a window always counts active tokens. The averages read padding as zeros,
as theirs. Their heads for the Long Range Arena have an inner layer; ours are those of the
standalone model, and of S4's classifier for pairs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, check_choice
from zoo.layers.causal_attention import rotary
from zoo.layers.ema import MultiHeadEMA, truncated_
from zoo.layers.precision import at_least_fp32
from zoo.models.recurrent._seqboat_attention import RelativeBias, local_attention
from zoo.models.registry import register_model
from zoo.models.ssm._backbone import Norm, SequenceModel

ROUTES = ("learned", "always", "never")


class Router(nn.Module):
    """Which tokens are active, and how sure that is.

    Args:
        d_model: width of the tokens.
        init_temp_scale: the temperature starts at so many times the root of the width.
    """

    def __init__(self, d_model: int, init_temp_scale: float) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.full((1,), math.log(init_temp_scale * d_model**0.5)))

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of "off" and "on" ``[B, L, 2]`` to the larger probability and whether it is that
        of "on", both ``[B, L]``."""
        chances = (at_least_fp32(logits) / at_least_fp32(self.temp).exp()).softmax(-1)
        share, choice = chances.max(-1)
        return share.to(logits.dtype), choice == 1


class SeqBoatLayer(nn.Module):
    """Averages, and attention among the tokens that ask for it.

    Args:
        d_model: width of the tokens.
        d_qk, d_hidden: widths of queries and keys, and of values.
        d_ema: averages of a feature.
        window: how many active tokens away a key may be.
        bidirectional: averages and attention see what is to come.
        norm: "layer", "batch" or "scale"; before the layer with ``prenorm``, else after it.
        prenorm: see ``norm``.
        attention: "softmax" or "relu2".
        bias: "simple" (of the distance in the input), "local" (of that among active tokens) or
            "rotary" (positions in the input turn queries and keys).
        max_positions: longest input whose distances "simple" tells apart.
        init_temp_scale: see :class:`Router`.
        truncation: of the averages' kernels.
        route: "learned"; "always" and "never" make every token active, or none, for comparison.
        dropout, hidden_dropout, attention_dropout: of averages and outputs, values, weights.

    Raises:
        ZooError: if a choice is unknown, the window is empty, or rotary positions get an odd width.
    """

    def __init__(
        self,
        d_model: int,
        d_qk: int = 64,
        d_hidden: int | None = None,
        d_ema: int = 16,
        window: int = 128,
        bidirectional: bool = True,
        norm: str = "layer",
        prenorm: bool = False,
        attention: str = "softmax",
        bias: str = "simple",
        max_positions: int = 1024,
        init_temp_scale: float = 1.0,
        truncation: int | None = None,
        route: str = "learned",
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("SeqBoat: attention", attention, ("softmax", "relu2"))
        check_choice("SeqBoat: bias", bias, ("simple", "local", "rotary"))
        check_choice("SeqBoat: route", route, ROUTES)
        if window < 1 or (bias == "rotary" and d_qk % 2):
            raise ZooError(
                "SeqBoat: expected a window of 1 or more, and with rotary positions an even d_qk, "
                f"got {window} and {d_qk}"
            )
        d_hidden = d_hidden or 2 * d_model
        self.window, self.causal, self.prenorm, self.route = (
            window,
            not bidirectional,
            prenorm,
            route,
        )
        self.attention, self.bias, self.attention_dropout = attention, bias, attention_dropout
        self.sizes = (d_qk, d_hidden, d_hidden)
        seen = window if self.causal else 2 * window
        self.scale = d_qk**-0.5 if attention == "softmax" else 1 / seen

        self.norm = Norm(d_model, norm)
        self.ssm = MultiHeadEMA(d_model, d_ema, bidirectional, truncation=truncation)
        self.hx_proj = nn.Linear(d_model, 2 + d_model)
        self.q_router = Router(d_model, init_temp_scale)
        self.mx_proj = nn.Linear(d_model, sum(self.sizes))
        self.gamma = nn.Parameter(torch.empty(2, d_qk))
        self.beta = nn.Parameter(torch.zeros(2, d_qk))
        self.rel_pos_bias = (
            None if bias == "rotary"
            else RelativeBias(3 * window if bias == "local" else max_positions)
        )  # fmt: skip
        self.h_proj = nn.Linear(d_hidden, d_model)
        self.dropout, self.hidden_dropout = nn.Dropout(dropout), nn.Dropout(hidden_dropout)
        for linear in (self.hx_proj, self.mx_proj, self.h_proj):
            truncated_(linear.weight, 0.02)
            nn.init.zeros_(linear.bias)
        truncated_(self.gamma, 0.02)

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """``[B, L, d_model]`` to the same; see :meth:`routed`."""
        return self.routed(x, inside)[0]

    def routed(self, x: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outputs, and which tokens were active ``[B, L]``.

        Args:
            x: ``[B, L, d_model]``.
            inside: bool ``[B, L]``, False for padding.
        """
        y = self.norm(x) if self.prenorm else x
        if inside is not None:
            y = y * inside[..., None]
        mx = self.dropout(F.silu(self.ssm(y)))
        logits, hx = self.hx_proj(mx).split([2, x.shape[-1]], dim=-1)
        share, active = self.q_router(logits)
        if self.route != "learned":
            share = torch.ones_like(share)
            active = torch.full_like(active, self.route == "always")
        if inside is not None:
            active = active & inside
        h = hx
        if self.route != "never":
            s = self._attended(mx, active) * (share * active)[..., None]  # trains the router
            h = hx + (s if self.causal else self.dropout(s))
        out = F.silu(x + (self.dropout(h) if self.causal else h))
        return (out if self.prenorm else self.norm(out)), active

    def _attended(self, mx: Tensor, active: Tensor) -> Tensor:
        """Attention among active tokens, ``[B, L, d_model]``; elsewhere without a meaning."""
        packed, valid, order = compress(mx, active)  # [B, n, d_model]
        z, r, v = F.silu(self.mx_proj(packed)).split(self.sizes, dim=-1)
        q, k = (z[..., None, :] * self.gamma + self.beta).unbind(-2)
        q, v = q * self.scale, self.hidden_dropout(v)
        if self.bias == "rotary":
            q, k = (rotary(t[:, None], order, t.shape[-1], interleaved=True)[:, 0] for t in (q, k))
        h = local_attention(
            q, k, v, valid, self.window, self.causal, self.attention, self.rel_pos_bias,
            order if self.bias == "simple" else None,
            self.attention_dropout if self.training else 0.0,
        )  # fmt: skip
        return extract(self.h_proj(h * r), active)


def compress(x: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Active tokens of each sequence, one after the other.

    Args:
        x: ``[B, L, D]``.
        active: bool ``[B, L]``.

    Returns:
        ``[B, n, D]``, n the most active tokens of a sequence, at least 1; which of them are active
        ``[B, n]``; and where they stood ``[B, n]``. A graph that is traced has n = L.
    """
    counts = active.sum(1)
    n = x.shape[1] if torch.compiler.is_compiling() else max(1, int(counts.max()))
    order = (~active).byte().argsort(dim=1, stable=True)[:, :n]
    valid = torch.arange(n, device=x.device) < counts[:, None]
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1])), valid, order


def extract(x: Tensor, active: Tensor) -> Tensor:
    """``[B, n, D]`` of :func:`compress` to where they stood, 0 elsewhere, ``[B, L, D]``."""
    slots = (active.cumsum(1) - 1).clamp(min=0)
    return x.gather(1, slots[..., None].expand(-1, -1, x.shape[-1])) * active[..., None]


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the positions, times a weight, are added.

    Args:
        d_model: width, even.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), d_model**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, d_model]`` to the same."""
        kind = {"device": x.device, "dtype": torch.promote_types(x.dtype, torch.float32)}
        steps = torch.arange(x.shape[1], **kind)
        pairs = torch.arange(0, x.shape[2], 2, **kind)
        waves = steps[:, None] * 10000 ** (-pairs / x.shape[2])
        return x + self.scale * torch.cat([waves.sin(), waves.cos()], dim=-1).to(x.dtype)


class SeqBoatStack(nn.Module):
    """Layers one after the other.

    Args:
        d_model, n_layers: width and number.
        positions: whether :class:`SinusoidalPositions` come first.
        norm, prenorm: see :class:`SeqBoatLayer`; with ``prenorm`` there is a last norm.
        layer: further arguments of the layers.
    """

    def __init__(
        self, d_model: int, n_layers: int, positions: bool, norm: str, prenorm: bool, **layer: Any
    ) -> None:
        super().__init__()
        self.pos_emb = SinusoidalPositions(d_model) if positions else nn.Identity()
        self.layers = nn.ModuleList(
            SeqBoatLayer(d_model, norm=norm, prenorm=prenorm, **layer) for _ in range(n_layers)
        )
        self.norm = Norm(d_model, norm) if prenorm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        rate: float = 1.0,
        active: list[Tensor] | None = None,
    ) -> Tensor:
        """``[B, L, d_model]`` to the same.

        Args:
            x: steps.
            lengths: of the sequences ``[B]``.
            rate: 1: there is no step size.
            active: takes which tokens were active in each layer, ``[B, L]``.

        Raises:
            ZooError: for another rate.
        """
        if rate != 1:
            raise ZooError(f"SeqBoat has no step size to scale: expected rate 1, got {rate:g}")
        inside = None
        if lengths is not None:
            inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = self.pos_emb(x)
        for layer in self.layers:
            x, on = layer.routed(x, inside)
            if active is not None:
                active.append(on)
        return self.norm(x)


class SeqBoat(SequenceModel):
    """A classifier of sequences, a :class:`zoo.models.ssm._protocol.SequenceClassifier`.

    Args:
        num_classes: classes.
        d_input: features of a step; None for tokens.
        vocab_size: number of tokens; None for features.
        d_model, n_layers: width and layers.
        positions: whether sines of the positions are added to the input.
        norm, prenorm: see :class:`SeqBoatLayer`.
        paired: two sequences are compared.
        layer: further arguments of :class:`SeqBoatLayer`.

    Raises:
        ZooError: if it is not said, or said twice, what a step is.
    """

    def __init__(
        self,
        num_classes: int = 10,
        d_input: int | None = None,
        vocab_size: int | None = None,
        d_model: int = 160,
        n_layers: int = 8,
        positions: bool = False,
        norm: str = "batch",
        prenorm: bool = False,
        paired: bool = False,
        **layer: Any,
    ) -> None:
        stack = SeqBoatStack(d_model, n_layers, positions, norm, prenorm, **layer)
        super().__init__(stack, d_model, num_classes, d_input, vocab_size, "pool", paired)  # type: ignore[arg-type]
        if isinstance(self.encoder, nn.Embedding):
            nn.init.normal_(self.encoder.weight, std=d_model**-0.5)
        for module in (self.encoder, *self.decoder.modules()):
            if isinstance(module, nn.Linear):
                truncated_(module.weight, 0.02)
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def activations(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Which tokens use attention in each layer, bool ``[layers, B, L]``; paired sequences
        follow each other.

        Args:
            inputs, lengths: as of :meth:`forward`.
        """
        if self.paired:
            inputs, lengths = inputs.flatten(0, 1), None if lengths is None else lengths.flatten()
        active: list[Tensor] = []
        self.model(self.encoder(inputs), lengths, active=active)
        return torch.stack(active)

    def remap_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """Weights of the authors' standalone model, or ours."""
        return remap_seqboat(state)


_NAMES = [
    (r"^seq_layers\.", "model.layers."),
    (r"^final_norm\.", "model.norm."),
    (r"^decoder\.(weight|bias)$", r"decoder.output_transform.\1"),
    (r"\.move\.", ".ssm."),
]


def remap_seqboat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of the authors' layers as they are here."""
    found = {}
    for name, tensor in state.items():
        for theirs, ours in _NAMES:
            name = re.sub(theirs, ours, name)
        averages = re.search(r"\bssm\.(delta|alpha|beta)$", name)
        found[name] = tensor.squeeze(-1) if averages and tensor.dim() == 3 else tensor
    return found


def build(settings: dict[str, Any], overrides: dict[str, Any]) -> SeqBoat:
    """A variant with some of its settings replaced."""
    return SeqBoat(**(settings | overrides))


_IMAGE = dict(d_qk=96, attention="relu2", prenorm=True)


@register_model(parameters=1_757_210)
def seqboat_cifar(**overrides: Any) -> SeqBoat:
    """The authors' standalone example: CIFAR-10 pixel by pixel, 8 layers of width 160."""
    return build(_IMAGE | dict(d_input=3), overrides)


@register_model(parameters=394_286)
def seqboat_listops(**overrides: Any) -> SeqBoat:
    """ListOps of the Long Range Arena: 6 layers of width 80."""
    settings = dict(vocab_size=16, d_model=80, n_layers=6, norm="layer", max_positions=2002,
                    init_temp_scale=0.3, dropout=0.1)  # fmt: skip
    return build(settings, overrides)


@register_model(parameters=599_310)
def seqboat_text(**overrides: Any) -> SeqBoat:
    """Byte-level reviews of the Long Range Arena: 4 layers of width 128."""
    settings = dict(num_classes=2, vocab_size=258, d_model=128, n_layers=4, norm="scale",
                    bias="local", init_temp_scale=0.3, dropout=0.1)  # fmt: skip
    return build(settings, overrides)


@register_model(parameters=991_404)
def seqboat_retrieval(**overrides: Any) -> SeqBoat:
    """Pairs of documents of the Long Range Arena: 6 layers of width 128."""
    settings = dict(num_classes=2, vocab_size=258, d_model=128, n_layers=6, norm="scale",
                    max_positions=4002, paired=True, dropout=0.1)  # fmt: skip
    return build(settings, overrides)


@register_model(parameters=1_756_891)
def seqboat_image(**overrides: Any) -> SeqBoat:
    """Grey CIFAR-10 pixels of the Long Range Arena: 8 layers of width 160."""
    return build(_IMAGE | dict(d_input=1, positions=True, init_temp_scale=0.4), overrides)


@register_model(parameters=859_023)
def seqboat_pathfinder(**overrides: Any) -> SeqBoat:
    """Pathfinder of the Long Range Arena: 6 layers of width 128."""
    settings = dict(num_classes=2, d_input=1, d_model=128, n_layers=6, d_qk=64, positions=True)
    return build(_IMAGE | settings, overrides)
