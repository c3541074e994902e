"""Training of slots behind a text: PPD's prompt tokens and the maps of hidden transfer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from zoo.decoding.session import AttentionSession
from zoo.errors import ZooError
from zoo.models.decoding._slots import Ahead
from zoo.tasks._scores import Scores
from zoo.tasks.decoding._draft_training import Batch, DraftTraining, next_token_loss
from zoo.tasks.language.language_modeling import masked_mean

#: So many guesses of a slot are counted for the trees.
RANKS = 10


class SlotTraining(DraftTraining):
    """Slots behind a text learn what the language model will say of tokens that are not known yet.

    The accuracies of the first ten guesses of each slot are measured in the test and kept beside
    the head, so that decoding builds its trees from them.

    Args:
        cuts: places of a text behind which slots stand.
        decay: weight of a slot relative to the one before it.
        teacher: ``greedy``: the target's distributions along its own greedy continuation of a cut;
            ``text``: along the text.
        kwargs: see :class:`DraftTraining`.
    """

    def __init__(
        self,
        target: str,
        cuts: int = 16,
        decay: float = 0.8,
        teacher: Literal["greedy", "text"] = "greedy",
        **kwargs: Any,
    ) -> None:
        if cuts < 1:
            raise ZooError(f"model.init_args.cuts is {cuts}, expected 1 or more")
        self.cuts, self.decay, self.teacher = cuts, decay, teacher
        self._right: list[Tensor] = []
        super().__init__(target, **kwargs)

    @abstractmethod
    def behind(self, target: nn.Module, ids: Tensor, cuts: Tensor) -> tuple[Ahead, Tensor]:
        """What the slots behind cuts ``[B, C]`` say, and the head's further loss or 0."""

    @override
    def score_names(self) -> Sequence[str]:
        slots = self.model["head"].slots
        return [f"{name}_head{k}" for k in range(slots) for name in ("acc", "agree")]

    def method_options(self) -> dict[str, Any]:
        """The head."""
        return {"heads": self.eval_model["head"].eval()}

    def losses(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Divergence of each slot from what the target says there."""
        head, target = self.eval_or_train()["head"], self.language_model("target")
        cuts = self._choose_cuts(ids, head.slots)
        said, further = self.behind(target, ids, cuts)
        lm_loss = mask.new_zeros(())
        if self.train_target:
            lm_loss = next_token_loss(said.logits, ids, mask)
        with torch.no_grad():
            teacher = self._teach(target, ids, cuts, said.logits, head.slots)  # [B, C, m, V]
            rows = torch.arange(len(ids), device=ids.device)[:, None]
            counted = mask[rows, cuts + 1] * mask[rows, cuts + 1 + head.slots]  # [B, C]
        total, scores = said.slots.new_zeros(()), {}
        for k in range(head.slots):
            mine, wanted = said.slots[:, :, k].float(), teacher[:, :, k].float()
            apart = F.kl_div(
                mine.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
            ).sum(-1)
            total = total + self.decay**k * masked_mean(apart, counted)
            best, truth = mine.argmax(-1), ids[rows, cuts + 2 + k]
            scores[f"acc_head{k}"] = masked_mean((best == truth).float(), counted)
            scores[f"agree_head{k}"] = masked_mean((best == wanted.argmax(-1)).float(), counted)
        if not self.training:
            ranked = said.slots.topk(min(RANKS, said.slots.shape[-1]), dim=-1).indices
            hit = ranked == teacher.argmax(-1, keepdim=True)
            self._latest = (hit * counted[..., None, None]).sum((0, 1)), counted.sum()
        return lm_loss, total / head.slots + further, scores

    def _choose_cuts(self, ids: Tensor, slots: int) -> Tensor:
        """Places ``[B, C]`` that leave room for all slots: random in training, else even."""
        room = ids.shape[1] - 1 - slots
        if room < 1:
            raise ZooError(
                f"texts of {ids.shape[1]} tokens leave no room for {slots} slots: raise data.length"
            )
        if self.training:
            return torch.randint(room, (len(ids), self.cuts), device=ids.device)
        even = torch.linspace(0, room - 1, min(self.cuts, room), device=ids.device).long()
        return even.expand(len(ids), -1)

    def _teach(
        self, target: nn.Module, ids: Tensor, cuts: Tensor, logits: Tensor, slots: int
    ) -> Tensor:
        """What the target says of the tokens that the slots are about, ``[B, C, m, V]``."""
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        if self.teacher == "text":
            return torch.stack([logits[rows, cuts + 1 + k] for k in range(slots)], dim=2)
        session = AttentionSession(target, len(ids), own=True)
        session.grow(ids, session.chain([ids.shape[1]] * len(ids)))
        token, above, said = logits[rows, cuts].argmax(-1), cuts, []
        for _ in range(slots):
            first = session.parents.shape[1]
            said.append(session.grow(token, above).logits)
            token = said[-1].argmax(-1)
            above = (first + torch.arange(cuts.shape[1], device=ids.device)).expand_as(cuts)
        return torch.stack(said, dim=2)

    def evaluate(self, batch: Batch, scores: Scores) -> None:
        """Measure one batch."""
        super().evaluate(batch, scores)
        if self.trainer.testing:
            self._right.append(torch.cat([self._latest[0].flatten(), self._latest[1][None]]))

    def finish_test(self) -> dict[str, Any]:
        """Keep the accuracies with the head, decode, and export."""
        head = self.eval_model["head"]
        if self._right:  # of this process's share of the texts
            sums = torch.stack(self._right).sum(0)
            table = (sums[:-1] / sums[-1].clamp_min(1)).view(head.slots, -1)
            head.config["accuracy"] = [[round(a, 5) for a in row] for row in table.tolist()]
            self._right = []
        return super().finish_test()
