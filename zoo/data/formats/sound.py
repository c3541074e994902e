"""From sound to features: reading, log-Mel spectrograms, speed perturbation, SpecAugment."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from zoo.errors import ZooError

RATE, WINDOW, HOP = 16_000, 400, 160
#: Samples a second that a file may have; how many are read at a time; and how long a sound may be
#: however small its file, and how many samples a byte may hold (Opus of silence has 320).
RATES, BLOCK, SHORT_S, DENSEST = (1_000, 768_000), 2**20, 600, 400
#: File endings that are taken for sound, lower case.
SOUND_SUFFIXES = frozenset([".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"])


def read_sound(
    source: Path | bytes, name: str | None = None, start: float = 0.0, seconds: float | None = None
) -> Tensor:
    """Read a sound file, or the bytes of one, as mono [S] at 16 kHz, about -1..1.

    Args:
        source: what to read.
        name: what messages call it, by default the path.
        start, seconds: the part that is read; None: up to the end.

    Raises:
        ZooError: it is missing, no sound, shorter than a window of 25 ms, or far longer than its
            bytes can hold.
    """
    name = name or str(source)
    if isinstance(source, Path) and not source.is_file():
        raise ZooError(f"{name}: no such file, expected a sound file")
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        with soundfile.SoundFile(opened) as file:
            samples, rate = _samples(file, name, size, start, seconds), file.samplerate
    except ZooError:
        raise
    except Exception as error:  # libsndfile's own, and Python's of odd headers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ZooError(
            f"{name}: not a readable sound file ({reason}), expected WAV, FLAC, MP3, Ogg or Opus"
        ) from error
    sound = change_rate(samples, rate, RATE)
    if len(sound) < WINDOW:
        raise ZooError(f"{name}: {len(sound) / RATE:.3f} s of sound, expected 0.025 s or more")
    if not np.isfinite(sound).all():
        raise ZooError(f"{name}: values that are not finite, expected a sound file")
    return torch.from_numpy(sound)


def _samples(
    file: soundfile.SoundFile, name: str, size: int, start: float, seconds: float | None
) -> np.ndarray:
    """Mono samples of a file of ``size`` bytes, block by block: its header may lie."""
    low, high = RATES
    if not low <= file.samplerate <= high:
        raise ZooError(f"{name}: {file.samplerate} samples a second, expected {low} to {high}")
    first = round(start * file.samplerate)
    wanted = None if seconds is None else round(seconds * file.samplerate)
    if first:
        file.seek(min(first, file.frames))
    longest = max(SHORT_S * file.samplerate, DENSEST * size)
    blocks, length = [], 0
    while wanted is None or length < wanted:
        count = BLOCK // file.channels
        block = file.read(
            count if wanted is None else min(count, wanted - length), "float32", always_2d=True
        )
        if not len(block):
            break
        blocks.append(block.mean(1))
        length += len(block)
        if length > longest:
            raise ZooError(
                f"{name}: more than {length / file.samplerate / 60:,.0f} minutes in {size:,} "
                "bytes: it is damaged, or made to fill the memory"
            )
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def change_rate(samples: np.ndarray, before: int, after: int) -> np.ndarray:
    """Resample [S] from one number of samples a second to another."""
    if before == after:
        return np.ascontiguousarray(samples, np.float32)
    common = gcd(before, after)
    return resample_poly(samples, after // common, before // common).astype(np.float32)


def change_speed(sound: Tensor, factor: float) -> Tensor:
    """Play [S] faster (factor > 1) or slower, the pitch with it (Ko et al. 2015)."""
    changed = change_rate(sound.numpy(), round(100 * factor), 100)
    return torch.from_numpy(changed)


@cache
def _filters(n_mels: int) -> Tensor:
    bank = mel_filter_bank(
        WINDOW // 2 + 1, n_mels, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(bank).float()  # [201, n_mels]


def log_mel(sound: Tensor, n_mels: int = 80, peak: float | None = None) -> Tensor:
    """Log-Mel spectrogram as Whisper has it: 100 frames a second, windows of 25 ms.

    Equal to transformers' ``WhisperFeatureExtractor`` without its padding to 30 s.

    Args:
        sound: [S] at 16 kHz.
        n_mels: bands from 0 to 8 kHz.
        peak: values reach down to 8 (decades of power) below this; None: below the loudest of the
            sound, for which all of it must be known.

    Returns:
        [S // 160, n_mels], about -1..1.
    """
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(sound, WINDOW, HOP, window=window, return_complex=True)[:, :-1]
    power = spectrum.abs().square().T  # [T, 201]
    mel = (power @ _filters(n_mels)).clamp(min=1e-10).log10()
    low = (mel.max() if peak is None else torch.tensor(peak)) - 8
    return (torch.maximum(mel, low) + 4) / 4


@dataclass
class SpecAugment:
    """Hide bands and stretches of a spectrogram behind its mean (Park et al. 2019).

    Args:
        freq_masks, freq_width: number of bands, and the width of the widest.
        time_masks, time_ratio: number of stretches, and the share of the frames of the longest.
    """

    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 10
    time_ratio: float = 0.05

    def __call__(self, features: Tensor) -> Tensor:
        """[T, F] to the same, by the global generator."""
        frames, bands = features.shape
        hidden = torch.zeros(frames, bands, dtype=torch.bool)
        for _ in range(self.freq_masks):
            start, end = _stretch(bands, self.freq_width)
            hidden[:, start:end] = True
        for _ in range(self.time_masks):
            start, end = _stretch(frames, int(self.time_ratio * frames))
            hidden[start:end] = True
        return torch.where(hidden, features.mean(), features)


def _stretch(size: int, longest: int) -> tuple[int, int]:
    length = int(torch.randint(0, min(longest, size) + 1, ()))
    start = int(torch.randint(0, size - length + 1, ()))
    return start, start + length
