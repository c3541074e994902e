"""What the command line of ``zoo generate`` says."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.errors import ZooError

DTYPES = ("float32", "bfloat16", "float16")


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Read and check the command line; nothing is imported for it."""
    parser = argparse.ArgumentParser(
        prog="zoo generate",
        allow_abbrev=False,
        description="Continue a text with a language model, also several tokens per pass.",
    )
    add = parser.add_argument
    add("prompt", nargs="*", help="the text to go on with; several are done in turn")
    add("--target", required=True, help="folder, hub name, or a model trained here")
    add(
        "--method",
        default="plain",
        help="such as token_recycling, medusa, spectr; an unknown one lists all (default plain)",
    )
    add("--draft", help="draft model: folder, hub name, or a model trained here")
    add(
        "--heads",
        action="append",
        default=[],
        metavar="[METHOD=]DIR",
        help="trained heads or adapter of a method; may be given several times with --compare",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="[METHOD.]NAME=VALUE",
        help="any other option of a method, such as kangaroo.exit_layer=1",
    )
    add("--max-new-tokens", type=int, default=128, help="of each prompt (default 128)")
    add("--temperature", type=float, default=0.0, help="0, the default, decodes greedily")
    add("--top-k", type=int, default=0, help="draw from so many tokens only; 0: from all")
    add("--top-p", type=float, default=1.0, help="draw from the best tokens of this mass")
    add("--min-p", type=float, default=0.0, help="draw from tokens of this share of the best one's")
    add("--min-new-tokens", type=int, help="no stop token before there are so many")
    add("--repetition-penalty", type=float, help="above 1: say less often what was said")
    add("--stop", action="append", metavar="TEXT", help="end where this was written; repeatable")
    add("--verifier", help="rule of acceptance; an unknown one lists all")
    add("--seed", type=int, default=0, help="of the draws (default 0)")
    add("--device", help="such as cpu or cuda:1 (default: the first GPU, where there is one)")
    add("--dtype", choices=DTYPES, help="of the target; its own by default")
    add("--text-only", action="store_true", help="print the text and measure nothing")
    add("--compare", metavar="all|METHODS", help="measure several methods (a,b,c) on the prompts")
    add("--repeat", type=int, default=3, help="measure each so often, take the best (default 3)")
    add("--spec-bench", type=Path, metavar="FILE", help="Spec-Bench's question.jsonl")
    add("--tasks", default="", help="of Spec-Bench, such as translation,rag; all if none")
    add("--limit", type=int, help="questions of each task of Spec-Bench")
    add("--answers", type=Path, metavar="DIR", help="write answers in Spec-Bench's layout there")
    add("--plot", type=Path, metavar="DIR", help="write pictures there")
    add("--json", type=Path, metavar="FILE", help="write the numbers of a comparison there")
    arguments = parser.parse_args(argv)
    if arguments.spec_bench is None and not arguments.prompt:
        raise ZooError("a prompt is missing: zoo generate --target DIR --method METHOD 'prompt'")
    return arguments
