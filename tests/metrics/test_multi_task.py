import pytest
import torch
from torch.nn.functional import one_hot

from zoo.losses.multi_task import (
    balanced_label_loss,
    depth_loss,
    edge_loss,
    label_loss,
    normals_loss,
)
from zoo.metrics.multi_task import AngularError, EdgeODS, LabelIoU, MaxF, mean_gain


def logits(labels, classes, sure=20.0):
    return sure * one_hot(labels, classes).movedim(-1, 1).float()


def test_iou_counts_classes_that_never_occur():
    labels = torch.tensor([[[0, 0, 1, 255]]])
    measure = LabelIoU(4)
    measure.update(logits(torch.tensor([[[0, 1, 1, 0]]]), 4), labels)
    torch.testing.assert_close(measure.compute(), torch.tensor((0.5 + 0.5 + 0 + 0) / 4))


def test_max_f():
    target = torch.tensor([[[1, 1, 0, 0, 255]]])
    measure = MaxF()
    measure.update(logits(torch.tensor([[[1, 1, 0, 0, 1]]]), 2), target)
    torch.testing.assert_close(measure.compute(), torch.tensor(1.0))
    measure = MaxF()
    measure.update(logits(torch.tensor([[[1, 1, 1, 1, 1]]]), 2), target)
    torch.testing.assert_close(measure.compute(), torch.tensor(1.3 * 0.5 / (0.15 + 1)))


def test_angles():
    measure = AngularError()
    target = torch.zeros(1, 3, 1, 3)
    target[0, 2, 0, :2] = 1  # the third is unknown
    output = torch.zeros(1, 3, 1, 3)
    output[0, :, 0, 0] = torch.tensor([0.0, 0.0, 5.0])
    output[0, :, 0, 1] = torch.tensor([2.0, 0.0, 0.0])
    measure.update(output, target)
    torch.testing.assert_close(measure.compute(), torch.tensor(45.0))


@pytest.mark.parametrize("vertical", [True, False])
def test_edges_are_thinned_and_may_be_a_pixel_off(vertical):
    truth = torch.zeros(1, 40, 40, dtype=torch.long)
    truth[:, :, 20] = 1
    thick = torch.full((1, 1, 40, 40), -6.0)
    thick[..., 19], thick[..., 20], thick[..., 21] = 0.5, 4.0, 0.5
    far = torch.full((1, 1, 40, 40), -6.0)
    far[..., 30] = 4.0
    scores = []
    for output in (thick, thick.roll(1, -1), far):
        measure = EdgeODS()
        turned = (t if vertical else t.transpose(-1, -2) for t in (output, truth))
        measure.update(*turned)
        scores.append(float(measure.compute()))
    assert scores[0] == 1 and scores[1] > 0.97 and scores[2] == 0


def test_mean_gain():
    gain = mean_gain(
        {"a_miou": 0.55, "b_rmse": 0.9},
        {"a_miou": 0.5, "b_rmse": 1.0},
        {"a_miou": False, "b_rmse": True},
    )
    assert gain == pytest.approx(10.0)


def test_losses_ignore_what_is_unknown():
    labels = torch.tensor([[[0, 1, 255]]])
    wrong_where_unknown = logits(torch.tensor([[[0, 1, 0]]]), 2)
    assert label_loss(wrong_where_unknown, labels) < 1e-6
    assert balanced_label_loss(wrong_where_unknown, labels) < 1e-6
    assert edge_loss(torch.tensor([[[[-20.0, 20.0, 20.0]]]]), labels) < 1e-6
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    target[..., 1] = 0
    output = torch.tensor([0.0, 0.0, 3.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    assert normals_loss(output, target) < 1e-6
    assert depth_loss(torch.tensor([[[[2.0, 5.0]]]]), torch.tensor([[[2.0, 0.0]]])) == 0
    for loss, shape in ((label_loss, (1, 2, 1, 3)), (edge_loss, (1, 1, 1, 3))):
        assert loss(torch.zeros(shape), torch.full((1, 1, 3), 255)) == 0


def test_weights_of_edges_and_of_two_classes():
    even = torch.zeros(1, 1, 1, 2)
    half = torch.tensor(2.0).log()
    torch.testing.assert_close(edge_loss(even, torch.tensor([[[1, 1]]])), 0.95 * half)
    torch.testing.assert_close(edge_loss(even, torch.tensor([[[0, 0]]])), 0.05 * half)
    labels = torch.tensor([[[1, 0, 0, 0]]])
    expected = (0.75 + 3 * 0.25) / 4 * half
    torch.testing.assert_close(balanced_label_loss(torch.zeros(1, 2, 1, 4), labels), expected)
