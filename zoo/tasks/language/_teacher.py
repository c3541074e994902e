"""A frozen teacher, and its logits on disk, so that each text goes through it once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.atomic import part_of
from zoo.errors import ZooError


class Teacher:
    """Logits of a frozen model, loaded when they are first needed.

    It is no module: neither its weights nor its logits enter checkpoints.

    Args:
        load: makes the model.
        cache: folder for logits; None: they are computed anew each time. The file there is of one
            teacher, by its weights; texts are told apart by their tokens.

    Attributes:
        computed: texts that the model has read since it was made, where logits are kept.
    """

    def __init__(self, load: Callable[[], nn.Module], cache: Path | None = None) -> None:
        self._load, self._cache = load, cache
        self._model: nn.Module | None = None
        self._kept: dict[str, Tensor] = {}
        self._file: Path | None = None
        self.computed = 0

    @property
    def model(self) -> nn.Module:
        """The model, frozen, in eval mode."""
        if self._model is None:
            with torch.inference_mode(False):  # a test may ask first, and a training after it
                self._model = self._load().requires_grad_(False).eval()
            self._open()
        return self._model

    def _open(self) -> None:
        if self._cache is None or self._model is None:
            return
        self._file = self._cache / f"{_digest(self._model)}.safetensors"
        if self._file.is_file():
            try:
                self._kept = load_file(self._file)
            except (SafetensorError, OSError) as error:
                raise ZooError(
                    f"{self._file} holds no logits ({error}): delete it, they are computed anew"
                ) from error

    @torch.no_grad()
    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits ``[B, C]`` of ``input_ids`` and masks, on the device of the batch."""
        ids = batch["input_ids"]
        model = self.model.to(ids.device)
        if self._file is None:
            return model(**batch).logits
        keys = _keys(batch)
        missing = [row for row, key in enumerate(keys) if key not in self._kept]
        if missing:
            index = torch.tensor(missing, device=ids.device)
            found = model(**{name: value[index] for name, value in batch.items()}).logits
            self.computed += len(missing)
            rows = zip(missing, found.float().cpu(), strict=True)
            self._kept |= {keys[row]: value.clone() for row, value in rows}
        return torch.stack([self._kept[key] for key in keys]).to(ids.device)

    def keep(self) -> None:
        """Write the logits to disk, if that is wanted."""
        if self._file is not None and self._kept:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = part_of(self._file)
            save_file(self._kept, part)
            part.replace(self._file)


def _keys(batch: dict[str, Tensor]) -> list[str]:
    """A name for each text, by its tokens and what kind they are of; padding has no influence."""
    present = batch["attention_mask"].bool().cpu()
    parts = [batch[n].cpu() for n in ("input_ids", "token_type_ids") if n in batch]
    return [
        hashlib.sha256(b"|".join(part[row][mask].numpy().tobytes() for part in parts)).hexdigest()[
            :32
        ]
        for row, mask in enumerate(present)
    ]


def _digest(model: nn.Module) -> str:
    """A name for a model, by its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
