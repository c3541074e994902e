"""Every proof with tiny trainings: all that must hold is measured, and all is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiers import tiers
from tests.tiny import ROOT
from zoo.cli import Recipe
from zoo.proofs import trained
from zoo.proofs.base import Measurement
from zoo.proofs.decoding import _unit_language
from zoo.proofs.results import draw, judge
from zoo.proofs.run import read_proofs

SYSTEMS = sorted("/".join(f.parts[-3:-1]) for f in ROOT.glob("recipes/*/*/proof.yaml"))
#: Whose trainings take seconds, short as they are.
SLOW = [
    "change/changemamba",
    "decoding/clover",
    "decoding/kangaroo",
    "decoding/specdec_pp",
    "decoding/token_recycling",
    "dense/medusa_medical",
    "dense/mutual_inpainting",
    "dense/prelude_net",
    "dense/sfanet",
    "dense/sinet",
    "dense/taskexpert",
    "dense/wau",
    "dense/yonos_sr",
    "multimodal/mmmamba",
    "speech/samba_asr",
    "ssm/mamba360",
    "ssm/sashimi",
    "tracking/trackssm",
    "vision/efficientvmamba",
    "vision/mambamixer",
    "vision/token_pruning",
    "vision/upernet",
]
#: Settings of measurements that decide how long they take -> tiny ones.
SMALL = {
    "steps": 2,
    "repeats": 1,
    "batch_size": 2,
    "test_samples": 8,
    "tokens": 200,
    "pairs": 3,
    "texts": 2,
    "tables": 2,
    "passes": 2000,
    "new_tokens": 12,
    "layerwise": 1,
    "end_to_end": 1,
    "seconds": [0.1, 0.2],
    "whole": "vim_tiny",
    "pruned": "token_pruning_vim_tiny",
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Recipes make few samples, an epoch is one step, and models are kept elsewhere."""
    build, open_ = Recipe.build_trainer, trained._open

    def build_trainer(recipe: Recipe, **settings: Any) -> Any:
        return build(recipe, **settings, limit_train_batches=1, limit_test_batches=1)

    as_shipped: dict[str, Recipe] = {}

    def open_tiny(recipe: str, settings: dict[str, Any]) -> Recipe:
        key = repr((recipe, sorted(settings.items())))
        opened = as_shipped[key] = as_shipped.get(key) or open_(recipe, settings)
        sample = opened.config.data.init_args.get("sample")
        stages = opened.config.model.init_args.get("stages") or []
        epochs = len(stages) or min(1, opened.config.trainer.max_epochs)
        few: dict[str, Any] = {"trainer.max_epochs": epochs}
        if stages:
            few["model.init_args.stages"] = [stage.as_dict() | {"epochs": 1} for stage in stages]
        if sample is not None:
            wanted = {"train": 12, "test": 4, "hours": 1200, "frames": 12, "pictures": 0}
            if sample.get("val"):
                wanted["val"] = 2
            few |= {f"data.init_args.sample.{k}": v for k, v in wanted.items() if k in sample}
            few["data.init_args.batch_size"] = 4
            folder = tmp_path / "made" / f"{abs(hash(str(sample)))}"
            place = "root" if "root" in opened.config.data.init_args else "path"
            if str(tmp_path) not in str(settings.get(f"data.init_args.{place}")):
                few[f"data.init_args.{place}"] = str(folder / "it.csv")
        return open_(recipe, settings | few)

    monkeypatch.setattr(Recipe, "build_trainer", build_trainer)
    monkeypatch.setattr(trained, "_open", open_tiny)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_unit_language, "LENGTH", 24)
    monkeypatch.setattr("zoo.proofs.vision.token_pruning.KEEP_RATIOS", ())
    make = _unit_language.unit_lm

    def unit_lm(seed: int, layers: int = 2, **settings: Any) -> Path:
        return make(seed, **settings | {"layers": layers, "steps": 2, "width": 32})

    decoding = ("clover", "hidden_transfer", "hydra", "kangaroo", "lud", "ppd", "specdec_pp")
    for module in (*decoding, "spectr", "token_recycling"):
        monkeypatch.setattr(f"zoo.proofs.decoding.{module}.unit_lm", unit_lm)
    return tmp_path


def shrink(measurement: Measurement) -> Measurement:
    """The measurement with small settings."""
    for name, value in SMALL.items():
        if hasattr(measurement, name):
            setattr(measurement, name, value)
    return measurement


@pytest.mark.parametrize("system", tiers(SYSTEMS, slow=SLOW))
def test_proof_runs(system: str, tiny):
    for number, proof in enumerate(read_proofs(ROOT / "recipes" / system / "proof.yaml")):
        run = {name: shrink(m).measure(1) for name, m in proof.measurements.items()}
        result = judge(proof, {1: run}, [0.0])
        assert [i.text for i in result.inequalities] == proof.must_hold
        for measured in run.values():
            assert all(isinstance(float(value), float) for value in measured.values.values())
        titles = {curve.axes.title for m in run.values() for curve in m.curves}
        names = {name for m in run.values() for row in m.pictures for name in row}
        assert set(proof.show or ()) <= titles | names
        figure = draw(proof, [run])
        assert figure is not None
        figure.savefig(tiny / f"figure-{number}.png")
