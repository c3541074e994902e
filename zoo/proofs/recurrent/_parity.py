"""Parity at every bit, and far beyond the lengths of the training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from zoo.data.synthetic.formal_languages import parity
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured
from zoo.proofs.synthetic import Samples, SyntheticTask, TrainedBlock


class PrefixParity(SyntheticTask):
    """Random bits; at every one, whether the number of ones so far is odd.

    Args:
        low, high: lengths of sequences, one for each batch.
    """

    symbols, classes = 2, 2

    def __init__(self, low: int = 3, high: int = 20) -> None:
        self.low, self.high = low, high
        self.known = {"guess": 1 / 2}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Bits [B, L]."""
        length = int(torch.randint(self.low, self.high + 1, (1,), generator=generator))
        bits, answers = parity(count, length, generator)
        return Samples((bits,), answers)


class TrainedParity(TrainedBlock):
    """Accuracy of a block at parity, trained on lengths up to 20.

    Measures ``far`` as well: that of the last answer at the longest length.

    Args:
        block: given its width, builds it.
        lengths: that are tried in the end.
        kwargs: see :class:`zoo.proofs.synthetic.TrainedBlock`.
    """

    def __init__(
        self, block: Callable[[int], nn.Module], lengths: tuple[int, ...], **kwargs: object
    ) -> None:
        super().__init__(PrefixParity(), block, test_samples=512, **kwargs)  # type: ignore[arg-type]
        self.lengths = lengths

    def inspect(self, network: nn.Module, samples: Samples) -> Measured:
        """The last answer at lengths that were not trained on."""
        drawn = torch.Generator().manual_seed(1)
        bits, answers = parity(512, self.lengths[-1], drawn)
        with torch.inference_mode():
            right = (network(bits).argmax(-1) == answers).double().mean(0)
        shares = [float(right[length - 1]) for length in self.lengths]
        axes = Axes("Parity after training on lengths 3 to 20", "length", "share of right answers")
        return Measured({"far": shares[-1]}, [Curve(axes, self.lengths, shares)])
