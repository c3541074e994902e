"""MiniCache: what is left of two layers' states that share a direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.decoding.merged_cache import MiniCache, limits, merge, restore
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement

#: Heads, tokens, width of a head, and queries.
HEADS, LENGTH, WIDTH, QUERIES = 4, 256, 32, 16
#: Share of tokens whose states are opposed in the two layers; spread of the lengths' logarithms.
OPPOSED, SPREAD = 0.05, 0.3
#: Strengths of the noise that the picture goes through, and the one that is judged.
NOISES, NOISE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7), 0.3
#: Ways of merging: arguments of :func:`merge`, and the share of states that is kept apart.
WAYS: dict[str, tuple[dict[str, Any], float]] = {
    "minicache": ({}, OPPOSED),
    "slerp": ({}, 0.0),
    "mean": ({"how": "mean"}, 0.0),
    "max_norm": ({"how": "max_norm"}, 0.0),
}


def two_layers(generator: torch.Generator, noise: float) -> tuple[Tensor, Tensor]:
    """States ``[1, H, T, D]`` of two layers: a direction in common with noise in each, the upper
    one twice as long, some tokens opposed."""
    shape = (1, HEADS, LENGTH, WIDTH)

    def draw() -> Tensor:
        return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)

    common, opposed = draw(), torch.rand(LENGTH, generator=generator) < OPPOSED
    found = []
    for size, turn in ((1.0, 1.0), (2.0, -1.0)):
        sign = torch.where(opposed, turn, 1.0)[:, None]
        direction = torch.nn.functional.normalize(sign * common + noise * draw(), dim=-1)
        lengths = (SPREAD * torch.randn(*shape[:-1], 1, generator=generator)).exp()
        found.append(size * lengths * direction)
    return found[0], found[1]


def merged(lower: Tensor, upper: Tensor, way: str) -> list[Tensor]:
    """Both layers as they are read again."""
    settings, ratio = WAYS[way]
    made = merge(lower, upper, limits(lower, upper, 0.0, ratio), 0.5, **settings)
    return [restore(made, side) for side in (0, 1)]


def off(found: Tensor, true: Tensor) -> float:
    """Mean relative error of vectors."""
    return float(((found - true).norm(dim=-1) / true.norm(dim=-1)).mean())


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of queries over all tokens."""
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values)


class Merging(Measurement):
    """Made states of two layers, merged in several ways and read again.

    Measures for each way the mean relative error of a state (``minicache``, ``slerp`` without
    retention, ``mean``, ``max_norm``), and with ``_attention`` behind it that of what queries read
    with keys and values so restored; ``all_kept``, the error where everything is kept apart;
    ``rotated``, the largest difference between merging before and after a rotation of both layers'
    keys, relative to their size; and of a cache of four layers of which two are merged
    ``bytes_off``, how far its size is from the paper's formula, and ``below``, whether layers below
    the start are as they were given (0) or not (1).

    Args:
        pairs: of layers, which are drawn.
    """

    def __init__(self, pairs: int = 20) -> None:
        self.pairs = pairs

    def measure(self, seed: int) -> Measured:
        """Merge and read again."""
        generator = torch.Generator().manual_seed(seed)
        errors: dict[str, list[float]] = {way: [0.0] * len(NOISES) for way in WAYS}
        attention = dict.fromkeys(WAYS, 0.0)
        all_kept = rotated = 0.0
        for _ in range(self.pairs):
            for place, noise in enumerate(NOISES):
                keys, values = (two_layers(generator, noise) for _ in range(2))
                query = torch.randn(1, HEADS, QUERIES, WIDTH, generator=generator)
                for way in WAYS:
                    read = [merged(*states, way) for states in (keys, values)]
                    sides = [off(read[1][side], values[side]) for side in (0, 1)]
                    errors[way][place] += sum(sides) / 2 / self.pairs
                    if noise != NOISE:
                        continue
                    for side in (0, 1):
                        true = attend(query, keys[side], values[side])
                        found = attend(query, read[0][side], read[1][side])
                        attention[way] += off(found, true) / 2 / self.pairs
            whole = merge(*keys, limits(*keys, 2.0))
            gaps = [(restore(whole, side) - keys[side]).abs().max() for side in (0, 1)]
            all_kept = max(all_kept, *map(float, gaps))
            rotated = max(rotated, _rotation_gap(*keys))
        judged = NOISES.index(NOISE)
        bytes_off, below = _in_a_cache(generator)
        axes = Axes("What is left of a state", "noise of each layer", "mean relative error")
        names = {"minicache": "SLERP and retention (MiniCache)", "slerp": "SLERP alone"}
        names |= {"mean": "mean", "max_norm": "the longer one"}
        return Measured(
            {way: values[judged] for way, values in errors.items()}
            | {f"{way}_attention": value for way, value in attention.items()}
            | {"all_kept": all_kept, "rotated": rotated, "bytes_off": bytes_off, "below": below},
            [Curve(axes, NOISES, values, names[way]) for way, values in errors.items()],
        )


def _rotation_gap(lower: Tensor, upper: Tensor) -> float:
    """Merging behind a rotation by position against a rotation of what was merged before it."""
    steps = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(WIDTH // 2) * 2 / WIDTH)
    turn = torch.polar(torch.ones_like(steps), steps)

    def rotate(states: Tensor) -> Tensor:
        pairs = torch.view_as_complex(states.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    limit = torch.full(lower.shape[:2], -2.0)  # nothing is kept apart
    before = merge(lower, upper, limit)
    after = merge(rotate(lower), rotate(upper), limit)
    gaps = [
        float((restore(after, side) - rotate(restore(before, side))).norm(dim=-1).max())
        / float(restore(before, side).norm(dim=-1).max())
        for side in (0, 1)
    ]
    return max(gaps)


def _in_a_cache(generator: torch.Generator) -> tuple[float, float]:
    """How far the size of a cache is from the formula, and whether its lower layers changed."""
    cache = MiniCache(4, ratio=OPPOSED)
    given = []
    for layer in range(4):
        states = two_layers(generator, NOISE)[0].half(), two_layers(generator, NOISE)[0].half()
        given.append(states)
        cache.update(*states, layer)
    cache.settle(LENGTH)
    width = HEADS * WIDTH
    formula = (3.1 * width + 2) * 4 * LENGTH
    none = [t[:, :, :0] for t in given[0]]
    changed = any(
        not torch.equal(now, was)
        for layer in (0, 1)
        for now, was in zip(cache.update(*none, layer), given[layer], strict=True)
    )
    return abs(cache.sizes()[0] / formula - 1), float(changed)
