"""What timm's users expect of every backbone, by the small configurations of its fingerprints."""

import copy

import pytest
import torch
from timm.models import group_parameters

import zoo
from tests.models.test_conformance import CASES, built
from zoo.models.vision import _backbone

BACKBONES = [case for case in CASES if zoo.model_info(case.model).adapt is not None]
each = pytest.mark.parametrize("case", BACKBONES, ids=lambda case: case.model)


@each
def test_features(case):
    """features_only gives maps of the widths and strides that feature_info promises."""
    stages = range(len(built(case).feature_info))
    model = zoo.create_model(case.model, features_only=True, out_indices=stages, **case.args)
    images = case.arguments()["x"]
    with torch.no_grad():
        maps = model.eval()(images)
    widths, strides = model.feature_info.channels(), model.feature_info.reduction()
    for features, width, stride in zip(maps, widths, strides, strict=True):
        sides = [-(-side // stride) for side in images.shape[2:]]
        assert features.shape[:2] == (len(images), width)
        # overlapping patches may leave out what is over at the border
        assert all(0 <= a - b <= 2 for a, b in zip(sides, features.shape[2:], strict=True))


@each
def test_what_the_head_takes(case):
    model, images = built(case), case.arguments()["x"]
    with torch.no_grad():
        features = model.forward_features(images)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (len(images), model.num_features)
        torch.testing.assert_close(model.get_classifier()(pooled), model(images))
        last, taken = model.forward_intermediates(images, [-1], norm=True)
        torch.testing.assert_close(last, taken[0])
        model.reset_classifier(3)
        assert model(images).shape == (len(images), 3)
        model.reset_classifier(0)
        assert model(images).shape == (len(images), model.num_features)


@each
def test_recomputation_gives_the_same_gradients(case):
    plain = built(case).train()
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing()
    for model in (plain, recomputed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model(case.arguments()["x"]).square().sum().backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    torch.testing.assert_close({n: p.grad for n, p in recomputed.named_parameters()}, gradients)


@pytest.mark.parametrize(("asked", "training"), [(True, True), (True, False), (False, True)])
def test_recomputation_is_of_training_and_only_if_asked(asked, training, monkeypatch):
    model = built(BACKBONES[0]).train(training)
    model.set_grad_checkpointing(asked)
    calls = []

    def checkpoint(block, *args, use_reentrant):
        calls.append(block)
        return block(*args)

    monkeypatch.setattr(_backbone, "checkpoint", checkpoint)
    model(BACKBONES[0].arguments()["x"])
    assert bool(calls) == (asked and training)


@pytest.mark.parametrize(("flags", "last"), [({}, 3), ({"intermediates_only": True}, 1)])
def test_stages_that_are_computed(flags, last, monkeypatch):
    case = next(case for case in BACKBONES if case.model == "vmamba_tiny")
    model, asked = built(case), []
    stages, stream = len(model.feature_info), model.stream
    monkeypatch.setattr(model, "stream", lambda x, last: asked.append(last) or stream(x, last))
    model.forward_intermediates(case.arguments()["x"], [0, 1], **flags)
    assert asked == [min(last, stages - 1)]


@each
def test_layers_for_layer_wise_rates(case):
    model = built(case)
    groups = group_parameters(model, model.group_matcher())
    assert 0 in groups and len(groups) > 2
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert "pos_embed" in model.no_weight_decay()
