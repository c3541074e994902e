"""Several decoding methods measured against plain decoding: on prompts, or on Spec-Bench."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from zoo.decoding.generate import generate
from zoo.decoding.generation import Generation
from zoo.decoding.method import Method, method_class
from zoo.decoding.spec_bench import (
    TASKS,
    Answer,
    Question,
    answer_questions,
    mean_accepted,
    same_texts,
    speed_up,
    write_answers,
)
from zoo.plots.decoding import method_comparison
from zoo.show import print_table, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Makes a method by its name, with all that it needs.
Make = Callable[[str], Method]


@dataclass
class Measured:
    """What one method reached; ``same_text``: whether the texts are those of plain decoding."""

    method: str
    tokens_per_step: float
    tokens_per_second: float
    same_text: bool


def on_prompts(
    model: nn.Module,
    prompts: Sequence[Tensor],
    methods: Sequence[str],
    make: Make,
    repeat: int,
    **settings: Any,
) -> list[Measured]:
    """Continue each prompt with each method, batch 1.

    Args:
        model: the target.
        prompts: int64 ``[1, T]`` each.
        methods: names, ``"plain"`` first.
        make: see :data:`Make`.
        repeat: measure each method so often, always from the beginning, and take the fastest.
        settings: of :func:`zoo.decoding.generate`.
    """
    outs: dict[str, list[Generation]] = {}
    for name in methods:
        runs = []
        for _ in range(repeat):
            method = make(name)
            runs.append([generate(model, ids, method, **settings) for ids in prompts])
        outs[name] = min(runs, key=lambda run: sum(out.seconds for out in run))
        say(f"{name}: done")
    rows = []
    for name, run in outs.items():
        lengths = [n for out in run for row in out.accept_lengths for n in row]
        tokens = sum(len(row) for out in run for row in out.new_tokens)
        seconds = sum(out.seconds - out.prompt_seconds for out in run)
        same = [out.new_tokens for out in run] == [out.new_tokens for out in outs["plain"]]
        per_step = sum(lengths) / max(len(lengths), 1)
        rows.append(Measured(name, per_step, tokens / max(seconds, 1e-9), same))
    return rows


def on_spec_bench(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    methods: Sequence[str],
    make: Make,
    answers_folder: Path | None = None,
    **settings: Any,
) -> list[Measured]:
    """Answer the questions with each method, and say how many tokens of each task were accepted.

    Args:
        model, tokenizer: the target.
        questions: see :func:`zoo.decoding.spec_bench.read_questions`.
        methods: names, ``"plain"`` first.
        make: see :data:`Make`.
        answers_folder: write the answers into this folder, a file for each method, as Spec-Bench
            does.
        settings: of :func:`zoo.decoding.spec_bench.answer_questions`.
    """
    answers: dict[str, list[Answer]] = {}
    for name in methods:
        answers[name] = answer_questions(model, tokenizer, questions, make(name), **settings)
        say(f"{name}: {len(answers[name])} answers")
        if answers_folder is not None:
            write_answers(answers_folder / f"{name}.jsonl", answers[name], name)
    print_table(
        "accepted tokens per step",
        ("task", *answers),
        [
            (task, *(f"{mean_accepted(_of_task(rows, task)):.2f}" for rows in answers.values()))
            for task in TASKS
            if _of_task(answers["plain"], task)
        ],
        right=tuple(answers),
    )
    plain = answers["plain"]
    base = sum(answer.speed for answer in plain) / len(plain)
    return [
        Measured(name, mean_accepted(rows), base * speed_up(rows, plain), same_texts(rows, plain))
        for name, rows in answers.items()
    ]


def _of_task(answers: Sequence[Answer], task: str) -> list[Answer]:
    return [answer for answer in answers if answer.question.task == task]


def show(rows: Sequence[Measured], title: str, greedy: bool) -> None:
    """Print the table; only greedy texts can be the same."""
    plain = rows[0].tokens_per_second
    print_table(
        title,
        ("method", "tokens/step", "tokens/s", "speed-up", "text of plain decoding"),
        [
            (
                row.method,
                f"{row.tokens_per_step:.2f}",
                f"{row.tokens_per_second:.1f}",
                f"{row.tokens_per_second / plain:.2f}",
                _verdict(row) if greedy else "-",
            )
            for row in rows
        ],
        right=("tokens/step", "tokens/s", "speed-up"),
    )


def _verdict(row: Measured) -> str:
    if row.same_text:
        return "same"
    return "DIFFERENT" if method_class(row.method).lossless else "other, as it is meant"


def write_json(file: Path, rows: Sequence[Measured], greedy: bool) -> None:
    """Write the numbers."""
    content: list[Mapping[str, Any]] = [
        {
            "method": row.method,
            "tokens_per_step": row.tokens_per_step,
            "tokens_per_second": row.tokens_per_second,
            "speed_up": row.tokens_per_second / rows[0].tokens_per_second,
        }
        | ({"same_text": row.same_text} if greedy else {})
        for row in rows
    ]
    file.write_text(json.dumps(content, indent=1) + "\n")


def figure(rows: Sequence[Measured]) -> Figure:
    """Tokens per step and speed of all methods."""
    plain = rows[0].tokens_per_second
    return method_comparison(
        [(row.method, row.tokens_per_step, row.tokens_per_second / plain) for row in rows]
    )
