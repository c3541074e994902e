"""Training a part of a model, named by patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn

from zoo.errors import ZooError


def train_only(model: nn.Module, patterns: Sequence[str], required: bool = True) -> list[str]:
    """Freeze all parameters but those whose names match a pattern such as ``*.attention.g_proj.*``.

    Args:
        model: is changed.
        patterns: of the shell.
        required: whether each pattern must match something.

    Returns:
        the names of the parameters that learn.

    Raises:
        ZooError: if nothing, or one required pattern, matches.
    """
    names = [name for name, _ in model.named_parameters()]
    idle = [p for p in patterns if not any(fnmatch(name, p) for name in names)]
    chosen = [name for name in names if any(fnmatch(name, p) for p in patterns)]
    if not chosen or (required and idle):
        raise ZooError(
            f"trainable: no parameter of {type(model).__name__} matches "
            f"{', '.join(idle or patterns)}, expected names such as {names[len(names) // 2]}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in set(chosen))
    return chosen
