"""Hidden transfer: linear maps turn a state in the middle of a pass into those of later tokens.

Paper: Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration (2024,
arXiv 2404.12022). No code was published. The paper says: a linear map per future token, applied at
an intermediate layer of a frozen model; the pseudo states take part in the layers above and its own
output layer reads them. Ours: which layers, by default three quarters of the way up, one after the
other; no bias; maps that start as the identity; keys ``transfer.{k}.weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from zoo.errors import ZooError
from zoo.layers.plain import like
from zoo.models.decoding._slots import Ahead, added_mask, by_layer
from zoo.models.language._protocol import text_config
from zoo.models.language._split_decoder import SplitDecoder
from zoo.models.registry import register_model

#: Called with a number of layers, the pseudo states ``[B, m, C, d]`` and the text's ``[B, T, d]``
#: after so many.
Follow = Callable[[int, Tensor, Tensor], None]


def default_layers(count: int, slots: int = 3) -> list[int]:
    """Layers after which the pseudo states join a model of ``count`` layers."""
    return [max(1, min(round(0.75 * count) + slot, count - 1)) for slot in range(slots)]


class HiddenTransfer(nn.Module):
    """K maps; that of slot k (from 0) guesses the state of token t + 1 + k from that of token t.

    What the language model says at the pseudo state is about token t + 2 + k; token t + 1 is its
    own.

    Args:
        hidden_size: width d of the language model's states.
        layers: for each slot the number of layers after which its state joins, ascending.
        bias: of the maps.
        base: name of the language model, for the record.
        accuracy: probability ``[K][ranks]`` that each guess of a slot is right, where it was
            measured; kept for the trees of decoding.
    """

    def __init__(
        self,
        hidden_size: int,
        layers: Sequence[int] = (24, 25, 26),
        bias: bool = False,
        base: str | None = None,
        accuracy: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        layers = list(layers)
        if not layers or min(layers) < 1 or layers != sorted(layers):
            raise ZooError(
                f"layers is {layers}: expected for each slot a number of layers, 1 or more, in "
                "ascending order"
            )
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "layers": layers,
            "bias": bias,
            "base": base,
            "accuracy": accuracy,
        }
        self.layers = layers
        self.transfer = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias) for _ in layers)
        for linear in self.transfer:  # at first a pseudo state is a copy of the real one
            nn.init.eye_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> HiddenTransfer:
        """Build for a target; see :func:`zoo.decoding.heads.head_for`."""
        settings, config = settings or {}, text_config(target)
        return cls(
            settings.get("hidden_size", config.hidden_size),
            settings.get("layers", default_layers(config.num_hidden_layers, settings.get("K", 3))),
            settings.get("bias", any(key.endswith(".bias") for key in keys)),
            settings.get("base"),
            settings.get("accuracy"),
        )

    @property
    def slots(self) -> int:
        """K, the number of tokens proposed beyond the language model's own."""
        return len(self.layers)

    def check(self, target: nn.Module) -> None:
        """Refuse a language model that the maps were not made for.

        Raises:
            ZooError: if its states have another width, or it has too few layers.
        """
        config, width = text_config(target), self.config["hidden_size"]
        if config.hidden_size != width or config.num_hidden_layers < self.layers[-1]:
            raise ZooError(
                f"maps of states of {width} numbers after {self.layers} layers do not fit a target "
                f"of {config.hidden_size} numbers and {config.num_hidden_layers} layers: they were "
                "trained for another one"
            )

    def pseudo(self, slot: int, states: Tensor) -> Tensor:
        """Pseudo states of a slot from states ``[..., d]``; the maps may be more precise than the
        language model."""
        linear = self.transfer[slot]
        return linear(states.to(like(linear).dtype)).to(states.dtype)

    def forward(
        self,
        target: nn.Module | SplitDecoder,
        input_ids: Tensor,
        cuts: Tensor,
        follow: Follow | None = None,
    ) -> Ahead:
        """Read texts, then, over their keys, the pseudo states behind each of their cuts.

        Those of a cut see the text up to it, themselves and the slots before. The text has
        gradients if the language model's weights want them.

        Args:
            target: the language model.
            input_ids: int64 ``[B, T]``, padded on the right if at all.
            cuts: int64 ``[B, C]``, indices of tokens.
            follow: is shown the states after each layer that pseudo states have passed.
        """
        split = target if isinstance(target, SplitDecoder) else SplitDecoder(target)
        self.check(split.model)
        (batch, length), device = input_ids.shape, input_ids.device
        cache, text = DynamicCache(), torch.arange(length, device=device).expand(batch, -1)
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in split.model.parameters())
        with torch.set_grad_enabled(learns):
            causal = added_mask(text[:, None] <= text[..., None], split.model)
            causal = by_layer(split.model, causal, text, text)
            read = [split.embed(input_ids, text)]  # after 0, 1, ... layers, [B, T, d]
            for depth in range(len(split)):
                read.append(
                    split.run(read[-1], depth, depth + 1, text, cache, attention_mask=causal)
                )
            logits = split.logits(read[-1])
        rows = torch.arange(batch, device=device)[:, None]
        states, positions = read[0][:, :0], cuts[:, :0]  # slot after slot, each behind all cuts
        masks: Any = None
        for depth in range(self.layers[0], len(split) + 1):
            if joined := [slot for slot, layer in enumerate(self.layers) if layer == depth]:
                new = [self.pseudo(slot, read[depth][rows, cuts]) for slot in joined]
                states = torch.cat([states, *new], dim=1)
                positions = torch.cat([positions, *(cuts + 1 + slot for slot in joined)], dim=1)
                masks = self._masks(split.model, text, cuts, positions)
            if depth < len(split):
                states = split.run(states, depth, depth + 1, positions, cache, attention_mask=masks)
                if follow is not None:
                    follow(depth + 1, states.unflatten(1, (-1, cuts.shape[1])), read[depth + 1])
        said = split.logits(states).unflatten(1, (-1, cuts.shape[1])).transpose(1, 2)
        size = text_config(split.model).vocab_size
        return Ahead(logits[..., :size], said[..., :size])

    def _masks(self, target: nn.Module, text: Tensor, cuts: Tensor, positions: Tensor) -> Any:
        """What pseudo states see, slot after slot."""
        slots = positions.shape[1] // cuts.shape[1]
        sees_text = (text[:, None] <= cuts[..., None]).repeat(1, slots, 1)  # [B, m C, T]
        before = torch.ones(slots, slots, device=cuts.device).tril()
        own = torch.kron(before, torch.eye(cuts.shape[1], device=cuts.device)).bool()
        allowed = torch.cat([sees_text, own.expand(len(text), -1, -1)], dim=-1)
        keys = torch.cat([text, positions], dim=1)
        return by_layer(target, added_mask(allowed, target), positions, keys)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys are ours; there are no others."""
        return state_dict


@register_model(parameters=50_331_648)
def hidden_transfer_7b(**overrides: Any) -> HiddenTransfer:
    """Three maps for Vicuna or LLaMA-2-Chat of 7B."""
    settings: dict[str, Any] = {"hidden_size": 4096, "layers": default_layers(32)}
    return HiddenTransfer(**(settings | overrides))


@register_model(parameters=78_643_200)
def hidden_transfer_13b(**overrides: Any) -> HiddenTransfer:
    """Three maps for Vicuna or LLaMA-2-Chat of 13B."""
    settings: dict[str, Any] = {"hidden_size": 5120, "layers": default_layers(40)}
    return HiddenTransfer(**(settings | overrides))
