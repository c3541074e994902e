"""What a model of speech recognition is: encoder with a CTC head, and a decoder that goes step by
step.

:class:`zoo.tasks.SpeechRecognition` trains one, :func:`zoo.decoding.speech.transcribe.transcribe`
searches with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from zoo.layers.cache import Cache


class StepDecoder(Protocol):
    """What goes from encoded audio to text, token by token.

    Attributes:
        SOS, EOS: tokens at the beginning and the end of each text. Token 0 is CTC's blank and the
            padding.
    """

    SOS: int
    EOS: int

    def begin(self, memory: Tensor, lengths: Tensor) -> Cache:
        """The state at the beginning of a text.

        Args:
            memory: encoded audio [B, T', C].
            lengths: frames of each [B].
        """

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Read one token of each text [B]; logits of the next [B, V]. ``cache`` moves on."""


class Recogniser(StepDecoder, Protocol):
    """An ``nn.Module`` that writes down what is said.

    Attributes:
        n_mels: features of a frame, a hundred frames a second.
        vocab_size: V, number of tokens.
        encoder: features [B, T, n_mels] and their lengths [B] -> encoded audio [B, T', C], half as
            many frames, and its lengths [B].
        ctc: encoded audio [B, T', C] -> CTC logits [B, T', V].
    """

    n_mels: int
    vocab_size: int
    encoder: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ctc: Callable[[Tensor], Tensor]

    def forward(
        self, features: Tensor, lengths: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher forcing.

        Args:
            features: [B, T, n_mels], padding at the ends.
            lengths: frames of each [B].
            tokens: [B, L], from SOS on.

        Returns:
            the decoder's logits [B, L, V], CTC logits [B, T', V], and the lengths of these [B].
        """


class StreamingRecogniser(Recogniser, Protocol):
    """A recogniser that can listen while someone speaks."""

    def stream(self) -> Stream:
        """Begin to listen.

        Raises:
            ZooError: the model was built in a form that must hear all first.
        """


class Stream(Protocol):
    """One recording that comes in pieces, in evaluation mode."""

    def feed(self, features: Tensor, last: bool = False) -> Tensor:
        """Take in features [t, n_mels]; CTC logits [n, V] of the frames that are now encoded. The
        newest may have to wait for the next piece, unless it is the ``last``."""

    def cache(self) -> Cache:
        """The decoder's state at the beginning of the text of all that was fed; a copy."""
