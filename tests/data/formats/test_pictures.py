import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from zoo.data.formats.labels import read_labels
from zoo.data.formats.pictures import read_picture
from zoo.errors import ZooError


def png(path, width, height, rows=None):
    """A grey PNG file whose header says this size; ``rows`` are stored, by default all."""
    pixels = zlib.compress(bytes(height * (width + 1) if rows is None else rows), 9)

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("read", [read_picture, read_labels])
def test_pixels_are_compared_with_the_file(tmp_path, read):
    with pytest.raises(ZooError, match="10000 x 10000 pixels would take 286 MiB, but only"):
        read(png(tmp_path / "lie.png", 10_000, 10_000, rows=100))
    with pytest.raises(ZooError, match="exceeds limit of 178956970 pixels"):
        read(png(tmp_path / "bomb.png", 50_000, 50_000, rows=100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZooError, match=r"cut.png"):
            read(png(tmp_path / "cut.png", 100, 100, rows=100))


def test_large_pictures_are_read_without_a_word(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000)).astype(np.uint8)
    Image.fromarray(np.tile(noise, (10, 9))).save(tmp_path / "it.jpg", quality=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "it.jpg").size == (9000, 10_000)


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (Image.new("RGBA", (2, 2), (200, 100, 50, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (200, 100, 50, 255)), (200, 100, 50)),
        (Image.new("LA", (2, 2), (10, 255)), (10, 10, 10)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 257 * 40, np.uint16)), (40, 40, 40)),
        (Image.fromarray(np.full((2, 2), 0.2, np.float32)), (51, 51, 51)),
        (Image.fromarray(np.full((2, 2), 120.0, np.float32)), (120, 120, 120)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
    ],
)
def test_pictures_of_any_mode(tmp_path, picture, wanted):
    picture.save(tmp_path / "it.tif")
    assert read_picture(tmp_path / "it.tif").getpixel((1, 1)) == wanted
