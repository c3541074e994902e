"""``python -m zoo.list [PATTERN]``: systems, models with parameter counts, recipes."""

from __future__ import annotations

import argparse
import sys

from zoo.command import command
from zoo.errors import ZooError
from zoo.models.registry import ModelInfo, list_models, model_info
from zoo.recipes import all_recipes
from zoo.show import print_table, say


@command
def main(argv: list[str]) -> int:
    """List what matches the pattern."""
    parser = argparse.ArgumentParser(
        prog="zoo list", allow_abbrev=False, description="What there is."
    )
    parser.add_argument("pattern", nargs="?", default="*", help='model names, such as "vmamba*"')
    pattern = parser.parse_args(argv).pattern
    models: dict[str, list[ModelInfo]] = {}
    for name in list_models(pattern):
        info = model_info(name)
        models.setdefault(f"{info.family}/{info.system}", []).append(info)
    if not models:
        raise ZooError(f"no model matches {pattern!r}; zoo list shows them all")
    recipes: dict[str, list[str]] = {}
    for name in sorted(all_recipes()):
        system, _, recipe = name.rpartition("/")
        recipes.setdefault(system, []).append(f"{recipe}.yaml")
    # some bring no model of their own, such as ways of decoding
    for system in sorted({*models, *(recipes if pattern == "*" else ())}):
        title = f"{system}   recipes: {', '.join(recipes.get(system, ())) or 'none'}"
        rows = [
            (info.name, "" if info.parameters is None else f"{info.parameters:,}", info.description)
            for info in models.get(system, ())
        ]
        if rows:
            print_table(title, ("model", "parameters", "description"), rows, right=("parameters",))
        else:
            say(f"{title}   no model of its own\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
