"""Blocks that see all earlier outputs (MambaMixer, arXiv 2403.19888, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class AveragedBlocks(nn.Module):
    r"""Token and channel mixers, each fed a learned sum of what all before it gave (eqs. 8 and 9).

    .. math::
        x = \sum_i \alpha_i y^{(i)}_{Token} + \sum_i \beta_i y^{(i)}_{Channel}, \qquad
        y^{(0)}_{Token} = y^{(0)}_{Channel} = \mathrm{input}

    over the outputs that are there by then; token mixers have :math:`\alpha, \beta`, channel mixers
    :math:`\theta, \gamma`. At first a block sees the last output alone, so that the blocks are a
    plain stack.

    Args:
        token_mixers, channel_mixers: modules [..., C] -> [..., C], with their own skip connection;
            after every len(token_mixers) / len(channel_mixers) of the first comes one of the
            second.
        averaging: False for the plain stack, without weights.
    """

    def __init__(
        self,
        token_mixers: Sequence[nn.Module],
        channel_mixers: Sequence[nn.Module],
        averaging: bool = True,
    ) -> None:
        super().__init__()
        self.token_mixers = nn.ModuleList(token_mixers)
        self.channel_mixers = nn.ModuleList(channel_mixers)
        every = len(token_mixers) // len(channel_mixers) if channel_mixers else 0
        #: (whether it mixes tokens, its number among its like), in order.
        self.order: list[tuple[bool, int]] = []
        for i in range(len(token_mixers)):
            self.order.append((True, i))
            if every and (i + 1) % every == 0:
                self.order.append((False, (i + 1) // every - 1))
        self.weights = nn.ParameterList()
        if averaging:
            seen = [1, 1]  # outputs of channel and of token mixers, the input among both
            last = 0  # among outputs of token mixers, then those of channel mixers
            for mixes_tokens, _ in self.order:
                weights = torch.zeros(sum(seen))
                weights[last] = 1.0
                self.weights.append(nn.Parameter(weights))
                seen[mixes_tokens] += 1
                last = seen[1] - 1 if mixes_tokens else sum(seen) - 1

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Through all blocks; ``args`` go to each."""
        outputs: list[list[Tensor]] = [[x], [x]]  # of channel and of token mixers
        for number, (mixes_tokens, i) in enumerate(self.order):
            mixers = self.token_mixers if mixes_tokens else self.channel_mixers
            if len(self.weights):
                earlier = [*outputs[1], *outputs[0]]
                terms = zip(self.weights[number].unbind(), earlier, strict=True)
                x = torch.stack([weight * y for weight, y in terms]).sum(dim=0)
            x = mixers[i](x, *args)
            outputs[mixes_tokens].append(x)
        return x
