"""A recipe inside a checkpoint is a stranger's: whatever it names, none of its code runs."""

import copy
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_recipe
from zoo.cli import Recipe
from zoo.errors import ZooError
from zoo.trust import LIGHTNING, may_name

EVIL = {"class_path": "stranger.Thing", "init_args": {}}


@pytest.fixture
def stranger(in_tmp_path, monkeypatch):
    """A module beside the user that leaves a trace when it is imported."""
    (in_tmp_path / "stranger.py").write_text(
        "open('ran.txt', 'w').close()\n"
        "from lightning.pytorch.callbacks import EarlyStopping\n"
        "class Thing(EarlyStopping):\n    pass\n"
    )
    (in_tmp_path / "evil.yaml").write_text(yaml.safe_dump([EVIL]))
    monkeypatch.syspath_prepend(str(in_tmp_path))
    yield in_tmp_path
    sys.modules.pop("stranger", None)


def tiny(folder: Path) -> dict:
    return yaml.safe_load(tiny_recipe(folder).read_text())


def of_checkpoint(content, overrides=(), allowed=(), name="test/tiny") -> Recipe:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    checkpoint = {"zoo": {"recipe": text, "name": name}}
    return Recipe.of_checkpoint(checkpoint, Path("last.ckpt"), overrides, allowed=allowed)[0]


def put(content: dict, place: str, value) -> dict:
    content = copy.deepcopy(content)
    *groups, key = place.split("/")
    inner = content
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[key] = value
    return content


PLACES = [
    ("model/class_path", "stranger.Thing"),
    ("data", EVIL),
    ("model/init_args/optimizer", EVIL),
    ("model/init_args/model_args/act_layer", EVIL),
    ("data/init_args/augmentation", EVIL),
    ("trainer/callbacks", [EVIL]),
    ("trainer/callbacks", ["stranger.Thing"]),
    ("trainer/callbacks", "stranger.Thing"),
    ("trainer/callbacks", "[{class_path: stranger.Thing}]"),
    ("trainer/callbacks", "evil.yaml"),
    ("trainer/callbacks+", [EVIL]),
    ("trainer/logger", {"class_path": "stranger.Thing"}),
    ("trainer/logger.class_path", "stranger.Thing"),
    ("trainer/strategy", EVIL),
    ("trainer/plugins", [EVIL]),
    ("trainer/profiler", "stranger.Thing"),
    ("trainer/accelerator", EVIL),
    (
        "trainer/callbacks",
        [
            {
                "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
                "init_args": {"swa_lrs": 0.1, "avg_fn": "stranger.Thing"},
            }
        ],
    ),
    (
        "trainer/strategy",
        {
            "class_path": "lightning.pytorch.strategies.DDPStrategy",
            "init_args": {"cluster_environment": EVIL},
        },
    ),
    (
        "trainer/strategy",
        {
            "class_path": "lightning.pytorch.strategies.FSDPStrategy",
            "init_args": {"activation_checkpointing": "stranger.Thing"},
        },
    ),
    ("config", "evil.yaml"),
]


@pytest.mark.parametrize("place, value", PLACES, ids=lambda value: str(value)[:60])
def test_nothing_is_imported(stranger, place, value):
    content = put(tiny(stranger), place, value)
    try:
        recipe = of_checkpoint(content)
        recipe.build_trainer()
        recipe.build()
    except ZooError as error:
        assert len(str(error).splitlines()) == 1
        if "stranger" in str(error):
            assert "--allow-class stranger.Thing" in str(error) or "expected" in str(error)
    assert "stranger" not in sys.modules and not Path("ran.txt").exists()


@pytest.mark.parametrize(
    "path",
    [
        *("os.system", "subprocess.Popen", "torch.load", "builtins.eval", "stranger", "", "a..b"),
        *("zoo.predict.shutil.rmtree", "zoo.tasks.base.Path", "zoo.tasks.Path", "zoo.train.train"),
        *("zoo.tasks.nothing.Here", "zoo.tasks.Nothing", "zoo.data.base.pl.Trainer", "zoo.Thing"),
        "lightning.pytorch.callbacks.LambdaCallback",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping.__init__",
        " zoo.tasks.Segmentation",
        "zoo.tasks.Segmentation\n",
        "zoo/tasks.Segmentation",
    ],
)
def test_what_it_may_not_name(in_tmp_path, path):
    assert not may_name(path)
    with pytest.raises(ZooError, match=r"last\.ckpt"):
        of_checkpoint(put(tiny(in_tmp_path), "model/class_path", path))


def test_what_it_may_name(in_tmp_path):
    callbacks = [
        {
            "class_path": "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
            "init_args": {"monitor": "val/acc1"},
        },
        {"class_path": "lightning.pytorch.callbacks.Timer"},
    ]
    content = put(tiny(in_tmp_path), "trainer/callbacks", callbacks)
    content = put(content, "trainer/logger", {"class_path": "lightning.pytorch.loggers.CSVLogger"})
    content["trainer"]["logger"]["init_args"] = {"save_dir": "logs"}
    content = put(
        content,
        "model/class_path",
        "zoo.tasks.vision.classification.ImageClassification",
    )
    recipe = of_checkpoint(content)
    assert of_checkpoint(recipe.text).text == recipe.text
    names = [type(callback).__name__ for callback in recipe.build_trainer().callbacks]
    assert {"EarlyStopping", "Timer"} <= set(names)


def test_all_that_is_listed_exists():
    import importlib

    for package, names in LIGHTNING.items():
        module = importlib.import_module(package)
        for name in names:
            assert isinstance(getattr(module, name), type)
            assert may_name(f"{package}.{name}")


def test_what_the_user_allows_is_imported(stranger):
    content = put(
        tiny(stranger),
        "trainer/callbacks",
        [{"class_path": "stranger.Thing", "init_args": {"monitor": "val/acc1"}}],
    )
    with pytest.raises(ZooError, match=r"stranger\.Thing \(trainer\.callbacks\.0\.class_path"):
        of_checkpoint(content)
    recipe = of_checkpoint(content, allowed=["stranger.Thing"])
    assert "Thing" in [type(callback).__name__ for callback in recipe.build_trainer().callbacks]
    with pytest.raises(ZooError, match=r"strangr\.Thing cannot be imported"):
        of_checkpoint(content, allowed=["stranger.Thing", "strangr.Thing"])


def test_the_command_line_is_the_users_own(stranger):
    option = "--trainer.callbacks+={class_path: stranger.Thing, init_args: {monitor: val/acc1}}"
    recipe = of_checkpoint(tiny(stranger), [option])
    assert "Thing" in [type(callback).__name__ for callback in recipe.build_trainer().callbacks]


def test_a_recipe_by_its_path_is_the_users_own(stranger):
    path = tiny_recipe(stranger, trainer__callbacks=[{**EVIL, "init_args": {"monitor": "a"}}])
    assert Recipe(path).config.trainer.callbacks[0].class_path == "stranger.Thing"
    assert Path("ran.txt").exists()


def test_a_stranger_restricts_no_later_recipe(stranger):
    of_checkpoint(tiny(stranger))
    test_a_recipe_by_its_path_is_the_users_own(stranger)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("model: !!python/object/apply:os.system [touch ran.txt]", "not valid YAML"),
        ("model: !!python/name:os.system", "not valid YAML"),
        ("[]", "expected keys and values"),
        ("a: &a [*a]", "at most"),
        ("", "expected keys and values"),
    ],
)
def test_text_that_is_no_recipe(stranger, text, expected):
    with pytest.raises(ZooError, match=expected):
        of_checkpoint(text)
    assert not Path("ran.txt").exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../b", "a//b", "", "C:x", "a\\b", 3])
def test_the_name_of_a_recipe_leads_nowhere_else(in_tmp_path, name):
    with pytest.raises(ZooError, match=r"last\.ckpt: "):
        of_checkpoint(tiny(in_tmp_path), name=name)


@pytest.mark.parametrize("header", [None, [], {}, {"recipe": 3, "name": "a"}, "text"])
def test_a_broken_header(header):
    with pytest.raises(ZooError, match="its recipe and the name of it are missing"):
        Recipe.of_checkpoint({"zoo": header}, Path("last.ckpt"))
