"""EAD: two models that are tables, on text that is easy and hard in turn."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding import Generation, generate
from zoo.decoding.methods.ead import EAD, Writer
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._tables import TableModel
from zoo.proofs.decoding._unit_language import METHODS

#: Symbols of easy stretches, which are counted through, and of hard ones.
EASY, HARD = 20, 16
#: Chance of a hard stretch to end with a token.
END = 0.05
#: Thresholds, in bits; a share of at most so much is asked of the best one.
GRID, SHARE = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0), 0.55


class Stretches:
    """Text that counts through the easy symbols, then follows a table of the last two tokens.

    Behind the last easy symbol stands any hard one; a hard stretch goes on with the symbol that
    the last two tokens fix, or ends and begins to count.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = EASY + HARD
        fixed = torch.randint(HARD, (size, size), generator=generator) + EASY
        #: Probabilities ``[before, last, next]``.
        self.law = torch.zeros(size, size, size)
        for last in range(EASY - 1):
            self.law[:, last, last + 1] = 1.0
        self.law[:, EASY - 1, EASY:] = 1.0 / HARD
        hard = self.law[:, EASY:]
        hard.scatter_(-1, fixed[:, EASY:, None], 1.0 - END)
        hard[..., 0] = END

    def small(self) -> Tensor:
        """What is known from the last token alone: the mean over hard tokens before it."""
        return self.law[EASY:].mean(0, keepdim=True).expand_as(self.law)

    def validity(self, text: list[int], start: int) -> float:
        """Share of the tokens from ``start`` on that may stand where they do."""
        legal = [float(self.law[tuple(text[i - 2 : i + 1])]) > 0 for i in range(start, len(text))]
        return sum(legal) / len(legal)


class ByChance(EAD):
    """Sends tokens to the target by chance."""

    def __init__(self, draft: nn.Module, share: float, seed: int) -> None:
        super().__init__(draft, dwell=1)
        self.share, self.chance = share, random.Random(seed)

    def wants_target(self, writer: Writer) -> bool:
        """By a throw."""
        return self.chance.random() < self.share


class Routing(Measurement):
    """Texts by both models in turn, at temperature 1.

    Measures of the threshold that keeps the target's share at 0.55 or below and is best then
    ``best_validity``, the share of legal tokens relative to that of the target alone, and
    ``best_share``; ``chance_validity`` of a router that sends as many tokens by chance;
    ``worst_fall`` of the validity between one threshold and a lower one, where the share is larger;
    and whether thresholds below and above all entropies give the text of the one model and of the
    other, ``large_is_plain`` and ``small_is_plain``.

    Args:
        texts, new_tokens: how many, and how long.
    """

    def __init__(self, texts: int = 8, new_tokens: int = 240) -> None:
        self.texts, self.new_tokens = texts, new_tokens

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Decode with every threshold."""
        language = Stretches(seed)
        large, small = TableModel(language.law), TableModel(language.small())
        begun = torch.tensor(
            [[(3 * n) % (EASY - 1), (3 * n) % (EASY - 1) + 1] for n in range(self.texts)]
        )

        def write(method: Any, model: nn.Module = large) -> Generation:
            return generate(
                model, begun, method, max_new_tokens=self.new_tokens, temperature=1.0, seed=seed
            )

        def validity(out: Generation) -> float:
            texts = out.sequences.tolist()
            return sum(language.validity(text, 3) for text in texts) / len(texts)

        plain = write("plain")
        whole = validity(plain)
        points = []
        for threshold in GRID:
            out = write(EAD(small, threshold))
            points.append((out.report["share_by_target"], validity(out) / whole))
        share, best = max((p for p in points if p[0] <= SHARE), key=lambda p: p[1])
        chance = validity(write(ByChance(small, share, seed))) / whole
        always = write(EAD(small, -1.0, start="large"))
        never = write(EAD(small, 99.0))
        ordered = sorted(points)
        falls = [0.0, *(a[1] - b[1] for a, b in pairwise(ordered))]
        axes = Axes(
            "Two models in turn",
            "share of the large model's tokens",
            "legal tokens, relative to the large model alone",
        )
        return Measured(
            {
                "best_validity": best,
                "best_share": share,
                "chance_validity": chance,
                "worst_fall": max(falls),
                "large_is_plain": float(always.new_tokens == plain.new_tokens),
                "small_is_plain": float(never.new_tokens == write("plain", small).new_tokens),
            },
            [
                Curve(axes, *zip(*ordered, strict=True), "entropy (EAD)"),
                Curve(axes, [share], [chance], "chance", "points"),
            ],
        )
