"""Sequences with a class each, of tokens or of features: what all their readers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.data.base import DataModule, Source
from zoo.data.formats.maps import SmallSample, make_once
from zoo.errors import ZooError

#: Token of padding.
PAD = 0


class StoredSequence(NamedTuple):
    """A stored sequence: how to read it, and its class."""

    read: Callable[[], Tensor]
    label: int


class SequenceDataModule(DataModule):
    """Sequences with a class each.

    A batch: ``inputs`` [B, L] tokens or [B, L, F] features, padded to the longest at their ends,
    ``lengths`` [B] and ``labels`` [B]. Pairs of sequences have ``inputs`` [B, 2, L, ...] and
    ``lengths`` [B, 2]; labels that are mixed are shares [B, classes].

    Attributes:
        class_names: names of the classes.
        d_input: F, features of a step; None where a step is a token.
        vocab_size: number of different tokens, padding included; None where a step has features.
        paired: whether a sample is two sequences.
    """

    class_names: Sequence[str]
    d_input: int | None = None
    vocab_size: int | None = None
    paired: ClassVar[bool] = False
    #: Endings of the files that :meth:`read_file` reads, lower case.
    suffixes: ClassVar[frozenset[str]]

    @abstractmethod
    def read_file(self, path: Path) -> Tensor | tuple[Tensor, Tensor]:
        """A file of a user's own as a sequence, or two: tokens [L] or features [L, F].

        Raises:
            ZooError: it cannot be read.
        """

    def eval_transform(self, sample: Any) -> dict[str, Any]:
        """Read the sequence."""
        return {"inputs": sample.read(), "label": sample.label}

    train_transform = eval_transform

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad to the longest."""
        inputs = [sample["inputs"] for sample in samples]
        flat = [s for pair in inputs for s in pair] if self.paired else inputs
        padded = pad_sequence(flat, batch_first=True, padding_value=PAD)
        lengths = torch.tensor([len(sequence) for sequence in flat])
        if self.paired:
            padded, lengths = padded.unflatten(0, (-1, 2)), lengths.unflatten(0, (-1, 2))
        labels = torch.stack([torch.as_tensor(sample["label"]) for sample in samples])
        return {"inputs": padded, "lengths": lengths, "labels": labels}

    def to_picture(self, inputs: Tensor) -> np.ndarray:
        """A sequence as a picture, uint8 [H, W, 3]: one value a step line by line in a square,
        several as columns side by side, the first at the bottom."""
        values = inputs.float().cpu().numpy()
        if values.ndim == 1 or values.shape[1] in (1, 3):
            values = values.reshape(len(values), -1)
            side = int(np.ceil(np.sqrt(len(values))))
            square = np.full((side * side, values.shape[1]), values.min())
            square[: len(values)] = values
            grid = square.reshape(side, side, -1)
        else:
            grid = values.T[::-1, :, None]
        low, high = grid.min(), grid.max()
        grey = (255 * (grid - low) / max(high - low, 1e-6)).astype(np.uint8)
        return np.broadcast_to(grey, (*grey.shape[:2], 3)).copy()


class SequenceFolder(SequenceDataModule):
    """A data set in a folder, which can be made.

    Args:
        root: the folder.
        sample: make a small data set of the same layout in ``root`` if there is none; null: never.
        kwargs: see :class:`DataModule`.
    """

    #: What the folder must hold, for messages.
    layout: ClassVar[str]

    def __init__(self, root: str, sample: SmallSample | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.sample = Path(root).expanduser(), sample

    @abstractmethod
    def sequences(self, split: str) -> Source:
        """The stored samples of a split."""

    @abstractmethod
    def make(self, folder: Path, sample: SmallSample) -> None:
        """Write a small data set into ``folder``, in the published layout."""

    def load(self, split: str) -> Source:
        """The sequences of a split; makes the small data set first where that is wanted."""
        if self.sample is not None:
            make_once(self, self.root, self.sample)
        if not self.root.is_dir():
            raise ZooError(
                f"data.init_args.root: {self.root} is not a folder, expected {self.layout}; set it "
                "with --data.init_args.root FOLDER"
            )
        return self.sequences(split)

    def existing(self, *names: str) -> Path:
        """The first of some files or folders that exists, a name each, in ``root``.

        Raises:
            ZooError: none does.
        """
        for name in names:
            if (self.root / name).exists():
                return self.root / name
        raise ZooError(f"{self.root / names[0]} is missing, expected {self.layout}")
