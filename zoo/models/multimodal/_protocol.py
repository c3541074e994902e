"""What a model is that writes pictures token by token."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from zoo.models.language._protocol import LanguageModel


class ImageTokenGenerator(LanguageModel, Protocol):
    """A language model some of whose tokens are pieces of pictures.

    As it is a language model, all of :mod:`zoo.decoding` serves it: what stands before the picture
    (a class, a text) is the prompt.

    Attributes:
        image_tokens: number of tokens of a picture.
    """

    image_tokens: int

    def tokens_of(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 -> their tokens [B, image_tokens]."""

    def images_of(self, tokens: Tensor) -> Tensor:
        """Tokens [B, image_tokens] -> pictures [B, 3, H, W] in 0..1."""
