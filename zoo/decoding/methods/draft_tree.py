"""A dynamic tree from a plain draft model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from zoo.decoding.draft_model import DraftModelMethod, trial_draft
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.session import Scores
from zoo.decoding.tree import best_subtree
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config


@register_method
class DraftTree(DraftModelMethod):
    """The draft model's best continuations as a tree whose shape follows its confidence.

    A beam of ``beam`` nodes per level is grown for ``depth`` levels, and the ``size`` nodes of the
    highest joint probability stay (the dynamic tree of EAGLE-2, arXiv 2406.16858, here over a plain
    draft model).

    Args:
        draft: see :class:`DraftModelMethod`.
        depth: levels below the root.
        beam: nodes of a level that are continued, and candidates for each.
        size: nodes that are verified, besides the root.
    """

    name = "draft_tree"
    proposer = "a small model's most probable tree (as EAGLE-2 grows it)"

    def __init__(
        self, draft: nn.Module | str | Path, depth: int = 5, beam: int = 4, size: int = 24
    ) -> None:
        super().__init__(draft)
        self.depth, self.beam, self.size = depth, beam, size

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """A copy of the target as its draft model."""
        return {"": cls(trial_draft(target))}

    def load(self, model: nn.Module) -> None:
        """Load the draft model; a beam is chosen among the tokens of one position."""
        super().load(model)
        known = min(text_config(m).vocab_size for m in (model, self.draft))
        if not 1 <= self.beam <= known:
            raise ZooError(
                f"option beam of the decoding method 'draft_tree' is {self.beam}, expected 1 to "
                f"{known}, the number of tokens"
            )

    def propose(self, run: Run) -> Draft:
        """Grow level by level, keep the best."""
        logits = self.catch_up(run).logits  # [B, 1, V]
        batch, device = len(run.roots), logits.device
        rows = torch.arange(batch, device=device)[:, None]
        joint = torch.zeros(batch, 1, device=device)  # of the expanded nodes
        above = torch.zeros(batch, 1, dtype=torch.long, device=device)  # their ids
        parents = [torch.full((batch, 1), -1, device=device)]
        tokens = [torch.tensor(run.roots, device=device)[:, None]]
        scores, count = [torch.zeros(batch, 1, device=device)], 1
        self._fed = torch.zeros(
            batch, 0, dtype=torch.long, device=device
        )  # ids of the draft's nodes
        for level in range(self.depth):
            best = logits.float().log_softmax(-1).topk(self.beam, dim=-1)  # [B, e, beam]
            value = (joint[..., None] + best.values).flatten(1)
            parents.append(above.repeat_interleave(self.beam, dim=1))
            tokens.append(best.indices.flatten(1))
            scores.append(value)
            if level + 1 == self.depth:
                break
            chosen = value.topk(self.beam, dim=1).indices.sort(1).values  # [B, beam]
            joint, ids = value[rows, chosen], chosen + count
            # a draft node's parent, by its place among the nodes that the draft has read
            origin = above[rows, chosen // self.beam]
            known = self._fed[:, None] == origin[..., None]  # [B, beam, fed]
            places = torch.arange(known.shape[-1], device=device)
            fed_parents = torch.where(known.any(-1), (known * places).sum(-1), -1)
            logits = self.grow(tokens[-1][rows, chosen], fed_parents).logits
            self._fed = torch.cat([self._fed, ids], dim=1)
            count, above = count + value.shape[1], ids
        grown = [torch.cat(part, dim=1).tolist() for part in (parents, tokens, scores)]
        kept = [best_subtree(p, s, self.size) for p, s in zip(grown[0], grown[2], strict=True)]
        self._kept = [keep for _, keep in kept]
        width = max(map(len, self._kept))
        drafted = torch.zeros(batch, width, dtype=torch.long, device=device)
        for row, keep in enumerate(self._kept):
            drafted[row, : len(keep)] = torch.tensor([grown[1][row][n] for n in keep])
        return Draft([tree for tree, _ in kept], drafted)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Keep what the draft model has read of the accepted paths."""
        paths = []
        for row, verdict in enumerate(verdicts):
            fed = self._fed[row].tolist()
            grown = [self._kept[row][node] for node in verdict.path]
            paths.append([fed.index(node) for node in grown if node in fed])
        self.session.commit(paths)
