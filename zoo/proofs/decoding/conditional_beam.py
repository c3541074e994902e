"""Conditional beam search: the likeliest string is empty, and the likeliest other is wanted."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from zoo.checkpoints.exports import cache_folder, put_in_place
from zoo.data.language.chain_strings import ChainStrings
from zoo.decoding import generate
from zoo.decoding.methods.beam import Beam
from zoo.decoding.methods.conditional_beam import ConditionalBeam, ExactMode
from zoo.models.decoding.conditional_beam import AttributeHead
from zoo.models.language._causal_lm import save_causal_lm
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import METHODS, fit, loaded, settings
from zoo.proofs.kept import key
from zoo.tasks.decoding.attribute_head import AttributeTraining
from zoo.tasks.language.language_modeling import LanguageModeling

#: Beams that are compared; up to the first, and from the second on, is what the claim speaks of.
WIDTHS, NARROW, WIDE = (1, 2, 5, 20, 100), 5, 20
#: Samples that the head learns from, and that searches are compared with.
SAMPLES = 2000


def strings(seed: int, steps: int) -> ChainStrings:
    """Strings for so many steps."""
    data = ChainStrings(samples=32 * steps, batch_size=32)
    data.seed = 1 + seed
    return data


def strings_lm(seed: int, steps: int) -> Path:
    """Folder of a language model of strings; kept for later proofs."""
    folder = cache_folder() / "proofs" / "models" / key([seed, steps, "strings"], [__name__])

    def make(folder: Path) -> None:
        data = strings(seed, steps)
        pl.seed_everything(seed, verbose=False)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        shape = {
            "vocab_size": data.vocab_size,
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32,
            "bos_token_id": data.begin,
            "eos_token_id": data.end,
        }
        task = LanguageModeling("base_lm_draft", shape, **settings(lr=4e-3))
        fit(task, data)
        save_causal_lm(task.model, None, folder)

    return put_in_place(folder, make)


class Certain(AttributeHead):
    """Promises every text its attribute."""

    def log_promise(self, hidden: Tensor, missing: Tensor) -> Tensor:
        """Nothing is lost."""
        return torch.zeros(hidden.shape[:-1], device=hidden.device)


class Empty(Measurement):
    """A language model of strings of ten symbols, of which 3 % are empty.

    Measures of plain beams how many of the narrow ones (at most 5 texts) and of the wide ones (20
    or more) return the empty string, ``plain_narrow`` and ``plain_wide``, as shares; of conditional
    ones of any width ``conditional_empty``; ``gain``, the log-probability of what the wide
    conditional beams find, at worst, beyond that of the likeliest string of 2,000 samples that is
    not empty; ``as_plain``, whether beams of all widths with a promise of 1 for everything find
    what plain ones find; and of the exact search ``mode_is_empty`` and ``mode_is_proved``.

    Args:
        steps: of training the language model, 32 strings each.
        samples: for the head, and for the comparison.
        widths: of the beams.
    """

    def __init__(
        self, steps: int = 400, samples: int = SAMPLES, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        self.steps, self.samples, self.widths = steps, samples, widths

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Train, then search."""
        folder = strings_lm(seed, self.steps)
        model = loaded(folder)
        data = strings(seed, -(-self.samples // 32))
        pl.seed_everything(seed, verbose=False)
        task = AttributeTraining(
            str(folder),
            "non_empty",
            {"hidden": 64},
            prompt_length=1,
            new_tokens=data.string_length + 1,
            **settings(lr=1e-2),
        )
        fit(task, data)
        head = task.model["head"].eval()
        begin = torch.tensor([[data.begin]])
        limit = data.string_length + 5

        def empty(text: list[int]) -> float:
            return float(text == [data.end])

        found: dict[str, list[tuple[float, float]]] = {"plain": [], "conditional": []}
        same = True
        for width in self.widths:
            certain = ConditionalBeam(Certain(**head.config), width=width)
            certain_text = generate(model, begin, certain, max_new_tokens=limit).new_tokens
            for name, method in (
                ("plain", Beam(width)),
                ("conditional", ConditionalBeam(head, width=width)),
            ):
                out = generate(model, begin, method, max_new_tokens=limit)
                found[name].append((out.report["log_prob"], empty(out.new_tokens[0])))
                if name == "plain" and not found[name][-1][1]:
                    same = same and out.new_tokens == certain_text
        exact = ExactMode()
        mode = generate(model, begin, exact, max_new_tokens=limit)
        best = self._best_sample(model, begin, data, limit, seed)
        wide = [place for place, width in enumerate(self.widths) if width >= WIDE]
        narrow = [place for place, width in enumerate(self.widths) if width <= NARROW]
        axes = Axes("What a beam finds", "texts that are followed", "log-probability", "x")
        return Measured(
            {
                "plain_narrow": _mean([found["plain"][place][1] for place in narrow]),
                "plain_wide": _mean([found["plain"][place][1] for place in wide]),
                "conditional_empty": _mean([mark for _, mark in found["conditional"]]),
                "gain": min(found["conditional"][place][0] for place in wide) - best,
                "as_plain": float(same),
                "mode_is_empty": empty(mode.new_tokens[0]),
                "mode_is_proved": mode.report["proved"],
            },
            [
                Curve(axes, self.widths, [v for v, _ in found["conditional"]], "conditional"),
                Curve(axes, self.widths, [v for v, _ in found["plain"]], "plain"),
                Curve(axes, self.widths, [best] * len(self.widths), "best of 2,000 samples"),
            ],
        )

    def _best_sample(
        self, model: nn.Module, begin: Tensor, data: ChainStrings, limit: int, seed: int
    ) -> float:
        """Log-probability of the likeliest string that is drawn and not empty."""
        out = generate(
            model,
            begin.expand(self.samples, 1),
            temperature=1.0,
            max_new_tokens=limit,
            seed=seed,
        )
        logits = model(input_ids=out.sequences, use_cache=False).logits[:, :-1]
        said = logits.log_softmax(-1).gather(-1, out.sequences[:, 1:, None])[..., 0]
        values = [
            float(row[: len(text)].sum())
            for row, text in zip(said, out.new_tokens, strict=True)
            if text[0] != data.end and text[-1] == data.end
        ]
        return max(values)


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)
