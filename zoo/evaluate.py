"""``python -m zoo.evaluate RUN|CHECKPOINT|RECIPE [--split test] [--a.b VALUE]``.

Measures a run's best checkpoint, a checkpoint file, or, with a recipe that names ``pretrained``
weights, published ones. Prints a table and writes the numbers as JSON. One device does it, unless
``--trainer.devices`` says otherwise, whatever the recipe is trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.arguments import allow_class_option, make_folder
from zoo.command import command
from zoo.errors import ZooError
from zoo.recipes import all_recipes, check_options, find_recipe, read_recipe, recipe_name
from zoo.runs.folder import resolve_checkpoint
from zoo.show import print_metrics

if TYPE_CHECKING:
    from zoo.cli import Recipe

_YAML = (".yaml", ".yml")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="zoo evaluate RUN|CHECKPOINT|RECIPE [--split val] [--recipe RECIPE] [--a.b VALUE]",
        allow_abbrev=False,
        description="Measure a run, a checkpoint, or a recipe's pretrained weights.",
    )
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="take this recipe instead of the checkpoint's"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON file; by default beside the checkpoint"
    )
    allow_class_option(parser)
    return parser


@command
def main(argv: list[str]) -> int:
    """Evaluate as the command line says."""
    given = argv.pop(0) if argv and not argv[0].startswith("-") else None
    arguments, overrides = _arguments().parse_known_args(argv)
    if given is None:
        raise ZooError("what? it comes first: zoo evaluate RUN|CHECKPOINT|RECIPE")
    source = Path(given)
    of_recipe = source.suffix in _YAML or (not source.exists() and given in all_recipes())
    instead = None
    if of_recipe:
        source = find_recipe(given)
        read_recipe(source, overrides)
    else:
        source = resolve_checkpoint(source)
        if arguments.recipe is None:
            check_options(overrides)
        else:
            instead = find_recipe(arguments.recipe)
            read_recipe(instead, overrides)

    # all that needs no import is right
    from zoo.cli import Recipe, quiet
    from zoo.runs import read_checkpoint, write_atomically

    quiet()
    checkpoint = None
    if of_recipe:
        recipe, name = Recipe(source, overrides), recipe_name(source)
        if not recipe.config.model.init_args.get("pretrained"):
            raise ZooError(
                f"{source} has nothing trained in it: give the folder of a run or a checkpoint, or "
                "set --model.init_args.pretrained FILE"
            )
        output = Path("evaluation.json")
    else:
        checkpoint = read_checkpoint(source)
        recipe, name = Recipe.of_checkpoint(
            checkpoint, source, overrides, instead, arguments.allow_class
        )
        output = source.with_name(f"{source.stem}.{arguments.split}.json")
    output = arguments.output or output
    task, data = recipe.build()
    stage = {"test": "test", "val": "validate"}[arguments.split]
    data.setup(stage)
    task.check_data(data)
    if checkpoint is not None:
        task.load_weights(checkpoint)
    if output.is_dir():
        raise ZooError(f"--output: {output} is a folder, expected the name of a JSON file")
    make_folder("--output", output.parent)
    trainer = recipe.build_trainer(
        logger=False, enable_checkpointing=False, **_one_device(recipe, overrides)
    )
    with recipe.trainer_errors():
        found = getattr(trainer, stage)(task, datamodule=data, verbose=False)
    if not found:
        raise ZooError(
            f"trainer.limit_{arguments.split}_batches is 0: nothing is evaluated; set it to 1.0"
        )
    metrics = found[0]
    if trainer.is_global_zero:
        report = {"recipe": name, "source": str(source), "split": arguments.split, **metrics}
        write_atomically(output, (json.dumps(report, indent=2) + "\n").encode())
        print_metrics(f"{name}: {arguments.split} of {source}", metrics, output)
    return 0


def _one_device(recipe: Recipe, overrides: Sequence[str]) -> dict[str, Any]:
    """The trainer's settings for it, without those that the command line gives."""
    settings = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    if recipe.config.trainer.accelerator != "cpu":
        settings["accelerator"] = "auto"
    given = {option.partition("=")[0] for option in overrides}
    return {name: value for name, value in settings.items() if f"--trainer.{name}" not in given}


if __name__ == "__main__":
    sys.exit(main())
