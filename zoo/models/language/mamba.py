"""Mamba language models (Gu and Dao, arXiv 2312.00752), and the model behind Mamba-2's as well.

Logits, gradients, states and step-by-step decoding agree with the authors' code on random weights
(state-spaces/mamba, commit e9594ce), and logits with transformers' own models. Two things differ
from that commit: a hybrid's attention keeps the inputs of its convolution, not the outputs, and so
decodes as it reads; and with an MLP the output layers start smaller by the root of the number of
all additions, which the authors' outermost class undoes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.checkpoints import load_pretrained, save_state_dict
from zoo.errors import ZooError, check_choice
from zoo.layers.cache import Cache
from zoo.layers.causal_attention import SelfAttention
from zoo.layers.mamba import Mamba
from zoo.layers.mamba2 import Mamba2
from zoo.layers.mamba_block import GatedMLP, MambaBlock
from zoo.layers.norms import add_norm
from zoo.models.registry import register_model

#: Mixers by name: Mamba's and those of other papers, which are imported when they are built.
LAYERS: dict[str, type[nn.Module] | str] = {
    "Mamba1": Mamba,
    "Mamba2": Mamba2,
    "MitigatedMamba2": "zoo.models.recurrent.stuffed_mamba:MitigatedMamba2",
    "DeltaNet": "zoo.models.recurrent.negative_eigenvalues:DeltaNet",
    "RNN": "zoo.models.recurrent.flashrnn:RecurrentMixer",
}
#: Arguments of the authors' mixers that choose a code path and change nothing.
WITHOUT_EFFECT = ("use_fast_path", "use_mem_eff_path", "layer_idx", "attn_mode")


@dataclass
class MambaConfig:
    """Settings of :class:`MambaLM`, under the names of the authors' ``config.json``.

    Args:
        d_model: width of the tokens.
        d_intermediate: width of an MLP after each mixer; 0 for none.
        n_layer: blocks.
        vocab_size: tokens of the tokenizer.
        ssm_cfg: ``layer`` ("Mamba1", "Mamba2", "MitigatedMamba2", "DeltaNet" or "RNN") and
            arguments of :class:`zoo.layers.mamba.Mamba`, :class:`zoo.layers.mamba2.Mamba2`,
            :class:`zoo.models.recurrent.stuffed_mamba.MitigatedMamba2`,
            :class:`zoo.models.recurrent.negative_eigenvalues.DeltaNet` or
            :class:`zoo.models.recurrent.flashrnn.RecurrentMixer`.
        attn_layer_idx: blocks that have attention instead.
        attn_cfg: arguments of :class:`zoo.layers.causal_attention.SelfAttention`.
        rms_norm: RMSNorm, else LayerNorm.
        residual_in_fp32: keep the residual stream in float32 also in half precision.
        fused_add_norm: has no effect here.
        pad_vocab_size_multiple: the embedding has a multiple of so many rows.
        tie_embeddings: the head is the embedding.
        norm_epsilon: of the norms.
        eos_token_id: token that ends a text, if there is one.
    """

    #: What the width of an MLP is rounded up to.
    mlp_multiple_of: ClassVar[int] = 128

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
    norm_epsilon: float = 1e-5
    eos_token_id: int | None = None

    @property
    def hidden_size(self) -> int:
        """What transformers calls ``d_model``."""
        return self.d_model

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> MambaConfig:
        """From a ``config.json`` of the authors, or of transformers' Mamba and Mamba-2.

        Raises:
            ZooError: if it is of another model.
        """
        if content.get("model_type") in ("mamba", "mamba2"):
            return cls(**_from_transformers(content))
        unknown = set(content) - set(cls.__dataclass_fields__)
        if not {"d_model", "n_layer"} <= set(content) or unknown:
            raise ZooError(
                "the config is not of a Mamba language model: expected d_model, n_layer and the "
                "authors' other keys, or model_type mamba or mamba2; it has "
                f"{', '.join(sorted(content)[:8])}"
            )
        return cls(**content)


def is_mamba_config(content: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one that :meth:`MambaConfig.from_dict` reads."""
    kind = content.get("model_type")
    return kind in ("mamba", "mamba2") or (kind is None and {"d_model", "n_layer"} <= set(content))


def _from_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    config: Any = CONFIG_MAPPING[content["model_type"]](**content)
    if config.hidden_act not in ("silu", "swish"):
        raise ZooError(f"hidden_act is '{config.hidden_act}': only silu is known to Mamba here")
    ssm_cfg = dict(
        d_state=config.state_size,
        d_conv=config.conv_kernel,
        expand=config.expand,
        conv_bias=config.use_conv_bias,
        bias=config.use_bias,
    )
    if content["model_type"] == "mamba":
        ssm_cfg.update(layer="Mamba1", dt_rank=config.time_step_rank)
    else:
        ssm_cfg.update(
            layer="Mamba2",
            headdim=config.head_dim,
            ngroups=config.n_groups,
            chunk_size=config.chunk_size,
            dt_limit=tuple(config.time_step_limit),
        )
    return dict(
        d_model=config.hidden_size,
        n_layer=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        ssm_cfg=ssm_cfg,
        residual_in_fp32=config.residual_in_fp32,
        pad_vocab_size_multiple=1,
        tie_embeddings=config.tie_word_embeddings,
        norm_epsilon=config.layer_norm_epsilon,
        eos_token_id=config.eos_token_id,
    )


@dataclass
class CausalLMOutput:
    """What :class:`MambaLM` returns.

    Attributes:
        logits: ``[B, L, V]`` of the token after each, V the padded vocabulary.
        cache: the states after the last token, if they were asked for.
        hidden_states: if asked for, the residual stream before each block, and the normed one.
    """

    logits: Tensor
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


torch.export.register_dataclass(CausalLMOutput)  # so that it can leave an exported program


class MixerModel(nn.Module):
    """Embedding, blocks, norm."""

    def __init__(self, config: MambaConfig, vocab_size: int) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        kind = nn.RMSNorm if config.rms_norm else nn.LayerNorm
        norm = partial(kind, config.d_model, eps=config.norm_epsilon)
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(
            MambaBlock(
                _mixer(config, index),
                norm,
                _mlp(config),
                config.residual_in_fp32,
            )
            for index in range(config.n_layer)
        )
        self.norm_f = norm()

    def forward(
        self,
        x: Tensor,
        cache: Cache | None = None,
        seq_idx: Tensor | None = None,
        streams: list[Tensor] | None = None,
    ) -> Tensor:
        """Embeddings [B, L, d_model] to normed states; see :meth:`MambaLM.forward`.

        Args:
            x: embeddings.
            cache, seq_idx: see :class:`MambaLM`.
            streams: takes the residual stream before each block and the normed one at last.
        """
        residual = None
        for index, block in enumerate(self.layers):
            if streams is not None:
                streams.append(x if residual is None else residual + x)
            state = None if cache is None else cache.layers[index]
            x, residual = block(x, residual, state=state, seq_idx=seq_idx)
        x, _ = add_norm(x, residual, self.norm_f, self.residual_in_fp32)
        if streams is not None:
            streams.append(x)
        return x


class MambaLM(nn.Module):
    """A causal language model of Mamba, Mamba-2 or mixed layers.

    Args:
        config: its settings; or give them as keyword arguments.
    """

    def __init__(self, config: MambaConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = config or MambaConfig(**settings)
        multiple = config.pad_vocab_size_multiple
        vocab_size = -(-config.vocab_size // multiple) * multiple
        self.backbone = MixerModel(config, vocab_size)
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False)
        self._initialise()
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        # The residual stream's variance shall not grow with depth (GPT-2).
        additions = self.config.n_layer * (2 if self.config.d_intermediate else 1)
        for name, module in self.backbone.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if name.endswith(("out_proj", "fc2")):
                module.weight /= math.sqrt(additions)
            if module.bias is not None and not name.endswith("dt_proj"):
                nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor | None = None,
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
            inputs_embeds: ``[B, L, d_model]`` instead.
            cache: states to go on from; its tensors are replaced. Many tokens go through the
                scan, a single one through a step of constant cost.
            use_cache: return the states; None given, they begin empty.
            seq_idx: int32 ``[B, L]``, the document of each token where several are packed: nothing
                passes from one to the next. Not together with a cache.
            logits_to_keep: logits of the last so many positions only; 0: of all.
            output_hidden_states: return the hidden states.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ZooError("expected one of input_ids and inputs_embeds")
        x = self.backbone.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None:
            cache = self.allocate_cache(x.shape[0])
        streams: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.backbone(x, cache, seq_idx, streams)
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        return CausalLMOutput(logits, cache, None if streams is None else tuple(streams))

    def allocate_cache(self, batch_size: int) -> Cache:
        """The states before the first token."""
        return Cache([block.mixer.allocate_state(batch_size) for block in self.backbone.layers])

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.backbone.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def no_weight_decay(self) -> set[str]:
        """Parameters of the recurrence, which shall not shrink."""
        names = (".A_log", ".D", ".dt_bias", ".dt_proj.bias")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}

    def remap_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of transformers' models to the authors', which are ours."""
        return {
            name.replace("backbone.embeddings.", "backbone.embedding."): tensor
            for name, tensor in state_dict.items()
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` in the authors' layout, and the weights beside it."""
        folder = Path(folder)
        save_state_dict(self.state_dict(), folder / "model.safetensors")
        config = {name: value for name, value in asdict(self.config).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, config: Mapping[str, Any], dtype: torch.dtype | None = None
    ) -> MambaLM:
        """Build the model that a ``config.json`` describes, and load its weights.

        Args:
            source: see :func:`zoo.load_pretrained`.
            config: content of the file.
            dtype: of the weights; float32 by default.
        """
        with torch.device("meta"):
            model = cls(MambaConfig.from_dict(config))
        load_pretrained(model, source)
        return model if dtype is None else model.to(dtype)


def _mlp(config: MambaConfig) -> GatedMLP | None:
    if not config.d_intermediate:
        return None
    return GatedMLP(config.d_model, config.d_intermediate, multiple_of=config.mlp_multiple_of)


def _mixer(config: MambaConfig, index: int) -> nn.Module:
    if index in config.attn_layer_idx:
        return SelfAttention(config.d_model, **config.attn_cfg)
    arguments = {k: v for k, v in config.ssm_cfg.items() if k not in WITHOUT_EFFECT}
    kind = arguments.pop("layer", "Mamba1")
    check_choice("ssm_cfg.layer", kind, LAYERS)
    layer = LAYERS[kind]
    mixer: nn.Module = (resolve_name(layer) if isinstance(layer, str) else layer)(
        config.d_model, **arguments
    )
    return mixer


def build(settings: dict[str, Any], overrides: dict[str, Any]) -> MambaLM:
    """A variant with some of its settings replaced.

    Raises:
        TypeError: if a setting is unknown.
    """
    return MambaLM(MambaConfig(**(settings | overrides)))


@register_model(source="hf://state-spaces/mamba-130m", parameters=129_135_360)
def mamba_130m(**overrides: Any) -> MambaLM:
    """Mamba of 129 M parameters, trained on the Pile: 24 layers, width 768."""
    return build(dict(d_model=768, n_layer=24), overrides)


@register_model(source="hf://state-spaces/mamba-370m", parameters=371_516_416)
def mamba_370m(**overrides: Any) -> MambaLM:
    """Mamba of 372 M parameters, trained on the Pile: 48 layers, width 1024."""
    return build(dict(d_model=1024, n_layer=48), overrides)


@register_model(source="hf://state-spaces/mamba-790m", parameters=793_204_224)
def mamba_790m(**overrides: Any) -> MambaLM:
    """Mamba of 793 M parameters, trained on the Pile: 48 layers, width 1536."""
    return build(dict(d_model=1536, n_layer=48), overrides)


@register_model(source="hf://state-spaces/mamba-1.4b", parameters=1_372_178_432)
def mamba_1_4b(**overrides: Any) -> MambaLM:
    """Mamba of 1.37 G parameters, trained on the Pile: 48 layers, width 2048."""
    return build(dict(d_model=2048, n_layer=48), overrides)


@register_model(source="hf://state-spaces/mamba-2.8b", parameters=2_768_345_600)
def mamba_2_8b(**overrides: Any) -> MambaLM:
    """Mamba of 2.77 G parameters, trained on the Pile: 64 layers, width 2560."""
    return build(dict(d_model=2560, n_layer=64), overrides)
