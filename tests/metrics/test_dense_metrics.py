import numpy as np
import pytest
import torch

from zoo.losses.segmentation import IGNORE
from zoo.metrics.counting import GAME
from zoo.metrics.segmentation import BoundaryF1, ImageIoU, VolumeScores, hausdorff95


def test_iou_of_each_picture():
    target = torch.zeros(3, 4, 4, dtype=torch.long)
    target[0, :2], target[1, :, 0] = 1, 1
    predicted = torch.zeros_like(target)
    predicted[0, 0] = 1  # a half; nothing; both empty
    metric = ImageIoU()
    metric.update(predicted[:1], target[:1])
    metric.update(predicted[1:], target[1:])
    assert metric.compute().item() == pytest.approx((0.5 + 0 + 1) / 3)
    target[0, 1] = IGNORE
    alone = ImageIoU()
    alone.update(predicted[:1], target[:1])
    assert alone.compute() == 1


def test_boundary_f1_looks_at_the_band_alone():
    target = torch.zeros(1, 20, 20, dtype=torch.long)
    target[:, :, 10:] = 1
    predicted = target.clone()
    predicted[:, :, 16:] = 0  # wrong, but far from the boundary
    metric = BoundaryF1(width=5)
    metric.update(predicted, target)
    assert metric.compute() == 1
    predicted[:, :, 10] = 0  # one of the two columns of class 1 in the band
    metric.update(predicted, target)
    assert metric.compute().item() == pytest.approx((1 + 2 / 3) / 2)


def test_hausdorff_distance():
    a, b = np.zeros((2, 20, 20), bool)
    a[5:10, 5:10] = True
    b[5:10, 8:13] = True
    assert hausdorff95(a, a, (1.0, 1.0)) == 0
    assert hausdorff95(a, b, (1.0, 1.0)) == 3
    assert hausdorff95(a, b, (1.0, 2.0)) == 6


def test_volume_scores_and_transunets_rule_for_empty_ones():
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    target[:, :4], target[0, 6] = 1, 2
    predicted = torch.zeros_like(target)
    predicted[:, :2] = 1
    predicted[1, 7] = 3
    metric = VolumeScores(4)
    metric.update(predicted, target)
    # class 1: overlap 32 of 32 + 64; 2: missed, counts 0; 3: made up, counts 1
    scores = metric.compute()
    assert scores["dsc"].item() == pytest.approx((2 * 32 / 96 + 0 + 1) / 3)
    assert scores["hd95"].item() == pytest.approx(2 / 3)


def test_game_does_not_let_cells_cancel():
    target, predicted = torch.zeros(2, 1, 1, 16, 16)
    target[..., 2, 2], predicted[..., 14, 14] = 3.0, 3.0
    for level, expected in ((0, 0.0), (1, 6.0), (2, 6.0)):
        metric = GAME(level)
        metric.update(predicted, target)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-5)
