"""The model that is decoded: what is inside a wrapper, its mode, and an encoder-decoder's half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from zoo.errors import ZooError
from zoo.models.language._split_decoder import cache_name


def unwrapped(model: nn.Module) -> nn.Module:
    """The language model inside what others put around it.

    A model that ``torch.compile`` wraps is run as it is, as transformers' own ``generate`` does:
    trees and caches have a new shape at every step. The layers of an adapter are inside the model
    and stay at work.

    Raises:
        ZooError: for a wrapper that does more than hand on its arguments.
    """
    while True:
        if hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            model = _without_peft(model)
        else:
            break
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ZooError(
            f"a {type(model).__name__} was given, expected a language model of transformers or of "
            "this package, with its config"
        )
    return model


def _without_peft(model: nn.Module) -> nn.Module:
    inner, configs = model.get_base_model(), model.peft_config.values()
    same = not any(getattr(config, "is_prompt_learning", False) for config in configs)
    if same:
        tokens = torch.tensor([[1, 2, 3]], device=next(model.parameters()).device)
        with eval_mode(model), torch.no_grad():
            outer, own = (m(input_ids=tokens, use_cache=False).logits for m in (model, inner))
        same = outer.shape == own.shape and torch.allclose(outer, own, rtol=1e-4, atol=1e-5)
    if not same:
        kinds = ", ".join(sorted({type(config).__name__ for config in configs}))
        raise ZooError(
            f"the adapter ({kinds}) works outside of the model's layers, where decoding does not "
            "follow it: decode the model that merge_and_unload() returns, or train an adapter that "
            "has it, such as LoRA, which also runs unmerged"
        )
    return inner


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Without dropout for a while; afterwards every module is in the mode it was in."""
    training = [m for module in modules for m in module.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


class Source:
    """What the encoder of an encoder-decoder reads: int64 texts, one for each sequence."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = [list(text) for text in texts]


class DecoderSide(nn.Module):
    """The decoder of an encoder-decoder (T5, BART), which is called like a causal LM.

    The encoder reads once, each text without padding.

    Args:
        whole: the model.
        source: what its encoder reads.
    """

    #: Calls say which rows of the batch they are for.
    reads_by_row = True

    def __init__(self, whole: nn.Module, source: Source) -> None:
        super().__init__()
        self.whole, self.config = whole, whole.config
        self._cache_name = cache_name(whole.forward)
        device = next(whole.parameters()).device
        self._texts = [torch.tensor([text], device=device) for text in source.texts]
        encoder, states = whole.get_encoder(), []
        for ids in self._texts:
            states.append(encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0])
        self.states = pad_sequence(states, batch_first=True)  # [B, S, d]
        lengths = torch.tensor([len(text) for text in source.texts], device=device)
        slots = torch.arange(self.states.shape[1], device=device)
        self.mask = (slots < lengths[:, None]).long()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's, which most models share with the encoder."""
        find = getattr(self.whole.get_decoder(), "get_input_embeddings", None)
        return (find or self.whole.get_input_embeddings)()

    def get_output_embeddings(self) -> nn.Module:
        """The model's."""
        return self.whole.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        rows: Sequence[int],
        cache: Any = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
    ) -> SimpleNamespace:
        """Read ``[n, t]`` further tokens of n texts.

        Args:
            input_ids: int64 ``[n, t]``.
            rows: which of the encoder's texts each of them belongs to; counted round, so that a
                trial of two texts can be made on a batch of one.
            cache: what was read before; it is changed.
            use_cache: False lets the whole model read the sources again, as its authors meant it.
            output_hidden_states: whether to return the decoder's.
        """
        places = [row % len(self.states) for row in rows]
        if not use_cache:
            return self._full(input_ids, places, output_hidden_states)
        index = torch.tensor(places, device=self.states.device)
        out = self.whole(
            encoder_outputs=BaseModelOutput(self.states[index]),
            attention_mask=self.mask[index],
            decoder_input_ids=input_ids,
            use_cache=True,
            output_hidden_states=output_hidden_states,
            **{self._cache_name: cache},
        )
        return SimpleNamespace(
            logits=out.logits,
            hidden_states=out.decoder_hidden_states,
            cache=getattr(out, self._cache_name),
        )

    def _full(self, input_ids: Tensor, places: list[int], hidden: bool) -> SimpleNamespace:
        outs = [
            self.whole(
                input_ids=self._texts[place],
                decoder_input_ids=ids[None],
                use_cache=False,
                output_hidden_states=hidden,
            )
            for place, ids in zip(places, input_ids, strict=True)
        ]
        states = None
        if hidden:
            layers = zip(*(out.decoder_hidden_states for out in outs), strict=True)
            states = [torch.cat(layer) for layer in layers]
        return SimpleNamespace(logits=torch.cat([out.logits for out in outs]), hidden_states=states)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model's decoder writes about what its encoder reads."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def first_token(model: nn.Module, settings: Any) -> int:
    """The token that an encoder-decoder's own text begins with.

    Args:
        model: the encoder-decoder.
        settings: of the generation, which go before the model's configuration.

    Raises:
        ZooError: if neither names one.
    """
    for config in (settings, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(config, name, None)
            if isinstance(token, int):
                return token
    raise ZooError(
        f"{type(model).__name__} does not say what its texts begin with: set "
        "model.generation_config.decoder_start_token_id"
    )


def text_model(model: nn.Module, source: Source | None) -> nn.Module:
    """A model that continues texts: the model itself, or the decoder of an encoder-decoder.

    Raises:
        ZooError: if it is an encoder-decoder and there is nothing for its encoder.
    """
    if not is_encoder_decoder(model):
        return model
    if source is None:
        raise ZooError(
            f"the draft model {type(model).__name__} is an encoder-decoder and the target is none: "
            "both need the same kind of input"
        )
    return DecoderSide(model, source)
