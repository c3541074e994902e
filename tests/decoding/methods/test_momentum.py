"""Momentum decoding and contrastive search against their definitions, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.language_models import VOCAB, make_model
from zoo.decoding import generate
from zoo.decoding.methods.contrastive import Contrastive
from zoo.decoding.methods.momentum import TABLES, Momentum, Paths
from zoo.errors import ZooError


def known_path(text: list[int], token: int) -> int:
    """The definition: the largest n of 2 to 5 whose n-gram occurs, 1 if only the token does."""
    for n in range(5, 1, -1):
        gram = [*text[len(text) - n + 1 :], token]
        if len(gram) == n and any(text[i : i + n] == gram for i in range(len(text) - n + 1)):
            return n
    return int(token in text)


def test_known_paths_are_counted_as_they_are_defined() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, (60,), generator=generator).tolist()
    found = set()
    for length in range(60):
        paths = Paths(text[:length])
        for token in range(4):
            assert paths.known(token) == known_path(text[:length], token)
            found.add(paths.known(token))
    assert found == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    "options", [{}, {"k": 9, "table": "blocking"}, {"alpha": 1.0, "table": [0, 0.1]}]
)
@torch.no_grad()
def test_each_token_is_the_best_by_probability_less_resistance(options: dict) -> None:
    model = make_model("llama", vocab_size=9, initializer_range=0.1)
    ids = torch.randint(9, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    out = generate(
        model,
        ids,
        "momentum",
        attention_mask=mask,
        max_new_tokens=30,
        temperature=0.7,
        **options,
    )
    method, greedy, total = Momentum(**options), 0, 0
    for row in range(3):
        text = ids[row][mask[row].bool()].tolist()
        for token in out.new_tokens[row]:
            probs = model(input_ids=torch.tensor([text])).logits[0, -1].softmax(-1)
            p, candidates = probs.topk(method.k)
            f = [
                method.table[known_path(text, c)]
                if known_path(text, c) < len(method.table)
                else math.inf
                for c in candidates.tolist()
            ]
            scores = [a - method.alpha * b for a, b in zip(p.tolist(), f, strict=True)]
            assert candidates[scores.index(max(scores))] == token
            greedy, total = greedy + int(token == probs.argmax()), total + 1
            text.append(token)
    assert out.report["greedy_ratio"] == pytest.approx(greedy / total)
    assert 0 < greedy < total


@torch.no_grad()
def test_where_all_is_ruled_out_the_likeliest_is_taken_and_bans_hold() -> None:
    model = make_model("llama")
    ids = torch.tensor([[1, 2, 3, 4]])
    nothing = Momentum(table=[math.inf] * 6)
    plain = generate(model, ids, max_new_tokens=12)
    assert generate(model, ids, nothing, max_new_tokens=12).new_tokens == plain.new_tokens
    first = plain.new_tokens[0][0]
    out = generate(model, ids, "momentum", max_new_tokens=12, bad_words_ids=[[first]])
    assert first not in out.new_tokens[0]
    short = generate(model, ids, "momentum", max_new_tokens=12, stop_tokens=[out.new_tokens[0][3]])
    assert len(short.new_tokens[0]) <= 12


def test_published_tables_and_wrong_settings() -> None:
    assert TABLES["log"][1] == pytest.approx(math.log(2) / math.log(6) / 0.2)
    assert TABLES["exp"] == tuple(1.5**r / 2 for r in range(6))
    assert Momentum(alpha=0.2).resistance(4) == 1.0
    assert Momentum(table="blocking").resistance(5) == math.inf
    with pytest.raises(ZooError, match="one of momentum"):
        Momentum(table="x")
    with pytest.raises(ZooError, match="resistances"):
        Momentum(table=[])
    with pytest.raises(ZooError, match="a share"):
        Contrastive(alpha=2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_contrastive_search_by_its_definition(kind: str) -> None:
    model = make_model(kind)
    ids = torch.randint(1, VOCAB, (2, 5), generator=torch.Generator().manual_seed(2))
    out = generate(model, ids, "contrastive", k=4, alpha=0.5, max_new_tokens=10)
    plain = generate(model, ids, max_new_tokens=10)
    assert out.new_tokens != plain.new_tokens
    for row in range(2):
        text = ids[row].tolist()
        for token in out.new_tokens[row]:
            p, candidates = model(input_ids=torch.tensor([text])).logits[0, -1].softmax(-1).topk(4)
            worth = []
            for prob, candidate in zip(p, candidates, strict=True):
                read = torch.tensor([[*text, int(candidate)]])
                states = model(input_ids=read, output_hidden_states=True).hidden_states[-1][0]
                alike = F.cosine_similarity(states[-1:], states[:-1]).max()
                worth.append(float(0.5 * prob - 0.5 * alike))
            assert int(candidates[worth.index(max(worth))]) == token
            text.append(token)
