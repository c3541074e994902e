"""The text's distribution is the target's own: exact joint distributions, small vocabularies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.decoding.methods.spectr import _Trie
from zoo.decoding.optimal_transport import (
    k_seq,
    optimal_acceptance,
    recursive_rejection_acceptance,
)
from zoo.decoding.sampling import Sampler
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft, KSeq, Rejection, SampleMatch, Typical, Verifier

VOCAB, RUNS = 4, 3000
#: 99.99 % of a chi-square with 15 degrees of freedom (two tokens of four kinds, less one).
LIMIT = 44.3


def tables(seed: int) -> tuple[Tensor, Tensor]:
    """Target and draft as tables ``[V, V]``: row of the token before -> next token's logits."""
    generator = torch.Generator().manual_seed(seed)
    p = 1.5 * torch.randn(VOCAB, VOCAB, generator=generator)
    q = p + 1.5 * torch.randn(VOCAB, VOCAB, generator=generator)
    return p, q


def chi_square(
    verifier: Verifier, siblings: str, seed: int = 0, runs: int = RUNS, drafts: int = 2
) -> float:
    """Statistic of the first two tokens after token 0, drafted and verified ``runs`` times."""
    p, q = tables(seed)
    sampler = Sampler(1.0, seed=seed)
    texts: list[list[int]] = [[] for _ in range(runs)]
    while unfinished := [text for text in texts if len(text) < 2]:
        last = torch.tensor([text[-1] if text else 0 for text in unfinished])
        draft = make_draft(siblings, q.softmax(-1), last, sampler, drafts)
        verdicts = verifier.verify(draft, p[draft.tokens], sampler)
        for text, tokens, (path, token) in zip(
            unfinished, draft.tokens.tolist(), verdicts, strict=True
        ):
            text += [tokens[node] for node in path] + [token]
    counts = torch.zeros(VOCAB, VOCAB)
    for text in texts:
        counts[text[0], text[1]] += 1
    p_probs = p.softmax(-1)
    expected = runs * p_probs[0][:, None] * p_probs
    return float(((counts - expected) ** 2 / expected).sum())


def make_draft(
    siblings: str, q: Tensor, last: Tensor, sampler: Sampler, drafts: int, depth: int = 2
) -> Draft:
    """Candidates after the tokens ``last`` ``[B]``."""
    if siblings == "independent":
        tries = [_Trie(int(token), drafts) for token in last]
        for _ in range(depth):
            at = torch.tensor([[trie.tokens[node] for node in trie.at] for trie in tries])
            for trie, tokens in zip(tries, sampler.draw(q[at]).tolist(), strict=True):
                trie.extend(tokens)
        width = max(len(trie.tokens) for trie in tries)
        index = torch.tensor([trie.tokens + [0] * (width - len(trie.tokens)) for trie in tries])
        trees = [Tree(trie.parents) for trie in tries]
        return Draft(trees, index, q[index], [trie.draws for trie in tries], siblings)
    # two children of the root, each with one child
    if siblings == "top":
        first = q[last].topk(2).indices
        second = q[first].argmax(-1)
    else:
        first = torch.multinomial(q[last], 2, generator=sampler.generator)
        second = sampler.draw(q[first])
    index = torch.cat([last[:, None], first, second], dim=1)
    trees = [Tree([-1, 0, 0, 1, 2])] * len(last)
    return Draft(trees, index, q[index], None, siblings)


@pytest.mark.parametrize(
    ("verifier", "siblings"),
    [
        (SampleMatch(), "top"),
        (Rejection(), "top"),
        (Rejection(), "without_replacement"),
        (Rejection(), "independent"),
        (KSeq(), "independent"),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_the_texts_distribution_is_the_targets(verifier, siblings: str) -> None:
    assert verifier.lossless
    assert chi_square(verifier, siblings, seed=1, drafts=3) < LIMIT


def test_a_single_draft_is_speculative_sampling() -> None:
    assert chi_square(Rejection(), "independent", 2, drafts=1) < LIMIT
    assert chi_square(KSeq(), "independent", 2, drafts=1) < LIMIT


class NoResidual(Rejection):
    """Broken on purpose: after a rejection it draws from the target itself."""

    def _try(self, draft, row, node, children, child, left, tokens, sampler):
        accepted, _ = super()._try(draft, row, node, children, child, left, tokens, sampler)
        return accepted, left


class Undivided(KSeq):
    """Broken on purpose: several candidates, accepted as if there were one."""

    def verify(self, draft, logits, sampler):
        import zoo.decoding.verify as module

        rule = module.k_seq
        module.k_seq = lambda q, p, k: rule(q, p, k, rho=1.0)
        try:
            return super().verify(draft, logits, sampler)
        finally:
            module.k_seq = rule


@pytest.mark.parametrize(
    ("verifier", "siblings"),
    [(NoResidual(), "independent"), (Undivided(), "independent"), (Typical(), "top")],
    ids=["no residual", "rho = 1", "typical"],
)
def test_the_test_notices_biased_verifiers(verifier, siblings: str) -> None:
    assert chi_square(verifier, siblings, drafts=3) > 2 * LIMIT


def pairs(count: int, size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    law = torch.distributions.Dirichlet(torch.full((size,), 0.5, dtype=torch.float64))
    return law.sample((count,)), law.sample((count,))


def test_k_seq_acceptance() -> None:
    q, p = pairs(60, 10)
    means = []
    for k in (1, 2, 4, 8):
        rule = k_seq(q, p, k)
        means.append(float(rule.acceptance.mean()))
        best = [optimal_acceptance(a, b, k) for a, b in zip(q[:12], p[:12], strict=True)]
        ratio = rule.acceptance[:12] / torch.tensor(best, dtype=torch.float64)
        assert (ratio <= 1 + 1e-9).all()
        assert (ratio >= 1 - 1 / torch.e).all()
        assert means[-1] >= float(recursive_rejection_acceptance(q, p, k).mean()) - 1e-12
        assert (rule.rho >= 1).all() and (rule.rho <= k).all()
        # accepted and residual part together are the target
        kept = torch.minimum(q, p / rule.rho[:, None])
        share = rule.acceptance / kept.sum(-1)
        total = kept * share[:, None] + rule.residual * (1 - rule.acceptance)[:, None]
        torch.testing.assert_close(total, p, atol=1e-9, rtol=0)
    assert means == sorted(means)
    torch.testing.assert_close(
        k_seq(q, p, 1).acceptance, torch.minimum(q, p).sum(-1), atol=1e-9, rtol=0
    )


def test_k_seq_at_the_edges() -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    apart = torch.tensor([0.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    rule = k_seq(apart, p, 4)
    assert float(rule.acceptance) == 0
    torch.testing.assert_close(rule.residual, p)
    same = k_seq(p, p, 4)
    assert float(same.acceptance) == pytest.approx(1.0)
    assert same.accept[:2].tolist() == [1.0, 1.0]
    sure = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert float(k_seq(p, sure, 3).acceptance) == pytest.approx(1 - 0.5**3)


def test_typical_acceptance_prefers_the_longest_plausible_path() -> None:
    tree = Tree([-1, 0, 0, 1, 2])
    logits = torch.full((1, 5, 3), -9.0)
    logits[0, 0, :2] = torch.tensor([1.0, 0.9])  # both children of the root are plausible
    logits[0, 2, 1] = 9.0  # below the second one there is a plausible token
    logits[0, 1, 0] = 9.0
    draft = Draft([tree], torch.tensor([[0, 0, 1, 2, 1]]))
    assert Typical().verify(draft, logits, Sampler(1.0, seed=0))[0].path == [2, 4]
    assert Typical().verify(draft, logits, Sampler(0.0))[0].path == [1]


def test_top_k_and_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert Sampler(1.0, top_k=2).probs(logits).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    kept = Sampler(1.0, top_p=0.6).probs(logits)
    assert kept.tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert Sampler(1.0, top_p=0.4).probs(logits).tolist() == pytest.approx([1, 0, 0, 0])
    sharp = Sampler(0.5).probs(logits)
    assert sharp.tolist() == pytest.approx((torch.tensor([25, 9, 2.25, 0.25]) / 36.5).tolist())
