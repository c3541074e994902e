"""How a token is chosen from logits: temperature, top-k, top-p, and the randomness of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.errors import ZooError

#: Added to the logit of a token that is decided already.
DECIDED = 1e4


def check_logits(logits: Tensor, whose: str) -> Tensor:
    """Where logits ``[..., V]`` allow no token at all, bool ``[...]``.

    Raises:
        ZooError: NaN or infinity is among them; ``whose`` says who gave them.
    """
    best = logits.amax(-1)  # NaN stays, and so does infinity
    ruled_out = best == -math.inf
    if not (best.isfinite() | ruled_out).all():
        raise ZooError(
            f"the logits of {whose} are NaN or infinite: the weights are broken, or too large for "
            "the precision; try dtype float32 or bfloat16"
        )
    return ruled_out


def decided(logits: Tensor, chosen: Sequence[Sequence[int]]) -> Tensor:
    """Logits ``[B, n, V]`` that leave no choice but these tokens; none are given where
    verification shall choose."""
    if not any(chosen):
        return logits
    logits = logits.float().clone()
    for row, tokens in enumerate(chosen):
        for place, token in enumerate(tokens):
            logits[row, place, token] += DECIDED
    return logits


class Sampler:
    """Turns logits into the distribution that is decoded from, and draws from distributions.

    Args:
        temperature: 0 decodes greedily; then every distribution has all its mass on the best token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens that reach this mass together; 1 keeps all.
        min_p: keep tokens of at least this share of the most probable one's probability.
        seed: of this run's own generator; None draws one from PyTorch's global generator.
        device: where the draws happen.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        # written so that NaN is refused
        if not (0 <= temperature < math.inf and top_k >= 0 and 0 < top_p <= 1 and 0 <= min_p <= 1):
            raise ZooError(
                f"temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p} were "
                "given, expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1"
            )
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def greedy(self) -> bool:
        """Whether there is nothing to draw."""
        return self.temperature == 0

    def probs(self, logits: Tensor) -> Tensor:
        """Logits ``[..., V]`` -> probabilities after temperature, top-k, top-p and min-p, in
        float32."""
        if self.greedy:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        logits = logits.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            worst = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < worst, float("-inf"))
        probs = logits.softmax(-1)
        if self.top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            # a token stays if those before it do not reach the mass yet
            drop = ordered.cumsum(-1) - ordered >= self.top_p
            probs = probs.masked_fill(drop.scatter(-1, order, drop), 0.0)
            probs = probs / probs.sum(-1, keepdim=True)
        if self.min_p > 0:
            few = probs < self.min_p * probs.amax(-1, keepdim=True)
            probs = probs.masked_fill(few, 0.0)
            probs = probs / probs.sum(-1, keepdim=True)
        return probs

    def draw(self, probs: Tensor) -> Tensor:
        """One token from each distribution, normalised or not: ``[..., V]`` -> ``[...]``."""
        flat = probs.reshape(-1, probs.shape[-1])
        return torch.multinomial(flat, 1, generator=self.generator).view(probs.shape[:-1])

    def uniform(self) -> float:
        """A number from [0, 1)."""
        device = self.generator.device
        return float(torch.rand((), generator=self.generator, device=device, dtype=torch.float64))
