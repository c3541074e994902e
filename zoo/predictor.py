"""Trained models in Python: ``zoo.load(RUN).predict(picture)`` gives what ``zoo predict`` writes.

Whatever is no file yet, such as an array, becomes one without loss, so that both see the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from zoo.cli import Recipe
from zoo.data.formats.pictures import PICTURE_SUFFIXES
from zoo.data.formats.sound import SOUND_SUFFIXES
from zoo.devices import usable_device
from zoo.errors import ZooError
from zoo.recipes import find_recipe
from zoo.runs import read_checkpoint
from zoo.runs.folder import resolve_checkpoint
from zoo.runs.hub_folder import read_hub_folder

if TYPE_CHECKING:
    from zoo.data.base import DataModule
    from zoo.tasks.base import Task

#: A file or folder; a picture; samples in -1..1 with their rate in Hz.
Input: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor | tuple[Any, int]"


class Prediction:
    """What a model says of one input.

    Attributes:
        values: the columns of ``predictions.csv``; of an input that failed ``error`` alone.
        files: what was written, by the end of its name (``.png`` is the picture of the result);
            where no folder was named for them, they go when this does.
    """

    def __init__(self, values: dict[str, Any], files: dict[str, Path], owner: Any) -> None:
        self.values, self.files = values, files
        self._owner = owner  # of a folder that goes with the last prediction in it

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    def __repr__(self) -> str:
        return f"Prediction({self.values}, files={sorted(self.files)})"

    @property
    def figure(self) -> Image.Image | None:
        """The picture of the result, if the task draws any."""
        path = self.files.get(".png")
        if path is None:
            return None
        with Image.open(path) as picture:
            return picture.copy()


class Predictor:
    """A task with its weights, and the data module that says how a file becomes its input."""

    def __init__(self, task: Task, data: DataModule, device: str | None = None) -> None:
        self.task, self.data = task, data
        self.task.to(usable_device(device))

    def predict(
        self, *inputs: Input, output: str | os.PathLike[str] | None = None
    ) -> Prediction | list[Prediction]:
        """Apply the model.

        Args:
            inputs: as the task takes them, such as one picture, two for a pair, or a folder.
                Pictures may be PIL's, arrays [H, W] or [H, W, 3 or 4] of bytes (or grey of 16 bits)
                or of floats in 0..1, or tensors [1 or 3, H, W] of the same; sound a pair of samples
                [T] and their rate.
            output: new folder for what is written; default: one that goes with the result.

        Returns:
            a prediction; a list of them for several inputs or a folder.

        Raises:
            ZooError: an input does not suit the task, or all failed.
        """
        if not inputs:
            raise ZooError("predict: no input was given")
        if output is not None and Path(output).exists():
            raise ZooError(f"output: {output} exists already, expected the name of a new folder")
        with tempfile.TemporaryDirectory(prefix="zoo-") as made:
            sources = [self._as_path(x, Path(made), n) for n, x in enumerate(inputs, start=1)]
            found = self.task.find_inputs(sources)
            kept = None if output is not None else tempfile.TemporaryDirectory(prefix="zoo-")
            folder = Path(output if kept is None else kept.name)
            folder.mkdir(parents=True, exist_ok=True)
            rows = self.task.predict_files(found, self.data, folder)
        several = len(rows) > 1 or any(source.is_dir() for source in sources)
        predictions = [self._prediction(n, row, folder, kept) for n, row in enumerate(rows, 1)]
        return predictions if several else predictions[0]

    def _prediction(self, number: int, row: dict[str, Any], folder: Path, owner: Any) -> Prediction:
        name = f"{number:04d}_{Path(next(iter(row.values()))).stem}"
        files = {
            path.name.removeprefix(name): path for path in sorted(folder.glob(f"{number:04d}_*"))
        }
        return Prediction(row, files, owner)

    def _as_path(self, value: Input, folder: Path, number: int) -> Path:
        """The file of an input; it is made where there is none."""
        if isinstance(value, str | os.PathLike):
            return Path(value)
        stem = folder / f"input{number}"
        if isinstance(value, tuple):
            self._expect(SOUND_SUFFIXES, "samples with a rate")
            return _write_sound(value, stem.with_suffix(".wav"))
        self._expect(PICTURE_SUFFIXES, f"a picture ({type(value).__name__})")
        picture = value if isinstance(value, Image.Image) else _picture(value)
        path = stem.with_suffix(".png")
        picture.save(path, compress_level=1)
        return path

    def _expect(self, suffixes: frozenset[str], given: str) -> None:
        if not self.task.input_suffixes & suffixes:
            wanted = " ".join(sorted(self.task.input_suffixes)) or "of its own"
            raise ZooError(
                f"predict: {type(self.task).__name__} got {given}, expected the path of a file "
                f"({wanted})"
            )


def load(
    source: str | os.PathLike[str],
    *,
    pretrained: str | None = None,
    num_classes: int = 1000,
    device: str | None = None,
    allowed: Sequence[str] = (),
) -> Predictor:
    """A trained model, ready to predict.

    Args:
        source: a run's folder or a checkpoint, or what ``zoo export --to hf`` wrote: its folder or
            ``hf://owner/name``; with ``pretrained`` the name of an image classifier
            or a recipe (its name or path).
        pretrained: published weights: a file, folder, URL or ``hf://owner/name``.
        num_classes: of a classifier by name.
        device: such as "cuda:1"; default: the first GPU, where there is one.
        allowed: modules beyond ours that a checkpoint's recipe may name, see docs/use.md.

    Raises:
        ZooError: it is not there, cannot be read, or its weights do not fit.
    """
    if pretrained is None:
        checkpoint, path = read_hub_folder(source), Path(source)
        if checkpoint is None:
            path = resolve_checkpoint(path)
            checkpoint = read_checkpoint(path)
        recipe, _ = Recipe.of_checkpoint(checkpoint, path, allowed=allowed)
        task, data = recipe.build()
        task.load_weights(checkpoint)
        return Predictor(task, data, device)
    if _is_recipe(source):
        path = find_recipe(str(source))
        task, data = Recipe(path, [f"--model.init_args.pretrained={pretrained}"]).build()
        return Predictor(task, data, device)
    return classifier(str(source), pretrained, num_classes, device)


def classifier(name: str, pretrained: str, num_classes: int, device: str | None) -> Predictor:
    """An image classifier by its name, with published weights; see :func:`load`."""
    from zoo.tasks.vision.classification import ImageClassification

    task = ImageClassification(name, num_classes, pretrained=pretrained)
    return Predictor(task, task.default_data(), device)


def _is_recipe(source: str | os.PathLike[str]) -> bool:
    """Names of models have no slash, those of recipes two, and paths end in .yaml."""
    text = os.fspath(source)
    return "/" in text or text.endswith((".yaml", ".yml"))


def _picture(value: Any) -> Image.Image:
    """An array or a tensor as a picture."""
    if isinstance(value, Tensor):
        array = value.detach().cpu()
        if array.dim() == 3 and array.shape[0] in (1, 3):
            array = array.movedim(0, -1)
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    elif isinstance(value, np.ndarray):
        array = value
    else:
        raise ZooError(
            f"predict: {type(value).__name__} is no input, expected a path, a picture of PIL, an "
            "array, a tensor, or (samples, rate)"
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ZooError(
                "predict: a picture of floats has values outside of 0..1: scale it, or give bytes"
            )
        array = np.rint(array * 255).astype(np.uint8)
    deep = array.dtype == np.uint16 and array.ndim == 2
    if not deep and array.dtype not in (np.uint8, np.bool_):
        array = None
    if array is None or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ZooError(
            f"predict: a picture of shape {list(value.shape)} and {value.dtype}, expected [H, W] "
            "or [H, W, 3 or 4] (tensors [1 or 3, H, W]) of bytes or of floats in 0..1, or 16 bits "
            "[H, W]; give other pictures as files"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _write_sound(value: tuple[Any, int], path: Path) -> Path:
    samples, rate = value if len(value) == 2 else (None, 0)
    array = torch.as_tensor(samples if samples is not None else []).float().cpu().numpy()
    if array.ndim != 1 or not array.size or not isinstance(rate, int) or rate < 1:
        raise ZooError(
            f"predict: sound is a pair of samples [T] in -1..1 and a rate in Hz, got samples of "
            f"shape {list(array.shape)} and the rate {rate}"
        )
    soundfile.write(path, array, rate, subtype="FLOAT")
    return path
