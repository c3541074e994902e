"""From a recipe to objects: the one place that knows YAML.

A recipe has the groups of LightningCLI: ``seed_everything``, ``trainer`` (arguments of Lightning's
Trainer), ``model`` (a task of ``zoo.tasks``) and ``data`` (a data module of ``zoo.data``), these
two by ``class_path`` and ``init_args``; and ``checkpoint`` (:class:`zoo.runs.Checkpoints`).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.data.base import DataModule
from zoo.errors import ZooError, suggest
from zoo.recipe_errors import explain
from zoo.runs import Checkpoints
from zoo.tasks.base import Task

#: Groups of a recipe whose keys are the arguments of a class.
GROUPS = {"trainer": pl.Trainer, "checkpoint": Checkpoints}
#: What differs from Lightning's own defaults; a recipe may say otherwise.
TRAINER_DEFAULTS = {
    "trainer.logger": False,
    "trainer.enable_model_summary": False,
    "trainer.num_sanity_val_steps": 0,
    "trainer.log_every_n_steps": 10,
    # the data modules share the samples out themselves
    "trainer.use_distributed_sampler": False,
}


class Recipe:
    """A recipe with overrides, parsed and checked; nothing is built yet.

    Args:
        path: the YAML file.
        overrides: ``--a.b value`` arguments.
        shown_as: what messages call the file, if not by its path.

    Raises:
        ZooError: in one line: the file or option, the key, what was expected.
    """

    def __init__(
        self, path: Path, overrides: Sequence[str] = (), shown_as: str | None = None
    ) -> None:
        self.shown_as = shown_as or str(path)
        content = read_yaml(path, self.shown_as)
        self._check_groups(content)
        parser = _parser("model", "data")
        # as text where a list is replaced: in a file, its items would lend theirs their settings
        config = yaml.safe_dump(content) if _drop_replaced_lists(content, overrides) else str(path)
        try:
            self.config = parser.parse_args(["--config", config, *overrides])
        except argparse.ArgumentError as error:
            raise ZooError(explain(str(error), self.shown_as, overrides, GROUPS)) from error
        self.text = parser.dump(self.config)

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Mapping[str, Any],
        path: Path,
        overrides: Sequence[str] = (),
        instead: Path | None = None,
    ) -> tuple[Recipe, str]:
        """The recipe and its name that a checkpoint of a run holds, or another recipe instead."""
        header = checkpoint["zoo"]
        if instead is not None:
            return cls(instead, overrides), header["name"]
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "recipe.yaml"
            copy.write_text(header["recipe"])
            return cls(copy, overrides, shown_as=str(path)), header["name"]

    def build(self) -> tuple[Task, DataModule]:
        """Seed everything, then build the task and the data module."""
        pl.seed_everything(self.config.seed_everything, verbose=False)
        task, data = _build(self.config.model), _build(self.config.data)
        data.seed = self.config.seed_everything
        return task, data

    def build_checkpoints(self) -> Checkpoints:
        """The callback that writes checkpoints; only training has one."""
        return self._build_group("checkpoint")

    def build_trainer(
        self,
        callbacks: Sequence[pl.Callback] = (),
        loggers: Sequence[Logger] = (),
        plugins: Sequence[CheckpointIO] = (),
        **settings: Any,
    ) -> pl.Trainer:
        """The recipe's trainer; a command adds to its lists and replaces other ``settings``."""
        given = {**self._build_group("trainer"), **settings}
        for name, added in (("callbacks", callbacks), ("logger", loggers), ("plugins", plugins)):
            own = given[name] if given[name] not in (None, True, False) else []
            given[name] = [*(own if isinstance(own, list) else [own]), *added]
        if given["enable_progress_bar"] is not False and not any(
            isinstance(callback, ProgressBar) for callback in given["callbacks"]
        ):
            given["callbacks"].append(Progress())
        try:
            return pl.Trainer(**given)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            hint = ""
            if given["accelerator"] in ("gpu", "cuda"):
                hint = "; --trainer.accelerator auto --trainer.devices 1 takes what is here"
            raise ZooError(f"{self.shown_as}: trainer: {error}{hint}") from error

    def _build_group(self, name: str) -> Any:
        return _parser().instantiate(Namespace({name: self.config[name]}))[name]

    def _check_groups(self, content: Mapping[str, Any]) -> None:
        """What jsonargparse would say badly or not at all."""
        known = ["seed_everything", "model", "data", *GROUPS]
        for key in content:
            if key not in known:
                raise ZooError(f"{self.shown_as}: {key}: no such key; {suggest(str(key), known)}")
        for group in ("model", "data"):
            keys = ("class_path", "init_args")
            value = content.get(group)
            if not isinstance(value, dict) or "class_path" not in value:
                raise ZooError(f"{self.shown_as}: {group}: expected class_path and init_args")
            for key in value:
                if key not in keys:
                    raise ZooError(
                        f"{self.shown_as}: {group}.{key}: no such key; {suggest(str(key), keys)}"
                    )


def _drop_replaced_lists(content: dict[str, Any], overrides: Sequence[str]) -> bool:
    """Take the lists out of a recipe that ``--a.b`` gives anew; whether there are any."""
    found = False
    for option in overrides:
        holder: Any = None
        value: Any = content
        for key in option.removeprefix("--").partition("=")[0].split("."):
            if isinstance(value, dict) and key not in value:
                value = value.get("init_args")  # which options may leave out
            holder, value = value, value.get(key) if isinstance(value, dict) else None
        if isinstance(value, list):
            del holder[key]
            found = True
    return found


def read_yaml(path: Path, shown_as: str | Path) -> dict[str, Any]:
    """Read a YAML file with keys; a broken one is a :class:`ZooError` that names the line."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ZooError(f"{path} does not exist, expected a recipe (.yaml)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{shown_as} cannot be read as a recipe: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ZooError(f"{shown_as}{line}: not valid YAML, {problem}") from error
    if not isinstance(content, dict):
        raise ZooError(f"{shown_as}: expected keys and values, as in the files below recipes/")
    return content


class Progress(RichProgressBar):
    """Lightning's bar without the loggers' version."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """What stands behind the bar."""
        return {k: v for k, v in super().get_metrics(*args).items() if k != "v_num"}


def quiet() -> None:
    """Leave out what Lightning says about itself; errors and our own lines stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*not resumable.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
        ".*in eval mode at the start of training.*",  # the averaged weights
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _parser(*by_class_path: str) -> ArgumentParser:
    """Parser of all groups of a recipe, or of those whose class is fixed."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--seed_everything", type=int, default=0)
    for name, base in (("model", Task), ("data", DataModule)):
        if name in by_class_path:
            parser.add_subclass_arguments(base, name, required=True)
    parser.add_class_arguments(
        pl.Trainer, "trainer", instantiate=False, fail_untyped=False, sub_configs=True
    )
    parser.add_class_arguments(Checkpoints, "checkpoint")
    parser.set_defaults(TRAINER_DEFAULTS)
    return parser


def _build(config: Namespace) -> Any:
    """Build an object from ``class_path`` and ``init_args``.

    jsonargparse would build it while it tries the types of an argument, and bury its errors.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(locate(config.class_path), "it", fail_untyped=False)
    return parser.instantiate(Namespace(it=config.init_args)).it
