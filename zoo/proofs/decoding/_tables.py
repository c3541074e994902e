"""Language models that are tables: exact, and without training."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.language.unit_language import UnitLanguage


class TableModel(nn.Module):
    """A language model that looks the next token up by the last two.

    Args:
        law: probabilities ``[before, last, next]``.
    """

    def __init__(self, law: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=law.shape[-1], hidden_size=1, num_hidden_layers=0)
        self.log_law = nn.Parameter(law.clamp_min(1e-9).log(), requires_grad=False)

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Logits ``[B, T, V]``."""
        before = input_ids.roll(1, dims=1)
        before[:, 0] = 0
        return SimpleNamespace(logits=self.log_law[before, input_ids])


def unit_table(language: UnitLanguage) -> TableModel:
    """The exact law of plain units, in which the last token says all."""
    size, branches, tail = language.vocab_size, language.branches, language.tail
    law = torch.zeros(size, size)
    law[:, 1 : 1 + branches] = 1.0 / branches  # behind a unit, and behind what never occurs
    for branch in range(branches):
        unit = [1 + branch, *(1 + branches + tail * branch + place for place in range(tail))]
        for last, following in pairwise(unit):
            law[last] = torch.nn.functional.one_hot(torch.tensor(following), size)
    return TableModel(law.expand(size, -1, -1).contiguous())
