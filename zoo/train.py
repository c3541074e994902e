"""``python -m zoo.train RECIPE [--a.b VALUE] [--resume [RUN]] [--ckpt_path FILE]``.

Trains, tests the best checkpoint, prints the result and leaves everything in
``runs/<recipe>/<time>``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.arguments import allow_class_option, new_folder
from zoo.atomic import is_full
from zoo.command import Interrupted, command, full_disk
from zoo.errors import ZooError
from zoo.recipes import check_options, find_recipe, read_recipe, recipe_name
from zoo.runs.folder import LAST, latest_run, run_path
from zoo.show import count, print_metrics, say

if TYPE_CHECKING:
    from zoo.cli import Recipe
    from zoo.tasks.base import Task


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="zoo train RECIPE [--a.b VALUE] [--resume [RUN]] [--ckpt_path FILE]",
        allow_abbrev=False,
        description="Train a recipe, test the best checkpoint, draw pictures. RECIPE is a YAML "
        "file or a name such as vision/vmamba/small.",
        epilog="Every value of the recipe can be set: --trainer.max_epochs 5, "
        "--data.init_args.batch_size 32; --print_config shows them all.",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with the latest run of the recipe, or with the run in folder RUN, as its own "
        "copy of the recipe says",
    )
    parser.add_argument("--ckpt_path", type=Path, metavar="FILE", help="go on from this checkpoint")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept")
    parser.add_argument(
        "--print_config", action="store_true", help="print the recipe with all its values, and end"
    )
    allow_class_option(parser)
    return parser


@command
def main(argv: list[str]) -> int:
    """Train as the command line says."""
    # not argparse's business: it would take the value of an override for the recipe
    given = argv.pop(0) if argv and not argv[0].startswith("-") else None
    arguments, overrides = _arguments().parse_known_args(argv)
    if given is None and arguments.resume and arguments.resume.endswith(".yaml"):
        given, arguments.resume = arguments.resume, ""
    path = None if given is None else find_recipe(given)
    run, checkpoint = _continued(arguments, path)
    if checkpoint is None:
        if path is None:
            raise ZooError("which recipe? it comes first: zoo train RECIPE [--a.b VALUE]")
        read_recipe(path, overrides)
    else:
        check_options(overrides)

    # all that needs no import is right
    from zoo.cli import Recipe
    from zoo.runs import read_checkpoint

    if checkpoint is None:
        recipe, name = Recipe(path, overrides), recipe_name(path)
    else:
        recipe, name = Recipe.of_checkpoint(
            read_checkpoint(checkpoint), checkpoint, overrides, allowed=arguments.allow_class
        )
    if arguments.print_config:
        print(recipe.text, end="")
        return 0
    train(recipe, name, arguments.runs, run, checkpoint)
    return 0


def _continued(arguments: argparse.Namespace, path: Path | None) -> tuple[Path | None, Path | None]:
    """The run to go on with, and the checkpoint to start from, if any."""
    run = None
    if arguments.resume is not None:
        if arguments.resume:
            run = Path(arguments.resume)
        elif path is not None:
            run = latest_run(arguments.runs, recipe_name(path))
        else:
            raise ZooError("--resume: of which recipe? Give the recipe, or the folder of the run")
        if not (run / LAST).is_file() and arguments.ckpt_path is None:
            raise ZooError(f"--resume: {run} has no {LAST} to go on from")
    checkpoint = arguments.ckpt_path or (run and run / LAST)
    if checkpoint is not None and not checkpoint.is_file():
        raise ZooError(f"{checkpoint} does not exist, expected a checkpoint (.ckpt) of a run")
    return run, checkpoint


def _step(checkpoint: Path, task: Task) -> int:
    """The step that the task goes on from with a checkpoint."""
    from zoo.runs import read_checkpoint

    content = read_checkpoint(checkpoint)
    if "optimizer_states" not in content:
        raise ZooError(
            f"{checkpoint} holds weights alone and cannot be gone on from, expected last.ckpt; to "
            "start anew from its weights, use --model.init_args.pretrained"
        )
    task.check_resumable(content)
    return content["global_step"]


def train(
    recipe: Recipe,
    name: str,
    runs: Path,
    run: Path | None = None,
    checkpoint: Path | None = None,
) -> dict[str, float]:
    """Fit, test the best checkpoint, draw.

    Args:
        recipe: what to run.
        name: of the recipe, for titles and for runs to be found by.
        runs: where a folder for a new run is made.
        run: the folder to go on in instead.
        checkpoint: where to go on from.

    Returns:
        the test's metrics; none if the trainer tests no batch.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    from zoo.cli import quiet
    from zoo.runs import CheckpointFiles, MetricsTable, RunFolder, read_checkpoint

    quiet()
    task, data = recipe.build()
    data.setup("fit")  # whatever is wrong with the data is said before anything is written
    task.check_data(data)
    step = _step(checkpoint, task) if checkpoint else None
    checkpoints = recipe.build_checkpoints()
    keeper = RunFolder(recipe.text, name)
    trainer = recipe.build_trainer(
        plugins=[CheckpointFiles(recipe.text, name)], callbacks=[keeper, checkpoints]
    )
    if 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches):
        raise ZooError(
            "trainer.max_epochs, max_steps or limit_train_batches is 0: there is nothing to train"
        )
    folder = run or run_path(runs, name)
    if trainer.is_global_zero:  # whose folder the other processes take, when training starts
        if run is None:
            folder = new_folder("--runs", folder)
        sizes = " + ".join(f"{len(data.source(split)):,}" for split in ("train", "val"))
        say(
            f"{name} -> {folder}: {type(task).__name__}, {count(task.model)} parameters, "
            f"{sizes} samples" + (f", from step {step:,}" if step else "")
        )
    table = MetricsTable(folder / "metrics.csv")
    board = TensorBoardLogger(folder, "", "tensorboard", purge_step=step)
    trainer.loggers = [*trainer.loggers, table, board]
    for logger in trainer.loggers:
        logger.log_hyperparams(recipe.values)
    keeper.connect(folder, table)
    checkpoints.connect(folder, table)
    again = f"python -m zoo.train --resume {folder}"
    try:
        with recipe.trainer_errors():
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
            task.load_weights(read_checkpoint(checkpoints.best_path))
            tested = trainer.test(task, datamodule=data, verbose=False)
            metrics = dict(tested[0]) if tested else {}
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise Interrupted(f"stopped; go on with: {again}") from None
    except OSError as error:
        if not is_full(error):
            raise
        raise ZooError(f"{full_disk(error)}: free some and go on with: {again}") from None
    if not metrics:
        say(f"nothing was tested, as trainer.limit_test_batches is 0; all is in {folder}")
    elif trainer.is_global_zero:
        print_metrics(f"{name}: test of the best checkpoint", metrics, checkpoints.folder)
    return metrics


if __name__ == "__main__":
    sys.exit(main())
