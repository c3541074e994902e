"""What is asked of a language model: by decoding, by draft heads, by methods that go inside.

Models of transformers fulfil both protocols as they are, the second through
:class:`zoo.models.language._split_decoder.SplitDecoder`; a model of ours offers the same names.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class LanguageModel(Protocol):
    """A causal language model that :func:`zoo.decoding.generate` takes: the call of transformers.

    Attributes:
        config: ``vocab_size``, ``hidden_size`` and ``num_hidden_layers``, and
            ``max_position_embeddings`` where there is a limit; those of a model with several parts
            are found by :func:`text_config`.
    """

    config: Any

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = True,
        output_hidden_states: bool = False,
    ) -> Any:
        """Read n tokens after those that ``cache`` holds.

        None of the arguments after ``input_ids`` is indispensable: before the first token
        :mod:`zoo.decoding.steering` finds out which of them do what is said here, by a comparison
        with the model's own full pass, and decodes as fast as that allows.

        Args:
            input_ids: int64 ``[B, n]``; or ``inputs_embeds`` ``[B, n, d]`` in their place, for
                tokens that are no tokens (prompts that were learned, states, mixtures).
            attention_mask: a block mask: which of the S slots of the cache, its own n included,
                each token sees, ``[B, 1, n, S]``, bool or added to the scores; or a mapping from
                the names in ``config.layer_types`` to such masks.
            position_ids: int64 ``[B, n]``, the positions that the tokens stand at, whatever their
                slots are.
            cache: the external past: an object with ``layers``, which the model's layers ask to
                ``update`` their keys and values; in older versions ``past_key_values`` or
                ``cache_params``.

        Returns:
            An object with ``logits`` ``[B, n, V]``, with the cache under its argument's name, and
            where it was asked for with ``hidden_states``: one more than there are layers, the first
            before layer 0, the last what the logits are computed from.
        """

    def get_input_embeddings(self) -> nn.Module:
        """The layer that turns tokens into ``[B, n, d]``."""

    def get_output_embeddings(self) -> nn.Module:
        """The layer that turns the last states into logits."""


class LayeredModel(Protocol):
    """A language model cut between its layers: state k is the one that enters layer k."""

    def __len__(self) -> int:
        """Number of layers L."""

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """State 0 ``[B, n, d]`` of tokens ``[B, n]`` at these positions."""

    def run(
        self, hidden: Tensor, first: int, last: int, positions: Tensor, **arguments: Any
    ) -> Tensor:
        """State ``first`` to state ``last``: layers ``first`` to ``last - 1``, ``[B, n, d]``.

        Args:
            hidden: ``[B, n, d]``.
            first, last: from 0 to L.
            positions: int64 ``[B, n]``.
            arguments: ``cache``, ``attention_mask`` and others, as for :class:`LanguageModel`.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """State L to logits: the last norm, the output layer, and what the model does to it."""


def text_config(model: nn.Module) -> Any:
    """The settings of the part of a model that writes text."""
    config = model.config
    find = getattr(config, "get_text_config", None)
    return config if find is None else find(decoder=True)
