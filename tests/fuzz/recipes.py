"""Recipes: shipped ones with something changed, settings nobody foresaw, and strangers' ones.

A recipe is refused in one line that names it or the option, or it is taken; then its resolved copy
is the same recipe, from a file and from a checkpoint. One that is built and trained ends in the
same two ways. One in a checkpoint never has a module imported that is not zoo's or Lightning's.
"""

from __future__ import annotations

import copy
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

import zoo.train
from tests.fuzz._garble import garbled_text
from tests.tiny import ROOT, tiny_recipe
from zoo.arguments import dump_yaml, load_yaml
from zoo.cli import Recipe, quiet
from zoo.errors import ZooError
from zoo.recipes import class_paths

RAN = "ran.txt"
STRANGER = "fuzz_stranger"


def case(random: Random) -> None:
    """One recipe."""
    warnings.filterwarnings("ignore")
    quiet()
    random.choice(WAYS)(random)


# parsed


def _parsed(random: Random) -> None:
    """A shipped recipe whose text, values or options are changed."""
    path = random.choice(_shipped())
    text, options = path.read_text(), []
    way = random.choice(("text", "tree", "tree", "options"))
    if way == "text":
        text = garbled_text(random, text.encode()).decode(errors="replace")
    elif way == "tree":
        content = load_yaml(text)
        for _ in range(random.choice((1, 1, 2, 4))):
            _change(random, content)
        text = dump_yaml(content)
    else:
        places = [place for place, _ in _places(load_yaml(text))]
        for place in random.sample(places, random.choice((1, 2))):
            key = ".".join(map(str, place))
            options.append(f"--{_misspelt(random, key)}={dump_yaml(_value(random)).strip()}")
    Path("mine.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    told = f"{path.relative_to(ROOT)}, {way} {options}: {text[:3000]}"
    recipe = _refused_well(lambda: Recipe(Path("mine.yaml"), options), told)
    if recipe is not None:
        _same_again(recipe, told)


def _same_again(recipe: Recipe, told: str) -> None:
    """The resolved copy is the same recipe, wherever it is kept."""
    Path("resolved.yaml").write_text(recipe.text, encoding="utf-8")
    again = Recipe(Path("resolved.yaml"))
    assert _settings(again) == _settings(recipe), f"another recipe: {told}"
    assert again.text == recipe.text, f"another text: {told}"
    header = {"zoo": {"recipe": recipe.text, "name": "test/tiny"}}
    kept = _refused_well(lambda: Recipe.of_checkpoint(header, Path("last.ckpt"))[0], told)
    if kept is not None:  # it may name what only the user's own may
        assert _settings(kept) == _settings(recipe), f"another recipe in a checkpoint: {told}"


def _settings(recipe: Recipe) -> str:
    """All that was parsed, with types, not a number being itself."""
    return repr({k: v for k, v in recipe.config.as_dict().items() if k != "config"})


# of strangers


def _of_stranger(random: Random) -> None:
    """A recipe in a checkpoint that names a module beside the user."""
    Path(f"{STRANGER}.py").write_text(
        f"open({os.path.abspath(RAN)!r}, 'w').close()\n"
        "class Thing:\n    def __init__(self, *args, **kwargs): pass\n"
    )
    evil: Any = {"class_path": f"{STRANGER}.Thing", "init_args": {}}
    Path("evil.yaml").write_text(yaml.safe_dump(evil))
    content = _tiny() if random.random() < 0.5 else load_yaml(random.choice(_shipped()).read_text())
    for _ in range(random.choice((1, 2))):
        value = random.choice(
            (evil, [evil], f"{STRANGER}.Thing", STRANGER, {"class_path": STRANGER}, str(evil),
             "evil.yaml", {"_target_": f"{STRANGER}.Thing"}, {f"{STRANGER}.Thing": {}})
        )  # fmt: skip
        place = random.choice((*_HOLES, *(place for place, _ in _places(content))))
        _put(content, place, copy.deepcopy(value))  # it may be put into itself
    sys.path.insert(0, os.getcwd())
    told = f"a stranger's recipe: {dump_yaml(content)[:3000]}"
    text = dump_yaml(content)
    if random.random() < 0.1:
        text = garbled_text(random, text.encode()).decode(errors="replace")
    header = {"zoo": {"recipe": text, "name": "test/tiny"}}

    def build() -> None:
        recipe, _ = Recipe.of_checkpoint(header, Path("last.ckpt"))
        recipe.build_trainer()
        recipe.build_checkpoints()
        if "resnet10t" in text:
            recipe.build()

    try:
        _refused_well(build, told)
    finally:
        sys.path.remove(os.getcwd())
        imported = sys.modules.pop(STRANGER, None)
    assert imported is None and not Path(RAN).exists(), f"code has run: {told}"


_HOLES = (
    *(("trainer", "callbacks"), ("trainer", "logger"), ("trainer", "strategy"), ("config",)),
    *(("trainer", "plugins"), ("trainer", "profiler"), ("trainer", "accelerator")),
    *(("model", "class_path"), ("data", "class_path"), ("model", "init_args", "model")),
    *(("data", "dict_kwargs"), ("checkpoint", "class_path"), ("model", "init_args", "optimizer")),
)


# trained


def _trained(random: Random) -> None:
    """A tiny run with settings of Lightning, the task and the data, used together."""
    path = tiny_recipe(Path.cwd())
    options = ["--trainer.max_steps=3", "--trainer.limit_train_batches=2",
               "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]  # fmt: skip
    names = random.sample(list(SETTINGS), random.choice((1, 1, 2, 2, 3)))
    options += [f"--{name}={dump_text(random.choice(SETTINGS[name]))}" for name in names]
    _command(random, "train", [str(path), *options])
    if random.random() < 0.4 and Path("runs").exists():
        more = random.choice(list(SETTINGS))
        value = dump_text(random.choice(SETTINGS[more]))
        _command(random, "train", [str(path), "--resume", f"--{more}={value}"])


def dump_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _command(random: Random, name: str, arguments: list[str]) -> None:
    """A command ends well, or with one line and exit code 2."""
    told = f"zoo {name} {' '.join(arguments)}"
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        code = zoo.train.main(arguments)
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    if code == 0:
        assert not lines, f"{told}: succeeded with {lines}"
        return
    assert code == 2 and len(lines) == 1, f"{told}: exit code {code}, {errors.getvalue()[-2000:]}"
    assert len(lines[0]) < 1500, f"{told}: a refusal of {len(lines[0])} characters"


def _lightning(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.{name}", "init_args": arguments}


#: Settings -> what they may be set to, right and wrong.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "trainer.max_epochs": (None, -1, 0, 1, 2, 10**9, "x"),
    "trainer.max_steps": (0, 1, 3, 2.5),  # some end at least
    "trainer.min_epochs": (2, None, -3),
    "trainer.max_time": ("00:00:00:01", {"seconds": 1}, "soon", None),
    "trainer.overfit_batches": (1, 0.01, 0.0, 2.5, -1, 1.0),
    "trainer.limit_train_batches": (0, 1, 0.001, 1.0, -1, 10**9, None),
    "trainer.limit_val_batches": (0, 1, 0.0001, None),
    "trainer.limit_test_batches": (0, 1, None),
    "trainer.val_check_interval": (1, 0.5, 2, 10**6, "00:00:00:01", None, 0),
    "trainer.check_val_every_n_epoch": (1, 2, None, 0, 10**6),
    "trainer.num_sanity_val_steps": (0, 1, -1),
    "trainer.log_every_n_steps": (0, 1, 10**6, -1),
    "trainer.accumulate_grad_batches": (1, 2, 0, 100),
    "trainer.gradient_clip_val": (0, 1.0, 1e-30, -1, "x"),
    "trainer.gradient_clip_algorithm": ("norm", "value", "x"),
    "trainer.deterministic": (True, "warn", "x"),
    "trainer.benchmark": (True,),
    "trainer.inference_mode": (False,),
    "trainer.detect_anomaly": (True,),
    "trainer.barebones": (True,),
    "trainer.fast_dev_run": (True, 2, -1),
    "trainer.precision": ("16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", 32, 16, 8),
    "trainer.accelerator": ("auto", "cpu", "gpu", "tpu", "mps", "x", 3),
    "trainer.devices": (1, "auto", -1, 0, [0], "x", [1, 1]),
    "trainer.strategy": ("auto", "x", "fsdp", "deepspeed"),
    "trainer.num_nodes": (1, 0),
    "trainer.sync_batchnorm": (True,),
    "trainer.reload_dataloaders_every_n_epochs": (1, -1),
    "trainer.use_distributed_sampler": (True,),
    "trainer.enable_checkpointing": (False, True),
    "trainer.enable_model_summary": (True,),
    "trainer.default_root_dir": ("elsewhere", "/proc/none"),
    "trainer.profiler": ("simple", "advanced", "pytorch", "x"),
    "trainer.logger": (
        *(True, False, []),
        _lightning("loggers.CSVLogger", save_dir="logs"),
        _lightning("loggers.WandbLogger", offline=True),
        _lightning("loggers.MLFlowLogger"),
        _lightning("loggers.CometLogger"),
        _lightning("loggers.NeptuneLogger"),
    ),
    "trainer.plugins": (
        _lightning("plugins.DoublePrecision"),
        _lightning("plugins.HalfPrecision", precision="bf16-true"),
        _lightning("plugins.MixedPrecision", precision="bf16-mixed", device="cpu"),
        _lightning("plugins.TorchSyncBatchNorm"),
        _lightning("plugins.BitsandbytesPrecision", mode="nf4"),
    ),
    "trainer.callbacks": (
        [_lightning("callbacks.EarlyStopping", monitor="val/acc1", mode="max")],
        [_lightning("callbacks.EarlyStopping", monitor="val/acc1", mode="maximum")],
        [_lightning("callbacks.EarlyStopping", monitor="nothing")],
        [_lightning("callbacks.ModelCheckpoint", monitor="val/acc1", mode="x")],
        [_lightning("callbacks.ModelCheckpoint", every_n_train_steps=1, save_top_k=-1)],
        [_lightning("callbacks.StochasticWeightAveraging", swa_lrs=0.1)],
        [_lightning("callbacks.StochasticWeightAveraging", swa_lrs=-1)],
        [_lightning("callbacks.WeightAveraging")],
        [_lightning("callbacks.EMAWeightAveraging")],
        [_lightning("callbacks.GradientAccumulationScheduler", scheduling={0: 2})],
        [_lightning("callbacks.LearningRateMonitor")],
        [_lightning("callbacks.DeviceStatsMonitor")],
        [_lightning("callbacks.BackboneFinetuning")],
        [_lightning("callbacks.LearningRateFinder")],
        [_lightning("callbacks.BatchSizeFinder")],
        [_lightning("callbacks.ModelPruning", pruning_fn="l1_unstructured")],
        [_lightning("callbacks.Timer", duration="00:00:00:01")],
        [_lightning("callbacks.Timer", duration="soon")],
        [_lightning("callbacks.OnExceptionCheckpoint", dirpath="broken")],
        [_lightning("callbacks.TQDMProgressBar"), _lightning("callbacks.RichProgressBar")],
        [_lightning("callbacks.RichModelSummary"), _lightning("callbacks.ModelSummary")],
        [_lightning("callbacks.Nothing")],
    ),
    "model.init_args.ema_decay": (0.9, 0.0, 1.0, -1, "x", None),
    "model.init_args.num_classes": (9, 0, -1, 10**9, None),
    "model.init_args.pretrained": ("no.ckpt", True, "zoo://x", "https://127.0.0.1:9/x.pt", None),
    "model.init_args.model": ("resnet10t", "nothing", "", "vmamba_tiny", None),
    "model.init_args.model_args": ({}, {"stem_width": 0}, {"channels": []}, {"x": 1}, None),
    "model.init_args.optimizer.opt": ("sgd", "adamw", "muon", "lion", "x", ""),
    "model.init_args.optimizer.lr": (0, -1, 1e30, float("nan"), float("inf"), "x", None),
    "model.init_args.optimizer.lr_batch_size": (1, 0, -5),
    "model.init_args.optimizer.weight_decay": (-1, 1e30, 0),
    "model.init_args.optimizer.betas": ([0.9, 0.99], [2, 3], [0.9], None, "x"),
    "model.init_args.schedule.sched": ("cosine", "tanh", "step", "multistep", "plateau", "x"),
    "model.init_args.schedule.warmup_epochs": (0, 1.5, 100, -1, 10**9),
    "data.init_args.image_size": (8, 1, 0, -1, 10**9, [32, 32], None),
    "data.init_args.batch_size": (1000000, 1, 0, -1, None),
    "data.init_args.num_workers": (0, -1, 2),
    "data.init_args.crop_pct": (0, 1, 2.0, -1, None),
    "checkpoint.every_n_steps": (1, 0, -1, 10**6),
    "checkpoint.monitor": ("val/acc1", "nothing", None, ""),
    "checkpoint.mode": ("min", "max", "x", None),
    "seed_everything": (0, -1, 2**40, True, False, None, "x"),
}


# parts


@cache
def _shipped() -> tuple[Path, ...]:
    return tuple(p for p in sorted(ROOT.glob("recipes/*/*/*.yaml")) if p.stem != "proof")


def _tiny() -> dict[str, Any]:
    return load_yaml(tiny_recipe(Path.cwd()).read_text())


def _refused_well(make: Callable[[], Any], told: str) -> Any:
    """What ``make`` gives, or None where it refuses as is promised."""
    try:
        return make()
    except ZooError as error:
        message = str(error)
        assert "\n" not in message.strip(), f"a refusal of several lines: {message}: {told}"
        assert 0 < len(message) < 1500, f"a refusal of {len(message)} characters: {told}"
    return None


def _places(content: Any, place: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every value of a recipe with where it stands."""
    inner = (
        content.items() if isinstance(content, dict)
        else enumerate(content) if isinstance(content, list)
        else ()
    )  # fmt: skip
    for key, value in inner:
        yield (*place, key), value
        yield from _places(value, (*place, key))


def _put(content: Any, place: tuple, value: Any) -> None:
    for key in place[:-1]:
        inner = content[key] if isinstance(content, list) else content.get(key)
        if not isinstance(inner, (dict, list)):
            content[key] = inner = {}
        content = inner
    if isinstance(content, list) and not isinstance(place[-1], int):
        content.append(value)
    elif isinstance(content, dict) or place[-1] < len(content):
        content[place[-1]] = value


def _change(random: Random, content: dict[str, Any]) -> None:
    """Something about one value: itself, its key, its place."""
    places = list(_places(content))
    if not places:
        return
    place, value = random.choice(places)
    way = random.random()
    if way < 0.5:
        _put(content, place, _value(random))
    elif way < 0.6:
        _put(content, place, copy.deepcopy(random.choice(places)[1]))
    elif way < 0.7:
        _put(content, place, [value] if random.random() < 0.5 else {"x": value})
    elif way < 0.8:
        paths = [p for p in _shipped() if p.stem == "small"]
        other = list(class_paths(load_yaml(random.choice(paths).read_text())))
        _put(content, (random.choice(("model", "data")), "class_path"), random.choice(other)[1])
    else:
        holder: Any = content
        for key in place[:-1]:
            holder = holder[key]
        del holder[place[-1]]
        if way < 0.9 and isinstance(holder, dict):
            holder[_misspelt(random, str(place[-1]))] = value


def _misspelt(random: Random, key: str) -> str:
    if random.random() < 0.7 or not key:
        return key
    at = random.randrange(len(key))
    return key[:at] + random.choice(("", "_", ".", "+", "é", " ", "x")) + key[at + 1 :]


def _value(random: Random) -> Any:
    return copy.deepcopy(random.choice(VALUES))


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**63, 10**40, 0.5, -0.0, 1e-3, 1e22, 5e-324),
    *(float("inf"), float("nan"), "", "x", "null", "on", "1e-3", "1:30", "2024-01-01", "0x1f"),
    *("a: b", "#", "- x", "{", "\n", "\u2028", "\u00e9", "~", "$HOME", "${oc.env:HOME}", "../x"),
    *([], [1], [None, [[]]], ["x", 1.5], {}, {"a": None}, {1: 2}, {None: 1}, {"a.b": {"c": []}}),
    *({"class_path": "zoo.data.Digits"}, {"class_path": None}, {"class_path": "os.system"}),
    *({"init_args": {}}, "zoo.data.Digits", "zoo.tasks.Segmentation", "torch.nn.GELU", "a" * 5000),
)

WAYS: tuple[Callable[[Random], None], ...] = (
    _parsed, _parsed, _parsed, _of_stranger, _of_stranger, _trained,
)  # fmt: skip

torch.set_num_threads(1)
