"""Generation, and what is printed of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from zoo.arguments import make_folder, read_value
from zoo.cli import quiet
from zoo.decoding import (
    Generation,
    Method,
    generate,
    list_methods,
    make_method,
    method_class,
)
from zoo.decoding.comparison import figure, on_prompts, on_spec_bench, show, write_json
from zoo.decoding.method import needing_nothing
from zoo.decoding.spec_bench import read_questions
from zoo.devices import usable_device
from zoo.errors import ZooError
from zoo.models.language._causal_lm import find_causal_lm, load_causal_lm, load_tokenizer
from zoo.models.language._protocol import text_config
from zoo.show import print_table, say
from zoo.tasks.decoding._decoding_test import acceptance_figure


@dataclass
class Target:
    """A language model, and how text becomes its tokens."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None

    def encode(self, prompt: str) -> Tensor:
        """A prompt as ``[1, T]``; without a tokenizer it is a row of numbers."""
        if self.tokenizer is not None:
            ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"].long()
        else:
            try:
                ids = torch.tensor([[int(word) for word in prompt.split()]], dtype=torch.long)
            except (ValueError, RuntimeError):  # no numbers, or beyond 64 bits
                raise ZooError(
                    "the target has no tokenizer, so the prompt must be token numbers such as "
                    f"'1 2 3'; it is {prompt!r}"
                ) from None
        if ids.numel() == 0:
            raise ZooError("the prompt is empty: give at least one token")
        known = text_config(self.model).vocab_size
        for token in ids.flatten().tolist():
            if not 0 <= token < known:
                raise ZooError(
                    f"the prompt {prompt!r} has the token {token}, expected tokens of the target, "
                    f"0 to {known - 1}"
                )
        return ids.to(next(self.model.parameters()).device)

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text."""
        if self.tokenizer is None:
            return " ".join(map(str, tokens)) + " "
        return self.tokenizer.decode(tokens)


def run(arguments: argparse.Namespace) -> int:
    """Generate, or compare, as :mod:`zoo.generate.arguments` has read it."""
    quiet()
    _check_names(arguments)
    _make_folders(arguments)
    target = _load(arguments)
    if arguments.spec_bench is not None or arguments.compare is not None:
        _compare(target, arguments)
        return 0
    method = _make(arguments.method, arguments)
    for prompt in arguments.prompt:
        _generate(target, prompt, method, arguments)
    return 0


def _check_names(arguments: argparse.Namespace) -> None:
    """What is meant for one method must name one that there is."""
    named = [text.rpartition("=")[0] for text in arguments.heads]
    named += [text.partition("=")[0].rpartition(".")[0] for text in arguments.set]
    for name in named:
        if name and name not in list_methods():
            raise ZooError(
                f"there is no decoding method '{name}': --heads takes METHOD=DIR or DIR, --set "
                f"METHOD.NAME=VALUE or NAME=VALUE, METHOD one of {', '.join(list_methods())}"
            )


def _make_folders(arguments: argparse.Namespace) -> None:
    """Make the folders of all output, before anything is measured in vain."""
    json_folder = arguments.json.parent if arguments.json is not None else None
    for option, folder in (
        ("--json", json_folder),
        ("--plot", arguments.plot),
        ("--answers", arguments.answers),
    ):
        if folder is not None:
            make_folder(option, folder)


def _load(arguments: argparse.Namespace) -> Target:
    device = usable_device(arguments.device)
    options = {} if arguments.dtype is None else {"dtype": getattr(torch, arguments.dtype)}
    found = find_causal_lm(arguments.target)
    folder = Path(found).is_dir()
    config = PretrainedConfig.get_config_dict(found)[0] if folder else {}
    if config.get("is_encoder_decoder"):
        raise ZooError(
            f"{arguments.target} is an encoder-decoder, expected a causal LM: in Python, "
            f"zoo.decoding.generate decodes it with {needing_nothing()}"
        )
    model = load_causal_lm(arguments.target, **options).to(device)
    try:
        tokenizer = load_tokenizer(arguments.target)
    except ZooError:
        tokenizer = None
    return Target(model, tokenizer)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "verifier", "seed")
    names += ("min_new_tokens", "repetition_penalty")
    return {name: getattr(arguments, name) for name in names} | {"stop_strings": arguments.stop}


def method_options(method: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Options of a method from the command line; None if what it needs was not given."""
    options: dict[str, Any] = {}
    for argument, flag in method_class(method).needs:
        if flag == "--draft" and arguments.draft is not None:
            options[argument] = arguments.draft
        for text in arguments.heads if flag == "--heads" else ():
            name, _, folder = text.rpartition("=")
            if name in ("", method):
                options[argument] = folder
    for text in arguments.set:
        key, separator, value = text.partition("=")
        if not separator:
            raise ZooError(f"--set {text}: expected NAME=VALUE")
        name, _, option = key.rpartition(".")
        if name in ("", method):
            options[option] = read_value(f"--set {text}", value)
    missing = [need for need in method_class(method).needs if need.argument not in options]
    return None if missing else options


def _make(method: str, arguments: argparse.Namespace) -> Method:
    options = method_options(method, arguments)
    if options is None:
        raise ZooError(f"the method '{method}' needs {_needed(method)}")
    return make_method(method, **options)


def _needed(method: str) -> str:
    flags = [need.flag for need in method_class(method).needs]
    return " and ".join(flag if "=" in flag else f"{flag} DIR" for flag in flags)


class _Printer:
    """Prints the prompt, then the growing text as soon as its characters are whole."""

    def __init__(self, target: Target, prompt: str, ids: Tensor) -> None:
        self.target, self.tokens = target, ids[0].tolist()
        self.prompt = prompt if target.tokenizer is not None else f"{prompt} "
        # some tokenizers leave out the space before a text's first word, so it never is the first
        self.printed, self.begun = len(target.decode(self.tokens)), False

    def __call__(self, row: int, tokens: list[int]) -> None:
        if not self.begun:
            print(self.prompt, end="")
        self.begun = True
        self.tokens += tokens
        text = self.target.decode(self.tokens).rstrip("\N{REPLACEMENT CHARACTER}")
        print(text[self.printed :], end="", flush=True)
        self.printed = max(self.printed, len(text))


def _generate(target: Target, prompt: str, method: Method, arguments: argparse.Namespace) -> None:
    ids = target.encode(prompt)
    settings = _settings(arguments) | {"tokenizer": target.tokenizer}
    printer = _Printer(target, prompt, ids)
    try:
        out = generate(target.model, ids, method, on_tokens=printer, **settings)
    finally:
        if printer.begun:
            print("\n")
    if arguments.text_only:
        return
    if method.name == "plain":
        tokens = len(out.new_tokens[0])
        say(f"{tokens} tokens, {out.tokens_per_second:.1f} per second")
        return
    plain = generate(target.model, ids, "plain", **settings)
    _report(out, plain, arguments)


def _report(out: Generation, plain: Generation, arguments: argparse.Namespace) -> None:
    """What the method did, against plain decoding."""
    method, counts = arguments.method, out.acceptance
    rows = [
        ("tokens per second", f"{out.tokens_per_second:.1f}", f"{plain.tokens_per_second:.1f}"),
        ("tokens per step", f"{out.tokens_per_step:.2f}", f"{plain.tokens_per_step:.2f}"),
        ("steps", out.steps, plain.steps),
        ("drafted, accepted", f"{counts.drafted}, {counts.accepted}", "0, 0"),
        ("draft model passes", out.draft_calls, 0),
        *((name.replace("_", " "), f"{value:.3g}", "") for name, value in out.report.items()),
    ]
    print_table(method, ("", method, "plain"), rows, right=(method, "plain"))
    by_depth, by_rank = counts.shares()
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
        picture = acceptance_figure(counts, f"{method}: where drafts were accepted")
        _save(picture, arguments.plot, f"acceptance_{method}.png")


def _compare(target: Target, arguments: argparse.Namespace) -> None:
    methods, lacking = _methods(arguments)
    settings = _settings(arguments)

    def make(name: str) -> Method:
        return _make(name, arguments)

    if arguments.spec_bench is not None:
        if target.tokenizer is None:
            raise ZooError("--spec-bench needs a target with a tokenizer")
        tasks = [task for task in arguments.tasks.split(",") if task]
        questions = read_questions(arguments.spec_bench, tasks, arguments.limit)
        rows = on_spec_bench(
            target.model,
            target.tokenizer,
            questions,
            methods,
            make,
            arguments.answers,
            **settings,
        )
    else:
        prompts = [target.encode(prompt) for prompt in arguments.prompt]
        repeat = max(1, arguments.repeat)
        settings["tokenizer"] = target.tokenizer
        rows = on_prompts(target.model, prompts, methods, make, repeat, **settings)
    greedy = arguments.temperature == 0
    show(rows, f"{arguments.target}, temperature {arguments.temperature:g}", greedy)
    for name in lacking:
        say(f"not compared: {name}, which needs {_needed(name)}")
    if arguments.json is not None:
        write_json(arguments.json, rows, greedy)
    if arguments.plot is not None:
        _save(figure(rows), arguments.plot, "comparison.png")


def _methods(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The methods to compare, plain decoding first, and those that lack something."""
    known = list_methods()
    text = arguments.compare or arguments.method
    wanted = known if text == "all" else text.split(",")
    for name in wanted:
        if name not in known:
            raise ZooError(f"--compare {name}: expected all, or some of {','.join(known)}")
    if text != "all":
        for name in wanted:
            _make(name, arguments)
    able = [name for name in wanted if method_options(name, arguments) is not None]
    return ["plain", *(n for n in able if n != "plain")], [n for n in wanted if n not in able]


def _save(picture: Any, folder: Path, name: str) -> None:
    picture.savefig(folder / name)
    say(f"picture: {folder / name}")
