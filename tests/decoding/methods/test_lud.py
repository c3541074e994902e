"""LUD: spans are what the look-ahead tokens say behind the text, and the cache holds only text."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from tests.language_models import VOCAB, make_model
from zoo.data.language.unit_language import UnitLanguage
from zoo.decoding import generate
from zoo.decoding.methods.lud import LUD, look_ahead_token, repeats
from zoo.errors import ZooError
from zoo.models.language._causal_lm import load_causal_lm
from zoo.tasks.base import OptimizerSettings, ScheduleSettings
from zoo.tasks.decoding._decoding_test import DecodingTest
from zoo.tasks.decoding.lexical_units import LexicalUnitTraining, begins


def test_units_are_runs_of_certain_tokens_cut_at_the_longest() -> None:
    probs = torch.tensor([[0.95, 0.99, 0.2, 0.95, 0.95, 0.95, 0.95, 0.95, 0.5]])
    starts = begins(probs, 0.9, 3)[0].int().tolist()
    assert starts == [1, 0, 1, 1, 0, 0, 1, 0, 1]
    assert begins(probs, 0.9, 1).all() and begins(probs, 0.999, 4).all()


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "mamba"])
@torch.no_grad()
def test_spans_are_what_the_model_says_behind_the_text(kind: str) -> None:
    model, k, pad = make_model(kind), 3, 7
    ids = torch.randint(1, VOCAB, (3, 6), generator=torch.Generator().manual_seed(1))
    beta = 0.3
    out = generate(model, ids, LUD(k, beta, pad, times=0), max_new_tokens=12, stop_tokens=())
    spans = set()
    for row, lengths in enumerate(out.accept_lengths):
        text, end = ids[row].tolist(), 6
        for length in lengths:
            read = torch.tensor([[*text, *[pad] * (k - 1)]])
            sure, best = model(input_ids=read).logits[0, -k:].softmax(-1).max(-1)
            span = 1
            while span < k and sure[span] > beta:
                span += 1
            end += length
            assert length == min(span, 18 - len(text))
            assert out.sequences[row, len(text) : end].tolist() == best[:length].tolist()
            text += best[:length].tolist()
            spans.add(length)
    assert len(spans) > 1
    assert out.report["share_of_spans"] > 0


def test_the_first_token_is_drawn_and_the_rest_of_a_span_is_not() -> None:
    model = make_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    options = dict(max_new_tokens=2, temperature=1.0, stop_tokens=())
    found = [
        generate(model, ids, LUD(2, -1.0, 7, times=0), seed=s, **options).new_tokens[0]
        for s in range(12)
    ]
    assert len({first for first, _ in found}) > 2
    assert len({second for _, second in found}) == 1
    banned = [[found[0][1]]]
    out = generate(model, ids, LUD(2, -1.0, 7, times=0), seed=0, bad_words_ids=banned, **options)
    assert found[0][1] not in out.new_tokens[0]


def test_repetition_ends_a_span() -> None:
    assert repeats([4, 5], 5, 3, 2)
    assert not repeats([1, 2, 3, 1, 2], 3, 3, 2)
    assert repeats([1, 2, 3, 1, 2, 3, 1, 2], 3, 3, 2)
    assert not repeats([], 3, 3, 1) and not repeats([2], 3, 3, 1)


def test_look_ahead_tokens_are_found_or_refused() -> None:
    model = make_model("llama", layers=1)
    assert look_ahead_token(model) == 0
    model.config.pad_token_id = None
    assert look_ahead_token(model) == VOCAB - 1
    model.config.look_ahead_token_id = 5
    assert look_ahead_token(model) == 5
    with pytest.raises(ZooError, match="pad is 99"):
        generate(model, torch.tensor([[1, 2]]), "lud", pad=99)
    with pytest.raises(ZooError, match="spans of 1 or more"):
        LUD(k=0)


SHAPE = dict(
    vocab_size=35,
    num_hidden_layers=1,
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


def train(task: LexicalUnitTraining) -> dict[str, float]:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = UnitLanguage(samples=16, length=32, batch_size=8)
    trainer.fit(task, datamodule=data)
    return trainer.test(task, datamodule=data, verbose=False)[0]


def test_training_goes_from_a_model_to_one_that_decodes(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    common = dict(
        optimizer=OptimizerSettings(lr=0.01, lr_batch_size=None),
        schedule=ScheduleSettings(sched="constant", warmup_epochs=0),
    )
    pl.seed_everything(0, verbose=False)
    first = LexicalUnitTraining(model_args=SHAPE, pad=3, export="first", **common)
    assert train(first)["test/unit_length"] >= 1
    assert look_ahead_token(load_causal_lm("first")) == 3
    place = str(tmp_path / "models" / "first")
    second = LexicalUnitTraining(
        place,
        place,
        alpha=0.02,
        branches=40,
        decoding_test=DecodingTest("lud", {"beta": 0.01}, 2, 8, 8),
        **common,
    )
    scores = train(second)
    assert 0 <= scores["test/acc_slot1"] <= 1 and scores["test/unit_length"] > 1
    assert "reference" not in " ".join(second.state_dict())
    with pytest.raises(ZooError, match="pad is 99"):
        LexicalUnitTraining(model_args=SHAPE, pad=99)
    with pytest.raises(ZooError, match="alpha 1"):
        LexicalUnitTraining(model_args=SHAPE, alpha=1)


@torch.no_grad()
def test_look_ahead_logits_are_those_of_a_text_with_look_ahead_tokens_behind(monkeypatch) -> None:
    torch.manual_seed(0)
    task = LexicalUnitTraining(model_args=SHAPE, k=3, alpha=0.02, pad=4, branches=5)
    task.eval()
    monkeypatch.setattr(task, "_current", lambda: task.model.eval())
    ids = torch.randint(1, 35, (2, 12))
    logits, cuts, said, inside = task._look_ahead(ids)
    whole = task.model(input_ids=ids).logits
    torch.testing.assert_close(logits, whole)
    probs = whole[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    for row in range(2):
        for branch, cut in enumerate(cuts[row].tolist()):
            read = torch.cat([ids[row, : cut + 1], torch.tensor([4, 4])])[None]
            expected = task.model(input_ids=read).logits[0, -2:]
            torch.testing.assert_close(said[row, branch], expected, rtol=1e-4, atol=1e-5)
            begin = begins(probs[row : row + 1], 0.02, 3)[0]
            count = 0
            while count < 2 and not begin[cut + 1 + count]:
                count += 1
            assert inside[row, branch].tolist() == [slot < count for slot in range(2)]
    assert inside.any() and not inside.all()
