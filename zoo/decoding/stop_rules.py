"""When to stop drafting: a constant length, the draft's confidence, or a predicted rejection."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from zoo.errors import ZooError


class StopRule(ABC):
    """Says after every drafted token whether it was the last of its round.

    A rule may depend on the drafted tokens only through what is already drawn; then the text's
    distribution does not change.

    Args:
        maximum: most tokens of a round.
    """

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ZooError(f"at most {maximum} drafted tokens were asked for: expected 1 or more")
        self.maximum = maximum

    def begin(self, batch_size: int, device: torch.device) -> None:  # noqa: B027
        """A new round."""

    def stops(self, drafted: int, confidence: Tensor, hidden: Tensor | None) -> Tensor:
        """Which sequences stop now, bool ``[B]``.

        Args:
            drafted: tokens of this round so far.
            confidence: ``[B]``, the draft's highest probability where it chose the newest token.
            hidden: ``[B, d]``, the draft's last states, at the token *before* the newest.
        """
        if drafted >= self.maximum:
            return torch.ones_like(confidence, dtype=torch.bool)
        return self._stops(drafted, confidence, hidden)

    @abstractmethod
    def _stops(self, drafted: int, confidence: Tensor, hidden: Tensor | None) -> Tensor:
        """The rule below the maximum."""


class Constant(StopRule):
    """Always ``maximum`` tokens."""

    def _stops(self, drafted: int, confidence: Tensor, hidden: Tensor | None) -> Tensor:
        return torch.zeros_like(confidence, dtype=torch.bool)


class Confidence(StopRule):
    """Stop after a token whose probability is below ``threshold`` (Kangaroo's second exit)."""

    def __init__(self, threshold: float, maximum: int) -> None:
        super().__init__(maximum)
        self.threshold = threshold

    def _stops(self, drafted: int, confidence: Tensor, hidden: Tensor | None) -> Tensor:
        return confidence < self.threshold


class PredictedRejection(StopRule):
    """Stop when some token of the round is rejected with a probability above ``threshold``.

    SpecDec++ (arXiv 2405.19715, section 3): the acceptance probabilities that ``head`` predicts are
    multiplied. The newest token has no prediction yet, for its state is only known one pass later.

    Args:
        head: states ``[B, d]`` -> logits ``[B, 2]`` of (rejected, accepted).
        threshold: h of the paper.
        minimum, maximum: bounds of a round's length.
    """

    def __init__(
        self, head: nn.Module, threshold: float = 0.7, minimum: int = 2, maximum: int = 20
    ) -> None:
        super().__init__(maximum)
        self.head, self.threshold, self.minimum = head, threshold, minimum

    def begin(self, batch_size: int, device: torch.device) -> None:
        """Nothing can be rejected yet."""
        self._accepted = torch.ones(batch_size, device=device)

    def _stops(self, drafted: int, confidence: Tensor, hidden: Tensor | None) -> Tensor:
        # the first state belongs to a token that is decided
        if drafted > 1:
            self._accepted = self._accepted * self.head(hidden).float().softmax(-1)[:, 1]
        if drafted < self.minimum:
            return torch.zeros_like(confidence, dtype=torch.bool)
        return 1 - self._accepted > self.threshold
