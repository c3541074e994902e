"""Mamba-2 language models (Dao and Gu, ICML 2024, arXiv 2405.21060).

The model is :class:`zoo.models.language.mamba.MambaLM` with Mamba-2 mixers; what agrees with what
is said there.
"""

from __future__ import annotations

from typing import Any

from zoo.models.language.mamba import MambaLM, build
from zoo.models.registry import register_model


def _mamba2(settings: dict[str, Any], overrides: dict[str, Any]) -> MambaLM:
    return build(
        dict(ssm_cfg={"layer": "Mamba2"}, pad_vocab_size_multiple=16) | settings, overrides
    )


@register_model(source="hf://state-spaces/mamba2-130m", parameters=128_989_632)
def mamba2_130m(**overrides: Any) -> MambaLM:
    """Mamba-2 of 129 M parameters, trained on the Pile: 24 layers, width 768."""
    return _mamba2(dict(d_model=768, n_layer=24), overrides)


@register_model(source="hf://state-spaces/mamba2-370m", parameters=368_346_624)
def mamba2_370m(**overrides: Any) -> MambaLM:
    """Mamba-2 of 368 M parameters, trained on the Pile: 48 layers, width 1024."""
    return _mamba2(dict(d_model=1024, n_layer=48), overrides)


@register_model(source="hf://state-spaces/mamba2-780m", parameters=780_161_280)
def mamba2_780m(**overrides: Any) -> MambaLM:
    """Mamba-2 of 780 M parameters, trained on the Pile: 48 layers, width 1536."""
    return _mamba2(dict(d_model=1536, n_layer=48), overrides)


@register_model(source="hf://state-spaces/mamba2-1.3b", parameters=1_343_757_312)
def mamba2_1_3b(**overrides: Any) -> MambaLM:
    """Mamba-2 of 1.34 G parameters, trained on the Pile: 48 layers, width 2048."""
    return _mamba2(dict(d_model=2048, n_layer=48), overrides)


@register_model(source="hf://state-spaces/mamba2-2.7b", parameters=2_702_599_680)
def mamba2_2_7b(**overrides: Any) -> MambaLM:
    """Mamba-2 of 2.70 G parameters, trained on the Pile: 64 layers, width 2560."""
    return _mamba2(dict(d_model=2560, n_layer=64), overrides)


@register_model(source="hf://state-spaces/mamba2attn-2.7b", parameters=2_697_590_880)
def mamba2attn_2_7b(**overrides: Any) -> MambaLM:
    """Mamba-2 of 2.70 G parameters in which six of 64 layers are attention (section 9.2.3)."""
    attention = dict(
        causal=True,
        d_conv=4,
        head_dim=128,
        num_heads=30,
        out_proj_bias=False,
        qkv_proj_bias=False,
        rotary_emb_dim=64,
    )
    shape = dict(d_model=2560, n_layer=64, attn_layer_idx=[9, 18, 27, 36, 45, 56])
    return _mamba2(shape | dict(attn_cfg=attention), overrides)
