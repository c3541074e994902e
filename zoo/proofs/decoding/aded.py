"""ADED: what its table is worth, counted from text, empty or wrong, and what it learns.

The target is the exact language, so nothing is trained.
"""

from __future__ import annotations

from typing import Literal

from zoo.decoding import generate
from zoo.decoding.methods.aded import ADED, TrigramTable
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding import _unit_language
from zoo.proofs.decoding._tables import unit_table
from zoo.proofs.decoding._unit_language import (
    METHODS,
    PROMPT,
    is_greedy_text,
    prompts,
    unit_language,
)

#: Units of text that a table is counted from, and steps of the beginning.
UNITS, FIRST = 400, 30
#: Passes whose tokens are averaged for the figure.
WINDOW = 20


class Tables(Measurement):
    """Texts decoded one after the other at temperature 1, with one table.

    Measures ``tokens_per_step``, that of the ``first`` thirty steps and of the ``second_half``, and
    ``greedy_is_plain``.

    Args:
        table: what it holds at first: counted from other text, nothing, or counted from text that
            is read backwards.
        learn: False leaves it as it is.
        search: see :class:`ADED`.
        texts: how many.
    """

    def __init__(
        self,
        table: Literal["counted", "empty", "wrong"],
        learn: bool = True,
        search: Literal["tree", "greedy"] = "tree",
        texts: int = 17,
    ) -> None:
        self.table, self.learn, self.search, self.texts = table, learn, search, texts

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Decode."""
        model, lengths = unit_table(unit_language(1, seed)), []
        method = self._method(seed)
        for number, prompt in enumerate(prompts(self.texts, seed)):
            out = generate(
                model,
                prompt[None],
                method,
                max_new_tokens=_unit_language.LENGTH - PROMPT,
                temperature=1.0,
                seed=1000 * seed + number,
            )
            lengths += out.accept_lengths[0][:-1]  # the last one is cut off
        half, first = lengths[len(lengths) // 2 :], lengths[:FIRST]
        starts = range(0, len(lengths), WINDOW)
        axes = Axes("From the first pass on", "passes of the target", "tokens of a pass, mean")
        means = [sum(part := lengths[start : start + WINDOW]) / len(part) for start in starts]
        return Measured(
            {
                "tokens_per_step": sum(lengths) / len(lengths),
                "first": sum(first) / len(first),
                "second_half": sum(half) / len(half),
                "greedy_is_plain": is_greedy_text(model, self._method(seed), seed),
            },
            [Curve(axes, [start + WINDOW / 2 for start in starts], means)],
        )

    def _method(self, seed: int) -> ADED:
        language = unit_language(1, seed)
        text = language.text(UNITS, seed=9000 + seed)
        if self.table == "wrong":  # of its pairs none stands in the language
            text = text.flip(0)
        counted = TrigramTable() if self.table == "empty" else TrigramTable.counted([text.tolist()])
        return ADED(counted, self.learn, self.search)
