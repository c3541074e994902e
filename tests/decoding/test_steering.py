"""How a model is decoded is found out before the first token, and the text is its own."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.causal_lms import (
    AGAIN,
    ENCODER_DECODERS,
    STATES,
    TARGETS,
    TREE,
    VOCAB,
    greedy_text,
    make_target,
)
from tests.language_models import make_model, trials
from zoo.decoding import generate, list_methods, method_class
from zoo.decoding.draft_model import trial_draft
from zoo.decoding.recompute import RecomputeSession
from zoo.decoding.recurrent import RecurrentSession
from zoo.decoding.session import AttentionSession
from zoo.decoding.steering import _KNOWN, _Trial, open_session, steering
from zoo.errors import ZooError

NEW = 8


def prompt(length: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TARGETS)
def test_every_kind_of_model_writes_its_own_text(name: str) -> None:
    model, ids = make_target(name), prompt()
    expected = greedy_text(model, ids, NEW)
    for method in ("plain", "token_recycling", "speculative"):
        options = {"draft": trial_draft(model), "length": 3} if method == "speculative" else {}
        out = generate(model, ids, method, max_new_tokens=NEW, stop_tokens=(), **options)
        assert out.new_tokens == [expected], method
    (found,) = _KNOWN[model].values()
    assert found.kind == TARGETS[name].kind


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Granite", "Llama 4", "BLOOM", "Bamba", "RWKV", "T5"])
def test_every_method_on_one_model_of_each_kind(name: str) -> None:
    model, ids = make_target(name), torch.cat([prompt(7), prompt(7, seed=2)])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    expected = [greedy_text(model, ids[:1], NEW), greedy_text(model, ids[1:, 3:], NEW)]
    accepted = 0
    for label, method in trials(model, encoder_decoder=name in ENCODER_DECODERS):
        out = generate(model, ids, method, attention_mask=mask, max_new_tokens=NEW, stop_tokens=())
        assert out.new_tokens == expected, label
        accepted += out.acceptance.accepted
    assert accepted > 10


def test_the_trial_notices_each_wrong_way_and_not_the_right_ones() -> None:
    for name, wrong, right in (
        ("MPT", [AttentionSession], [RecurrentSession, RecomputeSession]),
        ("Bamba", [RecurrentSession], [lambda m, n: RecurrentSession(m, n, positions=True)]),
        ("RoBERTa", [lambda m, n: RecurrentSession(m, n, positions=True)], [RecurrentSession]),
        ("Llama", [], [AttentionSession, lambda m, n: AttentionSession(m, n, own=True)]),
    ):
        model = make_target(name, scale=1.0)  # small weights hide most
        trial = _Trial(model)
        with torch.no_grad():
            assert all(trial.distance(open(model, 2)) > 10 * trial.tolerance for open in wrong)
            assert all(trial.distance(open(model, 2)) < trial.tolerance / 10 for open in right)


class Forgetful(nn.Module):
    """What is said of a token depends on how many there are: no prefix is like its text."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model("llama")
        self.config = self.inner.config

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False, **arguments):
        out = self.inner(input_ids=input_ids, use_cache=False)
        out.logits = out.logits.roll(input_ids.shape[1], dims=-1)
        return out


def test_a_model_that_is_not_causal_is_read_text_by_text(caplog) -> None:
    model, ids = Forgetful().eval(), prompt()
    model.config.is_encoder_decoder = False
    expected = greedy_text(model, ids, NEW)
    with caplog.at_level(logging.WARNING, "zoo"):
        out = generate(model, ids, "token_recycling", max_new_tokens=NEW)
    assert out.new_tokens == [expected]
    assert "exact and slow" in caplog.text and "recomputation: its logits are off" in caplog.text


def test_the_trial_is_made_once_for_each_precision_and_attention() -> None:
    model = make_model("llama")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    steering(model)
    made = len(calls)
    steering(model)
    assert len(calls) == made
    steering(model.bfloat16())
    assert len(calls) > made
    assert steering(model).kind == TREE


def test_what_cannot_be_decoded_is_refused_in_one_line() -> None:
    ids = prompt()
    model = make_model("llama")
    with pytest.raises(ZooError, match="expected a language model of transformers"):
        generate(nn.Linear(2, 2), ids)
    model.model.layers[0].forward = None
    with pytest.raises(ZooError, match=r"LlamaForCausalLM cannot be decoded; given tokens.*Error"):
        generate(model, ids)
    broken = make_model("llama")
    broken.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ZooError, match="logits are NaN"):
        generate(broken, ids)
    states = make_target("MPT")
    for name in list_methods():
        method = next(iter(method_class(name).trials(states).values()), None)
        if method is None:
            continue
        if method.sessions is AttentionSession:
            with pytest.raises(
                ZooError, match=r"MptForCausalLM is decoded by copied states \(tree"
            ):
                method.check(open_session(states, 1))
        else:
            method.check(open_session(states, 1))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_frequencies_that_change_with_the_length(kind: str) -> None:
    """Behind some length all positions turn at another speed, also those that were read before."""
    rope = {"rope_type": kind, "rope_theta": 10000.0}
    longest = 16 if kind == "longrope" else 200
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 9.0, 20.0]}
        rope["original_max_position_embeddings"] = 16
    else:
        rope["factor"] = 4.0
    shape = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=200,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope)).eval()
    for length in (4, 12, 20):
        ids = prompt(length)
        out = generate(model, ids, "token_recycling", max_new_tokens=12)
        assert out.new_tokens == [greedy_text(model, ids, 12)]
    # only where a text crosses the length
    kinds = [open_session(model, 1, lengths).kind for lengths in ((4, 16), (4, 17), (17, 40))]
    assert kinds == ([TREE, AGAIN, TREE] if longest == 16 else [TREE] * 3)


def test_a_window_that_no_trial_crosses_is_not_trusted_where_a_text_does() -> None:
    known = TARGETS["GPT-Neo"]
    TARGETS["wide"] = dataclasses.replace(known, settings=known.settings | {"window_size": 100})
    model = make_target("wide")
    del TARGETS["wide"]
    assert steering(model, 100).kind == TREE
    assert steering(model, 101).kind == STATES
    ids = prompt(95)
    out = generate(model, ids, "token_recycling", max_new_tokens=16, stop_tokens=())
    assert out.new_tokens == [greedy_text(model, ids, 16)]


@pytest.mark.parametrize("name", ["Marian", "BLOOM", "GPT-2", "OpenAI GPT"])
def test_trees_at_the_last_positions(name: str) -> None:
    model, ids = make_target(name), prompt(12)
    start = 1 if name in ENCODER_DECODERS else 12
    room = (128 if name != "BLOOM" else 40) - start + 1
    out = generate(model, ids, "token_recycling", max_new_tokens=room, stop_tokens=())
    assert len(out.new_tokens[0]) == room
    assert out.new_tokens[0][:6] == greedy_text(model, ids, 6)
    if name != "BLOOM":  # which has no last position
        with pytest.raises(ZooError, match="128 positions"):
            generate(model, ids, "plain", max_new_tokens=room + 1)


def test_kinds_are_those_of_the_sessions() -> None:
    assert {AttentionSession.kind, RecurrentSession.kind, RecomputeSession.kind} == {
        TREE,
        STATES,
        AGAIN,
    }
