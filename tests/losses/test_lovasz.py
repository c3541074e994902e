import torch
from torch.nn.functional import cross_entropy

from zoo.losses.segmentation import known_cross_entropy, lovasz_hinge, lovasz_softmax


def sure(labels, classes):
    """Logits of which the softmax is one-hot."""
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1) * 200.0


def test_lovasz_of_hard_predictions_is_one_minus_iou():
    generator = torch.Generator().manual_seed(0)
    mine, truth = torch.randint(0, 3, (2, 2, 8, 8), generator=generator)
    truth[0, :2] = 255
    known = truth != 255
    ious = []
    for label in range(3):
        a, b = (mine == label) & known, truth == label
        ious.append((a & b).sum() / (a | b).sum())
    torch.testing.assert_close(lovasz_softmax(sure(mine, 3), truth), 1 - torch.stack(ious).mean())


def test_classes_that_do_not_occur_do_not_count():
    truth = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert lovasz_softmax(sure(truth, 5), truth) == 0
    assert lovasz_softmax(sure(truth + 1, 5), truth) == 1


def test_of_two_classes_hinge_and_softmax_agree_on_hard_predictions():
    generator = torch.Generator().manual_seed(1)
    mine, truth = torch.randint(0, 2, (2, 1, 8, 8), generator=generator)
    hinge = lovasz_hinge(mine * 4.0 - 2, truth)  # errors of 0 or 3
    hits = ((mine == 1) & (truth == 1)).sum()
    union = ((mine == 1) | (truth == 1)).sum()
    torch.testing.assert_close(hinge / 3, 1 - hits / union)


def test_nothing_known_is_no_loss():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    nothing = torch.full((2, 4, 4), 255)
    loss = lovasz_softmax(logits, nothing) + known_cross_entropy(logits, nothing)
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    some = nothing.clone()
    some[0] = 1
    torch.testing.assert_close(
        known_cross_entropy(logits, some), cross_entropy(logits, some, ignore_index=255)
    )
