"""What the proofs of the decoding methods share: toy language models, and texts drawn from them."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from zoo.checkpoints.exports import cache_folder, put_in_place
from zoo.data.language.text import TextDataModule
from zoo.data.language.unit_language import PeriodLanguage, UnitLanguage
from zoo.decoding import Generation, Method, generate
from zoo.models.language._causal_lm import load_causal_lm, save_causal_lm
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.kept import key
from zoo.tasks.base import Task
from zoo.tasks.language.language_modeling import LanguageModeling
from zoo.tasks.optimization import OptimizerSettings, ScheduleSettings

#: Length of the texts that the models are trained on; they are not asked for longer ones.
LENGTH = 96
PROMPT = 8
#: What decoding runs without an import, for measurements.
METHODS = ("zoo.decoding.methods",)


def unit_language(steps: int, seed: int, **language: Any) -> UnitLanguage | PeriodLanguage:
    """Training texts for so many steps; ``language`` are arguments of :class:`UnitLanguage`, or of
    :class:`PeriodLanguage` if a period is among them."""
    kind = PeriodLanguage if "period" in language else UnitLanguage
    data = kind(samples=32 * steps, length=LENGTH, batch_size=32, **language)
    data.seed = 1 + seed
    return data


def fit(task: Task, data: TextDataModule, epochs: int = 1) -> dict[str, float]:
    """One epoch, or none, then the test's scores."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(task, datamodule=data)
    return trainer.test(task, datamodule=data, verbose=False)[0]


def settings(lr: float = 2e-3) -> dict[str, Any]:
    """Optimizer and schedule of all trainings here."""
    return {
        "optimizer": OptimizerSettings(lr=lr, lr_batch_size=None, weight_decay=0.01),
        "schedule": ScheduleSettings(warmup_epochs=0.1, min_lr=1e-4),
    }


def unit_lm(
    seed: int, layers: int = 4, width: int = 128, steps: int = 400, **language: Any
) -> Path:
    """Folder of a language model trained on :class:`UnitLanguage`; kept for later proofs."""
    made_from = [seed, layers, width, steps, language, "base_lm_small"]
    folder = cache_folder() / "proofs" / "models" / key(made_from, [__name__])

    def make(folder: Path) -> None:
        data = unit_language(steps, seed, **language)
        pl.seed_everything(seed, verbose=False)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        shape = {
            "vocab_size": data.vocab_size,
            "num_hidden_layers": layers,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "max_position_embeddings": 2 * LENGTH,
        }
        task = LanguageModeling("base_lm_small", shape, **settings())
        fit(task, data)
        save_causal_lm(task.model, None, folder)

    return put_in_place(folder, make)


@cache
def loaded(folder: Path) -> nn.Module:
    """A model that was made here."""
    return load_causal_lm(folder).requires_grad_(False)


def prompts(count: int, seed: int, **language: Any) -> Tensor:
    """Beginnings of texts ``[count, PROMPT]``; of those that repeat a block a third of a text."""
    made = unit_language(1, seed, **language)
    # a text of its own for each: the first unit begins with it
    first = 77 + 1000 * seed
    if isinstance(made, PeriodLanguage):
        return made.texts(count, first)[:, : LENGTH // 3]
    return torch.stack([made.text(PROMPT, seed=first + n)[:PROMPT] for n in range(count)])


def decode(
    model: nn.Module,
    method: str | Method,
    seed: int,
    sequences: int = 24,
    temperature: float = 1.0,
    language: dict[str, Any] | None = None,
    **options: Any,
) -> Generation:
    """A batch of texts as long as those of the training, about 2,000 tokens by default."""
    begun = prompts(sequences, seed, **(language or {}))
    return generate(
        model,
        begun,
        method,
        max_new_tokens=LENGTH - begun.shape[1],
        temperature=temperature,
        seed=seed,
        **options,
    )


def is_greedy_text(
    model: nn.Module,
    method: str | Method,
    seed: int,
    language: dict[str, Any] | None = None,
    **options: Any,
) -> float:
    """1 if greedy decoding with the method gives the text of plain greedy decoding, else 0."""
    mine, plain = (
        decode(model, m, seed, 8, temperature=0.0, language=language, **more).new_tokens
        for m, more in ((method, options), ("plain", {}))
    )
    return float(mine == plain)


def tokens_of_steps(out: Generation) -> Curve:
    """How often a pass of the target gave so many tokens or more."""
    lengths = torch.tensor([n for row in out.accept_lengths for n in row])
    counts = range(1, int(lengths.max()) + 1)
    axes = Axes("Tokens of a pass", "tokens or more", "share of the target's passes")
    return Curve(axes, counts, [float((lengths >= n).double().mean()) for n in counts])
