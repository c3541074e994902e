"""Pictures of labels: a class for each pixel, or yes and no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from zoo.data.formats.files import reading
from zoo.data.formats.pictures import open_picture
from zoo.data.formats.rasters import TIFF_SUFFIXES, check_whole, open_tiff, rasterio
from zoo.errors import ZooError
from zoo.losses.segmentation import IGNORE

#: Formats that change the values they store a little.
LOSSY_SUFFIXES = frozenset([".jpeg", ".jpg", ".webp"])
#: Greys below and above these are black and white that a lossy format has changed.
NEARLY_BLACK, NEARLY_WHITE = 31, 224


def read_labels(path: Path) -> np.ndarray:
    """Label file, a grey or palette picture -> its values, [H, W]."""
    values = read_label_pixels(path)
    if values.ndim != 2:
        raise ZooError(f"{path}: {values.shape[2]} channels, expected a picture of one, labels")
    return values


def read_label_pixels(path: Path) -> np.ndarray:
    """Label file as it is stored: values or palette indices [H, W], or colours [H, W, C]."""
    return _read(path)[0]


def read_label_colours(path: Path) -> np.ndarray:
    """Label file with the colours of its palette, if it has one; see :func:`read_label_pixels`."""
    values, palette, _ = _read(path)
    return values if palette is None else palette[values]


def read_mask(path: Path, threshold: int = 127, soft: bool = False) -> np.ndarray:
    """Mask file -> 0 no, 1 yes, 255 not known, uint8 [H, W].

    What means yes is decided by the values that the file has:

    ========================  ======================================================
    values                    yes
    ========================  ======================================================
    0 and 1 (or True)         1
    0 and 255 (or 65535)      255 (65535)
    black and one colour      the colour, in a palette or in RGB
    greys along edges         above ``threshold``: smoothed, or from a lossy format
    ========================  ======================================================

    A GeoTIFF's value for no data, if that is not 0, is not known.

    Args:
        path: a picture.
        threshold: in 0..255.
        soft: the mask is a grey picture, whatever its greys.

    Raises:
        ZooError: it is no picture, or has other values, such as several classes, of which nobody
            can tell which mean yes.
    """
    values, palette, nodata = _read(path)
    if palette is not None:
        values = palette[values]
    if values.ndim == 3:
        values = _without_colour(path, values)
    known = np.ones(values.shape, bool) if not nodata else values != nodata
    if not known.any():
        return np.full(values.shape, IGNORE, np.uint8)
    distinct = np.unique(values[known])
    if path.suffix.lower() in LOSSY_SUFFIXES:
        # black stays black there, unless white is near
        yes = threshold + 0.5 if distinct[-1] == 0 or distinct[-1] > NEARLY_BLACK else None
    else:
        yes = _yes(distinct, values, threshold, soft)
    if yes is None or (not known.all() and distinct[-1] == 0 and nodata in (1, 255, 65535)):
        shown = ", ".join(f"{value:g}" for value in distinct[:8].astype(float))
        more = ", ..." if len(distinct) > 8 else ""
        unknown = f" and {nodata:g} for no data" if nodata else ""
        raise ZooError(
            f"{path}: values {shown}{more}{unknown}, which do not say what is yes: expected 0 and "
            "1, 0 and 255, or black and one colour"
        )
    return np.where(known, values >= yes, IGNORE).astype(np.uint8)


def _yes(distinct: np.ndarray, values: np.ndarray, threshold: int, soft: bool) -> float | None:
    """The least value that means yes in a mask [H, W]; None: nobody knows.

    Args:
        distinct: its known values, ascending.
        values, threshold, soft: see :func:`read_mask`.
    """
    low, high = float(distinct[0]), float(distinct[-1])
    if not 0 <= low <= high <= 65535:
        return None
    full = 255 if high <= 255 else 65535
    above = (threshold + 0.5) * full / 255
    if high <= 1 and set(distinct.tolist()) <= {0, 1}:
        return 1
    if soft or set(distinct.tolist()) <= {0, full}:
        return above
    if len(distinct) <= 3 or high * 255 < NEARLY_WHITE * full:
        return None
    # the greys of smooth edges are nowhere an area; those of a class are
    area = minimum_filter(values, 3) == maximum_filter(values, 3)
    between = (values.astype(np.float64) * 255 > NEARLY_BLACK * full) & (
        values.astype(np.float64) * 255 < NEARLY_WHITE * full
    )
    return None if (area & between).any() else above


def _without_colour(path: Path, colours: np.ndarray) -> np.ndarray:
    """Colours [H, W, C] -> grey values, or 255 for the only colour beside black, [H, W]."""
    if colours.shape[2] in (2, 4):
        if (colours[..., -1] != np.iinfo(colours.dtype).max).any():
            raise ZooError(f"{path}: a partly transparent mask, expected an opaque one")
        colours = colours[..., :-1]
    if colours.shape[2] > 3:
        raise ZooError(f"{path}: {colours.shape[2]} bands, expected a mask of one, or colours")
    if (colours == colours[..., :1]).all():
        return colours[..., 0]
    if path.suffix.lower() in LOSSY_SUFFIXES:
        return colours.max(-1)
    kinds = np.unique(colours.reshape(-1, colours.shape[2]), axis=0)
    black = not kinds[0].any()
    if len(kinds) != 1 + black:
        raise ZooError(
            f"{path}: a mask of {len(kinds)} colours"
            + ("" if black else ", none of them black")
            + ", expected black and one other"
        )
    return colours.any(-1).astype(np.uint8) * 255


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """Values as they are stored, the palette [256, 3] they point into, and that of no data."""
    expected = "a picture of labels"
    if path.suffix.lower() in TIFF_SUFFIXES and rasterio is not None:
        with open_tiff(path, expected) as dataset, reading(path, expected):
            check_whole(path, dataset)
            values = dataset.read().transpose(1, 2, 0)
            palette = None
            if dataset.count == 1 and dataset.colorinterp[0].name == "palette":
                palette = np.zeros((256, 3), np.uint8)
                for index, colour in dataset.colormap(1).items():
                    palette[index] = colour[:3]
            return values[..., 0] if dataset.count == 1 else values, palette, dataset.nodata
    with reading(path, expected), open_picture(path) as picture:
        values = np.asarray(picture)
        palette = None
        if picture.mode == "P":
            found = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(found)] = found
        return values, palette, None
