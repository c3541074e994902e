"""Subtitles: what was said and when, as SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

#: A cue ends before it gets longer than this, and where nobody speaks for so many seconds.
LETTERS, SECONDS, PAUSE = 42, 6.0, 0.8


class Cue(NamedTuple):
    """A line on the screen, with its time in seconds."""

    start: float
    end: float
    text: str


def cues_of(words: Sequence[tuple[str, float, float]]) -> Iterator[Cue]:
    """Words with start and end in seconds, in the order of time, as lines for a screen."""
    line: list[tuple[str, float, float]] = []
    for word in words:
        if line:
            text = " ".join([*(w for w, _, _ in line), word[0]])
            pause = word[1] - line[-1][2] > PAUSE
            if pause or len(text) > LETTERS or word[2] - line[0][1] > SECONDS:
                yield _cue(line)
                line = []
        line.append(word)
    if line:
        yield _cue(line)


def write_subtitles(words: Sequence[tuple[str, float, float]], stem: Path) -> None:
    """Write ``stem.srt`` and ``stem.vtt``; see :func:`cues_of`."""
    cues = list(cues_of(words))
    srt = [
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues, start=1)
    ]
    vtt = [f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{cue.text}\n" for cue in cues]
    Path(f"{stem}.srt").write_text("\n".join(srt))
    Path(f"{stem}.vtt").write_text("\n".join(["WEBVTT\n", *vtt]))


def _cue(line: Sequence[tuple[str, float, float]]) -> Cue:
    return Cue(line[0][1], line[-1][2], " ".join(word for word, _, _ in line))


def _time(seconds: float, mark: str) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
