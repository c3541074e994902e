"""The weights of a task in checkpoints, and those that it starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

from zoo.checkpoints.report import some, some_pairs
from zoo.errors import ZooError

#: Before the names of EMA weights in a checkpoint.
EMA = "ema.module."

_checkpoint_follows = ContextVar("checkpoint_follows", default=False)


@contextmanager
def checkpoint_follows(yes: bool = True) -> Iterator[None]:
    """Tasks that are built inside get all their weights from a checkpoint: the files that they
    started from are not looked at, and may be gone."""
    token = _checkpoint_follows.set(yes)
    try:
        yield
    finally:
        _checkpoint_follows.reset(token)


def starts_fresh() -> bool:
    """Whether a task that is built now looks at the files that it is to start from."""
    return not _checkpoint_follows.get()


def evaluated_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that validation used, without prefix: EMA weights if there are any."""
    has_ema = any(name.startswith(EMA) for name in state_dict)
    return without_prefix(state_dict, EMA if has_ema else "model.")


def without_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }


def check_weights(given: Mapping[str, Tensor], model: nn.Module) -> None:
    """A checkpoint's weights must be those of the model, name by name and shape by shape.

    Raises:
        ZooError: they are not; the message has the first that differ.
    """
    own = model.state_dict()
    shapes = {
        name: (str(list(value.shape)), str(list(own[name].shape)))
        for name, value in given.items()
        if name in own and own[name].shape != value.shape
    }
    parts = [
        f"{what}: {listed}"
        for what, listed in (
            ("other shapes (checkpoint / model)", some_pairs(shapes, 3)),
            ("missing in the checkpoint", some((n for n in own if n not in given), 3)),
            ("unknown to the model", some((n for n in given if n not in own), 3)),
        )
        if listed
    ]
    if parts:
        raise ZooError(
            f"the checkpoint's weights do not fit {type(model).__name__}: {'; '.join(parts)}. "
            "Build the model as it was trained: model.init_args.model and model_args of its recipe"
        )
