"""Beam search and exact search for the likeliest text, with no length normalisation."""

from __future__ import annotations

from torch import nn

from zoo.decoding.beam import Found, search
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.session import Scores
from zoo.decoding.whole_texts import WholeTextMethod
from zoo.errors import ZooError


def check_width(name: str, width: int) -> None:
    """Refuse a beam without texts."""
    if width < 1:
        raise ZooError(
            f"option width of the decoding method '{name}' is {width}, expected 1 or more"
        )


def mean_log_prob(found: list[list[Found]]) -> float:
    """Mean log-probability of the best texts."""
    return sum(texts[0].score for texts in found) / max(len(found), 1)


@register_method
class Beam(WholeTextMethod):
    """The likeliest texts side by side; the text is likelier than the greedy one, mostly.

    At temperatures above 0 the search is for the likeliest text of the distribution that would be
    drawn from.

    Args:
        width: texts that are followed at once; 1 is greedy.
    """

    name = "beam"
    proposer = "nobody: several texts are followed, the likeliest is kept"

    def __init__(self, width: int = 5) -> None:
        check_width(self.name, width)
        self.width = width

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """None: at no setting is what it finds distributed as the target's own text."""
        return {}

    def search(self, run: Run, first: Scores) -> list[list[Found]]:
        """Follow several texts; the best one of each sequence."""
        self._session = run.target
        return [[found] for found in search(run, first, self.width)]

    def report(self) -> dict[str, float]:
        """Mean log-probability of the texts; passes of the target, and tokens that it read."""
        return {
            "log_prob": mean_log_prob(self.found),
            "passes": self._session.calls,
            "tokens_read": self._session.tokens,
        }
