"""Every recipe is built; those whose data can be made here run, and what they export is used."""

import copy
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.language_models import make_model
from tests.tiers import all_but_first
from tests.tiny import ROOT
from zoo.arguments import load_yaml
from zoo.cli import Recipe, quiet
from zoo.proofs.run import read_proofs

RECIPES = ROOT / "recipes"
PATHS = sorted(RECIPES.glob("*/*/*.yaml"))
PROOFS = [path for path in PATHS if path.stem == "proof"]
#: Samples of a step, at most.
BATCH = 8
#: Settings of a data module that say where its files are.
PLACES = {"root", "path", "file", "source", "name", "train"}
#: Settings of a task that may name what another recipe exports.
USES = ("target", "draft", "teacher", "start", "model")


def content_of(path: Path) -> dict[str, Any]:
    return load_yaml(path.read_text())


def is_made_here(path: Path) -> bool:
    """Whether a recipe's data come with Python or its packages, or are made."""
    settings = content_of(path)["data"].get("init_args", {})
    return settings.get("sample") is not None or not PLACES & settings.keys()


RUNNABLE = [path for path in PATHS if path not in PROOFS and is_made_here(path)]
FULL_SCALE = [path for path in PATHS if path not in PROOFS and path not in RUNNABLE]
EXPORTS = {
    settings["export"]: path
    for path in RUNNABLE
    if (settings := content_of(path)["model"]["init_args"]).get("export")
}


def parameters(paths: list[Path], slow: list[Path] | None = None):
    assert paths
    return [
        pytest.param(
            path,
            id="/".join(path.with_suffix("").parts[-3:]),
            marks=[pytest.mark.slow] if slow and path in slow else [],
        )
        for path in paths
    ]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> str:
    """What stands in for a language model of the Hugging Face hub."""
    folder = tmp_path_factory.mktemp("language_model")
    make_model("llama").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("path", parameters(FULL_SCALE))
def test_full_scale_recipe_builds_its_model(path: Path, language_model: str, monkeypatch):
    # transformers loads no weights onto the meta device, where only shapes are wanted
    shapes = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(language_model))
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: copy.deepcopy(shapes)
    )
    recipe = Recipe(path)
    arguments = recipe.config.model.init_args
    model_args = arguments.get("model_args") or {}
    if "pretrained" in model_args:
        model_args["pretrained"] = False
    for name, value in vars(arguments).items():
        if not isinstance(value, str):
            continue
        if value.startswith(("data/", "hf://")):  # weights that are not here
            arguments[name] = None
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            arguments[name] = language_model
    with torch.device("meta"):
        task, data = recipe.build()
    # three prompt tokens are the least that a paper trains
    assert sum(parameter.numel() for parameter in task.model.parameters()) > 90
    assert data.batch_size >= 1
    assert path.read_text().startswith("#")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where data and exported models of this module are kept: they replace nobody's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("recipes")
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


def fewer(path: Path) -> list[str]:
    """Overrides by which a recipe's data, and what its test measures besides, are no more than two
    steps need."""
    content = content_of(path)
    settings = content["data"].get("init_args", {})
    sample = settings.get("sample") or {}
    size = min(settings.get("batch_size", BATCH), BATCH)
    most = {"train": 2 * size, "val": 4, "test": 4}
    options = [
        f"--data.init_args.sample.{name}={min(sample[name], most[name])}"
        for name in most.keys() & sample.keys()
    ]
    options.append(f"--data.init_args.batch_size={size}")
    if "samples" in settings:
        options.append(f"--data.init_args.samples={min(settings['samples'], 8 * size)}")
    if "max_bytes" in settings:
        options.append(f"--data.init_args.max_bytes={min(settings['max_bytes'], 400_000)}")
    if "envs" in settings:  # which learn from as many steps of each
        options.append(f"--data.init_args.envs={2 * size}")
        options.append("--model.init_args.steps=16")
    if "length_test" in content["model"]["init_args"]:
        options.append("--model.init_args.length_test={lengths: [8, 16], steps: 1}")
    return options


def run_two_steps(path: Path) -> pl.Trainer:
    """Train for two steps, validate, test, draw; first what exports the models that it uses."""
    settings = content_of(path)["model"]["init_args"]
    for used in {settings.get(name) for name in USES} & EXPORTS.keys():
        if EXPORTS[used] != path and not settings.get("train_target"):
            exported(EXPORTS[used])
    quiet()
    recipe = Recipe(path, fewer(path))
    task, data = recipe.build()
    trainer = recipe.build_trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        limit_test_batches=1,
        val_check_interval=1.0,
    )
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2
    after = list(task.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    (validated,) = trainer.validate(task, datamodule=data, verbose=False)
    assert task.monitor in validated
    trainer.test(task, datamodule=data, verbose=False)
    task.figures()
    return trainer


_run: set[Path] = set()


def exported(path: Path) -> None:
    """Run a recipe once in this process."""
    if path not in _run:
        run_two_steps(path)
        _run.add(path)


ANOTHER_OF_A_TASK = all_but_first(RUNNABLE, lambda path: content_of(path)["model"]["class_path"])


@pytest.mark.parametrize("path", parameters(RUNNABLE, ANOTHER_OF_A_TASK))
def test_recipe_runs_two_steps(path: Path, place):
    assert path.read_text().startswith("#")
    exported(path)


@pytest.mark.parametrize("path", parameters(PROOFS))
def test_proof_can_be_read(path: Path):
    proofs = read_proofs(path)
    assert proofs and all(proof.measurements and proof.must_hold for proof in proofs)
    assert path.read_text().startswith("#")
