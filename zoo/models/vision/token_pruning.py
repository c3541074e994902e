"""Token pruning in vision state space models (Zhan et al., NeurIPS 2024, arXiv 2409.18962).

Vim and PlainMamba that drop patches after some layers; no parameter is added, so their weights are
the backbones'. A recurrent scan depends on which token follows which: taking tokens out as from a
vision transformer (``gap="close"``) ruins it. The paper scores tokens by the scan's own output and
aligns the hidden states of those that are left to the places they had.

The released code (ZLKong/ToP-ViM, commit b5bc231) is Vim alone, closes the gaps and has no aligned
scan: the operator here (:func:`zoo.layers.kept_tokens.gap_scan`) follows the paper's description.
With ``gap="close", score="official_code"`` logits agree with that code, its leftover ``exit()``
taken out, on random weights for one image; in a batch, it protects the first class token alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.layers.kept_tokens import gap_scan, gaps_before, put, spread, step_sizes, take
from zoo.layers.mamba import Mamba
from zoo.layers.norms import add_norm
from zoo.layers.plain import at_zero, linear_of_half, split_bias
from zoo.layers.precision import at_least_fp32
from zoo.layers.scan_orders import ScanOrder, only_kept, snake
from zoo.layers.short_conv import short_conv
from zoo.models.vision import plainmamba, vim
from zoo.models.vision._backbone import register_backbone
from zoo.models.vision._pruning import SCORES, best, make_pruning
from zoo.models.vision.plainmamba import PlainMamba, PlainMambaLayer
from zoo.models.vision.vim import Block, Vim
from zoo.ops import selective_scan


class PrunedVim(Vim):
    """Vim that drops patches on its way. Class tokens stay.

    With one class token an even number of patches stays, as in the released code.

    Args:
        prune_after: layers, counted from 1, after which patches are dropped.
        keep_ratio: share of the patches that stays each time, or one share for each time.
        gap, score: see :class:`Pruning`.
        kwargs: of :class:`zoo.models.vision.vim.Vim`, ``bimamba_type`` "v2".
    """

    def __init__(
        self,
        prune_after: Sequence[int] = (5, 10, 15),
        keep_ratio: float | Sequence[float] = 0.8,
        gap: str = "decay",
        score: str = "clip",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        paired = self.if_bidirectional or kwargs.get("bimamba_type", "v2") != "v2"
        if paired or self.rope is not None:
            raise ZooError(
                "a pruned Vim has bimamba_type v2, no pairs of layers and no rotary embedding"
            )
        scores = (*SCORES, "official_code")
        self.pruning = make_pruning(prune_after, keep_ratio, gap, score, len(self.layers), scores)

    def states(self, x: Tensor, last: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Tokens [B, L, C] through layers 0 to ``last``, what follows a layer's dropping excepted.

        Returns:
            for each layer its output and the residual stream [B, n, C], and the places of the
            tokens that count in the whole sequence [B, kept].
        """
        length = x.shape[1]
        patches = length - self.num_tokens
        special = torch.tensor(self.token_positions(patches), device=x.device)
        places = torch.arange(length, device=x.device).expand(x.shape[0], -1)
        line = None  # the places, as soon as scans and convolutions are to mind them
        residual, states = None, []
        for number, layer in enumerate(self.layers[: last + 1], start=1):
            ratio = self.pruning.keep.get(number)
            scored = ratio is not None
            x, residual, scores = self.run(self._layer, layer, x, residual, line, length, scored)
            states.append((x, residual, places))
            if ratio is None:
                continue
            patches = self._count(patches, ratio)
            if self.pruning.gap == "mask":
                scores = scores.gather(1, places)
            is_class = torch.isin(places, special)
            scores = scores.masked_fill(is_class, math.inf)
            chosen = best(scores, patches + self.num_tokens)
            if self.pruning.gap == "close" and self.num_tokens == 1 and self.use_middle_cls_token:
                chosen = _class_to_middle(chosen, is_class.gather(1, chosen))
            (x, residual), places = self.pruning.drop([x, residual], places, chosen)
            line = places if self.pruning.gap in ("decay", "hold") else None
        return states

    def _count(self, patches: int, ratio: float) -> int:
        """How many of the patches stay."""
        count = math.ceil(patches * ratio)
        return max(2, count - count % 2) if self.num_tokens == 1 else count

    def _layer(
        self, layer: Block, x: Tensor, residual: Tensor | None, line: Tensor | None, length: int,
        scored: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        if line is None and not scored:
            return *layer(x, residual), None
        x = x if residual is None else layer.drop_path(x)
        x, residual = add_norm(x, residual, layer.norm, layer.residual_in_fp32)
        decay = self.pruning.gap == "decay"
        out, ys, z = mix_both_ways(layer.mixer, x, line, length, decay)
        return out, residual, self.pruning.scores(ys, z) if scored else None

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to the normalised tokens that are left [B, n, C].

        Class tokens stand where :meth:`token_positions` of n - class tokens says.
        """
        x, grid = self.tokens(x)
        x, residual, places = self.states(x, len(self.layers) - 1)[-1]
        x = add_norm(self.drop_path(x), residual, self.norm_f, self.residual_in_fp32)[0]
        if self.pruning.gap in ("decay", "hold") and self.num_tokens == 1:
            place = self.token_positions(math.prod(grid))[0]
            numbers = torch.arange(x.shape[1], device=x.device).expand_as(places)
            x = take(x, _class_to_middle(numbers, places == place))
        return x

    def stream(self, x: Tensor, last: int) -> list[Tensor]:
        """Maps [B, C, h, w] of the residual stream after layers 0 to ``last``, no class tokens.

        A patch that is gone keeps the features that it had last.
        """
        x, grid = self.tokens(x)
        specials = self.token_positions(math.prod(grid))
        keep = [i for i in range(x.shape[1]) if i not in specials]
        maps = fill_in([(x + residual, p) for x, residual, p in self.states(x, last)])
        return [tokens[:, keep].transpose(1, 2).unflatten(2, grid) for tokens in maps]

    @torch.no_grad()
    def kept_patches(self, x: Tensor) -> list[Tensor]:
        """For images [B, in_chans, H, W], which patches are left each time: bool [B, h, w]."""
        x, grid = self.tokens(x)
        states = self.states(x, max(self.pruning.keep))
        specials = self.token_positions(math.prod(grid))
        keep = [i for i in range(x.shape[1]) if i not in specials]
        kept = [mark(states[number][2], x.shape[1])[:, keep] for number in self.pruning.keep]
        return [marks.unflatten(1, grid) for marks in kept]


def mix_both_ways(
    mixer: Mamba, x: Tensor, line: Tensor | None, length: int, decay: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Vim's mixer on the tokens that are left.

    Args:
        mixer: of ``bimamba_type`` v2.
        x: tokens [B, n, C].
        line: their ascending places [B, n] among ``length``; None: nothing is missing.
        decay: let the state decay over gaps; False: let it wait.

    Returns:
        its output [B, n, C], that of the forward and the backward scan before the gate, and the
        gate before its activation; [B, n, d].
    """
    x, z = mixer.in_proj(x).chunk(2, dim=-1)
    seats: list[Tensor | None] = [None, None]
    gaps: list[Tensor | None] = [None, None]
    if line is not None:
        seats = [line, length - 1 - line]  # the second counted from the end
        if decay:
            gaps = [gaps_before(line), gaps_before(seats[1].flip(1)).flip(1)]  # type: ignore[union-attr]
    ys = []
    for suffix, seat, gap in zip(("", "_b"), seats, gaps, strict=True):
        conv, x_proj, dt_proj, D = (
            getattr(mixer, name + suffix) for name in ("conv1d", "x_proj", "dt_proj", "D")
        )
        backward = suffix == "_b"
        u = x if seat is None else spread(x, seat, length)
        u = u.flip(1) if seat is None and backward else u
        u = short_conv(u, conv)
        u = u.flip(1) if seat is None and backward else u
        u = u if seat is None else take(u, seat)
        dt, B, C = x_proj(u).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
        rest = at_least_fp32(at_zero(dt_proj, dt))
        dt, bias = split_bias(dt_proj, dt)  # [B, n, d]
        A = -at_least_fp32(mixer.A_b_log if backward else mixer.A_log).exp()
        u, dt, B, C = (t.transpose(1, 2) for t in (u, dt, B, C))
        D, bias = at_least_fp32(D), None if bias is None else at_least_fp32(bias)
        if gap is None:
            y: Tensor = selective_scan(  # type: ignore[assignment]
                u, dt, A, B, C, D, delta_bias=bias, delta_softplus=True, reverse=backward
            )
        else:
            steps = step_sizes(dt, bias)
            y = gap_scan(u, steps, A, B, C, D, F.softplus(rest), gap, reverse=backward)
        ys.append(y.transpose(1, 2))
    y = reduce(add, ys) * F.silu(z)
    out = linear_of_half(mixer.out_proj, y) if mixer.if_divide_out else mixer.out_proj(y)
    return out if mixer.gamma is None else out * mixer.gamma, ys, z


class PrunedPlainMamba(PlainMamba):
    """PlainMamba that drops patches on its way.

    Scans go their way through the whole grid and leave out what is gone. With ``gap="close"`` the
    rest is laid out anew, row by row in rows of the old width. In the published form
    (``strict_official``) the step sizes, B and C of the patches that are left stay in raster order.

    Args:
        prune_after: layers, counted from 1, after which patches are dropped.
        keep_ratio: share of the patches that stays each time, or one share for each time.
        gap, score: see :class:`Pruning`.
        kwargs: of :class:`zoo.models.vision.plainmamba.PlainMamba`.
    """

    def __init__(
        self,
        prune_after: Sequence[int] = (9, 18, 27),
        keep_ratio: float | Sequence[float] = 0.575,
        gap: str = "decay",
        score: str = "clip",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        layers = len(self.layers)
        self.pruning = make_pruning(prune_after, keep_ratio, gap, score, layers, tuple(SCORES))

    def states(self, x: Tensor, last: int) -> tuple[list[tuple[Tensor, Tensor]], tuple[int, int]]:
        """Images through layers 0 to ``last``, what follows a layer's dropping excepted.

        Returns:
            for each layer the tokens [B, n, C] and the places of those that count in the whole grid
            [B, kept]; and the grid.
        """
        x, grid = self.tokens(x)
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        whole = layout = Layout(grid, None, snake(*grid, x.device))
        states = []
        for number, layer in enumerate(self.layers[: last + 1], start=1):
            ratio = self.pruning.keep.get(number)
            x, scores = self.run(self._layer, layer, x, layout, ratio is not None)
            states.append((x, places))
            if ratio is None:
                continue
            if self.pruning.gap == "mask":
                scores = scores.gather(1, places)
            chosen = best(scores, math.ceil(places.shape[1] * ratio))
            (x,), places = self.pruning.drop([x], places, chosen)
            layout = self._lay_out(whole, places)
        return states, grid

    def _lay_out(self, whole: Layout, places: Tensor) -> Layout:
        """Where the tokens that are left stand for scans and convolutions."""
        if self.pruning.gap == "mask":
            return whole
        if self.pruning.gap == "close":
            count, width = places.shape[1], whole.grid[1]
            grid = (-(-count // width), width)
            places = torch.arange(count, device=places.device).expand_as(places)
            order = only_kept(snake(*grid, places.device), places, gaps=False)
            return Layout(grid, places, order)
        order = only_kept(whole.order, places, gaps=self.pruning.gap == "decay")
        return Layout(whole.grid, places, order)

    def _layer(
        self, layer: PlainMambaLayer, x: Tensor, layout: Layout, scored: bool
    ) -> tuple[Tensor, Tensor | None]:
        if layout.places is None and not scored:
            return layer(x, layout.grid, layout.order), None
        mixer = layer.mamba
        u, z = mixer.in_proj(layer.norm(x)).chunk(2, dim=-1)  # [B, n, d]
        u = layout.collect(mixer.convolve(layout.spread(u), layout.grid))
        ys = mixer.scans(u, layout.order)
        x = x + layer.drop_path(mixer.output(reduce(add, ys), z))
        if layer.dw is not None:
            conv, norm, act = layer.dw
            y = conv(layout.spread(x).unflatten(1, layout.grid).permute(0, 3, 1, 2))
            y = layout.collect(y.permute(0, 2, 3, 1).flatten(1, 2))  # [B, n, C]
            x = act(norm(y.transpose(1, 2)[..., None]))[..., 0].transpose(1, 2)
        return x, self.pruning.scores(ys, z) if scored else None

    def run_layers(self, x: Tensor, last: int) -> tuple[list[Tensor], tuple[int, int]]:
        """Tokens [B, n, C] of images after layers 0 to ``last``, and the whole grid."""
        states, grid = self.states(x, last)
        return [x for x, _ in states], grid

    def stream(self, x: Tensor, last: int) -> list[Tensor]:
        """Maps [B, C, h, w] after layers 0 to ``last``, not normalised.

        A patch that is gone keeps the features that it had last.
        """
        states, grid = self.states(x, last)
        return [tokens.transpose(1, 2).unflatten(2, grid) for tokens in fill_in(states)]

    @torch.no_grad()
    def kept_patches(self, x: Tensor) -> list[Tensor]:
        """For images [B, in_chans, H, W], which patches are left each time: bool [B, h, w]."""
        states, grid = self.states(x, max(self.pruning.keep))
        kept = [mark(states[number][1], math.prod(grid)) for number in self.pruning.keep]
        return [marks.unflatten(1, grid) for marks in kept]


class Layout(NamedTuple):
    """Tokens on a grid.

    Attributes:
        grid: its height and width.
        places: of the tokens [B, n]; None: they fill the grid.
        order: in which scans visit them.
    """

    grid: tuple[int, int]
    places: Tensor | None
    order: ScanOrder

    def spread(self, x: Tensor) -> Tensor:
        """Tokens [B, n, C] to cells [B, H W, C], zero where no token is."""
        return x if self.places is None else spread(x, self.places, math.prod(self.grid))

    def collect(self, x: Tensor) -> Tensor:
        """Cells [B, H W, C] to tokens [B, n, C]."""
        return x if self.places is None else take(x, self.places)


def fill_in(states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Tokens [B, n, C] and their places [B, n], layer by layer, to whole sequences [B, L, C].

    The first layer has them all. Later, those that are missing are as they were last.
    """
    whole: list[Tensor] = []
    for x, places in states:
        missing = whole and x.shape[1] < whole[-1].shape[1]
        whole.append(put(whole[-1], x, places) if missing else x)
    return whole


def mark(places: Tensor, length: int) -> Tensor:
    """Bool [B, length]: True at ``places`` [B, n]."""
    marks = torch.zeros(len(places), length, dtype=torch.bool, device=places.device)
    return marks.scatter(1, places, True)


def _class_to_middle(tokens: Tensor, is_class: Tensor) -> Tensor:
    """Numbers of tokens [B, n], one of them the class token, with that one in the middle."""
    class_last = is_class.int().argsort(dim=1, stable=True)
    patches, token = tokens.gather(1, class_last).split([tokens.shape[1] - 1, 1], dim=1)
    halves = patches.tensor_split([patches.shape[1] // 2], dim=1)
    return torch.cat([halves[0], token, halves[1]], dim=1)


# Weights are those of the backbones; fine-tuned ones were not published. Vim's schedules are the
# released code's. PlainMamba's was not released: three droppings at equal distances that cut what
# the paper cuts of L3, 41.6 %.


def _vim(kwargs: dict[str, Any], **variant: Any) -> PrunedVim:
    return PrunedVim(**{"final_pool_type": "mean", "drop_path_rate": 0.0, **variant, **kwargs})


def _plainmamba(kwargs: dict[str, Any], variant: dict[str, Any], every: int) -> PrunedPlainMamba:
    schedule = {"prune_after": (every, 2 * every, 3 * every), "keep_ratio": 0.575}
    return PrunedPlainMamba(**{**variant, "drop_path_rate": 0.0, **schedule, **kwargs})


@register_backbone(
    source="hf://hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth",
    parameters=7_148_008,
    **vim.PLACES,
)
def token_pruning_vim_tiny(**kwargs: Any) -> PrunedVim:
    """Vim-Ti that keeps 3 of 4 patches after layers 10 and 20."""
    return _vim(kwargs, embed_dim=192, prune_after=(10, 20), keep_ratio=0.75)


@register_backbone(
    source="hf://hustvl/Vim-small-midclstok/vim_s_midclstok_80p5acc.pth",
    parameters=25_796_584,
    **vim.PLACES,
)
def token_pruning_vim_small(**kwargs: Any) -> PrunedVim:
    """Vim-S that keeps 4 of 5 patches after layers 5, 10 and 15: tuned 78.8 %."""
    return _vim(kwargs, embed_dim=384)


@register_backbone(source=plainmamba._HUB + "l1.pth", parameters=7_551_656, **plainmamba.PLACES)
def token_pruning_plainmamba_l1(**kwargs: Any) -> PrunedPlainMamba:
    """PlainMamba-L1 that keeps 57.5 % of the patches after layers 6, 12 and 18."""
    return _plainmamba(kwargs, plainmamba.L1, 6)


@register_backbone(source=plainmamba._HUB + "l2.pth", parameters=26_145_832, **plainmamba.PLACES)
def token_pruning_plainmamba_l2(**kwargs: Any) -> PrunedPlainMamba:
    """PlainMamba-L2 that keeps 57.5 % of the patches after layers 6, 12 and 18."""
    return _plainmamba(kwargs, plainmamba.L2, 6)


@register_backbone(source=plainmamba._HUB + "l3.pth", parameters=50_956_456, **plainmamba.PLACES)
def token_pruning_plainmamba_l3(**kwargs: Any) -> PrunedPlainMamba:
    """PlainMamba-L3 that keeps 57.5 % of the patches after layers 9, 18, 27: tuned 81.7 %."""
    return _plainmamba(kwargs, plainmamba.L3, 9)
