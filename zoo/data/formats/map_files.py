"""Maps of labels as files: GeoTIFF and GeoJSON for a georeferenced picture, PNG for others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.formats.rasters import Raster, need_rasterio, quiet, rasterio

if rasterio is not None:
    from rasterio.enums import Resampling
    from rasterio.features import shapes
    from rasterio.warp import transform_geom
    from rasterio.windows import Window

#: Marks pixels of a map of which nothing is known.
NO_DATA = 255


class MapFile:
    """A map of labels that is written window by window: GeoTIFF for a georeferenced picture, else
    PNG.

    Args:
        path: without ending.
        like: the picture that it belongs to.
        colours: label -> colour (r, g, b) in 0..255.
    """

    def __init__(self, path: Path, like: Raster, colours: Mapping[int, Sequence[int]]) -> None:
        self.like, self.colours = like, {**colours, NO_DATA: (0, 0, 0)}
        self.path = path.with_name(path.name + (".png" if like.crs is None else ".tif"))
        self._dataset = self._labels = None
        if like.crs is None:
            self._labels = np.full((like.height, like.width), NO_DATA, np.uint8)
        else:
            self._dataset = rasterio.open(
                self.path, "w", **_profile(like.height, like.width, 1, like.crs, like.transform),
                nodata=NO_DATA,
            )  # fmt: skip
            self._dataset.write_colormap(1, self.colours)

    def write(self, labels: np.ndarray, top: int, left: int) -> None:
        """Put labels uint8 [h, w] in place."""
        height, width = labels.shape
        if self._labels is not None:
            self._labels[top : top + height, left : left + width] = labels
        else:
            self._dataset.write(labels, 1, window=Window(left, top, width, height))

    def close(self) -> None:
        """Finish the file."""
        if self._dataset is not None:
            self._dataset.close()
            return
        picture = Image.fromarray(self._labels)
        table = np.zeros((256, 3), np.uint8)
        for label, colour in self.colours.items():
            table[label] = colour
        picture.putpalette(table.tobytes())
        picture.save(self.path)

    def overview(self, height: int, width: int) -> np.ndarray:
        """The finished map in another size, nearest pixels, uint8 [height, width]."""
        if self._labels is not None:
            picture = Image.fromarray(self._labels)
            return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))
        with rasterio.open(self.path) as dataset:
            return dataset.read(1, out_shape=(height, width), resampling=Resampling.nearest)

    def write_polygons(self, names: Sequence[str]) -> int:
        """Write the areas of labels 1 and above as GeoJSON beside the finished GeoTIFF.

        Coordinates are longitude and latitude (WGS 84, RFC 7946). Properties: ``label``, ``class``,
        ``pixels``, and ``area_m2`` where the picture's coordinates are lengths.

        Args:
            names: of the labels.

        Returns:
            the number of polygons.
        """
        count = 0
        with (
            rasterio.open(self.path) as dataset,
            self.path.with_suffix(".geojson").open("w") as out,
        ):
            out.write('{"type": "FeatureCollection", "features": [')
            pixel = abs(dataset.transform.determinant)
            metres = dataset.crs.linear_units_factor[1] if dataset.crs.is_projected else None
            for shape, value in shapes(rasterio.band(dataset, 1)):
                label = int(value)
                if label in (0, NO_DATA):
                    continue
                area = _area(shape)
                properties = {
                    "label": label,
                    "class": names[label],
                    "pixels": round(area / pixel),
                }
                if metres is not None:
                    properties["area_m2"] = round(area * metres**2, 2)
                shape = transform_geom(dataset.crs, "EPSG:4326", shape, precision=8)
                feature = {"type": "Feature", "properties": properties, "geometry": shape}
                out.write(("," if count else "") + "\n" + json.dumps(feature))
                count += 1
            out.write("\n]}\n")
        return count


def write_geotiff(path: Path, pixels: np.ndarray, crs: Any = None, transform: Any = None) -> None:
    """Write uint8 [H, W, C] as a TIFF file, georeferenced if a reference is given."""
    need_rasterio(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), rasterio.open(path, "w", **_profile(*pixels.shape, crs, transform)) as dataset:
        dataset.write(pixels.transpose(2, 0, 1))


def windows(full: int, side: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Cut a length into windows that overlap.

    Args:
        full: the length; side: of a window; overlap: of two.

    Returns:
        (start, stop, first, last) of each: the window, and the part of it that is kept, which ends
        in the middle of an overlap.
    """
    last = max(0, full - side)
    starts = [*range(0, last, side - overlap), last]
    cuts = [0, *((a + side + b) // 2 for a, b in pairwise(starts)), full]
    return [
        (start, min(start + side, full), cuts[i], cuts[i + 1]) for i, start in enumerate(starts)
    ]


def _profile(height: int, width: int, count: int, crs: Any, transform: Any) -> dict[str, Any]:
    tiled = (
        {"tiled": True, "blockxsize": 256, "blockysize": 256} if min(height, width) > 256 else {}
    )
    return {
        "driver": "GTiff",
        "dtype": "uint8",
        "height": height,
        "width": width,
        "count": count,
        "compress": "deflate",
        "bigtiff": "if_safer",
        **tiled,
        **({} if crs is None else {"crs": crs, "transform": transform}),
    }


def _area(polygon: Mapping[str, Any]) -> float:
    """Area of a GeoJSON polygon in the square of its unit, holes taken off."""
    areas = []
    for ring in polygon["coordinates"]:
        x, y = np.array(ring).T
        areas.append(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
    return float(areas[0] - sum(areas[1:]))
