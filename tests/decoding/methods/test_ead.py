"""EAD: who writes when, with both caches right, and what is reported."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from tests.language_models import VOCAB, make_model
from zoo.decoding import generate
from zoo.decoding.draft_model import trial_draft
from zoo.decoding.methods.ead import EAD, Writer, entropy_bits, relative_cost
from zoo.errors import ZooError


def test_entropy_is_in_bits_of_the_raw_logits() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -math.inf, -math.inf], [99.0, 0, 0, 0]])
    assert entropy_bits(logits).tolist() == pytest.approx([2.0, 1.0, 0.0], abs=1e-6)
    assert entropy_bits(logits.half())[0] == 2


def test_the_published_savings() -> None:
    assert relative_cost(0.43, 3.0, 11.0) == pytest.approx(1 - 0.415, abs=1e-3)
    assert relative_cost(0.25, 1.5, 14.0) == pytest.approx(1 - 0.67, abs=2e-3)
    assert relative_cost(1.0, 3.0, 11.0) == 1


def model_of_tokens(target, draft, ids, method: EAD, count: int) -> list[list[bool]]:
    """Every token must be the greedy one of the model that is said to have written it."""
    out = generate(target, ids, method, max_new_tokens=count, stop_tokens=())
    for row, writer in enumerate(method.writers):
        for place, by_target in enumerate(writer.by_target):
            text = out.sequences[row, : ids.shape[1] + place]
            logits = (target if by_target else draft)(input_ids=text[None]).logits[0, -1]
            assert int(logits.argmax()) == out.new_tokens[row][place], (row, place)
    return [writer.by_target for writer in method.writers]


class Thrown(EAD):
    """Turns by chance."""

    chance = random.Random(0)

    def wants_target(self, writer: Writer) -> bool:
        return self.chance.random() < 0.5


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("mistral", {"dwell": 1, "start": "large"}),
        ("gpt2", {"dwell": 2, "rerun": True}),
    ],
)
@torch.no_grad()
def test_each_token_is_of_its_model_whatever_was_written_before(kind: str, options: dict) -> None:
    target = make_model(kind)
    ids = torch.randint(1, VOCAB, (3, 6), generator=torch.Generator().manual_seed(1))
    method = Thrown(trial_draft(target, 0.3), **options)
    marks = model_of_tokens(target, method.draft, ids, method, 24)
    assert sum(a != b for row in marks for a, b in pairwise(row)) > 6
    if not options.get("rerun"):
        assert all(row[0] == (options.get("start") == "large") for row in marks)
        for row in marks:
            places = [place for place in range(1, len(row)) if row[place] != row[place - 1]]
            assert all(b - a >= options.get("dwell", 4) for a, b in pairwise(places))


def test_the_rule_of_turns() -> None:
    method = EAD(torch.nn.Identity(), threshold=1.0, window=3, dwell=2, lower=0.5)
    method._active = [Writer(False)]
    (writer,) = method._active

    def see(bits: float) -> tuple[bool, int]:
        # two tokens of probabilities p and 1 - p, or four even ones
        logits = torch.zeros(1, 1, 4 if bits == 2 else 2 if bits == 1 else 1)
        method._decide(logits)
        return writer.large, writer.since

    assert see(2) == (False, 1)  # too early to change
    assert see(2) == (True, 0)  # mean 2
    assert see(0) == (True, 1) and writer.entropies == [2, 2, 0]
    assert see(0) == (True, 2)  # mean 2/3, above the lower threshold
    assert see(0) == (False, 0)
    assert see(1) == (False, 1) and see(1) == (False, 2)
    assert see(1) == (False, 3)  # mean 1 is not above the threshold


def test_alone_each_model_writes_its_own_text_and_is_reported() -> None:
    target = make_model("llama")
    draft = make_model("llama", layers=1, vocab_size=VOCAB + 6)  # padded further
    ids = torch.tensor([[1, 2, 3]])
    small = EAD(draft, 99.0)
    out = generate(target, ids, small, max_new_tokens=12)
    text = ids
    for token in out.new_tokens[0]:
        assert token == int(draft(input_ids=text).logits[0, -1, :VOCAB].argmax())
        text = torch.cat([text, torch.tensor([[token]])], 1)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (draft, target)]
    assert out.report["share_by_target"] == 0
    assert out.report["relative_cost"] == pytest.approx(sizes[0] / sizes[1])
    assert out.report["tokens_read_by_small_model"] == 2 + 12
    assert out.report["tokens_read_by_target"] == 2  # the prompt
    large = generate(target, ids, EAD(draft, -1.0, start="large"), max_new_tokens=12)
    assert large.new_tokens == generate(target, ids, max_new_tokens=12).new_tokens
    assert large.report["share_by_target"] == large.report["relative_cost"] == 1
    assert large.report["tokens_read_by_small_model"] == 0
    with pytest.raises(ZooError, match="at most the threshold"):
        EAD(draft, 1.0, lower=2.0)
    with pytest.raises(ZooError, match="small or large"):
        EAD(draft, start="x")
