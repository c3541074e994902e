"""Recordings of one's own that a table lists: CSV, TSV, JSON or JSON lines, as SpeechBrain and NeMo
have them."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from zoo.data.base import shares
from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.sound import read_sound
from zoo.data.speech.speech import SpeechDataModule, Utterance, seconds_of
from zoo.errors import ZooError

log = logging.getLogger("zoo")

#: What tables call the recording and the transcript, the plainest names first.
AUDIO_NAMES = (
    "audio_filepath", "audio", "audio_path", "audio_file", "wav", "wav_path", "path", "file",
    "filepath", "file_path", "filename", "file_name", "sound", "recording",
)  # fmt: skip
TEXT_NAMES = (
    "text", "transcript", "transcription", "sentence", "wrd", "words", "normalized_text", "label",
)  # fmt: skip
START_NAMES, LENGTH_NAMES = ("offset", "start_s"), ("duration", "duration_s")
#: What they call the splits, in a column ``split`` or as the beginning of a file's name.
SPLIT_NAMES = {"train": ("train",), "val": ("val", "dev"), "test": ("test", "eval")}
_SUFFIXES = frozenset([".csv", ".json", ".jsonl", ".ndjson", ".tsv"])
_EXPECTED = "a table of recordings and transcripts: CSV or TSV with a header, JSON, or JSON lines"


class SpeechManifest(SpeechDataModule):
    """Recordings that a table lists with their transcripts.

    A row has a path and a transcript, whatever the usual names of the columns are, and perhaps
    ``offset`` and ``duration`` in seconds, for a part of a recording. Tables are CSV or TSV with a
    header, JSON lines (NeMo), or JSON, a list of rows or a dictionary of them (SpeechBrain). Rows
    whose recording is missing are left out, which is said.

    Splits are tables of their own, or a column ``split``; else each tenth of the rows is kept for
    validation and test, always the same.

    Args:
        manifest: the table; or a folder with it, or with tables whose names begin with ``train``,
            ``val`` or ``dev``, and ``test``.
        val_manifest, test_manifest: tables of these splits.
        audio_root: folder that relative paths start in, and that ``{data_root}`` stands for; null:
            that of the table.
        audio_column, text_column: names of the columns; null: one of the usual ones.
        max_seconds: longer training recordings are left out.
        kwargs: see :class:`SpeechDataModule`.
    """

    def __init__(
        self,
        manifest: str,
        val_manifest: str | None = None,
        test_manifest: str | None = None,
        audio_root: str | None = None,
        audio_column: str | None = None,
        text_column: str | None = None,
        max_seconds: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = Path(manifest).expanduser()
        self._given = {"val": val_manifest, "test": test_manifest}
        self.audio_root = None if audio_root is None else Path(audio_root).expanduser()
        self.audio_column, self.text_column = audio_column, text_column
        self.max_seconds = max_seconds

    def utterances(self, split: str) -> list[Utterance]:
        """The recordings of a split."""
        found = self._splits[split]
        if split != "train":
            return [utterance for utterance, _ in found]
        return [u for u, seconds in found if (seconds or seconds_of(u.path)) <= self.max_seconds]

    @cached_property
    def _splits(self) -> dict[str, list[tuple[Utterance, float | None]]]:
        """Recordings, and their length where the table says it, of each split."""
        tables = _tables(self.manifest)
        for split, path in self._given.items():
            if path is not None:
                tables[split] = Path(path).expanduser()
        rows = {split: self._read(path) for split, path in tables.items()}
        marked = [row for row in rows["train"] if _split_of(row[2]) is not None]
        if marked and set(rows) == {"train"}:
            if odd := [row for row in rows["train"] if _split_of(row[2]) is None]:
                raise ZooError(
                    f"{self.manifest}: a row of the split {odd[0][2]!r}, expected train, val or "
                    "test"
                )
            rows = {s: [row for row in marked if _split_of(row[2]) == s] for s in SPLIT_NAMES}
            rows = {split: part for split, part in rows.items() if part}
        if "train" not in rows:
            raise ZooError(f"data.init_args.manifest: {self.manifest} has no training recordings")
        if "val" not in rows:
            parts = shares(len(rows["train"]), test=0.0 if "test" in rows else 0.1)
            log.warning(
                "%s: a tenth of the recordings is kept for validation%s",
                *(self.manifest, "" if "test" in rows else ", another for the test"),
            )
            shared = {s: [rows["train"][i] for i in chosen] for s, chosen in parts.items()}
            rows = {**shared, **{s: part for s, part in rows.items() if s != "train"}}
        rows.setdefault("test", rows["val"])
        return {s: [(u, seconds) for u, seconds, _ in part] for s, part in rows.items()}

    def _read(self, path: Path) -> list[tuple[Utterance, float | None, Any]]:
        """Recording, seconds where they are given, and split, of each row whose file is there."""
        rows = read_rows(path)
        audio = self._column(path, rows[0], "audio_column", AUDIO_NAMES)
        text = self._column(path, rows[0], "text_column", TEXT_NAMES)
        root = path.parent if self.audio_root is None else self.audio_root
        found = []
        for number, row in enumerate(rows, start=1):
            place, said = row.get(audio), row.get(text)
            if not isinstance(place, str) or not isinstance(said, str) or not place:
                raise ZooError(
                    f"{path}, row {number}: {audio} {place!r} and {text} {said!r}, expected a path "
                    "and a transcript"
                )
            file = root / place.replace("{data_root}", str(root))
            start = _seconds(path, number, row, START_NAMES) or 0.0
            seconds = _seconds(path, number, row, LENGTH_NAMES)
            # without an offset, a length only says how long the whole file is
            part = seconds if start or "offset" in row else None
            read = partial(read_sound, file, start=start, seconds=part)
            name = f"{file} {start:g} {part}"
            found.append((Utterance(said, read, name, file), seconds, row.get("split")))
        there = [item for item in found if item[0].path.is_file()]
        if missing := len(found) - len(there):
            lost = next(item[0].path for item in found if not item[0].path.is_file())
            if not there:
                raise ZooError(
                    f"{path}: none of its {missing} recordings is there, such as {lost}; set "
                    "data.init_args.audio_root to their folder"
                )
            log.warning(
                "%s: %d of %d recordings are missing, such as %s, and left out",
                *(path, missing, len(found), lost),
            )
        return there

    def _column(
        self, path: Path, row: Mapping[str, Any], setting: str, names: Sequence[str]
    ) -> str:
        """Name of a column in this table."""
        wanted = getattr(self, setting)
        if wanted is not None:
            names = (wanted,)
        known = {name.strip().lower(): name for name in row}
        column = next((known[n.lower()] for n in names if n.lower() in known), None)
        if column is None:
            what = f"{wanted!r}" if wanted else f"one of {', '.join(names[:6])}"
            raise ZooError(
                f"data.init_args.{setting}: {path} has the columns {', '.join(row)}, expected "
                f"{what}"
            )
        return column


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table.

    Raises:
        ZooError: it is missing, empty or no such table.
    """
    with reading(path, _EXPECTED):
        text = path.read_text(encoding="utf-8-sig")
        start = text.lstrip()[:1]
        if start in ("{", "["):
            rows = _json_rows(text)
        else:
            first = text.partition("\n")[0]
            mark = next((mark for mark in "\t|;" if mark in first), ",")
            quoting = csv.QUOTE_NONE if mark in "\t|" else csv.QUOTE_MINIMAL
            rows = list(
                csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, quoting=quoting)
            )
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ZooError(f"{path} holds no rows, expected {_EXPECTED}")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _json_rows(text: str) -> list[Any]:
    """Rows of JSON lines, of a list, or of a dictionary by their names."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(content, dict):
        nested = all(isinstance(value, dict) for value in content.values())
        return list(content.values()) if nested else [content]
    return list(content)


def _tables(manifest: Path) -> dict[str, Path]:
    """Table of each split that has one."""
    if not manifest.is_dir():
        return {"train": manifest}
    files = [p for p in natural_sorted(manifest.iterdir()) if p.suffix.lower() in _SUFFIXES]
    found: dict[str, Path] = {}
    for path in files:
        split = _split_of(path.stem)
        if split is not None:
            if split in found:
                raise ZooError(
                    f"data.init_args.manifest: {manifest} holds both {found[split].name} and "
                    f"{path.name}, expected one table for a split"
                )
            found[split] = path
    if "train" in found:
        return found
    if len(files) == 1:
        return {"train": files[0]}
    raise ZooError(
        f"data.init_args.manifest: {manifest} holds {len(files)} tables, expected one, or ones "
        "whose names begin with train, val and test"
    )


def _split_of(name: Any) -> str | None:
    if not isinstance(name, str):
        return None
    known = ((split, n) for split, names in SPLIT_NAMES.items() for n in names)
    return next((split for split, begin in known if name.lower().startswith(begin)), None)


def _seconds(path: Path, number: int, row: Mapping[str, Any], names: Sequence[str]) -> float | None:
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise ZooError(f"{path}, row {number}: {names[0]} {value!r}, expected seconds")
    return seconds
