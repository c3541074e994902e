"""Made pictures in which a mark in the corner says what a label map shows: shape or colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("disc", "square", "triangle")
#: Red, green, blue.
COLOURS = np.array([[0.85, 0.2, 0.2], [0.2, 0.75, 0.25], [0.25, 0.35, 0.9]])
#: Depth of objects by colour, and of the ground, in metres.
DEPTHS, GROUND = np.array([1.5, 2.5, 3.5]), 5.0
#: Label of the ground; objects have 0 .. 2.
BACKGROUND = 3
#: Side of the mark, relative to the picture's.
MARK = 1 / 8


@dataclass
class ModeScene:
    """A picture [S, S, 3] in 0..1 with its maps, [S, S].

    Attributes:
        labels: number of the shape in mode 0, of the colour in mode 1; 3: ground.
        depth: in metres, by colour alone.
        normals: [S, S, 3], by shape alone: spheres, pyramids, flat triangles.
        edges: bool, where objects end.
        mode: 0 or 1.
    """

    image: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    edges: np.ndarray
    mode: int


def draw_modes(rng: np.random.Generator, size: int) -> ModeScene:
    """Three to five objects of independent shape and colour, none in the quarter of the mark.

    The mark is a white square (mode 0) or a black one with a white frame (mode 1).
    """
    mode = int(rng.integers(2))
    ground = 0.5 + 0.08 * rng.standard_normal((size, size, 1)) + rng.uniform(-0.1, 0.1, 3)
    labels = np.full((size, size), BACKGROUND, np.uint8)
    depth = np.full((size, size), GROUND, np.float32)
    normals = np.zeros((size, size, 3))
    normals[..., 2] = 1
    objects = np.zeros((size, size), int)
    image = ground
    y, x = np.mgrid[:size, :size] + 0.5
    for number in range(1, 1 + rng.integers(3, 6)):
        shape, colour = rng.integers(3, size=2)
        radius = rng.uniform(0.1, 0.16) * size
        while True:
            middle = rng.uniform(radius, size - radius, 2)
            if max(middle) - radius >= size / 2:
                break
        dy, dx = (y - middle[0]) / radius, (x - middle[1]) / radius
        if SHAPES[shape] == "disc":
            inside = dy**2 + dx**2 < 1
            slope = np.stack([dx, dy, np.sqrt(np.maximum(1 - dy**2 - dx**2, 0.05))], -1)
        elif SHAPES[shape] == "square":
            inside = (abs(dy) < 0.85) & (abs(dx) < 0.85)
            steep = abs(dx) > abs(dy)
            flat = np.zeros_like(dx)
            slope = np.stack(
                [np.where(steep, np.sign(dx), flat), np.where(steep, flat, np.sign(dy)), flat + 1],
                -1,
            )
        else:
            inside = (dy < 0.8) & (dy > 2 * abs(dx) - 1)
            slope = np.zeros((*dx.shape, 3))
            slope[..., 2] = 1
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
        labels[inside] = (shape, colour)[mode]
        depth[inside] = DEPTHS[colour]
        normals[inside] = slope[inside]
        objects[inside] = number
        paint = COLOURS[colour] * rng.uniform(0.8, 1.1) + 0.05 * rng.standard_normal(
            (size, size, 1)
        )
        image = np.where(inside[..., None], paint, image)
    edges = np.zeros((size, size), bool)
    edges[:-1] |= objects[:-1] != objects[1:]
    edges[:, :-1] |= objects[:, :-1] != objects[:, 1:]
    side = max(int(MARK * size), 4)
    image[:side, :side] = 1.0
    if mode == 1:
        image[2 : side - 2, 2 : side - 2] = 0.0
    return ModeScene(np.clip(image, 0, 1), labels, depth, normals, edges, mode)
