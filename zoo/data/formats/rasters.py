"""Pictures that may be georeferenced, larger than memory, of many bands and more than 8 bits.

TIFF files are read through rasterio (``pip install 'ssm-zoo[geo]'``), other pictures
through Pillow.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zoo.checkpoints.claims import check_claim
from zoo.data.formats.pictures import is_alpha, read_picture
from zoo.errors import ZooError

TIFF_SUFFIXES = frozenset([".tif", ".tiff"])
#: Pixels of a window that are only read if the file can hold them.
LARGE_WINDOW = 2**26
#: Bytes of a raster that are read however small the file is: LZW, Zstandard and CCITT pack blank
#: pictures into next to nothing.
SMALL_RASTER = 2**29
#: Of values of more than 8 bits, what becomes black and white.
PERCENTILES = (2, 98)

log = logging.getLogger("zoo")

try:
    import rasterio
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.vrt import WarpedVRT
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
    dtype = "uint8"

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
    """An open TIFF file, or one warped to another's grid; see :class:`Raster`.

    Args:
        dataset: rasterio's.
        path: for messages.
        bands: numbers from 1 of those that are red, green and blue; None: those that the file says
            are; else the first three, or the only one thrice. An alpha band is none of them.
        masked: whether to believe what it says of unknown pixels; None: see :func:`_mask_is_one`.
    """

    #: Values of each band that become 0 and 255; None: 8-bit values as they are.
    value_range: np.ndarray | None = None

    def __init__(
        self,
        dataset: Any,
        path: Path,
        bands: Sequence[int] | None = None,
        masked: bool | None = None,
    ) -> None:
        self.dataset, self.path = dataset, path
        self.height, self.width = dataset.height, dataset.width
        referenced = dataset.crs is not None
        self.crs = dataset.crs if referenced else None
        self.transform = dataset.transform if referenced else None
        if not referenced:  # a map of it will be kept in memory
            check_whole(path, dataset)
        self.bands = _bands(dataset, path, bands)
        self.dtype = str(np.result_type(*(dataset.dtypes[band - 1] for band in self.bands)))
        if np.dtype(self.dtype).kind not in "uif":
            raise ZooError(f"{path}: values of type {self.dtype}, expected whole or real numbers")
        self._palette = None
        if dataset.colorinterp[self.bands[0] - 1] == ColorInterp.palette:
            self._palette = np.zeros((256, 3), np.uint8)
            for index, colour in dataset.colormap(self.bands[0]).items():
                self._palette[index] = colour[:3]
        with self._reading():
            self.masked = _mask_is_one(dataset) if masked is None else masked

    def read(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window."""
        window = Window(left, top, width, height)
        if height * width > LARGE_WINDOW:
            check_whole(self.path, self.dataset)
        with self._reading():
            pixels = self.dataset.read(self.bands, window=window)
            return self._to_8_bit(pixels), self._known(pixels, window=window)

    def overview(self, height: int, width: int) -> np.ndarray:
        """The whole picture, smoothed."""
        method = Resampling.nearest if self._palette is not None else Resampling.average
        with self._reading():
            size = (3, height, width)
            pixels = self.dataset.read(self.bands, out_shape=size, resampling=method)
            return self._to_8_bit(pixels)

    def sample(self) -> np.ndarray:
        """Known values of the bands [3, N] at up to 512 x 512 places."""
        size = tuple(min(side, 512) for side in (self.height, self.width))
        with self._reading():
            pixels = self.dataset.read(self.bands, out_shape=(3, *size)).astype(np.float64)
            known = self._known(pixels, out_shape=size) & np.isfinite(pixels).all(0)
        return pixels[:, known]

    def _known(self, pixels: np.ndarray, **place: Any) -> np.ndarray:
        """Where something is known of the pixels [3, h, w] at a place, bool [h, w]."""
        if not self.masked:
            return np.isfinite(pixels).all(0)
        return (self.dataset.dataset_mask(**place) > 0) & np.isfinite(pixels).all(0)

    def _to_8_bit(self, pixels: np.ndarray) -> np.ndarray:
        """Bands [3, h, w] -> uint8 [h, w, 3]."""
        if self._palette is not None:
            return self._palette[pixels[0]]
        pixels = pixels.transpose(1, 2, 0)
        if self.value_range is None:
            return pixels
        low, high = self.value_range
        shares = np.nan_to_num((pixels - low) / (high - low)).clip(0, 1)
        return (shares * 255).round().astype(np.uint8)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except RasterioError as error:
            raise ZooError(f"{self.path}: its pixels cannot be read: {error}") from error


def _bands(dataset: Any, path: Path, wanted: Sequence[int] | None) -> list[int]:
    """Numbers from 1 of red, green and blue."""
    there = [i for i, kind in enumerate(dataset.colorinterp, 1) if kind != ColorInterp.alpha]
    if wanted is not None:
        if len(wanted) != 3 or not set(wanted) <= set(range(1, dataset.count + 1)):
            raise ZooError(
                f"data.init_args.bands is {list(wanted)}, expected three numbers from 1 to "
                f"{dataset.count}, the bands of {path}"
            )
        return list(wanted)
    named = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if all(kind in dataset.colorinterp for kind in named):
        chosen = [dataset.colorinterp.index(kind) + 1 for kind in named]
    else:
        chosen = there[:3] if len(there) >= 3 else there[:1] * 3
    if not chosen:
        raise ZooError(f"{path}: an alpha band alone, expected a picture")
    if len(there) not in (1, 3):
        _say(
            f"{path} has {len(there)} bands: {', '.join(map(str, chosen))} are taken for red, "
            "green and blue; data.init_args.bands chooses others",
            ("bands", dataset.count, *chosen),
        )
    return chosen


def _mask_is_one(dataset: Any) -> bool:
    """Whether a file's alpha band, if it has one, marks known pixels."""
    kinds = list(dataset.colorinterp)
    if ColorInterp.alpha not in kinds or dataset.nodata is not None:
        return True
    size = tuple(min(side, 512) for side in dataset.shape)
    band = kinds.index(ColorInterp.alpha) + 1
    return is_alpha(dataset.read(band, out_shape=size, resampling=Resampling.nearest))


def stretch(rasters: Sequence[Raster], value_range: tuple[float, float] | None) -> None:
    """Let rasters of other than 8 bits be read as 8-bit ones, by one scaling for all of them.

    Args:
        rasters: of one place.
        value_range: values that become 0 and 255; None: of each band the 2nd and the 98th
            percentile of all of them together.

    Raises:
        ZooError: they have values of different types.
    """
    kinds = {raster.dtype for raster in rasters}
    if kinds == {"uint8"}:
        return
    deep = [raster for raster in rasters if isinstance(raster, TiffRaster)]
    if len(kinds) > 1:
        raise ZooError(
            f"{deep[0].path} and what belongs to it have values of {' and '.join(sorted(kinds))}, "
            "expected one type"
        )
    if value_range is None:
        values = np.concatenate([raster.sample() for raster in deep], axis=1)
        if not values.size:
            values = np.zeros((3, 1))
        limits = np.percentile(values, PERCENTILES, axis=1)
    else:
        limits = np.repeat(np.array(value_range, np.float64)[:, None], 3, axis=1)
    limits[1] = np.where(limits[1] > limits[0], limits[1], limits[0] + 1)
    for raster in deep:
        raster.value_range = limits
    where = (
        f"the {PERCENTILES[0]}nd to the {PERCENTILES[1]}th percentile of each band, over all dates"
        if value_range is None
        else f"{value_range[0]:g} to {value_range[1]:g}"
    )
    _say(
        f"{deep[0].path}: {deep[0].dtype} values are read as 0 to 255 from {where}; "
        "data.init_args.value_range sets a fixed range",
        ("values", deep[0].dtype, value_range),
    )


def check_whole(path: Path, dataset: Any) -> None:
    """Raise :class:`ZooError` if a file could not hold all the pixels that it says it has."""
    size = dataset.height * dataset.width
    claimed = size * sum(np.dtype(kind).itemsize for kind in dataset.dtypes)
    what = f"a raster of {dataset.height} x {dataset.width} pixels"
    check_claim(path, claimed, what, small=SMALL_RASTER)


@contextmanager
def open_tiff(path: Path, expected: str = "a picture") -> Iterator[Any]:
    """Open a TIFF file with rasterio.

    Raises:
        ZooError: it is missing or broken, or rasterio is not installed.
    """
    need_rasterio(path)
    if not path.is_file():
        raise ZooError(f"{path}: no such file, expected {expected}")
    with quiet(), ExitStack() as stack:
        try:
            dataset = stack.enter_context(rasterio.open(path, driver="GTiff"))
        except RasterioError as error:
            raise ZooError(
                f"{path}: not a readable TIFF file: {error}, expected {expected}"
            ) from error
        yield dataset


@contextmanager
def open_raster(
    path: Path,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Iterator[Raster]:
    """Open a picture file.

    Args:
        path: TIFF, or what Pillow reads.
        bands: see :class:`TiffRaster`.
        value_range: see :func:`stretch`.

    Raises:
        ZooError: it is missing or broken, or a TIFF file while rasterio is not installed.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        yield PlainPicture(path)
        return
    with open_tiff(path) as dataset:
        raster = TiffRaster(dataset, path, bands)
        stretch([raster], value_range)
        yield raster


@contextmanager
def open_pair(
    before: Path,
    after: Path,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Iterator[tuple[Raster, Raster]]:
    """Open two pictures of one place on one grid, with one scaling of their values.

    Where both are georeferenced and their grids differ, the second is resampled to the first's
    while it is read.

    Args:
        before, after: TIFF, or what Pillow reads.
        bands: see :class:`TiffRaster`.
        value_range: see :func:`stretch`.

    Raises:
        ZooError: see :func:`open_raster`; or they have different sizes and no georeference, values
            of different types, or do not overlap.
    """
    with ExitStack() as stack:
        first, second = (_opened(stack, path, bands) for path in (before, after))
        if (
            isinstance(first, TiffRaster)
            and isinstance(second, TiffRaster)
            and not _same(first, second)
        ):
            if first.crs is None or second.crs is None:
                raise ZooError(_other_size(before, first, after, second))
            second = _warped(stack, second, first)
            if not second.dataset.dataset_mask(out_shape=(256, 256)).any():
                raise ZooError(f"{before} and {after} do not overlap on the ground")
        elif (first.height, first.width) != (second.height, second.width):
            raise ZooError(_other_size(before, first, after, second))
        stretch([first, second], value_range)
        yield first, second


def _opened(stack: ExitStack, path: Path, bands: Sequence[int] | None) -> Raster:
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return PlainPicture(path)
    return TiffRaster(stack.enter_context(open_tiff(path)), path, bands)


def _warped(stack: ExitStack, raster: TiffRaster, like: TiffRaster) -> TiffRaster:
    """A raster on another's grid."""
    dataset = raster.dataset
    if not raster.masked:
        raise ZooError(
            f"{raster.path}: its alpha band has many values and is none: it cannot be resampled "
            "before the file says so (gdal_edit.py -colorinterp_4 undefined)"
        )
    # what lies outside of the picture needs a mark of its own where it has none
    plain = dataset.nodata is None and ColorInterp.alpha not in dataset.colorinterp
    warped = WarpedVRT(
        dataset,
        resampling=Resampling.bilinear,
        add_alpha=plain,
        crs=like.crs,
        transform=like.transform,
        height=like.height,
        width=like.width,
    )
    return TiffRaster(stack.enter_context(warped), raster.path, raster.bands, masked=True)


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


def need_rasterio(path: Path) -> None:
    """Raise :class:`ZooError` if TIFF files cannot be read or written here."""
    if rasterio is None:
        raise ZooError(
            f"{path}: TIFF files need rasterio, install it with pip install 'ssm-zoo[geo]'"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Let rasterio say nothing of files without georeference, which are allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


_said: set[tuple] = set()


def _say(line: str, about: tuple) -> None:
    """Once for each thing that it is about, not for each file."""
    if about not in _said:
        _said.add(about)
        log.warning("%s", line)
