"""Sampled text is distributed as the model's own, whatever the method: end to end, chi-square."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.language_models import make_model, trials
from tests.tiers import tiers
from zoo.decoding import Method, Verdict, generate, list_methods, make_method, method_class
from zoo.decoding.verify import Rejection

VOCAB, NEW, RUNS = 5, 3, 1500
PROMPT = [1, 2, 3]
SAMPLING = {"temperature": 1.5, "top_k": 4}
METHODS = [name for name, method in trials(make_model("llama")) if method.draws]


@cache
def model() -> nn.Module:
    return make_model("llama", vocab_size=VOCAB)


@cache
@torch.no_grad()
def law() -> Tensor:
    """Exact probabilities of all continuations of ``NEW`` tokens, ``[V^NEW]``."""
    texts, total = torch.tensor([PROMPT]), torch.ones(1)
    for _ in range(NEW):
        logits = model()(input_ids=texts).logits[:, -1] / SAMPLING["temperature"]
        worst = logits.topk(SAMPLING["top_k"]).values[:, -1:]
        probs = logits.masked_fill(logits < worst, float("-inf")).softmax(-1)  # [n, V]
        total = (total[:, None] * probs).flatten()
        texts = torch.cat(
            [texts.repeat_interleave(VOCAB, 0), torch.arange(VOCAB).repeat(len(texts))[:, None]], 1
        )
    return total


def statistic(method: Method, **options) -> tuple[float, int]:
    """Chi-square of the continuations of many equal prompts, and its degrees of freedom.

    Texts that are expected less than five times count together.
    """
    prompts = torch.tensor([PROMPT]).repeat(RUNS, 1)
    out = generate(model(), prompts, method, max_new_tokens=NEW, seed=1, **SAMPLING, **options)
    powers = VOCAB ** torch.arange(NEW - 1, -1, -1)
    codes = (torch.tensor(out.new_tokens) * powers).sum(-1)
    counts, expected = torch.bincount(codes, minlength=VOCAB**NEW).float(), RUNS * law()
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    counts, expected = (
        torch.cat([values[~rare], values[rare].sum()[None]]) for values in (counts, expected)
    )
    return float(((counts - expected) ** 2 / expected.clamp_min(1e-9)).sum()), len(counts) - 1


def limit(freedom: int) -> float:
    """Value that a right statistic exceeds once in ten thousand times (Wilson and Hilferty)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.72 * part**0.5) ** 3


@pytest.mark.parametrize("name", tiers(METHODS, slow={"hidden_transfer", "token_recycling"}))
def test_sampled_text_is_the_models_own(name: str) -> None:
    value, freedom = statistic(dict(trials(model()))[name])
    assert freedom > 20
    assert value < limit(freedom)


class Hasty(Rejection):
    """Broken on purpose: what the draft proposed is accepted a little too often."""

    def verify(self, draft, logits, sampler) -> list[Verdict]:
        draft.probs = 0.8 * draft.probs
        return super().verify(draft, logits, sampler)


@pytest.mark.parametrize(
    ("method", "verifier"), [("speculative", Hasty()), ("token_recycling", "typical")]
)
def test_the_test_notices_a_biased_verifier(method: str, verifier) -> None:
    value, freedom = statistic(dict(trials(model()))[method], verifier=verifier)
    assert value > 2 * limit(freedom)


def test_methods_are_all_tested() -> None:
    drawn = {name for name in list_methods() if method_class(name).draws}
    assert {name.partition(":")[0] for name in METHODS} == drawn
    assert all(not method_class(name).lossless for name in set(list_methods()) - drawn)
    assert make_method("plain").verifier == "sample_match"
