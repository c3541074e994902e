"""A trained model as a folder of the Hugging Face hub: weights, settings, a card of the run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zoo.atomic import part_folder, place
from zoo.checkpoints import read_state_dict, save_state_dict
from zoo.checkpoints.sources import locate
from zoo.errors import ZooError
from zoo.runs.metrics import last_scores
from zoo.tasks._weights import evaluated_weights

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
#: What a checkpoint keeps of a run for going on with it.
_OF_TRAINING = frozenset(
    {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks",
     "optimizer_states", "lr_schedulers", "hyper_parameters", "hparams_name", "datamodule"}
)  # fmt: skip
_PICTURE_LIMIT = 8


def write_weights(checkpoint: Mapping[str, Any], path: Path) -> None:
    """The evaluated weights of a run, under the model's own names."""
    note = {"recipe": checkpoint["zoo"]["recipe"], "name": checkpoint["zoo"]["name"]}
    save_state_dict(
        evaluated_weights(checkpoint["state_dict"]), path, {"zoo_run": json.dumps(note)}
    )


def write_hub_folder(checkpoint: Mapping[str, Any], source: Path, folder: Path) -> None:
    """Write weights, ``config.json`` and a card into a new folder.

    What a checkpoint holds besides and is no text, as plugins of the trainer keep their state,
    serves training alone and is left out.

    Args:
        checkpoint: of a run.
        source: its file; the card takes scores and pictures from the run's folder.
        folder: to make; all of it or nothing.

    Raises:
        ZooError: the folder cannot be made.
    """
    settings = {
        name: value
        for name, value in checkpoint.items()
        if name not in _OF_TRAINING and not name.startswith("_")
    }
    kept = {name: value for name, value in settings.items() if _is_text(value)}
    with part_folder("--output", folder) as part:
        write_weights(checkpoint, part / WEIGHTS)
        (part / CONFIG).write_text(json.dumps(kept, indent=1) + "\n")
        run = source.parent.parent
        pictures = sorted(run.glob("*.png"))[:_PICTURE_LIMIT]
        for picture in pictures:
            shutil.copyfile(picture, part / picture.name)
        (part / CARD).write_text(_card(checkpoint["zoo"], run, [p.name for p in pictures]))
        place(part, folder)


def read_hub_folder(source: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What :func:`write_hub_folder` wrote, as the checkpoint that it was made from.

    Args:
        source: the folder, or ``hf://owner/name[@revision]``.

    Returns:
        the checkpoint; None if it is a folder of something else.

    Raises:
        ZooError: it is not there, or broken.
    """
    text = os.fspath(source)
    if text.startswith("hf://"):
        address, at, revision = text.partition("@")
        config = locate(f"{address}/{CONFIG}{at}{revision}").files[0]
        weights: Any = f"{address}/{WEIGHTS}{at}{revision}"
    else:
        config, weights = Path(source, CONFIG), Path(source, WEIGHTS)
        if not (config.is_file() and weights.is_file()):
            return None
    try:
        settings = json.loads(config.read_text())
        known = {"recipe", "name"} <= set(settings["zoo"])
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise ZooError(
            f"{source}: {CONFIG} does not hold the recipe of a run, expected what zoo export "
            "--to hf writes; for weights alone use --pretrained"
        )
    state = {f"model.{name}": tensor for name, tensor in read_state_dict(weights).items()}
    return {**settings, "state_dict": state}


def push(folder: Path, repository: str) -> str:
    """Put a folder on the hub, as who is logged in; returns the repository's name.

    Raises:
        ZooError: the hub does not take it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ZooError(f"--push {repository}: expected OWNER/NAME")
    try:
        huggingface_hub.create_repo(repository, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=repository, folder_path=folder)
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ZooError(
            f"{repository} cannot be pushed: {reason}; {folder} is complete: log in with "
            "`hf auth login` and push it again"
        ) from None
    return repository


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _card(header: Mapping[str, str], run: Path, pictures: list[str]) -> str:
    """What it is, what it scored, how it is used."""
    recipe = yaml.safe_load(header["recipe"])
    model = recipe["model"]["init_args"].get("model", recipe["model"]["class_path"])
    lines = [
        "---", "library_name: zoo", "tags:", f"- {header['name'].partition('/')[0]}", "---", "",
        f"# {header['name']}", "",
        f"`{model}`, trained by the recipe below.", "",
        "```python", "import zoo", "", 'model = zoo.load("hf://OWNER/NAME")  # or this folder',
        "print(model.predict(FILE))", "```", "",
    ]  # fmt: skip
    found = last_scores(run / "metrics.csv")
    split = next((split for split in ("test", "val") if found[split]), None)
    if split is not None:
        lines += ["| score | value |", "| --- | ---: |"]
        lines += [f"| {split}/{name} | {value} |" for name, value in found[split].items()]
        lines.append("")
    for name in pictures:
        lines += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})", ""]
    lines += ["```yaml", header["recipe"].rstrip(), "```", ""]
    return "\n".join(lines)
