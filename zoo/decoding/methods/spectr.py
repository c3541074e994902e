"""SpecTr: several independent drafts, of which near-optimal transport keeps the most.

Paper: SpecTr: Fast Speculative Decoding via Optimal Transport (2023, arXiv 2310.15141). One draft
is ordinary speculative sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.decoding.draft_model import DraftModelMethod, trial_draft
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.session import Scores
from zoo.decoding.tree import PADDING, Tree
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError


class _Trie:
    """The drafts of one sequence while they grow; drafts with the same beginning share nodes."""

    def __init__(self, root: int, drafts: int) -> None:
        self.parents, self.tokens, self.draws = [-1], [root], [[]]
        self.at = [0] * drafts  # node that each draft has reached
        self.index: dict[tuple[int, int], int] = {}
        self.place: dict[int, int] = {}  # node -> where the draft model's cache has it

    def extend(self, tokens: Sequence[int]) -> list[int]:
        """Go one token further with every draft; the nodes that are new."""
        fresh = []
        for draft, token in enumerate(tokens):
            node = self.at[draft]
            child = self.index.get((node, token))
            if child is None:
                child = self.index[node, token] = len(self.parents)
                self.parents.append(node)
                self.tokens.append(token)
                self.draws.append([])
                fresh.append(child)
            self.draws[node].append(child)
            self.at[draft] = child
        return fresh


@register_method
class SpecTr(DraftModelMethod):
    """K drafts of L tokens, drawn independently and merged where they begin alike.

    Args:
        draft: see :class:`DraftModelMethod`.
        drafts: K.
        length: L.
    """

    name = "spectr"
    proposer = "K independent drafts of a small model"
    verifier = "k_seq"

    def __init__(self, draft: nn.Module | str | Path, drafts: int = 8, length: int = 4) -> None:
        super().__init__(draft)
        if drafts < 1 or length < 1:
            raise ZooError(f"{drafts} drafts of {length} tokens were asked for: expected 1 or more")
        self.drafts, self.length = drafts, length

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """A copy of the target as its draft model."""
        return {"": cls(trial_draft(target), drafts=4, length=3)}

    def propose(self, run: Run) -> Draft:
        """Level by level: draw for every draft, let the draft model read the new nodes."""
        self._tries = [_Trie(root, self.drafts) for root in run.roots]
        probs = run.sampler.probs(self.catch_up(run).logits)  # [B, 1, V]
        rows = torch.arange(len(self._tries), device=probs.device)[:, None]
        places = torch.zeros(len(self._tries), self.drafts, dtype=torch.long, device=probs.device)
        levels, read = [probs], 0
        for level in range(self.length):
            drawn = run.sampler.draw(probs[rows, places]).tolist()  # [B, K]
            fresh = [trie.extend(row) for trie, row in zip(self._tries, drawn, strict=True)]
            if level + 1 == self.length:
                break
            probs = self._read(run, fresh, read)
            levels.append(probs)
            read += probs.shape[1]
            places = torch.tensor(
                [
                    [nodes.index(node) for node in trie.at]
                    for trie, nodes in zip(self._tries, fresh, strict=True)
                ],
                device=probs.device,
            )
        return self._collect(levels)

    def _read(self, run: Run, fresh: list[list[int]], read: int) -> Tensor:
        """Let the draft model read new nodes; what it says follows each, ``[B, n, V]``."""
        width = max(map(len, fresh))
        tokens, parents = [], []
        for trie, nodes in zip(self._tries, fresh, strict=True):
            for place, node in enumerate(nodes):
                trie.place[node] = read + place
            fill = width - len(nodes)
            tokens.append([*(trie.tokens[node] for node in nodes), *[0] * fill])
            above = [trie.place.get(trie.parents[node], -1) for node in nodes]
            parents.append([*above, *[PADDING] * fill])
        device = run.target.device
        scores = self.grow(
            torch.tensor(tokens, device=device), torch.tensor(parents, device=device)
        )
        return run.sampler.probs(scores.logits)

    def _collect(self, levels: list[Tensor]) -> Draft:
        width = max(len(trie.tokens) for trie in self._tries)
        first = levels[0]
        tokens = torch.zeros(len(self._tries), width, dtype=torch.long, device=first.device)
        probs = first.new_zeros(len(self._tries), width, first.shape[-1])
        read = torch.cat(levels[1:], dim=1) if len(levels) > 1 else first[:, :0]
        for row, trie in enumerate(self._tries):
            tokens[row, : len(trie.tokens)] = torch.tensor(trie.tokens, device=tokens.device)
            probs[row, 0] = first[row, 0]
            nodes, places = list(trie.place), list(trie.place.values())
            probs[row, nodes] = read[row, places]
        trees = [Tree(trie.parents) for trie in self._tries]
        draws = [trie.draws for trie in self._tries]
        return Draft(trees, tokens, probs, draws, siblings="independent")

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Keep what the draft model has read of the accepted paths."""
        self.session.commit(
            [
                [trie.place[node] for node in verdict.path if node in trie.place]
                for trie, verdict in zip(self._tries, verdicts, strict=True)
            ]
        )
