import torch

from zoo.losses.depth import log_depth_loss
from zoo.metrics.depth import DepthErrors


def test_errors_of_known_pixels():
    errors = DepthErrors()
    target = torch.tensor([[[2.0, 4.0], [0.0, 10.0]]])
    errors.update(torch.tensor([[[3.0, 4.0], [9.0, 5.0]]]), target)
    result = errors.compute()
    torch.testing.assert_close(result["abs_rel"], torch.tensor((0.5 + 0 + 0.5) / 3))
    torch.testing.assert_close(result["rmse"], torch.tensor((26 / 3) ** 0.5))
    torch.testing.assert_close(result["delta1"], torch.tensor(1 / 3))
    torch.testing.assert_close(result["delta2"], torch.tensor(2 / 3))
    torch.testing.assert_close(result["delta3"], torch.tensor(2 / 3))


def test_alignment_makes_the_scale_of_each_map_not_count():
    errors = DepthErrors(align=True)
    target = torch.rand(3, 4, 5) + 1
    target[:, 0] = 0
    errors.update(target * torch.tensor([0.1, 2.0, 7.0])[:, None, None], target)
    torch.testing.assert_close(errors.compute()["abs_rel"], torch.tensor(0.0), atol=1e-6, rtol=0)


def test_range_of_depth():
    errors = DepthErrors(maximum=5.0)
    errors.update(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 80.0]]]))
    assert errors.compute()["rmse"] == 0


def test_loss_of_logarithms():
    depth, target = torch.tensor([[[2.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])
    u = torch.tensor(2.0).log()
    torch.testing.assert_close(log_depth_loss(depth, target), u + 0.5 * (u**2 - 0.5 * u**2))
    nothing = log_depth_loss(depth.requires_grad_(), torch.zeros(1, 1, 2))
    assert nothing == 0 and nothing.requires_grad
