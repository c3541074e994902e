"""What TSM2 and a linear forecast say about a series that another one foretells."""

from __future__ import annotations

from zoo.data.base import DataModule
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task
from zoo.tasks.time_series.forecasting import SeriesForecasting

AXES = Axes("A series that repeats another one 20 hours later", "hours from now", "standardised")


class Forecasts(Trained):
    """The test of a forecasting recipe; draws a forecast of the last variate."""

    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Take the window from the test."""
        assert isinstance(task, SeriesForecasting)
        past, future, forecast = (series[:, -1].tolist() for series in task.shown[0])
        hours = range(1, len(future) + 1)
        seen = past[-2 * len(future) :]
        return Measured(
            {},
            [
                Curve(AXES, range(1 - len(seen), 1), seen, "history", "example"),
                Curve(AXES, hours, future, "what came", "example"),
                Curve(AXES, hours, forecast, style="example"),
            ],
        )
