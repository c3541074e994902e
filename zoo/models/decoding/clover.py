"""Clover: draft heads with a state that takes in every token that was speculated before.

Paper: Clover: Regressive Lightweight Speculative Decoding with Sequential Knowledge (2024, arXiv
2405.00263), and its successor Clover-2 (arXiv 2408.00264), the only one whose code was published
(XiaoBin1992/clover, commit 9d37214). ``version`` 2 is that code, with its keys. ``version`` 1 has
the parts that the first paper's abstract names, with the operator of the second; its number of
heads and its output blocks are ours. One thing differs: where their code adds uniform noise from 0
to 0.01 to fresh weights, which sums up over thousands of inputs, the noise here is symmetric.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from zoo.errors import ZooError
from zoo.layers.res_block import ResBlock
from zoo.models.decoding._one_layer import OneLayerModel, layer_settings
from zoo.models.decoding._protocol import output_rows
from zoo.models.decoding._state_dicts import without_copies
from zoo.models.language._split_decoder import cache_name, decoder_and_layers
from zoo.models.registry import register_model

#: Largest entry of the noise on fresh weights.
NOISE = 0.01


class AttentionDecoder(nn.Module):
    """``x + a * V y`` for a state x and a token y; a, one number per head, is the cosine of query
    and key.

    Args:
        d_model: width.
        heads: that the width is cut into.
        eps: of the norm before the query, and of the cosine.
    """

    def __init__(self, d_model: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.input_layernorm = LlamaRMSNorm(d_model, eps=eps)
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        for linear, identity in ((self.q, True), (self.k, True), (self.v, False)):
            _start(linear, identity)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``[..., d]`` twice -> ``[..., d]``."""
        each = (self.heads, -1)
        query = self.q(self.input_layernorm(x)).unflatten(-1, each)  # [..., H, d / H]
        key, value = self.k(y).unflatten(-1, each), self.v(y).unflatten(-1, each)
        weight = F.cosine_similarity(query, key, dim=-1, eps=self.eps)
        return x + (weight[..., None] * value).flatten(-2)


class CloverHeads(OneLayerModel):
    """Heads that run one after the other over a state of their own.

    Head i (from 0) predicts token t + 2 + i. All start from the state s of token t, which the
    augmenting layers make of the language model's; s takes in the tokens t + 1 + i, and what a head
    puts out goes into the language model's own output layer. Tokens are the rows of that layer.

    Args:
        version: 2: the states are those before the language model's last norm, token t + 1 goes in
            before the augmenting layers, head 0 reads s, the others, which share their weights,
            s and token t + 1 + i. 1: the states are those after the norm, every token goes in
            through one block, and each head is a residual block.
        num_heads: H.
        num_layers: A, augmenting layers.
        own_outputs: vocabulary of output layers of the heads' own (version 1 alone); None: they use
            the language model's.
        decay_coefficient, heads_coefficient: of the training, for the record.
        settings: of the augmenting layers, the target's; see
            :data:`zoo.models.decoding._one_layer.SETTINGS`.
    """

    def __init__(
        self,
        version: int = 2,
        num_heads: int = 5,
        num_layers: int = 2,
        own_outputs: int | None = None,
        decay_coefficient: float = 0.7,
        heads_coefficient: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if version not in (1, 2) or min(num_heads, num_layers) < 1:
            raise ZooError(
                f"Clover {version} with {num_heads} heads and {num_layers} layers was asked for: "
                "expected version 1 or 2, and one or more of both"
            )
        if version == 2 and own_outputs:
            raise ZooError("own_outputs was given, but heads of Clover-2 have none: leave it out")
        self.version, self.num_heads, config = version, num_heads, self.config
        config.num_hidden_layers = num_layers
        config.clover = {
            "version": version,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "own_outputs": own_outputs,
            "decay_coefficient": decay_coefficient,
            "heads_coefficient": heads_coefficient,
        }
        width, eps = config.hidden_size, config.rms_norm_eps

        def takes_in() -> AttentionDecoder:
            return AttentionDecoder(width, config.num_attention_heads, eps)

        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(num_layers))
        self._cache_name = cache_name(self.layers[0].forward)
        if version == 2:
            self.clover_norm = LlamaRMSNorm(width, eps=eps)
            self.clover_head_norm = LlamaRMSNorm(width, eps=eps)
            self.clover_head_mlp = nn.Linear(width, width)
            self.clover_head_mlp2 = nn.Linear(2 * width, width)
            _start(self.clover_head_mlp, True)
            _start(self.clover_head_mlp2, True)
            self.clover_head_mlp_rnn, self.clover_head_mlp_rnn2 = takes_in(), takes_in()
        else:
            self.attention_decoder = takes_in()
            self.blocks = nn.ModuleList(ResBlock(width) for _ in range(num_heads))
            if own_outputs:
                self.outputs = nn.ModuleList(
                    nn.Linear(width, own_outputs, bias=False) for _ in range(num_heads)
                )

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> CloverHeads:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        settings = settings or {}
        given = settings.get("clover", settings)
        names = ("version", "num_heads", "num_layers", "own_outputs")
        chosen = {name: given[name] for name in names if name in given}
        chosen |= {k: given[k] for k in ("decay_coefficient", "heads_coefficient") if k in given}
        head = cls(**chosen, **layer_settings(target, settings))
        head.start_from(target)
        return head

    def start_from(self, target: nn.Module) -> None:
        """Take over the target's last layer and last norm, and its output layer where heads have
        their own, as far as their shapes fit."""
        for linear in getattr(self, "outputs", ()):
            rows = output_rows(target, *linear.weight.shape)
            if rows is not None:
                linear.weight.data.copy_(rows)
        try:
            decoder, layers = decoder_and_layers(target)
        except (AttributeError, ZooError):  # not in layers that could be taken over
            return
        last, norm = layers[-1].state_dict(), getattr(decoder, "norm", None)
        shapes = {key: t.shape for key, t in last.items()}
        for layer in self.layers:
            if {key: t.shape for key, t in layer.state_dict().items()} == shapes:
                layer.load_state_dict(last)
        if self.version == 2 and getattr(norm, "weight", None) is not None:
            for own in (self.clover_norm, self.clover_head_norm):
                if own.weight.shape == norm.weight.shape:
                    own.weight.data.copy_(norm.weight)

    def augment(
        self,
        inputs_embeds: Tensor,
        states: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """States of tokens t and the tokens t + 1, ``[B, n, d]`` -> ``last_hidden_state`` s."""
        position_ids = self.positions(states, position_ids)
        hidden = states
        if self.version == 2:
            hidden = self.clover_head_mlp_rnn(states, inputs_embeds)
        arguments = kwargs | {
            "position_ids": position_ids,
            "position_embeddings": self.rotary_emb(hidden, position_ids=position_ids),
            "attention_mask": self.causal_mask(hidden, position_ids, attention_mask, cache),
            self._cache_name: cache,
        }
        for layer in self.layers:
            hidden = layer(hidden, **arguments)
        if self.version == 2:
            hidden = self.clover_norm(hidden)
        return BaseModelOutputWithPast(hidden, cache)

    def step(self, i: int, state: Tensor, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Head i on the state before it and token t + 1 + i, ``[..., d]``: its output and the state
        that it leaves."""
        if self.version == 1:
            state = self.attention_decoder(state, embeds)
            return self.blocks[i](state), state
        if i == 0:
            return self.clover_head_norm(self.clover_head_mlp(state)), state
        state = self.clover_head_mlp_rnn2(state, embeds)
        both = torch.cat([state, embeds], dim=-1)
        return self.clover_head_norm(self.clover_head_mlp2(both)), state

    def logits(self, i: int, out: Tensor, weight: Tensor) -> Tensor:
        """What head i says by its output ``[..., d]``; ``weight`` is the target's ``[V, d]``."""
        return self.outputs[i](out) if hasattr(self, "outputs") else F.linear(out, weight)

    def forward(self, states: Tensor, embeds: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """All heads at all positions of a text.

        Args:
            states: ``[B, T, d]``, of the language model; see ``version``.
            embeds: ``[B, T, d]``, at t the row of the output layer for token t + 1.
            position_ids: ``[B, T]``.

        Returns:
            Outputs ``[H, B, T, d]``; those of head i are zeros at the last i positions.
        """
        state, outs = self.augment(embeds, states, position_ids).last_hidden_state, []
        for i in range(self.num_heads):
            length = max(states.shape[1] - i, 0)
            out, state = self.step(i, state[:, :length], embeds[:, i:])
            outs.append(F.pad(out, (0, 0, 0, states.shape[1] - length)))
        return torch.stack(outs)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys to ours: the copies of the language model's output layer are left out."""
        own = without_copies(state_dict)
        return {k: t for k, t in own.items() if not k.startswith("clover_embed_tokens.")}


def _start(linear: nn.Linear, identity: bool) -> None:
    """Noise, with the identity on the first inputs; no bias."""
    nn.init.uniform_(linear.weight, -NOISE, NOISE)
    nn.init.zeros_(linear.bias)
    if identity:
        with torch.no_grad():
            size = len(linear.weight)
            linear.weight[:, :size] += torch.eye(size, device=linear.weight.device)


_LLAMA = {"hidden_size": 4096, "num_attention_heads": 32}


@register_model(parameters=555_810_816)
def clover2_vicuna_7b(**overrides: Any) -> CloverHeads:
    """Clover-2 for Vicuna-7B v1.5."""
    settings: dict[str, Any] = {"intermediate_size": 11008, "max_position_embeddings": 4096}
    return CloverHeads(**(_LLAMA | settings | {"rms_norm_eps": 1e-5} | overrides))


@register_model(parameters=587_268_096)
def clover2_llama3_8b(**overrides: Any) -> CloverHeads:
    """Clover-2 for LLaMA-3-Instruct 8B."""
    settings: dict[str, Any] = {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    return CloverHeads(**(_LLAMA | settings | overrides))


@register_model(parameters=303_075_328)
def clover_baichuan_7b(**overrides: Any) -> CloverHeads:
    """Clover for Baichuan of 7B: three heads, one augmenting layer."""
    settings: dict[str, Any] = {"version": 1, "num_heads": 3, "num_layers": 1}
    shape = {"intermediate_size": 11008, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6}
    return CloverHeads(**(_LLAMA | settings | shape | overrides))
