"""Made speech: short commands of a closed vocabulary, spoken by espeak-ng or out of the box."""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from zoo.data.formats.sound import RATE, change_rate
from zoo.errors import ZooError

#: A sentence takes one of each; 31 words in all.
SLOTS: tuple[tuple[str, ...], ...] = (
    ("place", "move", "put", "bring"),
    ("the",),
    ("red", "green", "blue", "white"),
    ("ball", "box", "cup", "book"),
    ("near", "under", "behind", "on"),
    ("number",),
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("now", "again", "please", "soon"),
)
#: Voices of espeak-ng, which are the speakers.
VOICES = ("en-us", "en-us+f3", "en-gb+m3", "en-gb+f2", "en-gb-scotland")
#: The shipped recordings: one after the other in a sound file, and a table of where each is.
SOUNDS, TABLE = "sentences.opus", "sentences.tsv"


@dataclass(frozen=True)
class Spoken:
    """A spoken sentence.

    Attributes:
        text: in lower case.
        speaker: number of the voice.
        sound: float32 [S] at 16 kHz.
    """

    text: str
    speaker: int
    sound: np.ndarray


def spoken_sentences(
    count: int, source: Literal["auto", "espeak", "shipped"] = "auto", seed: int = 0
) -> Iterator[Spoken]:
    """Different sentences in changing voices.

    Args:
        count: how many.
        source: "espeak" lets espeak-ng speak them; "shipped" takes recordings of it that come with
            this package, of which there are 420; "auto" is espeak if it is installed.
        seed: of the sentences and voices; the shipped ones are what they are.

    Raises:
        ZooError: espeak-ng is not there, or so many sentences are not shipped.
    """
    installed = shutil.which("espeak-ng") is not None
    if source == "espeak" and not installed:
        raise ZooError(
            "espeak-ng is not installed: install it (apt-get install espeak-ng), or set source to "
            "shipped"
        )
    if source == "espeak" or (source == "auto" and installed):
        yield from speak(count, seed)
        return
    shipped = list(islice(_shipped(), count))
    if len(shipped) < count:
        raise ZooError(
            f"{count} sentences were asked for, {len(shipped)} come with this package: install "
            "espeak-ng for more, or ask for fewer"
        )
    yield from shipped


def speak(count: int, seed: int) -> Iterator[Spoken]:
    """Sentences by espeak-ng, each once, with random voice, speed and pitch."""
    rng = np.random.default_rng(seed)
    sizes = [len(slot) for slot in SLOTS]
    if count > np.prod(sizes):
        raise ZooError(f"{count} sentences were asked for, there are only {np.prod(sizes)}")
    for number in rng.permutation(int(np.prod(sizes)))[:count]:
        words = np.unravel_index(number, sizes)
        text = " ".join(slot[int(word)] for slot, word in zip(SLOTS, words, strict=True))
        voice = int(rng.integers(len(VOICES)))
        speed, pitch = rng.integers(165, 205), rng.integers(35, 65)
        yield Spoken(text, voice, _espeak(text, VOICES[voice], int(speed), int(pitch)))


def _espeak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", file.name]
        try:
            subprocess.run([*command, text], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise ZooError(f"espeak-ng cannot speak as {voice}: {error.stderr.strip()}") from error
        samples, rate = soundfile.read(file.name, dtype="float32")
    # espeak-ng ends with a quarter of a second of silence
    end = int(np.flatnonzero(np.abs(samples) > 0.003)[-1]) + rate // 20
    return change_rate(samples[:end], rate, RATE)


def _shipped() -> Iterator[Spoken]:
    folder = files(__name__)
    with as_file(folder / SOUNDS) as path:
        samples, _ = soundfile.read(path, dtype="float32")
    with (folder / TABLE).open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            start = int(row["start"])
            sound = samples[start : start + int(row["samples"])]
            yield Spoken(row["text"], int(row["speaker"]), sound)


def write_shipped(folder: Path, count: int = 420, seed: int = 0) -> None:
    """Record what is shipped; ``python -m zoo.data.synthetic.spoken`` does it.

    Args:
        folder: takes the sound file and the table.
        count: sentences.
        seed: see :func:`speak`.
    """
    rows, parts, start = ["start\tsamples\tspeaker\ttext\n"], [], 0
    pause = np.zeros(RATE // 20, np.float32)
    for spoken in speak(count, seed):
        rows.append(f"{start}\t{len(spoken.sound)}\t{spoken.speaker}\t{spoken.text}\n")
        parts += [spoken.sound, pause]
        start += len(spoken.sound) + len(pause)
    # Opus at about 13 kbit/s: two megabytes are twenty minutes
    soundfile.write(
        folder / SOUNDS, np.concatenate(parts), RATE, "OPUS", format="OGG", compression_level=0.98
    )
    (folder / TABLE).write_text("".join(rows))
