"""Superposed decoding against its definition, written out over full passes; counts of n-grams."""

from __future__ import annotations

import pytest
import torch

from tests.language_models import VOCAB, make_model
from zoo.decoding import generate
from zoo.decoding.methods.superposed import Drafts, Superposed
from zoo.decoding.ngrams import NGrams
from zoo.errors import ZooError

TEXTS = [[(3 * n + n // 5) % VOCAB for n in range(start, start + 40)] for start in range(30)]


def expected(model, prompt: list[int], k: int, count: int, ngrams: NGrams, alpha: float, top: int):
    """Scores and drafts by plain lists and full passes over embeddings."""
    weights = (0.01, 0.04, 0.15, 0.18, 0.12)
    embed = model.get_input_embeddings().weight
    inputs, drafts = embed[torch.tensor(prompt)], [(0.0, [])]
    for _ in range(count):
        logits = model(inputs_embeds=inputs[None]).logits[0, -1]
        p, tokens = logits.softmax(-1).topk(top)
        p = p / p.sum()
        grown = []
        for score, draft in drafts:
            text = prompt + draft
            rows = []
            for prob, token in zip(p.tolist(), tokens.tolist(), strict=True):
                q = 0.0
                for n, weight in enumerate(weights, start=1):
                    seen = ngrams.following(text[-n:]) if n <= len(text) else None
                    q += weight * seen[token] / sum(seen.values()) if seen else 0.0
                rows.append((token, torch.tensor(prob).log(), torch.tensor(q).log()))
            unknown = all(q == -torch.inf for _, _, q in rows)
            for token, a, q in rows:
                moved = -200.0 if unknown else float(alpha * q)
                grown.append((score + float((1 - alpha) * a) + moved, [*draft, token]))
        drafts = sorted(grown, key=lambda pair: -pair[0])[:k]
        gamma = torch.tensor([score for score, _ in drafts]).softmax(0)
        mixed = sum(g * embed[draft[-1]] for g, (_, draft) in zip(gamma, drafts, strict=True))
        inputs = torch.cat([inputs, mixed[None]])
    return drafts


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
@torch.no_grad()
def test_drafts_and_scores_by_the_definition(kind: str) -> None:
    model, ngrams = make_model(kind), NGrams.of(TEXTS)
    ids = torch.tensor([TEXTS[0][:6], TEXTS[3][:6]])
    method = Superposed(k=3, tau=1.0, n_token_sample=20, ngrams=ngrams)
    out = generate(model, ids, method, max_new_tokens=6, stop_tokens=())
    for row in range(2):
        wanted = expected(model, ids[row].tolist(), 3, 6, ngrams, 0.54, 20)
        assert [list(f.tokens) for f in method.found[row]] == [draft for _, draft in wanted]
        scores = torch.tensor([f.score * 6 for f in method.found[row]])
        torch.testing.assert_close(
            scores, torch.tensor([s for s, _ in wanted]), rtol=1e-4, atol=1e-3
        )
        assert out.new_tokens[row] == wanted[0][1]
    assert out.report["passes_per_token"] == 1
    assert out.report["different_drafts"] == 3


@torch.no_grad()
def test_drafts_end_with_a_stop_token_and_bans_hold() -> None:
    model = make_model("llama")
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    first = generate(model, ids, Superposed(tau=1.0), max_new_tokens=8, stop_tokens=())
    stop = first.new_tokens[0][2]
    method = Superposed(tau=1.0)
    generate(model, ids, method, max_new_tokens=8, stop_tokens=[stop])
    ended = [f for found in method.found for f in found if f.tokens[-1] == stop]
    assert ended and all(f.tokens.count(stop) == 1 for f in ended)
    scores = [[f.score for f in found] for found in method.found]
    assert all(row == sorted(row, reverse=True) for row in scores)
    banned = Superposed(tau=1.0)
    generate(model, ids, banned, max_new_tokens=8, bad_words_ids=[[stop]])
    assert all(stop not in f.tokens for found in banned.found for f in found)


def test_all_takes_the_ngrams_alone_and_never_finds_pairs() -> None:
    pairs = Drafts([[1]], 1, 5, "all", NGrams.of([[1, 2]]), 0.5, (1.0,), 200.0, frozenset())
    assert (pairs.counted(torch.full((1, 1, 5), 0.2)) == 0).all()
    triples = Drafts(
        [[0, 1]],
        1,
        5,
        "all",
        NGrams.of([[0, 1, 2], [0, 1, 3], [0, 1, 3]]),
        0.5,
        (1.0, 0.5),
        200.0,
        frozenset(),
    )
    found = triples.smoothed(torch.full((1, 1, 5), 0.2)).exp()[0, 0]
    torch.testing.assert_close(found, torch.tensor([0, 0, 0.5 / 3, 1 / 3, 0]))


def test_ngrams_are_counted_by_text_and_kept(tmp_path) -> None:
    made = NGrams.of([[1, 2, 1, 2, 3], [2, 9]], longest=3)
    assert made.following([2]) == {1: 1, 3: 1, 9: 1}
    assert made.following([1, 2]) == {1: 1, 3: 1}
    assert made.following([3, 2]) is None and made.following([2, 1, 2]) is None
    file = tmp_path / "counts.safetensors"
    made.save(file)
    read = NGrams.load(file)
    assert read.counts == made.counts and read.longest == 3
    (tmp_path / "x").write_bytes(b"\x80\x04K\x01.")
    for wrong in (tmp_path / "x", tmp_path / "none"):
        with pytest.raises(ZooError, match="n-grams"):
            NGrams.load(wrong)
    with pytest.raises(ZooError, match="2 or more"):
        NGrams(1)
    with pytest.raises(ZooError, match="geom, all"):
        Superposed(smoothing="x")
    with pytest.raises(ZooError, match="a temperature above 0"):
        Superposed(tau=0.0)
