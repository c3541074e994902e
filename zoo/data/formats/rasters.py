"""Pictures that may be georeferenced and larger than memory, and maps made of them.

TIFF files are read and written through rasterio (``pip install 'ssm-zoo[geo]'``), other pictures
through Pillow.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zoo.data.formats.pictures import read_picture
from zoo.errors import ZooError

#: Marks pixels of a map of which nothing is known.
NO_DATA = 255
TIFF_SUFFIXES = frozenset([".tif", ".tiff"])

try:
    import rasterio
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.features import shapes
    from rasterio.vrt import WarpedVRT
    from rasterio.warp import transform_geom
    from rasterio.windows import Window
except ImportError:
    rasterio = None


class Raster(Protocol):
    """An open picture.

    Attributes:
        height, width: in pixels.
        crs, transform: rasterio's coordinate reference system, and the map from (column, row) to
            its coordinates; both None where the picture is not georeferenced.
    """

    height: int
    width: int
    crs: Any
    transform: Any

    def read(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window: pixels uint8 [h, w, 3], and where they are known, bool [h, w]."""

    def overview(self, height: int, width: int) -> np.ndarray:
        """The whole picture in another size, uint8 [height, width, 3]."""


class PlainPicture:
    """A picture in memory; see :class:`Raster`."""

    crs = transform = None

    def __init__(self, path: Path) -> None:
        self._picture = read_picture(path)
        self.width, self.height = self._picture.size

    def read(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window."""
        pixels = np.asarray(self._picture.crop((left, top, left + width, top + height)))
        return pixels, np.ones((height, width), bool)

    def overview(self, height: int, width: int) -> np.ndarray:
        """The whole picture, smoothed."""
        return np.asarray(self._picture.resize((width, height), Image.Resampling.BOX))


class TiffRaster:
    """An open TIFF file, or one warped to another's grid; see :class:`Raster`."""

    def __init__(self, dataset: Any, path: Path) -> None:
        kinds = sorted(set(dataset.dtypes))
        if kinds != ["uint8"]:
            raise ZooError(
                f"{path}: values of type {', '.join(kinds)}, expected 8-bit ones; convert it, for "
                "example with gdal_translate -ot Byte -scale"
            )
        self.dataset, self.height, self.width = dataset, dataset.height, dataset.width
        referenced = dataset.crs is not None
        self.crs = dataset.crs if referenced else None
        self.transform = dataset.transform if referenced else None
        self._bands = [1, 2, 3] if dataset.count >= 3 else [1, 1, 1]

    def read(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window."""
        window = Window(left, top, width, height)
        pixels = self.dataset.read(self._bands, window=window)
        return pixels.transpose(1, 2, 0), self.dataset.dataset_mask(window=window) > 0

    def overview(self, height: int, width: int) -> np.ndarray:
        """The whole picture, smoothed."""
        size = (3, height, width)
        pixels = self.dataset.read(self._bands, out_shape=size, resampling=Resampling.average)
        return pixels.transpose(1, 2, 0)


@contextmanager
def open_raster(path: Path) -> Iterator[Raster]:
    """Open a picture file.

    Raises:
        ZooError: it is missing or broken, or a TIFF file that is not of 8 bits, or one while
            rasterio is not installed.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        yield PlainPicture(path)
        return
    _need_rasterio(path)
    if not path.is_file():
        raise ZooError(f"{path}: no such file, expected a picture")
    with _quiet(), ExitStack() as stack:
        try:
            dataset = stack.enter_context(rasterio.open(path))
        except RasterioError as error:
            raise ZooError(f"{path}: not a readable TIFF file: {error}") from error
        yield TiffRaster(dataset, path)


@contextmanager
def open_pair(before: Path, after: Path) -> Iterator[tuple[Raster, Raster]]:
    """Open two pictures of one place on one grid.

    Where both are georeferenced and their grids differ, the second is resampled to the first's
    while it is read.

    Raises:
        ZooError: see :func:`open_raster`; or they have different sizes and no georeference, or do
            not overlap.
    """
    with open_raster(before) as first, open_raster(after) as second, ExitStack() as stack:
        if (
            isinstance(first, TiffRaster)
            and isinstance(second, TiffRaster)
            and not _same(first, second)
        ):
            if first.crs is None or second.crs is None:
                raise ZooError(_other_size(before, first, after, second))
            grid = {"crs": first.crs, "transform": first.transform}
            size = {"height": first.height, "width": first.width}
            # what lies outside of the second picture needs a mark of its own where it has none
            plain = (
                second.dataset.nodata is None
                and ColorInterp.alpha not in second.dataset.colorinterp
            )
            method = {"resampling": Resampling.bilinear, "add_alpha": plain}
            warped = WarpedVRT(second.dataset, **method, **grid, **size)
            second = TiffRaster(stack.enter_context(warped), after)
            if not second.dataset.dataset_mask(out_shape=(256, 256)).any():
                raise ZooError(f"{before} and {after} do not overlap on the ground")
        elif (first.height, first.width) != (second.height, second.width):
            raise ZooError(_other_size(before, first, after, second))
        yield first, second


def _same(first: TiffRaster, second: TiffRaster) -> bool:
    """Whether two files have one grid, to a hundredth of a pixel; or one size and no grid."""
    if (first.height, first.width) != (second.height, second.width) or first.crs != second.crs:
        return False
    if first.crs is None:
        return True
    mine, theirs = (np.array(raster.transform)[:6].reshape(2, 3) for raster in (first, second))
    corners = np.array([(0, 0, 1), (first.width, 0, 1), (0, first.height, 1)]).T
    pixel = abs(np.linalg.det(mine[:, :2])) ** 0.5
    return bool(np.abs((theirs - mine) @ corners).max() <= 0.01 * pixel)


def _other_size(before: Path, first: Raster, after: Path, second: Raster) -> str:
    return (
        f"{before} has {first.height}x{first.width} pixels and {after} "
        f"{second.height}x{second.width}, expected one size, or georeferenced TIFF files"
    )


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
    _need_rasterio(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet(), rasterio.open(path, "w", **_profile(*pixels.shape, crs, transform)) as dataset:
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


def _need_rasterio(path: Path) -> None:
    if rasterio is None:
        raise ZooError(
            f"{path}: TIFF files need rasterio, install it with pip install 'ssm-zoo[geo]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of files without georeference, which are allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
