"""Data sets of the Hugging Face hub, or saved on disk, through ``datasets``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import ZooError


def open_dataset(path: str, name: str | None = None) -> Any:
    """All splits of a data set.

    Args:
        path: name on the hub, a folder written by ``save_to_disk``, or a folder that
            ``load_dataset`` understands.
        name: configuration of the data set, if it has several.

    Raises:
        ZooError: it cannot be opened.
    """
    import datasets

    try:
        if (Path(path) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, name)
    except Exception as error:  # the hub, the network and the file formats all raise their own
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise ZooError(
            f"data.init_args.path: cannot open data set {path!r} ({reason}); expected a name on "
            "the Hugging Face hub or a folder"
        ) from error


def rows_of_split(
    dataset: Any, path: str, setting: str, split: str | None, columns: Mapping[str, str]
) -> Any:
    """The table of a split.

    Args:
        dataset: of :func:`open_dataset`.
        path: what messages call it.
        setting: the argument that names the split, for messages.
        split: its name.
        columns: the argument that names a column -> that column, which must exist.

    Raises:
        ZooError: there is no such split or column.
    """
    if split not in dataset:
        raise ZooError(
            f"data.init_args.{setting}: {path} has no split {split!r}, it has " + ", ".join(dataset)
        )
    rows = dataset[split]
    for argument, column in columns.items():
        if column not in rows.column_names:
            raise ZooError(
                f"data.init_args.{argument}: {path} has no column {column!r}, it has "
                + ", ".join(rows.column_names)
            )
    return rows
