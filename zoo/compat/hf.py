"""``mamba_ssm.utils.hf``: configuration and weights of a model by its name on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from zoo.checkpoints import read_state_dict

__all__ = ["load_config_hf", "load_state_dict_hf"]


def load_config_hf(model_name: str) -> dict[str, Any]:
    """``config.json`` of a model on the hub, or of a local folder."""
    file = cached_file(model_name, CONFIG_NAME)
    return json.loads(Path(str(file)).read_text())


def load_state_dict_hf(
    model_name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Weights of a model on the hub, or of a local folder.

    A file that would run code is refused; weights in safetensors are taken as well.
    """
    source = model_name if Path(model_name).exists() else f"hf://{model_name}"
    return {key: t.to(device=device, dtype=dtype) for key, t in read_state_dict(source).items()}
