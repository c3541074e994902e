"""Parts of a decoder of transformers, run one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from zoo.errors import ZooError

#: What models and layers call the cache they take and return; version 5.24 of transformers renamed
#: two of them to the first.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(forward: Callable[..., Any]) -> str:
    """The argument of a model's, layer's or mask's function that takes the cache.

    Raises:
        ZooError: if it takes none.
    """
    arguments = inspect.signature(forward).parameters
    for name in CACHE_NAMES:
        if name in arguments:
            return name
    raise ZooError(
        f"{getattr(forward, '__qualname__', forward)} takes no cache: expected an argument "
        f"{', '.join(CACHE_NAMES[:-1])} or {CACHE_NAMES[-1]}"
    )


class SplitDecoder:
    """A causal LM of the Llama kind (Llama, Mistral, Qwen2 and others), cut between its layers.

    Args:
        model: the causal LM; nothing of it is copied.

    Raises:
        ZooError: if the model is built otherwise.
    """

    def __init__(self, model: nn.Module) -> None:
        decoder = getattr(model, "model", None)
        parts = ("embed_tokens", "layers", "norm", "rotary_emb")
        if not all(hasattr(decoder, part) for part in parts) or not hasattr(model, "lm_head"):
            raise ZooError(
                f"{type(model).__name__} cannot be cut between its layers: expected a model built "
                "like LlamaForCausalLM"
            )
        self.model, self.decoder = model, decoder
        self._cache_name = cache_name(decoder.layers[0].forward)

    def __len__(self) -> int:
        return len(self.decoder.layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, n]`` -> ``[B, n, d]``."""
        return self.decoder.embed_tokens(tokens)

    def run(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        cache: Any = None,
        attention_mask: Any = None,
        **arguments: Any,
    ) -> Tensor:
        """Layers ``first`` to ``last - 1``.

        Args:
            hidden: ``[B, n, d]``.
            first, last: from 0 to the number of layers.
            positions: int64 ``[B, n]``.
            cache: keys and values of all layers.
            attention_mask: of four dimensions, or one for each kind of layer.
            arguments: more of the layers' own.
        """
        rotary = self.decoder.rotary_emb(hidden, position_ids=positions)
        kinds = getattr(self.model.config, "layer_types", None)
        for index in range(first, last):
            mask = attention_mask
            if isinstance(mask, dict):
                mask = mask[kinds[index]]
            hidden = self.decoder.layers[index](
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=positions,
                use_cache=True,
                **{self._cache_name: cache},
                **arguments,
            )
        return hidden

    def norm(self, hidden: Tensor) -> Tensor:
        """The final norm."""
        return self.decoder.norm(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Normed states -> logits."""
        return self.model.lm_head(hidden)
