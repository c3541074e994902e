"""How a token is chosen from logits: temperature, top-k, top-p, and the randomness of one run."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError


class Sampler:
    """Turns logits into the distribution that is decoded from, and draws from distributions.

    Args:
        temperature: 0 decodes greedily; then every distribution has all its mass on the best token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens that reach this mass together; 1 keeps all.
        seed: of this run's own generator; None draws one from PyTorch's global generator.
        device: where the draws happen.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
            raise ZooError(
                f"temperature {temperature}, top_k {top_k}, top_p {top_p} were given, expected "
                "temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
            )
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def greedy(self) -> bool:
        """Whether there is nothing to draw."""
        return self.temperature == 0

    def probs(self, logits: Tensor) -> Tensor:
        """Logits ``[..., V]`` -> probabilities after temperature, top-k and top-p, in float32."""
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
        return probs

    def draw(self, probs: Tensor) -> Tensor:
        """One token from each distribution, normalised or not: ``[..., V]`` -> ``[...]``."""
        flat = probs.reshape(-1, probs.shape[-1])
        return torch.multinomial(flat, 1, generator=self.generator).view(probs.shape[:-1])

    def uniform(self) -> float:
        """A number from [0, 1)."""
        device = self.generator.device
        return float(torch.rand((), generator=self.generator, device=device, dtype=torch.float64))
