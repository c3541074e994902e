"""What a language-model task measures besides its loss: decoding with one of the methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zoo.decoding import Acceptance, generate
from zoo.errors import ZooError
from zoo.plots.decoding import acceptance

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class DecodingTest:
    """Decode the beginnings of test samples, with a method and plainly.

    Args:
        method: name of a method of :mod:`zoo.decoding`.
        options: of the method; heads and draft model that the task trains need not be named.
        prompts: number of texts.
        prompt_length: tokens of each prompt.
        new_tokens: tokens of each continuation.
        temperature: 0 decodes greedily.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    prompts: int = 8
    prompt_length: int = 32
    new_tokens: int = 32
    temperature: float = 0.0

    def measure(
        self, model: nn.Module, ids: Tensor, **options: Any
    ) -> tuple[dict[str, float], Figure]:
        """Scores and a picture.

        Args:
            model: the target, in eval mode.
            ids: ``[N, T]``, texts whose beginnings are the prompts.
            options: more options of the method.

        Returns:
            ``tokens_per_step``, ``speed_up`` (against plain decoding, with batch size N) and
            ``same_text`` (1 if greedy decoding gave the text of plain decoding).
        """
        if ids.shape[1] < self.prompt_length:
            raise ZooError(
                f"decoding_test.prompt_length is {self.prompt_length}, but samples have only "
                f"{ids.shape[1]} tokens"
            )
        prompts = ids[: self.prompts, : self.prompt_length]
        common = {
            "max_new_tokens": self.new_tokens,
            "temperature": self.temperature,
            "seed": 0,
            "stop_tokens": (),
        }
        out = generate(model, prompts, self.method, **common, **{**options, **self.options})
        plain = generate(model, prompts, "plain", **common)
        scores = {
            "tokens_per_step": out.tokens_per_step,
            "speed_up": out.tokens_per_second / plain.tokens_per_second,
        }
        if self.temperature == 0:
            scores["same_text"] = float(out.new_tokens == plain.new_tokens)
        title = f"{self.method}: {out.tokens_per_step:.2f} tokens per step"
        return scores, acceptance_figure(out.acceptance, title)


def acceptance_figure(counts: Acceptance, title: str) -> Figure:
    """Acceptance by depth, and which of the siblings it was."""
    return acceptance(*counts.shares(), title)
