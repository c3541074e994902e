"""Mask R-CNN: objects, their boxes and outlines, over any backbone (He et al., ICCV 2017, arXiv
1703.06870), as VMamba is evaluated on COCO.

Pyramid, proposals and heads are torchvision's, in the sizes of MMDetection's configuration: five
levels of 256 channels, a box head of two layers of 1,024, a mask head of four convolutions. Without
masks it is Faster R-CNN. Where torchvision computes something else than MMDetection, whose
checkpoints load as they are, :mod:`zoo.models.vision._detection` replaces it: on random weights the
boxes, scores and masks equal those of mmdet 3.3.0. The losses are torchvision's (smooth L1).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from zoo.errors import ZooError
from zoo.models.registry import register_model
from zoo.models.vision._adapter import AdaptedMaps
from zoo.models.vision._detection import Anchors, Regions, Scaling, from_mmdetection
from zoo.models.vision.upernet import FeatureMaps

#: Cells of a region of interest, per side, in the box head and in the mask head.
_REGION, _MASK_REGION = 7, 14


class MaskRCNN(nn.Module):
    """Backbone, feature pyramid, proposals, box head and mask head.

    ``forward``: a list of pictures [3, H, W] in 0..1, of any sizes -> a list of dictionaries:
    ``boxes`` [N, 4] (left, top, right, bottom in pixels), ``labels`` [N] from 0, ``scores`` [N],
    best first, and ``masks`` [N, H, W] in 0..1. With a list of targets (``boxes``, ``labels``,
    ``masks`` [N, H, W] of 0 and 1) while training: a dictionary of losses.

    Args:
        backbone: name of a vision backbone, of this zoo or of timm.
        backbone_args: its arguments; ``out_indices`` chooses the maps.
        num_classes: of objects, without background.
        masks: outlines too; else boxes alone.
        channels: of the pyramid.
        head_channels: of the box head's layers; the mask head has a quarter.
        anchor_side: of the smallest anchors, in pixels of the scaled picture; each level doubles.
        short_side, long_side: pictures are scaled to the first, but not beyond the second.
        proposals: that the first stage hands to the second, of each picture.
        regions: of these, that the heads train on.
        detections: at most so many objects in a picture.
        out_norms: a LayerNorm on each map of the backbone, as the Mamba backbones' authors have it.
        adapter: arguments of :class:`zoo.models.vision._adapter.AdaptedMaps`, which makes maps of
            four strides of PlainMamba's one; None for the backbone's own maps.
        conv_norm: BatchNorm in the pyramid and in the box head's convolutions.
        box_convs, box_layers: convolutions and then layers of the box head.
    """

    def __init__(
        self,
        backbone: str = "vmamba_tiny",
        backbone_args: dict[str, Any] | None = None,
        num_classes: int = 80,
        masks: bool = True,
        channels: int = 256,
        head_channels: int = 1024,
        anchor_side: int = 32,
        short_side: int = 800,
        long_side: int = 1333,
        proposals: int = 1000,
        regions: int = 512,
        detections: int = 100,
        out_norms: bool = True,
        adapter: dict[str, Any] | None = None,
        conv_norm: bool = False,
        box_convs: int = 0,
        box_layers: int = 2,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ZooError(f"num_classes is {num_classes}, expected 1 or more kinds of objects")
        self.num_classes, self.masks = num_classes, masks
        if box_layers < 1 or (box_convs == 0 and box_layers != 2):
            raise ZooError(
                f"box_layers is {box_layers}, expected 2, or 1 or more after box_convs convolutions"
            )
        maps: FeatureMaps | AdaptedMaps
        if adapter is None:
            maps = FeatureMaps(backbone, out_norms, **(backbone_args or {}))
        else:
            maps = AdaptedMaps(backbone, **adapter, **(backbone_args or {}))
        norm = nn.BatchNorm2d if conv_norm else None
        pyramid = Pyramid(maps, channels, norm)
        box_head: nn.Module = TwoMLPHead(channels * _REGION**2, head_channels)
        if box_convs:
            box_head = FastRCNNConvFCHead(
                (channels, _REGION, _REGION),
                [channels] * box_convs,
                [head_channels] * box_layers,
                norm,
            )
        shared: dict[str, Any] = {
            "rpn_anchor_generator": Anchors(
                pyramid.strides,
                [[anchor_side * 2**i] for i in range(len(pyramid.strides))],
                (0.5, 1.0, 2.0),
            ),
            "box_roi_pool": Regions(pyramid.strides[:-1], _REGION),
            "box_head": box_head,
            "box_predictor": FastRCNNPredictor(head_channels, num_classes + 1),
            "rpn_post_nms_top_n_train": proposals,
            "rpn_post_nms_top_n_test": proposals,
            "box_batch_size_per_image": regions,
            "box_detections_per_img": detections,
        }
        if masks:
            width = head_channels // 4
            shared["mask_roi_pool"] = Regions(pyramid.strides[:-1], _MASK_REGION)
            shared["mask_head"] = MaskRCNNHeads(channels, (width,) * 4, 1)
            shared["mask_predictor"] = MaskRCNNPredictor(width, width, num_classes + 1)
        self.detector = (TorchvisionMaskRCNN if masks else FasterRCNN)(pyramid, **shared)
        self.detector.transform = Scaling(
            short_side, long_side, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        )

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Pictures -> objects, or losses."""
        if targets is not None:  # its class 0 is background
            targets = [target | {"labels": target["labels"] + 1} for target in targets]
        output = self.detector(images, targets)
        if isinstance(output, dict):
            return output
        return [self._found(objects) for objects in output]

    def _found(self, objects: dict[str, Tensor]) -> dict[str, Tensor]:
        found = objects | {"labels": objects["labels"] - 1}
        if self.masks:
            found["masks"] = objects["masks"][:, 0]
        return found

    @property
    def encoder(self) -> FeatureMaps | AdaptedMaps:
        """The backbone."""
        return self.detector.backbone.maps

    @property
    def head_names(self) -> tuple[str, ...]:
        """The classifiers, which a checkpoint may lack for other classes."""
        heads = ("box_predictor.cls_score", "box_predictor.bbox_pred")
        if self.masks:
            heads += ("mask_predictor.mask_fcn_logits",)
        return tuple(f"detector.roi_heads.{head}" for head in heads)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """MMDetection's names to ours, the backbone's as its authors have them."""
        if not any(key.startswith("rpn_head.") for key in state_dict):
            return state_dict
        inner = {
            k.removeprefix("backbone."): v
            for k, v in state_dict.items()
            if k.startswith("backbone.")
        }
        heads = {k: v for k, v in state_dict.items() if not k.startswith("backbone.")}
        return {
            **{f"detector.{k}": v for k, v in from_mmdetection(heads).items()},
            **{
                f"detector.backbone.maps.{k}": v
                for k, v in self.encoder.remap_state_dict(inner).items()
            },
        }


class Pyramid(nn.Module):
    """A backbone's maps, and a feature pyramid over them with one level more.

    ``forward``: [B, 3, H, W] -> dictionary of maps [B, out_channels, h, w], fine to coarse.
    """

    def __init__(
        self,
        maps: FeatureMaps | AdaptedMaps,
        channels: int,
        norm: type[nn.Module] | None,
    ) -> None:
        super().__init__()
        self.maps = maps
        self.out_channels = channels
        self.strides = [*self.maps.strides, 2 * self.maps.strides[-1]]
        self.fpn = FeaturePyramidNetwork(list(maps.dims), channels, LastLevelMaxPool(), norm)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image -> maps."""
        named = OrderedDict((str(i), x) for i, x in enumerate(self.maps(image)))
        return self.fpn(named)


# The published variants: average precision of boxes and of masks on COCO after 12 epochs.

_VMAMBA = "https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_"


def _mask_rcnn(kwargs: dict[str, Any], backbone: str, **backbone_args: Any) -> MaskRCNN:
    args = {**backbone_args, **kwargs.pop("backbone_args", {})}
    return MaskRCNN(**{"backbone": backbone, "backbone_args": args, **kwargs})


@register_model(source=_VMAMBA + "tiny_s_epoch_12.pth", parameters=49_759_669)
def mask_rcnn_vmamba_tiny(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on VMamba-T [s1l8]: the authors report AP 47.3 and 42.7 on COCO."""
    return _mask_rcnn(kwargs, "vmamba_tiny")


@register_model(source=_VMAMBA + "small_epoch_11.pth", parameters=69_658_357)
def mask_rcnn_vmamba_small(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on VMamba-S [s2l15]: the authors report AP 48.7 and 43.7 on COCO."""
    return _mask_rcnn(kwargs, "vmamba_small_s2l15")


@register_model(source=_VMAMBA + "base_epoch_11.pth", parameters=107_935_733)
def mask_rcnn_vmamba_base(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on VMamba-B [s2l15]: the authors report AP 49.2 and 44.1 on COCO."""
    return _mask_rcnn(kwargs, "vmamba_base_s2l15")


@register_model(parameters=26_203_273)
def mask_rcnn_efficientvmamba_tiny(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on EfficientVMamba-T; the authors' file has nine blocks in the third stage where
    its name and the weights that it starts from have four (``depths: [2, 2, 9, 2]``)."""
    return _mask_rcnn(kwargs, "efficientvmamba_tiny")


@register_model(parameters=44_268_061)
def mask_rcnn_efficientvmamba_small(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on EfficientVMamba-S with 96 channels, as the authors' file has it."""
    return _mask_rcnn(kwargs, "efficientvmamba_small", dims=96)


@register_model(parameters=53_227_741)
def mask_rcnn_efficientvmamba_base(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on EfficientVMamba-B."""
    return _mask_rcnn(kwargs, "efficientvmamba_base")


# PlainMamba's: with an adapter, BatchNorm in the pyramid and four convolutions in the box head.

_PLAIN = "hf://ChenhongyiYang/PlainMamba/detection/maskrcnn/"


def _plain(kwargs: dict[str, Any], size: str, drop_path: float, heads: int) -> MaskRCNN:
    adapter = {"heads": heads, "drop_path": drop_path, **kwargs.pop("adapter", {})}
    settings = {"adapter": adapter, "conv_norm": True, "box_convs": 4, "box_layers": 1, **kwargs}
    return _mask_rcnn(settings, f"plainmamba_{size}", drop_path_rate=drop_path)


@register_model(source=_PLAIN + "l1_1x.pth", parameters=31_216_485)
def mask_rcnn_plainmamba_l1(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on PlainMamba-Adapter-L1: the authors report AP 44.1 and 39.1 on COCO."""
    return _plain(kwargs, "l1", drop_path=0.1, heads=6)


@register_model(source=_PLAIN + "l2_1x.pth", parameters=53_206_853)
def mask_rcnn_plainmamba_l2(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on PlainMamba-Adapter-L2: the authors report AP 46.0 and 40.6 on COCO."""
    return _plain(kwargs, "l2", drop_path=0.2, heads=6)


@register_model(source=_PLAIN + "l3_1x.pth", parameters=79_785_877)
def mask_rcnn_plainmamba_l3(**kwargs: Any) -> MaskRCNN:
    """Mask R-CNN on PlainMamba-Adapter-L3: the authors report AP 46.8 and 41.2 on COCO."""
    return _plain(kwargs, "l3", drop_path=0.3, heads=8)
