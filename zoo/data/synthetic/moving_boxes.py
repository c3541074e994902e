"""Made scenes for trackers: boxes that circle, sway or walk straight, behind one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

#: Side lengths of an object at rest, and of the pillar in the middle that hides what is behind it.
WIDTH, HEIGHT, PILLAR = 60.0, 110.0, 54.0
MOTIONS = ("circle", "sway", "line")


@dataclass
class Scene:
    """What happens in a made clip of T frames with N objects.

    Attributes:
        width, height: of the picture in pixels.
        boxes: (left, top, width, height) of every object in every frame [T, N, 4].
        visible: share of each box that nothing hides [T, N].
    """

    width: int
    height: int
    boxes: np.ndarray
    visible: np.ndarray

    def detections(
        self, rng: np.random.Generator, jitter: float = 1.0, missed: float = 0.05
    ) -> list[np.ndarray]:
        """What a detector would say: (left, top, width, height, score) [M, 5] for each frame.

        Hidden objects are missed, half hidden ones get a low score.

        Args:
            rng: of the noise.
            jitter: standard deviation of centre and sides in pixels.
            missed: share of the visible objects that are missed.
        """
        found = []
        for boxes, visible in zip(self.boxes, self.visible, strict=True):
            noise = rng.normal(0, jitter, boxes.shape)
            noise[:, :2] -= noise[:, 2:] / 2
            sure = rng.uniform(0.75, 0.98, len(boxes))
            unsure = rng.uniform(0.15, 0.58, len(boxes))
            scores = np.where(visible > 0.6, sure, unsure)
            seen = (visible > 0.25) & (rng.random(len(boxes)) >= missed)
            rows = np.column_stack([boxes + noise, scores])
            found.append(rows[seen])
        return found

    def draw(self, frame: int) -> Image.Image:
        """The picture of a frame; the first object is the farthest away."""
        image = Image.new("RGB", (self.width, self.height), (214, 218, 222))
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, self.height * 0.6, self.width, self.height), fill=(188, 190, 186))
        for number, (x, y, w, h) in enumerate(self.boxes[frame]):
            shade = 70 + (number * 47) % 100
            colour = (shade, 90 + (number * 31) % 70, 150 - (number * 23) % 90)
            pen.rounded_rectangle((x, y + 0.28 * h, x + w, y + h), 8, fill=colour)
            pen.ellipse((x + 0.25 * w, y, x + 0.75 * w, y + 0.3 * h), fill=(224, 186, 158))
        left = (self.width - PILLAR) / 2
        pen.rectangle((left, 0, left + PILLAR, self.height), fill=(120, 116, 110))
        return image


def make_scene(
    rng: np.random.Generator, motion: str, width: int = 640, frames: int = 60, objects: int = 6
) -> Scene:
    """Let objects move.

    ``circle`` and ``sway`` (to and fro in both directions, with two periods) take 12 to 24 frames
    for a round, at up to 20 to 32 pixels a frame, so that constant velocity fails; ``line`` goes
    straight on.

    Args:
        rng: of the scene.
        motion: one of ``MOTIONS``.
        width: of the picture; its height is 9/16 of that.
        frames: T.
        objects: N.
    """
    height = width * 9 // 16
    low = np.array([WIDTH, HEIGHT]) / 2
    room = np.array([width, height]) - 2 * low
    t = np.arange(frames)[:, None]
    start, end = low + rng.random((2, objects, 2)) * room
    if motion == "line":
        centres = start + (end - start) * (t / (frames - 1))[..., None]
    else:
        period = rng.uniform(12, 24, (2, objects))
        if motion == "circle":
            period[1] = period[0]
        radius = rng.uniform(20, 32, objects) * period / (2 * np.pi)  # [2, N]
        if motion == "circle":
            phase = rng.uniform(0, 2 * np.pi, objects) + np.array([[0.0], [np.pi / 2]])
        else:
            phase = rng.uniform(0, 2 * np.pi, (2, objects))
            radius[1] *= 0.5
        turn = rng.choice([-1, 1], objects)
        offset = radius * np.sin(2 * np.pi * turn * t[:, None] / period + phase)  # [T, 2, N]
        drift = (end - start) * (t / (frames - 1))[..., None] * 0.4
        centres = start + drift + offset.transpose(0, 2, 1)
        centres = np.clip(centres, low, low + room)
    scale = 1 + 0.08 * np.sin(2 * np.pi * (t / rng.uniform(30, 60, objects) + rng.random(objects)))
    sides = scale[..., None] * np.array([WIDTH, HEIGHT])
    boxes = np.concatenate([centres - sides / 2, sides], -1)
    return Scene(width, height, boxes, _visible(boxes, width))


def _visible(boxes: np.ndarray, width: int) -> np.ndarray:
    """1 - the largest share of a box that one nearer object or the pillar covers [T, N]."""
    low, high = boxes[..., :2], boxes[..., :2] + boxes[..., 2:]
    shared = np.minimum(high[:, :, None], high[:, None]) - np.maximum(low[:, :, None], low[:, None])
    covered = shared.clip(0).prod(-1) / boxes[..., 2:].prod(-1)[..., None]  # [T, N, N]
    nearer = np.triu(np.ones(covered.shape[1:], bool), 1)
    left = (width - PILLAR) / 2
    pillar = np.minimum(high[..., 0], left + PILLAR) - np.maximum(low[..., 0], left)
    behind = (covered * nearer).max(-1, initial=0)
    return 1 - np.maximum(behind, pillar.clip(0) / boxes[..., 2])
