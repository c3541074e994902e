"""``python -m zoo.cp RECIPE COPY``: a copy of a recipe, to edit."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from zoo.arguments import make_folder
from zoo.command import command
from zoo.errors import ZooError
from zoo.recipes import find_recipe
from zoo.show import say


@command
def main(argv: list[str]) -> int:
    """Copy, over nothing that is there."""
    parser = argparse.ArgumentParser(
        prog="zoo cp", allow_abbrev=False, description="Copy a recipe, to edit the copy."
    )
    parser.add_argument("recipe", help="such as vision/vmamba/small; zoo list shows them")
    parser.add_argument("copy", type=Path, help="file to write (mine.yaml), or a folder for it")
    arguments = parser.parse_args(argv)
    source = find_recipe(arguments.recipe)
    copy = arguments.copy / source.name if arguments.copy.is_dir() else arguments.copy
    if copy.suffix not in (".yaml", ".yml"):
        raise ZooError(f"{copy} must end in .yaml")
    make_folder("the copy", copy.parent)
    try:
        with source.open("rb") as old, copy.open("xb") as new:
            shutil.copyfileobj(old, new)
    except FileExistsError:
        raise ZooError(f"{copy} exists already, expected the name of a new file") from None
    except OSError as error:
        raise ZooError(f"{copy} cannot be written: {error.strerror}") from None
    say(f"{copy}: run it with zoo train {copy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
