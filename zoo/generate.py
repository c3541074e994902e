"""``python -m zoo.generate --target DIR-or-hub-id --method METHOD "prompt"``.

Prints the text while it is made, then what the method did, against plain decoding measured in the
same run. ``--compare all`` measures every method that the given heads and draft model allow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from zoo.cli import quiet
from zoo.command import command
from zoo.decoding import Generation, generate, list_methods, make_method
from zoo.decoding.spec_bench import (
    TASKS,
    Answer,
    answer_questions,
    mean_accepted,
    read_questions,
    same_texts,
    speed_up,
)
from zoo.errors import ZooError
from zoo.models.language.base_lm import load_causal_lm, load_tokenizer
from zoo.plots.decoding import method_comparison
from zoo.show import print_table, say
from zoo.tasks.decoding_test import acceptance_figure

#: Which option gives a method what it cannot do without.
NEEDS = {
    "medusa": "heads",
    "hydra": "heads",
    "kangaroo": "adapter",
    "spectr": "draft",
    "speculative": "draft",
    "draft_tree": "draft",
    "specdec_pp": "head",
}


@dataclass
class Target:
    """A language model, and how text becomes its tokens."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None

    def encode(self, prompt: str) -> Tensor:
        """A prompt as ``[1, T]``; without a tokenizer it is a row of numbers."""
        if self.tokenizer is not None:
            ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        else:
            try:
                ids = torch.tensor([[int(word) for word in prompt.split()]])
            except ValueError:
                raise ZooError(
                    "the target has no tokenizer, so the prompt must be token numbers such as "
                    f"'1 2 3'; it is {prompt!r}"
                ) from None
        if ids.numel() == 0:
            raise ZooError("the prompt is empty: give at least one token")
        return ids.to(next(self.model.parameters()).device)

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text."""
        if self.tokenizer is None:
            return " ".join(map(str, tokens)) + " "
        return self.tokenizer.decode(tokens)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo generate",
        allow_abbrev=False,
        description="Continue a text with a language model, several tokens per pass.",
    )
    parser.add_argument(
        "prompt", nargs="*", help="the text to go on with; several are done in turn"
    )
    parser.add_argument("--target", required=True, help="folder, hub name, or a model trained here")
    parser.add_argument(
        "--method",
        default="token_recycling",
        help="such as medusa, kangaroo, spectr; an unknown one lists all",
    )
    parser.add_argument("--draft", help="draft model: folder, hub name, or a model trained here")
    parser.add_argument(
        "--heads",
        action="append",
        default=[],
        metavar="[METHOD=]DIR",
        help="trained heads or adapter of a method; may be given several times with --compare",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[METHOD.]NAME=VALUE",
        help="any other option of a method, such as kangaroo.exit_layer=1",
    )
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--verifier", help="greedy, sample_match, typical, rejection or k_seq")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="of the target, such as bfloat16; its own by default")
    parser.add_argument(
        "--compare", metavar="all|METHODS", help="measure several methods (a,b,c) on the prompts"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="measure each so often, take the best"
    )
    parser.add_argument(
        "--spec-bench", type=Path, metavar="FILE", help="Spec-Bench's question.jsonl"
    )
    parser.add_argument("--tasks", default="", help=f"of Spec-Bench: {','.join(TASKS)}")
    parser.add_argument("--limit", type=int, help="questions of each task")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write pictures there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    return parser


@command
def main(argv: list[str]) -> int:
    """Generate, or compare."""
    arguments = _arguments().parse_args(argv)
    quiet()
    target = _load(arguments)
    if arguments.spec_bench is not None:
        _spec_bench(target, arguments)
    elif arguments.compare is not None:
        _compare(target, arguments)
    else:
        for prompt in _prompts(arguments):
            _generate(target, prompt, arguments)
    return 0


def _load(arguments: argparse.Namespace) -> Target:
    options = {} if arguments.dtype is None else {"dtype": getattr(torch, arguments.dtype, None)}
    if None in options.values():
        raise ZooError(f"--dtype {arguments.dtype}: expected float32, bfloat16 or float16")
    model = load_causal_lm(arguments.target, **options).to(arguments.device)
    try:
        tokenizer = load_tokenizer(arguments.target)
    except ZooError:
        tokenizer = None
    return Target(model, tokenizer)


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if not arguments.prompt:
        raise ZooError("a prompt is missing: zoo generate --target DIR --method METHOD 'prompt'")
    return arguments.prompt


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "verifier": arguments.verifier,
        "seed": arguments.seed,
    }


def method_options(method: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Options of a method from the command line; None if what it needs was not given."""
    options: dict[str, Any] = {}
    need = NEEDS.get(method)
    if arguments.draft is not None and need in ("draft", "head"):
        options["draft"] = arguments.draft
    for text in arguments.heads:
        name, _, folder = text.rpartition("=")
        if need in ("heads", "adapter", "head") and name in ("", method):
            options[need] = folder
    for text in arguments.set:
        key, separator, value = text.partition("=")
        if not separator:
            raise ZooError(f"--set {text}: expected NAME=VALUE")
        name, _, option = key.rpartition(".")
        if name in ("", method):
            options[option] = yaml.safe_load(value)
    missing = {need} - {None} - set(options)
    if need == "head" and "draft" not in options:
        missing.add("draft")
    return None if missing else options


def _make(method: str, arguments: argparse.Namespace) -> Any:
    options = method_options(method, arguments)
    if options is None:
        raise ZooError(f"the method '{method}' needs {_needed(method)}")
    return make_method(method, **options)


def _needed(method: str) -> str:
    need = NEEDS[method]
    given = "--draft DIR" if need == "draft" else "--heads DIR"
    return given + (" and --draft DIR" if need == "head" else "")


class _Printer:
    """Prints a growing text as soon as its characters are whole."""

    def __init__(self, target: Target) -> None:
        self.target, self.tokens, self.printed = target, [], 0

    def __call__(self, row: int, tokens: list[int]) -> None:
        self.tokens += tokens
        text = self.target.decode(self.tokens).rstrip("\N{REPLACEMENT CHARACTER}")
        print(text[self.printed :], end="", flush=True)
        self.printed = max(self.printed, len(text))


def _generate(target: Target, prompt: str, arguments: argparse.Namespace) -> None:
    ids = target.encode(prompt)
    method = _make(arguments.method, arguments)
    print(prompt, end=" " if target.tokenizer is None else "", flush=True)
    out = generate(target.model, ids, method, on_tokens=_Printer(target), **_settings(arguments))
    print("\n")
    plain = generate(target.model, ids, "plain", **_settings(arguments))
    _report(arguments.method, out, plain, arguments)


def _report(method: str, out: Generation, plain: Generation, arguments: argparse.Namespace) -> None:
    counts = out.acceptance
    rows = [
        ("tokens per second", f"{out.tokens_per_second:.1f}", f"{plain.tokens_per_second:.1f}"),
        ("tokens per step", f"{out.tokens_per_step:.2f}", f"{plain.tokens_per_step:.2f}"),
        ("steps", out.steps, plain.steps),
        ("drafted, accepted", f"{counts.drafted}, {counts.accepted}", "0, 0"),
        ("draft model passes", out.draft_calls, 0),
    ]
    print_table(method, ("", method, "plain"), rows, right=(method, "plain"))
    by_depth = {
        depth: counts.accepted_by_depth[depth] / offered
        for depth, offered in sorted(counts.offered_by_depth.items())
    }
    by_rank = {
        (depth, rank): count / counts.accepted_by_depth[depth]
        for (depth, rank), count in sorted(counts.accepted_by_rank.items())
    }
    if by_depth:
        ranks = {
            depth: ", ".join(
                f"{rank}: {share:.0%}" for (d, rank), share in by_rank.items() if d == depth
            )
            for depth in by_depth
        }
        print_table(
            "acceptance",
            ("depth", "accepted when offered", "share of each rank"),
            [(depth, f"{share:.1%}", ranks[depth]) for depth, share in by_depth.items()],
        )
    if arguments.temperature == 0:
        same = out.new_tokens == plain.new_tokens
        say(f"the text is {'the same as' if same else 'NOT that of'} plain greedy decoding")
    if arguments.plot is not None:
        arguments.plot.mkdir(parents=True, exist_ok=True)
        file = arguments.plot / f"acceptance_{method}.png"
        acceptance_figure(counts, f"{method}: where drafts were accepted").savefig(file)
        say(f"picture: {file}")


def _methods(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The methods to compare, and those that lack something."""
    known = list_methods()
    wanted = known if arguments.compare == "all" else arguments.compare.split(",")
    for name in wanted:
        if name not in known:
            raise ZooError(f"--compare {name}: expected all, or some of {','.join(known)}")
    able = [name for name in wanted if method_options(name, arguments) is not None]
    return ["plain", *(n for n in able if n != "plain")], [n for n in wanted if n not in able]


def _compare(target: Target, arguments: argparse.Namespace) -> None:
    prompts = [target.encode(prompt) for prompt in _prompts(arguments)]
    methods, lacking = _methods(arguments)
    results: dict[str, list[Generation]] = {}
    for name in methods:
        best: list[Generation] = []
        for _ in range(arguments.repeat):
            method = _make(name, arguments)
            outs = [generate(target.model, ids, method, **_settings(arguments)) for ids in prompts]
            if not best or sum(o.seconds for o in outs) < sum(o.seconds for o in best):
                best = outs
        results[name] = best
        say(f"{name}: done")
    rows = []
    for name, outs in results.items():
        lengths = [n for out in outs for row in out.accept_lengths for n in row]
        tokens = sum(len(row) for out in outs for row in out.new_tokens)
        speed = tokens / sum(out.seconds - out.prompt_seconds for out in outs)
        same = all(
            out.new_tokens == other.new_tokens
            for out, other in zip(outs, results["plain"], strict=True)
        )
        rows.append((name, sum(lengths) / max(len(lengths), 1), speed, same))
    _show_comparison(rows, lacking, arguments)


def _show_comparison(
    rows: list[tuple[str, float, float, bool]], lacking: list[str], arguments: argparse.Namespace
) -> None:
    plain = rows[0][2]
    greedy = arguments.temperature == 0
    print_table(
        f"{arguments.target}, temperature {arguments.temperature:g}",
        ("method", "tokens/step", "tokens/s", "speed-up", "text of plain decoding"),
        [
            (
                name,
                f"{per_step:.2f}",
                f"{speed:.1f}",
                f"{speed / plain:.2f}",
                ("same" if same else "DIFFERENT") if greedy else "-",
            )
            for name, per_step, speed, same in rows
        ],
        right=("tokens/step", "tokens/s", "speed-up"),
    )
    for name in lacking:
        say(f"not compared: {name}, which needs {_needed(name)}")
    if arguments.json is not None:
        content = [
            {"method": name, "tokens_per_step": a, "tokens_per_second": b, "speed_up": b / plain}
            | ({"same_text": same} if greedy else {})
            for name, a, b, same in rows
        ]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.plot is not None:
        arguments.plot.mkdir(parents=True, exist_ok=True)
        file = arguments.plot / "comparison.png"
        method_comparison([(n, per_step, s / plain) for n, per_step, s, _ in rows]).savefig(file)
        say(f"picture: {file}")


def _spec_bench(target: Target, arguments: argparse.Namespace) -> None:
    if target.tokenizer is None:
        raise ZooError("--spec-bench needs a target with a tokenizer")
    tasks = [task for task in arguments.tasks.split(",") if task]
    questions = read_questions(arguments.spec_bench, tasks, arguments.limit)
    arguments.compare = arguments.compare or arguments.method
    methods, lacking = _methods(arguments)
    answers: dict[str, list[Answer]] = {}
    for name in methods:
        answers[name] = answer_questions(
            target.model,
            target.tokenizer,
            questions,
            _make(name, arguments),
            **_settings(arguments),
        )
        say(f"{name}: {len(answers[name])} answers")
    for task in [t for t in TASKS if any(q.task == t for q in questions)]:
        say(
            f"{task}: "
            + ", ".join(
                f"{name} {mean_accepted([a for a in rows if a.question.task == task]):.2f}"
                for name, rows in answers.items()
            )
            + " accepted tokens per step"
        )
    plain = answers["plain"]
    base = sum(answer.speed for answer in plain) / len(plain)
    rows = [
        (name, mean_accepted(rows), base * speed_up(rows, plain), same_texts(rows, plain))
        for name, rows in answers.items()
    ]
    _show_comparison(rows, lacking, arguments)


if __name__ == "__main__":
    sys.exit(main())
