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
from zoo.proofs.base import Measurement
from zoo.proofs.trained import open_recipe, train
from zoo.tasks.base import Task
from zoo.tasks.multimodal.visual_chat import inputs_of


@functools.cache
def _scratch() -> Path:
    """A folder for models and pictures that lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="mmmamba-")
    _scratch.folder = folder  # type: ignore[attr-defined]  # removed with the process
    return Path(folder.name)


@functools.cache
def _trained(recipe: str, overrides: str, name: str) -> tuple[Task, DataModule, dict[str, float]]:
    """Train a recipe and export its model as ``name``; the same again costs nothing."""
    options = {
        "data.init_args.root": str(_scratch() / "grids"),
        "model.init_args.export": str(_scratch() / name),
        **json.loads(overrides),
    }
    return train(open_recipe(f"multimodal/mmmamba/{recipe}.yaml", options))


def _teacher() -> tuple[Path, dict[str, float]]:
    scores = _trained("small", "{}", "teacher")[2]
    return _scratch() / "teacher", scores


def _stage(recipe: str, name: str, **settings: Any) -> tuple[Task, DataModule, dict[str, float]]:
    settings = {f"model.init_args.{key}": value for key, value in settings.items()}
    steps = settings.pop("model.init_args.steps")
    overrides = {
        "model.init_args.teacher": str(_teacher()[0]),
        "trainer.max_steps": steps,
        **settings,
    }
    return _trained(recipe, json.dumps(overrides), name)


def _layerwise(steps: int) -> MultimodalDecoder:
    """The student after stages 1 and 2 of so many steps each, kept as ``two``."""
    _stage("small_stage1", "one", steps=steps)
    start = str(_scratch() / "one")
    return _stage("small_stage2", "two", steps=steps, start=start)[0].model


class Teacher(Measurement):
    """The small HoVLE-like decoder that all others learn from."""

    def measure(self) -> dict[str, float]:
        """Accuracy of its answers."""
        return {"accuracy": _teacher()[1]["acc"]}


class Distilled(Measurement):
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

    def measure(self) -> dict[str, float]:
        """KL divergence from the teacher's distributions, accuracy of both, and how much the
        student's cache and the teacher's grow from 128 to 1,024 tokens."""
        start = None
        if self.layerwise:
            _layerwise(self.layerwise)
            start = str(_scratch() / "two")
        arguments = {"attention_layers": [0] if self.kind == "hybrid" else []}
        task, _, scores = _stage(
            f"small_stage3_{self.kind}",
            f"three_{self.kind}_{self.layerwise}_{self.seeded}",
            steps=self.end_to_end,
            start=start,
            inherit_qkv=self.seeded,
            model_args={**arguments, "mamba2": {"mimic_init": self.seeded}},
            length_test={"lengths": [128, 1024], "steps": 2},
        )
        return {
            "kl": scores["loss"],
            "accuracy": scores["acc"],
            "teacher_accuracy": scores["teacher_acc"],
            "cache_growth": scores["student_growth"],
            "teacher_cache_growth": scores["teacher_growth"],
            "parameters": sum(p.numel() for p in task.model.parameters()),
        }


class LayerError(Measurement):
    """Mean error of a student's layers, each on the teacher's own input, before the output.

    Args:
        layerwise: steps of stages 1 and 2 before it is measured; 0: the seeds.
    """

    def __init__(self, layerwise: int = 0) -> None:
        self.layerwise = layerwise

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The mean over layers of the mean squared error."""
        teacher = load_decoder(_teacher()[0])
        if self.layerwise:
            student = _layerwise(self.layerwise)
        else:
            torch.manual_seed(0)
            student = MultimodalDecoder(replace(teacher.config, attention_layers=[]))
            seed_student(student, teacher)
        batch = next(iter(_trained("small", "{}", "teacher")[1].test_dataloader()))
        with tap(attention_layers(teacher)) as tapped:
            teacher(**inputs_of(batch))
        errors = [
            masked_mse(layer.attention.heads(x), y, batch["present"])
            for layer, x, y in zip(
                student.decoder_layers, tapped.inputs, tapped.outputs, strict=True
            )
        ]
        return {"error": torch.stack(errors).mean().item()}


class Bound(Measurement):
    """What the full-size students gain where decoding is limited by memory, by count.

    Args:
        length: tokens of the context; the paper's longest is 103,000.
    """

    def __init__(self, length: int = 103_000) -> None:
        self.length = length

    def measure(self) -> dict[str, float]:
        """``<variant>_speedup``, ``_copying_speedup`` and ``_memory_saved``; see
        :class:`zoo.models.multimodal._mmmamba_cost.Bounds`."""
        return {
            f"{name}_{gain}": values[0]
            for name, bounds in full_size_bounds([self.length]).items()
            for gain, values in asdict(bounds).items()
        }
