"""Targets, drafts and heads that do not fit: one line, with the methods that would work."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tests.language_models import VOCAB, WIDTH, make_model
from zoo.decoding import method_class
from zoo.decoding.heads import save_head
from zoo.generate import main

ABLE = "token_recycling, plain, aded"


def complaint(capsys, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), "--max-new-tokens", "4", "1 2"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    return [line for line in errors if line.startswith("error: ")][-1]


def with_tokenizer(folder: Path, words: list[str]) -> Path:
    make_model("llama").save_pretrained(folder)
    vocabulary = models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), unk_token=words[0])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["speculative", "ead"])
def test_two_models_of_different_tokens(method: str, tmp_path, capsys) -> None:
    words = [f"w{i}" for i in range(VOCAB)]
    one, other = (with_tokenizer(tmp_path / n, w) for n, w in (("a", words), ("b", words[::-1])))
    said = complaint(capsys, "--target", one, "--draft", other, "--method", method)
    assert "tokenizers of draft model and target differ: 50 of 50" in said and ABLE in said
    make_model("llama").save_pretrained(tmp_path / "c")
    make_model("llama", vocab_size=3000).save_pretrained(tmp_path / "d")
    pair = ["--target", tmp_path / "c", "--draft", tmp_path / "d"]
    said = complaint(capsys, *pair, "--method", method)
    assert "the draft model has 3000 tokens, the target 50" in said and ABLE in said


@pytest.mark.parametrize("method", ["medusa", "hydra", "ppd"])
def test_heads_of_another_target(method: str, tmp_path, capsys) -> None:
    make_model("llama").save_pretrained(tmp_path / "target")
    for name, size, message in (
        ("hidden_size", 2 * WIDTH, "64 numbers, the target"),
        ("vocab_size", VOCAB + 3, "a vocabulary of 53"),
    ):
        other = make_model("llama", **{name: size})
        made = next(iter(method_class(method).trials(other).values()))
        save_head(made.heads, tmp_path / name)
        heads = ["--target", tmp_path / "target", "--heads", tmp_path / name]
        said = complaint(capsys, *heads, "--method", method)
        assert message in said and "they were trained for another one" in said and ABLE in said


def test_an_encoder_decoder_and_a_stateful_model(tmp_path, capsys) -> None:
    shape = {"vocab_size": VOCAB, "d_model": WIDTH, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**shape)).save_pretrained(tmp_path / "t5")
    make_model("mamba").save_pretrained(tmp_path / "mamba")
    for method in ("plain", "token_recycling", "hso"):
        said = complaint(capsys, "--target", tmp_path / "t5", "--method", method)
        assert "is an encoder-decoder, expected a causal LM" in said and ABLE in said
    for method in ("minicache", "hso"):
        said = complaint(capsys, "--target", tmp_path / "mamba", "--method", method)
        assert "needs a target that is decoded by tree attention" in said and ABLE in said
