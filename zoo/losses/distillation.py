"""Losses between a student and its teacher, and the tap that shows what a teacher's layers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def logit_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """KL divergence of the student's distribution from the teacher's, mean over tokens (Hinton et
    al., arXiv 1503.02531).

    Args:
        student, teacher: logits ``[..., V]``.
        mask: ``[...]``, 1 for the tokens that count; all by default.
        temperature: divides both logits; the loss is multiplied by its square.
    """
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher.float() / temperature, dim=-1)
    loss = (log_q.exp() * (log_q - log_p)).sum(-1) * temperature**2
    if mask is None:
        return loss.mean()
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of ``[B, L, C]`` in float32, over the tokens of ``mask`` ``[B, L]``."""
    loss = (student.float() - teacher.float()).square().mean(-1)
    if mask is None:
        return loss.mean()
    return (loss * mask).sum() / mask.sum().clamp_min(1)


@dataclass
class Tapped:
    """What :func:`tap` saw, one entry for each layer in order of the calls.

    Attributes:
        inputs: what entered each mixer.
        outputs: what entered its output projection.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def tap(mixers: Sequence[tuple[nn.Module, nn.Module]]) -> Iterator[Tapped]:
    """Record what goes through attention layers while the model runs.

    A student's layer that is compared with these sees the teacher's input, and the teacher's output
    flows on to the next: the layer-wise distillation with teacher forcing of mmMamba's first
    stages.

    Args:
        mixers: the attention layers and their output projections.
    """
    tapped = Tapped()

    def entered(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        tapped.inputs.append((args[0] if args else kwargs["hidden_states"]).detach())

    def projected(module: nn.Module, args: tuple) -> None:
        tapped.outputs.append(args[0].detach().flatten(2))

    handles = [mixer.register_forward_pre_hook(entered, with_kwargs=True) for mixer, _ in mixers]
    handles += [projection.register_forward_pre_hook(projected) for _, projection in mixers]
    try:
        yield tapped
    finally:
        for handle in handles:
            handle.remove()


def attention_layers(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Attention layers of a decoder and their output projections, in order.

    Layers are found by the names of their projections: ``wo`` (InternLM2) or ``o_proj`` (Llama and
    most others of transformers).
    """
    found = []
    for module in model.modules():
        for name in ("wo", "o_proj"):
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Linear):
                found.append((module, projection))
    return found
