"""``python -m zoo.list [PATTERN]``: systems, models with parameter counts, recipes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import zoo
from zoo.command import command
from zoo.errors import ZooError
from zoo.show import print_table, say


def recipes_folder() -> Path:
    """``recipes/`` of the working directory, else of the source folder."""
    for folder in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if (folder / "recipes").is_dir():
            return folder / "recipes"
    raise ZooError("there is no folder recipes/ here: run this in the source folder of ssm-zoo")


@command
def main(argv: list[str]) -> int:
    """List what matches the pattern."""
    parser = argparse.ArgumentParser(prog="zoo list", description="What there is.")
    parser.add_argument("pattern", nargs="?", default="*", help='model names, such as "vmamba*"')
    pattern = parser.parse_args(argv).pattern
    names = zoo.list_models(pattern)
    if not names:
        raise ZooError(f"no model matches {pattern!r}; zoo list shows them all")
    infos = [zoo.model_info(name) for name in names]
    systems = {(info.family, info.system) for info in infos}
    if pattern == "*":  # some bring no model of their own, such as ways of decoding
        systems |= {path.parts[-3:-1] for path in recipes_folder().glob("*/*/*.yaml")}
    for family, system in sorted(systems):
        recipes = (recipes_folder() / family / system).glob("*.yaml")
        title = (
            f"{family}/{system}   recipes: {', '.join(sorted(p.name for p in recipes)) or 'none'}"
        )
        rows = [
            (info.name, f"{_parameters(info.name):,}", info.description)
            for info in infos
            if (info.family, info.system) == (family, system)
        ]
        if rows:
            print_table(title, ("model", "parameters", "description"), rows, right=("parameters",))
        else:
            say(f"{title}   no model of its own\n")
    return 0


def _parameters(name: str) -> int:
    """Number of parameters, without allocating any."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in zoo.create_model(name).parameters())


if __name__ == "__main__":
    sys.exit(main())
