"""Raw audio, sample by sample: SC09, YouTubeMix, Beethoven."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from zoo.data.base import DataModule, Source, at_least
from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.maps import SmallSample, make_once
from zoo.data.formats.quantised_sound import Quantization, quantise
from zoo.data.formats.sound import RATE, SOUND_SUFFIXES, read_sound
from zoo.data.synthetic.plucked_tones import plucked_tone
from zoo.errors import ZooError

#: Shares of training and validation among files in order.
_TRAIN, _VAL = 0.88, 0.06


@dataclass
class SmallAudio(SmallSample):
    """How many notes to make.

    Args:
        train, val, test: notes of each split.
        size: samples of each.
        seed: of the maker.
        lowest, highest: fundamental in Hz.
    """

    size: int = 2048
    lowest: float = 220.0
    highest: float = 880.0


class _Stretch(NamedTuple):
    """Where a sample of a data set is."""

    path: Path
    start: float
    seconds: float


class RawAudio(DataModule):
    """Clips of sound in whole numbers; batches of ``tokens`` [B, length].

    Layout: ``*.wav`` in one folder, of which the first 88 %, the next 6 % and the rest are
    training, validation and test (YouTubeMix, Beethoven); or ``<digit>/*.wav`` with
    ``validation_list.txt`` and ``testing_list.txt`` (SC09).

    Args:
        root: the folder.
        sample: make notes in the first layout in ``root`` if there is none; null: never.
        length: samples of a clip at 16 kHz; longer files give several, the rest at their ends is
            left out, shorter ones are padded with silence.
        quantization, bits: see :func:`zoo.data.formats.quantised_sound.quantise`.
        kwargs: see :class:`DataModule`.
    """

    LISTS: ClassVar = {"val": "validation_list.txt", "test": "testing_list.txt"}
    layout = "*.wav; or <digit>/*.wav, validation_list.txt and testing_list.txt"

    def __init__(
        self,
        root: str,
        sample: SmallAudio | None = None,
        length: int = 16000,
        quantization: Quantization = "mu-law",
        bits: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least(1, length=length, bits=bits)
        self.root, self.sample = Path(root).expanduser(), sample
        self.length, self.quantization, self.bits = length, quantization, bits

    def load(self, split: str) -> Source:
        """The clips of a split, which are read as they are asked for."""
        if self.sample is not None:
            make_once(self, self.root, self.sample)
        if not self.root.is_dir():
            raise ZooError(
                f"data.init_args.root: {self.root} is not a folder, expected {self.layout}; set it "
                "with --data.init_args.root FOLDER"
            )
        seconds = self.length / RATE
        found = []
        for path in self._files(split):
            with reading(path, "a sound file"):
                whole = soundfile.info(path).duration
            count = max(1, int(whole / seconds + 1e-6))
            found += [_Stretch(path, i * seconds, seconds) for i in range(count)]
        return found

    def _files(self, split: str) -> list[Path]:
        listed = {name: self.root / file for name, file in self.LISTS.items()}
        if all(path.is_file() for path in listed.values()):
            names = {name: set(path.read_text().split()) for name, path in listed.items()}
            if split != "train":
                return natural_sorted(self.root / name for name in names[split])
            held_back = names["val"] | names["test"]
            every = natural_sorted(self.root.glob("*/*.wav"))
            return [p for p in every if f"{p.parent.name}/{p.name}" not in held_back]
        every = natural_sorted(p for p in self.root.iterdir() if p.suffix.lower() in SOUND_SUFFIXES)
        if not every:
            raise ZooError(f"{self.root} holds no sound files, expected {self.layout}")
        ends = [0, round(_TRAIN * len(every)), round((_TRAIN + _VAL) * len(every)), len(every)]
        part = ("train", "val", "test").index(split)
        return every[ends[part] : ends[part + 1]]

    def to_tokens(self, sound: Tensor) -> Tensor:
        """Sound [S] -> levels [S]."""
        return quantise(sound, self.quantization, self.bits)

    def eval_transform(self, sample: _Stretch) -> dict[str, Tensor]:
        """Read a clip."""
        sound = read_sound(sample.path, start=sample.start, seconds=sample.seconds)[: self.length]
        sound = torch.nn.functional.pad(sound, (0, self.length - len(sound)))
        return {"tokens": self.to_tokens(sound)}

    train_transform = eval_transform

    def make(self, folder: Path, sample: SmallAudio) -> None:  # type: ignore[override]
        """Write notes, all in one folder: what share each split has is fixed."""
        draws = np.random.default_rng(sample.seed)
        count = sample.train + sample.val + sample.test
        for number in range(count):
            sound = plucked_tone(draws, sample.size, RATE, (sample.lowest, sample.highest))
            soundfile.write(folder / f"out{number:05d}.wav", sound, RATE)
