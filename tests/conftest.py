from __future__ import annotations

import os
from pathlib import Path

import pytest

# A name that is nowhere is said at once, not after a minute of looking for it in the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is made once for several tests is made in one process (``--dist loadgroup``)."""
    for item in items:
        if "trained_run" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("trained_run"))
        elif any(fixture.scope == "module" for fixture in _fixtures(item)):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _fixtures(item: pytest.Item) -> list[pytest.FixtureDef]:
    known = getattr(item, "_fixtureinfo", None)
    if known is None:
        return []
    return [found[-1] for found in known.name2fixturedefs.values() if found]


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
