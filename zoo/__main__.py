"""``zoo train ...`` is ``python -m zoo.train ...``, and so for every command."""

from __future__ import annotations

import sys
from importlib import import_module

from zoo.command import command
from zoo.errors import ZooError, suggest

COMMANDS = {
    "new": "look at data of your own, and write a recipe for them",
    "train": "train a recipe, test the best checkpoint, draw pictures",
    "evaluate": "measure a run, a checkpoint, or published weights",
    "check": "look at what a recipe would train on, without training",
    "predict": "apply a trained model to files of your own",
    "generate": "continue a text with a language model, several tokens per pass",
    "cp": "copy a recipe, to edit the copy",
    "list": "show systems, models with their parameter counts, and recipes",
    "export": "write a trained model for other programs, or for the Hugging Face hub",
    "convert": "turn a checkpoint into another format",
    "prove": "check a paper's claim on a small scale",
    "info": "say what is installed, and which kernels are in use",
    "bench": "time the kernels against their peers",
}


@command
def main(argv: list[str]) -> int:
    """Run one command; its module is imported only then."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print("usage: zoo COMMAND ...   (zoo COMMAND --help says more)\n")
        for known, what in COMMANDS.items():
            print(f"  {known:<10}{what}")
        return 0
    if name not in COMMANDS:
        raise ZooError(f"zoo: there is no command {name!r}; {suggest(name, COMMANDS)}")
    return import_module(f"zoo.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
