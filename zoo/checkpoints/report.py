"""What a load did, name by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """What :func:`zoo.load_pretrained` did. Every name of the checkpoint and the model is in it.

    Attributes:
        source: the checkpoint.
        place: the dictionary in the file that was taken, ``""`` for the file itself.
        prefix: what was taken off the names.
        loaded: parameters and buffers that now have the checkpoint's values.
        head: parameters of the classifier that keep the model's own values, because the
            checkpoint's is for another number of classes.
        kept: others that keep them, because the model's ``remap_state_dict`` says so.
        aside: names in the checkpoint that ``remap_state_dict`` merged with others or left out.
        resized: name -> size in the checkpoint, size in the model, where ``remap_state_dict``
            fitted the values (position embeddings).
        missing: parameters and buffers that the checkpoint lacks (``strict=False`` only).
        unexpected: names in the checkpoint that the model lacks: of its classifier if the model has
            none, else with ``strict=False`` only.
        mismatched: name -> shape in the checkpoint, shape in the model, as text, with the dtype
            where that is what differs (``strict=False`` only).
        converted: ``"float16 -> float32"`` -> number of tensors whose dtype was changed.
    """

    source: str
    place: str = ""
    prefix: str = ""
    loaded: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    resized: dict[str, tuple[str, str]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[str, str]] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        place = f" [{self.place}]" if self.place else ""
        parts = [f"{len(self.loaded)} tensors from {self.source}{place}"]
        if self.prefix:
            parts.append(f"prefix '{self.prefix}' taken off")
        if self.converted:
            parts.append(", ".join(f"{n} x {what}" for what, n in self.converted.items()))
        if self.resized:
            parts.append(f"fitted to another size: {some_pairs(self.resized)}")
        if self.head:
            parts.append(f"classifier not loaded, it keeps its own values: {some(self.head)}")
        if self.kept:
            parts.append(f"own values kept: {some(self.kept)}")
        if self.aside:
            parts.append(f"merged or left out by the model's name map: {some(self.aside)}")
        if self.missing:
            parts.append(f"not in the checkpoint: {some(self.missing)}")
        if self.unexpected:
            parts.append(f"not in the model: {some(self.unexpected)}")
        if self.mismatched:
            parts.append(f"other shapes (checkpoint / model): {some_pairs(self.mismatched)}")
        return "; ".join(parts)


def some(names: Iterable[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def some_pairs(pairs: dict[str, tuple[str, str]], limit: int = 8) -> str:
    """The same with what belongs to each name in the checkpoint and in the model."""
    return some((f"{name} {theirs} / {mine}" for name, (theirs, mine) in pairs.items()), limit)
