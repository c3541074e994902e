"""When a pruned network drops tokens, how many and which: what both backbones of
:mod:`zoo.models.vision.token_pruning` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.layers.kept_tokens import spread, take
from zoo.layers.precision import at_least_fp32

GAPS = ("decay", "hold", "close", "mask")
#: Mean scan output of the directions [B, n, d] -> score of each token [B, n].
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": lambda y: y.clamp(min=0).sum(-1),
    "sum": lambda y: y.sum(-1),
    "l1": lambda y: y.abs().sum(-1),
    "l2": lambda y: y.square().sum(-1).sqrt(),
    "random": lambda y: torch.rand(y.shape[:2], device=y.device),
}


class Pruning(NamedTuple):
    """When, how many and which patches are dropped, and what becomes of their places.

    Attributes:
        keep: layer, counted from 1 -> share of the patches that stay after it.
        gap: "decay": where a patch is gone the state decays by the step that a zero token would
            take, and convolutions see a zero (the paper's alignment). "hold": the state waits
            there. "close": the rest moves together, as in pruned transformers. "mask": patches
            become zero once and stay, at full cost.
        score: how the scan's output makes a patch important: "clip" (the paper's: the sum over the
            positive channels), "sum", "l1", "l2"; "random"; or, for Vim, "official_code" (the
            released code's: the gated output of the backward scan, not turned round).
    """

    keep: dict[int, float]
    gap: str
    score: str

    def scores(self, ys: list[Tensor], z: Tensor) -> Tensor:
        """Importance [B, n] from each direction's output before the gate z, both [B, n, d]."""
        with torch.no_grad():
            if self.score == "official_code":
                return at_least_fp32(ys[-1] * F.silu(z)).sum(-1).flip(1)
            return SCORES[self.score](at_least_fp32(reduce(add, ys)) / len(ys))

    def drop(
        self, streams: list[Tensor], places: Tensor, chosen: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Keep some tokens.

        Args:
            streams: [B, n, C] each.
            places: where the tokens that count stand in the whole sequence [B, n].
            chosen: numbers of those that stay [B, kept].

        Returns:
            The streams, and the places of those that stay.
        """
        kept = places.gather(1, chosen)
        if self.gap == "mask":
            return [spread(take(x, kept), kept, x.shape[1]) for x in streams], kept
        return [take(x, chosen) for x in streams], kept


def make_pruning(
    prune_after: Sequence[int],
    keep_ratio: float | Sequence[float],
    gap: str,
    score: str,
    layers: int,
    scores: Sequence[str],
) -> Pruning:
    """Check the arguments of a network of ``layers`` layers and put them together."""
    one = isinstance(keep_ratio, int | float)
    ratios = [keep_ratio] * len(prune_after) if one else [*keep_ratio]  # type: ignore[misc]
    if len(ratios) != len(prune_after) or not all(0 < ratio <= 1 for ratio in ratios):
        raise ZooError(
            f"keep_ratio is a number above 0 and at most 1, or one for each of prune_after "
            f"{[*prune_after]}, not {keep_ratio}"
        )
    known = all(0 < number < layers for number in prune_after)
    if not known or [*prune_after] != sorted(set(prune_after)):
        raise ZooError(
            f"prune_after is numbers of layers from 1 to {layers - 1}, ascending, "
            f"not {[*prune_after]}"
        )
    for name, value, choices in (("gap", gap, GAPS), ("score", score, scores)):
        if value not in choices:
            raise ZooError(f"{name} is one of {', '.join(choices)}, not {value}")
    return Pruning(dict(zip(prune_after, ratios, strict=True)), gap, score)


def best(scores: Tensor, count: int) -> Tensor:
    """The ``count`` best of [B, n], as numbers [B, count] in ascending order."""
    return scores.topk(count, dim=1).indices.sort(dim=1).values
