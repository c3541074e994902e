"""Test cases of programming problems in the layout of APPS, and how well a program passes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.decoding.sandbox import Limits, Outcome, run_program
from zoo.errors import ZooError


@dataclass(frozen=True)
class TestCases:
    """Inputs, and what a program answers to them.

    Attributes:
        inputs, outputs: texts of standard input and output; with ``function`` lists of arguments
            and what it returns.
        function: what is called, or None.
        limits: of one program on all inputs.
    """

    __test__ = False  # no test of pytest's

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    function: str | None = None
    limits: Limits | None = None

    @classmethod
    def read(cls, file: Path | str) -> TestCases:
        """Read APPS's ``input_output.json``.

        Raises:
            ZooError: if it is none.
        """
        try:
            found = json.loads(Path(file).read_text())
            inputs, outputs = list(found["inputs"]), list(found["outputs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ZooError(
                f"{file} holds no test cases ({type(error).__name__}): expected JSON with inputs "
                "and outputs, as APPS's input_output.json"
            ) from error
        if not inputs or len(inputs) != len(outputs):
            raise ZooError(f"{file} has {len(inputs)} inputs and {len(outputs)} outputs")
        return cls(inputs, outputs, found.get("fn_name"))

    def split(self, public: int | None = None) -> tuple[TestCases, TestCases]:
        """Public and private ones: the first half of them, or so many, and the rest."""
        count = len(self.inputs) // 2 if public is None else public
        return (
            replace(self, inputs=self.inputs[:count], outputs=self.outputs[:count]),
            replace(self, inputs=self.inputs[count:], outputs=self.outputs[count:]),
        )

    def codes(self, source: str) -> list[bool | int]:
        """For each case True or False, -1 for an error while it ran, -2 if it is no Python."""
        outcomes = run_program(source, self.inputs, self.function, self.limits)
        return [self._code(o, right) for o, right in zip(outcomes, self.outputs, strict=True)]

    def _code(self, outcome: Outcome, right: Any) -> bool | int:
        if outcome.kind != "ran":
            return -2 if outcome.kind == "compile error" else -1
        if self.function is not None:
            # APPS wraps some answers in a list of one
            return outcome.value == right or [outcome.value] == right
        return _lines(outcome.value) == _lines(right)

    def pass_rate(self, source: str) -> float:
        """Share of the cases that a program passes."""
        codes = self.codes(source)
        return sum(code is True for code in codes) / max(len(codes), 1)


def _lines(text: Any) -> list[str]:
    """Lines without the space around them; lists of lines are joined."""
    whole = "\n".join(map(str, text)) if isinstance(text, list) else str(text)
    return [line.strip() for line in whole.strip().splitlines()]
