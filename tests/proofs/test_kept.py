"""Kept measurements are found by what made them, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.plots.proofs import Axes, Curve
from zoo.proofs import kept
from zoo.proofs.base import Measured, Measurement


class Counted(Measurement):
    """Counts how often it was measured."""

    def __init__(self, value: float = 1.0) -> None:
        self.settings, self.value, self.calls = {"value": value}, value, 0

    def measure(self, seed: int) -> Measured:
        self.calls += 1
        axes = Axes("Learning", "step", "loss", log="y")
        picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        return Measured(
            {"value": self.value + seed},
            [Curve(axes, [0, 1], [2.0, 1.0]), Curve(axes, range(2), [1, 1], "best", "known")],
            [{"picture": picture, "map": np.eye(2)}],
        )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))


def test_what_is_kept_is_what_was_measured():
    measurement = Counted()
    first, again = kept.measure(measurement, 3), kept.measure(measurement, 3)
    assert (first.found, again.found, measurement.calls) == (False, True, 1)
    assert again.seconds == first.seconds
    assert again.measured.values == {"value": 4.0}
    assert again.measured.curves[1] == Curve(
        Axes("Learning", "step", "loss", log="y"), [0.0, 1.0], [1.0, 1.0], "best", "known"
    )
    for name, picture in first.measured.pictures[0].items():
        np.testing.assert_array_equal(again.measured.pictures[0][name], picture)
        assert again.measured.pictures[0][name].dtype == picture.dtype


def test_settings_seed_and_recipe_make_the_key(monkeypatch):
    measurement = Counted()
    assert kept.measure(measurement, 0).measured.values == {"value": 1.0}
    assert kept.measure(measurement, 1).measured.values == {"value": 2.0}
    assert not kept.measure(Counted(2.0), 0).found
    assert not kept.measure(measurement, 0, anew=True).found
    monkeypatch.setattr(Counted, "made_from", lambda self, seed: "another recipe")
    assert not kept.measure(measurement, 0).found


def test_without_a_seed_it_is_measured_once(monkeypatch):
    monkeypatch.setattr(Counted, "seeded", False)
    measurement = Counted()
    assert kept.measure(measurement, 0).measured.values == {"value": 1.0}
    assert kept.measure(measurement, 1).measured.values == {"value": 1.0}
    assert measurement.calls == 1


def names(*modules: str) -> set[str]:
    return {str(file.relative_to(kept._ROOT)) for file in kept.source_files(modules)}


def test_code_is_what_is_imported_and_the_models_that_are_named():
    files = names("zoo.proofs.vision.vmamba")
    assert {"proofs/vision/vmamba.py", "models/vision/vmamba.py", "ops/selective_scan.py"} <= files
    assert "data/synthetic/cues.py" in files, "through zoo.proofs.synthetic"
    assert not {"models/vision/vim.py", "models/dense/wau.py", "plots/proofs.py"} & files
    assert "models/speech/samba_asr.py" in names("zoo.proofs.speech.samba_asr")
    assert "decoding/methods/medusa.py" in names("zoo.decoding.methods")


@pytest.mark.parametrize(
    ("file", "other"),
    [("ops/selective_scan.py", False), ("models/vision/vmamba.py", False), ("prove.py", True)],
)
def test_another_code_makes_another_key(file, other, monkeypatch):
    before = kept.key(["it"], ["zoo.proofs.vision.vmamba"])
    digest = kept._digest
    changed = kept._ROOT / file
    monkeypatch.setattr(kept, "_digest", lambda f: b"new" if f == changed else digest(f))
    assert (kept.key(["it"], ["zoo.proofs.vision.vmamba"]) == before) is other


def test_classes_and_models_of_a_recipe_are_part_of_its_key(monkeypatch):
    recipe = "model: {class_path: zoo.tasks.Segmentation, init_args: {model: wau_tiny}}"
    assert set(kept._named(kept._WORD.findall(recipe))) >= {"zoo.tasks.dense.segmentation"}
    named = kept._model_names()
    assert named["sinet"] == "zoo.models.dense.sinet"
    assert "zoo.models.dense.sinet" in set(kept._named(["sinet"]))
