"""Settings of the multimodal decoder, from its own and other people's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import ZooError

MODEL_TYPE = "zoo_multimodal_decoder"
#: Architectures of transformers that compute what the text part of our decoder does.
LLAMA_LIKE = ("llama", "mistral", "qwen2")


@dataclass
class DecoderConfig:
    """Settings of :class:`MultimodalDecoder`; by default HoVLE's.

    Args:
        hidden_size, intermediate_size: width of the tokens and of the MLPs.
        num_heads, num_kv_heads, head_dim: see
            :class:`zoo.models.multimodal._mmmamba_attention.GroupedAttention`.
        embedding_layers: holistic layers before the language model; 0: text alone.
        language_layers: of the language model.
        attention_layers: which of all layers, counted from the first holistic one, have attention;
            None: all. The others have Mamba-2.
        vocab_size: tokens.
        image_size, patch_size: of a tile.
        downsample_ratio: pixel shuffle of a tile's patches before the stack, and a projection
            behind it; 1: neither.
        img_context_token_id: token in whose places the patches are put.
        rms_norm_eps, rope_theta, qkv_bias, tie_embeddings: details of the layers.
        rope_type: kind of the rotary positions; attention can only be "default", Mamba-2 has none.
        normalize_encoder_output: norm of the language model's input is brought to 1.
        mamba2: arguments of :class:`zoo.models.multimodal._mmmamba_attention.Mamba2Attention`.
        eos_token_id: token that ends a text.
    """

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int | None = None
    embedding_layers: int = 8
    language_layers: int = 24
    attention_layers: list[int] | None = None
    vocab_size: int = 92553
    image_size: int = 448
    patch_size: int = 14
    downsample_ratio: float = 0.5
    img_context_token_id: int = 92546
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_type: str = "default"
    qkv_bias: bool = False
    tie_embeddings: bool = False
    normalize_encoder_output: bool = False
    mamba2: dict[str, Any] = field(default_factory=dict)
    eos_token_id: int | None = None

    @property
    def layers(self) -> int:
        """All layers."""
        return self.embedding_layers + self.language_layers

    @property
    def image_tokens(self) -> int:
        """Tokens of a tile."""
        return round((self.image_size // self.patch_size * self.downsample_ratio) ** 2)

    def is_attention(self, index: int) -> bool:
        """Whether a layer has attention."""
        return self.attention_layers is None or index in self.attention_layers

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DecoderConfig:
        """From a ``config.json``: ours, HoVLE's or mmMamba's, or a Llama-like model's."""
        if content.get("model_type") == MODEL_TYPE:
            return cls(**{key: value for key, value in content.items() if key != "model_type"})
        if "embedding_config" in content:
            return _from_internvl(content)
        return _from_llama(content)


def _from_internvl(content: Mapping[str, Any]) -> DecoderConfig:
    embedding, llm = content["embedding_config"], content["llm_config"]
    if embedding.get("pixel_shuffle_loc", "pre") != "pre":
        raise ZooError(
            "pixel_shuffle_loc is not 'pre': only pixel shuffle before the stack is here"
        )
    kinds = [*embedding.get("layers_block_type", ()), *llm.get("layers_block_type", ())]
    ratio = content.get("downsample_ratio", 0.5) if embedding.get("use_pixel_shuffle_proj") else 1.0
    return DecoderConfig(
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        num_heads=llm["num_attention_heads"],
        num_kv_heads=llm["num_key_value_heads"],
        embedding_layers=embedding["num_hidden_layers"],
        language_layers=llm["num_hidden_layers"],
        attention_layers=[i for i, kind in enumerate(kinds) if kind == "mha"] if kinds else None,
        vocab_size=llm["vocab_size"],
        image_size=content.get("force_image_size") or embedding["image_size"],
        patch_size=embedding["patch_size"],
        downsample_ratio=ratio,
        img_context_token_id=embedding.get("img_context_token_id", 92546),
        rms_norm_eps=llm["rms_norm_eps"],
        rope_theta=float(llm["rope_theta"]),
        normalize_encoder_output=content.get("normalize_encoder_output", False),
    )


def _from_llama(content: Mapping[str, Any]) -> DecoderConfig:
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if content.get("model_type") not in LLAMA_LIKE:
        raise ZooError(
            f"model_type '{content.get('model_type')}' cannot be turned into a student: expected a "
            f"decoder built like Llama ({', '.join(LLAMA_LIKE)}), HoVLE, or one of ours"
        )
    heads = content["num_attention_heads"]
    eos = content.get("eos_token_id")
    return DecoderConfig(
        hidden_size=content["hidden_size"],
        intermediate_size=content["intermediate_size"],
        num_heads=heads,
        num_kv_heads=content.get("num_key_value_heads") or heads,
        head_dim=content.get("head_dim"),
        embedding_layers=0,
        language_layers=content["num_hidden_layers"],
        vocab_size=content["vocab_size"],
        rms_norm_eps=content.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta", content.get("rope_theta", 10000.0))),
        rope_type=kind,
        qkv_bias=content.get("attention_bias", content.get("model_type") == "qwen2"),
        tie_embeddings=content.get("tie_word_embeddings", False),
        eos_token_id=eos[0] if isinstance(eos, list) else eos,
    )
