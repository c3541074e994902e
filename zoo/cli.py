"""From a recipe to objects: the one place that knows YAML.

A recipe has the groups of LightningCLI: ``seed_everything``, ``trainer`` (arguments of Lightning's
Trainer), ``model`` (a task of ``zoo.tasks``) and ``data`` (a data module of ``zoo.data``), these
two by ``class_path`` and ``init_args``; and ``checkpoint`` (:class:`zoo.runs.Checkpoints`).
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from docstring_parser import DocstringStyle
from jsonargparse import (
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_dumper,
    set_loader,
    set_parsing_settings,
)
from jsonargparse._common import parsing_settings
from jsonargparse.typing import register_type
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.loggers import Logger

from zoo.arguments import Word, blaming, dump_yaml, load_yaml, read_value, with_words
from zoo.data.base import DataModule
from zoo.errors import ZooError, shown
from zoo.recipe_errors import explain, keys_of
from zoo.recipes import CLASS_GROUPS, check_recipe, parse_yaml, read_yaml, split_options
from zoo.runs import Checkpoints
from zoo.tasks._weights import checkpoint_follows
from zoo.tasks.base import Task
from zoo.trainer_errors import refused
from zoo.trust import LIGHTNING, check_trusted, names_in

#: Groups of a recipe whose keys are the arguments of a class.
CLASSES = {"trainer": pl.Trainer, "checkpoint": Checkpoints}
_HEADER = ("recipe", "name")
#: jsonargparse reads and writes all of a recipe as zoo.arguments does.
_MODE = "recipe"
set_loader(_MODE, load_yaml, (yaml.YAMLError,))
set_dumper(_MODE, dump_yaml)
register_type(torch.device)
# what looks like a class in a model's own arguments stays a value; and to try every style on the
# docstrings, ours and Lightning's, takes a while
set_parsing_settings(
    instantiate_subclass_spec_in_any=False, docstring_parse_style=DocstringStyle.GOOGLE
)
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
        path: the YAML file, which is the user's own.
        overrides: ``--a.b value`` arguments.

    Attributes:
        text: the resolved recipe: read again, it is the same recipe.

    Raises:
        ZooError: in one line: the file or option, the key, what was expected.
    """

    #: Whether a checkpoint's weights follow, so that those to start from are not looked at.
    of_run = False

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self._parse(read_yaml(path), overrides, str(path), None)

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Mapping[str, Any],
        path: Path,
        overrides: Sequence[str] = (),
        instead: Path | None = None,
        allowed: Sequence[str] = (),
    ) -> tuple[Recipe, str]:
        """The recipe and its name that a checkpoint of a run holds.

        Args:
            checkpoint, path: what :func:`zoo.runs.read_checkpoint` gave, and its file.
            overrides: ``--a.b value`` arguments, which are the user's own.
            instead: a recipe of the user's own to take instead.
            allowed: classes that it may name besides those of :mod:`zoo.trust`.
        """
        text, name = _header(checkpoint, path)
        if instead is not None:
            recipe = cls(instead, overrides)
            recipe.of_run = True
            return recipe, name
        content = parse_yaml(text, path)
        allowed = [*allowed, *names_in([load_yaml(v) for _, v in split_options(overrides)])]
        check_trusted(content, allowed, str(path))
        recipe = cls.__new__(cls)
        recipe.of_run = True
        recipe._parse(content, overrides, str(path), [*allowed, *map(_home, allowed)])
        return recipe, name

    def _parse(
        self,
        content: dict[str, Any],
        overrides: Sequence[str],
        shown_as: str,
        allowed: Sequence[str] | None,
    ) -> None:
        """Take a recipe; with ``allowed`` it is a stranger's."""
        self.shown_as, self._allowed = shown_as, allowed
        check_recipe(content, overrides, shown_as)
        parser = _parser("model", "data")
        if helps := [option for option in overrides if option.endswith(".help")]:
            parser.parse_args(helps)  # prints, and ends
        try:
            with self._imports():
                given = with_options(with_words(content), overrides)
                self.config = _as_texts(parser.parse_object(given))
                self.text = _dump(parser, self.config, shown_as)
        except argparse.ArgumentError as error:
            raise ZooError(explain(str(error), shown_as, overrides, CLASSES)) from error

    @property
    def values(self) -> dict[str, Any]:
        """The resolved recipe's keys and values."""
        return load_yaml(self.text)

    @contextmanager
    def _imports(self) -> Iterator[None]:
        """Let jsonargparse import what a value names: a class, a function, a module.

        What a stranger's recipe names it imports only if that stands in zoo.trust or is allowed.
        """
        if self._allowed is None:
            yield
            return
        before = dict(parsing_settings)
        set_parsing_settings(
            import_path_denylist=["*"], import_path_allowlist=["zoo", *LIGHTNING, *self._allowed]
        )
        try:
            yield
        finally:
            parsing_settings.update(before)

    def build(self) -> tuple[Task, DataModule]:
        """Seed everything, then build the task and the data module.

        Raises:
            ZooError: the seed is out of range, or a setting does not fit.
        """
        with blaming(f"{self.shown_as}: seed_everything"):
            pl.seed_everything(self.config.seed_everything, verbose=False)
        with self._imports(), checkpoint_follows(self.of_run):
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
        with self.trainer_errors():
            given = {**self._build_group("trainer"), **settings}
        for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):  # Lightning divides by
            if given[name] is not None and given[name] < 1:
                raise ZooError(
                    f"{self.shown_as}: trainer.{name} is {given[name]}, expected 1 or more"
                )
        if given["val_check_interval"] in (0, False):
            raise ZooError(
                f"{self.shown_as}: trainer.val_check_interval is {given['val_check_interval']}, "
                "expected steps, a share of an epoch above 0, or a time; "
                "--trainer.limit_val_batches 0 leaves validation out"
            )
        for name, added in (("callbacks", callbacks), ("logger", loggers), ("plugins", plugins)):
            own = given[name] if given[name] not in (None, True, False) else []
            given[name] = [*(own if isinstance(own, list) else [own]), *added]
        if given["enable_progress_bar"] is not False and not any(
            isinstance(callback, ProgressBar) for callback in given["callbacks"]
        ):
            given["callbacks"].append(Progress())
        with self.trainer_errors():
            return pl.Trainer(**given)

    @contextmanager
    def trainer_errors(self) -> Iterator[None]:
        """Say in one line which setting of the trainer, its callbacks or loggers is refused, when
        they are built or when they are used.

        Raises:
            ZooError: instead of Lightning's own errors, and of those for want of an operation in
                the trainer's precision.
        """
        try:
            yield
        except ZooError:
            raise
        except Exception as error:
            reason = refused(error, self.config.trainer)
            if reason is None:
                raise
            raise ZooError(f"{self.shown_as}: trainer: {reason}") from error

    def _build_group(self, name: str) -> Any:
        with self._imports():
            return _parser().instantiate(Namespace({name: self.config[name]}))[name]


def _dump(parser: ArgumentParser, config: Namespace, shown_as: str) -> str:
    """The text of a resolved recipe; jsonargparse would put a message in place of a value."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="[\\s\\S]*Unable to serialize instance")
        text = parser.dump(config, skip_unset=False)
    for line in text.splitlines():
        if "Unable to serialize instance" in line:
            raise ZooError(
                f"{shown_as}: {line.strip().partition(':')[0]}: its default cannot be kept in the "
                "run's recipe, set it to a number, a text or null"
            )
    return dump_yaml(_texts_kept(load_yaml(text), config.as_dict()))


def _as_texts(config: Any) -> Any:
    """What was parsed, with texts instead of words, which nobody else knows."""
    if isinstance(config, Namespace):
        vars(config).update({key: _as_texts(value) for key, value in vars(config).items()})
        return config
    if isinstance(config, dict):
        return {key: _as_texts(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_as_texts(value) for value in config]
    return str(config) if isinstance(config, Word) else config


def _texts_kept(dumped: Any, given: Any) -> Any:
    """What was dumped, with the texts that were given: jsonargparse writes a text "1" or "~" of
    an argument of any type as the number and the null that they look like.
    """
    if isinstance(dumped, dict) and isinstance(given, dict):
        return {key: _texts_kept(value, given.get(key)) for key, value in dumped.items()}
    if isinstance(dumped, list) and isinstance(given, (list, tuple)) and len(dumped) == len(given):
        return [_texts_kept(*pair) for pair in zip(dumped, given, strict=True)]
    is_changed = isinstance(given, str) and not isinstance(dumped, str)
    return str(given) if is_changed else dumped


def _header(checkpoint: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """The text and the name of the recipe in a checkpoint; the name becomes a folder's."""
    header = checkpoint["zoo"]
    text, name = (header.get(key) if isinstance(header, dict) else None for key in _HEADER)
    if not isinstance(text, str) or not isinstance(name, str):
        raise ZooError(f"{path}: its recipe and the name of it are missing, expected a run's file")
    if not re.fullmatch(r"[^/\\:.][^/\\:]*(/[^/\\:.][^/\\:]*)*", name):
        raise ZooError(
            f"{path}: its recipe is called {shown(name)}, expected such as vision/vmamba/small"
        )
    return text, name


def _home(path: str) -> str:
    """Where a class that the user allows is defined, which may not be where it is imported from."""
    found = locate(path)
    if found is None:
        raise ZooError(f"{path} cannot be imported, expected a class that is installed or here")
    return f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else path


def with_options(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe with the values of ``--a.b VALUE`` in their places, ``init_args`` left out or not.

    jsonargparse would do this too, but writes values down as Python does between two levels, where
    a null becomes the text None. A value that is one word stays text, which fits a setting of any
    type that it can be read as; in quotes it is text for a setting of any type, too.
    """
    changed = copy.deepcopy(dict(content))
    for option, text in split_options(overrides):
        *groups, key = option.removeprefix("--").split(".")
        place = changed
        for group in groups:
            place = _inside(place, group)
            if not isinstance(place.get(group), dict):
                place[group] = {}
            place = place[group]
        place = _inside(place, key)
        value = with_words(read_value(option, text))
        is_quoted = isinstance(value, str) and text.lstrip().startswith(("'", '"'))
        if not (is_quoted or isinstance(value, (dict, list))):
            value = text
        if not groups and key in CLASS_GROUPS and isinstance(value, str):
            place, key = changed[key], "class_path"
        if key.endswith("+"):
            key = key.removesuffix("+")
            old = place.get(key) or []
            value = [*(old if isinstance(old, list) else [old]), *_as_list(value)]
        if key == "class_path" and value != place.get(key):
            taken = _accepted(str(value))
            given = place.get("init_args") or {}
            place["init_args"] = {name: given[name] for name in given if name in taken}
        place[key] = value
    return changed


def _inside(place: dict[str, Any], key: str) -> dict[str, Any]:
    """Where a key stands: the arguments of a class may be meant without ``init_args``."""
    if "class_path" not in place or key in ("class_path", "init_args", "dict_kwargs"):
        return place
    if not isinstance(place.get("init_args"), dict):
        place["init_args"] = {}
    return place["init_args"]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _accepted(class_path: str) -> set[str]:
    """Arguments that another class takes over from the one before it."""
    found = locate(class_path)
    return {key.partition(".")[0] for key in keys_of(found)} if isinstance(found, type) else set()


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
        ".*in eval mode at the start of training.*",  # the EMA weights
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=message)


@functools.cache
def _parser(*by_class_path: str) -> ArgumentParser:
    """Parser of all groups of a recipe, or of those whose class is fixed."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, parser_mode=_MODE)
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
    parser = ArgumentParser(exit_on_error=False, parser_mode=_MODE)
    parser.add_class_arguments(locate(config.class_path), "it", fail_untyped=False)
    return parser.instantiate(Namespace(it=config.init_args)).it
