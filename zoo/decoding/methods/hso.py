"""Hidden-state optimisation: plain decoding over a cache that learns from the text as it grows.

Paper: Reconsidering the Past: Optimizing Hidden States in Language Models (Findings of EMNLP 2021,
arXiv 2112.08653), part of Making the Most of your Model (thesis, arXiv 2408.16241). No code was
published. The text is not the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from zoo.decoding.hidden_states import HiddenStates, check_settings
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.methods.plain import Plain
from zoo.decoding.session import AttentionSession, Scores
from zoo.decoding.verify import Draft, Verdict


@register_method
class HSO(Plain):
    """After every window of text, the prompt's windows too, the states before it take a step.

    Args:
        window: tokens between corrections.
        lr: of Adam on the cached keys and values; 0 leaves the target's own text.
        steps: for each window.
    """

    name = "hso"
    proposer = "nobody: cached states learn from the text"
    lossless = False
    sessions = AttentionSession

    def __init__(self, window: int = 25, lr: float = 3e-3, steps: int = 1) -> None:
        check_settings(window, lr, steps)
        self.window, self.lr, self.steps = window, lr, steps

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The setting whose text is the target's own: states are computed anew, and do not move."""
        return {"": cls(window=3, lr=0.0)}

    def start(self, run: Run, prompt: Scores) -> None:
        """Correct by the prompts."""
        session = cast(AttentionSession, run.target)
        self._states = HiddenStates(session, self.window, self.lr, self.steps)
        self._states.catch_up(run.sequences, rest=True)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Correct where a window is complete."""
        self._states.catch_up(run.sequences)

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the moments of these sequences."""
        self._states.select(rows)

    def report(self) -> dict[str, float]:
        """See :meth:`HiddenStates.report`."""
        return self._states.report()
