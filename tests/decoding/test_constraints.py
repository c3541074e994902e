"""Settings and processors of transformers hold with every method, and what ends a text ends it."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tests.causal_lms import make_target
from tests.language_models import VOCAB, make_model, trials
from tests.tiers import tiers
from zoo.decoding import generate
from zoo.decoding.constraints import Constraints, Stop, generation_settings, token_set
from zoo.decoding.draft_model import trial_draft
from zoo.errors import ZooError

NEW = 16
IDS = torch.randint(3, VOCAB, (3, 8), generator=torch.Generator().manual_seed(5))


def own_text(model: nn.Module, ids: torch.Tensor, **settings) -> list[int]:
    """What transformers' own greedy ``generate`` writes."""
    settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
    mask = torch.ones_like(ids[None])
    return model.generate(ids[None], attention_mask=mask, **settings)[0, len(ids) :].tolist()


class NoTwin:
    """As a user writes one: no token but 7 whose last digit is that of the token before."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = torch.arange(scores.shape[-1])
        twins = (tokens % 10 == ids[:, -1:] % 10) & (tokens != 7)
        scores[twins] = -torch.inf  # in place, as some do
        return scores


def shaped() -> tuple[GenerationConfig, list]:
    """A configuration in which nearly everything does something."""
    free = generate(make_model("llama"), IDS[:1], max_new_tokens=12).new_tokens[0]
    config = GenerationConfig(
        eos_token_id=[free[1], free[5]],
        pad_token_id=0,
        min_new_tokens=4,
        min_length=6,
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        bad_words_ids=[[free[2]], [free[6], free[7]]],
        suppress_tokens=[free[8]],
        begin_suppress_tokens=[free[0]],
        sequence_bias=[[[free[3]], 2.0], [[free[4], free[3]], -3.0]],
        exponential_decay_length_penalty=(8, 1.2),
        forced_eos_token_id=7,
    )
    return config, [NoTwin()]


@pytest.mark.parametrize("kind", tiers(["llama", "gpt2"], slow={"llama"}))
def test_every_method_writes_what_transformers_writes(kind: str) -> None:
    model = make_model(kind)
    config, processors = shaped()
    expected = [
        own_text(model, row, generation_config=config, logits_processor=processors)
        for row in (IDS[0], IDS[1, 2:], IDS[2])
    ]
    assert expected != [own_text(model, row) for row in (IDS[0], IDS[1, 2:], IDS[2])]
    assert {len(row) for row in expected} != {NEW}
    model.generation_config = config
    mask = torch.ones_like(IDS)
    mask[1, :2] = 0
    settings = {"attention_mask": mask, "max_new_tokens": NEW, "logits_processor": processors}
    accepted = 0
    for name, method in trials(model):
        if kind == "llama" or not name.startswith("hydra:"):
            out = generate(model, IDS, method, **settings)
            assert out.new_tokens == expected, name
            accepted += out.acceptance.accepted
    assert accepted > 20


def test_an_encoder_decoders_settings() -> None:
    model = make_target("BART")
    config = GenerationConfig(
        decoder_start_token_id=2,
        pad_token_id=0,
        eos_token_id=5,
        forced_bos_token_id=9,
        begin_suppress_tokens=[11],
        no_repeat_ngram_size=1,
        encoder_repetition_penalty=1.5,
        encoder_no_repeat_ngram_size=2,
        min_new_tokens=5,
    )
    model.generation_config = config
    expected = model.generate(IDS[:1], max_new_tokens=10, do_sample=False)[0].tolist()
    assert expected[1] == 9
    for method, options in (
        ("token_recycling", {}),
        ("speculative", {"draft": trial_draft(model)}),
    ):
        out = generate(model, IDS[:1], method, max_new_tokens=10, **options)
        assert out.sequences[0].tolist() == expected
        assert [2, *out.new_tokens[0]] == expected


def test_what_is_given_goes_before_what_the_model_has() -> None:
    model = make_model("llama")
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.bad_words_ids = [[3]]
    given = GenerationConfig(repetition_penalty=1.2, no_repeat_ngram_size=3)
    found = generation_settings(model, given, {"no_repeat_ngram_size": 4, "min_new_tokens": None})
    assert found.repetition_penalty == 1.2 and found.no_repeat_ngram_size == 4
    assert found.bad_words_ids == [[3]] and found.min_new_tokens is None
    assert model.generation_config.repetition_penalty == 1.9
    for options in ({"repetition_penalty": 1.5}, {"bad_words_ids": [[4], [5]]}):
        out = generate(model, IDS[:1], "token_recycling", max_new_tokens=NEW, **options)
        assert out.new_tokens == [own_text(model, IDS[0], **options)]
    # of two processors of one class the user's is taken, as in transformers
    from transformers import RepetitionPenaltyLogitsProcessor

    own = [RepetitionPenaltyLogitsProcessor(1.1)]
    out = generate(model, IDS[:1], "token_recycling", max_new_tokens=NEW, logits_processor=own)
    assert out.new_tokens == [own_text(model, IDS[0], logits_processor=own)]
    assert out.new_tokens != [own_text(model, IDS[0])]


def test_nothing_is_computed_where_nothing_is_set() -> None:
    model = make_model("llama")
    config = generation_settings(model, None, {})
    constraints = Constraints(config, None, [[1, 2]], 5, [3], torch.device("cpu"))
    assert not constraints
    logits = torch.zeros(1, 4)
    assert constraints.after(logits, [[1, 2]], [0]) is logits


@pytest.mark.parametrize(
    "form",
    [
        int,
        lambda t: [t, 49],
        lambda t: (t,),
        torch.tensor,
        np.int64,
        lambda t: torch.tensor([49, t]),
        lambda t: [torch.tensor(t), 49],
        np.array,
    ],
)
def test_stop_tokens_in_every_form(form) -> None:
    model = make_model("llama")
    free = generate(model, IDS[:1], max_new_tokens=12).new_tokens[0]
    stop = free[4]
    expected = free[: free.index(stop) + 1]
    given = generate(model, IDS[:1], "token_recycling", max_new_tokens=12, stop_tokens=form(stop))
    model.generation_config.eos_token_id = form(stop)
    own = generate(model, IDS[:1], "token_recycling", max_new_tokens=12)
    assert given.new_tokens == own.new_tokens == [expected]


def test_stop_tokens_that_are_none() -> None:
    for wrong in ("end", [1.5], [None], True):
        with pytest.raises(ZooError, match=r"stop_tokens is .*, expected a token's number"):
            token_set(wrong, "stop_tokens")
    assert token_set((), "x") == token_set(None, "x") == frozenset()
    assert token_set([[1, 2], torch.tensor([3])], "x") == {1, 2, 3}


def test_finished_texts_are_padded_as_in_transformers() -> None:
    model = make_model("llama")
    free = generate(model, IDS[:2], max_new_tokens=12).new_tokens
    model.generation_config.eos_token_id = [free[0][2], free[1][9]]
    for pad, expected in ((9, 9), (None, 0)):
        model.generation_config.pad_token_id = pad
        out = generate(model, IDS[:2], "token_recycling", max_new_tokens=12)
        short = min(range(2), key=lambda row: len(out.new_tokens[row]))
        length = len(out.new_tokens[short])
        assert length < out.sequences.shape[1] - 8
        assert set(out.sequences[short, 8 + length :].tolist()) == {expected}
    model.config.pad_token_id = None
    out = generate(model, IDS[:2], "plain", max_new_tokens=12)
    assert out.sequences[short, -1] == min(free[0][2], free[1][9])


def letters() -> PreTrainedTokenizerFast:
    words = {chr(ord("A") + i): i for i in range(VOCAB)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "A"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    model.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model)


def test_stop_strings_end_a_text_inside_a_step() -> None:
    model, tokenizer = make_model("llama"), letters()
    free = generate(model, IDS[:1], max_new_tokens=NEW).new_tokens[0]
    text = tokenizer.decode(free)
    strings = ["zzz", text[6:8]]
    expected = own_text(model, IDS[0], stop_strings=strings, tokenizer=tokenizer)
    assert len(expected) < NEW
    seen: list[int] = []
    out = generate(
        model,
        IDS[:1],
        "speculative",
        draft=model,
        length=5,
        max_new_tokens=NEW,
        stop_strings=strings,
        tokenizer=tokenizer,
        on_tokens=lambda row, tokens: seen.extend(tokens),
    )
    assert out.new_tokens == [expected] == [seen]
    assert Stop((), text[6:8], tokenizer).ends(free[:8]) and not Stop((3,)).ends([3, 4])
    with pytest.raises(ZooError, match=r"stop_strings are .*give the target's as tokenizer"):
        generate(model, IDS[:1], stop_strings="a")


def test_min_p_is_that_of_transformers() -> None:
    from transformers import MinPLogitsWarper

    from zoo.decoding import Sampler

    logits = torch.randn(7, 30, generator=torch.Generator().manual_seed(0)) * 3
    expected = MinPLogitsWarper(0.2)(None, logits / 0.7).softmax(-1)
    torch.testing.assert_close(Sampler(0.7, min_p=0.2).probs(logits), expected)
    for wrong in ({"min_p": 1.5}, {"temperature": float("nan")}, {"top_p": 0.0}):
        with pytest.raises(ZooError, match="expected temperature >= 0"):
            Sampler(**{"temperature": 1.0, **wrong})


class Counting:
    """A processor that must not be asked about a tree: it remembers how often it was asked."""

    calls = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return scores + (torch.arange(scores.shape[-1]) == self.calls)


def test_what_cannot_hold_is_refused() -> None:
    model = make_model("llama")
    with pytest.raises(ZooError, match="Counting gives two answers for one text"):
        generate(model, IDS, "token_recycling", logits_processor=[Counting()])
    for name, value in (("guidance_scale", 2.0), ("watermarking_config", {"bias": 2.0})):
        config = GenerationConfig()
        setattr(config, name, value)
        with pytest.raises(ZooError, match=f"{name} is .* decoding does not have"):
            generate(model, IDS, generation_config=config)
    with pytest.raises(ZooError, match="repetition_penalty is -1"):
        generate(model, IDS, repetition_penalty=-1.0)
    with pytest.raises(ZooError, match=r"bad_words_ids is \[\]"):
        generate(model, IDS, bad_words_ids=[])
    everything = [[token] for token in range(VOCAB)]
    with pytest.raises(ZooError, match="no token is allowed after the text"):
        generate(model, IDS, bad_words_ids=everything)
    for tokens in (IDS.float(), IDS - 10, IDS + VOCAB):
        with pytest.raises(ZooError, match="expected tokens of the target, integers from 0 to 49"):
            generate(model, tokens)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    for value in (float("nan"), float("inf")):
        for method in ("plain", "token_recycling"):
            model = make_model("llama")
            generate(model, IDS, method, max_new_tokens=2)
            model.lm_head.weight.data[5] = value  # after the model was tried
            with pytest.raises(ZooError, match="logits of the target are NaN or infinite"):
                generate(model, IDS, method, max_new_tokens=2)
        model, draft = make_model("llama"), make_model("llama")
        generate(model, IDS, "spectr", draft=draft, max_new_tokens=2)
        draft.lm_head.weight.data[5] = value
        with pytest.raises(ZooError, match="logits of the draft model are NaN or infinite"):
            generate(model, IDS, "spectr", draft=draft, max_new_tokens=2)
