"""Every recipe parses; small ones run, full-scale ones build their model, proofs build too."""

from pathlib import Path

import pytest
import torch

from tests.tiny import ROOT
from zoo.cli import Recipe, quiet
from zoo.prove import read_proofs

RECIPES = ROOT / "recipes"


def recipes(name: str):
    paths = sorted(RECIPES.glob(f"*/*/{name}.yaml"))
    assert paths
    return [pytest.param(path, id="/".join(path.parts[-3:-1])) for path in paths]


@pytest.mark.parametrize("path", recipes("paper"))
def test_paper_recipe_builds_its_model(path: Path):
    recipe = Recipe(path)
    for name, value in vars(recipe.config.model.init_args).items():
        if isinstance(value, str) and value.startswith(
            "data/"
        ):  # weights that only their owner has
            recipe.config.model.init_args[name] = None
    with torch.device("meta"):
        task, data = recipe.build()
    assert sum(parameter.numel() for parameter in task.model.parameters()) > 1e4
    assert data.batch_size >= 1
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("path", recipes("small"))
def test_small_recipe_runs_two_steps(path: Path):
    quiet()
    recipe = Recipe(path)
    assert path.read_text().startswith("#")
    task, data = recipe.build()
    trainer = recipe.build_trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        limit_test_batches=1,
    )
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2
    after = list(task.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    trainer.test(task, datamodule=data, verbose=False)


@pytest.mark.parametrize("path", recipes("proof"))
def test_proof_can_be_read(path: Path):
    proofs = read_proofs(path)
    assert proofs and all(proof.measurements and proof.must_hold for proof in proofs)
    assert path.read_text().startswith("#")
