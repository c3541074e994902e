import math

import pytest
import torch

from zoo.losses.adversarial import VGGLoss, relativistic_lsgan
from zoo.losses.counting import bayesian_loss, density_loss
from zoo.losses.segmentation import (
    IGNORE,
    boundary_band,
    frequency_weights,
    lovasz_hinge,
    soft_dice_loss,
)


def test_soft_dice():
    target = torch.tensor([[[0, 1], [2, IGNORE]]])
    right = torch.full((1, 3, 2, 2), -50.0)
    right[0, [0, 1, 2, 0], [0, 0, 1, 1], [0, 1, 0, 1]] = 50.0
    assert soft_dice_loss(right, target) < 1e-4
    wrong = right.roll(1, dims=1)
    assert soft_dice_loss(wrong, target) > 0.99
    moved = right.clone()
    moved[..., 1, 1] = torch.tensor([-50.0, 50.0, -50.0])
    assert torch.equal(soft_dice_loss(right, target), soft_dice_loss(moved, target))


def test_lovasz_hinge_of_one_wrong_pixel_is_its_share_of_the_union():
    target = torch.tensor([[[1, 1, 1, 0]]])
    # one missed pixel, hinge error 2, weighted by the loss of IoU that it causes: 1/3
    logits = torch.tensor([[[5.0, 5.0, -1.0, -5.0]]])
    assert lovasz_hinge(logits, target).item() == pytest.approx(2 / 3)
    assert lovasz_hinge(logits * torch.tensor([1.0, 1.0, -1.0, 1.0]), target) == 0
    ignored = torch.tensor([[[1, 1, IGNORE, 0]]])
    assert lovasz_hinge(logits, ignored) == 0


def test_boundary_band():
    target = torch.zeros(1, 9, 9, dtype=torch.long)
    target[:, :, 5:] = 1
    band = boundary_band(target, 3)
    assert band[0].any(0).tolist() == [False] * 4 + [True] * 2 + [False] * 3


def test_frequency_weights():
    weights = frequency_weights(torch.tensor([90.0, 10.0]))
    assert weights.tolist() == pytest.approx([1 / math.log(2.0), 1 / math.log(1.2)])


def test_density_loss():
    density, target = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert density_loss(density, target, None, target) == 16
    half = torch.full_like(target, 0.5)
    with_attention = density_loss(density, target, half, target, attention_weight=0.1)
    assert with_attention.item() == pytest.approx(16 + 1.6 * math.log(2))


def test_bayesian_loss():
    """Right density on the heads costs nothing; anything else what it misses."""
    points = [torch.tensor([[9.0, 9.0], [41.0, 25.0]]), torch.zeros(0, 2)]
    targets, sides = [torch.ones(2), torch.zeros(0)], torch.tensor([64.0, 64.0])
    density = torch.zeros(2, 1, 32, 32)
    density[0, 0, 4, 4] = density[0, 0, 12, 20] = 1
    assert bayesian_loss(density, points, targets, sides) < 1e-3
    assert bayesian_loss(density * 0, points, targets, sides).item() == pytest.approx(1.0)
    # a picture without heads: its whole count is an error
    density[1] = 0.01
    assert bayesian_loss(density, points, targets, sides).item() == pytest.approx(5.12, abs=1e-3)
    # far from all heads belongs to the background, whose target is none
    density = torch.zeros(2, 1, 32, 32)
    density[0, 0, 31, 0] = 1
    far = [torch.tensor([[63.0, 1.0]]), torch.zeros(0, 2)]
    loss = bayesian_loss(density, far, [torch.ones(1), torch.zeros(0)], sides)
    assert loss.item() == pytest.approx(1.0, abs=1e-3)


def test_relativistic_loss():
    real, fake = torch.full((2, 1, 2, 2), 1.0), torch.zeros(2, 1, 2, 2)
    assert relativistic_lsgan(real, fake, generator=False) == 0
    assert relativistic_lsgan(real, fake, generator=True) == 4
    assert relativistic_lsgan(fake, real, generator=True) == 0


def test_vgg_distances():
    torch.manual_seed(0)
    loss = VGGLoss()
    assert not any(p.requires_grad for p in loss.parameters())
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert [float(d.detach()) for d in loss(image, image.detach())] == [0, 0]
    content, style = loss(image, torch.rand(1, 3, 32, 32))
    (gradient,) = torch.autograd.grad(content + 100 * style, image)
    assert content > 0 and style > 0 and gradient.any()
