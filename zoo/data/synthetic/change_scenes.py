"""Made pairs of aerial pictures: buildings that appear, vanish or are damaged between two dates.

What plain differencing takes for change is there as well: other light and season, textures drawn
anew, shadows that turn, vehicles that come and go, and a second picture that lies a pixel or two
beside the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, shift
from skimage.draw import polygon

#: Land cover as in SECOND; 0 is "unchanged" there.
COVERS = ("unchanged", "low vegetation", "bare ground", "tree", "water", "building", "playground")
LOW, BARE, TREE, WATER, BUILDING, PLAYGROUND = range(1, 7)
#: Damage as in xBD.
DAMAGES = ("background", "no damage", "minor damage", "major damage", "destroyed")

_COLOURS = np.array(
    [
        [0, 0, 0],
        [90, 120, 65],
        [150, 130, 105],
        [45, 85, 45],
        [45, 70, 100],
        [0, 0, 0],
        [165, 80, 65],
    ]
)
_ROOFS = np.array(
    [[170, 165, 160], [150, 85, 65], [105, 105, 115], [190, 180, 150], [125, 110, 95]]
)


@dataclass
class Scene:
    """One place at two dates.

    Attributes:
        pre, post: pictures, uint8 [S, S, 3]; ``post`` is not quite in register.
        cover_pre, cover_post: land cover, indices into :data:`COVERS`, uint8 [S, S].
        damage: indices into :data:`DAMAGES` where a building stood before, uint8 [S, S].
    """

    pre: np.ndarray
    post: np.ndarray
    cover_pre: np.ndarray
    cover_post: np.ndarray
    damage: np.ndarray

    @property
    def change(self) -> np.ndarray:
        """Where the land cover differs, bool [S, S]."""
        return self.cover_pre != self.cover_post

    @property
    def building_change(self) -> np.ndarray:
        """Where a building stands at one date only, bool [S, S]."""
        return (self.cover_pre == BUILDING) != (self.cover_post == BUILDING)


@dataclass
class _Building:
    inside: np.ndarray
    roof: np.ndarray
    ridge: np.ndarray
    stands: tuple[bool, bool]
    damage: int


def draw_scene(rng: np.random.Generator, size: int, damage: bool = False) -> Scene:
    """Draw a place twice.

    Args:
        rng: of all that is random.
        size: side S in pixels, from 32 on.
        damage: buildings stand at both dates, and some are damaged at the second; else some appear
            or vanish, and ground turns into other ground.
    """
    cover = _ground(rng, size)
    covers = [cover.copy(), cover.copy()]
    if not damage:
        for _ in range(rng.integers(0, 3)):
            _alter(rng, covers)
    buildings = _buildings(rng, size, damage)
    for date in (0, 1):
        for building in buildings:
            if building.stands[date]:
                covers[date][building.inside] = BUILDING
            elif covers[date][building.inside].min() in (TREE, WATER):
                covers[date][building.inside] = BARE
    pictures = [_render(rng, covers[date], buildings, date) for date in (0, 1)]
    offset = (*rng.uniform(-1.6, 1.6, 2), 0)
    pictures[1] = shift(pictures[1], offset, order=1, mode="nearest")
    pictures = [p + rng.normal(0, 5, p.shape) for p in pictures]
    levels = np.zeros((size, size), np.uint8)
    for building in buildings:
        if building.stands[0]:
            levels[building.inside] = building.damage
    pre, post = (np.clip(p, 0, 255).astype(np.uint8) for p in pictures)
    return Scene(pre, post, covers[0], covers[1], levels)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Vegetation, bare ground, trees, and sometimes water or a playground."""
    cover = np.where(_noise(rng, size, size / 8) > 0.1, LOW, BARE).astype(np.uint8)
    cover[_noise(rng, size, size / 16) > 1.3] = TREE
    if rng.random() < 0.3:
        cover[_noise(rng, size, size / 6) > 1.2] = WATER
    if rng.random() < 0.3:
        inside, _ = _rectangle(rng, size, (0.2, 0.35))
        cover[inside] = PLAYGROUND
    return cover


def _alter(rng: np.random.Generator, covers: list[np.ndarray]) -> None:
    """Turn a patch into another cover at one date."""
    inside, _ = _rectangle(rng, len(covers[0]), (0.15, 0.35))
    covers[rng.integers(2)][inside] = rng.choice([LOW, BARE, TREE, WATER, PLAYGROUND])


def _buildings(rng: np.random.Generator, size: int, damage: bool) -> list[_Building]:
    """Rectangles that do not touch."""
    taken = np.zeros((size, size), bool)
    buildings = []
    for _ in range(rng.integers(3, 8)):
        inside, angle = _rectangle(rng, size, (0.14, 0.3))
        if inside.sum() < 30 or (taken & inside).any():
            continue
        taken |= gaussian_filter(inside.astype(float), 1.5) > 0.02
        roof = rng.choice(_ROOFS) + rng.normal(0, 8, 3)
        y, x = np.mgrid[:size, :size]
        ridge = np.sign(
            np.sin(angle) * (x - x[inside].mean()) + np.cos(angle) * (y - y[inside].mean())
        )
        if damage:
            stands, level = (True, True), int(rng.choice([1, 2, 3, 4], p=[0.4, 0.2, 0.2, 0.2]))
        else:
            chances = [(True, True), (False, True), (True, False)]
            stands, level = chances[rng.choice(3, p=[0.5, 0.3, 0.2])], 1
        buildings.append(_Building(inside, roof, ridge, stands, level))
    return buildings


def _render(
    rng: np.random.Generator, cover: np.ndarray, buildings: list[_Building], date: int
) -> np.ndarray:
    """The picture of one date, float [S, S, 3], before it is cut to 0..255."""
    size = len(cover)
    season = rng.normal(0, 11, (len(COVERS), 3))
    picture = (_COLOURS + season)[cover]
    grain = rng.normal(0, 1, (size, size, 1))
    rough = np.array([0, 8, 5, 16, 3, 0, 4])[cover][..., None]
    picture += rough * (grain + 0.8 * _noise(rng, size, 1.5)[..., None])
    sun = rng.uniform(0, 2 * np.pi)
    standing = [b for b in buildings if b.stands[date]]
    shadow = np.zeros((size, size), bool)
    for building in standing:
        if date == 0 or building.damage < 4:
            step = np.round(rng.uniform(1.5, 3) * np.array([np.sin(sun), np.cos(sun)])).astype(int)
            shadow |= np.roll(building.inside, step, (0, 1))
    picture[shadow] *= 0.5
    for building in standing:
        light = 1 + 0.13 * np.cos(sun) * building.ridge[building.inside][:, None]
        picture[building.inside] = building.roof * light + rng.normal(0, 2, (len(light), 3))
        if date == 1:
            _destroy(rng, picture, building)
    for _ in range(rng.integers(2, 7)):  # vehicles
        top, left = rng.integers(0, size - 4, 2)
        rows, columns = (2, 4) if rng.random() < 0.5 else (4, 2)
        if (cover[top : top + rows, left : left + columns] != BUILDING).all():
            picture[top : top + rows, left : left + columns] = rng.uniform(40, 230, 3)
    light = rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
    picture *= light * (1 + 0.12 * _noise(rng, size, size / 2)[..., None])
    return picture + rng.uniform(-15, 15)


def _destroy(rng: np.random.Generator, picture: np.ndarray, building: _Building) -> None:
    """Holes in the roof (minor), a part of it fallen in (major), or rubble all over (destroyed)."""
    if building.damage < 2:
        return
    inside = building.inside
    field = _noise(rng, len(inside), 1.2 if building.damage == 2 else 3)
    share = {2: 0.2, 3: 0.5, 4: 1.0}[building.damage]
    broken = inside & (field >= np.quantile(field[inside], 1 - share))
    rubble = np.array([105, 98, 92]) + rng.normal(0, 26, (broken.sum(), 1)) + rng.normal(0, 6, 3)
    picture[broken] = rng.uniform(25, 50, 3) if building.damage == 2 else rubble


def _rectangle(
    rng: np.random.Generator, size: int, sides: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """A turned rectangle, bool [S, S], with sides in shares of the picture; and its angle."""
    angle = rng.uniform(0, np.pi)
    half = rng.uniform(*sides, 2) * size / 2
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * half
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rows, columns = (corners @ turn.T + rng.uniform(0.1, 0.9, 2) * size).T
    inside = np.zeros((size, size), bool)
    inside[polygon(rows, columns, (size, size))] = True
    return inside, angle


def _noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Smooth noise [S, S] of mean 0 and deviation 1."""
    field = gaussian_filter(rng.normal(size=(size, size)), scale, mode="wrap")
    return (field - field.mean()) / field.std()
