"""MiniCache: plain decoding over a cache whose upper layers share their states in pairs.

Paper: MiniCache: KV Cache Compression in Depth Dimension for Large Language Models (NeurIPS 2024,
arXiv 2405.14366). The text is not the target's own.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from zoo.decoding.cache import TreeCache
from zoo.decoding.merged_cache import MiniCache
from zoo.decoding.method import Method, register_method
from zoo.decoding.methods.plain import Plain
from zoo.decoding.session import AttentionSession
from zoo.models.language._protocol import text_config


@register_method
class MiniCacheDecoding(Plain):
    """Propose nothing, and keep less.

    Any other method takes the same cache as ``generate(..., cache=MiniCache(...))``.

    Args:
        start, t, gamma, ratio, granularity, window, how, bits: see :class:`MiniCache`.
    """

    name = "minicache"
    proposer = "nobody: layers share their keys and values in pairs"
    lossless = False
    sessions = AttentionSession

    def __init__(
        self,
        start: int | None = None,
        t: float = 0.6,
        gamma: float = 0.05,
        ratio: float | None = None,
        granularity: Literal["token", "head"] = "token",
        window: int = 0,
        how: Literal["slerp", "mean", "max_norm"] = "slerp",
        bits: Literal[0, 4] = 0,
    ) -> None:
        self._settings = (start, t, gamma, ratio, granularity, window, how, bits)

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """The one setting whose text is the target's own: all states are kept apart."""
        return {"": cls(start=0, gamma=2.0)}

    def cache(self, model: nn.Module) -> TreeCache | None:
        """A cache of pairs."""
        self._cache = MiniCache(text_config(model).num_hidden_layers, *self._settings)
        return self._cache

    def report(self) -> dict[str, float]:
        """Bytes of the cache at the end, those of a plain one, and states that were not merged."""
        own, whole = self._cache.sizes()
        shares = [pair.share_kept() for pair in self._cache.pairs if pair.count]
        return {
            "cache_bytes": own,
            "plain_cache_bytes": whole,
            "compression": whole / max(own, 1),
            "share_kept_apart": sum(shares) / max(len(shares), 1),
        }
