import pytest
import torch

import zoo
from zoo.losses.hinge_gan import adaptive_weight, hinge_discriminator
from zoo.losses.lpips import LPIPS


def test_lpips(tmp_path):
    torch.manual_seed(0)
    weights = LPIPS().state_dict()
    assert len(weights) == 26 and weights["features.28.weight"].shape == (512, 512, 3, 3)
    path = tmp_path / "vgg16.pth"
    torch.save(weights | {"classifier.6.bias": torch.zeros(1000)}, path)
    distance = LPIPS()
    zoo.load_pretrained(distance, path)
    x, y = (torch.rand(2, 2, 3, 32, 32) * 2 - 1).requires_grad_()
    result = distance(x, y)
    assert result.shape == (2,) and (result > 0).all()
    torch.testing.assert_close(result, distance(y, x))
    assert distance(x, x).abs().max() == 0
    result.sum().backward()
    assert all(not p.requires_grad for p in distance.parameters())


def test_hinge():
    assert hinge_discriminator(torch.tensor([2.0]), torch.tensor([-3.0])) == 0
    assert hinge_discriminator(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_weight_equals_the_sizes_of_gradients():
    last = torch.ones(4, requires_grad=True)
    weight = adaptive_weight((3 * last).sum(), (0.5 * last).sum(), last)
    assert weight == pytest.approx(6.0, rel=1e-3) and not weight.requires_grad
