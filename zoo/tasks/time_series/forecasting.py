"""Forecasting of multivariate series: mean squared and absolute error of standardised values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from zoo.data.base import DataModule
from zoo.data.time_series.forecasting import Forecasting, read_series
from zoo.errors import ZooError
from zoo.plots.forecasting import forecasts
from zoo.tasks.base import Task, build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_VARIATES = 4


class SeriesForecasting(Task):
    """From a window's history to its future; trained on the squared error.

    Measures ``mse`` and ``mae`` over all windows, steps and variates, and ``mse_last``, that of
    repeating each last value.

    Args:
        model: name of a model, [B, L, M] -> [B, T, M].
        model_args: arguments of the model beyond its own.
        pretrained: weights to start from: a file, folder, URL or ``hf://owner/name``.
        kwargs: see :class:`Task`.
    """

    monitor = "val/mse"
    monitor_mode = "min"
    input_suffixes = frozenset([".csv"])

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args = model, model_args or {}
        self.pretrained = pretrained
        #: Names, means and deviations of the variates that the network was trained on.
        self.variates: dict[str, list] = {}
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network, with the given weights."""
        self.model = build_model(self.model_name, self.model_args, self.pretrained)

    def configure_losses(self) -> None:
        """Mean squared error."""
        self.criterion = nn.MSELoss()

    def configure_metrics(self) -> None:
        """Errors of the forecast, and of the last value."""
        scores = MetricCollection({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})
        self.val_scores, self.test_scores = scores.clone("val/"), scores.clone("test/")
        self.last_value = MeanSquaredError()
        self._shown: list[tuple[Tensor, ...]] = []

    def check_data(self, data: DataModule) -> None:
        """The data must be series, of the lengths that the network has."""
        if not isinstance(data, Forecasting):
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no series, expected "
                "zoo.data.time_series.forecasting.Forecasting"
            )
        for name in ("seq_len", "pred_len"):
            built = self.model_args.get(name, getattr(self.model, name, None))
            if built is not None and built != getattr(data, name):
                raise ZooError(
                    f"data.init_args.{name} is {getattr(data, name)}, but the network was built "
                    f"for {built}: set both to one value"
                )

        self.variates = {
            "names": data.names,
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
        }

    def forward(self, past: Tensor) -> Tensor:
        """History [B, L, M] -> forecast [B, T, M] of the judged model."""
        return self.eval_model(past).contiguous()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Squared error of a batch."""
        loss = self.criterion(self.model(batch["past"]), batch["future"])
        return self.log_loss(loss, len(batch["past"]))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure one batch."""
        self.val_scores.update(self(batch["past"]), batch["future"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure one batch, and keep its first window to show."""
        past, future = batch["past"], batch["future"]
        forecast = self(past)
        self.test_scores.update(forecast, future)
        self.last_value.update(past[:, -1:].expand_as(future).contiguous(), future)
        if len(self._shown) < 3:
            self._shown.append(
                tuple(series[0].float().cpu() for series in (past, future, forecast))
            )

    def on_validation_epoch_end(self) -> None:
        """Write the validation's scores."""
        self.log("val/loss", self.val_scores["mse"].compute())
        self.log_dict(self.val_scores.compute(), prog_bar=True)
        self.val_scores.reset()

    def on_test_epoch_start(self) -> None:
        """Forget the windows of an earlier test."""
        self._shown = []

    def on_test_epoch_end(self) -> None:
        """Write the test's scores."""
        self.log_dict(self.test_scores.compute(), prog_bar=True)
        self.log("test/mse_last", self.last_value.compute())
        self.test_scores.reset()
        self.last_value.reset()

    def figures(self) -> dict[str, Figure]:
        """Forecasts of some test windows against what came."""
        if not self._shown:
            return {}
        names = self.data.names  # type: ignore[union-attr]
        shown = _spread_out(len(names))
        windows = [tuple(t[:, shown].numpy() for t in window) for window in self._shown]
        title = "Test windows, standardised"
        return {"forecasts": forecasts(windows, [names[i] for i in shown], title)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the scale of the variates beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["variates"] = self.variates

    def load_weights(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the judged weights and the scale of the variates."""
        super().load_weights(checkpoint)
        self.variates = checkpoint["variates"]

    @torch.inference_mode()
    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Forecast what follows the last row of CSV files; writes a table and a picture of each.

        Values are scaled as in training, and written in the units of the file.
        """
        if not isinstance(data, Forecasting):
            raise ZooError(f"{type(data).__name__} does not say how long a history is")
        self.eval()
        mean, std = (np.array(self.variates[key]) for key in ("mean", "std"))
        rows = []
        for number, path in enumerate(files, start=1):
            table = read_series(path)
            if len(table) < data.seq_len:
                raise ZooError(f"{path}: {len(table)} rows, expected {data.seq_len} or more")
            if [*table.columns] != self.variates["names"]:
                raise ZooError(
                    f"{path}: variates {', '.join(map(str, table.columns))}, expected "
                    + ", ".join(self.variates["names"])
                )
            past = table.to_numpy(np.float64)[-data.seq_len :]
            inputs = torch.from_numpy((past - mean) / std).float()[None].to(self.device)
            forecast = self(inputs)[0].float().cpu().numpy() * std + mean
            name = f"{number:04d}_{path.stem}"
            found = pd.DataFrame(forecast, columns=table.columns)
            found.to_csv(folder / f"{name}.csv", index_label="step", float_format="%.6g")
            shown = _spread_out(len(table.columns))
            names = [str(table.columns[i]) for i in shown]
            window = (past[:, shown], None, forecast[:, shown])
            forecasts([window], names, path.name).savefig(folder / f"{name}.png")
            rows.append({"file": str(path), "steps": len(forecast), "table": f"{name}.csv"})
        return rows


def _spread_out(variates: int) -> list[int]:
    """Numbers of some variates, from first to last."""
    return (
        np.unique(np.linspace(0, variates - 1, min(variates, SHOWN_VARIATES)).round())
        .astype(int)
        .tolist()
    )
