"""The compiled kernels behind ``zoo.ops``, and what answers where they are missing."""

from __future__ import annotations

import ast
import functools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from zoo.errors import ZooError

_PACKAGE = Path(__file__).resolve().parent.parent
_SCHEMAS = Path(__file__).with_name("schemas.inc")

#: Device type -> why its compiled kernels cannot be used; a device that is absent here has kernels.
unavailable: dict[str, str] = {}

#: Op -> what answers it in PyTorch, with the checks of its arguments.
references: dict[str, Callable] = {}

#: Op -> the same alone, which a compiler can trace.
traceable: dict[str, Callable] = {}

_library = torch.library.Library("zoo", "FRAGMENT")
_warned: set[str] = set()


def schemas() -> list[str]:
    """Schemas of all ops. C++ includes the same file, so that there is one list."""
    return list(ast.literal_eval(f"[{_SCHEMAS.read_text()}]"))


def _load(stem: str) -> str | None:
    """Load ``zoo/<stem>*.so``; the reason if that is not possible."""
    files = sorted(_PACKAGE.glob(f"{stem}.*so")) + sorted(_PACKAGE.glob(f"{stem}.*pyd"))
    if not files:
        return "not built"
    try:
        torch.ops.load_library(str(files[0]))
    except OSError as error:
        return f"{files[0].name} cannot be loaded: {error}"
    return None


def _check_version() -> None:
    """The compiled library must have the ops of this source, as an editable install may not.

    Raises:
        ZooError: it has been built from another version.
    """
    for schema in schemas():
        wanted = torch._C.parse_schema(f"zoo::{schema}")
        if wanted not in torch._C._jit_get_schemas_for_operator(wanted.name):
            raise ZooError(
                f"the compiled kernels in {_PACKAGE} are of another version, they have no such "
                f"{wanted.name}: build them again with `pip install --no-build-isolation -e .` "
                "in the source folder of ssm-zoo"
            )


def _load_all() -> None:
    if reason := _load("_C"):
        unavailable["cpu"] = reason
        for schema in schemas():
            _library.define(schema)
    else:
        _check_version()
    if reason := _load("_C_cuda"):
        unavailable["cuda"] = reason


def _warn_once(device: str) -> None:
    if device in _warned:
        return
    _warned.add(device)
    reason = unavailable.get(device, f"there are none for '{device}'")
    warnings.warn(
        f"zoo.ops answers with its PyTorch reference, correct but slow: no compiled kernels "
        f"on '{device}' ({reason}). Build them with `pip install --no-build-isolation .` "
        "in the source folder of ssm-zoo, which needs a C++ compiler.",
        stacklevel=4,
    )


def register(name: str, *, check: Callable, reference: Callable, fake: Callable) -> None:
    """Answer ``zoo::<name>`` where no compiled kernel does.

    Args:
        name: of an op in ``schemas.inc``.
        check: called with the arguments first; refuses what the kernels refuse.
        reference: answers on every device that has no compiled kernel.
        fake: answers without computing, for tensors on ``meta`` and for compilers.
    """

    def answer(*args):
        tensor = next(a for a in args if isinstance(a, torch.Tensor))
        _warn_once(tensor.device.type)
        return checked(*args)

    def checked(*args):
        check(*args)
        result = reference(*args)
        return tuple(map(_own, result)) if isinstance(result, tuple) else _own(result)

    def answer_fake(*args):
        check(*args)
        return fake(*args)

    references[name], traceable[name] = checked, reference
    _library.impl(name, answer, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zoo::{name}", answer_fake)


def recording(reference: Callable) -> Callable:
    """A reference that differentiates something, on a thread of its own: inside an op, autograd
    records nothing on the thread that called it.
    """

    @functools.wraps(reference)
    def elsewhere(*args):
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(reference, *args).result()

    return elsewhere


def _own(result):
    """Not as a view: autograd would not let the output of an op be changed in place then."""
    if result is None or not result._is_view():
        return result
    storage = result.untyped_storage(), result.storage_offset(), result.shape, result.stride()
    return result.new_empty(0).set_(*storage)


_load_all()
