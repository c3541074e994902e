"""A decoder of transformers that is run layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.language._protocol import text_config

#: What models and layers call the cache they take and return; version 5.24 of transformers renamed
#: two of them to the first.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
#: Tokens that are read once to see whether a model can be cut, and how far its logits may be off.
TRIAL, TOLERANCE = (1, 3, 2, 5, 4), 1e-3


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
    """A causal LM cut between its layers; a :class:`zoo.models.language._protocol.LayeredModel`.

    Every part is run by the model's own forward, in which the layers outside the part hand on what
    they are given. So scales of embeddings and logits, masks and positions are the model's.

    Args:
        model: the causal LM, in eval mode; nothing of it is copied.

    Raises:
        ZooError: if the parts, one after the other, do not give what the model gives.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        try:
            self.decoder, self.layers = decoder_and_layers(model)
            self._cache_name = cache_name(self.decoder.forward)
            off = self._distance()
        except Exception as error:  # whatever a foreign model does
            raise self._refusal(str(error).partition("\n")[0]) from error
        if not off < TOLERANCE:
            raise self._refusal(f"the logits of its parts are off by {off:.1g} of their size")

    def _refusal(self, reason: str) -> ZooError:
        return ZooError(
            f"{type(self.model).__name__} cannot be cut between its layers ({reason}): take a "
            "method that leaves the target whole, such as token_recycling"
        )

    @torch.no_grad()
    def _distance(self) -> float:
        """How far the logits of the parts are from the model's, relative to the largest."""
        weight = self.model.get_input_embeddings().weight
        tokens = torch.tensor([TRIAL], device=weight.device) % len(weight)
        positions = torch.arange(len(TRIAL), device=weight.device)[None]
        seen: list[Any] = []
        hook = self.layers[0].register_forward_hook(lambda layer, args, out: seen.append(out))
        try:
            whole = self.model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        finally:
            hook.remove()
        #: How many values a layer returns; None: the state itself.
        self._returns = len(seen[0]) if isinstance(seen[0], tuple) else None
        hidden = self.embed(tokens, positions)
        for index in range(len(self)):
            hidden = self.run(hidden, index, index + 1, positions, use_cache=False)
        parts = self.logits(hidden)
        return float((parts - whole).abs().max() / whole.abs().max().clamp_min(1e-30))

    def __len__(self) -> int:
        return len(self.layers)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens ``[B, n]`` -> the state before layer 0, ``[B, n, d]``."""
        return self._part(self.decoder, 0, 0, None, input_ids=tokens, position_ids=positions)

    def run(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        cache: Any = None,
        use_cache: bool = True,
        **arguments: Any,
    ) -> Tensor:
        """Layers ``first`` to ``last - 1``.

        Args:
            hidden: ``[B, n, d]``.
            first, last: from 0 to the number of layers.
            positions: int64 ``[B, n]``.
            cache: keys and values of all layers.
            use_cache: False: there is no past and none is kept.
            arguments: more of the model's own, such as ``attention_mask``.
        """
        arguments |= {self._cache_name: cache, "use_cache": use_cache, "position_ids": positions}
        return self._part(self.decoder, first, last, hidden, **arguments)

    def logits(self, hidden: Tensor) -> Tensor:
        """The state after the last layer ``[B, n, d]`` -> logits ``[B, n, V]``."""
        return self._part(self.model, 0, 0, hidden, use_cache=False).logits

    def _part(
        self, module: nn.Module, first: int, last: int, hidden: Tensor | None, **arguments: Any
    ) -> Any:
        """Run ``module`` with these layers alone; of the decoder the state that they leave.

        Args:
            hidden: what enters them; None: what the model itself makes of the tokens.
        """
        if hidden is not None:  # the model makes a state of them too, and it is put aside
            arguments["input_ids"] = hidden.new_zeros(hidden.shape[:2], dtype=torch.long)
        with _replaced(self.layers, first, last, hidden, self._returns) as left:
            out = module(**arguments)
        return out if module is not self.decoder else left()


def decoder_and_layers(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The part of a causal LM below its output layer, and the list of its layers."""
    count = text_config(model).num_hidden_layers
    # two ways of transformers, each of which some models lead astray, and the usual name
    for decoder in (model.get_decoder(), model.base_model, getattr(model, "model", model)):
        for module in decoder.modules() if decoder is not model else ():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return decoder, module
    raise ZooError(f"there is no list of its {count} layers")


@contextmanager
def states_before_norm(model: nn.Module) -> Iterator[list[Tensor]]:
    """For a while, keep what the last layer gives in every call of a causal LM, ``[B, n, d]``."""
    kept: list[Tensor] = []

    def keep(layer: nn.Module, args: Any, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    hook = decoder_and_layers(model)[1][-1].register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


@contextmanager
def _replaced(
    layers: nn.ModuleList, first: int, last: int, hidden: Tensor | None, returns: int | None
) -> Iterator[Callable[[], Tensor]]:
    """Let only layers ``first`` to ``last - 1`` do something, on ``hidden`` if it is given.

    Yields:
        What gives the state that the last of them left.
    """
    state: list[Tensor] = []

    def wrapped(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            enters = args[0] if args else kwargs.pop("hidden_states")
            if index == 0 and hidden is not None:
                enters = hidden
            if first <= index < last:
                out = forward(enters, *args[1:], **kwargs)
                state[:] = [out[0] if isinstance(out, tuple) else out]
                return out
            state[:] = state if first < last and index >= last else [enters]
            return enters if returns is None else (enters, *[None] * (returns - 1))

        return call

    before = [vars(layer).get("forward") for layer in layers]
    try:
        for index, layer in enumerate(layers):
            layer.forward = wrapped(index, layer.forward)
        yield lambda: state[0]
    finally:
        for layer, own in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if own is not None:
                layer.forward = own
