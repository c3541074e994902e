"""One token per pass: what every other method is measured against."""

from __future__ import annotations

import torch

from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft


@register_method
class Plain(Method):
    """Propose nothing."""

    name = "plain"
    proposer = "nobody"

    def propose(self, run: Run) -> Draft:
        """The roots alone."""
        tokens = torch.tensor(run.roots, device=run.target.device)[:, None]
        return Draft([Tree.root()] * len(run.roots), tokens)
