"""What may be asked of a text besides being likely: attributes that a finished text has or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from zoo.errors import ZooError


class Attribute(ABC):
    """Something that is true or false of a continuation that is over.

    Args:
        number: what it is about, where it is about a number.
    """

    name: ClassVar[str]
    #: What the number is, and the one that is taken if none is given; empty: it takes none.
    about: ClassVar[str] = ""
    default: ClassVar[int | None] = None

    def __init__(self, number: int = 0) -> None:
        self.number = number

    @abstractmethod
    def holds(self, text: Sequence[int], ended: bool) -> bool:
        """Whether a text has it.

        Args:
            text: the new tokens, with the one that ended it.
            ended: whether a stop token or string ended it, and not the limit of its length.
        """

    def possible(self, text: Sequence[int]) -> bool:
        """Whether a text that goes on can still get it."""
        return True

    def __str__(self) -> str:
        return f"{self.name}={self.number}" if self.about else self.name


class NonEmpty(Attribute):
    """There is something before the end."""

    name = "non_empty"

    def holds(self, text: Sequence[int], ended: bool) -> bool:
        """One token or more before the one that ends it."""
        return len(text) > ended


class Length(Attribute):
    """It has so many tokens, the one that ends it not counted."""

    name, about = "length", "tokens"

    def holds(self, text: Sequence[int], ended: bool) -> bool:
        """The number is right."""
        return len(text) - ended == self.number

    def possible(self, text: Sequence[int]) -> bool:
        """It is not too long yet."""
        return len(text) <= self.number


class Varied(Attribute):
    """No stretch of so many tokens occurs twice."""

    name, about, default = "varied", "tokens of a stretch", 4

    def holds(self, text: Sequence[int], ended: bool) -> bool:
        """All stretches differ."""
        return self.possible(text)

    def possible(self, text: Sequence[int]) -> bool:
        """So far all stretches differ."""
        places = range(len(text) - self.number + 1)
        stretches = [tuple(text[place : place + self.number]) for place in places]
        return len(set(stretches)) == len(stretches)


class Complete(Attribute):
    """It comes to an end by itself."""

    name = "complete"

    def holds(self, text: Sequence[int], ended: bool) -> bool:
        """Something ended it."""
        return ended


ATTRIBUTES: dict[str, type[Attribute]] = {
    kind.name: kind for kind in (NonEmpty, Length, Varied, Complete)
}


def find_attribute(text: str) -> Attribute:
    """An attribute by its name, with its number where it has one: ``length=10``.

    Raises:
        ZooError: if there is none of that name, or the number is missing or wrong.
    """
    name, separator, number = text.partition("=")
    if name not in ATTRIBUTES:
        raise ZooError(f"there is no attribute {text!r}: expected one of {', '.join(ATTRIBUTES)}")
    kind = ATTRIBUTES[name]
    if not kind.about:
        if separator:
            raise ZooError(f"attribute {text!r}: {name} takes no number")
        return kind()
    if not separator and kind.default is not None:
        return kind(kind.default)
    if not number.isdecimal() or int(number) < 1:
        raise ZooError(f"attribute {text!r}: expected {name}=N, N {kind.about}, 1 or more")
    return kind(int(number))
