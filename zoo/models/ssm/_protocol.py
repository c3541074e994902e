"""What a classifier of long sequences is, a model of raw audio, and a policy.

:class:`zoo.tasks.SequenceClassification`, :class:`zoo.tasks.AudioModeling` and
:class:`zoo.tasks.PPO` train them.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torch.distributions import Distribution


class SequenceClassifier(Protocol):
    """An ``nn.Module`` that gives a sequence one of several classes.

    Its constructor takes ``num_classes``.

    Attributes:
        d_input: F, features of a step; None if a step is a token.
        vocab_size: number of different tokens, padding (0) included; None if a step has features.
        paired: whether it compares two sequences.
    """

    d_input: int | None
    vocab_size: int | None
    paired: bool

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            inputs: features [B, L, F] or tokens [B, L], padding at the ends; of a paired model
                [B, 2, L, F] or [B, 2, L].
            lengths: steps of each [B], of a paired model [B, 2]; None: all of L.

        Returns:
            logits [B, num_classes], on which padding has no influence.
        """


class ClassifierStream(Protocol):
    """Sequences that come in pieces, in evaluation mode."""

    def feed(self, inputs: Tensor, last: bool = False) -> Tensor:
        """Take in features [B, l, F]; logits [B, n, num_classes] after each step that is now
        complete. The newest may have to wait for the next piece, unless it is the ``last``; then
        the last logits are those of the whole."""


class StreamingClassifier(SequenceClassifier, Protocol):
    """A classifier that can answer while a sequence is still coming."""

    def stream(self) -> ClassifierStream:
        """Begin to listen."""


class AudioModel(Protocol):
    """An ``nn.Module`` that says what sample of a sound comes next.

    Attributes:
        vocab_size: levels of a sample.
        multiple: lengths that :meth:`forward` takes are multiples of this.
    """

    vocab_size: int
    multiple: int

    def forward(self, tokens: Tensor) -> Tensor:
        """Samples [B, L], each behind the one that is asked for -> logits [B, L, vocab_size]."""

    def begin(self, batch_size: int) -> Any:
        """The state before the first sample, for the weights as they are now."""

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """The newest sample [B] -> logits of the next [B, vocab_size]; the state moves on."""


class Policy(Protocol):
    """An ``nn.Module`` that acts, and says what it expects to gain.

    Attributes:
        d_obs: D, features of an observation.
        n_actions: number of actions, or their dimensions if they are ``continuous``.
    """

    d_obs: int
    n_actions: int
    continuous: bool

    def forward(
        self, obs: Tensor, done: Tensor | None = None, memory: list[Tensor] | None = None
    ) -> Any:
        """A stretch of experience [B, L, D], from a memory on, which is reset where ``done`` [B, L]
        says that the step before was the last of an episode. What :meth:`policy` takes is
        ``actor``, what is expected ``value`` [B, L], and ``memory`` what is kept."""

    def begin(self, batch_size: int, memory: list[Tensor] | None = None) -> Any:
        """The state before a step, for the weights as they are now; ``state.memory`` is what is
        kept."""

    def step(self, obs: Tensor, done: Tensor, state: Any) -> Any:
        """The next observation [B, D], done [B]; the same as one step of :meth:`forward`, and the
        state moves on."""

    def policy(self, actor: Tensor) -> Distribution:
        """The distribution of actions."""
