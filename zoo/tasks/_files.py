"""Applying a task to a user's files, one input after the other, and as Lightning's users do."""

from __future__ import annotations

import shutil
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
import torch
from typing_extensions import Self, override

import zoo
from zoo.data.base import DataModule
from zoo.data.formats.files import natural_sorted
from zoo.errors import ZooError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FilePrediction(pl.LightningModule, ABC):
    """The part of a task that predicts: a subclass says what its inputs are and what one gives."""

    #: What the data must be.
    data_type: ClassVar[type[DataModule] | tuple[type[DataModule], ...]]
    #: Endings of the files that :meth:`find_inputs` takes from a folder, lower case.
    input_suffixes: ClassVar[frozenset[str]] = frozenset()
    #: What the files of one input are called, in the order in which they are given.
    input_names: ClassVar[Sequence[str]] = ("file",)
    #: Names of the classes, where the task has any: the data's; they are kept in checkpoints.
    class_names: Sequence[str] | None = None
    #: What else is to be known of the data when their files are gone; kept in checkpoints too.
    data_facts: Mapping[str, Any] | None = None

    def class_name(self, number: int) -> str:
        """The name of a class; its number where names are not known."""
        return str(number) if self.class_names is None else self.class_names[number]

    def find_inputs(self, sources: Sequence[Path]) -> Sequence[Any]:
        """What :meth:`predict_one` takes, from a command's files and folders: the files themselves,
        and all in folders that end in one of ``input_suffixes``, 2.png before 10.png.

        A task whose inputs are not single files, such as pairs, says here how they are given.

        Raises:
            ZooError: a folder holds none.
        """
        files: list[Path] = []
        endings = tuple(sorted(self.input_suffixes))
        for source in sources:
            if not source.is_dir():
                files.append(source)
                continue
            found = natural_sorted(
                path
                for path in source.rglob("*")
                if path.name.lower().endswith(endings) and path.suffix and path.is_file()
            )
            if not found:
                raise ZooError(
                    f"{source} holds no files to predict, expected files ending in "
                    + " ".join(endings)
                )
            files += found
        return files

    def begin_prediction(self, data: DataModule) -> None:
        """Before :meth:`predict_one`: check that the data say how an input is made.

        Raises:
            ZooError: they do not.
        """
        if not isinstance(data, self.data_type):
            raise ZooError(f"{type(data).__name__} does not say how a file becomes an input")
        if self.data_facts is not None:
            data.restore(self.data_facts)
        if self.class_names is None:  # weights without names, such as published ones
            self.class_names = getattr(data, "class_names", None)

    def describe(self, source: Any) -> dict[str, Any]:
        """The columns of ``predictions.csv`` that say which input a row is of."""
        return {"file": str(source)}

    def predict_one(
        self, source: Any, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure | None]:
        """Apply the task to one input, without gradients.

        Args:
            source: what :meth:`find_inputs` found.
            data: how a file becomes an input.
            stem: path of the results without ending; ``stem.png`` is for the figure, files that
                the task writes itself begin with it.

        Returns:
            the other columns of ``predictions.csv``, and a figure.

        Raises:
            ZooError: the input cannot be read, or does not fit; or the task predicts nothing.
        """
        raise ZooError(f"{type(self).__name__} predicts nothing of files")

    def predict_files(
        self, sources: Iterable[Any], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Apply the task to what :meth:`find_inputs` found, and write the results into ``folder``.

        Returns:
            a row for each input; one that failed has a column ``error`` instead of results, and
            left no files.

        Raises:
            ZooError: every input failed.
        """
        self.begin_prediction(data)
        self.eval()
        rows = [
            self._predict_row(number, source, data, folder)
            for number, source in enumerate(sources, start=1)
        ]
        errors = [row["error"] for row in rows if "error" in row]
        if errors and len(errors) == len(rows):
            first = (
                errors[0]
                if len(rows) == 1
                else f"all {len(rows)} inputs failed, the first: {errors[0]}"
            )
            raise ZooError(first)
        return rows

    def _predict_row(
        self, number: int, source: Any, data: DataModule, folder: Path
    ) -> dict[str, Any]:
        row = self.describe(source)
        name = Path(next(iter(row.values()))).stem
        part = folder / ".part"  # what a failed input has written goes with it
        part.mkdir()
        try:
            stem = part / f"{number:04d}_{name}"
            with torch.inference_mode():
                columns, figure = self.predict_one(source, data, stem)
            if figure is not None:
                figure.savefig(f"{stem}.png")
            for path in part.iterdir():
                if (folder / path.name).exists():
                    raise ZooError(
                        f"{path.name} was written for another input already: predict them apart"
                    )
            for path in part.iterdir():
                path.rename(folder / path.name)
        except ZooError as error:
            return row | {"error": " ".join(str(error).split())}
        except (MemoryError, torch.OutOfMemoryError):
            return row | {"error": f"{name} is too large for the memory of {self.device}"}
        finally:
            shutil.rmtree(part)
        return row | columns

    # as Lightning's users expect

    @override
    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        """The network's answer to a batch of a data module or of a loader of one's own: a tensor, a
        tuple that begins with one, or a mapping with the names of :meth:`forward`'s arguments.

        Raises:
            ZooError: the task answers no batches, or the batch lacks something.
        """
        if type(self).forward is pl.LightningModule.forward:
            raise ZooError(f"{type(self).__name__} answers no batches: use zoo predict, with files")
        if not isinstance(batch, Mapping):
            return self(batch[0] if isinstance(batch, (tuple, list)) else batch)
        wanted = signature(self.forward).parameters.values()
        lacking = [w.name for w in wanted if w.default is w.empty and w.name not in batch]
        if lacking:
            raise ZooError(
                f"a batch has {sorted(batch)}, but {type(self).__name__} needs {', '.join(lacking)}"
            )
        return self(**{w.name: batch[w.name] for w in wanted if w.name in batch})

    @classmethod
    @override
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, **kwargs: Any
    ) -> Self:
        """The task of a run, by the recipe in its checkpoint, with the evaluated weights.

        Args:
            checkpoint_path: the file, or the run's folder.
            map_location: device; default: the CPU.
            kwargs: none; the recipe has all arguments.

        Raises:
            ZooError: it cannot be read, or is of another task.
        """
        if kwargs:
            raise ZooError(
                f"load_from_checkpoint got {', '.join(kwargs)}: the recipe in the checkpoint has "
                "all arguments"
            )
        task = zoo.load(checkpoint_path, device=str(map_location or "cpu")).task
        if not isinstance(task, cls):
            raise ZooError(
                f"{checkpoint_path} is a checkpoint of {type(task).__name__}, expected one of "
                f"{cls.__name__}"
            )
        return task
