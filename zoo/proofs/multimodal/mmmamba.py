"""mmMamba: distillation in stages turns attention into Mamba-2; seeds and order matter."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from zoo.data.base import DataModule
from zoo.losses.distillation import attention_layers, masked_mse, tap
from zoo.models.multimodal._mmmamba_cost import full_size_bounds
from zoo.models.multimodal._mmmamba_decoder import MultimodalDecoder
from zoo.models.multimodal.mmmamba import load_decoder, seed_student
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.trained import LEARNING, open_recipe, train
from zoo.recipes import all_recipes
from zoo.tasks.base import Task
from zoo.tasks.multimodal.visual_chat import inputs_of

RECIPES = "multimodal/mmmamba"
#: Titles of the figure's panels.
GAINS = {
    "speedup": "Faster than attention",
    "copying_speedup": "Faster than attention that copies its cache",
    "memory_saved": "Memory saved",
}


@functools.cache
def _scratch() -> Path:
    """A folder for models and pictures that lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="mmmamba-")
    _scratch.folder = folder  # type: ignore[attr-defined]  # removed with the process
    return Path(folder.name)


@functools.cache
def _trained(
    recipe: str, overrides: str, name: str, seed: int
) -> tuple[Task, DataModule, Measured]:
    """Train a recipe and export its model as ``name``; the same again costs nothing."""
    options = {
        "data.init_args.root": str(_scratch() / "grids"),
        "model.init_args.export": str(_scratch() / str(seed) / name),
        **json.loads(overrides),
    }
    return train(open_recipe(f"{RECIPES}/{recipe}.yaml", options, seed))


def _teacher(seed: int) -> tuple[Path, Measured]:
    tested = _trained("small", "{}", "teacher", seed)[2]
    return _scratch() / str(seed) / "teacher", tested


def _stage(recipe: str, name: str, seed: int, **settings: Any) -> tuple[Task, DataModule, Measured]:
    settings = {f"model.init_args.{key}": value for key, value in settings.items()}
    steps = settings.pop("model.init_args.steps")
    overrides = {
        "model.init_args.teacher": str(_teacher(seed)[0]),
        "trainer.max_steps": steps,
        **settings,
    }
    return _trained(recipe, json.dumps(overrides), name, seed)


def _layerwise(steps: int, seed: int) -> tuple[Path, MultimodalDecoder]:
    """The student after stages 1 and 2 of so many steps each, and where it is kept."""
    folder = _scratch() / str(seed)
    one, two = f"one_{steps}", f"two_{steps}"
    _stage("small_stage1", one, seed, steps=steps)
    start = str(folder / one)
    return folder / two, _stage("small_stage2", two, seed, steps=steps, start=start)[0].model


class OfRecipes(Measurement):
    """Trained with the small recipes of mmMamba."""

    def made_from(self, seed: int) -> str:
        """The recipes."""
        small = [f for name, f in all_recipes().items() if name.startswith(f"{RECIPES}/small")]
        return "\n".join(file.read_text() for file in small)


class Teacher(OfRecipes):
    """The small HoVLE-like decoder that all others learn from."""

    def measure(self, seed: int) -> Measured:
        """Accuracy of its answers."""
        return Measured({"accuracy": _teacher(seed)[1].values["acc"]})


class Distilled(OfRecipes):
    """A student after its stages, against its teacher.

    Args:
        kind: "linear" or "hybrid".
        layerwise: steps of stages 1 and 2, each; 0: none of them.
        end_to_end: steps of stage 3.
        seeded: Mamba-2 takes over queries, keys and values and starts as a plain scan; else it
            keeps random ones.
    """

    def __init__(
        self, kind: str, layerwise: int = 150, end_to_end: int = 500, seeded: bool = True
    ) -> None:
        self.kind, self.seeded = kind, seeded
        self.layerwise, self.end_to_end = layerwise, end_to_end

    def measure(self, seed: int) -> Measured:
        """KL divergence from the teacher's distributions, accuracy of both, and how much the
        student's cache and the teacher's grow from 128 to 1,024 tokens."""
        start = str(_layerwise(self.layerwise, seed)[0]) if self.layerwise else None
        arguments = {"attention_layers": [0] if self.kind == "hybrid" else []}
        lengths = [128, 1024]
        task, _, tested = _stage(
            f"small_stage3_{self.kind}",
            f"three_{self.kind}_{self.layerwise}_{self.end_to_end}_{self.seeded}",
            seed,
            steps=self.end_to_end,
            start=start,
            inherit_qkv=self.seeded,
            model_args={**arguments, "mamba2": {"mimic_init": self.seeded}},
            length_test={"lengths": lengths, "steps": 2},
        )
        scores = tested.values
        stage = replace(LEARNING, title="Stage 3", y="KL divergence from the teacher", log="y")
        cache = Axes("Cache", "tokens before", "times the cache at 128 tokens", "xy")
        grown = [1.0, scores["teacher_growth"]]
        return Measured(
            {
                "kl": scores["loss"],
                "accuracy": scores["acc"],
                "teacher_accuracy": scores["teacher_acc"],
                "cache_growth": scores["student_growth"],
                "teacher_cache_growth": scores["teacher_growth"],
                "parameters": sum(p.numel() for p in task.model.parameters()),
            },
            [
                *(replace(curve, axes=stage) for curve in tested.curves),
                Curve(cache, lengths, [1.0, scores["student_growth"]]),
                Curve(cache, lengths, grown, "teacher (attention)", "known"),
            ],
        )


class LayerError(OfRecipes):
    """Mean error of a student's layers, each on the teacher's own input, before the output.

    Args:
        layerwise: steps of stages 1 and 2 before it is measured; 0: the seeds.
    """

    def __init__(self, layerwise: int = 0) -> None:
        self.layerwise = layerwise

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """The mean over layers of the mean squared error."""
        teacher = load_decoder(_teacher(seed)[0])
        if self.layerwise:
            student = _layerwise(self.layerwise, seed)[1]
        else:
            torch.manual_seed(seed)
            student = MultimodalDecoder(replace(teacher.config, attention_layers=[]))
            seed_student(student, teacher)
        batch = next(iter(_trained("small", "{}", "teacher", seed)[1].test_dataloader()))
        with tap(attention_layers(teacher)) as tapped:
            teacher(**inputs_of(batch))
        errors = [
            masked_mse(layer.attention.heads(x), y, batch["present"]).item()
            for layer, x, y in zip(
                student.decoder_layers, tapped.inputs, tapped.outputs, strict=True
            )
        ]
        axes = Axes("Layers against the teacher's", "layer", "mean squared error", "y")
        curve = Curve(axes, range(1, len(errors) + 1), errors)
        return Measured({"error": sum(errors) / len(errors)}, [curve])


class Bound(Measurement):
    """What the full-size students gain where decoding is limited by memory, by count.

    Args:
        length: tokens of the context; the paper's longest is 103,000.
    """

    def __init__(self, length: int = 103_000) -> None:
        self.length = length

    seeded = False

    def measure(self, seed: int) -> Measured:
        """``<variant>_speedup``, ``_copying_speedup`` and ``_memory_saved``; see
        :class:`zoo.models.multimodal._mmmamba_cost.Bounds`."""
        lengths = [1_000, 3_000, 10_000, 30_000, self.length]
        values, curves = {}, []
        for name, bounds in full_size_bounds(lengths).items():
            for gain, by_length in asdict(bounds).items():
                values[f"{name}_{gain}"] = by_length[-1]
                unit = "share" if gain == "memory_saved" else "times, at most"
                axes = Axes(GAINS[gain], "tokens before", unit, "x")
                curves.append(Curve(axes, lengths, by_length, f"mmMamba-{name}"))
        return Measured(values, curves)
