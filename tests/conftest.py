from __future__ import annotations

import os
from pathlib import Path

import pytest

# A name that is nowhere is said at once, not after a minute of looking for it in the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """Folder of a short run of the tiny recipe, trained once for all tests that only read it."""
    from tests.tiny import tiny_recipe
    from zoo.train import main

    folder = tmp_path_factory.mktemp("trained")
    recipe = tiny_recipe(folder, trainer__max_epochs=3, model__init_args__ema_decay=0.5)
    assert main([str(recipe), "--runs", str(folder / "runs")]) == 0
    (run,) = (folder / "runs" / "test" / "tiny").iterdir()
    return run


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    assert os.listdir(tmp_path) == []
    return tmp_path
