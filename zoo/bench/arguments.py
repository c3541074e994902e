"""What the command line of the bench says."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.errors import ZooError, check_choice

#: What can be measured, in this order.
OPS = (
    "selective_scan",
    "selective_state_update",
    "ssd",
    "delta_rule",
    "linear_attention",
    "recurrent_cell",
    "causal_conv1d",
    "causal_conv1d_update",
    "cross_scan",
    "cross_merge",
    "tree_attention",
    "cauchy_kernel",
    "vandermonde_kernel",
    "diagonal_scan",
    "fft_conv",
    "models",
)


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Read and check the command line; nothing is imported for it."""
    parser = argparse.ArgumentParser(
        prog="zoo bench", description="Time the ops against their peers and the machine's limits."
    )
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(OPS)}; all if none")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw growth and shares in this folder"
    )
    parser.add_argument("--page", type=Path, metavar="FILE",
                        help="write a Markdown page from all results in the folder of its name; "
                        "without --json nothing is measured")  # fmt: skip
    parser.add_argument("--threads", type=int, help="of the CPU (default: those of PyTorch)")
    parser.add_argument("--quick", action="store_true", help="small shapes, a few seconds")
    arguments = parser.parse_args(argv)
    for op in arguments.ops:
        if op not in OPS:
            raise ZooError(f"zoo bench: there is no op {op!r}; expected of {', '.join(OPS)}")
    arguments.ops = arguments.ops or list(OPS)
    check_choice("zoo bench: --device", arguments.device, ("cpu", "cuda"))
    if arguments.threads is not None and arguments.threads < 1:
        raise ZooError(f"zoo bench: --threads must be at least 1, got {arguments.threads}")
    for option, folder in (
        ("--json", arguments.json and arguments.json.absolute().parent),
        ("--plot", arguments.plot),
        ("--page", arguments.page and arguments.page.absolute().parent),
    ):
        if folder and not folder.is_dir():
            raise ZooError(f"zoo bench: {option}: there is no folder {folder}; make it first")
    return arguments
