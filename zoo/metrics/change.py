"""Scores of change detection, as ChangeMamba's authors compute them: from one matrix of a whole
test.

What would be 0/0 counts 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

#: Shares of localisation and classification in the overall F1 of building damage.
LOCALISATION, CLASSIFICATION = 0.3, 0.7


class BinaryChangeScores(Metric):
    """Recall, precision, overall accuracy (``oa``), F1, IoU of the change class, and Kappa."""

    full_state_update = False
    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("matrix", torch.zeros(2, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Classes [B, H, W] twice; targets above 1 are not counted."""
        self.matrix += confusion(target, predicted, 2)

    def compute(self) -> dict[str, Tensor]:
        """The six scores in 0..1 (Kappa in -1..1)."""
        matrix = self.matrix.double()
        hit, missed, false = matrix[1, 1], matrix[1, 0], matrix[0, 1]
        recall, precision = ratio(hit, missed + hit), ratio(hit, false + hit)
        return _float(
            recall=recall,
            precision=precision,
            oa=ratio(matrix.trace(), matrix.sum()),
            f1=harmonic_mean(recall, precision),
            iou=ratio(hit, hit + missed + false),
            kappa=kappa(matrix),
        )


class SemanticChangeScores(Metric):
    """Accuracy, F1 (``f_scd``), mean IoU and separated Kappa (``sek``) of from-to classes.

    Classes are 0 for no change and ``(before - 1) * covers + after`` with land covers from 1 on, as
    the benchmark of SECOND counts them. Accuracy is the mean over pictures, the rest is of all
    pixels together.

    Args:
        covers: land covers.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, covers: int = 6) -> None:
        super().__init__()
        self.classes = covers**2 + 1
        zeros = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        self.add_state("matrix", zeros, dist_reduce_fx="sum")
        self.add_state("accuracy", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pictures", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """From-to classes [B, H, W] twice; targets below 0 are not counted."""
        self.matrix += confusion(predicted, target, self.classes)
        valid = target >= 0
        right = (valid & (predicted == target)).sum((1, 2)) / (valid.sum((1, 2)) + 1e-10)
        self.accuracy += right.double().sum()
        self.pictures += len(target)

    def compute(self) -> dict[str, Tensor]:
        """The four scores."""
        matrix = self.matrix.double()  # [predicted, true]
        changed = matrix[1:, 1:].sum()
        false, missed = matrix[1:, 0].sum(), matrix[0, 1:].sum()
        unchanged_iou = ratio(matrix[0, 0], matrix.sum() - changed)
        changed_iou = ratio(changed, changed + false + missed)
        right = matrix.diag()[1:].sum()
        among_changes = matrix.clone()
        among_changes[0, 0] = 0
        return _float(
            oa=ratio(self.accuracy, self.pictures),
            f_scd=harmonic_mean(ratio(right, changed + false), ratio(right, changed + missed)),
            miou=(unchanged_iou + changed_iou) / 2,
            sek=kappa(among_changes) * (changed_iou - 1).exp(),
        )


class DamageScores(Metric):
    """F1 of buildings (``f1_loc``), harmonic mean of the four damage classes' F1 on the pixels of
    true buildings (``f1_clf``), and the overall F1 (``f1``), 0.3 and 0.7 of these."""

    full_state_update = False
    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        for name, classes in (("buildings", 2), ("damages", 5)):
            zeros = torch.zeros(classes, classes, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(
        self, building: Tensor, damage: Tensor, true_building: Tensor, true_damage: Tensor
    ) -> None:
        """Classes [B, H, W]: predicted, then true ones."""
        self.buildings += confusion(true_building, building, 2)
        inside = true_building == 1
        self.damages += confusion(true_damage[inside], damage[inside], 5)

    def compute(self) -> dict[str, Tensor]:
        """The three scores, and the F1 of each damage class."""
        matrix = self.buildings.double()
        hit = matrix[1, 1]
        localisation = harmonic_mean(ratio(hit, matrix[1].sum()), ratio(hit, matrix[:, 1].sum()))
        matrix = self.damages.double()
        hits = matrix.diag()[1:]
        precision = hits / (matrix.sum(0)[1:] + 1e-7)
        recall = hits / (matrix.sum(1)[1:] + 1e-7)
        each = 2 * precision * recall / (precision + recall + 1e-7)
        classification = len(each) / (1 / each).sum()
        names = ("no_damage", "minor", "major", "destroyed")
        return _float(
            f1=LOCALISATION * localisation + CLASSIFICATION * classification,
            f1_loc=localisation,
            f1_clf=classification,
            **{f"f1_{name}": score for name, score in zip(names, each, strict=True)},
        )


def confusion(rows: Tensor, columns: Tensor, classes: int) -> Tensor:
    """How often each pair of classes meets, int64 [classes, classes]; others are left out."""
    known = (rows >= 0) & (rows < classes) & (columns >= 0) & (columns < classes)
    index = rows[known].long() * classes + columns[known].long()
    return index.bincount(minlength=classes**2).view(classes, classes)


def kappa(matrix: Tensor) -> Tensor:
    """Cohen's Kappa of a confusion matrix, float64."""
    total = matrix.sum()
    observed = ratio(matrix.trace(), total)
    expected = ratio(matrix.sum(0) @ matrix.sum(1), total**2)
    return ratio(observed - expected, 1 - expected)


def harmonic_mean(a: Tensor, b: Tensor) -> Tensor:
    """2 a b / (a + b)."""
    return ratio(2 * a * b, a + b)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b; 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / b)


def _float(**scores: Tensor) -> dict[str, Tensor]:
    return {name: score.float() for name, score in scores.items()}
