"""Hydra: draft heads that see what the earlier heads proposed.

Paper: Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding (2024, arXiv 2402.05109). Keys
and the tying of blocks are those of the authors' ``hydra_lm_head.pt``; outputs, gradients and
candidates agree with their code (zankner/Hydra, commit 3f39fbd) on random weights. One thing
differs: their heads that do not see the tokens (``grounded`` False) leave the prefix layer out when
they propose, though it was in their training; here it stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from zoo.errors import ZooError
from zoo.layers.res_block import ResBlock
from zoo.models.decoding._one_layer import layer_config, layer_settings
from zoo.models.decoding._protocol import output_rows
from zoo.models.decoding._state_dicts import count_heads, part_of, without_copies
from zoo.models.language._protocol import text_config
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
        hidden_state_offset: how many of the target's last layers the hidden states come before.
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
        hidden_state_offset: int = 0,
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
            "hidden_state_offset": hidden_state_offset,
        }
        self.grounded, self.hidden_state_offset = grounded, hidden_state_offset
        dropouts = [nn.Dropout(dropout)] if arch == "prefix-mlp" else []
        self.prefix_embeding_layer: LlamaModel | None = None
        if arch == "prefix-mlp":
            settings = {"hidden_size": d_model, "vocab_size": vocab_size, "num_hidden_layers": 1}
            layer = layer_config(prefix or {}) | settings
            self.prefix_embeding_layer = LlamaModel(LlamaConfig(**layer))
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
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> HydraHeads:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        settings, config = settings or {}, text_config(target)
        arch = settings.get("arch", settings.get("hydra_head_arch", "mlp"))
        found = count_heads(keys, r"(?:hydra_head\.)?hydra_mlp\.(\d+)\.")
        # what the authors leave out of their file is False
        grounded = settings.get("grounded", "hydra_head_arch" not in settings)
        d_model = settings.get("d_model", config.hidden_size)
        vocab_size = settings.get("vocab_size", config.vocab_size)
        return cls(
            d_model,
            vocab_size,
            found or settings.get("num_heads", settings.get("hydra_num_heads", 4)),
            settings.get("num_layers", settings.get("hydra_num_layers", 1)),
            arch,
            settings.get("dropout", 0.2 if arch == "prefix-mlp" else 0.0),
            settings.get("grounded_heads", grounded),
            settings.get("prefix") or layer_settings(target, settings),
            settings.get("hidden_state_offset", 0),
            output_rows(target, vocab_size, d_model),
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
        own = without_copies(part_of(state_dict, "hydra_head."))
        unused = "prefix_embeding_layer.embed_tokens."
        return {key: tensor for key, tensor in own.items() if not key.startswith(unused)}


_LLAMA = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_PLUS_PLUS: dict[str, Any] = {"arch": "prefix-mlp", "num_layers": 4, "dropout": 0.2}


def _vicuna(d_model: int, overrides: dict[str, Any], **prefix: Any) -> HydraHeads:
    settings = {"d_model": d_model, "vocab_size": 32000, "prefix": _LLAMA | prefix} | _PLUS_PLUS
    return HydraHeads(**(settings | overrides))


@register_model(
    source="hf://ankner/hydra-vicuna-7b-v1.3/hydra_lm_head.pt", parameters=1_263_723_520
)
def hydra_vicuna_7b(**overrides: Any) -> HydraHeads:
    """Hydra++ for Vicuna-7B v1.3."""
    return _vicuna(4096, overrides, intermediate_size=11008, num_attention_heads=32)


@register_model(
    source="hf://ankner/hydra-vicuna-13b-v1.3/hydra_lm_head.pt", parameters=1_811_619_840
)
def hydra_vicuna_13b(**overrides: Any) -> HydraHeads:
    """Hydra++ for Vicuna-13B v1.3."""
    return _vicuna(5120, overrides, intermediate_size=13824, num_attention_heads=40)


@register_model(
    source="hf://ankner/hydra-vicuna-33b-v1.3/hydra_lm_head.pt", parameters=2_804_906_496
)
def hydra_vicuna_33b(**overrides: Any) -> HydraHeads:
    """Hydra++ for Vicuna-33B v1.3."""
    return _vicuna(6656, overrides, intermediate_size=17920, num_attention_heads=52)
