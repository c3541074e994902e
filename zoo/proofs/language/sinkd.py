"""SinKD: what a distance between batches saves when pairs are mixed up; its plan."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from zoo.losses.distillation import (
    sinkhorn_distance,
    sinkhorn_plan,
    soft_cross_entropy,
)
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement

LEARNING = Axes("Pairs mixed up", "training step", "agreement with the teacher")
LIMIT = Axes("Towards the exact assignment", "weight of the entropy", "cost", log="x")
FEATURES, CLASSES, POINTS, HELD_OUT, BATCH = 20, 10, 1000, 2000, 64
TEMPERATURE, ALPHA = 2.0, 0.9


class MixedPairs(Measurement):
    """A linear student learns from a fixed random linear teacher, whose rows are partly shuffled.

    In every batch a share of the teacher's rows is shuffled among themselves: sample by sample the
    student sees wrong partners, the batch as a whole is right. Measures ``agreement`` of the
    likeliest classes, ``sharpness`` (mean probability of the likeliest class) and that of the
    teacher, ``teacher_sharpness``, of points that were held out.

    Args:
        sinkhorn: weight of the distance beside 0.9 KD.
        shuffled: share of the teacher's rows.
        steps: of SGD.
    """

    def __init__(self, sinkhorn: float, shuffled: float = 0.5, steps: int = 800) -> None:
        self.sinkhorn, self.shuffled, self.steps = sinkhorn, shuffled, steps

    def measure(self, seed: int) -> Measured:
        """Train, and look now and then."""
        draw = torch.Generator().manual_seed(seed)
        points = torch.randn(POINTS + HELD_OUT, FEATURES, generator=draw)
        wanted = points @ (1.5 * torch.randn(FEATURES, CLASSES, generator=draw))
        student = nn.Linear(FEATURES, CLASSES)
        nn.init.zeros_(student.weight)
        nn.init.zeros_(student.bias)
        optimizer = torch.optim.SGD(student.parameters(), lr=1.0, momentum=0.9)
        steps, course = [], []
        for step in range(self.steps):
            rows = torch.randint(POINTS, (BATCH,), generator=draw)
            teacher = wanted[rows]
            mixed = torch.randperm(BATCH, generator=draw)[: round(self.shuffled * BATCH)]
            order = mixed[torch.randperm(len(mixed), generator=draw)]
            teacher[mixed] = teacher[order]
            logits = student(points[rows])
            loss = ALPHA * soft_cross_entropy(logits, teacher, TEMPERATURE)
            if self.sinkhorn:
                loss = loss + self.sinkhorn * sinkhorn_distance(logits, teacher, TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 49 or step == self.steps - 1:
                steps.append(step + 1)
                course.append(self._agreement(student, points, wanted))
        with torch.no_grad():
            found = student(points[POINTS:]).softmax(-1).amax(-1).mean()
        values = {
            "agreement": course[-1],
            "sharpness": float(found),
            "teacher_sharpness": float(wanted[POINTS:].softmax(-1).amax(-1).mean()),
        }
        return Measured(values, [Curve(LEARNING, steps, course)])

    @torch.no_grad()
    def _agreement(self, student: nn.Module, points: Tensor, wanted: Tensor) -> float:
        same = student(points[POINTS:]).argmax(-1) == wanted[POINTS:].argmax(-1)
        return float(same.float().mean())


class Plan(Measurement):
    """The transport plan and its distance, for random logits.

    Measures ``columns`` and ``rows``, the largest distance of their sums from 1; ``permuted`` and
    ``permuted_kd``, what another order of the student's rows changes; ``exact``, how far the
    distance is from the cost of the best assignment at a small entropy, relative to it, and
    ``above``, how much higher it is at the paper's entropy and iterations.

    Args:
        batch: rows.
        classes: of the logits.
        eps: the small entropy.
        iterations: at that entropy.
    """

    def __init__(
        self, batch: int = 7, classes: int = 50, eps: float = 0.005, iterations: int = 5000
    ) -> None:
        self.batch, self.classes, self.eps, self.iterations = batch, classes, eps, iterations

    def measure(self, seed: int) -> Measured:
        """Compare with the best assignment."""
        draw = torch.Generator().manual_seed(seed)
        student, teacher = (
            2.5 * torch.randn(2, self.batch, self.classes, generator=draw, dtype=torch.float64)
        ).unbind()
        p, q = ((logits / TEMPERATURE).softmax(-1) for logits in (student, teacher))
        cost = torch.cdist(p, q, p=1)
        plan = sinkhorn_plan(cost)
        best = float(cost[linear_sum_assignment(cost.numpy())].sum())
        weights = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, self.eps]
        found = [float((sinkhorn_plan(cost, eps, self.iterations) * cost).sum()) for eps in weights]
        order = torch.randperm(self.batch, generator=draw)
        paper = sinkhorn_distance(student, teacher)
        change = sinkhorn_distance(student[order], teacher) - paper
        kd = soft_cross_entropy(student, teacher, TEMPERATURE)
        values = {
            "columns": float((plan.sum(0) - 1).abs().max()),
            "rows": float((plan.sum(1) - 1).abs().max()),
            "permuted": float(change.abs()),
            "permuted_kd": float((soft_cross_entropy(student[order], teacher, 2.0) - kd).abs()),
            "exact": abs(found[-1] - best) / best,
            "above": float(paper) / best - 1,
        }
        return Measured(
            values,
            [
                Curve(LIMIT, weights, found),
                Curve(LIMIT, [weights[0], self.eps], [best, best], "exact assignment", "known"),
            ],
        )
