"""Programs that a language model wrote, run where they can do no harm.

A program runs in a process of its own, with limits of time, memory and output. It can make no
process, open no socket, signal nobody, and write, remove or change no file; it can read Python's
own library alone. Linux does all that (Landlock, seccomp, resource limits), and where it cannot,
nothing is run at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import ZooError


@dataclass(frozen=True)
class Limits:
    """What a program may use for all its inputs together.

    Attributes:
        seconds: of the clock, and of one processor.
        memory: bytes of address space.
        output: bytes of all that it writes.
    """

    seconds: float = 10.0
    memory: int = 512 << 20
    output: int = 4 << 20


class Outcome(NamedTuple):
    """What became of a program on one input.

    Attributes:
        kind: ``ran``, ``compile error``, ``runtime error`` or ``no answer``: it took too long or
            too much, or ended itself.
        value: what it wrote or returned; the name of an error.
    """

    kind: str
    value: Any = None


def run_program(
    source: str,
    inputs: Sequence[Any],
    function: str | None = None,
    limits: Limits | None = None,
) -> list[Outcome]:
    """Run a program on several inputs, each time from the beginning.

    Args:
        source: Python.
        inputs: what it reads from standard input, or with ``function`` the lists of arguments.
        function: what is called; also a method of a class ``Solution``.
        limits: see :class:`Limits`.

    Raises:
        ZooError: if this system cannot confine a process.
    """
    if not hasattr(os, "O_PATH"):
        raise ZooError(f"programs can be confined on Linux alone, and this is {sys.platform}")
    if reason := _unconfined():
        raise ZooError(
            f"programs cannot be confined here ({reason}), so none is run: expected Linux 6.2 or "
            "newer on x86_64"
        )
    answer = _answer(source, inputs, function, limits or Limits())
    if "results" not in answer:
        return [Outcome("no answer")] * len(inputs)
    return [Outcome(*result) for result in answer["results"]]


@cache
def _unconfined() -> str:
    """Why programs cannot be confined here, as an empty one finds it; empty if they can be."""
    answer = _answer("", [""], None, Limits())
    return "" if "results" in answer else answer.get("unconfined", "the process did not start")


def _answer(
    source: str, inputs: Sequence[Any], function: str | None, limits: Limits
) -> dict[str, Any]:
    """What the process answers; empty if nothing that can be read."""
    key = secrets.token_hex(16)
    paths = sysconfig.get_paths()
    folders = [paths["stdlib"], paths["platstdlib"], sysconfig.get_config_var("LIBDIR") or ""]
    job = {
        "source": source,
        "inputs": list(inputs),
        "function": function,
        "key": key,
        "seconds": max(1, round(limits.seconds)),
        "memory": limits.memory,
        "output": limits.output,
        "readable": [*dict.fromkeys(folders), "/lib", "/lib64", "/usr/lib", "/dev/urandom"],
    }
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("_sandboxed.py"))],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
            start_new_session=True,
            close_fds=True,
        )
        try:
            # starting Python is not the program's own time
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(json.dumps(job).encode(), timeout=limits.seconds + 5)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answer.seek(0)
        written = answer.read(limits.output)
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("key") == key else {}
