"""What every vision backbone must do; the tests of each call these."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import zoo


def count(name: str) -> int:
    """Parameters of a variant, built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in zoo.create_model(name).parameters())


def check_training_step(model: nn.Module, images: Tensor) -> None:
    """One step of training changes every parameter, and all stay finite."""
    before = copy.deepcopy(dict(model.named_parameters()))
    logits = model.train()(images)
    loss = nn.functional.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1])
    loss.backward()
    # eps is next to nothing, so that a parameter with however small a gradient moves.
    torch.optim.Adam(model.parameters(), eps=1e-30).step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), f"{name} did not change"


def check_features(name: str, images: Tensor, **tiny: object) -> None:
    """features_only gives maps of the widths and strides that feature_info promises."""
    model = zoo.create_model(name, features_only=True, **tiny).eval()
    with torch.no_grad():
        maps = model(images)
    widths, strides = model.feature_info.channels(), model.feature_info.reduction()
    assert len(maps) == len(widths)
    for features, width, stride in zip(maps, widths, strides, strict=True):
        sides = [-(-side // stride) for side in images.shape[2:]]
        assert features.shape == (len(images), width, *sides)


def check_timm_manners(model: nn.Module, images: Tensor) -> None:
    """Pre-logits, another classifier, recomputation, layer groups."""
    model.eval()
    with torch.no_grad():
        logits = model(images)
        features = model.forward_features(images)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (len(images), model.num_features)
        torch.testing.assert_close(model.get_classifier()(pooled), logits)
        last, taken = model.forward_intermediates(images, [-1], norm=True)
        torch.testing.assert_close(last, taken[0])

    plain, recomputed = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    recomputed.set_grad_checkpointing()
    for m in (plain, recomputed):
        torch.manual_seed(0)
        m(images).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")

    groups = groups_of(model)
    assert 0 in groups and len(groups) > 2
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert "pos_embed" in model.no_weight_decay()

    model.reset_classifier(3)
    assert model(images).shape == (len(images), 3)
    model.reset_classifier(0)
    assert model(images).shape == (len(images), model.num_features)


def groups_of(model: nn.Module) -> dict[int, list[str]]:
    """Layer groups for layer-wise learning rates, as timm makes them."""
    from timm.models import group_parameters

    return group_parameters(model, model.group_matcher())


def check_official_keys(name: str, official: dict[str, tuple[int, ...]]) -> None:
    """Weights with the official names and shapes become exactly the state dict of the variant."""
    with torch.device("meta"):
        model = zoo.create_model(name)
        weights = {key: torch.empty(shape) for key, shape in official.items()}
        remapped = model.remap_state_dict(weights)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in remapped.items()} == expected
    assert len(remapped) == len(official)


def check_autocast(model: nn.Module, images: Tensor, tolerance: float) -> None:
    """Under bfloat16 autocast the logits stay near those of float32, and gradients are finite."""
    model.eval()
    exact = model(images)
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = model(images)
    assert (logits - exact).abs().max() < tolerance * exact.abs().max()
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def check_compile(model: nn.Module, images: Tensor) -> None:
    """One graph without breaks, and the same logits."""
    model.eval()
    compiled: Callable = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
