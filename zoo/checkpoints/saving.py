"""Writing weights: safetensors with a note of what they are."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zoo.atomic import part_of, sweep
from zoo.errors import ZooError


def save_state_dict(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] = {}
) -> None:
    """Write a safetensors file; the old one stays until the new one is complete.

    Tensors that are one (tied weights) are stored once; :func:`zoo.checkpoints.read_state_dict`
    gives both names back, and a reader that does not know the header field ``shared`` sees one.

    Args:
        tensors: name -> tensor, of any device and strides.
        path: the file; its folder is made if it is missing.
        metadata: text fields for the header.

    Raises:
        ZooError: if the file cannot be written.
    """
    target = Path(path)
    first: dict[tuple[object, ...], str] = {}
    shared: dict[str, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            shared[name] = first[place]
    stored = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if name not in shared
    }
    # Views of one memory would be refused by the format.
    seen: set[int] = set()
    for name, tensor in stored.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            stored[name] = tensor.clone()
        seen.add(memory)
    header = {**metadata, "format": "pt"}
    if shared:
        header["shared"] = json.dumps(shared)
    partial = part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        save_file(stored, partial, metadata=header)
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise ZooError(f"{target} cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
