"""Calls of recognisers that fingerprints name."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.models.speech._samba_asr_streaming import SambaStream
from zoo.models.speech.samba_asr import SambaASR


def stepwise(model: SambaASR, features: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
    """Logits of the next token [B, U, V], one token at a time."""
    cache = model.begin(*model.encoder(features, lengths))
    return torch.stack([model.step(token, cache) for token in tokens.T], dim=1)


def streamed(model: SambaASR, features: Tensor) -> list[Tensor]:
    """CTC logits of a recording that comes in pieces of 4, 1, 1 and 5 frames; the next token."""
    stream, pieces = SambaStream(model), features.split([4, 1, 1, 5])
    heard = [stream.feed(piece, last=i == 3) for i, piece in enumerate(pieces)]
    return [torch.cat(heard), model.step(torch.tensor([1]), stream.cache())]
