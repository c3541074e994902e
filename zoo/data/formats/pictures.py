"""Pictures as people have them (any mode, depth and orientation) -> 8-bit RGB."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from zoo.checkpoints.claims import check_claim
from zoo.data.formats.files import by_stem, natural_sorted
from zoo.errors import ZooError

#: File endings that are taken for pictures, lower case: what Pillow reads everywhere.
PICTURE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)

#: TIFF's tag for bands beyond the colours, and its values for alpha, premultiplied or not.
EXTRA_SAMPLES, ALPHA_SAMPLES = 338, (1, 2)


def read_picture(path: Path) -> Image.Image:
    """Read a picture file as 8-bit RGB, upright.

    Raises:
        ZooError: the file is missing, no picture, or broken; the message names it.
    """
    try:
        with open_picture(path) as picture:
            return to_rgb(picture)
    except FileNotFoundError:
        raise ZooError(f"{path}: no such file, expected a picture") from None
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ZooError(f"{path}: {error}") from error
    except Exception as error:  # what a broken file raises in there is not only OSError
        # Pillow's own messages repeat the path or speak of its internals
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        what = "an empty file" if size == 0 else "not a readable picture, or a broken one"
        raise ZooError(
            f"{path}: {what} ({size:,} bytes), expected a picture such as PNG or JPEG"
        ) from error


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Pillow's ``Image.open``, without its warnings; the pixels of a large picture are compared
    with the file instead.

    Raises:
        ZooError: the file cannot hold so many.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
            if pixels > (Image.MAX_IMAGE_PIXELS or 0):
                check_claim(path, 3 * pixels, f"{picture.width} x {picture.height} pixels")
            yield picture


def list_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder in natural order.

    Raises:
        ZooError: it holds none.
    """
    found = natural_sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        endings = " ".join(sorted(PICTURE_SUFFIXES))
        raise ZooError(f"{folder} holds no pictures, expected files ending in {endings}")
    return found


def paired(*folders: Path) -> list[tuple[Path, ...]]:
    """The pictures of some folders that have one name, whatever their endings, in natural order.

    Raises:
        ZooError: a name is missing in one of them, or a folder holds no pictures.
    """
    found = [by_stem(list_pictures(folder)) for folder in folders]
    for folder, names in zip(folders, found, strict=True):
        for other, theirs in zip(folders, found, strict=True):
            if lonely := [name for name in theirs if name not in names]:
                raise ZooError(
                    f"{folder} lacks {len(lonely)} of the {len(theirs)} pictures of {other}, such "
                    f"as {theirs[lonely[0]].stem}; expected one of each name"
                )
    return [tuple(names[name] for names in found) for name in found[0]]


def to_rgb(picture: Image.Image) -> Image.Image:
    """Turn a picture upright (EXIF) and into 8-bit RGB; transparent parts become white.

    16-bit pictures are scaled by their full range, float ones from 0..1 (or 0..255). The fourth
    band of a TIFF file is left out unless the file says that it is alpha and it looks like it.
    """
    picture.load()
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.mode == "RGBA":
        says = picture.tag_v2.get(EXTRA_SAMPLES, (0,))[0] in ALPHA_SAMPLES
        *colours, alpha = picture.split()
        if not says or not is_alpha(np.asarray(alpha)):
            picture = Image.merge("RGB", colours)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_to_8_bit(np.asarray(picture)))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def is_alpha(values: np.ndarray) -> bool:
    """Whether a band that is called alpha is one: all or nothing but for edges.

    GDAL calls the fourth band of any file so unless it is told what it is, near infrared too.
    """
    full = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    return bool(np.isin(values, (0, 1, full)).mean() > 0.9)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high) or low < 0 or high > 65535:
        raise ZooError(f"values from {low:g} to {high:g}, expected 0..65535, or 0..1 for floats")
    if np.issubdtype(values.dtype, np.floating):
        scale = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
    else:
        scale = 1 / 257
    return np.round(values * scale).astype(np.uint8)
