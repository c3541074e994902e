"""Counts of what followed what in texts, for lengths up to a few tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoo.errors import ZooError


class NGrams:
    """``P(next | last n - 1 tokens)`` for n from 2 to ``longest``, by counting.

    Args:
        longest: tokens of the longest n-gram.
    """

    def __init__(self, longest: int = 6) -> None:
        if longest < 2:
            raise ZooError(f"the longest n-gram has {longest} tokens: expected 2 or more")
        self.longest = longest
        #: For each context what followed it how often.
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], longest: int = 6) -> NGrams:
        """Count texts; no context reaches from one into the next."""
        made = cls(longest)
        for text in texts:
            tokens = [int(token) for token in text]
            for place, token in enumerate(tokens):
                for length in range(1, min(longest, place + 1)):
                    made.counts[tuple(tokens[place - length : place])][token] += 1
        return made

    def following(self, context: Sequence[int]) -> Counter[int] | None:
        """What followed a context how often; None if it never occurred."""
        return self.counts.get(tuple(context))

    def save(self, file: Path | str) -> None:
        """Write all counts into a safetensors file."""
        tensors: dict[str, Tensor] = {}
        for length in range(1, self.longest):
            rows = [
                [*context, token, count]
                for context, counter in self.counts.items()
                if len(context) == length
                for token, count in counter.items()
            ]
            tensors[f"{length + 1}"] = torch.tensor(rows, dtype=torch.int64).view(-1, length + 2)
        save_file(tensors, str(file))

    @classmethod
    def load(cls, file: Path | str) -> NGrams:
        """Read what :meth:`save` wrote.

        Raises:
            ZooError: if the file is no such table.
        """
        try:
            with safe_open(str(file), "pt") as opened:
                tables = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, ValueError, RuntimeError) as error:
            raise ZooError(f"{file} cannot be read as a table of n-grams: {error}") from error
        except Exception as error:  # safetensors has an error of its own
            raise ZooError(f"{file} is no safetensors file of n-grams: {error}") from error
        if not tables or any(
            not name.isdigit() or table.dim() != 2 or table.shape[1] != int(name) + 1
            for name, table in tables.items()
        ):
            raise ZooError(f"{file} is no table of n-grams: expected what NGrams.save writes")
        made = cls(max(map(int, tables)))
        for table in tables.values():
            for *context, token, count in table.tolist():
                made.counts[tuple(context)][token] = count
        return made
