"""A key-value cache whose upper layers share their states in pairs.

Paper: MiniCache: KV Cache Compression in Depth Dimension for Large Language Models (NeurIPS 2024,
arXiv 2405.14366). No code was published; which side of the threshold is kept is the one that makes
sense, the states that differ most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from zoo.decoding.cache import TreeCache, TreeCacheLayer
from zoo.errors import ZooError

#: Cosines are kept so far from 1 and -1; opposed vectors have no direction between them.
EDGE = 1e-6
#: Above any cosine.
ABOVE = 2.0
#: Numbers that share a scale where directions are quantised.
GROUP = 32


def slerp(lower: Tensor, upper: Tensor, t: float) -> Tensor:
    """The unit vector at ``t`` of the way from one unit vector to another, ``[..., E]``, along the
    circle through both; of nearly equal ones along the line."""
    cosine = (lower * upper).sum(-1, keepdim=True)
    angle = cosine.clamp(-1 + EDGE, 1 - EDGE).acos()
    straight = cosine > 1 - EDGE
    first = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / angle.sin())
    second = torch.where(straight, t, (t * angle).sin() / angle.sin())
    between = first * lower + second * upper
    return torch.where(straight, torch.nn.functional.normalize(between, dim=-1), between)


class Quantised(NamedTuple):
    """Numbers of four bits.

    Attributes:
        codes: uint8 ``[..., E / 2]``, two numbers each.
        scale, least: ``[..., E / group]``.
    """

    codes: Tensor
    scale: Tensor
    least: Tensor


def quantise(values: Tensor, group: int = GROUP) -> Quantised:
    """Round ``[..., E]`` to 16 steps between the least and the greatest of each group along E."""
    parts = values.unflatten(-1, (-1, min(group, values.shape[-1])))
    least, greatest = parts.amin(-1), parts.amax(-1)
    scale = ((greatest - least) / 15).clamp_min(1e-8)
    codes = ((parts - least[..., None]) / scale[..., None]).round().clamp(0, 15)
    pairs = codes.flatten(-2).to(torch.uint8).unflatten(-1, (-1, 2))
    return Quantised(pairs[..., 0] | (pairs[..., 1] << 4), scale, least)


def dequantise(packed: Quantised) -> Tensor:
    """The rounded numbers ``[..., E]``."""
    codes = torch.stack([packed.codes & 15, packed.codes >> 4], dim=-1).flatten(-2)
    parts = codes.unflatten(-1, (packed.scale.shape[-1], -1)).to(packed.scale.dtype)
    return (parts * packed.scale[..., None] + packed.least[..., None]).flatten(-2)


class Merged(NamedTuple):
    """Keys or values of two layers.

    Attributes:
        direction: ``[B, G, T, E]``, shared by both; G heads of E numbers, or one vector of all.
        magnitudes: ``[2, B, G, T]``, of the lower and the upper layer.
        index: int32 ``[n]``, of the states that are kept apart: ``(t B + b) G + g``.
        kept: ``[2, n, E]``, these.
    """

    direction: Tensor | Quantised
    magnitudes: Tensor
    index: Tensor
    kept: Tensor


def merge(
    lower: Tensor,
    upper: Tensor,
    limit: Tensor,
    t: float = 0.6,
    how: Literal["slerp", "mean", "max_norm"] = "slerp",
    apart: Tensor | None = None,
) -> Merged:
    """Merge the states of two layers, ``[B, G, T, E]`` each.

    Args:
        lower, upper: the states.
        limit: ``[B, G]``, states whose cosine is below it are kept as they are.
        t: part of the upper layer.
        how: by which direction and lengths both are stood for: ``slerp`` with a length of their
            own; the ``mean`` of both; or the one of greater length, ``max_norm``.
        apart: bool ``[T]``, states that are kept in any case.
    """
    units, lengths = [], []
    for states in (lower.float(), upper.float()):
        lengths.append(states.norm(dim=-1))
        units.append(states / lengths[-1].clamp_min(1e-12)[..., None])
    cosine = (units[0] * units[1]).sum(-1)  # [B, G, T]
    if how == "slerp":
        direction, magnitudes = slerp(*units, t), torch.stack(lengths)
    else:
        direction = (lower.float() + upper.float()) / 2
        if how == "max_norm":
            longer = (lengths[1] > lengths[0])[..., None]
            direction = torch.where(longer, upper.float(), lower.float())
        magnitudes = torch.ones_like(torch.stack(lengths))
    keep = (cosine < limit[..., None]) | (cosine < -1 + EDGE)
    if apart is not None:
        keep = keep | apart
    order = keep.permute(2, 0, 1)  # [T, B, G]
    index = order.flatten().nonzero()[:, 0].int()
    kept = torch.stack([states.permute(2, 0, 1, 3)[order] for states in (lower, upper)])
    return Merged(direction.to(lower.dtype), magnitudes.to(lower.dtype), index, kept)


def restore(merged: Merged, side: int) -> Tensor:
    """The states ``[B, G, T, E]`` of the lower (0) or the upper (1) layer."""
    direction = merged.direction
    if isinstance(direction, Quantised):
        direction = dequantise(direction)
    states = direction * merged.magnitudes[side][..., None]
    rows = states.permute(2, 0, 1, 3).flatten(0, 2).clone()  # [T B G, E]
    rows[merged.index.long()] = merged.kept[side]
    batch, groups, length, width = states.shape
    return rows.view(length, batch, groups, width).permute(1, 2, 0, 3)


def limits(lower: Tensor, upper: Tensor, gamma: float, ratio: float | None = None) -> Tensor:
    """Cosines ``[B, G]`` below which states ``[B, G, T, E]`` of a prompt are kept as they are.

    Args:
        lower, upper: the states.
        gamma: share of the way from the least cosine to the greatest; above 1 all are kept, later
            ones too.
        ratio: keep this share of the states, those of the greatest angles, instead.
    """
    cosine = torch.nn.functional.cosine_similarity(lower.float(), upper.float(), dim=-1)
    if ratio is None:
        least, greatest = cosine.amin(-1), cosine.amax(-1)
        return least + gamma * (greatest - least) if gamma <= 1 else torch.full_like(least, ABOVE)
    count = round(ratio * cosine.shape[-1])
    ordered = cosine.sort(dim=-1).values
    return torch.cat([ordered, torch.full_like(ordered[..., :1], ABOVE)], dim=-1)[..., count]


class _Pair:
    """What two layers share: keys, then values."""

    def __init__(self, cache: MiniCache) -> None:
        self.settings, self.count = cache, 0
        self.parts: list[Merged | None] = [None, None]
        self.limits: list[Tensor | None] = [None, None]

    def absorb(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> None:
        """Merge further states ``[B, H, n, D]`` of both layers, keys and values each."""
        if [t.shape for t in lower] != [t.shape for t in upper]:
            raise ZooError(
                f"two layers that MiniCache merges have states of {[*lower[0].shape]} and "
                f"{[*upper[0].shape]}: expected equal heads; start above them, or take plain"
            )
        own, first = self.settings, self.count == 0
        self.heads, length = lower[0].shape[1], lower[0].shape[2]
        # the first token, which all attend to, is never merged
        apart = torch.arange(length, device=lower[0].device) == (0 if first else -1)
        for i, pair in enumerate(zip(lower, upper, strict=True)):
            a, b = (self._split(states) for states in pair)
            if self.limits[i] is None:
                self.limits[i] = limits(a, b, own.gamma, own.ratio)
            made = merge(a, b, self.limits[i], own.t, own.how, apart)  # type: ignore[arg-type]
            if own.bits == 4:
                made = made._replace(direction=quantise(made.direction))  # type: ignore[arg-type]
            self.parts[i] = made if first else self._joined(self.parts[i], made)
        self.count += length

    def _split(self, states: Tensor) -> Tensor:
        if self.settings.granularity == "head":
            return states
        return states.transpose(1, 2).flatten(2)[:, None]  # [B, 1, T, H D]

    def _joined(self, before: Any, new: Merged) -> Merged:
        batch, groups = new.magnitudes.shape[1:3]
        if isinstance(new.direction, Quantised):
            parts = zip(before.direction, new.direction, strict=True)
            direction: Any = Quantised(*(torch.cat(each, dim=2) for each in parts))
        else:
            direction = torch.cat([before.direction, new.direction], dim=2)
        return Merged(
            direction,
            torch.cat([before.magnitudes, new.magnitudes], dim=3),
            torch.cat([before.index, new.index + self.count * batch * groups]),
            torch.cat([before.kept, new.kept], dim=1),
        )

    def restored(self, side: int) -> list[Tensor]:
        """Keys and values of one layer, ``[B, H, count, D]``."""
        found = []
        for part in self.parts:
            states = restore(part, side)  # type: ignore[arg-type]
            if self.settings.granularity == "token":
                states = states[:, 0].unflatten(-1, (self.heads, -1)).transpose(1, 2)
            found.append(states)
        return found

    def select(self, rows: Tensor) -> None:
        """Keep these sequences."""
        for i, part in enumerate(self.parts):
            if part is None:
                continue
            direction = part.direction
            if isinstance(direction, Quantised):
                direction = Quantised(*(t[rows] for t in direction))
            else:
                direction = direction[rows]
            batch, groups = part.magnitudes.shape[1:3]
            place, group = part.index // groups, part.index % groups
            time, row = place // batch, place % batch
            # where each row of before stands now
            now = torch.full((batch,), -1, dtype=torch.int32, device=rows.device)
            now[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
            stays = now[row.long()] >= 0
            index = ((time * len(rows) + now[row.long()]) * groups + group)[stays]
            self.parts[i] = Merged(direction, part.magnitudes[:, rows], index, part.kept[:, stays])
            self.limits[i] = self.limits[i][rows]  # type: ignore[index]

    def tensors(self) -> list[Tensor]:
        """All that is stored."""
        found: list[Tensor] = []
        for part in self.parts:
            if part is not None:
                directions = part.direction
                found += [*directions] if isinstance(directions, Quantised) else [directions]
                found += part[1:]
        return found

    def share_kept(self) -> float:
        """Share of the states that are kept apart."""
        parts = [part for part in self.parts if part is not None]
        whole = sum(part.magnitudes[0].numel() for part in parts)
        return sum(len(part.index) for part in parts) / max(whole, 1)


class _PairedLayer(TreeCacheLayer):
    """One layer of a pair: behind what is merged stand states as they are."""

    def __init__(self, pair: _Pair, side: int) -> None:
        super().__init__()
        self.pair, self.side = pair, side

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, n, D]`` and return all keys and values so far, merged ones restored."""
        keys, values = super().update(key_states, value_states)
        if not self.pair.count:
            return keys, values
        before = self.pair.restored(self.side)
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Give away the first slots that are not merged."""
        keys, values = (buffer[:, :, : self.length] for buffer in self._buffers or ())
        rest = [keys[:, :, count:], values[:, :, count:]]
        self._buffers, self.length = None, 0
        if rest[0].shape[2]:
            super().update(rest[0], rest[1])
        return keys[:, :, :count], values[:, :, :count]

    def commit(self, lengths: Tensor, start: Tensor, path: Tensor, count: Tensor, end: int) -> None:
        """Keep the nodes of ``path``, which are not merged yet."""
        before = self.pair.count
        super().commit(lengths - before, start - before, path, count, end - before)

    def select(self, rows: Tensor, end: int) -> None:
        """Keep these sequences; the pair keeps its own."""
        super().select(rows, end - self.pair.count)

    def get_seq_length(self, *args: Any) -> int:
        """Slots in use."""
        return self.pair.count + self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Keys that the next queries meet, and the slot of the first."""
        size, first = super().get_mask_sizes(query_length)
        return self.pair.count + size, first


class MiniCache(TreeCache):
    """From the middle of the model on, two layers share unit vectors and have lengths of their own.

    Slots that all sequences of a batch have decided are merged after each pass; a sequence's open
    tree, and what the shortest sequence has not reached, stand as they are.

    Args:
        layers: of the model.
        start: S, layers below it keep their own states; by default half of them.
        t: part of the upper layer in a shared direction.
        gamma: retention; see :func:`limits`. The limits are those of the prompt.
        ratio: keep this share of a prompt's states instead.
        granularity: ``token``: a vector of all heads of a token, as the paper counts its memory;
            ``head``: one of each.
        window: newest tokens that are not merged yet.
        how: see :func:`merge`.
        bits: 4: directions are stored in four bits; 0: as they are.
    """

    def __init__(
        self,
        layers: int,
        start: int | None = None,
        t: float = 0.6,
        gamma: float = 0.05,
        ratio: float | None = None,
        granularity: Literal["token", "head"] = "token",
        window: int = 0,
        how: Literal["slerp", "mean", "max_norm"] = "slerp",
        bits: Literal[0, 4] = 0,
    ) -> None:
        first = layers // 2 if start is None else start
        if not 0 <= first <= layers:
            raise ZooError(f"start is {start}: expected 0 to {layers}, the number of layers")
        if not 0 <= t <= 1 or gamma < 0 or window < 0 or not 0 <= (ratio or 0) <= 1:
            raise ZooError(
                f"t {t}, gamma {gamma}, ratio {ratio}, window {window}: expected t and ratio from "
                "0 to 1, gamma and window 0 or more"
            )
        if granularity not in ("token", "head") or bits not in (0, 4):
            raise ZooError(f"granularity {granularity!r}, bits {bits}: token or head, and 0 or 4")
        if how not in ("slerp", "mean", "max_norm"):
            raise ZooError(f"how is {how!r}: expected slerp, mean or max_norm")
        self.t, self.gamma, self.ratio = t, gamma, ratio
        self.granularity, self.window, self.how, self.bits = granularity, window, how, bits
        self.pairs = [_Pair(self) for _ in range((layers - first) // 2)]
        upper = [_PairedLayer(pair, side) for pair in self.pairs for side in (0, 1)]
        below = [TreeCacheLayer() for _ in range(layers - len(upper))]
        # of an odd number of layers the lowest above the start stands alone
        super(TreeCache, self).__init__(layers=[*below, *upper])
        self._paired = [(upper[i], upper[i + 1]) for i in range(0, len(upper), 2)]

    def settle(self, length: int) -> None:
        """Merge what stands in the first ``length`` slots of every sequence."""
        for pair, (lower, upper) in zip(self.pairs, self._paired, strict=True):
            if (count := length - self.window - pair.count) > 0:
                pair.absorb(lower.take(count), upper.take(count))

    def commit(self, lengths: Tensor, start: int, path: Tensor, count: Tensor, end: int) -> None:
        """Keep the accepted nodes, and merge."""
        super().commit(lengths, start, path, count, end)
        self.settle(int((lengths + count).min()))

    def select(self, rows: Tensor, end: int) -> None:
        """Keep these sequences."""
        super().select(rows, end)
        for pair in self.pairs:
            pair.select(rows)

    def sizes(self) -> tuple[int, int]:
        """Bytes in use, and those of the same slots in a plain cache."""
        own = whole = 0
        for layer in self.layers:
            pair = getattr(layer, "pair", None)
            slots = layer.get_seq_length()
            for buffer in layer._buffers or ():
                each = buffer[:, :, :1].numel() * buffer.element_size()
                own += each * layer.length
                whole += each * slots
            if pair is not None and pair.count and not layer._buffers:
                states = pair.restored(layer.side)
                whole += sum(t.numel() * t.element_size() for t in states)
        own += sum(t.numel() * t.element_size() for pair in self.pairs for t in pair.tensors())
        return own, whole
