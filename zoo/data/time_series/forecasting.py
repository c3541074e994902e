"""Multivariate series for long-term forecasting: ETT's layout, splits and windows.

Layout::

    ETTh1.csv      date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT
                   2016-07-01 00:00:00,5.827,2.009,...

Electricity, Traffic, Weather and Exchange come in the same layout with other columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from zoo.data.base import DataModule, Source
from zoo.data.formats.files import reading
from zoo.data.formats.maps import make_once
from zoo.data.synthetic.series import made_series
from zoo.errors import ZooError

#: Steps of training, validation and test: 12, 4 and 4 months of 30 days.
_MONTHS = np.array([12, 4, 4]) * 30 * 24
_PER_HOUR = {"etth": 1, "ettm": 4}
#: Shares of training and test elsewhere; validation has the rest.
_TRAIN, _TEST = 0.7, 0.2


@dataclass
class SmallSeries:
    """How long a series to make where there is no data set yet.

    Args:
        hours: rows of the file.
        seed: of the maker.
    """

    hours: int = 9000
    seed: int = 0


class Forecasting(DataModule):
    """Windows of a series; batches of ``past`` [B, L, M] and ``future`` [B, T, M].

    Values are standardised, each variate by the mean and deviation of its training part. Windows
    are a step apart, and all are evaluated; those of validation and test begin with history from
    before their part.

    Args:
        path: a CSV file with a column ``date``, by hours or the like, and one for each variate;
            ``sample`` makes one.
        seq_len: L, steps of history.
        pred_len: T, steps of forecast: 96, 192, 336 or 720 in the benchmark.
        split: "etth" and "ettm" are 12, 4 and 4 months by hours and by quarters of an hour,
            "ratio" is 7:1:2; "auto" tells by the file's name.
        sample: make a small series at ``path`` unless there is one, see
            :mod:`zoo.data.synthetic.series`.
        kwargs: see :class:`DataModule`.
    """

    def __init__(
        self,
        path: str,
        seq_len: int = 512,
        pred_len: int = 96,
        split: Literal["auto", "etth", "ettm", "ratio"] = "auto",
        sample: SmallSeries | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = Path(path).expanduser()
        self.seq_len, self.pred_len, self.split = seq_len, pred_len, split
        self.sample = sample
        self.names: list[str] = []

    def load(self, split: str) -> Source:
        """The windows of a part."""
        if self.sample is not None:
            make_once(self, self.path.parent, self.sample)  # type: ignore[arg-type]
        table = read_series(self.path)
        self.names = [str(name) for name in table.columns]
        values = table.to_numpy(np.float64)
        borders = self._borders(len(values))
        training = values[slice(*borders["train"])]
        deviation = training.std(axis=0)
        self.mean, self.std = training.mean(axis=0), np.where(deviation == 0, 1.0, deviation)
        start, stop = borders[split]
        part = (values[start:stop] - self.mean) / self.std
        if len(part) < self.seq_len + self.pred_len:
            raise ZooError(
                f"{self.path}: the {split} part has {stop - start} steps, fewer than seq_len "
                f"{self.seq_len} and pred_len {self.pred_len} together"
            )
        return SeriesWindows(torch.from_numpy(part).float(), self.seq_len, self.pred_len)

    def _borders(self, rows: int) -> dict[str, tuple[int, int]]:
        """First row, and the one after the last, of each part; history of its first window too."""
        kind = self.split
        if kind == "auto":
            kind = next((k for k in _PER_HOUR if self.path.stem.lower().startswith(k)), "ratio")  # type: ignore[assignment]
        if kind == "ratio":
            train, test = int(rows * _TRAIN), int(rows * _TEST)
            ends = [train, rows - test, rows]
        else:
            ends = np.cumsum(_MONTHS * _PER_HOUR[kind]).tolist()
            if rows < ends[-1]:
                raise ZooError(
                    f"{self.path}: {rows:,} rows, the split {kind} needs {ends[-1]:,}; set "
                    "data.init_args.split to ratio for a shorter series"
                )
        return {
            "train": (0, ends[0]),
            "val": (max(0, ends[0] - self.seq_len), ends[1]),
            "test": (max(0, ends[1] - self.seq_len), ends[2]),
        }

    def train_transform(self, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """Windows stay as they are."""
        return sample

    eval_transform = train_transform

    def make(self, folder: Path, sample: SmallSeries) -> None:
        """Write the small series."""
        write_series(folder / self.path.name, made_series(sample.hours, sample.seed))


class SeriesWindows:
    """All windows of a part [rows, M]."""

    def __init__(self, values: Tensor, seq_len: int, pred_len: int) -> None:
        self.values, self.seq_len, self.pred_len = values, seq_len, pred_len

    def __len__(self) -> int:
        return len(self.values) - self.seq_len - self.pred_len + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        now = index + self.seq_len
        return {
            "past": self.values[index:now],
            "future": self.values[now : now + self.pred_len],
        }


def read_series(path: Path) -> pd.DataFrame:
    """Read a file in ETT's layout; the columns are the variates.

    Raises:
        ZooError: the file is missing, has no column ``date``, or holds something else than numbers.
    """
    with reading(path, "a CSV file with a column date and one for each variate"):
        table = pd.read_csv(path)
    if "date" not in table.columns or len(table.columns) < 2:
        raise ZooError(
            f"{path}: columns {', '.join(map(str, table.columns[:8]))}, expected date and one or "
            "more variates"
        )
    table = table.drop(columns="date")
    for name in table.columns:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.isna().any():
            row = int(numbers.isna().to_numpy().argmax())
            raise ZooError(
                f"{path}, line {row + 2}, column {name}: {table[name][row]!r}, expected a number"
            )
        table[name] = numbers
    return table


def write_series(path: Path, table: pd.DataFrame) -> None:
    """Write hourly values in ETT's layout."""
    dates = pd.date_range("2016-07-01", periods=len(table), freq="h", name="date")
    dates = pd.Index(dates.strftime("%Y-%m-%d %H:%M:%S"), name="date")
    table.set_axis(dates).to_csv(path, float_format="%.5f")
