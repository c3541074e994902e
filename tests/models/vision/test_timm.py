"""What timm is told of our backbones."""

from types import SimpleNamespace

import pytest
import timm

from zoo.models._catalogue import catalogue
from zoo.models.vision import _timm

USUAL = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@pytest.fixture
def entered(monkeypatch):
    """The functions that are entered into a registry of their own."""
    functions = []
    monkeypatch.setattr(_timm, "default_cfgs", {})
    monkeypatch.setattr(timm.models, "register_model", functions.append)
    return functions


def test_an_entry_builds_its_model_and_is_made_once(entered, monkeypatch):
    calls = []
    info = SimpleNamespace(
        build="builder", adapt=lambda *args, **kwargs: calls.append((args, kwargs)), description="?"
    )
    monkeypatch.setattr(_timm, "model_info", {"one": info}.__getitem__)
    for head in ("fc", "other"):
        _timm.enter("one", head=head, first_conv="stem", crop_pct=0.5)
    assert _timm.default_cfgs == {
        "one": {**USUAL, "first_conv": "stem", "classifier": "fc", "crop_pct": 0.5}
    }
    (function,) = entered
    assert (function.__name__, function.__qualname__, function.__doc__) == ("one", "one", "?")
    function(in_chans=4)
    function(True)
    assert calls == [(("builder", False), {"in_chans": 4}), (("builder", True), {})]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, {}),
        ("https://x.org/w.pth", {"url": "https://x.org/w.pth", "custom_load": True}),
        (
            "hf://owner/name/a/w.pth",
            {"hf_hub_id": "owner/name", "hf_hub_filename": "a/w.pth", "custom_load": "hf"},
        ),
    ],
)
def test_where_weights_are(entered, source, told):
    _timm.enter("vim_tiny", source=source, head="fc", first_conv="stem")
    expected = {**USUAL, "first_conv": "stem", "classifier": "fc", **told}
    assert _timm.default_cfgs["vim_tiny"] == expected


def test_every_backbone_is_entered(entered):
    _timm.enter_all()
    backbones = [e.name for e in catalogue().values() if e.decorator == "register_backbone"]
    assert [function.__name__ for function in entered] == backbones
    assert _timm.default_cfgs["vim_tiny"] == {
        **USUAL,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "hf_hub_id": "hustvl/Vim-tiny-midclstok",
        "hf_hub_filename": "vim_t_midclstok_76p1acc.pth",
        "custom_load": "hf",
    }
