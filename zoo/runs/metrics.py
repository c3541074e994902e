"""``metrics.csv``: one row per call of the trainer, written at once, cut back on resumption."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from zoo.atomic import write_atomically


class MetricsTable(Logger):
    """Logger that writes ``metrics.csv``: columns epoch and step, then metrics as they first come.

    Numbers are written with all their digits. Lightning's own CSV logger starts a new file when a
    run is resumed; this one goes on behind the rows that the checkpoint knew.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["epoch", "step"]
        self.rows = 0

    @property
    def name(self) -> str:
        """Loggers have a name; the run's folder says it all."""
        return ""

    @property
    def version(self) -> str:
        """Loggers have a version; the run's folder says it all."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """Nothing to hand out."""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's recipe.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        row: dict[str, Any] = {**metrics, "step": step}
        if "epoch" in metrics:
            row["epoch"] = int(metrics["epoch"])
        new = [name for name in row if name not in self.columns]
        if new or self.rows == 0:
            self._rewrite([*self.columns, *sorted(new)], self.read()[: self.rows])
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([row.get(name, "") for name in self.columns])
        self.rows += 1

    def cut(self, rows: int) -> None:
        """Forget all but the first rows, and whatever a kill left half written."""
        kept = self.read()[:rows]
        self._rewrite(None, kept)
        self.rows = len(kept)

    def read(self) -> list[dict[str, str]]:
        """The rows in the file."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file, restval=""))

    def table(self) -> dict[str, list[float | None]]:
        """Columns with numbers, None where a row has none."""
        rows = self.read()
        return {
            name: [float(row[name]) if row[name] else None for row in rows] for name in self.columns
        }

    def _rewrite(self, columns: list[str] | None, rows: list[dict[str, str]]) -> None:
        if columns is not None:
            self.columns = columns
        elif rows:
            self.columns = list(rows[0])
        text = StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue().encode())


def last_scores(path: Path) -> dict[str, dict[str, str]]:
    """The last value of each score in a run's ``metrics.csv``, by split (``test``, ``val``,
    ``train``) and name, as it is shown; empty where there is none."""
    found: dict[str, dict[str, str]] = {"test": {}, "val": {}, "train": {}}
    for row in MetricsTable(path).read():
        for column, value in row.items():
            split, _, name = column.partition("/")
            if split in found and name and value:
                found[split][name] = f"{float(value):.4g}"
    return found
