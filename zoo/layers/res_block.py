"""The residual block of draft heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """``R(x) + SiLU(W x + b)`` (Medusa, arXiv 2401.10774, section 2.1.1).

    Args:
        d_model: width of the output.
        conditions: further vectors of that width which are concatenated to the input (Hydra, arXiv
            2402.05109); R is the identity without any, a linear map with.
        zero_init: start with W = 0, so that a block without conditions is the identity but for the
            bias.
    """

    def __init__(self, d_model: int, conditions: int = 0, zero_init: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model * (conditions + 1), d_model)
        self.res_connection = (
            nn.Linear(d_model * (conditions + 1), d_model) if conditions else nn.Identity()
        )
        if zero_init:
            nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., (conditions + 1) d_model]`` -> ``[..., d_model]``."""
        return self.res_connection(x) + F.silu(self.linear(x))
