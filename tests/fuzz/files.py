"""The readers of data files, with files that are broken in one way or another.

A reader answers with what its contract says, or refuses in one line that names the file; it takes
no more memory than the file can hold, nor long.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import wave
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import h5py
import nibabel
import numpy as np
import rasterio
import soundfile
import torch
from PIL import Image
from rasterio.transform import from_origin
from scipy.io import savemat

from tests.fuzz._garble import garbled, garbled_text
from zoo.checkpoints.hdf5 import member, open_hdf5, read_array
from zoo.data.formats.arrays import read_mat, read_npy, read_npz
from zoo.data.formats.labels import read_labels, read_mask
from zoo.data.formats.mot_files import clip_of_detections, read_clip
from zoo.data.formats.pictures import read_picture
from zoo.data.formats.rasters import open_raster
from zoo.data.formats.sound import read_sound
from zoo.data.formats.tokenizers import load_tokenizer
from zoo.data.formats.volumes import dataset_labels, open_volume, read_label_volume
from zoo.data.language.text import read_conversations, train_tokenizer
from zoo.data.multimodal.visual_chat import read_meta
from zoo.data.speech.manifest import read_rows
from zoo.data.time_series.forecasting import read_series
from zoo.errors import ZooError

#: Address space of a case, over what the libraries take: far less than a lie asks for.
ROOM = 6 * 2**30


def case(random: Random) -> None:
    """One broken file, and the reader that it is for."""
    name = random.choice(list(KINDS))
    make, read, garble = KINDS[name]
    path = Path(make())
    content = path.read_bytes()
    path.write_bytes(garble(random, content) if random.random() < 0.97 else content)
    _limit_memory()
    told = f"{name}, a file of {path.stat().st_size} bytes"
    try:
        read(path)
    except ZooError as error:
        message = str(error)
        assert "\n" not in message.strip(), f"{told}: a refusal of several lines: {message}"
        assert 0 < len(message) < 1500, f"{told}: a refusal of {len(message)} characters"
    except MemoryError as error:
        raise AssertionError(f"{told}: memory was taken before the file was looked at") from error


@cache
def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, -1))


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _pixels(*shape: int) -> np.ndarray:
    return _rng().integers(0, 255, shape).astype(np.uint8)


def _picture(name: str, **options: Any) -> Callable[[], str]:
    def make() -> str:
        Image.fromarray(_pixels(24, 20, 3)).save(name, **options)
        return name

    return make


def _palette() -> str:
    picture = Image.fromarray(_pixels(24, 20) % 2)
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save("it.png")
    return "it.png"


def _raster(dtype: str) -> Callable[[], str]:
    def make() -> str:
        size = {"count": 4, "height": 40, "width": 30, "dtype": dtype, "tiled": True}
        blocks = {"blockxsize": 16, "blockysize": 16, "compress": "deflate"}
        place = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_300_000, 0.5, 0.5)}
        with rasterio.open("it.tif", "w", "GTiff", **size, **blocks, **place) as file:
            file.write(_pixels(4, 40, 30).astype(dtype))
        return "it.tif"

    return make


def _read_raster(path: Path) -> None:
    with open_raster(path) as raster:
        raster.read(0, 0, min(raster.height, 64), min(raster.width, 64))
        raster.overview(8, 8)


def _sound(name: str) -> Callable[[], str]:
    def make() -> str:
        soundfile.write(name, _rng().uniform(-0.5, 0.5, 4000), 16_000)
        return name

    return make


def _wave() -> str:
    with wave.open("it.wav", "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes(bytes(4000))
    return "it.wav"


def _read_sound_bytes(path: Path) -> None:
    read_sound(path.read_bytes(), "these bytes")


def _nifti(ending: str) -> Callable[[], str]:
    def make() -> str:
        volume = nibabel.Nifti1Image(_pixels(8, 7, 6) % 3, np.eye(4))
        nibabel.save(volume, f"it.{ending}")
        return f"it.{ending}"

    return make


def _gzip_inside(random: Random, content: bytes) -> bytes:
    """Break what is packed rather than the packing."""
    if random.random() < 0.3:
        return garbled(random, content)
    return gzip.compress(garbled(random, gzip.decompress(content)))


def _read_volume(path: Path) -> None:
    volume = open_volume(path)
    volume.read(0)
    volume.read()
    read_label_volume(path)


def _hdf5() -> str:
    with h5py.File("it.h5", "w") as file:
        file["image"] = _pixels(4, 8, 8)
        file.create_dataset("label", data=_pixels(4, 8, 8), compression="gzip", chunks=(1, 8, 8))
        file["link"] = h5py.SoftLink("/label")
    return "it.h5"


def _read_hdf5(path: Path) -> None:
    with open_hdf5(path) as file:
        for name in ("image", "label", "link"):
            read_array(member(file, name), 0)


def _npy() -> str:
    np.save("it.npy", _rng().normal(size=(5, 4)))
    return "it.npy"


def _npz() -> str:
    np.savez_compressed("it.npz", image=_pixels(6, 6), label=_pixels(6, 6))
    return "it.npz"


def _mat() -> str:
    content = {"a": np.arange(6.0), "s": {"x": 1, "y": np.array(["t", "u"], object)}}
    savemat("it.mat", content, do_compression=_rng().random() < 0.5)
    return "it.mat"


def _text(name: str, content: Any) -> Callable[[], str]:
    def make() -> str:
        Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
        return name

    return make


_DETECTIONS = "".join(f"{f},-1,{10 + f},20,30,40,0.9\n" for f in range(1, 9))
_HEADED = "frame,id,x1,y1,x2,y2,score\n" + "".join(f"{f},1,10,20,40,60,0.9\n" for f in range(9))
_INFO = "[Sequence]\nname=c\nimWidth=64\nimHeight=48\nseqLength=12\nframeRate=25\n"


def _clip() -> str:
    for folder in ("gt", "det"):
        Path(folder).mkdir(exist_ok=True)
    Path("gt/gt.txt").write_text("".join(f"{f},1,10,20,30,40,1,1,1\n" for f in range(1, 9)))
    Path("det/det.txt").write_text(_DETECTIONS)
    Path("seqinfo.ini").write_text(_INFO)
    return "seqinfo.ini"


def _read_clip(path: Path) -> None:
    clip = read_clip(path.parent)
    assert len(clip.detections) == clip.length
    clip.tracks()


def _read_detections(path: Path) -> None:
    clip = clip_of_detections(path)
    assert len(clip.detections) == clip.length and clip.width > 0 and clip.height > 0


def _tokenizer() -> str:
    train_tokenizer(["some words and some more words"] * 4, 270).save_pretrained(".")
    return "tokenizer.json"


def _read_tokenizer(path: Path) -> None:
    load_tokenizer(str(path.parent.resolve()))


def _archive_inside(random: Random, content: bytes) -> bytes:
    """Break an array in a zip archive, or the archive."""
    if random.random() < 0.4:
        return garbled(random, content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, garbled(random, old.read(name)))
    return buffer.getvalue()


_CHAT = {"a": {"root": "images", "annotation": "a.jsonl", "repeat_time": 1}}
_LINES = '{"image": "x.png", "conversations": [{"from": "human", "value": "<image> ?"}]}\n' * 3


def _chat() -> str:
    Path("a.jsonl").write_text(_LINES)
    return _text("meta.json", _CHAT)()


def _chat_lines() -> str:
    _text("meta.json", _CHAT)()
    return _text("a.jsonl", _LINES)()


_TALK = [{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}] * 2
_SPEECH = [{"audio_filepath": "a.wav", "text": "words", "duration": 1.0, "offset": 0.5}] * 2
_SERIES = "date,a,b\n" + "".join(f"2016-07-01 0{h}:00:00,{h},1.5\n" for h in range(9))
_LABELS = {"labels": {"0": "background", "1": "liver"}}

#: Name -> how a good file is made, its reader, and how it is broken.
Kind = tuple[Callable[[], str], Callable[[Path], Any], Callable[[Random, bytes], bytes]]
KINDS: dict[str, Kind] = {
    **{
        f"picture {ending}": (_picture(f"it.{ending}", **options), read_picture, garbled)
        for ending, options in {
            "png": {}, "jpg": {}, "bmp": {}, "gif": {}, "webp": {}, "ppm": {}, "tif": {},
            "tiff": {"compression": "tiff_lzw"},
        }.items()
    },
    "mask": (_palette, read_mask, garbled),
    "labels": (_palette, read_labels, garbled),
    "label raster": (_raster("uint8"), read_labels, garbled),
    "raster": (_raster("uint8"), _read_raster, garbled),
    "deep raster": (_raster("uint16"), _read_raster, garbled),
    **{
        f"sound {ending}": (_sound(f"it.{ending}"), read_sound, garbled)
        for ending in ("wav", "flac", "ogg", "mp3")
    },
    "plain wave": (_wave, read_sound, garbled),
    "bytes of a sound": (_wave, _read_sound_bytes, garbled),
    "nifti": (_nifti("nii"), _read_volume, garbled),
    "packed nifti": (_nifti("nii.gz"), _read_volume, _gzip_inside),
    "hdf5": (_hdf5, _read_hdf5, garbled),
    "npy": (_npy, lambda path: read_npy(path, "an array"), garbled),
    "npz": (_npz, lambda path: read_npz(path, ("image", "label"), "arrays"), _archive_inside),
    "mat": (_mat, lambda path: read_mat(path, "s", "a variable", simplify=True), garbled),
    "detections": (_text("det.txt", _DETECTIONS), _read_detections, garbled_text),
    "table of boxes": (_text("mine.csv", _HEADED), _read_detections, garbled_text),
    "clip": (_clip, _read_clip, garbled_text),
    "speech manifest": (_text("it.json", _SPEECH), read_rows, garbled_text),
    "speech table": (_text("it.csv", "path,text\na.wav,words\n"), read_rows, garbled_text),
    "series": (_text("it.csv", _SERIES), read_series, garbled_text),
    "conversations": (_text("it.json", _TALK), read_conversations, garbled_text),
    "chat": (_chat, read_meta, garbled_text),
    "lines of a chat": (_chat_lines, lambda path: read_meta(Path("meta.json")), garbled_text),
    "dataset.json": (_text("dataset.json", _LABELS), dataset_labels, garbled_text),
    "tokenizer": (_tokenizer, _read_tokenizer, garbled_text),
}  # fmt: skip

torch.set_num_threads(1)
