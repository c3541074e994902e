"""Losses against their definitions, written out pixel by pixel or by another library."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit as sigmoid
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import vgg16

from zoo.losses import (
    adversarial,
    counting,
    depth,
    distillation,
    hinge_gan,
    multi_task,
    segmentation,
)
from zoo.losses.lpips import LPIPS
from zoo.losses.vgg import VGG16Layers

IGNORE = 255


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


def labels_with_gaps(rng, classes, shape):
    labels = rng.integers(0, classes, shape)
    return np.where(rng.random(shape) < 0.2, IGNORE, labels)


# label maps


def test_soft_dice(rng):
    logits, target = rng.normal(size=(2, 3, 4, 5)), labels_with_gaps(rng, 3, (2, 4, 5))
    chance = softmax(logits, 1)
    losses = []
    for label in range(3):
        overlap = squares = pixels = 0.0
        for place in np.argwhere(target != IGNORE):
            p = chance[place[0], label, place[1], place[2]]
            truth = float(target[tuple(place)] == label)
            overlap, squares, pixels = overlap + p * truth, squares + p * p, pixels + truth
        losses.append(1 - (2 * overlap + 1e-5) / (squares + pixels + 1e-5))
    found = segmentation.soft_dice_loss(tensor(logits), tensor(target))
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-9)
    other = segmentation.soft_dice_loss(tensor(logits), tensor(target).where(
        tensor(target) != IGNORE, 7), ignore_index=7)  # fmt: skip
    assert other.item() == pytest.approx(found.item(), rel=1e-12)
    # few pixels: the constants count
    one = segmentation.soft_dice_loss(
        torch.full((1, 2, 1, 1), 0.0).double(), torch.zeros(1, 1, 1).long()
    )
    expected = ((1 - (1 + 1e-5) / (1.25 + 1e-5)) + (1 - 1e-5 / (0.25 + 1e-5))) / 2
    assert one.item() == pytest.approx(expected, rel=1e-9)


def jaccard_loss(wrong, truth):
    """1 - IoU if the pixels of ``wrong`` are wrong and the others right."""
    wrong, truth = set(wrong), set(truth)
    return 1 - len(truth - wrong) / len(truth | wrong) if truth | wrong else 0.0


def lovasz(errors, truth):
    """The Lovasz extension of the Jaccard loss at a point, by its definition over sorted sets."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total = 0.0
    for k, i in enumerate(order):
        gain = jaccard_loss(order[: k + 1], truth) - jaccard_loss(order[:k], truth)
        total += errors[i] * gain
    return total


def test_lovasz_hinge(rng):
    logits, target = rng.normal(size=(3, 4, 4)) * 2, labels_with_gaps(rng, 2, (3, 4, 4))
    expected = []
    for one, labels in zip(logits, target, strict=True):
        known = labels != IGNORE
        z, y = one[known], labels[known]
        errors = [max(0.0, 1 - v * (1 if t else -1)) for v, t in zip(z, y, strict=True)]
        expected.append(lovasz(errors, np.flatnonzero(y)))
    found = segmentation.lovasz_hinge(tensor(logits), tensor(target))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_lovasz_softmax(rng):
    logits, target = rng.normal(size=(2, 4, 3, 3)), labels_with_gaps(rng, 3, (2, 3, 3))
    known = target != IGNORE
    chance = np.moveaxis(softmax(logits, 1), 1, -1)[known]
    y = target[known]
    expected = [
        lovasz(np.abs((y == label) - chance[:, label]), np.flatnonzero(y == label))
        for label in np.unique(y)  # class 3 does not occur
    ]
    found = segmentation.lovasz_softmax(tensor(logits), tensor(target))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_known_cross_entropy(rng):
    logits, target = rng.normal(size=(2, 3, 3, 3)), labels_with_gaps(rng, 3, (2, 3, 3))
    known = target != IGNORE
    rows = np.moveaxis(softmax(logits, 1), 1, -1)[known]
    found = segmentation.known_cross_entropy(tensor(logits), tensor(target))
    assert found.item() == pytest.approx(log_loss(target[known], rows, labels=[0, 1, 2]))
    everything = tensor(np.where(known, target, 2))
    found = segmentation.known_cross_entropy(tensor(logits), everything, ignore_index=2)
    rows = np.moveaxis(log_softmax(logits, 1), 1, -1)
    mine = [-rows[tuple(p)][target[tuple(p)]] for p in np.argwhere(known) if target[tuple(p)] < 2]
    assert found.item() == pytest.approx(np.mean(mine))


@pytest.mark.parametrize("width", [1, 3, 5])
def test_boundary_band(rng, width):
    target = np.repeat(np.repeat(rng.integers(0, 3, (2, 3, 4)), 3, 1), 3, 2)
    reach = width // 2
    expected = np.zeros(target.shape, bool)
    for b, y, x in np.ndindex(target.shape):
        window = target[b, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        expected[b, y, x] = len(np.unique(window)) > 1
    found = segmentation.boundary_band(tensor(target), width)
    assert found.dtype == torch.bool and np.array_equal(found.numpy(), expected)


def test_frequency_weights():
    found = segmentation.frequency_weights(torch.tensor([2.0, 5.0, 3.0]))
    expected = [1 / math.log(1.1 + share) for share in (0.2, 0.5, 0.3)]
    assert found.tolist() == pytest.approx(expected)


# several dense tasks


def test_label_loss(rng):
    logits, target = rng.normal(size=(2, 3, 3, 3)), labels_with_gaps(rng, 3, (2, 3, 3))
    known = target != IGNORE
    rows = np.moveaxis(softmax(logits, 1), 1, -1)[known]
    found = multi_task.label_loss(tensor(logits), tensor(target))
    assert found.item() == pytest.approx(log_loss(target[known], rows, labels=[0, 1, 2]))


def test_balanced_label_loss(rng):
    logits, target = rng.normal(size=(2, 2, 4, 4)), labels_with_gaps(rng, 2, (2, 4, 4))
    target[0, :3] = 0
    known = target != IGNORE
    rows, y = np.moveaxis(log_softmax(logits, 1), 1, -1)[known], target[known]
    share = (y == 0).mean()
    expected = [-(share if t else 1 - share) * row[t] for row, t in zip(rows, y, strict=True)]
    found = multi_task.balanced_label_loss(tensor(logits), tensor(target))
    assert found.item() == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("positive", [0.95, 0.7])
def test_edge_loss(rng, positive):
    logits, target = rng.normal(size=(2, 1, 3, 4)), labels_with_gaps(rng, 2, (2, 3, 4))
    known = target != IGNORE
    p, y = sigmoid(logits[:, 0])[known], target[known]
    losses = -np.where(y == 1, positive * np.log(p), (1 - positive) * np.log(1 - p))
    found = multi_task.edge_loss(tensor(logits), tensor(target), positive)
    assert found.item() == pytest.approx(losses.mean())
    if positive == 0.95:
        assert multi_task.edge_loss(tensor(logits), tensor(target)) == found


def test_normals_loss(rng):
    output, target = rng.normal(size=(2, 2, 3, 3, 4))
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    target[0, :, 0], target[1, 1:, 1, 1] = 0, 0  # unknown; known although two parts are 0
    losses = []
    for b, y, x in np.ndindex(2, 3, 4):
        if target[b, :, y, x].any():
            unit = output[b, :, y, x] / np.linalg.norm(output[b, :, y, x])
            losses.append(np.abs(unit - target[b, :, y, x]).sum())
    found = multi_task.normals_loss(tensor(output), tensor(target))
    assert len(losses) == 20 and found.item() == pytest.approx(np.mean(losses))
    assert multi_task.normals_loss(tensor(output), tensor(target * 0)) == 0


def test_depth_loss(rng):
    output, target = rng.normal(size=(2, 1, 3, 4)), rng.random((2, 3, 4)) * 5
    target[0, 1] = 0
    known = target > 0
    found = multi_task.depth_loss(tensor(output), tensor(target))
    assert found.item() == pytest.approx(np.abs(output[:, 0] - target)[known].mean())
    assert multi_task.depth_loss(tensor(output), tensor(target * 0)) == 0


def test_balance_loss(rng):
    taps = []
    expected = 0.0
    for _ in range(2):
        gates = {"a": rng.random((3, 4)), "b": rng.random((3, 4, 2, 2))}
        use = np.concatenate([gates["a"], gates["b"].mean((2, 3))]).mean(0)
        expected += (use.std(ddof=1) / use.mean()) ** 2
        taps.append({name: tensor(values) for name, values in gates.items()})
    assert multi_task.balance_loss(taps).item() == pytest.approx(expected)


# depth and counts


def test_log_depth_loss(rng):
    output, target = rng.random((2, 3, 3, 4)) + 0.5, rng.random((2, 3, 3, 4)) + 0.5
    target[0, 0], target[1, 2, 0] = 0, 0
    losses = []
    for mine, truth in zip(output.reshape(6, -1), target.reshape(6, -1), strict=True):
        if not truth.any():
            continue
        u = np.log(mine[truth > 0]) - np.log(truth[truth > 0])
        losses.append(np.abs(u).mean() + 0.5 * ((u**2).mean() - 0.5 * u.mean() ** 2))
    found = depth.log_depth_loss(tensor(output), tensor(target))
    assert len(losses) == 5 and found.item() == pytest.approx(np.mean(losses))
    tiny = depth.log_depth_loss(torch.tensor([[[0.0]]]), torch.tensor([[[1.0]]]))
    u = math.log(1e-6)  # where the output is cut off
    assert tiny.item() == pytest.approx(-u + 0.25 * u * u, rel=1e-5)
    low = depth.log_depth_loss(torch.tensor([[[1.0]]]), torch.tensor([[[1e-9]]]))
    assert low.item() == pytest.approx(-u + 0.25 * u * u, rel=1e-5)


def test_density_loss(rng):
    density, target, attention = rng.random((3, 2, 1, 3, 4))
    where = rng.integers(0, 2, (2, 1, 3, 4)).astype(float)
    squared = ((density - target) ** 2).sum() / 2
    entropy = -(where * np.log(attention) + (1 - where) * np.log(1 - attention)).sum() / 2
    given = [tensor(x) for x in (density, target, attention, where)]
    assert counting.density_loss(*given[:2], None, given[3]).item() == pytest.approx(squared)
    for weight in (0.1, 2.0):
        found = counting.density_loss(*given, attention_weight=weight)
        assert found.item() == pytest.approx(squared + weight * entropy, rel=1e-6)
    found = counting.density_loss(*given)
    assert found.item() == pytest.approx(squared + 0.1 * entropy, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"stride": 4, "sigma": 3.0, "background_ratio": 0.5}])
def test_bayesian_loss(rng, settings):
    stride, sigma = settings.get("stride", 2), settings.get("sigma", 8.0)
    ratio = settings.get("background_ratio", 1.0)
    density = rng.random((3, 1, 4, 6))
    points = [rng.random((3, 2)) * 20, np.zeros((0, 2)), rng.random((1, 2)) * 20]
    visible = [rng.random(3), np.zeros(0), rng.random(1)]
    sides = [20.0, 30.0, 12.0]
    total = 0.0
    for one, where, share, side in zip(density[:, 0], points, visible, sides, strict=True):
        if not len(where):
            total += abs(one.sum())
            continue
        counts = np.zeros(len(where) + 1)
        for (y, x), value in np.ndenumerate(one):
            centre = np.array([x, y]) * stride + stride / 2
            d = np.linalg.norm(where - centre, axis=1)
            d = np.append(d, ratio * side - d.min())
            likelihood = np.exp(-(d**2) / (2 * sigma**2))
            counts += value * likelihood / likelihood.sum()
        total += np.abs(np.append(share, 0) - counts).sum()
    given = [tensor(density), [tensor(p) for p in points], [tensor(v) for v in visible]]
    found = counting.bayesian_loss(*given, torch.tensor(sides).double(), **settings)
    assert found.item() == pytest.approx(total / 3, rel=1e-6)


# adversarial and perceptual


def test_relativistic_lsgan(rng):
    real, fake = rng.normal(size=(2, 2, 1, 3, 3))
    discriminator = ((real - fake.mean() - 1) ** 2).mean() + ((fake - real.mean() + 1) ** 2).mean()
    generator = ((fake - real.mean() - 1) ** 2).mean() + ((real - fake.mean() + 1) ** 2).mean()
    for expected, which in ((discriminator, False), (generator, True)):
        found = adversarial.relativistic_lsgan(tensor(real), tensor(fake), generator=which)
        assert found.item() == pytest.approx(expected / 2)


def test_hinge_discriminator(rng):
    real, fake = rng.normal(size=(2, 3, 4)) * 2
    expected = np.mean([max(0, 1 - r) for r in real.flat])
    expected += np.mean([max(0, 1 + f) for f in fake.flat])
    found = hinge_gan.hinge_discriminator(tensor(real), tensor(fake))
    assert found.item() == pytest.approx(expected / 2)


def test_adaptive_weight(rng):
    last, a, b = (tensor(rng.normal(size=5)).requires_grad_() for _ in range(3))
    losses = (a.detach() * last).sum(), (b.detach() * last).sum()
    expected = float(a.norm() / (b.norm() + 1e-4))
    weight = hinge_gan.adaptive_weight(*losses, last)
    assert weight.item() == pytest.approx(expected, rel=1e-12) and not weight.requires_grad
    losses[0].backward()  # the graphs are still there
    most = hinge_gan.adaptive_weight((a * last).sum() * 1e6, (b * last).sum() * 0, last)
    assert most == 1e4
    some = hinge_gan.adaptive_weight((a * last).sum() * 1e-3, (b * last).sum() * 0, last)
    assert some.item() == pytest.approx(float(a.norm()) * 1e-3 / 1e-4, rel=1e-6)


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    with torch.no_grad():
        return vgg16(weights=None).double().eval()


def features_of(vgg, image, last):
    """Outputs of the layers of torchvision's features, each by itself."""
    maps = []
    for layer in vgg.features[: last + 1]:
        image = image.clamp(min=0) if isinstance(layer, nn.ReLU) else layer(image)
        maps.append(image.clone())
    return maps


def test_vgg_layers(vgg):
    layers = VGG16Layers(9).double()
    state = vgg.state_dict()
    kept = layers.remap_state_dict(state)
    assert set(kept) == {n for n in state if n.startswith("features.") and int(n.split(".")[1]) < 9}
    layers.load_state_dict(kept)
    image = torch.rand(1, 3, 16, 16).double()
    torch.testing.assert_close(layers.features(image), features_of(vgg, image, 8)[-1])
    assert not any(p.requires_grad for p in layers.parameters())
    assert not any(getattr(m, "inplace", False) for m in layers.features)


def test_vgg_loss(vgg):
    loss = adversarial.VGGLoss().double()
    loss.load_state_dict(loss.remap_state_dict(vgg.state_dict()))
    image, target = torch.rand(2, 2, 3, 32, 32).double() * 2 - 1
    with torch.no_grad():
        content, style = loss(image, target)
        a, b = (features_of(vgg, x, 25) for x in (image, target))
        # relu1_1, 2_1, 3_1, 4_1, 5_1
        expected = sum((a[i] - b[i]).abs().mean() for i in (1, 6, 11, 18, 25))
        torch.testing.assert_close(content, expected)

        def gram(x):
            flat = x.reshape(x.shape[0], x.shape[1], -1)
            return torch.einsum("bin,bjn->bij", flat, flat) / flat[0].numel()

        # relu2_2, 3_3, 4_3, and pool4, conv5_1 and ReLU twice
        block = [features_of_block(vgg, m[25]) for m in (a, b)]
        pairs = [(a[i], b[i]) for i in (8, 15, 22)] + [tuple(block)]
        expected = sum((gram(x) - gram(y)).abs().mean() for x, y in pairs)
        torch.testing.assert_close(style, expected)


def features_of_block(vgg, x):
    return vgg.features[24](vgg.features[23](x)).clamp(min=0)


def test_lpips_is_that_of_torchmetrics():
    torch.manual_seed(0)
    theirs = _LPIPS(net="vgg", pnet_rand=True).double()
    mine = LPIPS().double()
    slices = [getattr(theirs.net, f"slice{i}") for i in range(1, 6)]
    state = {
        f"features.{name}": value for part in slices for name, value in part.state_dict().items()
    }
    mine.load_state_dict(state)
    image, target = torch.rand(2, 3, 3, 32, 32).double() * 2 - 1
    expected = theirs(image, target).flatten()
    torch.testing.assert_close(mine(image, target), expected, rtol=1e-6, atol=1e-12)


# teachers


def test_logit_kl(rng):
    student, teacher = rng.normal(size=(2, 2, 3, 5)) * 2
    mask = np.array([[1, 0, 1], [0, 0, 1]])
    for temperature in (1.0, 3.0):
        p, q = (softmax(x / temperature, -1) for x in (student, teacher))
        each = (q * np.log(q / p)).sum(-1) * temperature**2
        given = tensor(student), tensor(teacher)
        found = distillation.logit_kl(*given, temperature=temperature)
        assert found.item() == pytest.approx(each.mean(), rel=1e-5)
        found = distillation.logit_kl(*given, tensor(mask), temperature)
        assert found.item() == pytest.approx(each[mask == 1].mean(), rel=1e-5)
    assert distillation.logit_kl(*given, tensor(mask * 0)) == 0


def test_masked_mse(rng):
    student, teacher = rng.normal(size=(2, 2, 3, 5))
    mask = np.array([[1, 0, 1], [0, 0, 1]])
    each = ((student - teacher) ** 2).mean(-1)
    given = tensor(student), tensor(teacher)
    assert distillation.masked_mse(*given).item() == pytest.approx(each.mean(), rel=1e-5)
    found = distillation.masked_mse(*given, tensor(mask))
    assert found.item() == pytest.approx(each[mask == 1].mean(), rel=1e-5)
    assert distillation.masked_mse(*given, tensor(mask * 0)) == 0


class Attention(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        setattr(self, name, nn.Linear(6, 4))
        self.name = name

    def forward(self, hidden_states):
        heads = torch.stack([hidden_states * 2, hidden_states - 1], 2)[..., :3]  # [B, L, 2, 3]
        return getattr(self, self.name)(heads.flatten(2))


def test_what_a_tap_sees():
    model = nn.ModuleDict({"a": Attention("o_proj"), "b": Attention("wo"), "c": nn.Linear(4, 4)})
    model["a"].o_proj.extra = nn.Linear(2, 2)  # has no projection of its own
    found = distillation.attention_layers(model)
    assert found == [(model["a"], model["a"].o_proj), (model["b"], model["b"].wo)]
    x = torch.rand(2, 5, 4, requires_grad=True)
    with distillation.tap(found) as tapped:
        first = model["a"](x)
        model["b"](hidden_states=first)
    model["a"](x)  # nothing is recorded any more
    assert len(tapped.inputs) == len(tapped.outputs) == 2
    torch.testing.assert_close(tapped.inputs, [x, first])
    expected = torch.cat([(x * 2)[..., :3], (x - 1)[..., :3]], -1)
    torch.testing.assert_close(tapped.outputs[0], expected)
    assert tapped.outputs[1].shape == (2, 5, 6)
    assert not any(t.requires_grad for t in (*tapped.inputs, *tapped.outputs))
