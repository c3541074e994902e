"""Hedgehog: linear attention that mimics softmax (ICLR 2024, arXiv 2402.04347).

A feature map of one matrix and an exponential keeps what softmax's weights have: few of them are
large, and they grow with q·k. It is learned by distillation, layer by layer, in a model whose other
weights rest; then all or low-rank parts of the model are finetuned.

:func:`convert` does this to any Llama-style causal LM of transformers: Llama, Mistral, Qwen, and
others whose layers have ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj`` and rotary positions. The
paper's own code is not published; layer, weights of both attentions, loss and gradients agree with
those of its authors' LoLCATs (arXiv 2410.10254), whose models add a window of softmax.

The published maps are no single function: LoLCATs' normalises [y, -y] in two halves ("softmax"),
flash-linear-attention's together and with a factor of 2 ("softmax_joint"). The weights of one do
not belong into the other. One thing differs from LoLCATs: single steps of a terraced window
continue its whole pass, where their generation slides a window of another form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from zoo.checkpoints import load_pretrained, read_state_dict
from zoo.errors import ZooError
from zoo.models.decoding.base_lm import base_lm_small
from zoo.models.recurrent._hedgehog_attention import Compared, HedgehogAttention
from zoo.models.registry import register_model

#: Projections of an attention layer that can be converted.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
#: Key of a ``config.json`` that tells a converted model from others.
CONFIG = "hedgehog"


def convert(model: nn.Module, layers: list[int] | None = None, **settings: Any) -> nn.Module:
    """Put linear attention in the place of softmax attention; the other weights stay.

    Args:
        model: of transformers, Llama-style; is changed.
        layers: numbers of the layers that are converted; all by default.
        settings: of :class:`HedgehogAttention`. They are kept in ``model.config.hedgehog``, so that
            the model can be saved and found again.

    Raises:
        ZooError: if there is no layer that can be converted, or was already.
    """
    if converted_layers(model):
        raise ZooError("the model has been converted already")
    places = [
        name
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in PROJECTIONS)
        and hasattr(module, "scaling")
    ]
    chosen = range(len(places)) if layers is None else layers
    if not places or not set(chosen) <= set(range(len(places))):
        raise ZooError(
            f"{type(model).__name__} has {len(places)} attention layers with "
            f"{', '.join(PROJECTIONS)}; layers is {layers}: expected a Llama-style model, and "
            "layers from 0 on"
        )
    for number in chosen:
        parent, _, child = places[number].rpartition(".")
        old = model.get_submodule(places[number])
        setattr(model.get_submodule(parent), child, HedgehogAttention(old, **settings))
    setattr(model.config, CONFIG, {"layers": layers, **settings})
    model._is_stateful = True  # type: ignore[assignment]  # a state cannot be cut back
    return model


def converted_layers(model: nn.Module) -> list[HedgehogAttention]:
    """The layers that :func:`convert` made, in order."""
    return [module for module in model.modules() if isinstance(module, HedgehogAttention)]


@contextmanager
def comparing(model: nn.Module) -> Iterator[list[Compared]]:
    """Let every converted layer answer as softmax attention, and show both attentions.

    So each layer sees the same input in both forms (teacher forcing). The list fills while the
    model runs, one entry for each converted layer.
    """
    found: list[Compared] = []
    layers = converted_layers(model)
    if not layers:
        raise ZooError(
            "the model has no converted layer: call zoo.models.recurrent.hedgehog.convert"
        )
    for layer in layers:
        layer.comparing = found
    try:
        yield found
    finally:
        for layer in layers:
            layer.comparing = None


def load_hedgehog(folder: str | Path, dtype: torch.dtype | None = None) -> nn.Module:
    """A converted model from the folder that it was saved in."""
    config = AutoConfig.from_pretrained(folder)
    settings = dict(getattr(config, CONFIG))
    delattr(config, CONFIG)
    model = convert(AutoModelForCausalLM.from_config(config), **settings)
    load_pretrained(model, folder)
    model.tie_weights()
    return model.eval() if dtype is None else model.to(dtype).eval()


@torch.no_grad()
def load_lolcats(
    model: nn.Module, distilled: str, finetuned: str | None = None, lora_alpha: float = 16.0
) -> None:
    """Read what LoLCATs publish into a converted model: it holds only what was trained.

    Args:
        model: of the base model's weights, converted as they did (see ``lolcats_llama_3_1_8b``).
        distilled: file of the feature maps and window factors (``..._distill.pt``).
        finetuned: file of the low-rank adapters (``..._ft.pt``), which are merged.
        lora_alpha: of the adapters; their product is multiplied with it and divided by the rank.

    Raises:
        ZooError: if a name or shape is not the model's, or a feature map is missing.
    """
    own = dict(model.named_parameters())
    new = {n for n in own if "feature_map" in n or n.endswith("window_factors")}
    given = _plain_names(read_state_dict(distilled), own)
    _check(given, own, new, distilled)
    products: dict[str, Tensor] = {}
    if finetuned is not None:
        low = _plain_names(read_state_dict(finetuned), own)
        for name in [n for n in low if n.endswith(".lora_A")]:
            down, up = low.pop(name), low.pop(name.removesuffix("A") + "B", None)
            if up is None or up.shape[1] != len(down):
                raise ZooError(f"{finetuned}: {name} {tuple(down.shape)} has no lora_B that fits")
            whole = name.removesuffix(".lora_A") + ".weight"
            products[whole] = lora_alpha / len(down) * (up.float() @ down.float())
        _check(low | products, own, set(), finetuned)
        given |= low
    for name, tensor in given.items():
        own[name].copy_(tensor)
    for name, product in products.items():
        own[name].add_(product.to(own[name]))


def _plain_names(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what adapters put around names."""
    found = {}
    for name, tensor in tensors.items():
        for wrapper in ("base_model.model.", "base_layer.", ".default"):
            name = name.replace(wrapper, "")
        name = name.removesuffix(".weight") if ".lora_" in name else name
        known = name if name in own or ".lora_" in name else f"model.{name}"
        found[known if known in own else name] = tensor
    return found


def _check(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], needed: set[str], source: str
) -> None:
    wrong = [n for n, t in given.items() if n not in own or own[n].shape != t.shape]
    missing = sorted(needed - set(given))
    if wrong or missing:
        raise ZooError(
            f"{source} does not fit the model: "
            + "; ".join(
                f"{what} {', '.join(names[:3])}"
                for what, names in (("other names or shapes:", wrong), ("missing:", missing))
                if names
            )
            + ". Expected the base model, converted with the settings that they were trained with"
        )


Settings = Mapping[str, Any]


@register_model(parameters=2_111_520)
def hedgehog_small(settings: Settings | None = None, **overrides: Any) -> nn.Module:
    """The small base model with linear attention in all layers.

    Args:
        settings: of :func:`convert`.
        overrides: of the base model.
    """
    return convert(base_lm_small(**overrides), **(settings or {}))


@register_model(parameters=6_771_970_048)
def hedgehog_llama_2_7b(settings: Settings | None = None, **overrides: Any) -> nn.Module:
    """Llama-2 7B with the paper's linear attention; arguments as of :func:`hedgehog_small`."""
    shape = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    return convert(LlamaForCausalLM(LlamaConfig(**(shape | overrides))), **(settings or {}))


@register_model(parameters=8_047_039_488)
def lolcats_llama_3_1_8b(settings: Settings | None = None, **overrides: Any) -> nn.Module:
    """Llama-3.1 8B with the window of 64 and the maps of 64 that LoLCATs' models have."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    shape = {
        "vocab_size": 128_256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
    }
    hybrid = {"feature_dim": 64, "window": 64, "identity": False, **(settings or {})}
    return convert(LlamaForCausalLM(LlamaConfig(**(shape | overrides))), **hybrid)
