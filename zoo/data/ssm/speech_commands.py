"""Speech Commands: one spoken word each, as raw sound, Mel filter bank or cepstrum."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import soundfile
import torch
from scipy.fft import dct
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from zoo.data.base import Source, at_least
from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.maps import SmallSample
from zoo.data.formats.sound import HOP, RATE, SOUND_SUFFIXES, WINDOW, SpecAugment, read_sound
from zoo.data.ssm.sequences import SequenceFolder, StoredSequence
from zoo.data.synthetic.chirped_words import WORDS, chirped_word
from zoo.errors import ZooError

#: Mean and deviation of the data set's filter bank, by the authors of the AST.
MEAN, STD = -6.845978, 5.5654526
MFCC = {"n_fft": 200, "hop": 100, "n_mels": 64, "n_mfcc": 20}


class SpeechCommands(SequenceFolder):
    """Speech Commands: which word is said in a second of sound?

    Layout: ``<word>/<speaker>_nohash_0.wav``, ``validation_list.txt`` and ``testing_list.txt`` with
    a line such as ``bed/026290a7_nohash_0.wav`` each; ``_background_noise_`` is left out.

    Args:
        root, sample, kwargs: see :class:`zoo.data.ssm.sequences.SequenceFolder`; a sample's size
            has no meaning.
        features: ``raw``, a feature and 16,000 steps; ``fbank``, Kaldi's filter bank, 100 frames a
            second, padded to ``frames``, by the data set's mean and twice its deviation; ``mfcc``,
            20 coefficients in 161 frames, each by its own mean and deviation over the frames.
        words: these alone, such as the ten of S4's comparison; null: all.
        seconds: recordings are cut or padded to this.
        every: take every so-many-th sample of ``raw``, as a test at a lower rate does.
        n_mels, frames: of ``fbank``.
        mixup: share of the training recordings that are mixed with another one, by a weight of
            Beta(10, 10).
        spec_augment: hide parts of the training ``fbank``; null: do not.
        noise: add noise to the training ``fbank`` and roll it by up to ten frames.
    """

    layout = "<word>/*.wav, validation_list.txt and testing_list.txt"
    suffixes = SOUND_SUFFIXES
    LISTS: ClassVar = {"val": "validation_list.txt", "test": "testing_list.txt"}

    def __init__(
        self,
        root: str,
        sample: SmallSample | None = None,
        features: Literal["raw", "fbank", "mfcc"] = "fbank",
        words: Sequence[str] | None = None,
        seconds: float = 1.0,
        every: int = 1,
        n_mels: int = 128,
        frames: int = 128,
        mixup: float = 0.0,
        spec_augment: SpecAugment | None = None,
        noise: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, sample, **kwargs)
        at_least(1, every=every, n_mels=n_mels, frames=frames)
        if features != "fbank" and (spec_augment is not None or noise):
            raise ZooError("data.init_args.spec_augment and noise need features: fbank")
        self.features, self.words, self.every = features, words, every
        self.samples = round(seconds * RATE)
        self.n_mels, self.frames, self.mixup = n_mels, frames, mixup
        self.spec_augment, self.noise = spec_augment, noise
        self.d_input = {"raw": 1, "fbank": n_mels, "mfcc": MFCC["n_mfcc"]}[features]

    def sequences(self, split: str) -> Source:
        """The recordings of a split, which are read as they are asked for."""
        found = sorted(
            p.name for p in self.root.iterdir() if p.is_dir() and p.name[:1] not in (".", "_")
        )
        if not found:
            raise ZooError(f"{self.root} holds no folders, expected {self.layout}")
        if missing := sorted(set(self.words or ()) - set(found)):
            raise ZooError(f"data.init_args.words: {self.root} has no folder {missing[0]}")
        self.class_names = tuple(self.words or found)
        listed = {name: self._listed(name) for name in self.LISTS}
        if split == "train":
            held_back = listed["val"] | listed["test"]
            files = [
                f"{word}/{path.name}"
                for word in self.class_names
                for path in natural_sorted((self.root / word).glob("*.wav"))
                if f"{word}/{path.name}" not in held_back
            ]
        else:
            files = sorted(f for f in listed[split] if f.partition("/")[0] in self.class_names)
        labels = {word: i for i, word in enumerate(self.class_names)}
        return [
            StoredSequence(partial(self.sound, self.root / f), labels[f.partition("/")[0]])
            for f in files
        ]

    def _listed(self, split: str) -> set[str]:
        path = self.existing(self.LISTS[split])
        with reading(path, "text with a file's name in each line"):
            return set(path.read_text(encoding="utf-8").split())

    def sound(self, path: Path) -> Tensor:
        """Samples [S] of a file, cut or padded."""
        sound = read_sound(path)[: self.samples]
        return torch.nn.functional.pad(sound, (0, self.samples - len(sound)))

    def to_features(self, sound: Tensor) -> Tensor:
        """Samples [S] -> [L, F]."""
        if self.features == "raw":
            return sound[:: self.every, None]
        if self.features == "mfcc":
            found = mfcc(sound)
            return (found - found.mean(0)) / found.std(0).clamp(min=1e-5)
        return (self._bank(sound) - MEAN) / (2 * STD)

    def _bank(self, sound: Tensor) -> Tensor:
        bank = kaldi_fbank(sound, self.n_mels)[: self.frames]
        return torch.nn.functional.pad(bank, (0, 0, 0, self.frames - len(bank)))

    def read_file(self, path: Path) -> Tensor:
        """The features of a sound file."""
        return self.to_features(self.sound(path))

    def eval_transform(self, sample: StoredSequence) -> dict[str, Any]:
        """Compute features."""
        return {"inputs": self.to_features(sample.read()), "label": sample.label}

    def train_transform(self, sample: StoredSequence) -> dict[str, Any]:
        """Mix with another recording, compute features, hide parts, add noise."""
        sound, label = sample.read(), sample.label
        target: Any = label
        if self.mixup > 0:
            target = torch.zeros(len(self.class_names))
            share = 1.0
            if np.random.random() < self.mixup:
                source = self.source("train")
                other = source[np.random.randint(len(source))]
                share = float(np.random.beta(10, 10))
                sound = share * (sound - sound.mean())
                noise = other.read()
                sound = sound + (1 - share) * (noise - noise.mean())
                target[other.label] += 1 - share
            target[label] += share
        if self.features != "fbank":
            return {"inputs": self.to_features(sound), "label": target}
        bank = self._bank(sound)
        if self.spec_augment is not None:
            bank = self.spec_augment(bank)
        bank = (bank - MEAN) / (2 * STD)
        if self.noise:
            bank = bank + torch.rand_like(bank) * np.random.random() / 10
            bank = bank.roll(np.random.randint(-10, 10), 0)
        return {"inputs": bank, "label": target}

    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write pairs of chirps as words."""
        draws = np.random.default_rng(sample.seed)
        for split in ("train", "val", "test"):
            listed = []
            for number in range(getattr(sample, split)):
                word = WORDS[number % len(WORDS)]
                (folder / word).mkdir(exist_ok=True)
                name = f"{word}/{split}{number:04d}_nohash_0.wav"
                sound = chirped_word(draws, word, RATE, 1.0)
                soundfile.write(folder / name, sound, RATE)
                listed.append(f"{name}\n")
            if split != "train":
                (folder / self.LISTS[split]).write_text("".join(listed), encoding="utf-8")


def kaldi_fbank(sound: Tensor, n_mels: int) -> Tensor:
    """Kaldi's log filter bank: frames of 25 ms, 100 a second, Hann window, no dither.

    Args:
        sound: [S] at 16 kHz; its mean is taken away.
        n_mels: bands from 20 Hz to 8 kHz.

    Returns:
        [1 + (S - 400) // 160, n_mels].
    """
    window, filters = _kaldi(n_mels)
    bank = spectrogram(
        (sound - sound.mean()).numpy().astype(np.float64),
        window,
        frame_length=WINDOW,
        hop_length=HOP,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=float(np.finfo(np.float32).eps),
        remove_dc_offset=True,
    )
    return torch.from_numpy(bank.T.astype(np.float32))


@cache
def _kaldi(n_mels: int) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():  # of narrow bands that hold no frequency, as Kaldi's do
        warnings.simplefilter("ignore")
        filters = mel_filter_bank(
            257, n_mels, 20.0, RATE / 2, RATE, mel_scale="kaldi", triangularize_in_mel_space=True
        )
    return window_function(WINDOW, "hann", periodic=False), filters


@cache
def _mel() -> Tensor:
    bins = MFCC["n_fft"] // 2 + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = mel_filter_bank(bins, MFCC["n_mels"], 0.0, RATE / 2, RATE, mel_scale="htk")
    return torch.from_numpy(bank).float()


def mfcc(sound: Tensor) -> Tensor:
    """Mel-frequency cepstrum [1 + S // 100, 20] of sound [S] at 16 kHz: 64 bands, logarithm,
    orthonormal cosine transform (torchaudio's ``MFCC`` with ``log_mels``)."""
    size = MFCC["n_fft"]
    window = torch.hann_window(size)
    spectrum = torch.stft(sound, size, MFCC["hop"], window=window, return_complex=True)
    mel = (spectrum.abs().square().T @ _mel() + 1e-6).log()
    cepstrum = dct(mel.numpy(), norm="ortho", axis=-1)[:, : MFCC["n_mfcc"]]
    return torch.from_numpy(np.ascontiguousarray(cepstrum, np.float32))
