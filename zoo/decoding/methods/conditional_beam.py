"""Beam search for the likeliest text that has an attribute, and the exact search beside it.

Paper: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(Yoshida, thesis, 2023, arXiv 2408.16241), chapter published as MAP's not dead yet (ACL 2024, arXiv
2311.08817). No code was published. The text is not the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.decoding.attributes import find_attribute
from zoo.decoding.beam import Found, Judge, search
from zoo.decoding.exact_search import find_mode
from zoo.decoding.heads import head_for
from zoo.decoding.method import Need, Run, register_method
from zoo.decoding.methods.beam import Beam, mean_log_prob
from zoo.decoding.session import Scores
from zoo.errors import ZooError
from zoo.models.decoding.conditional_beam import AttributeHead


@register_method
class ConditionalBeam(Beam):
    """``argmax_x p(x | A)``: prefixes are pruned by ``log p(prefix) + log q(A | prefix)``.

    Finished texts must have the attribute, and the likeliest of them is kept. If no finished text
    has it, the likeliest is kept all the same, and ``satisfied`` in the report says so.

    Args:
        heads: the trained head, or the folder it is in.
        attribute: what is asked of a text: ``non_empty``, ``length=N``, ``varied=N``, ``complete``;
            by default what the head was trained for.
        width: texts that are followed at once; twice as many are read.
    """

    name = "conditional_beam"
    proposer = "nobody: the likeliest text with an attribute is looked for"
    needs = (Need("heads", "--heads"),)
    hidden_layer = -1

    def __init__(
        self,
        heads: AttributeHead | str | Path,
        attribute: str | None = None,
        width: int = 5,
    ) -> None:
        super().__init__(width)
        self.heads = heads
        self._asked = attribute
        if attribute is not None:
            find_attribute(attribute)

    def load(self, model: nn.Module) -> None:
        """Load the head."""
        self.heads = head_for((AttributeHead,), AttributeHead.for_target, self.heads, model)
        trained = self.heads.attribute
        self.attribute = find_attribute(self._asked or trained)
        if self.attribute.name != trained.partition("=")[0]:
            raise ZooError(
                f"the head was trained for the attribute {trained!r}, {self._asked!r} was asked "
                "for: give the head that was trained for it"
            )

    def _promise(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        written = torch.tensor(lengths, device=hidden.device)
        return self.heads.log_promise(hidden, self.attribute.number - written).cpu()

    def search(self, run: Run, first: Scores) -> list[list[Found]]:
        """Follow several texts, and read those that might replace them."""
        judge = Judge(self._promise, self.attribute.holds)
        self._session = run.target
        return [[found] for found in search(run, first, self.width, judge)]

    def report(self) -> dict[str, float]:
        """The share of texts that have the attribute as well."""
        return super().report() | {"satisfied": satisfied(self.found)}


def satisfied(found: list[list[Found]]) -> float:
    """Share of the best texts that are as they were asked to be."""
    return sum(texts[0].holds for texts in found) / max(len(found), 1)


@register_method
class ExactMode(Beam):
    """The likeliest text of all, or of all that have an attribute, by depth-first search.

    A prefix is given up when it is less likely than the best finished text, for it only becomes
    less likely. For short texts and peaked distributions.

    Args:
        attribute: what is asked of a text, see :class:`ConditionalBeam`; None: nothing.
        nodes: most prefixes that the target reads for a sequence; where the search has not ended by
            then, the best so far is kept, and ``proved`` in the report is below 1.
    """

    name = "exact_mode"
    proposer = "nobody: the likeliest text is searched for, depth first"

    def __init__(self, attribute: str | None = None, nodes: int = 2000) -> None:
        super().__init__()
        if nodes < 1:
            raise ZooError(f"option nodes of '{self.name}' is {nodes}, expected 1 or more")
        self.attribute = None if attribute is None else find_attribute(attribute)
        self.nodes = nodes

    def search(self, run: Run, first: Scores) -> list[list[Found]]:
        """Search depth first."""
        self._session = run.target
        best, self._proved = find_mode(run, first, self.attribute, self.nodes)
        return [[found] for found in best]

    def report(self) -> dict[str, float]:
        """The shares of texts that have the attribute and of searches that ended."""
        return {
            "log_prob": mean_log_prob(self.found),
            "passes": self._session.calls,
            "tokens_read": self._session.tokens,
            "satisfied": satisfied(self.found),
            "proved": sum(self._proved) / max(len(self._proved), 1),
        }
