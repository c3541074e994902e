"""Forecasting of multivariate series: mean squared and absolute error of standardised values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.time_series.forecasting import Forecasting, read_series
from zoo.errors import ZooError
from zoo.plots.forecasting import forecasts
from zoo.tasks._scores import Scores
from zoo.tasks.base import ModelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_VARIATES = 4


class SeriesForecasting(ModelTask):
    """From a window's history [B, L, M] to its future [B, T, M]; trained on the squared error.

    Measures ``mse`` and ``mae`` over all windows, steps and variates, and ``mse_last``, that of
    repeating each last value.

    Args:
        args, kwargs: see :class:`ModelTask`.
    """

    monitor = "val/mse"
    monitor_mode = "min"
    data_type, data_has, data_example = Forecasting, "series", "zoo.data.Forecasting"
    input_suffixes = frozenset([".csv"])
    shown_limit = 3

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Names, means and deviations of the variates that the network was trained on.
        self.variates: dict[str, list] = {}
        super().__init__(*args, **kwargs)

    def configure_metrics(self, split: str) -> dict[str, Metric | MetricCollection]:
        """Errors of the forecast; in the test also of repeating the last value."""
        errors = MetricCollection({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})
        if split == "test":
            return {"errors": errors, "mse_last": MeanSquaredError()}
        return {"errors": errors}

    def check_data(self, data: DataModule) -> None:
        """The network must have the lengths of the data."""
        super().check_data(data)
        for name in ("seq_len", "pred_len"):
            built = self.model_args.get(name, getattr(self.model, name, None))
            if built is not None and built != getattr(data, name):
                raise ZooError(
                    f"data.init_args.{name} is {getattr(data, name)}, but the network was built "
                    f"for {built}: set both to one value"
                )

    def use_data(self, data: Any) -> None:
        """Take the scale of the variates."""
        mean, std = data.mean.tolist(), data.std.tolist()
        self.variates = {"names": data.names, "mean": mean, "std": std}

    def forward(self, past: Tensor) -> Tensor:
        """History [B, L, M] -> forecast [B, T, M] of the evaluated model."""
        return self.eval_model(past).contiguous()

    def training_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Squared error of a batch."""
        return mse_loss(self.model(batch["past"]), batch["future"])

    def evaluate(self, batch: dict[str, Tensor], scores: Scores) -> Tensor:
        """Measure one batch; returns the forecast."""
        past, future = batch["past"], batch["future"]
        forecast = self(past)
        scores["errors"].update(forecast, future)
        if "mse_last" in scores:
            scores["mse_last"].update(past[:, -1:].expand_as(future).contiguous(), future)
        return forecast

    def examples(
        self, batch: dict[str, Tensor], outputs: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The first window of a batch: past, future and forecast, [steps, M]."""
        past, future, forecast = (
            series[0].float().cpu() for series in (batch["past"], batch["future"], outputs)
        )
        yield past, future, forecast

    def summarize(self, results: dict[str, Any]) -> dict[str, Any]:
        """In validation the squared error is the loss, too."""
        values = super().summarize(results)
        return values if "mse_last" in values else values | {"loss": values["mse"]}

    def figures(self) -> dict[str, Figure]:
        """Forecasts of some test windows against what came."""
        if not self.shown:
            return {}
        names = self.data.names  # type: ignore[union-attr]
        shown = _spread_out(len(names))
        windows = [tuple(t[:, shown].numpy() for t in window) for window in self.shown]
        title = "Test windows, standardised"
        return {"forecasts": forecasts(windows, [names[i] for i in shown], title)}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["variates"] = self.variates

    def load_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the judged weights and the scale of the variates."""
        super().load_weights(checkpoint)
        self.variates = checkpoint["variates"]

    def predict_one(self, source: Path, data: Any, stem: Path) -> tuple[dict[str, Any], Figure]:
        """Forecast what follows the last row of a CSV file; writes a table.

        Values are scaled as in training, and written in the units of the file.
        """
        mean, std = (np.array(self.variates[key]) for key in ("mean", "std"))
        table = read_series(source)
        if len(table) < data.seq_len:
            raise ZooError(f"{source}: {len(table)} rows, expected {data.seq_len} or more")
        if [*table.columns] != self.variates["names"]:
            raise ZooError(
                f"{source}: variates {', '.join(map(str, table.columns))}, expected "
                + ", ".join(self.variates["names"])
            )
        past = table.to_numpy(np.float64)[-data.seq_len :]
        inputs = torch.from_numpy((past - mean) / std).float()[None].to(self.device)
        forecast = self(inputs)[0].float().cpu().numpy() * std + mean
        found = pd.DataFrame(forecast, columns=table.columns)
        found.to_csv(f"{stem}.csv", index_label="step", float_format="%.6g")
        shown = _spread_out(len(table.columns))
        names = [str(table.columns[i]) for i in shown]
        window = (past[:, shown], None, forecast[:, shown])
        columns = {"steps": len(forecast), "table": f"{stem.name}.csv"}
        return columns, forecasts([window], names, source.name)


def _spread_out(variates: int) -> list[int]:
    """Numbers of some variates, from first to last."""
    return (
        np.unique(np.linspace(0, variates - 1, min(variates, SHOWN_VARIATES)).round())
        .astype(int)
        .tolist()
    )
