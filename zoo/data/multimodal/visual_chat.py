"""Conversations about pictures, in InternVL's layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zoo.data.base import DataModule, Source
from zoo.data.formats.files import reading
from zoo.data.formats.maps import SmallSample, make_once
from zoo.data.formats.pictures import read_picture
from zoo.data.formats.tiles import tiles
from zoo.data.formats.tokenizers import load_tokenizer
from zoo.data.language.text import SPLITS
from zoo.data.synthetic.colour_grids import ask, draw_grid, word_tokenizer
from zoo.errors import ZooError

LAYOUT = (
    'meta.json, {"NAME": {"root": FOLDER OF IMAGES, "annotation": FILE.jsonl, "repeat_time": 1}}, '
    'whose lines are {"image": FILE, "conversations": [{"from": "human", "value": ...}, ...]}'
)
START, END = "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
PLACE = "<image>"
REMEMBERED_TEXTS = 4096
#: Times that a data set may be repeated in an epoch.
MOST_REPEATS = 1000


class VisualChat(DataModule):
    """Conversations about pictures.

    A sample is a dictionary: ``input_ids`` int64 ``[L]``, ``mask`` float ``[L]`` with 1 for what
    the assistant says, ``pixel_values`` ``[T, 3, S, S]``. A batch is padded on the right;
    ``present`` has 1 for what is no padding, and the tiles of all samples follow each other.

    Args:
        root: folder with ``meta.json``, InternVL's description of its data sets; paths in it may be
            relative to it. Beside it may be ``val.json`` and ``test.json`` of the same kind;
            without them the conversations are shared out 90 : 5 : 5.
        tokenizer: folder or hub name; by default ``root/tokenizer``.
        image_size: side of a tile in pixels.
        image_tokens: tokens of a tile.
        max_tiles: tiles of a picture at most, the thumbnail not counted; 1: no tiling.
        length: longest sample in tokens; longer ones are cut.
        system: what the system says before every conversation; None: no system turn.
        sample: make a small data set of this layout in ``root`` if there is none.
        kwargs: see :class:`zoo.data.DataModule`.
    """

    def __init__(
        self,
        root: str,
        tokenizer: str | None = None,
        image_size: int = 448,
        image_tokens: int = 256,
        max_tiles: int = 12,
        length: int = 8192,
        system: str | None = None,
        sample: SmallSample | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.sample = Path(root).expanduser(), sample
        self.image_size, self.image_tokens, self.max_tiles = image_size, image_tokens, max_tiles
        self.length, self.system = length, system
        self._tokenizer_source = tokenizer
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._known: dict[str, list[int]] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; it must know the tokens of images and turns."""
        if self._tokenizer is None:
            place = self._tokenizer_source or str(self.root / "tokenizer")
            self._tokenizer = load_tokenizer(place)
            known = self._tokenizer.get_vocab()
            missing = [
                t for t in (START, END, IMAGE_START, IMAGE_TOKEN, IMAGE_END) if t not in known
            ]
            if missing:
                raise ZooError(f"data.init_args.tokenizer '{place}' lacks {', '.join(missing)}")
        return self._tokenizer

    def _tokens(self, text: str) -> list[int]:
        """A text's tokens; openings of turns, and short answers, come again and again."""
        if text in self._known:
            return self._known[text]
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(self._known) < REMEMBERED_TEXTS:
            self._known[text] = tokens
        return tokens

    @cached_property
    def _opening(self) -> list[int]:
        """What the tokenizer puts before every text."""
        return self.tokenizer("")["input_ids"]

    @property
    def image_token(self) -> int:
        """Number of the token that stands for a patch."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @property
    def end_token(self) -> int:
        """Number of the token that ends a turn."""
        return self.tokenizer.convert_tokens_to_ids(END)

    def load(self, split: str) -> Source:
        """The conversations of a split, as they stand in the files."""
        if self.sample is not None:
            make_once(self, self.root, self.sample)
        own = self.root / f"{split}.json"
        if split != "train" and own.is_file():
            return read_meta(own)
        conversations = read_meta(self.root / "meta.json")
        if all((self.root / f"{name}.json").is_file() for name in ("val", "test")):
            return conversations
        low, high = (round(share * len(conversations)) for share in SPLITS[split])
        return conversations[low:high]

    def train_transform(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """A line of a file -> tokens, mask and tiles."""
        images = [read_picture(path) for path in sample["images"]]
        return self.encode(sample["turns"], images)

    eval_transform = train_transform

    def encode(
        self, turns: Sequence[tuple[str, str]], images: Sequence[Image.Image]
    ) -> dict[str, Tensor]:
        """Turns ``("human" or "gpt", text)`` and pictures -> a sample.

        A last turn of "gpt" without text is left open, for the model to go on with.
        """
        cut = [tiles(image, self.image_size, self.max_tiles) for image in images]
        texts = [] if self.system is None else [("", f"{START}system\n{self.system}{END}")]
        waiting = [IMAGE_START + IMAGE_TOKEN * self.image_tokens * len(c) + IMAGE_END for c in cut]
        for speaker, text in turns:
            while PLACE in text and waiting:
                text = text.replace(PLACE, waiting.pop(0), 1)
            role = "assistant" if speaker == "gpt" else "user"
            texts.append(("", f"{START}{role}\n"))
            if text or role == "user":
                texts.append((role, f"{text}{END}"))
        if waiting:
            raise ZooError(f"a conversation has {len(images)} pictures but fewer {PLACE} in it")
        ids: list[int] = list(self._opening)
        mask = [0.0] * len(ids)
        for role, text in texts:
            new = self._tokens(text)
            ids += new
            mask += [float(role == "assistant")] * len(new)
        pixels = [normalised(tile) for tiles_of_one in cut for tile in tiles_of_one]
        size = self.image_size
        return {
            "input_ids": torch.tensor(ids[: self.length]),
            "mask": torch.tensor(mask[: self.length]),
            "pixel_values": torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size),
        }

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Samples -> batch."""

        def pad(rows: list[Tensor]) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

        batch = {name: pad([sample[name] for sample in samples]) for name in ("input_ids", "mask")}
        batch["present"] = pad([torch.ones(len(sample["input_ids"])) for sample in samples])
        batch["pixel_values"] = torch.cat([sample["pixel_values"] for sample in samples])
        return batch

    def to_display(self, pixels: Tensor) -> np.ndarray:
        """A tile [3, S, S] -> uint8 [S, S, 3]."""
        mean, std = (torch.tensor(v) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        image = pixels.cpu().movedim(0, -1) * std + mean
        return (image.clamp(0, 1) * 255).round().byte().numpy()

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write colour grids: three conversations of five questions about each training picture,
        one about the others; and a tokenizer of whole words."""
        rng = np.random.default_rng(sample.seed)
        (folder / "images").mkdir()
        for split, count in (("train", sample.train), ("val", sample.val), ("test", sample.test)):
            lines = []
            for number in range(count):
                picture, cells = draw_grid(rng, sample.size)
                file = f"{split}_{number:05d}.png"
                Image.fromarray(picture).save(folder / "images" / file)
                order = rng.permutation(cells.size).tolist()
                for start in (0, 5, 10) if split == "train" else (0,):
                    turns = []
                    for question, answer in ask(cells, order[start : start + 5]):
                        turns += [_turn("human", question), _turn("gpt", answer)]
                    turns[0]["value"] = f"{PLACE}\n{turns[0]['value']}"
                    line = {"id": len(lines), "image": file, "conversations": turns}
                    lines.append(json.dumps(line))
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
            meta = {"root": "images", "annotation": f"{split}.jsonl", "repeat_time": 1}
            meta["length"] = len(lines)
            name = "meta" if split == "train" else split
            (folder / f"{name}.json").write_text(json.dumps({"colour_grids": meta}, indent=2))
        special = ["<pad>", START, END, IMAGE_START, IMAGE_TOKEN, IMAGE_END]
        word_tokenizer(special, ["user", "assistant"]).save_pretrained(folder / "tokenizer")


def _turn(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


def normalised(tile: Image.Image) -> Tensor:
    """A picture -> float [3, H, W], normalised as ImageNet is."""
    mean, std = (torch.tensor(v) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return ((torch.from_numpy(np.asarray(tile).copy()) / 255 - mean) / std).movedim(-1, 0)


def read_meta(path: Path) -> list[dict[str, Any]]:
    """All conversations that a meta file lists: ``turns`` and the paths of their ``images``."""
    with reading(path, LAYOUT):
        content = json.loads(path.read_text(encoding="utf-8"))
        named = [
            (place["root"], place["annotation"], float(place.get("repeat_time", 1)))
            for place in content.values()
        ]
        places = [(path.parent / root, path.parent / file, times) for root, file, times in named]
    found = []
    for root, file, times in places:
        if not 0 <= times <= MOST_REPEATS:
            raise ZooError(f"{path}: a repeat_time of {times:g}, expected 0 to {MOST_REPEATS}")
        lines = _read_lines(file, root)
        found += lines * int(times) + lines[: round(times % 1 * len(lines))]
    return found


def _read_lines(path: Path, root: Path) -> list[dict[str, Any]]:
    with reading(path, "JSON lines"):
        lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_conversation(json.loads(line), root))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ZooError(f"{path}, line {number}: {reason}; expected {LAYOUT}") from error
    return found


def _conversation(item: Any, root: Path) -> dict[str, Any]:
    """A line of a file -> its turns and the paths of its images; a wrong one is one of Python's
    errors."""
    images = item.get("image", [])
    images = [images] if isinstance(images, str) else images
    turns = [(turn["from"], turn["value"]) for turn in item["conversations"]]
    turns = [turn for turn in turns if turn[0] != "system"]
    for _, text in turns:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
    if not turns:
        raise ValueError("nobody says anything")
    if images and not any(PLACE in text for _, text in turns):
        turns[0] = (turns[0][0], f"{PLACE}\n" * len(images) + turns[0][1])
    return {"turns": turns, "images": [root / image for image in images]}
