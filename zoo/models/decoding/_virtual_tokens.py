"""Tokens that are no tokens: numbers behind the vocabulary, each of which stands for a vector.

So whatever reads tokens - a tree, a cache, a model that copies its states - reads learned
embeddings too, and nothing else of it need know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def virtual_tokens(model: nn.Module, first: int, rows: Tensor) -> Iterator[None]:
    """Let a language model read ``first + i`` as ``rows[i]`` for a while.

    Args:
        model: has ``get_input_embeddings``.
        first: the first number that is no token.
        rows: ``[n, d]``, as they come out of the embedding layer; gradients go to them.
    """
    embedding = model.get_input_embeddings()
    wanted: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next(iter(kwargs)) if not args else None
        ids = kwargs[name] if name is not None else args[0]
        wanted.append(ids - first)
        ids = ids.masked_fill(ids >= first, 0)
        return ((ids, *args[1:]), kwargs) if name is None else (args, kwargs | {name: ids})

    def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        places = wanted.pop()[..., None]
        if not bool((places >= 0).any()):
            return out
        return torch.where(places >= 0, rows.to(out.dtype)[places[..., 0].clamp_min(0)], out)

    hooks = [
        embedding.register_forward_pre_hook(before, with_kwargs=True),
        embedding.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
