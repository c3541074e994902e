"""Spec-Bench (ACL Findings 2024, arXiv 2401.07851): its questions, protocol and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from zoo.decoding.generate import Generation, generate
from zoo.decoding.method import Method
from zoo.errors import ZooError

#: The benchmark's six tasks, and which categories of the file belong to them.
TASKS = {
    "mt_bench": (
        "writing",
        "roleplay",
        "reasoning",
        "math",
        "coding",
        "extraction",
        "stem",
        "humanities",
    ),
    "translation": ("translation",),
    "summarization": ("summarization",),
    "qa": ("qa",),
    "math_reasoning": ("math_reasoning",),
    "rag": ("rag",),
}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Question:
    """One line of ``question.jsonl``."""

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def task(self) -> str:
        """Which of the six tasks it belongs to."""
        return next((t for t, names in TASKS.items() if self.category in names), self.category)


def read_questions(
    file: str | Path, tasks: Sequence[str] = (), limit: int | None = None
) -> list[Question]:
    """Read a question file.

    Args:
        file: JSON lines with ``question_id``, ``category`` and ``turns``.
        tasks: only these tasks or categories; none: all.
        limit: only so many of each task.
    """
    questions, taken = [], dict.fromkeys(TASKS, 0)
    try:
        lines = Path(file).read_text().splitlines()
    except OSError as error:
        raise ZooError(f"the questions cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            question = Question(item["question_id"], item["category"], tuple(item["turns"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ZooError(
                f"{file}, line {number}: expected question_id, category and turns: {error!r}"
            ) from error
        if tasks and question.task not in tasks and question.category not in tasks:
            continue
        taken[question.task] = taken.get(question.task, 0) + 1
        if limit is None or taken[question.task] <= limit:
            questions.append(question)
    if not questions:
        raise ZooError(f"{file} has no questions of {', '.join(tasks) or 'any task'}")
    return questions


@dataclass
class Answer:
    """What one turn took; the names are Spec-Bench's."""

    question: Question
    output: str
    new_tokens: int
    wall_time: float
    decoding_steps: int
    accept_lengths: list[int]

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.new_tokens / max(self.wall_time, 1e-9)


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], answers: Sequence[str]
) -> torch.Tensor:
    """The prompt of the next turn ``[1, T]``: the tokenizer's chat template, or else Vicuna's."""
    if tokenizer.chat_template is not None:
        messages = []
        for place, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn})
            if place < len(answers):
                messages.append({"role": "assistant", "content": answers[place]})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    text = SYSTEM
    for place, turn in enumerate(turns):
        text += f" USER: {turn} ASSISTANT:"
        if place < len(answers):
            text += f" {answers[place]}</s>"
    return tokenizer(text, return_tensors="pt")["input_ids"]


def answer_questions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    method: Method,
    *,
    warm_up: int = 3,
    on_answer: Callable[[Answer], None] | None = None,
    **settings: Any,
) -> list[Answer]:
    """Answer all turns of all questions, one after the other, batch 1.

    Args:
        model, tokenizer: the target.
        questions: see :func:`read_questions`.
        method: what it learns stays with it from question to question, as in the published runs.
        warm_up: how often the first question is answered before the clock counts.
        on_answer: called with every answer.
        settings: of :func:`zoo.decoding.generate`.
    """
    device = next(model.parameters()).device

    def ask(question: Question) -> list[Answer]:
        answers: list[Answer] = []
        for turn in range(len(question.turns)):
            said = [answer.output for answer in answers]
            ids = chat_prompt(tokenizer, question.turns[: turn + 1], said).to(device)
            out: Generation = generate(model, ids, method, **settings)
            text = tokenizer.decode(out.new_tokens[0], skip_special_tokens=True).strip()
            lengths = out.accept_lengths[0]
            answers.append(
                Answer(question, text, len(out.new_tokens[0]), out.seconds, out.steps, lengths)
            )
        return answers

    for _ in range(warm_up):
        ask(questions[0])
    collected = []
    for question in questions:
        for answer in ask(question):
            collected.append(answer)
            if on_answer is not None:
                on_answer(answer)
    return collected


def mean_accepted(answers: Sequence[Answer]) -> float:
    """Spec-Bench's "#Mean accepted tokens": over all steps of all questions together."""
    lengths = [n for answer in answers for n in answer.accept_lengths]
    return sum(lengths) / max(len(lengths), 1)


def speed_up(answers: Sequence[Answer], baseline: Sequence[Answer]) -> float:
    """Mean tokens per second over questions, relative to the baseline's."""
    mine, theirs = (
        sum(answer.speed for answer in rows) / len(rows) for rows in (answers, baseline)
    )
    return mine / theirs


def same_texts(answers: Sequence[Answer], baseline: Sequence[Answer]) -> bool:
    """Whether every answer is the baseline's, word for word."""
    return [a.output for a in answers] == [b.output for b in baseline]
