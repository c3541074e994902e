"""Losses between a student and its teacher, and the tap that shows what a teacher's layers do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.precision import at_least_fp32


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


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student's distribution with the teacher's, mean over all rows.

    As SinKD's authors scale it: both logits are divided by the temperature, and the loss is not
    multiplied by its square. It is the KL divergence plus the teacher's entropy.

    Args:
        student, teacher: logits ``[..., V]``.
        temperature: see above.
    """
    log_p = F.log_softmax(at_least_fp32(student) / temperature, dim=-1)
    return -(F.softmax(at_least_fp32(teacher) / temperature, dim=-1) * log_p).sum(-1).mean()


def annealed_temperature(start: float, epoch: int, epochs: int) -> float:
    """Temperature of an epoch: it falls in equal steps from ``start`` to 1 in the last epoch
    (Annealing Knowledge Distillation, arXiv 2104.07163).

    Args:
        start: of epoch 0.
        epoch: from 0 on.
        epochs: how many there are; a single one stays at ``start``.
    """
    return start - (start - 1) * min(epoch, epochs - 1) / max(epochs - 1, 1)


def divergence(
    student: Tensor,
    teacher: Tensor,
    kind: Literal["kl", "reverse_kl", "js", "tvd"] = "kl",
    temperature: float = 1.0,
) -> Tensor:
    """How far the student's distribution is from the teacher's, mean over all rows.

    Args:
        student, teacher: logits ``[..., V]``.
        kind: ``kl`` from the student to the teacher's; ``reverse_kl``; ``js``, the mean of the KL
            divergences of both from their middle, at most log 2; ``tvd``, half the sum of absolute
            differences, at most 1.
        temperature: divides both logits.
    """
    log_p = F.log_softmax(at_least_fp32(student) / temperature, dim=-1)
    log_q = F.log_softmax(at_least_fp32(teacher) / temperature, dim=-1)
    if kind == "tvd":
        return (log_p.exp() - log_q.exp()).abs().sum(-1).mean() / 2
    if kind == "js":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        return (_kl(log_q, log_m) + _kl(log_p, log_m)) / 2
    return _kl(log_q, log_p) if kind == "kl" else _kl(log_p, log_q)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()


def sinkhorn_plan(cost: Tensor, eps: float = 0.1, iterations: int = 20) -> Tensor:
    r"""Transport plan between two batches of equal weights, by Sinkhorn's iterations in the log
    domain (Cuturi, NeurIPS 2013).

    Starting from :math:`e^{-W / \epsilon}`, rows and then columns are divided by their sums; at
    the end columns sum to 1 exactly and rows nearly. Gradients go through all iterations.

    Args:
        cost: W ``[..., N, N]``.
        eps: weight of the entropy.
        iterations: of both steps.
    """
    log_plan = -cost / eps
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(-1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(-2, keepdim=True)
    return log_plan.exp()


def sinkhorn_distance(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    eps: float = 0.1,
    iterations: int = 20,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    r"""What it costs to move a batch of the student's distributions onto the teacher's (SinKD,
    arXiv 2402.17110).

    .. math::
        W_{ij} = \lVert p_i - q_j \rVert_1, \quad \mathrm{SD} = \sum_{ij} P_{ij} W_{ij}

    with the plan P of :func:`sinkhorn_plan`. The order of the rows has no influence.

    Args:
        student, teacher: logits ``[N, V]``; those of texts are to be flattened over the positions
            that count. (The authors' class takes ``[B, n, V]`` and normalises over positions.)
        temperature: divides both logits.
        eps, iterations: see :func:`sinkhorn_plan`.
        reduction: ``sum``, the authors', grows with the batch; ``mean`` divides by N.
    """
    p = F.softmax(at_least_fp32(student) / temperature, dim=-1)
    q = F.softmax(at_least_fp32(teacher) / temperature, dim=-1)
    cost = torch.cdist(p, q, p=1)  # [N, N], 0..2
    moved = (sinkhorn_plan(cost, eps, iterations) * cost).sum()
    return moved / len(p) if reduction == "mean" else moved


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
