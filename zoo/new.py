"""``python -m zoo.new TASK DATA``: look at one's own data, and write a recipe that is ready to run.

What the recipe needs of the data (classes, channels, sizes, letters) is found in them; then the
recipe is looked at as ``zoo check`` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.arguments import dump_yaml
from zoo.atomic import write_atomically
from zoo.command import command
from zoo.errors import ZooError, suggest
from zoo.show import say

#: So many updates a recipe takes at least, and epochs within these.
UPDATES, FEWEST_EPOCHS, MOST_EPOCHS = 1500, 5, 100
#: Files that are opened to find a size.
_LOOKED_AT = 50


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo new",
        allow_abbrev=False,
        description="Look at data of your own and write a recipe for them, ready for zoo train.",
        epilog="Tasks: " + "; ".join(f"{name}: {writer.__doc__}" for name, writer in TASKS.items()),
    )
    parser.add_argument("task", help=", ".join(TASKS))
    parser.add_argument("data", type=Path, help="folder or file, see docs/data.md")
    parser.add_argument(
        "--output", type=Path, metavar="RECIPE", help="file to write (default <name of DATA>.yaml)"
    )
    parser.add_argument(
        "--pretrained",
        metavar="FILE",
        help="weights to start from (file, folder, URL, hf://owner/name): the published size of "
        "the model is fine-tuned; without, a small one learns from nothing",
    )
    return parser


@command
def main(argv: list[str]) -> int:
    """Write a recipe as the command line says, and check it."""
    arguments = _arguments().parse_args(argv)
    if arguments.task not in TASKS:
        raise ZooError(f"there is no task {arguments.task!r}; {suggest(arguments.task, TASKS)}")
    if not arguments.data.exists():
        raise ZooError(f"{arguments.data} does not exist, expected a folder or file of data")
    output = arguments.output or Path(f"{arguments.data.resolve().stem}.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise ZooError(f"--output: {output} must end in .yaml")
    if output.exists():
        raise ZooError(f"{output} exists already: name another file with --output")

    from zoo.check import main as check
    from zoo.cli import quiet

    quiet()
    recipe = TASKS[arguments.task](arguments.data, arguments.pretrained)
    head = f"# {arguments.task} of {arguments.data}; zoo check {output} says what is in it.\n"
    write_atomically(output, (head + dump_yaml(recipe)).encode())
    say(f"{output} is written")
    return check([str(output)])


def _recipe(
    task: str, model: dict[str, Any], data: str, init_args: dict[str, Any], samples: int, lr: float
) -> dict[str, Any]:
    """A recipe of about ``UPDATES`` updates that stops when validation gets no better."""
    import torch

    import zoo.tasks

    kind = getattr(zoo.tasks, task)
    batch = init_args["batch_size"]
    updates = max(1, samples // batch)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, -(-UPDATES // updates)))
    stop = {"monitor": kind.monitor, "mode": kind.monitor_mode, "patience": max(5, epochs // 5)}
    return {
        "seed_everything": 0,
        "model": {
            "class_path": f"zoo.tasks.{task}",
            "init_args": model
            | {
                "optimizer": {
                    "opt": "adamw",
                    "lr": lr,
                    "lr_batch_size": None,
                    "weight_decay": 0.05,
                },
                "schedule": {"sched": "cosine", "warmup_epochs": 0.5, "min_lr": 0.0},
            },
        },
        "data": {"class_path": f"zoo.data.{data}", "init_args": init_args},
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "auto",
            "devices": 1,
            "precision": "bf16-mixed" if torch.cuda.is_available() else "32-true",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": min(50, updates),
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop}
            ],
        },
    }


def _rate(lr: float, pretrained: str | None) -> float:
    """Learning rate; what has learnt already is changed a little."""
    return lr / 10 if pretrained else lr


def _batch_size(samples: int, most: int) -> int:
    """A power of two of which an epoch has ten, at most ``most``."""
    size = 2
    while size * 2 <= most and size * 20 <= samples:
        size *= 2
    return size


def _side(files: list[Path], most: int) -> int:
    """A multiple of 32 near the median of the shorter sides."""
    from zoo.data.formats.pictures import read_picture

    some = files[:: max(1, len(files) // _LOOKED_AT)]
    sides = sorted(min(read_picture(path).size) for path in some)
    return max(32, min(most, round(sides[len(sides) // 2] / 32) * 32))


def classification(path: Path, pretrained: str | None) -> dict[str, Any]:
    """a folder of pictures for each class, with or without train, val and test"""
    from zoo.data import ImageFolder

    data = ImageFolder(str(path))
    source: Any = data.source("train")
    side = 224 if pretrained else _side([file for file, _ in source.files], 128)
    small = {} if pretrained else {"model_args": {"depths": [1, 1, 2, 1], "dims": 32}}
    batch = _batch_size(len(source), 32)
    return _recipe(
        "ImageClassification",
        {
            "model": "vmamba_tiny",
            "num_classes": len(data.class_names),
            **small,
            "pretrained": pretrained,
        },
        "ImageFolder",
        {
            "root": str(path),
            "image_size": side,
            "augmentation": {"hflip": 0.5, "scale": [0.5, 1.0], "color_jitter": 0.3},
            "batch_size": batch,
        },
        len(source),
        _rate(2e-3, pretrained),
    )


def segmentation(path: Path, pretrained: str | None) -> dict[str, Any]:
    """pictures with masks (images/, masks/), or NIfTI volumes (imagesTr/, labelsTr/)"""
    from zoo.data import NiftiVolumes, PictureMasks

    if (path / "imagesTr").is_dir():
        volumes = NiftiVolumes(str(path))
        samples = len(volumes.source("train"))
        small = {} if pretrained else {"widths": [16, 32, 64], "window": 4, "head_dim": 16}
        return _recipe(
            "Segmentation",
            {
                "model": "wau_unet",
                "num_classes": len(volumes.class_names),
                "model_args": {"in_chans": volumes.in_chans, "upsampler": "wau", **small},
                "loss": {"base": "ce_dice"},
                "pretrained": pretrained,
            },
            "NiftiVolumes",
            {
                "root": str(path),
                "image_size": 224 if pretrained else 128,
                "batch_size": _batch_size(samples, 16),
            },
            samples,
            _rate(3e-3, pretrained),
        )
    data = PictureMasks(str(path))
    source: Any = data.source("train")
    small = {
        "backbone_args": {"dims": 32, "depths": [1, 1, 2, 1]},
        "channels": 64,
        "aux_channels": 32,
    }
    return _recipe(
        "Segmentation",
        {
            "model": "upernet_vmamba_tiny",
            "num_classes": len(data.class_names),
            "model_args": {} if pretrained else small,
            "loss": {"base": "ce_dice", "aux_weight": 0.4},
            "pretrained": pretrained,
        },
        "PictureMasks",
        {
            "root": str(path),
            "image_size": 512 if pretrained else _side([p for p, _ in source.items], 192),
            "batch_size": _batch_size(len(source), 16),
        },
        len(source),
        _rate(2e-3, pretrained),
    )


def change(path: Path, pretrained: str | None) -> dict[str, Any]:
    """pairs of pictures with a map of what changed (A/, B/, label/)"""
    from zoo.data import LEVIRCDPlus

    data = LEVIRCDPlus(str(path))
    source = data.source("train")
    side = min(source[0]["pre"].shape[-2:])
    small = {
        "dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "decoder_width": 16, "norm_layer": "bn",
        "drop_path_rate": 0.0,
    }  # fmt: skip
    return _recipe(
        "BinaryChangeDetection",
        {
            "model": "mambabcd_tiny",
            "model_args": {} if pretrained else small,
            "tile": 256,
            "overlap": 64,
            "pretrained": pretrained,
        },
        "LEVIRCDPlus",
        {
            "root": str(path),
            "crop": max(32, min(256, side // 32 * 32)),
            "turn": "any",
            "batch_size": _batch_size(len(source), 8),
            "eval_batch_size": 1,
        },
        len(source),
        _rate(5e-3, pretrained),
    )


def speech(path: Path, pretrained: str | None) -> dict[str, Any]:
    """a table of recordings and transcripts (CSV, TSV, JSON lines)"""
    from zoo.data import SpeechManifest
    from zoo.data.formats.transcripts import ENGLISH, Tokens

    data = SpeechManifest(str(path))
    letters = {c for split in ("train", "val", "test") for u in data.source(split) for c in u.text}
    alphabet = None if letters <= set(ENGLISH) else "".join(sorted(letters | set(ENGLISH)))
    samples = len(data.source("train"))
    small = {
        "d_model": 96,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "n_mels": 40,
        "vocab_size": len(Tokens.characters(alphabet or ENGLISH)),
    }
    return _recipe(
        "SpeechRecognition",
        {
            "model": "samba_asr_tiny",
            "model_args": {} if pretrained else small,
            "ctc_weight": 0.3,
            "search": {"beams": 4, "max_tokens": 200},
            "pretrained": pretrained,
        },
        "SpeechManifest",
        {
            "manifest": str(path),
            "alphabet": alphabet,
            "n_mels": 80 if pretrained else 40,
            "batch_size": _batch_size(samples, 24),
        },
        samples,
        _rate(3e-3, pretrained),
    )


def tracking(path: Path, pretrained: str | None) -> dict[str, Any]:
    """clips in MOT Challenge's layout (train/<clip>/gt/gt.txt, val/...)"""
    from zoo.data import MOTChallenge

    folders = {
        split: next((name for name in names if (path / name).is_dir()), "train")
        for split, names in (("val", ("val", "test")), ("test", ("test", "val")))
    }
    data = MOTChallenge(str(path), **folders)
    samples = len(data.source("train"))
    small = {"encoder": {"d_model": 64, "n_layer": 2}, "decoder": {"d_model": 64}}
    return _recipe(
        "Tracking",
        {
            "model": "trackssm",
            "model_args": {} if pretrained else small,
            "pretrained": pretrained,
        },
        "MOTChallenge",
        {
            "root": str(path),
            **folders,
            "jitter": 0.02,
            "batch_size": _batch_size(samples, 128),
            "eval_batch_size": 1024,
        },
        samples,
        _rate(3e-3, pretrained),
    )


def language(path: Path, pretrained: str | None) -> dict[str, Any]:
    """a text file, or a folder of documents"""
    from zoo.data import Documents

    settings: dict[str, Any] = {"source": str(path), "length": 128, "vocab_size": 1024}
    if pretrained:
        settings = {"source": str(path), "length": 512, "tokenizer": pretrained}
    samples = len(Documents(**settings).source("train"))
    small = {"model_args": {"d_model": 128, "n_layer": 4, "vocab_size": 1024}}
    return _recipe(
        "LanguageModeling",
        {"model": pretrained} if pretrained else {"model": "mamba_130m", **small},
        "Documents",
        settings | {"batch_size": _batch_size(samples, 16)},
        samples,
        _rate(4e-3, pretrained),
    )


TASKS: dict[str, Callable[[Path, str | None], dict[str, Any]]] = {
    "classification": classification,
    "segmentation": segmentation,
    "change": change,
    "speech": speech,
    "tracking": tracking,
    "language": language,
}

if __name__ == "__main__":
    sys.exit(main())
