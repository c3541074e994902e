"""One causal stack for image patches and text, of attention or Mamba-2 layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoints import save_state_dict
from zoo.errors import ZooError
from zoo.layers.cache import Cache
from zoo.layers.precision import at_least_fp32
from zoo.models.language.mamba import CausalLMOutput
from zoo.models.multimodal._mmmamba_attention import GroupedAttention, Mamba2Attention, unfuse
from zoo.models.multimodal._mmmamba_config import MODEL_TYPE, DecoderConfig


class FeedForward(nn.Module):
    """w2(silu(w1 x) · w3 x)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w3 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] to the same."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class DecoderLayer(nn.Module):
    """Pre-norm layer; ``attention`` is attention or Mamba-2."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        size = (config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim)
        self.attention: GroupedAttention | Mamba2Attention
        if config.is_attention(index):
            if config.rope_type != "default":
                raise ZooError(
                    f"attention with '{config.rope_type}' rotary positions is not here: expected "
                    "model_args.attention_layers [], Mamba-2 in all layers"
                )
            self.attention = GroupedAttention(*size, config.rope_theta, config.qkv_bias)
        else:
            self.attention = Mamba2Attention(*size, config.qkv_bias, **config.mamba2)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size)
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, **mixer_args: Any) -> Tensor:
        """[B, L, hidden_size] to the same."""
        x = x + self.attention(self.attention_norm(x), **mixer_args)
        return x + self.feed_forward(self.ffn_norm(x))


class VisionEmbeddings(nn.Module):
    """Patches of a tile as tokens with learned positions; the class token plays no role."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.randn(1, 1 + self.side**2, config.hidden_size))
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.zeros_(self.patch_embedding.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """Tiles [T, 3, S, S] to [T, patches, hidden_size]; other sizes resize the positions."""
        x = self.patch_embedding(pixels)  # [T, d, h, w]
        where = self.position_embedding[:, 1:].unflatten(1, (self.side, self.side))
        where = where.movedim(-1, 1)  # [1, d, side, side]
        if x.shape[-2:] != where.shape[-2:]:
            where = F.interpolate(at_least_fp32(where), size=x.shape[-2:], mode="bicubic").to(
                x.dtype
            )
        return (x + where).flatten(2).transpose(1, 2)


class HolisticEmbedding(nn.Module):
    """Token embeddings of images and text, and the layers that see both."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.ratio, self.image_token = config.downsample_ratio, config.img_context_token_id
        self.multiple = config.patch_size * round(1 / config.downsample_ratio)
        self.vision_embeddings = VisionEmbeddings(config)
        self.llm_text_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = nn.ModuleList(
            DecoderLayer(config, index) for index in range(config.embedding_layers)
        )
        self.pixel_shuffle_proj = None
        if self.ratio != 1:
            self.pixel_shuffle_proj = nn.Sequential(
                nn.Linear(round(config.hidden_size / self.ratio**2), config.hidden_size),
                nn.GELU(),
                nn.Linear(config.hidden_size, config.hidden_size),
            )

    def embed(self, input_ids: Tensor, pixels: Tensor | None) -> Tensor:
        """Tokens [B, L], and tiles [T, 3, S, S] for the image tokens among them in order."""
        x = self.llm_text_embeddings(input_ids)
        places = input_ids == self.image_token
        if pixels is None:
            return x
        height, width = pixels.shape[-2:]
        if height != width or height % self.multiple:
            raise ZooError(
                f"tiles of {height} x {width} pixels were given, expected squares whose sides are "
                f"multiples of {self.multiple}"
            )
        patches = self.vision_embeddings(pixels.to(x.dtype))
        if self.pixel_shuffle_proj is not None:
            patches = self.pixel_shuffle_proj(pixel_shuffle(patches, self.ratio))
        patches = patches.flatten(0, 1)
        # a number that depends on the tokens has no place in a compiled graph
        if not torch.compiler.is_compiling() and int(places.sum()) != len(patches):
            raise ZooError(
                f"{len(pixels)} tiles have {len(patches)} tokens, but the text has places for "
                f"{int(places.sum())}: expected {len(patches) // len(pixels)} image tokens a tile"
            )
        return x.masked_scatter(places[..., None], patches.to(x.dtype))


def pixel_shuffle(x: Tensor, ratio: float) -> Tensor:
    """Fewer, wider tokens of a square of patches: [T, n, C] to [T, n ratio², C / ratio²]."""
    side, step = round(x.shape[1] ** 0.5), round(1 / ratio)
    # [T, h, h', w, w', C]: the channels of a new token are ordered (row, column, channel)
    x = x.unflatten(1, (side // step, step, side // step, step))
    return x.movedim(3, 2).flatten(3).flatten(1, 2)


class LanguageLayers(nn.Module):
    """Token embedding (used where there is no holistic one), layers and norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index) for index in range(config.embedding_layers, config.layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class MultimodalDecoder(nn.Module):
    """HoVLE, mmMamba, or a decoder of text alone, by its configuration.

    Args:
        config: its settings; or give them as keyword arguments.
    """

    def __init__(self, config: DecoderConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = config or DecoderConfig(**settings)
        self.embedding_model = HolisticEmbedding(config) if config.embedding_layers else None
        self.language_model = nn.Module()
        self.language_model.model = LanguageLayers(config)
        self.language_model.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.language_model.output.weight = self.language_model.model.tok_embeddings.weight
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """All layers, the holistic ones first."""
        first = [] if self.embedding_model is None else self.embedding_model.encoder
        return [*first, *self.language_model.model.layers]  # type: ignore[list-item]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        seq_idx: Tensor | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """The causal-LM call of transformers.

        Args:
            input_ids: int64 ``[B, L]``.
            pixel_values: tiles ``[T, 3, S, S]`` of all images of the batch, in order; their tokens
                stand where ``input_ids`` is the image token.
            inputs_embeds: ``[B, L, hidden_size]`` instead of both.
            cache, use_cache, seq_idx, logits_to_keep, output_hidden_states: see
                :meth:`zoo.models.language.mamba.MambaLM.forward`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ZooError("expected one of input_ids and inputs_embeds")
        x = self.embed(input_ids, pixel_values) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None:
            cache = self.allocate_cache(x.shape[0])
        streams = []
        for index, layer in enumerate(self.decoder_layers):
            if output_hidden_states:
                streams.append(x)
            if index == self.config.embedding_layers and self.config.normalize_encoder_output:
                x = x / x.norm(dim=-1, keepdim=True)
            x = layer(x, state=None if cache is None else cache.layers[index], seq_idx=seq_idx)
        x = self.language_model.model.norm(x)
        logits = self.language_model.output(x[:, -logits_to_keep:])
        return CausalLMOutput(logits, cache, (*streams, x) if output_hidden_states else None)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        """What enters the first layer, [B, L, hidden_size]."""
        if self.embedding_model is not None:
            return self.embedding_model.embed(input_ids, pixel_values)
        if pixel_values is not None:
            raise ZooError("the model reads text alone (embedding_layers is 0), not pixel_values")
        return self.language_model.model.tok_embeddings(input_ids)

    def allocate_cache(self, batch_size: int) -> Cache:
        """The states before the first token."""
        return Cache([layer.attention.allocate_state(batch_size) for layer in self.decoder_layers])

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of text."""
        if self.embedding_model is not None:
            return self.embedding_model.llm_text_embeddings
        return self.language_model.model.tok_embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.language_model.output

    def remap_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published, fused layers, and Llama-like models of transformers, to our names."""
        config = self.config
        P = config.head_dim or config.hidden_size // config.num_heads
        if any(".self_attn." in name for name in state_dict):
            return _remap_llama(state_dict, config.num_kv_heads, P)
        return unfuse(state_dict, [config.num_kv_heads * P] * 2 + [config.num_heads * P])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and the weights."""
        folder = Path(folder)
        save_state_dict(self.state_dict(), folder / "model.safetensors")
        content = {"model_type": MODEL_TYPE, **asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(content, indent=2))


#: transformers' names of a Llama's layer -> ours; queries, keys and values are packed.
_LLAMA = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _remap_llama(
    state_dict: Mapping[str, Tensor], num_kv_heads: int, head_dim: int
) -> dict[str, Tensor]:
    result = {}
    for name, tensor in state_dict.items():
        for theirs, ours in _LLAMA.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        name = name.replace("model.embed_tokens.", "model.tok_embeddings.")
        if ".self_attn.q_proj." in name:
            rows = [
                state_dict[name.replace("q_proj", f"{part}_proj")].unflatten(
                    0, (num_kv_heads, -1, head_dim)
                )
                for part in "qkv"
            ]
            packed = torch.cat(rows, dim=1).flatten(0, 2)
            result["language_model." + name.replace("self_attn.q_proj", "attention.wqkv")] = packed
        elif name.startswith("lm_head."):
            result[name.replace("lm_head.", "language_model.output.")] = tensor
        elif ".self_attn." not in name:
            result["language_model." + name] = tensor
    return result
