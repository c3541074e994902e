"""Speech with transcripts: LibriSpeech, Common Voice, and data sets of the Hugging Face hub."""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.data.base import DataModule, Source
from zoo.data.formats.files import natural_sorted, reading
from zoo.data.formats.maps import SmallSample, make_once
from zoo.data.formats.sound import RATE, SpecAugment, change_speed, log_mel, read_sound
from zoo.data.formats.transcripts import EOS, SOS, Tokens, check_alphabet, plain_text
from zoo.data.hub import open_dataset, rows_of_split
from zoo.data.synthetic.spoken import Spoken, spoken_sentences
from zoo.errors import ZooError


@dataclass
class SmallSpeech(SmallSample):
    """How many spoken sentences to make where there is no data set yet.

    Args:
        train, val, test: sentences of each split, none of them twice.
        size: has no meaning here.
        seed: of the sentences and voices, where espeak-ng speaks.
        source: see :func:`zoo.data.synthetic.spoken.spoken_sentences`.
    """

    train: int = 360
    val: int = 20
    test: int = 40
    source: Literal["auto", "espeak", "shipped"] = "auto"


class Utterance(NamedTuple):
    """A recording: what is said, how to read the sound [S], a name of its own, and its file."""

    text: str
    read: Callable[[], Tensor]
    name: str
    path: Path = Path()


class SpeechDataModule(DataModule):
    """Recordings with transcripts.

    A batch: ``features`` [B, T, n_mels], ``lengths`` [B], ``tokens`` [B, U] with start and end,
    ``token_lengths`` [B], padding 0, and the ``texts``.

    Args:
        vocabulary: number of word pieces, learned from the training transcripts; null: characters.
        alphabet: these, where they are not lower-case English letters, apostrophe and space.
        n_mels, peak: see :func:`zoo.data.formats.sound.log_mel`.
        spec_augment: hide parts of the training spectrograms; null: do not.
        speeds: a training recording is played at one of these, chosen anew each time.
        keep_features: compute spectrograms once and keep them in memory, for small data sets.
        kwargs: see :class:`DataModule`.
    """

    #: What the folder must hold, for messages.
    layout: str

    def __init__(
        self,
        vocabulary: int | None = None,
        alphabet: str | None = None,
        n_mels: int = 80,
        peak: float | None = None,
        spec_augment: SpecAugment | None = None,
        speeds: Sequence[float] = (1.0,),
        keep_features: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if keep_features and list(speeds) != [1.0]:
            raise ZooError("data.init_args.keep_features: spectrograms of one speed can be kept")
        self.vocabulary, self.alphabet = vocabulary, alphabet
        self.n_mels, self.peak, self.spec_augment = n_mels, peak, spec_augment
        self.speeds = list(speeds)
        self._kept: dict[str, Tensor] | None = {} if keep_features else None
        self._tokens: Tokens | None = None

    @abstractmethod
    def utterances(self, split: str) -> list[Utterance]:
        """All of a split, transcripts as they stand in the data set."""

    def load(self, split: str) -> Source:
        """The utterances of a split with plain transcripts; those of no words are left out."""
        found = [u._replace(text=plain_text(u.text)) for u in self.utterances(split)]
        return [u for u in found if u.text]

    @property
    def tokens(self) -> Tokens:
        """What the transcripts are written in."""
        if self._tokens is None:
            if self.vocabulary is None:
                self._tokens = Tokens.characters(*filter(None, [self.alphabet]))
            else:
                texts = (utterance.text for utterance in self.source("train"))
                self._tokens = Tokens.pieces(texts, self.vocabulary)
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def setup(self, stage: str) -> None:
        """Load the splits; check that the tokens can write the transcripts."""
        super().setup(stage)
        for source in self._sources.values():
            texts = (utterance.text for utterance in source)
            check_alphabet(self.tokens, texts, "data.init_args.alphabet")

    def features(self, sound: Tensor) -> Tensor:
        """Sound [S] at 16 kHz -> [T, n_mels]."""
        return log_mel(sound, self.n_mels, self.peak)

    def train_transform(self, sample: Utterance) -> dict[str, Any]:
        """Change the speed, compute features, hide parts of them."""
        speed = self.speeds[int(torch.randint(len(self.speeds), ()))]
        features = self._features(sample, speed)
        if self.spec_augment is not None:
            features = self.spec_augment(features)
        return self._sample(features, sample.text)

    def eval_transform(self, sample: Utterance) -> dict[str, Any]:
        """Compute features."""
        return self._sample(self._features(sample), sample.text)

    def _features(self, utterance: Utterance, speed: float = 1.0) -> Tensor:
        if self._kept is not None and utterance.name in self._kept:
            return self._kept[utterance.name]
        sound = utterance.read()
        features = self.features(sound if speed == 1 else change_speed(sound, speed))
        if self._kept is not None:
            self._kept[utterance.name] = features
        return features

    def _sample(self, features: Tensor, text: str) -> dict[str, Any]:
        tokens = torch.tensor([SOS, *self.tokens.encode(text), EOS])
        return {"features": features, "tokens": tokens, "text": text}

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pad to the longest."""
        features = [sample["features"] for sample in samples]
        tokens = [sample["tokens"] for sample in samples]
        pad = partial(pad_sequence, batch_first=True)
        return {
            "features": pad(features),
            "lengths": torch.tensor([len(f) for f in features]),
            "tokens": pad(tokens),
            "token_lengths": torch.tensor([len(t) for t in tokens]),
            "texts": [sample["text"] for sample in samples],
        }


class _Folder(SpeechDataModule):
    """A data set in a folder, which can be made.

    Args:
        root: the folder.
        sample: make spoken sentences of the same layout in ``root`` if there is none; null: never.
        kwargs: see :class:`SpeechDataModule`.
    """

    def __init__(self, root: str, sample: SmallSpeech | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.sample = Path(root).expanduser(), sample

    def load(self, split: str) -> Source:
        """The utterances of a split; makes the small data set first where that is wanted."""
        if self.sample is not None:
            make_once(self, self.root, self.sample)
        if not self.root.is_dir():
            raise ZooError(
                f"data.init_args.root: {self.root} is not a folder, expected {self.layout}; set it "
                "with --data.init_args.root FOLDER"
            )
        return super().load(split)

    def make(self, folder: Path, sample: SmallSpeech) -> None:
        """Write spoken sentences."""
        count = sample.train + sample.val + sample.test
        spoken = list(spoken_sentences(count, sample.source, sample.seed))
        for split in ("train", "val", "test"):
            size = getattr(sample, split)
            self.write(folder, split, spoken[:size])
            spoken = spoken[size:]

    @abstractmethod
    def write(self, folder: Path, split: str, spoken: Sequence[Spoken]) -> None:
        """Write one split of a small data set."""


class LibriSpeech(_Folder):
    """LibriSpeech.

    Layout: ``<subset>/<speaker>/<chapter>/<speaker>-<chapter>-0000.flac`` and in the same folder
    ``<speaker>-<chapter>.trans.txt`` with lines ``<name> <TRANSCRIPT>``.

    Args:
        train, val, test: subsets of each split.
        max_seconds: longer training recordings are left out.
        kwargs: see :class:`SpeechDataModule`; and ``root``, ``sample`` of the folder.
    """

    layout = "train-clean-100/<speaker>/<chapter>/*.flac with *.trans.txt"

    def __init__(
        self,
        root: str,
        train: Sequence[str] = ("train-clean-100", "train-clean-360", "train-other-500"),
        val: Sequence[str] = ("dev-clean",),
        test: Sequence[str] = ("test-clean",),
        max_seconds: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.max_seconds = max_seconds
        self.subsets = {"train": list(train), "val": list(val), "test": list(test)}

    def utterances(self, split: str) -> list[Utterance]:
        """All recordings that have a transcript."""
        return [u for subset in self.subsets[split] for u in self._subset(subset, split)]

    def _subset(self, subset: str, split: str) -> Iterator[Utterance]:
        folder = self.root / subset
        if not folder.is_dir():
            raise ZooError(
                f"{folder} is not a folder, expected {self.layout}; data.init_args.{split} names "
                "the subsets"
            )
        for table in natural_sorted(folder.glob("*/*/*.trans.txt")):
            for line in table.read_text(encoding="utf-8").splitlines():
                name, _, text = line.partition(" ")
                path = table.parent / f"{name}.flac"
                if split != "train" or seconds_of(path) <= self.max_seconds:
                    yield Utterance(text, partial(read_sound, path), str(path))

    def write(self, folder: Path, split: str, spoken: Sequence[Spoken]) -> None:
        """One chapter for each speaker, in each subset."""
        tables: dict[Path, list[str]] = {}
        subsets = self.subsets[split]
        for number, sentence in enumerate(spoken):
            speaker, chapter = 1 + sentence.speaker, 100 + sentence.speaker
            place = folder / subsets[number % len(subsets)] / str(speaker) / str(chapter)
            place.mkdir(parents=True, exist_ok=True)
            lines = tables.setdefault(place / f"{speaker}-{chapter}.trans.txt", [])
            name = f"{speaker}-{chapter}-{len(lines):04d}"
            lines.append(f"{name} {sentence.text.upper()}\n")
            soundfile.write(place / f"{name}.flac", sentence.sound, RATE)
        for path, lines in tables.items():
            path.write_text("".join(lines), encoding="utf-8")


class CommonVoice(_Folder):
    """Mozilla Common Voice, one language.

    Layout: ``train.tsv``, ``dev.tsv`` and ``test.tsv`` with the columns ``path`` and ``sentence``,
    and ``clips/*.mp3``. For other languages than English give ``alphabet`` or ``vocabulary``.

    Args:
        kwargs: see :class:`SpeechDataModule`; and ``root``, ``sample`` of the folder.
    """

    layout = "train.tsv, dev.tsv, test.tsv and clips/*.mp3"
    TABLES: ClassVar = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}

    def utterances(self, split: str) -> list[Utterance]:
        """All rows of a table."""
        table = self.root / self.TABLES[split]
        if not table.exists():
            raise ZooError(f"{table} is missing, expected {self.layout}")
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        if rows and not {"path", "sentence"} <= rows[0].keys():
            raise ZooError(
                f"{table} has the columns {', '.join(rows[0])}, expected path and sentence"
            )
        return [
            Utterance(row["sentence"], partial(read_sound, clip), str(clip))
            for row in rows
            for clip in [self.root / "clips" / row["path"]]
        ]

    def write(self, folder: Path, split: str, spoken: Sequence[Spoken]) -> None:
        """A table and its clips."""
        clips = folder / "clips"
        clips.mkdir(exist_ok=True)
        lines = ["client_id\tpath\tsentence\n"]
        for number, sentence in enumerate(spoken):
            name = f"common_voice_en_{split}_{number:04d}.mp3"
            soundfile.write(clips / name, sentence.sound, RATE, format="MP3")
            lines.append(f"{sentence.speaker}\t{name}\t{sentence.text.capitalize()}.\n")
        (folder / self.TABLES[split]).write_text("".join(lines), encoding="utf-8")


class HuggingFaceSpeech(SpeechDataModule):
    """Any data set of the Hugging Face hub with sound and text, or one on disk.

    Args:
        path, name: see :func:`zoo.data.hub.open_dataset`; such as ``openslr/librispeech_asr`` and
            ``clean``.
        train_split, val_split, test_split: names of its splits.
        audio_column, text_column: where sound and transcript are.
        kwargs: see :class:`SpeechDataModule`.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        test_split: str = "test",
        audio_column: str = "audio",
        text_column: str = "text",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.name = path, name
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.audio_column, self.text_column = audio_column, text_column
        self._dataset: Any = None

    def utterances(self, split: str) -> list[Utterance]:
        """All rows of a split, the sound read when it is asked for."""
        import datasets

        if self._dataset is None:
            self._dataset = open_dataset(self.path, self.name)
        columns = {"audio_column": self.audio_column, "text_column": self.text_column}
        wanted = self.splits[split]
        rows = rows_of_split(self._dataset, self.path, f"{split}_split", wanted, columns)
        rows = rows.cast_column(self.audio_column, datasets.Audio(decode=False))
        return [
            Utterance(text, partial(_row_sound, rows, self.audio_column, i), f"{wanted} {i}")
            for i, text in enumerate(rows[self.text_column])
        ]


def _row_sound(rows: Any, column: str, index: int) -> Tensor:
    stored = rows[index][column]
    source = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])
    return read_sound(source, f"row {index}")


def seconds_of(path: Path) -> float:
    """Length of a sound file, from its head."""
    with reading(path, "a sound file"):
        return soundfile.info(path).duration
