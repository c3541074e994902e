"""Hydra: draft heads that see what the earlier heads proposed.

Paper: Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding (2024, arXiv 2402.05109). Keys
and the tying of blocks are those of the authors' ``hydra_lm_head.pt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from zoo.errors import ZooError
from zoo.layers.res_block import ResBlock
from zoo.models.registry import register_model


class HydraHeads(nn.Module):
    """K heads on the last hidden state of a causal LM and on the embeddings of the tokens since.

    Head i (from 0) reads the state u_t and the input embeddings of tokens t + 1 .. t + 1 + i, and
    predicts token t + 2 + i.

    Args:
        d_model: width of hidden states and embeddings.
        vocab_size: of the LM.
        num_heads: K.
        num_layers: residual blocks of a head; all after the first are one block applied again.
        arch: ``"mlp"`` (Hydra: u is the hidden state) or ``"prefix-mlp"`` (Hydra++: u is the output
            of one more transformer layer over the hidden states of the whole prefix).
        dropout: before every block of ``"prefix-mlp"``.
        grounded: False: the heads do not see the tokens, which makes them Medusa heads.
        prefix: settings of the prefix layer, as :class:`transformers.LlamaConfig` names them.
        lm_head: weight ``[V, d]`` that every head's output starts from.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        num_heads: int = 4,
        num_layers: int = 1,
        arch: Literal["mlp", "prefix-mlp"] = "mlp",
        dropout: float = 0.0,
        grounded: bool = True,
        prefix: Mapping[str, Any] | None = None,
        lm_head: Tensor | None = None,
    ) -> None:
        super().__init__()
        if arch not in ("mlp", "prefix-mlp") or num_layers < 1:
            raise ZooError(
                f"Hydra heads: arch '{arch}' with {num_layers} layers was asked for, expected "
                "'mlp' or 'prefix-mlp' and one layer or more"
            )
        self.config: dict[str, Any] = {
            "d_model": d_model,
            "vocab_size": vocab_size,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "arch": arch,
            "dropout": dropout,
            "grounded": grounded,
            "prefix": dict(prefix or {}),
        }
        self.grounded = grounded
        dropouts = [nn.Dropout(dropout)] if arch == "prefix-mlp" else []
        self.prefix_embeding_layer: LlamaModel | None = None
        if arch == "prefix-mlp":
            settings = {"hidden_size": d_model, "vocab_size": vocab_size, "num_hidden_layers": 1}
            self.prefix_embeding_layer = LlamaModel(LlamaConfig(**(dict(prefix or {}) | settings)))
            del self.prefix_embeding_layer.embed_tokens  # it reads hidden states only
        self.hydra_mlp = nn.ModuleList()
        for i in range(num_heads):
            first = ResBlock(d_model, i + 1 if grounded else 0)
            again = [*dropouts, first if not grounded else ResBlock(d_model)] * (num_layers - 1)
            self.hydra_mlp.append(nn.Sequential(*dropouts, first, *again))
        self.hydra_lm_head = nn.ModuleList()
        for _ in range(num_heads):
            linear = nn.Linear(d_model, vocab_size)
            if lm_head is not None:
                linear.weight.data.copy_(lm_head)
            self.hydra_lm_head.append(nn.Sequential(*dropouts, linear) if dropouts else linear)

    @classmethod
    def from_config(cls, settings: Mapping[str, Any], target: Any) -> HydraHeads:
        """Build from a ``config.json``, ours or the authors', for a target's configuration."""
        arch = settings.get("arch", settings.get("hydra_head_arch", "mlp"))
        names = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
        names += ("rms_norm_eps", "max_position_embeddings", "rope_parameters")
        prefix = {name: getattr(target, name) for name in names if hasattr(target, name)}
        return cls(
            settings.get("d_model", target.hidden_size),
            settings.get("vocab_size", target.vocab_size),
            settings.get("num_heads", settings.get("hydra_num_heads", 4)),
            settings.get("num_layers", settings.get("hydra_num_layers", 1)),
            arch,
            settings.get("dropout", 0.2 if arch == "prefix-mlp" else 0.0),
            settings.get("grounded", settings.get("grounded_heads", True)),
            settings.get("prefix") or prefix,
        )

    @property
    def num_heads(self) -> int:
        """Number of tokens proposed beyond the LM's own."""
        return len(self.hydra_mlp)

    def states(self, hidden: Tensor) -> Tensor:
        """The states u of a whole sequence from its hidden states ``[B, T, d]``."""
        if self.prefix_embeding_layer is None:
            return hidden
        return self.prefix_embeding_layer(inputs_embeds=hidden, use_cache=False).last_hidden_state

    def head(self, i: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Head i on u and embeddings ``[..., (i + 2) d]``: logits and state, ``[..., V or d]``."""
        if not self.grounded:
            inputs = inputs[..., : self.config["d_model"]]
        state = self.hydra_mlp[i](inputs)
        return self.hydra_lm_head[i](state), state

    def forward(self, hidden: Tensor, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """All heads at all positions of a text.

        Args:
            hidden: ``[B, T, d]``, last hidden states of the LM.
            embeds: ``[B, T, d]``, input embeddings of the same tokens.

        Returns:
            Logits ``[K, B, T, V]`` and head states ``[K, B, T, d]``. Head i means nothing at the
            last i + 1 positions, where the tokens it would read are the text's first.
        """
        inputs = [self.states(hidden)]
        logits, states = [], []
        for i in range(self.num_heads):
            inputs.append(embeds.roll(-(i + 1), dims=1))
            out, state = self.head(i, torch.cat(inputs, dim=-1))
            logits.append(out)
            states.append(state)
        return torch.stack(logits), torch.stack(states)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys to ours: the LM's weights and copies of its embedding are left out."""
        prefix = "hydra_head."
        if any(key.startswith(prefix) for key in state_dict):
            state_dict = {
                key.removeprefix(prefix): t
                for key, t in state_dict.items()
                if key.startswith(prefix)
            }
        unused = ("input_embed_fn.", "prefix_embeding_layer.embed_tokens.")
        return {
            key: t
            for key, t in state_dict.items()
            if not key.startswith(unused) and not key.endswith("rotary_emb.inv_freq")
        }


_LLAMA = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_PLUS_PLUS: dict[str, Any] = {"arch": "prefix-mlp", "num_layers": 4, "dropout": 0.2}


def _vicuna(d_model: int, overrides: dict[str, Any], **prefix: Any) -> HydraHeads:
    settings = {"d_model": d_model, "vocab_size": 32000, "prefix": _LLAMA | prefix} | _PLUS_PLUS
    return HydraHeads(**(settings | overrides))


@register_model(source="hf://ankner/hydra-vicuna-7b-v1.3/hydra_lm_head.pt")
def hydra_vicuna_7b(**overrides: Any) -> HydraHeads:
    """Hydra++ for Vicuna-7B v1.3."""
    return _vicuna(4096, overrides, intermediate_size=11008, num_attention_heads=32)


@register_model(source="hf://ankner/hydra-vicuna-13b-v1.3/hydra_lm_head.pt")
def hydra_vicuna_13b(**overrides: Any) -> HydraHeads:
    """Hydra++ for Vicuna-13B v1.3."""
    return _vicuna(5120, overrides, intermediate_size=13824, num_attention_heads=40)


@register_model(source="hf://ankner/hydra-vicuna-33b-v1.3/hydra_lm_head.pt")
def hydra_vicuna_33b(**overrides: Any) -> HydraHeads:
    """Hydra++ for Vicuna-33B v1.3."""
    return _vicuna(6656, overrides, intermediate_size=17920, num_attention_heads=52)
