"""Cutting a picture into square tiles, as many as fit its shape (InternVL's dynamic resolution)."""

from __future__ import annotations

from PIL import Image


def tile_grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of the grid whose shape is closest to that of a picture.

    Of two grids that are equally close, the larger wins if the picture has more than half as many
    pixels as it. Args: width and height of the picture, side of a tile, and how many tiles at most.
    """
    grids = sorted(
        (
            (columns, rows)
            for columns in range(1, max_tiles + 1)
            for rows in range(1, max_tiles // columns + 1)
        ),
        key=lambda grid: grid[0] * grid[1],
    )
    best, least = (1, 1), float("inf")
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        roomy = width * height > 0.5 * size**2 * columns * rows
        if distance < least or (distance == least and roomy):
            best, least = (columns, rows), distance
    return best


def tiles(
    image: Image.Image, size: int, max_tiles: int, thumbnail: bool = True
) -> list[Image.Image]:
    """Tiles of ``size`` pixels, row by row; behind several of them the whole picture as one."""
    columns, rows = tile_grid(*image.size, size, max_tiles)
    whole = image.resize((columns * size, rows * size))
    cut = [
        whole.crop((x * size, y * size, (x + 1) * size, (y + 1) * size))
        for y in range(rows)
        for x in range(columns)
    ]
    return [*cut, image.resize((size, size))] if thumbnail and len(cut) > 1 else cut
