"""What the files of draft heads hold besides the heads, and how many heads those are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor


def part_of(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it; all of them if none is there.

    So the heads come out of a whole model's file as well as out of their own.
    """
    inside = {k.removeprefix(prefix): t for k, t in state_dict.items() if k.startswith(prefix)}
    return inside or dict(state_dict)


def without_copies(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the target's own, which some authors save too, and rotary tables."""
    copies = ("lm_head.", "embed_tokens.", "input_embed_fn.")
    return {
        key: tensor
        for key, tensor in state_dict.items()
        if not key.startswith(copies) and "rotary_emb" not in key
    }


def count_heads(keys: Collection[str], pattern: str) -> int | None:
    """How many heads a file holds, from the number in a name; None if no name matches.

    Args:
        keys: names of its tensors.
        pattern: regular expression whose first group is the number of a head.
    """
    numbers = [int(match[1]) for key in keys if (match := re.match(pattern, key))]
    return max(numbers) + 1 if numbers else None
