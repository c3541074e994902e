"""``python -m zoo.bench``: time the ops against their peers and against what the machine can do."""

from zoo.bench.run import main

__all__ = ["main"]
