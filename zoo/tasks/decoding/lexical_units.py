"""Fine-tuning of a language model that says lexical units in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from zoo.data.base import DataModule
from zoo.decoding.methods.lud import look_ahead_token
from zoo.errors import ZooError
from zoo.models.decoding._slots import read_behind
from zoo.models.language._causal_lm import load_causal_lm
from zoo.models.language._protocol import text_config
from zoo.tasks._scores import Scores
from zoo.tasks.language.language_modeling import LanguageModeling, check_vocabulary, masked_mean


def begins(probs: Tensor, alpha: float, k: int) -> Tensor:
    """Where lexical units begin, bool ``[B, T]``.

    A unit is a run of tokens whose probabilities ``[B, T]`` are above alpha, cut into pieces of at
    most k; every other token is a unit of its own.
    """
    sure, found = probs > alpha, torch.ones_like(probs, dtype=torch.bool)
    size = torch.ones_like(probs[:, 0])
    for t in range(1, probs.shape[1]):
        goes_on = sure[:, t] & sure[:, t - 1] & (size < k)
        found[:, t] = ~goes_on
        size = torch.where(goes_on, size + 1, 1)
    return found


class LexicalUnitTraining(LanguageModeling):
    """Lexical Unit Decoding's second training: look-ahead tokens behind a text learn its next
    tokens, inside the units that a language model is sure of.

    The text itself is read as ever, so that one token at a time can be written as before. The test
    measures ``acc_slot1`` and so on, how often the look-ahead tokens inside a unit are right, and
    ``unit_length``.

    Args:
        model: what is trained; see :class:`LanguageModeling`.
        reference: the language model whose probabilities tell the units: a folder or a hub name;
            None: the trained one itself as it is.
        k: longest unit, k - 1 look-ahead tokens.
        alpha: least probability of a unit's tokens.
        pad: the look-ahead token, which ``lud`` finds in the exported model's configuration; by
            default its pad token or the last one.
        branches: beginnings of units in each text behind which look-ahead tokens stand.
        weight: of their loss beside the language model's.
        beyond: weight of look-ahead tokens behind a unit's end, which learn to be unsure.
        kwargs: see :class:`LanguageModeling`.
    """

    def __init__(
        self,
        model: str = "base_lm_small",
        reference: str | None = None,
        k: int = 4,
        alpha: float = 0.9,
        pad: int | None = None,
        branches: int = 8,
        weight: float = 1.0,
        beyond: float = 0.25,
        **kwargs: Any,
    ) -> None:
        if k < 2 or not 0 < alpha < 1 or branches < 1 or weight < 0 or beyond < 0:
            raise ZooError(
                f"model.init_args: k {k}, alpha {alpha}, branches {branches}, weight {weight}, "
                f"beyond {beyond}: expected 2 or more, a share, 1 or more, and no negative weight"
            )
        self.reference_name, self.k, self.alpha, self.pad = reference, k, alpha, pad
        self.branches, self.weight, self.beyond = branches, weight, beyond
        self._reference: list[nn.Module] = []  # no module: it stays out of checkpoints
        super().__init__(model, **kwargs)

    def configure_models(self) -> None:
        """Build or load the language model, and that which tells the units."""
        super().configure_models()
        config = text_config(self.model)
        if self.pad is not None:
            if not 0 <= self.pad < config.vocab_size:
                raise ZooError(
                    f"model.init_args.pad is {self.pad}, expected a token of the model, 0 to "
                    f"{config.vocab_size - 1}"
                )
            config.look_ahead_token_id = self.pad
        self.look_ahead = look_ahead_token(self.model)
        if self.reference_name is not None:
            source: str | Path = self.reference_name
            self._reference.append(load_causal_lm(source).requires_grad_(False))

    def check_data(self, data: DataModule) -> None:
        """Both language models must know the text, which leaves room for a unit."""
        super().check_data(data)
        for model in self._reference:
            check_vocabulary(data, model, "model.init_args.reference")
        if data.length <= self.k:
            raise ZooError(
                f"data.init_args.length is {data.length}, which leaves no room for units of "
                f"{self.k} tokens: raise it"
            )

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Accuracy of each look-ahead token inside units as well."""
        names = (*(f"acc_slot{slot}" for slot in range(1, self.k)), "unit_length")
        return super().configure_metrics(split) | {name: MeanMetric() for name in names}

    def training_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropies of the text and of the look-ahead tokens, each over its own tokens."""
        ids, mask = batch[:2]
        logits, cuts, said, inside = self._look_ahead(ids)
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        loss = masked_mean(losses.view(len(ids), -1), mask[:, 1:])
        truth, counted = self._truth(ids, mask, cuts)
        missed = F.cross_entropy(
            said.flatten(0, 2).float(), truth.flatten(), reduction="none"
        ).view_as(truth)
        counted = counted * torch.where(inside, 1.0, self.beyond)
        return loss + self.weight * (missed * counted).sum() / counted.sum().clamp_min(1e-6)

    def evaluate(self, batch: tuple[Tensor, ...], scores: Scores) -> None:
        """Measure one batch."""
        super().evaluate(batch, scores)
        ids, mask = batch[:2]
        _, cuts, said, inside = self._look_ahead(ids)
        truth, counted = self._truth(ids, mask, cuts)
        right, counted = (said.argmax(-1) == truth).float(), counted * inside
        for slot in range(self.k - 1):
            if (tokens := counted[..., slot].sum()) > 0:
                mean = masked_mean(right[..., slot], counted[..., slot])
                scores[f"acc_slot{slot + 1}"].update(mean, tokens)
        scores["unit_length"].update(1 + inside.sum(-1).float().mean(), len(ids))

    def _look_ahead(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read texts with look-ahead tokens behind some places.

        Returns:
            logits ``[B, T, V]`` of the text; cuts ``[B, C]``, the last tokens before units; logits
            ``[B, C, k - 1, V]`` of the look-ahead tokens, the first of which is about the unit's
            second token; which of them are inside the unit, bool ``[B, C, k - 1]``.
        """
        model = self._current()
        with torch.no_grad():
            reference = self._reference[0].to(self.device) if self._reference else model
            told = reference(input_ids=ids, use_cache=False).logits[:, :-1].float().softmax(-1)
            probs = told.gather(-1, ids[:, 1:, None])[..., 0]  # of tokens 1 to T - 1
            begin = begins(probs, self.alpha, self.k)  # place t: token t + 1 begins a unit
        cuts = self._choose(begin[:, : ids.shape[1] - self.k])
        slots = torch.arange(self.k - 1, device=ids.device)
        read, out = read_behind(
            model,
            ids,
            cuts,
            torch.full_like(slots, self.look_ahead),
            slots,
            slots <= slots[:, None],
        )
        said = out.logits.unflatten(1, (cuts.shape[1], len(slots)))
        following = begin.gather(1, (cuts[..., None] + 1 + slots).flatten(1)).view(*cuts.shape, -1)
        inside = (~following).int().cumprod(-1).bool()
        return read.logits, cuts, said, inside

    def _choose(self, begin: Tensor) -> Tensor:
        """Places ``[B, C]`` before units: drawn in training, else the first ones."""
        count = min(self.branches, begin.shape[1])
        worth = begin.float() + 1e-6  # a text may have less units than are asked for
        if self.training:
            return torch.multinomial(worth, count)
        order = torch.arange(begin.shape[1], device=begin.device)
        return (worth * begin.shape[1] * 2 - order).topk(count, dim=1).indices

    def _truth(self, ids: Tensor, mask: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
        """What look-ahead tokens are about, ``[B, C, k - 1]``, and the mask of it."""
        places = cuts[..., None] + 2 + torch.arange(self.k - 1, device=ids.device)
        rows = torch.arange(len(ids), device=ids.device)[:, None, None]
        return ids[rows, places], mask[rows, places]
