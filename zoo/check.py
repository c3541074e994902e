"""``python -m zoo.check RECIPE [--a.b VALUE]``: look at what a recipe would train on.

Builds model and data, looks at samples of each split as the model will see them, takes two steps,
says what is odd, and draws training samples into a new folder. Nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.arguments import new_folder
from zoo.command import command
from zoo.errors import ZooError
from zoo.recipes import find_recipe, read_recipe, recipe_name
from zoo.show import count, print_table, say

if TYPE_CHECKING:
    from zoo.cli import Recipe
    from zoo.data.base import DataModule
    from zoo.data.look import Split
    from zoo.tasks.base import Task

SPLITS = ("train", "val", "test")
DRAWN = 6


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo check",
        usage="zoo check RECIPE [--samples N] [--output FOLDER] [--a.b VALUE ...]",
        allow_abbrev=False,
        description="Look at model and data of a recipe as training would see them: sizes, "
        "classes, what is odd, what a step takes. Nothing is trained.",
        epilog="Every value of the recipe can be set as for zoo train.",
    )
    parser.add_argument("--samples", type=int, default=200, help="of each split that are looked at")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="new folder (default checks/<recipe>/<time>)"
    )
    return parser


@command
def main(argv: list[str]) -> int:
    """Check as the command line says."""
    given = argv.pop(0) if argv and not argv[0].startswith("-") else None
    arguments, overrides = _arguments().parse_known_args(argv)
    if given is None:
        raise ZooError("which recipe? it comes first: zoo check RECIPE [--a.b VALUE]")
    if arguments.samples < 1:
        raise ZooError(f"--samples is {arguments.samples}, expected 1 or more")
    if arguments.output is not None and arguments.output.exists():
        raise ZooError(f"--output: {arguments.output} exists already, expected a new folder")
    path = find_recipe(given)
    read_recipe(path, overrides)

    # all that needs no import is right
    from zoo.cli import Recipe, quiet

    quiet()
    recipe = Recipe(path, overrides)
    task, data = recipe.build()
    odd = check(recipe, task, data, arguments.samples)
    name = recipe_name(path)
    folder = arguments.output or Path("checks", name, time.strftime("%Y-%m-%d_%H-%M-%S"))
    _draw(data, name, folder)
    for line in odd:
        say(f"odd: {line}")
    say(f"go on with: zoo train {' '.join([given, *overrides])}")
    return 0


def check(recipe: Recipe, task: Task, data: DataModule, samples: int) -> list[str]:
    """Print what there is, and take two steps; what is odd.

    Raises:
        ZooError: what training would say: data that are not there or do not fit, a step that fails.
    """
    from zoo.data.look import look, shared

    data.setup("fit")
    data.setup("test")
    task.check_data(data)
    task.use_data(data)
    splits = {split: look(data, split, samples) for split in SPLITS}
    print_table(
        f"{type(task).__name__}: {count(task.model)} parameters; {type(data).__name__}",
        ("split", "samples", "part", "shape", "type", "values"),
        _rows(data, splits),
        right=("samples",),
    )
    steps = len(data.source("train")) // data.batch_size
    seconds = _step_seconds(recipe, task, data)
    say(
        f"a step of {data.batch_size} samples takes {seconds:.2g} s on {task.device}, an epoch of "
        f"{steps:,} about {_duration(steps * seconds)}"
    )
    return [line for split in splits.values() for line in split.odd] + shared(splits)


def _rows(data: DataModule, splits: dict[str, Split]) -> list[tuple[Any, ...]]:
    from zoo.data.look import labels_of

    rows = []
    for name, split in splits.items():
        labels = labels_of(data, split)
        for number, (part, seen) in enumerate(split.parts.items()):
            values = f"{seen.least:.4g} .. {seen.most:.4g}"
            if labels is not None and part == labels[0]:
                total = sum(labels[1].values())
                shares = [(data.class_names[n], c / total) for n, c in labels[1].most_common()]
                values = ", ".join(f"{name} {share:.1%}" for name, share in shares[:6])
                values += f", {len(shares) - 6} more" if len(shares) > 6 else ""
            head = (name, f"{split.size:,}") if number == 0 else ("", "")
            rows.append((*head, part, seen.shape, seen.dtype, values))
    return rows


def _step_seconds(recipe: Recipe, task: Task, data: DataModule) -> float:
    """What the second of two training steps takes; both are validated."""
    import lightning.pytorch as pl

    class Clock(pl.Callback):
        seconds = started = 0.0

        def on_train_batch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    clock = Clock()
    trainer = recipe.build_trainer(
        callbacks=[clock],
        accelerator="auto",
        devices=1,
        num_nodes=1,
        strategy="auto",
        fast_dev_run=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with recipe.trainer_errors():
        trainer.fit(task, datamodule=data)
    return clock.seconds


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def _draw(data: DataModule, name: str, folder: Path) -> None:
    from zoo.data.look import pictures
    from zoo.plots.panels import panel_rows

    rows = pictures(data, DRAWN)
    if rows:
        folder = new_folder("--output", folder)
        panel_rows(rows, f"{name}: training samples").savefig(folder / "samples.png")
        say(f"{len(rows)} training samples as the model sees them: {folder / 'samples.png'}")


if __name__ == "__main__":
    sys.exit(main())
