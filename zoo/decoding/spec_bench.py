"""Spec-Bench (ACL Findings 2024, arXiv 2401.07851): its questions, protocol and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from zoo.decoding.generate import generate
from zoo.decoding.generation import Generation
from zoo.decoding.method import Method
from zoo.decoding.session import position_limit
from zoo.errors import ZooError
from zoo.models.language._chat import vicuna_text

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
        # not splitlines(): a string of JSON may hold what that takes for the end of a line
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
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
        wanted = ", ".join(tasks) or "any task"
        raise ZooError(
            f"{file} has no questions of {wanted}; the benchmark's tasks are {', '.join(TASKS)}"
        )
    return questions


@dataclass
class Answer:
    """What one question took, turn by turn; the names are those of Spec-Bench's answer files."""

    question: Question
    turns: list[str] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    wall_time: list[float] = field(default_factory=list)
    decoding_steps: list[int] = field(default_factory=list)
    accept_lengths: list[int] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return sum(self.new_tokens) / max(sum(self.wall_time), 1e-9)


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], answers: Sequence[str]
) -> torch.Tensor:
    """The prompt of the next turn ``[1, T]``: the tokenizer's chat template, or else Vicuna's."""
    said = []
    for place, turn in enumerate(turns):
        said.append(("user", turn))
        said += [("assistant", answer) for answer in answers[place : place + 1]]
    if tokenizer.chat_template is None:
        text, _ = vicuna_text(said)
        return tokenizer(text, return_tensors="pt")["input_ids"].long()
    messages = [{"role": speaker, "content": words} for speaker, words in said]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].long()


def answer_questions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    method: Method,
    *,
    max_new_tokens: int = 1024,
    warm_up: int = 3,
    on_answer: Callable[[Answer], None] | None = None,
    **settings: Any,
) -> list[Answer]:
    """Answer all turns of all questions, one after the other, batch 1.

    Args:
        model, tokenizer: the target.
        questions: see :func:`read_questions`.
        method: what it learns stays with it from question to question, as in the published runs.
        max_new_tokens: of a turn; fewer where the prompt leaves the model fewer positions.
        warm_up: how often the first question is answered before the clock counts.
        on_answer: called with every answer.
        settings: of :func:`zoo.decoding.generate`.
    """
    device = next(model.parameters()).device
    positions = position_limit(model)

    def ask(question: Question) -> Answer:
        answer = Answer(question)
        for turn in range(len(question.turns)):
            ids = chat_prompt(tokenizer, question.turns[: turn + 1], answer.turns).to(device)
            room = positions - ids.shape[1]
            if room < 1:
                raise ZooError(
                    f"question {question.question_id} needs a prompt of {ids.shape[1]} tokens, the "
                    f"model has {positions} positions: leave it out of the file"
                )
            out: Generation = generate(
                model,
                ids,
                method,
                max_new_tokens=min(max_new_tokens, room),
                tokenizer=tokenizer,
                **settings,
            )
            text = tokenizer.decode(out.new_tokens[0], skip_special_tokens=True).strip()
            answer.turns.append(text)
            answer.new_tokens.append(len(out.new_tokens[0]))
            answer.wall_time.append(out.seconds)
            answer.decoding_steps.append(out.steps)
            answer.accept_lengths += out.accept_lengths[0]
        return answer

    for _ in range(warm_up):
        ask(questions[0])
    answers = []
    for question in questions:
        answers.append(ask(question))
        if on_answer is not None:
            on_answer(answers[-1])
    return answers


def write_answers(file: str | Path, answers: Sequence[Answer], model_id: str) -> None:
    """Write answers as Spec-Bench does, for its own scripts: a JSON object on each line."""
    lines = []
    for answer in answers:
        names = ("turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths")
        choice = {"index": 0} | {name: getattr(answer, name) for name in names}
        entry = {
            "question_id": answer.question.question_id,
            "category": answer.question.category,
            "model_id": model_id,
            "choices": [choice],
        }
        lines.append(json.dumps(entry) + "\n")
    Path(file).write_text("".join(lines))


def mean_accepted(answers: Sequence[Answer]) -> float:
    """Spec-Bench's "#Mean accepted tokens": over all steps of all questions together."""
    lengths = [n for answer in answers for n in answer.accept_lengths]
    return sum(lengths) / max(len(lengths), 1)


def speed_up(answers: Sequence[Answer], baseline: Sequence[Answer]) -> float:
    """Mean tokens per second over questions, relative to the baseline's.

    Both are counted while decoding; Spec-Bench's script counts the baseline's by tokenizing its
    text once more.
    """
    mine, theirs = (
        sum(answer.speed for answer in rows) / len(rows) for rows in (answers, baseline)
    )
    return mine / theirs


def same_texts(answers: Sequence[Answer], baseline: Sequence[Answer]) -> bool:
    """Whether every answer is the baseline's, word for word."""
    return [a.turns for a in answers] == [b.turns for b in baseline]
