"""Parallel Prompt Decoding: learned embeddings stand in for the tokens that are not known yet.

Paper: Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference
(2024, arXiv 2405.18628). Settings and keys are those of the authors' adapters
(hmarkc/parallel-prompt-decoding, commit 2ba3a1c), with ``weighting_layers.pt`` and
``custom_lm_head.pt`` where there are such files. Where code and paper differ, this is the code:
exits are averaged before the last norm but for the last one, and the adaptive weights are a softmax
over the copies. Their code fails on batches with adaptive weights; this one does not. Prefix
tuning, which no published adapter uses, is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.decoding._protocol import output_rows
from zoo.models.decoding._slots import Ahead, added_mask, by_layer, read_behind
from zoo.models.decoding._virtual_tokens import virtual_tokens
from zoo.models.language._protocol import text_config
from zoo.models.registry import register_model

ATTENTION = ("decoder", "encoder", "ensemble")
AGGREGATION = ("mean", "weighted", "adaptive_weighted")


class PromptTokens(nn.Module):
    """m slots of e embeddings each, which a frozen language model reads behind a text.

    Args:
        hidden_size: width d of the language model's embeddings.
        vocab_size: of the language model.
        num_special_tokens: m, how many tokens ahead are guessed.
        virtual_tokens_per_special_token: e, copies of a slot, whose guesses are put together.
        vt_attention_type: what a copy sees besides the text and itself: ``decoder`` all embeddings
            before it, ``encoder`` the copies of its own slot, ``ensemble`` the same copy of earlier
            slots.
        aggregation_type: ``mean`` of the copies' logits, ``weighted`` by learned weights, or
            ``adaptive_weighted`` by weights that follow from their states.
        num_exits: take the mean of so many last layers as a slot's state.
        use_custom_lm_head: give the slots an output layer of their own.
        lm_head: weight ``[V, d]`` that it starts from.
        start: embedding ``[d]`` that all rows start near; the authors start from words.
        accuracy: probability ``[m][ranks]`` that each guess of a slot is right, where it was
            measured; kept for the trees of decoding.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int = 32000,
        num_special_tokens: int = 3,
        virtual_tokens_per_special_token: int = 1,
        vt_attention_type: str = "decoder",
        aggregation_type: str = "mean",
        num_exits: int = 1,
        use_custom_lm_head: bool = False,
        lm_head: Tensor | None = None,
        start: Tensor | None = None,
        accuracy: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if vt_attention_type not in ATTENTION or aggregation_type not in AGGREGATION:
            raise ZooError(
                f"vt_attention_type is {vt_attention_type!r}, aggregation_type "
                f"{aggregation_type!r}: expected one of {', '.join(ATTENTION)} and one of "
                f"{', '.join(AGGREGATION)}"
            )
        counts = (num_special_tokens, virtual_tokens_per_special_token, num_exits)
        if min(counts) < 1:
            raise ZooError(f"slots, copies and exits are {counts}: expected 1 or more of each")
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "vocab_size": vocab_size,
            "num_special_tokens": num_special_tokens,
            "virtual_tokens_per_special_token": virtual_tokens_per_special_token,
            "vt_attention_type": vt_attention_type,
            "aggregation_type": aggregation_type,
            "num_exits": num_exits,
            "use_custom_lm_head": use_custom_lm_head,
            "accuracy": accuracy,
        }
        self.slots, self.copies = num_special_tokens, virtual_tokens_per_special_token
        # row slot * e + copy
        rows = torch.randn(self.slots * self.copies, hidden_size) * 0.02
        self.prompt_embeddings = nn.Parameter(rows if start is None else rows + start)
        if aggregation_type != "mean":
            width = self.copies if aggregation_type == "weighted" else hidden_size
            self.weighting_layers = nn.ModuleList(
                nn.Linear(width, 1, bias=False) for _ in range(self.slots)
            )
            if aggregation_type == "weighted":
                for layer in self.weighting_layers:
                    nn.init.constant_(layer.weight, 1 / self.copies)
        if use_custom_lm_head:
            self.custom_lm_head = nn.Linear(hidden_size, vocab_size, bias=False)
            if lm_head is not None:
                self.custom_lm_head.weight.data.copy_(lm_head)

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> PromptTokens:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        settings, embedding = settings or {}, target.get_input_embeddings().weight
        known = {
            "hidden_size": embedding.shape[1],
            "vocab_size": text_config(target).vocab_size,
            "num_special_tokens": 3,
            "virtual_tokens_per_special_token": 1,
            "vt_attention_type": "decoder",
            "aggregation_type": "mean",
            "num_exits": 1,
            "use_custom_lm_head": False,
            "accuracy": None,
        }
        chosen = {name: settings.get(name, value) for name, value in known.items()}
        lm_head = output_rows(target, chosen["vocab_size"], chosen["hidden_size"])
        start = None
        if embedding.shape[1] == chosen["hidden_size"] and not embedding.is_meta:
            start = embedding.detach().float().mean(0)
        return cls(**chosen, lm_head=lm_head, start=start)

    def forward(
        self, target: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Read texts with the prompt tokens behind them, as the authors' training does.

        Args:
            target: the language model.
            input_ids: int64 ``[B, T]``.
            attention_mask: ``[B, T]``, 0 where a text is padded on the left. Positions count the
                padding, and what is said at padding means nothing; both as in the authors' code.

        Returns:
            Logits ``[B, T + m, V]``: those of the text, then those of the slots; slot k (from 0) is
            about the text's token T + 1 + k.
        """
        batch, length = input_ids.shape
        ids, slots = self._numbers(input_ids)
        ids = torch.cat([input_ids, ids.expand(batch, -1)], dim=1)
        text = torch.arange(length, device=ids.device)
        positions = torch.cat([text, length + slots]).expand(batch, -1)
        allowed = torch.ones(len(slots) + length, len(slots) + length, device=ids.device).tril()
        allowed[length:, length:] = self.sees()
        masks = added_mask(allowed.bool(), target)[None]  # [1, N, N]
        if attention_mask is not None:
            kept = nn.functional.pad(attention_mask.bool(), (0, len(slots)), value=True)
            # where nothing may be seen, later tokens rank before padding
            masks = masks + added_mask(kept[:, None], target)
        with virtual_tokens(target, self.config["vocab_size"], self.prompt_embeddings):
            out = target(
                input_ids=ids,
                position_ids=positions,
                attention_mask=by_layer(target, masks, positions, positions),
                use_cache=False,
                output_hidden_states=True,
            )
        states = self.states(out.hidden_states)[:, length:]
        said = None if self.config["num_exits"] > 1 else out.logits[:, length:]
        ahead = self.guesses(target, states[:, None], None if said is None else said[:, None])
        return torch.cat([out.logits[:, :length, : self.config["vocab_size"]], ahead[:, 0]], dim=1)

    def behind(self, target: nn.Module, input_ids: Tensor, cuts: Tensor) -> Ahead:
        """Read texts, then, over their keys, the prompt tokens behind each of their cuts.

        The text has gradients if the target's weights want them; the prompt tokens have in any
        case.

        Args:
            target: the language model.
            input_ids: int64 ``[B, T]``, padded on the right if at all.
            cuts: int64 ``[B, C]``, indices of tokens.
        """
        ids, slots = self._numbers(input_ids)
        with virtual_tokens(target, self.config["vocab_size"], self.prompt_embeddings):
            read, out = read_behind(target, input_ids, cuts, ids, slots, self.sees())
        each = (cuts.shape[1], len(slots))
        states = self.states(out.hidden_states).unflatten(1, each)
        said = None if self.config["num_exits"] > 1 else out.logits.unflatten(1, each)
        return Ahead(read.logits, self.guesses(target, states, said))

    def _numbers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of all prompt tokens the numbers that they are read by, and their slots, ``[m e]``."""
        rows = torch.arange(self.slots * self.copies, device=like.device)
        return self.config["vocab_size"] + rows, rows // self.copies

    def sees(self) -> Tensor:
        """Which rows of the prompt tokens see which, bool ``[m e, m e]``."""
        rows = torch.arange(self.slots * self.copies)
        slot, copy = rows // self.copies, rows % self.copies
        if self.config["vt_attention_type"] == "decoder":
            return rows <= rows[:, None]
        if self.config["vt_attention_type"] == "encoder":
            return slot == slot[:, None]
        return (copy == copy[:, None]) & (slot <= slot[:, None])

    def states(self, hidden_states: Any) -> Tensor:
        """States ``[B, n, d]`` of prompt tokens, from those of all layers."""
        return torch.stack(list(hidden_states[-self.config["num_exits"] :])).mean(0)

    def guesses(self, target: nn.Module, states: Tensor, logits: Tensor | None) -> Tensor:
        """Logits ``[..., m, V]`` of slots from those of their copies.

        Args:
            target: the language model.
            states: ``[..., m e, d]``, those that its output layer reads.
            logits: ``[..., m e, V]``, what the language model said; None: ask its output layer.
        """
        if self.config["use_custom_lm_head"]:
            logits = self.custom_lm_head(states)
        elif logits is None:
            logits = target.get_output_embeddings()(states)
        logits = logits[..., : self.config["vocab_size"]]
        if self.copies == 1:
            return logits
        logits = logits.unflatten(-2, (-1, self.copies))  # [..., m, e, V]
        states = states.unflatten(-2, (-1, self.copies))
        kind = self.config["aggregation_type"]
        if kind == "mean":
            return logits.mean(-2)
        if kind == "weighted":
            weights = torch.cat([layer.weight for layer in self.weighting_layers])  # [m, e]
            weights = weights[: logits.shape[-3]]
        else:
            parts = zip(self.weighting_layers, states.unbind(-3), strict=False)
            scores = [layer(state).squeeze(-1) for layer, state in parts]
            weights = torch.stack(scores, dim=-2).softmax(-1)  # [..., m, e]
        return (logits * weights[..., None]).sum(-2)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the authors' adapter are ours; the language model's own are left out."""
        return {k: t for k, t in state_dict.items() if not k.startswith("base_model.")}


@register_model(source="hf://hmarkc/ppd-vicuna-7b-v1.3", parameters=12_288)
def ppd_vicuna_7b(**overrides: Any) -> PromptTokens:
    """Three prompt tokens for Vicuna-7B v1.3."""
    return PromptTokens(**({"hidden_size": 4096} | overrides))


@register_model(source="hf://hmarkc/ppd-vicuna-13b-v1.3", parameters=15_360)
def ppd_vicuna_13b(**overrides: Any) -> PromptTokens:
    """Three prompt tokens for Vicuna-13B v1.3."""
    return PromptTokens(**({"hidden_size": 5120} | overrides))


@register_model(source="hf://hmarkc/ppd-MobileLLaMA-1.4B-Chat", parameters=6_144)
def ppd_mobilellama(**overrides: Any) -> PromptTokens:
    """Three prompt tokens for MobileLLaMA-1.4B-Chat."""
    return PromptTokens(**({"hidden_size": 2048} | overrides))
