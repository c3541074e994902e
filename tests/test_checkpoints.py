"""Which checkpoint of a run is kept as the best."""

import math
from types import SimpleNamespace

import pytest

from zoo.runs.checkpoints import Checkpoints


@pytest.mark.parametrize(
    ("mode", "scores", "kept"),
    [
        ("max", [0.5, 0.4, 0.6, math.nan], [0.5, 0.6]),
        ("min", [0.5, 0.4, 0.6], [0.5, 0.4]),
        ("max", [math.nan, 0.1, 0.2], [math.nan, 0.1, 0.2]),
    ],
)
def test_a_better_score_replaces_the_best(tmp_path, mode, scores, kept):
    written = []
    callback = Checkpoints(monitor="val/score", mode=mode)
    callback.folder = tmp_path
    trainer = SimpleNamespace(
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        save_checkpoint=lambda path, weights_only: written.append(trainer.callback_metrics),
    )
    for score in scores:
        trainer.callback_metrics = {"val/score": score}
        callback.on_validation_end(trainer, None)
    assert [metrics["val/score"] for metrics in written] == pytest.approx(kept, nan_ok=True)
