"""Objects drawn on a picture: boxes, names, outlines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from zoo.plots.panels import COLOURS

#: Narrower pictures are enlarged, so that names can be read.
_WIDTH = 320


def draw_objects(
    picture: np.ndarray,
    boxes: Tensor,
    labels: Tensor,
    texts: Sequence[str],
    masks: Tensor | None = None,
) -> np.ndarray:
    """Draw each object in the colour of its label.

    Args:
        picture: uint8 [H, W, 3].
        boxes: left, top, right, bottom in pixels [N, 4].
        labels: [N] from 0.
        texts: at each box.
        masks: bool [N, H, W].

    Returns:
        uint8 [H', W', 3], H' and W' a multiple of H and W.
    """
    image = torch.from_numpy(picture).movedim(-1, 0)
    colours = [tuple(int(c) for c in COLOURS[int(label) % len(COLOURS)]) for label in labels]
    if masks is not None and len(masks):
        image = draw_segmentation_masks(image, masks.cpu(), alpha=0.45, colors=colours)
    factor = max(1, -(-_WIDTH // image.shape[-1]))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    drawn = Image.fromarray(image.movedim(0, -1).numpy())
    pen, unit = ImageDraw.Draw(drawn), max(1, drawn.width // 160)
    font = ImageFont.load_default(7 * unit)
    for box, text, colour in zip((boxes * factor).tolist(), texts, colours, strict=True):
        pen.rectangle(box, outline=colour, width=unit)
        corner = (box[0], max(0, box[1] - 8 * unit))
        pen.rectangle(pen.textbbox(corner, text, font=font), fill=colour)
        pen.text(corner, text, fill="white", font=font)
    return np.asarray(drawn)
