"""What all vision backbones share: their places in this zoo's and in timm's registry, and timm's
manners.

After ``import zoo``, ``timm.create_model("vmamba_tiny", features_only=True)`` works like any model
of timm, and so do ``forward_features``, ``reset_classifier``, layer decay and gradient
checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.checkpoints import load_pretrained
from zoo.errors import ZooError
from zoo.models.registry import register_model
from zoo.models.vision._timm import enter

Variant = Callable[..., "Backbone"]


class Backbone(nn.Module):
    """Base of the vision backbones; a subclass sets the attributes and writes the methods named
    here.

    Attributes:
        num_classes: outputs of the classifier, 0 for none.
        num_features: channels of the features before it (``head_hidden_size`` is the same).
        feature_info: channels and stride of every map that :meth:`forward_intermediates` can
            return.
        grad_checkpointing: recompute the blocks in the backward pass instead of storing them.
    """

    num_classes: int
    num_features: int
    feature_info: list[dict[str, Any]]
    grad_checkpointing: bool = False

    @property
    def head_hidden_size(self) -> int:
        """Channels of the features that the classifier takes."""
        return self.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to final, normalised features."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits [B, num_classes], or to pooled features [B, num_features]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def stream(self, x: Tensor, last: int) -> list[Tensor]:
        """Maps [B, C, h, w] after stages (or layers) 0 to ``last``."""
        raise NotImplementedError

    def final_norm(self, x: Tensor) -> Tensor:
        """The network's last norm, on a map [B, C, h, w]."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps [B, C, h, w] after the stages ``indices`` (all if None, the last n if an
        int).

        Args:
            x: images [B, in_chans, H, W].
            indices: which of :attr:`feature_info`.
            norm: apply the final norm to the maps that are as wide as the last.
            stop_early: do not compute what comes after the last of ``indices``.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the maps alone, not (final features, maps).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ZooError(f"output_fmt is NCHW or NHWC, not {output_fmt}")
        stages = len(self.feature_info)
        take, last = feature_take_indices(stages, indices)
        maps = self.stream(x, last if stop_early or intermediates_only else stages - 1)
        width = self.feature_info[-1]["num_chs"]
        taken = [maps[i] for i in take]
        if norm:
            taken = [self.final_norm(m) if m.shape[1] == width else m for m in taken]
        if output_fmt == "NHWC":
            taken = [m.permute(0, 2, 3, 1) for m in taken]
        return taken if intermediates_only else (self.final_norm(maps[-1]), taken)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | None = None,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last of ``indices``; and the final norm, and the classifier."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        self.truncate(last, prune_norm)
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def truncate(self, last: int, norm: bool) -> None:
        """Drop the stages (or layers) after ``last``, and the final norm if ``norm``."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.get_submodule(self.head_name)

    #: Path of the last linear layer in the module.
    head_name = "head"

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a fresh classifier (none for 0 classes), and another pooling if given."""
        if global_pool is not None:
            self.set_pool(global_pool)
        self.num_classes = num_classes
        parent, _, name = self.head_name.rpartition(".")
        weight = next(self.parameters())
        head = make_head(self.num_features, num_classes).to(weight.device, weight.dtype)
        setattr(self.get_submodule(parent), name, head)

    def set_pool(self, global_pool: str) -> None:
        """Choose how features are pooled before the classifier."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: see :attr:`grad_checkpointing`."""
        self.grad_checkpointing = enable

    def run(self, block: nn.Module, *args: Any) -> Any:
        """``block(*args)``, with recomputation in the backward pass if that is switched on."""
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' weight names (and shapes) to ours; names that agree stay as they are."""
        return state_dict

    def load_pretrained(self, path: str) -> None:
        """Load a weights file; timm calls this with what it has downloaded."""
        load_pretrained(self, path)


def register_backbone(
    *,
    source: str | None = None,
    parameters: int | None = None,
    head: str,
    first_conv: str,
    out_indices: int | tuple[int, ...],
    **cfg: Any,
) -> Callable[[Variant], Variant]:
    """Enter a function that builds a :class:`Backbone` into this zoo's registry and into timm's.

    In this package all arguments are constants; see :mod:`zoo.models._catalogue`.

    Args:
        source: the authors' weights: a URL or ``hf://owner/name/file``; None if not published.
        parameters: how many it has.
        head: path of the classifier's linear layer in the module.
        first_conv: path of the first convolution.
        out_indices: the maps that ``features_only=True`` returns if none are named.
        cfg: entries of timm's ``pretrained_cfg`` that differ from the usual ones.
    """

    def decorate(variant: Variant) -> Variant:
        name = variant.__name__

        def adapt(build: Variant, pretrained: bool = False, **kwargs: Any) -> nn.Module:
            return build_model_with_cfg(
                build,
                name,
                pretrained,
                feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
                pretrained_filter_fn=_remap,
                **kwargs,
            )

        register_model(source=source, parameters=parameters, adapt=adapt)(variant)
        enter(name, source=source, head=head, first_conv=first_conv, **cfg)
        return variant

    return decorate


def _remap(state_dict: dict[str, Any], model: Backbone) -> dict[str, Tensor]:
    """Weights that were handed to timm directly, perhaps still in the authors' wrapping."""
    for key in ("model", "state_dict"):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]
    return model.remap_state_dict(state_dict)


def make_head(num_features: int, num_classes: int) -> nn.Module:
    """A linear classifier with small initial weights; the identity if there are no classes."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def drop_path_rates(drop_path_rate: float, depth: int) -> list[float]:
    """Stochastic-depth rates of ``depth`` blocks, rising linearly from 0."""
    return np.linspace(0, drop_path_rate, depth).tolist()
