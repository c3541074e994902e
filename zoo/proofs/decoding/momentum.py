"""Momentum decoding: long texts of a language model that counts words."""

from __future__ import annotations

from functools import cache
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding import Generation, generate
from zoo.metrics.diversity import diversity
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import METHODS

#: Words of Python's own manual that are counted, and the weights of one, two and three in a row.
WORDS, WEIGHTS = 5600, (0.1, 0.5, 0.4)
#: Words of a prompt, and the width of a word's state, by which contrastive search judges.
PROMPT, WIDTH = 10, 16


@cache
def manual() -> tuple[int, Tensor]:
    """How many words there are, and the text in numbers."""
    words = " ".join(topics[name] for name in sorted(topics)).split()[:WORDS]
    numbers = {word: number for number, word in enumerate(sorted(set(words)))}
    return len(numbers), torch.tensor([numbers[word] for word in words])


class Trigrams(nn.Module):
    """Interpolated counts of words, pairs and triples, as a language model.

    Attributes:
        calls: passes so far.
    """

    def __init__(self, vocab_size: int, text: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            vocab_size=vocab_size, hidden_size=WIDTH, num_hidden_layers=0, eos_token_id=None
        )
        one = torch.bincount(text, minlength=vocab_size).float()
        two = torch.zeros(vocab_size, vocab_size)
        two.index_put_((text[:-1], text[1:]), torch.ones(len(text) - 1), accumulate=True)
        before = text[:-2] * vocab_size + text[1:-1]
        pairs, row = before.unique(return_inverse=True)
        three = torch.zeros(len(pairs), vocab_size)
        three.index_put_((row, text[2:]), torch.ones(len(row)), accumulate=True)
        parts = [t / t.sum(-1, keepdim=True).clamp_min(1) for t in (one, two, three)]
        short = WEIGHTS[0] * parts[0] + WEIGHTS[1] * parts[1]  # [V, V]
        long = short[pairs % vocab_size] + WEIGHTS[2] * parts[2]  # [pairs, V]
        rows = torch.cat([short, long]).clamp_min(1e-9)
        self.rows = nn.Parameter((rows / rows.sum(-1, keepdim=True)).log(), requires_grad=False)
        self.register_buffer("row_of", torch.arange(vocab_size).repeat(vocab_size))
        self.row_of[pairs] = vocab_size + torch.arange(len(pairs))
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("states", torch.randn(vocab_size, WIDTH, generator=generator))
        self.calls = 0

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Logits ``[B, T, V]``, and a random vector for each word as its state."""
        self.calls += 1
        before = input_ids.roll(1, dims=1)
        rows = self.row_of[before * self.config.vocab_size + input_ids]
        rows[:, 0] = input_ids[:, 0]
        return SimpleNamespace(logits=self.rows[rows], hidden_states=(self.states[input_ids],))


class Texts(Measurement):
    """Long texts of counted words, without an end.

    Measures ``diversity`` (the product of the shares of new pairs, triples and quadruples) and
    ``greedy_ratio``, how many words are the likeliest ones, of momentum decoding; the same of
    ``greedy``, ``nucleus`` (0.95) and ``contrastive`` search before an underscore; whether without
    resistance the text is the greedy one, ``unresisted_is_greedy``; and ``calls`` of the language
    model for each new word.

    Args:
        texts, new_tokens: how many, and how long.
    """

    def __init__(self, texts: int = 20, new_tokens: int = 150) -> None:
        self.texts, self.new_tokens = texts, new_tokens

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Write with each method."""
        size, text = manual()
        model = Trigrams(size, text)
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text) - PROMPT, (self.texts,), generator=generator)
        begun = text[starts[:, None] + torch.arange(PROMPT)]
        values, points = {}, {}
        ways: dict[str, dict[str, Any]] = {
            "": {"method": "momentum"},
            "greedy_": {"method": "plain"},
            "nucleus_": {"method": "plain", "temperature": 1.0, "top_p": 0.95},
            "contrastive_": {"method": "contrastive"},
        }
        # first of all, so that finding out how the model is decoded counts here
        zeros = generate(model, begun, "momentum", table=[0.0] * 6, max_new_tokens=self.new_tokens)
        written = {}
        for name, way in ways.items():
            before = model.calls
            out = written[name] = generate(
                model, begun, max_new_tokens=self.new_tokens, seed=seed, **way
            )
            values[f"{name}calls"] = (model.calls - before) / self.new_tokens
            values[f"{name}diversity"] = diversity(out.new_tokens)
            values[f"{name}greedy_ratio"] = greedy_ratio(model, out, PROMPT)
            points[name] = (values[f"{name}greedy_ratio"], values[f"{name}diversity"])
        values["unresisted_is_greedy"] = float(zeros.new_tokens == written["greedy_"].new_tokens)
        axes = Axes("Long texts", "share of the likeliest words", "diversity")
        names = {"": "momentum", "greedy_": "greedy", "nucleus_": "nucleus 0.95"}
        return Measured(
            values,
            [
                Curve(axes, [x], [y], names.get(name, "contrastive search"), "points")
                for name, (x, y) in points.items()
            ],
        )


def greedy_ratio(model: nn.Module, out: Generation, start: int) -> float:
    """Share of the new tokens of texts that are the model's best ones where they stand."""
    best = model(input_ids=out.sequences).logits.argmax(-1)[:, start - 1 : -1]
    return float((best == out.sequences[:, start:]).double().mean())
