"""Which of the errors that come out of a trainer are about its settings."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import jsonargparse
import lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException

_LIGHTNING = Path(lightning.__file__).parent
_JSONARGPARSE = Path(jsonargparse.__file__).parent
#: What Lightning raises for a wrong setting; others that come from within it are defects.
_REFUSALS = (
    *(AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError),
)
_PRECISION = re.compile(r"not implemented for|dtype|scalar type|data type|Half|BFloat16", re.I)
_UNUSED = "parameters that were not used in producing the loss"
_UNSTARTED = "Profiler must be initialized"
_LONELY = "Expected more than 1 value per channel when training"


def refused(error: Exception, settings: Any) -> str | None:
    """The reason, with what to do, if an error is about a setting of the trainer, or of the data
    such that what it does with them cannot go on.

    Args:
        error: what was raised while the trainer was built or at work.
        settings: the recipe's group ``trainer``.
    """
    # what a callback or logger says of its arguments, in the words of one type of many that failed
    while error.__cause__ is not None and _raised_in(error, _JSONARGPARSE):
        error = error.__cause__  # type: ignore[assignment]
    reason = " ".join(str(error).split())
    if _UNUSED in reason:
        return (
            "not all parameters are used in every step, which the strategy ddp does not expect: "
            "set --trainer.strategy ddp_find_unused_parameters_true"
        )
    if _LONELY in reason:
        return (
            "a batch of a single value, of which batch norm takes no variance: raise "
            "--data.init_args.batch_size, or the size of the samples"
        )
    if isinstance(error, AssertionError) and _UNSTARTED in reason:
        return "profiler: the run is too short for it to record; more steps, or simple, would do"
    if isinstance(error, _REFUSALS) and _raised_in(error, _LIGHTNING):
        if settings.accelerator in ("gpu", "cuda") and isinstance(error, MisconfigurationException):
            reason += "; --trainer.accelerator auto --trainer.devices 1 takes what is here"
        return reason
    if isinstance(error, MisconfigurationException):
        return reason
    full = (None, 32, "32", "32-true")
    in_precision = isinstance(error, RuntimeError) and _PRECISION.search(reason)
    if settings.precision not in full and in_precision:
        return f"precision is {settings.precision}: {reason}; expected such as 32-true"
    return None


def _raised_in(error: Exception, folder: Path) -> bool:
    """Whether an error was raised by the code in a folder itself, not by what that called, unless
    it asked a module for something that is not there."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    while frames and frames[-1].co_name == "__getattr__":
        frames.pop()
    return bool(frames) and folder in Path(frames[-1].co_filename).parents
