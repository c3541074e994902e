"""Verification: from the target's logits at every node, which path is kept and which token follows.

All rules but the typical one leave the distribution of the text as it is; greedy decoding is the
special case of temperature 0. In the two rejection rules and k-SEQ the letters are those of most
code: p is the target's distribution, q the draft's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from zoo.decoding.optimal_transport import k_seq
from zoo.decoding.sampling import Sampler
from zoo.decoding.tree import Tree
from zoo.errors import ZooError


@dataclass
class Draft:
    """What a method proposes for a batch of B sequences.

    Attributes:
        trees: one shape for each sequence; they may be one and the same object.
        tokens: int64 ``[B, N]`` with N the largest size; column 0 holds the roots.
        probs: ``[B, N, V]`` or None; at a node the distribution that its children were drawn from.
        draws: for each sequence and node the children in the order drawn, one that was drawn twice
            standing there twice; None means the children in order.
        siblings: how the children of a node were found: ``"top"`` without chance,
            ``"without_replacement"`` or ``"independent"``.
    """

    trees: list[Tree]
    tokens: Tensor
    probs: Tensor | None = None
    draws: list[list[list[int]]] | None = None
    siblings: str = "top"

    def children(self, row: int, node: int) -> list[int]:
        """The children of a node in the order in which a verifier tries them."""
        if self.draws is not None:
            return self.draws[row][node]
        return list(self.trees[row].children[node])


class Verdict(NamedTuple):
    """The accepted nodes below the root, and the token that follows the last of them."""

    path: list[int]
    token: int


class Verifier(ABC):
    """One rule of acceptance."""

    name: ClassVar[str]
    #: Whether the text is distributed exactly as the target's own.
    lossless: ClassVar[bool] = True

    def first(self, logits: Tensor, sampler: Sampler) -> list[int]:
        """The tokens after prompts, from logits ``[B, V]``."""
        return sampler.draw(sampler.probs(logits)).tolist()

    @abstractmethod
    def verify(self, draft: Draft, logits: Tensor, sampler: Sampler) -> list[Verdict]:
        """Judge each sequence of a batch; ``logits`` is ``[B, N, V]``."""


class Greedy(Verifier):
    """Follow the target's most probable token as long as the tree has it."""

    name = "greedy"

    def first(self, logits: Tensor, sampler: Sampler) -> list[int]:
        """The most probable tokens after prompts, whatever the temperature."""
        return logits.argmax(-1).tolist()

    def verify(self, draft: Draft, logits: Tensor, sampler: Sampler) -> list[Verdict]:
        """Judge all sequences with one argmax."""
        best, tokens = logits.argmax(-1).tolist(), draft.tokens.tolist()
        return [
            _follow(tree, row_tokens, row_best)
            for tree, row_tokens, row_best in zip(draft.trees, tokens, best, strict=True)
        ]


class _Walk:
    """Where the sequences of a batch stand in their trees, while they go down level by level."""

    def __init__(self, draft: Draft) -> None:
        self.draft, self.tokens = draft, draft.tokens.tolist()
        self.paths: list[list[int]] = [[] for _ in draft.trees]
        self.ends: list[int | None] = [None] * len(draft.trees)

    def open(self) -> list[tuple[int, int]]:
        """Sequences that have not ended, and the node that each has reached."""
        return [
            (row, path[-1] if path else 0)
            for row, (path, end) in enumerate(zip(self.paths, self.ends, strict=True))
            if end is None
        ]

    def verdicts(self) -> list[Verdict]:
        """What came out when all have ended."""
        return [Verdict(path, end) for path, end in zip(self.paths, self.ends, strict=True)]


def _at(values: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """Of ``[B, N, V]`` the rows at places (sequence, node), ``[n, V]``."""
    index = torch.tensor(places, device=values.device).T
    return values[index[0], index[1]]


class SampleMatch(Verifier):
    """Draw the next token from the target at every node that is reached, and go on if it is a
    child.

    Exact for every tree, however it was found; recommended by Medusa's authors where typical
    acceptance will not do.
    """

    name = "sample_match"

    def verify(self, draft: Draft, logits: Tensor, sampler: Sampler) -> list[Verdict]:
        """Judge all sequences, one draw for each level."""
        walk = _Walk(draft)
        while places := walk.open():
            drawn = sampler.draw(sampler.probs(_at(logits, places))).tolist()
            for (row, node), token in zip(places, drawn, strict=True):
                child = _child(draft.trees[row], node, walk.tokens[row], token)
                if child is None:
                    walk.ends[row] = token
                else:
                    walk.paths[row].append(child)
        return walk.verdicts()


class _ByRow(Verifier):
    """A rule that judges one sequence after the other."""

    def verify(self, draft: Draft, logits: Tensor, sampler: Sampler) -> list[Verdict]:
        """Judge each sequence of a batch; ``logits`` is ``[B, N, V]``."""
        return [
            self.verify_row(draft, row, logits[row], sampler) for row in range(len(draft.trees))
        ]

    @abstractmethod
    def verify_row(self, draft: Draft, row: int, logits: Tensor, sampler: Sampler) -> Verdict:
        """Judge one sequence; ``logits`` is ``[N, V]``."""


class Typical(_ByRow):
    """Typical acceptance of Medusa (arXiv 2401.10774, section 2.3.1); not distribution-preserving.

    A token is plausible if its probability is above ``min(threshold, alpha * exp(-entropy))``; of
    the longest plausible paths the most probable is kept, and the target's best token follows.

    Args:
        threshold: epsilon of the paper.
        alpha: delta of the paper; its authors advise the square root of ``threshold``.
    """

    name = "typical"
    lossless = False

    def __init__(self, threshold: float = 0.09, alpha: float = 0.3) -> None:
        self.threshold, self.alpha = threshold, alpha

    def first(self, logits: Tensor, sampler: Sampler) -> list[int]:
        """The most probable tokens after prompts."""
        return logits.argmax(-1).tolist()

    def verify_row(self, draft: Draft, row: int, logits: Tensor, sampler: Sampler) -> Verdict:
        """Judge one sequence."""
        tree, best = draft.trees[row], logits.argmax(-1)
        if sampler.greedy:
            return _follow(tree, draft.tokens[row].tolist(), best.tolist())
        size = len(tree)
        probs = (logits[:size].float() / sampler.temperature).softmax(-1)  # [N, V]
        entropy = -(probs * (probs + 1e-5).log()).sum(-1)
        limit = torch.clamp(self.alpha * (-entropy).exp(), max=self.threshold)  # [N]
        parents = torch.tensor(tree.parents[1:], device=logits.device, dtype=torch.long)
        own = probs[parents, draft.tokens[row, 1:size]]  # [N - 1]
        plausible = (own > limit[parents]).tolist()
        log_probs = own.log().tolist()
        # value of a node: how many tokens are accepted down to it, and their joint probability
        accepted, joint = [0] * size, [0.0] * size
        for node in range(1, size):
            parent = tree.parents[node]
            if plausible[node - 1] and accepted[parent] == tree.depths[parent]:
                accepted[node] = tree.depths[node]
                joint[node] = joint[parent] + log_probs[node - 1]
        last = max(
            range(size),
            key=lambda n: (accepted[n] == tree.depths[n], tree.depths[n], joint[n]),
        )
        return Verdict(list(tree.path(last)[1:]), int(best[last]))


class Rejection(_ByRow):
    """Speculative sampling: accept x with probability min(1, p(x) / q(x)), else go to the residual.

    On a chain this is the rule of Leviathan et al. (arXiv 2211.17192). In a tree the children are
    tried in turn against what the earlier ones left (SpecInfer, arXiv 2305.09781): independent
    draws leave q as it is; drawing without replacement takes the earlier siblings out of q;
    children that were not drawn at all count as certain, so a rejection takes their token out of p.
    """

    name = "rejection"

    def verify_row(self, draft: Draft, row: int, logits: Tensor, sampler: Sampler) -> Verdict:
        """Judge one sequence."""
        tokens, node, path = draft.tokens[row].tolist(), 0, []
        while True:
            left = sampler.probs(logits[node]).double()  # [V]
            for child in (children := draft.children(row, node)):
                accepted, left = self._try(draft, row, node, children, child, left, tokens, sampler)
                if accepted:
                    break
            else:
                return Verdict(path, int(sampler.draw(left)))
            path.append(child)
            node = child

    def _try(
        self,
        draft: Draft,
        row: int,
        node: int,
        children: list[int],
        child: int,
        left: Tensor,
        tokens: list[int],
        sampler: Sampler,
    ) -> tuple[bool, Tensor]:
        """Whether ``child`` is accepted, and what is left of the target's distribution if not."""
        token = tokens[child]
        if draft.siblings == "top":
            if sampler.uniform() < float(left[token]):
                return True, left
            residual = left.clone()
            residual[token] = 0.0
            return False, _normalised(residual, left)
        if draft.probs is None:
            raise ZooError("the rejection rule needs the draft's probabilities: none were given")
        q = draft.probs[row, node].double()
        if draft.siblings == "without_replacement":
            earlier = [tokens[c] for c in children[: children.index(child)]]
            q = q.index_fill(0, torch.tensor(earlier, device=q.device, dtype=torch.long), 0.0)
            q = q / q.sum()
        if sampler.uniform() * float(q[token]) < float(left[token]):
            return True, left
        return False, _normalised((left - q).clamp_min(0.0), left)


class KSeq(Verifier):
    """k-SEQ of SpecTr (arXiv 2310.15141): K independent draft sequences, near-optimal acceptance.

    At a node the k sequences that are still alive have drawn k candidates independently from q;
    :func:`zoo.decoding.optimal_transport.k_seq` says which one is kept, if any.
    """

    name = "k_seq"

    def verify(self, draft: Draft, logits: Tensor, sampler: Sampler) -> list[Verdict]:
        """Judge all sequences, the rules of a level at once."""
        if draft.probs is None or draft.siblings != "independent":
            raise ZooError(
                "k-SEQ needs candidates that were drawn independently, with their probabilities; "
                f"this draft's are '{draft.siblings}'"
            )
        walk = _Walk(draft)
        while places := walk.open():
            children = [draft.children(row, node) for row, node in places]
            p = sampler.probs(_at(logits, places)).double()
            q = _at(draft.probs, places).double()
            # a leaf has no candidates: what is left of p is p
            counts = torch.tensor([len(nodes) for nodes in children], device=p.device)
            rule = k_seq(q, p, counts)
            drawn = sampler.draw(rule.residual).tolist()
            for place, (row, _) in enumerate(places):
                for child in children[place]:
                    if sampler.uniform() < float(rule.accept[place, walk.tokens[row][child]]):
                        walk.paths[row].append(child)
                        break
                else:
                    walk.ends[row] = drawn[place]
        return walk.verdicts()


def _child(tree: Tree, node: int, tokens: list[int], token: int) -> int | None:
    """The child of a node that stands for a token."""
    return next((child for child in tree.children[node] if tokens[child] == token), None)


def _follow(tree: Tree, tokens: list[int], best: list[int]) -> Verdict:
    """Walk down from the root to the child with the best token, while there is one."""
    node, path = 0, []
    while (child := _child(tree, node, tokens, best[node])) is not None:
        path.append(child)
        node = child
    return Verdict(path, best[node])


def _normalised(residual: Tensor, fallback: Tensor) -> Tensor:
    """``residual`` with sum 1; if rounding left nothing of it, the rejection was impossible."""
    total = residual.sum()
    return residual / total if total > 0 else fallback


VERIFIERS: dict[str, type[Verifier]] = {
    rule.name: rule for rule in (Greedy, SampleMatch, Typical, Rejection, KSeq)
}


def make_verifier(name: str, **options) -> Verifier:
    """A verifier by name: greedy, sample_match, typical, rejection or k_seq."""
    if name not in VERIFIERS:
        raise ZooError(f"there is no verifier '{name}': expected one of {', '.join(VERIFIERS)}")
    return VERIFIERS[name](**options)
