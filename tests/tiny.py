"""Recipes for tests of the commands: a small timm network on scikit-learn's digits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def tiny_recipe(folder: Path, **changes: Any) -> Path:
    """Write ``recipes/test/tiny.yaml`` below ``folder``; ``a__b=c`` sets ``a.b`` to c."""
    recipe: dict[str, Any] = {
        "seed_everything": 1,
        "model": {
            "class_path": "zoo.tasks.ImageClassification",
            "init_args": {
                "model": "resnet10t",
                "num_classes": 10,
                "model_args": {"stem_width": 8, "channels": [8, 16, 16, 32]},
                "optimizer": {"lr": 0.002, "lr_batch_size": None},
                "schedule": {"warmup_epochs": 1},
            },
        },
        "data": {
            "class_path": "zoo.data.Digits",
            "init_args": {"image_size": 32, "crop_pct": 1.0, "batch_size": 128},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    for name, value in changes.items():
        *groups, key = name.split("__")
        place = recipe
        for group in groups:
            place = place.setdefault(group, {})
        place[key] = value
    path = folder / "recipes" / "test" / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(command: str, *arguments: Any, folder: Path) -> subprocess.Popen:
    """Start ``python -m zoo.<command>`` in a folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", f"zoo.{command}", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
