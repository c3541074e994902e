"""Where models that were trained here are kept, by name."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where models trained here are kept: ``$ZOO_CACHE``, or ``zoo`` in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("ZOO_CACHE", base / "zoo"))


def trained_folder(name: str) -> Path:
    """Folder of a model that a recipe exported under ``name``."""
    return cache_folder() / "models" / name
