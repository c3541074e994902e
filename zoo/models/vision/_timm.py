"""The vision backbones in timm's registry, by name: none is imported before it is built.

timm keeps a function for each name, with a configuration that it looks for in that function's
module, which is this one for all of ours.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from zoo.models._catalogue import catalogue
from zoo.models.registry import model_info

#: Where timm finds the configurations.
default_cfgs: dict[str, dict[str, Any]] = {}


def enter_all() -> None:
    """Enter every backbone of this package."""
    for entry in catalogue().values():
        if entry.decorator == "register_backbone":
            told = entry.arguments
            ours = ("parameters", "out_indices")
            enter(entry.name, **{key: told[key] for key in told if key not in ours})


def enter(
    name: str,
    *,
    source: str | None = None,
    head: str,
    first_conv: str,
    **cfg: Any,
) -> None:
    """Enter a model of the zoo into timm's registry, unless it is there.

    Args:
        name: of the model.
        source, head, first_conv, cfg: see
            :func:`zoo.models.vision._backbone.register_backbone`.
    """
    if name in default_cfgs:
        return
    default_cfgs[name] = {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": head,
        **_weights(source),
        **cfg,
    }

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        info = model_info(name)
        assert info.adapt is not None
        return info.adapt(info.build, pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = model_info(name).description
    timm.models.register_model(entry_point)


def _weights(source: str | None) -> dict[str, Any]:
    if source is None:
        return {}
    if source.startswith("hf://"):
        owner, repository, *rest = source.removeprefix("hf://").split("/")
        # "hf": timm downloads the file and leaves the reading to Backbone.load_pretrained.
        where = {"hf_hub_id": f"{owner}/{repository}", "hf_hub_filename": "/".join(rest)}
        return {**where, "custom_load": "hf"}
    return {"url": source, "custom_load": True}
