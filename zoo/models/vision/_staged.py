"""Backbones of several stages on channel-last maps: VMamba and what is built like it."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.precision import at_least_fp32
from zoo.layers.ss2d import Permute
from zoo.models.vision._backbone import Backbone, make_head

#: Where register_backbone finds what it needs in these networks.
PLACES: dict[str, Any] = {
    "head": "classifier.head",
    "first_conv": "patch_embed.0",
    "out_indices": (0, 1, 2, 3),
}


class Stage(nn.Module):
    """Blocks, and the downsampling after them."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


class StagedBackbone(Backbone):
    """Stem, stages and classifier; a subclass makes ``patch_embed`` and calls :meth:`finish`.

    Blocks take and return maps [B, h, w, C]; all methods here take and return maps [B, C, h, w].

    Attributes:
        patch_embed: stem, images [B, in_chans, H, W] to [B, h, w, C].
        min_size: side of the smallest image of which every stage still sees something.
        layers: the stages, a ModuleList.
        classifier: norm, pooling, dropout and head, a Sequential.
        pos_embed: None, or a map [1, C, h, w] that is added after the stem, resized if need be.
    """

    head_name = "classifier.head"
    patch_embed: nn.Module
    layers: Any
    classifier: Any
    min_size: int
    pos_embed: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("pos_embed", None)

    def finish(
        self,
        stages: list[Stage],
        dims: list[int],
        stride: int,
        norm: nn.Module,
        num_classes: int,
        drop_rate: float,
        global_pool: str,
    ) -> None:
        """Take the stages, whose widths are ``dims``, and add the classifier."""
        self.layers = nn.ModuleList(stages)
        self.num_classes = num_classes
        self.num_features = dims[-1]
        self.feature_info = [
            {"module": f"layers.{i}", "num_chs": dim, "reduction": stride * 2**i}
            for i, dim in enumerate(dims)
        ]
        parts = {
            "norm": norm,
            "permute": Permute(0, 3, 1, 2),
            "pool": SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool)),
            "drop": nn.Dropout(drop_rate),
            "head": make_head(dims[-1], num_classes),
        }
        self.classifier = nn.Sequential(OrderedDict(parts))
        self.apply(_init_linear)

    def stream(self, x: Tensor, last: int) -> list[Tensor]:
        """Maps after stages 0 to ``last``, before their downsampling and without a norm."""
        if min(x.shape[2:]) < self.min_size:
            raise ZooError(
                f"images are at least {self.min_size} pixels high and wide for this model, "
                f"not {x.shape[2]}x{x.shape[3]}"
            )
        x = self.patch_embed(x)  # [B, h, w, C]
        if self.pos_embed is not None:
            x = x + resize_map(self.pos_embed, x.shape[1:3]).permute(0, 2, 3, 1)
        maps = []
        for i, stage in enumerate(self.layers[: last + 1]):
            x = self.layers[i - 1].downsample(x) if i > 0 else x
            for block in stage.blocks:
                x = self.run(block, x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to final, normalised features [B, C, h, w]."""
        return self.final_norm(self.stream(x, len(self.layers) - 1)[-1])

    def final_norm(self, x: Tensor) -> Tensor:
        """The classifier's norm on a map [B, C, h, w]."""
        return self.classifier.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features [B, C, h, w] to logits [B, num_classes], or to pooled features [B, C]."""
        x = self.classifier.drop(self.classifier.pool(x))
        return x if pre_logits else self.classifier.head(x)

    def set_pool(self, global_pool: str) -> None:
        """One of avg, max, avgmax, or "" for none."""
        pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.classifier.pool = pool

    def truncate(self, last: int, norm: bool) -> None:
        """Drop the stages after ``last``, and the classifier's norm if ``norm``."""
        self.layers = self.layers[: last + 1]
        self.layers[-1].downsample = nn.Identity()
        if norm:
            self.classifier.norm = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases (the authors decay A and dt)."""
        return {"pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates, by stage (coarse) or by block."""
        by_block = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (99999,)),
            (r"^classifier\.norm", (99999,)),
        ]
        blocks = r"^layers\.(\d+)" if coarse else by_block
        return {"stem": r"^(?:patch_embed|pos_embed)", "blocks": blocks}

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' weights, old and new, to ours: names, 1x1 convolutions, positions."""
        own = self.state_dict()
        remapped = {}
        for key, value in state_dict.items():
            for old, new in _OLD_NAMES:
                key = re.sub(old, new, key)
            if key == "pos_embed" and self.pos_embed is not None:
                value = resize_map(value, self.pos_embed.shape[2:])
            elif key in own and value.dim() == 4 and own[key].dim() == 2:
                value = value.flatten(1)  # a linear layer that was saved as a 1x1 convolution
            remapped[key] = value
        return remapped


#: Names in weights files of early 2024, and the place of a convolution in a wrapper.
_OLD_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^(layers\.\d+\.blocks\.\d+\.op\.conv2d)\.1\.", r"\1."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
)


class OutNorms(StagedBackbone):
    """The dense form of the network that follows in the bases: maps [B, C, h, w], each normalised.

    The norms ``outnorm0`` ... are new: a classification checkpoint lacks them, and loading one
    leaves them as they are and its classifier aside.

    Args:
        out_indices: stages whose maps are returned.
        kwargs: of the network.
    """

    #: There is no classifier for other classes.
    head_names = ()

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "num_classes": 0})  # type: ignore[call-arg]
        self.out_indices = tuple(out_indices)
        norm = type(self.classifier.norm)
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", norm(self.feature_info[i]["num_chs"]))
        del self.classifier

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Images [B, in_chans, H, W] to one map [B, C, h, w] for each of ``out_indices``."""
        maps = self.stream(x, max(self.out_indices))
        return [
            self.get_submodule(f"outnorm{i}")(maps[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for i in self.out_indices
        ]

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """As the network's; a classifier's weights give way to the fresh output norms."""
        remapped = super().remap_state_dict(state_dict)
        classifier = [key for key in remapped if key.startswith("classifier.")]
        for key in classifier:
            del remapped[key]
        if classifier:
            norms = {k: v for k, v in self.state_dict().items() if k.startswith("outnorm")}
            remapped = {**norms, **remapped}
        return remapped


def resize_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map [1, C, h, w] in another size, bicubic."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(at_least_fp32(x), size=tuple(size), mode="bicubic").to(x.dtype)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
