"""Parts of torchvision's detectors that compute what MMDetection's do.

torchvision rounds the anchors and their distances, samples regions half a pixel aside and pastes
masks into whole pixels; the weights that the authors of backbones publish were trained without.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign, roi_align
from typing_extensions import override


class Anchors(AnchorGenerator):
    """Boxes of exact sizes around the corners of the cells.

    Args:
        strides: of the maps, in pixels.
        sides, ratios: of the anchors of each map: side of the square, and heights over widths.
    """

    def __init__(
        self, strides: Sequence[int], sides: Sequence[Sequence[float]], ratios: Sequence[float]
    ) -> None:
        super().__init__(tuple(map(tuple, sides)), (tuple(ratios),) * len(sides))
        self.strides = tuple(strides)

    @override
    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths = (sides / roots[:, None]).flatten()
        heights = (sides * roots[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    @override
    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        grids = [list(x.shape[-2:]) for x in feature_maps]
        steps = [[torch.tensor(s, device=feature_maps[0].device)] * 2 for s in self.strides]
        return [torch.cat(self.grid_anchors(grids, steps))] * len(image_list.image_sizes)


class Regions(MultiScaleRoIAlign):
    """Regions of interest, each from the map of its size, as many samples a cell as it has pixels.

    ``forward``: dictionary of maps [B, C, h, w], fine to coarse, and boxes [N, 4] of each picture
    -> [sum of N, C, side, side].

    Args:
        strides: of the maps, in pixels.
        side: cells, per side.
        finest: regions that are less than twice as large come from the first map.
    """

    def __init__(self, strides: Sequence[int], side: int, finest: float = 56.0) -> None:
        super().__init__([str(i) for i in range(len(strides))], side, sampling_ratio=0)
        self.strides, self.finest = tuple(strides), finest

    @override
    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        maps = [x[name] for name in self.featmap_names]
        picture = [torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)]
        regions = torch.cat([torch.cat(picture), torch.cat(boxes)], dim=1)  # [N, 5]
        size = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
        level = (size / self.finest + 1e-6).log2().floor().clamp(0, len(maps) - 1)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], *self.output_size)
        for i, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = (level == i).nonzero()[:, 0]
            cells = roi_align(
                feature, regions[here], self.output_size, 1 / stride, sampling_ratio=0, aligned=True
            )
            pooled = pooled.index_copy(0, here, cells.to(pooled.dtype))
        return pooled


class Scaling(GeneralizedRCNNTransform):
    """Pictures to the size that the network sees, and what it finds back to the pictures' own."""

    @override
    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        old = image.shape[-2:]
        scale = min(self.max_size / max(old), self.min_size[-1] / min(old))
        new = [int(side * scale + 0.5) for side in old]
        image = F.interpolate(image[None], size=new, mode="bilinear", align_corners=False)[0]
        if target is None:
            return image, target
        target = target | {"boxes": resize_boxes(target["boxes"], old, new)}
        if "masks" in target:
            masks = F.interpolate(target["masks"][:, None].float(), size=new)
            # torchvision's loss looks half a pixel aside
            target["masks"] = F.avg_pool2d(F.pad(masks, (1, 0, 1, 0)), 2, stride=1)[:, 0]
        return image, target

    @override
    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if self.training:
            return result
        for objects, new, old in zip(result, image_shapes, original_image_sizes, strict=True):
            objects["boxes"] = resize_boxes(objects["boxes"], list(new), list(old))
            if "masks" in objects:
                pasted = paste(objects["masks"][:, 0], objects["boxes"], old)
                objects["masks"] = pasted[:, None]
        return result


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [N, h, w] that fill boxes [N, 4] -> [N, H, W] of a picture, bilinear, 0 outside."""

    def weights(low: Tensor, high: Tensor, cells: int, pixels: int) -> Tensor:  # [N, pixels, cells]
        centers = torch.arange(pixels, device=low.device) + 0.5
        extent = (high - low).clamp(min=1e-6)[:, None]
        places = (centers - low[:, None]) / extent * cells - 0.5
        distance = places[..., None] - torch.arange(cells, device=low.device)
        return (1 - distance.abs()).clamp(min=0).to(masks.dtype)

    left, top, right, bottom = boxes.float().unbind(1)
    rows = weights(top, bottom, masks.shape[1], size[0])
    columns = weights(left, right, masks.shape[2], size[1])
    return rows @ masks @ columns.transpose(1, 2)


_BOX_HEAD, _MASK_HEAD = "roi_heads.box_", "roi_heads.mask_"
#: MMDetection's names and torchvision's.
_NAMES = (
    (r"^neck\.lateral_convs\.(\d+)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.lateral_convs\.(\d+)\.bn\.", r"backbone.fpn.inner_blocks.\1.1."),
    (r"^neck\.fpn_convs\.(\d+)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d+)\.bn\.", r"backbone.fpn.layer_blocks.\1.1."),
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
    (r"^roi_head\.bbox_head\.shared_convs\.(\d+)\.conv\.", _BOX_HEAD + r"head.\1.0."),
    (r"^roi_head\.bbox_head\.shared_convs\.(\d+)\.bn\.", _BOX_HEAD + r"head.\1.1."),
    (r"^roi_head\.bbox_head\.fc_cls\.", _BOX_HEAD + "predictor.cls_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", _BOX_HEAD + "predictor.bbox_pred."),
    (r"^roi_head\.mask_head\.convs\.(\d+)\.conv\.", _MASK_HEAD + r"head.\1.0."),
    (r"^roi_head\.mask_head\.upsample\.", _MASK_HEAD + "predictor.conv5_mask."),
    (r"^roi_head\.mask_head\.conv_logits\.", _MASK_HEAD + "predictor.mask_fcn_logits."),
)


def from_mmdetection(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's names and class order to torchvision's; the backbone's names stay.

    Background is its last class and torchvision's first, which has boxes and masks there, too;
    nothing ever reads these.
    """
    convs = sum(
        bool(re.fullmatch(r"roi_head\.bbox_head\.shared_convs\.\d+\.conv\.weight", key))
        for key in state_dict
    )

    def layer(match: re.Match[str]) -> str:
        if convs == 0:
            return f"{_BOX_HEAD}head.fc{6 + int(match[1])}."
        return f"{_BOX_HEAD}head.{convs + 1 + 2 * int(match[1])}."

    remapped = {}
    for key, value in state_dict.items():
        for old, new in _NAMES:
            key = re.sub(old, new, key)
        key = re.sub(r"^roi_head\.bbox_head\.shared_fcs\.(\d+)\.", layer, key)
        if "box_predictor.cls_score." in key:
            value = value.roll(1, 0)
        elif "box_predictor.bbox_pred." in key:
            value = torch.cat([torch.zeros_like(value[:4]), value])
        elif "mask_fcn_logits." in key:
            value = torch.cat([torch.zeros_like(value[:1]), value])
        remapped[key] = value
    return remapped
