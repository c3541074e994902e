"""Made videos of spheres over a plane, whose light can be changed and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lighting:
    """Ranges that the light of a scene is drawn from.

    Attributes:
        sideways, upwards: components of the direction to the light; towards the camera it is 1. The
            sign of the first is random.
        strength: of the light, ``ambient``: of what comes from everywhere.
    """

    sideways: tuple[float, float]
    upwards: tuple[float, float]
    strength: tuple[float, float]
    ambient: tuple[float, float]


#: Bright, from behind the camera; and dim, from the side, with long shadows.
FRONTAL = Lighting((0.0, 0.4), (0.3, 0.7), (0.7, 0.9), (0.25, 0.4))
OBLIQUE = Lighting((2.0, 3.0), (0.6, 1.2), (0.4, 0.6), (0.1, 0.2))

#: Half the field of view, as the tangent.
VIEW = 0.6


@dataclass
class Scene:
    """Spheres that move over a plane; the camera stands at 0 and looks along z, y is down.

    Attributes:
        normal, distance: of the plane, which is where ``normal @ point == distance``.
        centres: of the spheres in each frame [T, S, 3], in metres; ``radii`` [S].
        plane_colours [2, 3], sphere_colours [S, 2, 3]: of the patterns; ``waves``: their wave
            vectors [1 + S, 3].
    """

    normal: np.ndarray
    distance: float
    centres: np.ndarray
    radii: np.ndarray
    plane_colours: np.ndarray
    sphere_colours: np.ndarray
    waves: np.ndarray


def draw_scene(rng: np.random.Generator, frames: int) -> Scene:
    """A random scene whose spheres drift, and turn around at the border of the picture."""
    normal = np.array([rng.uniform(-0.2, 0.2), rng.uniform(0.5, 0.9), 1.0])
    normal /= np.linalg.norm(normal)
    middle = rng.uniform(5.0, 8.0)
    count = int(rng.integers(2, 4))
    radii = rng.uniform(0.5, 1.1, count)
    depth = rng.uniform(3.0, 0.75 * middle, count)
    steps = rng.uniform(0.04, 0.07, (count, 1)) * depth[:, None]  # 1 to 2 of 32 pixels
    angle = rng.uniform(0, 2 * np.pi, count)
    move = steps * np.stack([np.cos(angle), 0.5 * np.sin(angle)], 1)
    start = rng.uniform(-0.45, 0.45, (count, 2)) * depth[:, None]
    reach = 0.5 * depth[:, None]
    path = start + move * np.arange(frames)[:, None, None]  # [T, S, 2]
    path = np.abs((path + reach) % (4 * reach) - 2 * reach) - reach  # to and fro
    centres = np.concatenate([path, np.broadcast_to(depth[:, None], (frames, count, 1))], 2)
    colours = rng.uniform(0.15, 1.0, (1 + count, 2, 3))
    waves = rng.normal(0, 1.0, (1 + count, 3))
    waves *= rng.uniform(2.5, 5.0, (1 + count, 1)) / np.linalg.norm(waves, axis=1, keepdims=True)
    waves[1:] *= 1.5
    return Scene(normal, middle * normal[2], centres, radii, colours[0], colours[1:], waves)


def render(
    scene: Scene, lighting: Lighting, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lambert shading with cast shadows.

    Returns:
        frames [T, size, size, 3] in 0..1, and depth along z [T, size, size] in metres.
    """
    axis = (np.arange(size) + 0.5) / size * 2 * VIEW - VIEW
    v, u = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    rays = np.stack([u, v, np.ones_like(u)], 1)  # [P, 3]
    frames, count = scene.centres.shape[:2]
    # where rays meet the plane, then the spheres: |t ray - centre| = radius
    depth = np.broadcast_to(scene.distance / (rays @ scene.normal), (frames, len(rays))).copy()
    which = np.zeros((frames, len(rays)), int)
    length = (rays**2).sum(1)
    for s in range(count):
        along = scene.centres[:, s] @ rays.T  # [T, P]
        rest = (scene.centres[:, s] ** 2).sum(1, keepdims=True) - scene.radii[s] ** 2
        inside = along**2 - length * rest
        near = (along - np.sqrt(np.maximum(inside, 0))) / length
        hit = (inside > 0) & (near > 0) & (near < depth)
        depth[hit], which[hit] = near[hit], s + 1
    points = depth[..., None] * rays  # [T, P, 3]
    origins = np.concatenate([np.zeros((frames, 1, 3)), scene.centres], 1)
    local = points - np.take_along_axis(origins, which[..., None], 1)
    sizes = np.concatenate([[1.0], scene.radii])[which][..., None]
    normals = np.where(which[..., None] == 0, -scene.normal, local / sizes)
    pattern = np.sin((local * scene.waves[which]).sum(-1)) > 0
    colours = np.concatenate([scene.plane_colours[None], scene.sphere_colours])
    albedo = colours[which, pattern.astype(int)]

    light = np.array(
        [
            rng.choice([-1, 1]) * rng.uniform(*lighting.sideways),
            -rng.uniform(*lighting.upwards),
            -1.0,
        ]
    )
    light /= np.linalg.norm(light)
    lit = np.maximum(normals @ light, 0)
    for s in range(count):
        towards = scene.centres[:, None, s] - points
        along = towards @ light
        apart = (towards**2).sum(-1) - along**2
        lit[(along > 1e-3) & (apart < scene.radii[s] ** 2) & (which != s + 1)] = 0
    shade = rng.uniform(*lighting.ambient) + rng.uniform(*lighting.strength) * lit
    shape = (frames, size, size)
    return np.clip(albedo * shade[..., None], 0, 1).reshape(*shape, 3), depth.reshape(shape)
