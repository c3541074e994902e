"""mmMamba: a decoder for images and text, from attention to Mamba-2 (2025, arXiv 2502.13145).

The teacher, HoVLE, has no vision encoder: patches and text pass through one causal stack, whose
first layers ("holistic embedding") stand before the language model proper. mmMamba is the same
stack with Mamba-2 in the place of all attention layers, or of all but some.

Outputs, gradients, seeding and the fused layout of the Mamba-2 layer, and outputs of the attention
layer, agree with the authors' code (hustvl/mmMamba, commit 85143d0) on random weights. That code
does not run as a whole without a GPU, and the published sizes were inferred from its parameter
shares: :meth:`DecoderConfig.from_dict` reads those of a ``config.json``, should they differ.
Its variant with pixel shuffle behind the holistic layers ("post") is not here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from zoo.checkpoints import load_pretrained
from zoo.errors import ZooError
from zoo.models.language._causal_lm import find_causal_lm, load_causal_lm
from zoo.models.multimodal._mmmamba_attention import Mamba2Attention
from zoo.models.multimodal._mmmamba_config import MODEL_TYPE, DecoderConfig
from zoo.models.multimodal._mmmamba_decoder import MultimodalDecoder
from zoo.models.registry import register_model

#: Layers of the hybrid that stay attention: every fourth of all 32.
HYBRID = [0, 4, 8, 12, 16, 20, 24, 28]

_MISSING = (
    "there is no decoder '{}': expected the name of one that a recipe exports (train that first), "
    "a folder with config.json, or owner/name on the hub"
)


@torch.no_grad()
def seed_student(student: MultimodalDecoder, teacher: nn.Module, inherit_qkv: bool = True) -> None:
    """Give a student all that its teacher has: shared weights, attention layers, seeds of the rest.

    Args:
        student: keeps its own values of what is new in its Mamba-2 layers.
        teacher: of the same sizes, a :class:`MultimodalDecoder` with attention alone, or a
            Llama-like model of transformers.
        inherit_qkv: Mamba-2 layers take over queries, keys and values, not only the output.

    Raises:
        ZooError: if the sizes differ.
    """
    config = replace(student.config, attention_layers=None, rope_type="default")  # for its weights
    with torch.device("meta"):
        source = MultimodalDecoder(config)
    state = source.remap_state_dict(teacher.state_dict())
    own = source.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if wrong or len(state) != len(own):
        raise ZooError(
            f"{type(teacher).__name__} is not the teacher of this student: {len(wrong)} of "
            f"{len(own)} tensors differ, first {wrong[:3]}: build the student with its sizes"
        )
    source.load_state_dict(state, assign=True)
    mine = student.state_dict()
    for name, value in mine.items():
        if name in state:
            value.copy_(state[name])
    for layer, origin in zip(student.decoder_layers, source.decoder_layers, strict=True):
        if isinstance(layer.attention, Mamba2Attention):
            layer.attention.seed(origin.attention, inherit_qkv)  # type: ignore[arg-type]


def find_decoder(source: str | Path) -> str:
    """A folder or hub name; see :func:`zoo.models.language._causal_lm.find_causal_lm`.

    Raises:
        ZooError: if there is no such decoder here and it is no hub name.
    """
    try:
        return find_causal_lm(source)
    except ZooError as error:
        raise ZooError(_MISSING.format(source)) from error


def read_config(source: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a causal LM; see :func:`load_decoder`.

    Raises:
        ZooError: if there is none.
    """
    found = find_decoder(source)
    try:
        return PretrainedConfig.get_config_dict(found)[0]
    except OSError as error:
        raise ZooError(_MISSING.format(source)) from error


def load_decoder(source: str | Path) -> nn.Module:
    """A decoder in eval mode: ours, HoVLE's and mmMamba's, or else any causal LM of transformers.

    Args:
        source: see :func:`find_decoder`.
    """
    found, config = find_decoder(source), read_config(source)
    if config.get("model_type") != MODEL_TYPE and "embedding_config" not in config:
        return load_causal_lm(found)
    with torch.device("meta"):
        model = MultimodalDecoder(DecoderConfig.from_dict(config))
    load_pretrained(model, found if Path(found).is_dir() else f"hf://{found}")
    return model.eval()


def build(settings: dict[str, Any], overrides: dict[str, Any]) -> MultimodalDecoder:
    """A variant with some of its settings replaced.

    Raises:
        TypeError: if a setting is unknown.
    """
    return MultimodalDecoder(DecoderConfig(**(settings | overrides)))


@register_model(source="hf://OpenGVLab/HoVLE", parameters=2_606_327_808)
def mmmamba_teacher(**overrides: Any) -> MultimodalDecoder:
    """HoVLE of 2.61 G parameters, the teacher: attention in all 32 layers."""
    return build({}, overrides)


@register_model(source="hf://hustvl/mmMamba-linear", parameters=2_741_992_448)
def mmmamba_linear(**overrides: Any) -> MultimodalDecoder:
    """mmMamba of 2.74 G parameters: Mamba-2 in all 32 layers."""
    return build(dict(attention_layers=[]), overrides)


@register_model(source="hf://hustvl/mmMamba_hybrid", parameters=2_708_076_288)
def mmmamba_hybrid(**overrides: Any) -> MultimodalDecoder:
    """mmMamba of 2.71 G parameters: attention in every fourth of 32 layers."""
    return build(dict(attention_layers=HYBRID), overrides)
