"""A resolved recipe, as a run's folder and its checkpoints keep it, is the recipe it came from."""

import json
import math
from pathlib import Path

import pytest
import yaml
from jsonargparse import get_loader

from tests.tiers import all_but_first, tiers
from tests.tiny import ROOT, tiny_recipe
from zoo.arguments import dump_yaml, load_yaml
from zoo.cli import Recipe
from zoo.errors import ZooError

RUNNABLE = [path for path in sorted(ROOT.glob("recipes/*/*/*.yaml")) if path.stem != "proof"]
EARLY_STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/acc1", "stopping_threshold": None},
}

CALLBACKS = [  # whose defaults are a device and a member of an enumeration
    {
        "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "init_args": {"swa_lrs": 1e-3},
    },
    {"class_path": "lightning.pytorch.callbacks.Timer"},
]


def settings(recipe: Recipe) -> dict:
    """All that was parsed, but for where it was read."""
    return {key: value for key, value in recipe.config.as_dict().items() if key != "config"}


def read_again(recipe: Recipe, folder: Path) -> Recipe:
    """The resolved copy, both from a file and from a checkpoint."""
    copy = folder / "resolved.yaml"
    copy.write_text(recipe.text)
    again = Recipe(copy)
    header = {"zoo": {"recipe": recipe.text, "name": "test/tiny"}}
    kept, _ = Recipe.of_checkpoint(header, folder / "last.ckpt")
    assert settings(kept) == settings(again)
    return again


def classes(path: Path) -> tuple[str, str]:
    content = load_yaml(path.read_text())
    return content["model"]["class_path"], content["data"]["class_path"]


@pytest.mark.parametrize(
    "path",
    tiers(RUNNABLE, slow=all_but_first(RUNNABLE, classes)),
    ids=lambda path: "/".join(path.parts[-3:]),
)
def test_every_recipe(path, tmp_path):
    recipe = Recipe(path)
    again = read_again(recipe, tmp_path)
    assert settings(again) == settings(recipe)
    assert again.text == recipe.text


@pytest.mark.parametrize(
    "options",
    [
        ["--model.ema_decay=null", "--model.optimizer.betas=null", "--model.model_args=null"],
        ["--data.augmentation.auto_augment=null", "--data.eval_batch_size=null"],
        ["--trainer.check_val_every_n_epoch=null", "--trainer.max_epochs=null"],
        ["--checkpoint.monitor=null", "--checkpoint.mode=null", "--seed_everything=7"],
        ["--model.model_args={eps: 1e-6, act: null, stages: [null, 1e3], '1': '1e3', on: 'on'}"],
        ["--model.model_args={text: '2024-01-01', minutes: '1:30', hash: '#', empty: ''}"],
        ["--model.optimizer.eps=1e-9", "--model.optimizer.lr=1e22", "--model.optimizer.opt=sgd"],
        [f"--trainer.callbacks={json.dumps([EARLY_STOPPING])}", "--trainer.logger=true"],
        [f"--trainer.callbacks={json.dumps(CALLBACKS)}"],
        ["--trainer.max_time=00:00:10:00", "--trainer.devices=[0]", "--trainer.precision=32"],
    ],
)
def test_every_option(options, tmp_path):
    recipe = Recipe(tiny_recipe(tmp_path), options)
    again = read_again(recipe, tmp_path)
    assert settings(again) == settings(recipe)
    assert again.text == recipe.text


def test_nulls_are_kept(tmp_path):
    recipe = Recipe(tiny_recipe(tmp_path), ["--model.schedule.warmup_epochs=1e-3"])
    kept = yaml.safe_load(recipe.text)["model"]["init_args"]
    assert kept["optimizer"]["lr_batch_size"] is None
    assert kept["schedule"]["warmup_epochs"] == 0.001


@pytest.mark.parametrize(
    "value",
    [
        *(1e-3, 1e22, 5e-324, math.inf, 10**30, True, None, [], {}, {"a": {"b": [1, None]}}),
        *("1e-3", "1.", ".5", "-1e5", "010", "0x1f", "09", "1_0", "1:30", "2024-01-01", "null"),
        *("on", "", "~", "-", "=", "<<", "a: b", "#x", "[a]", "\n x", "\u2028x", "tab\t", "é"),
    ],
)
def test_yaml_reads_what_it_wrote(value):
    again = load_yaml(dump_yaml({"a": [value, value]}))["a"][0]
    assert again == value and type(again) is type(value)


@pytest.mark.parametrize("text", ["1e-3", "1e3", "1.5e-7", "-1e+5", "2024-01-01", "[1e-3, a]", "3"])
def test_values_are_those_of_jsonargparse(text):
    assert load_yaml(text) == get_loader("yaml")(text)


def test_a_key_stands_once(tmp_path):
    recipe = tiny_recipe(tmp_path)
    recipe.write_text(recipe.read_text() + "seed_everything: 2\n")
    with pytest.raises(ZooError, match=r"tiny.yaml, line \d+: .* the key seed_everything stands"):
        Recipe(recipe)


def test_few_lines_that_stand_for_too_much(tmp_path):
    recipe = tiny_recipe(tmp_path)
    bomb = ["model_args: &x0 [1, 1, 1, 1, 1, 1, 1, 1]"]
    bomb += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 8)}]" for i in range(1, 9)]
    recipe.write_text("\n".join(bomb) + "\n" + recipe.read_text())
    with pytest.raises(ZooError, match="expected a recipe of at most 100,000 values"):
        Recipe(recipe)
    recipe.write_text("model: " + "[" * 60 + "]" * 60)
    with pytest.raises(ZooError, match="50 levels deep"):
        Recipe(recipe)


WORDS = ["~", "null", "1", "yes", "true", "1e3", "0x10", "1_000", ".inf", "[a]", "{a: 1}", "a: b"]
WORDS += ["- a", "'a'", '"1"', "1:30", "2020-01-01", "=", "<<", "", " ", "a #b", "&a b", "!x"]


def test_words_that_look_like_something_else(tmp_path):
    """Of an argument of any type, in a file and on a command line; those of a known type fit it."""
    given = {"a": list(WORDS), "b": {word: word for word in WORDS}}
    path = tiny_recipe(tmp_path, model__init_args__model_args=given, trainer__max_epochs="3")
    path.write_text(dump_yaml(yaml.safe_load(path.read_text())))  # by the rules of recipes
    recipe = Recipe(path)
    for again in (recipe, read_again(recipe, tmp_path)):
        assert again.config.model.init_args.model_args == given
        assert again.config.trainer.max_epochs == 3
    options = [f"--model.model_args.w{n}={json.dumps(word)}" for n, word in enumerate(WORDS)]
    recipe = Recipe(tiny_recipe(tmp_path), [*options, f"--model.model_args.all={WORDS}"])
    for again in (recipe, read_again(recipe, tmp_path)):
        found = dict(again.config.model.init_args.model_args)
        assert [found[f"w{n}"] for n in range(len(WORDS))] == found["all"] == WORDS
    for text, value in {"1e3": 1000.0, "0x10": 16, "null": None, "yes": True, "a b": "a b"}.items():
        recipe = Recipe(tiny_recipe(tmp_path), [f"--model.model_args.w={text}"])
        assert recipe.config.model.init_args.model_args["w"] == value
