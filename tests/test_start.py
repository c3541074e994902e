"""What is imported before it is needed: counted, as no test measures time."""

from __future__ import annotations

import json
import subprocess
import sys
from tempfile import TemporaryDirectory

import pytest

from tests.tiny import ROOT, tiny_recipe
from zoo.__main__ import COMMANDS

#: Packages that take a second or more, alone or with others of them.
HEAVY = {
    *("torch", "lightning", "torchmetrics", "timm", "transformers", "torchvision", "datasets"),
    *("numpy", "scipy", "pandas", "sklearn", "skimage", "matplotlib", "jsonargparse", "h5py"),
}
#: Modules of everything that stands before an import of PyTorch: Python's own, YAML, rich.
FEW = 400


def loaded(code: str, *arguments: str, folder=ROOT) -> dict:
    """Run code in a fresh interpreter, with a list ``argv``; its exit code, errors, and modules."""
    script = f"""
import json, sys
argv = sys.argv[1:]
code = None
try:
{code}
except SystemExit as end:
    code = end.code
print()
print(json.dumps([code, sorted(sys.modules)]))
"""
    with TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=folder, capture_output=True, text=True, check=False,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": home},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return {
        "code": code,
        "error": done.stderr,
        "modules": modules,
        "packages": {name.partition(".")[0] for name in modules},
    }


COMMAND = "    from zoo.__main__ import main; code = main(argv)"


def is_light(run: dict) -> None:
    assert not HEAVY & run["packages"], sorted(HEAVY & run["packages"])
    assert len(run["modules"]) < FEW
    assert not [name for name in run["modules"] if name.startswith(("zoo.tasks.", "zoo.data."))]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    run = loaded(COMMAND, command, "--help")
    assert run["code"] == 0
    is_light(run)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["trian"], "did you mean train?"),
        (["train"], "which recipe?"),
        (["train", "no.yaml"], "no.yaml does not exist"),
        (["train", "vision/vmamba/smal"], "did you mean vision/vmamba/small"),
        (["train", "--resume", "no/run"], "has no checkpoints/last.ckpt"),
        (["train", "vision/vmamba/small", "--resume"], "no run with a checkpoint"),
        (["train", "vision/vmamba/small", "--ckpt_path", "no.ckpt"], "no.ckpt does not exist"),
        (["train", "vision/vmamba/small", "--trainr.max_epochs", "3"], "did you mean trainer?"),
        (["train", "vision/vmamba/small", "extra"], "extra: unexpected argument"),
        (["train", "vision/vmamba/small", "--data", "zoo.data.Digit"], "mean zoo.data.Digits"),
        (["train", "vision/vmamba/small", "--seed_everything"], "a value is missing"),
        (["evaluate"], "what? it comes first"),
        (["evaluate", "no/run"], "no/run does not exist"),
        (["evaluate", "no.yaml"], "no.yaml does not exist"),
        (["predict", "a.png"], "which model?"),
        (["predict", "a.png", "--checkpoint", "no/run"], "no/run does not exist"),
        (["predict", "a.png", "--recipe", "no", "--pretrained", "a"], "no does not exist"),
        (["prove", "vmamb"], "did you mean vmamba"),
        (["prove"], "which proof?"),
        (["prove", "vmamba", "--seeds", "a"], "--seeds is 'a'"),
        (["generate", "--target", "a"], "a prompt is missing"),
        (["list", "nothing*"], "no model matches"),
        (["cp", "vision/vmamba/smal", "mine.yaml"], "did you mean vision/vmamba/small"),
        (["convert", "a", "b"], "'b' must end in .safetensors"),
        (["convert", "a", "b.safetensors", "--model", "vmamba_tinny"], "mean vmamba_tiny"),
        (["bench", "scan"], "there is no op 'scan'"),
    ],
)
def test_a_wrong_command_line(tmp_path, arguments, expected):
    run = loaded(COMMAND, *arguments, folder=tmp_path)
    assert run["code"] == 2 and expected in run["error"], run["error"]
    assert len(run["error"].splitlines()) == 1
    is_light(run)


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("batch_size: 128", "batch_size: [", "tiny.yaml, line"),
        ("trainer:", "trainr:", "trainr: no such key; did you mean trainer?"),
        ("  init_args:", "  init_arg:", "init_arg: no such key; did you mean init_args?"),
        ("ImageClassification", "ImagClassification", "did you mean zoo.tasks.ImageClassification"),
        ("zoo.data.Digits", "Digits", "did you mean zoo.data.Digits?"),
        ("zoo.data.Digits", "zoo.dat.Digits", "did you mean zoo.data.Digits?"),
        ("seed_everything: 1", "seed_everything: 1\ntrainer: {}", "trainer stands there twice"),
    ],
)
def test_a_wrong_recipe(tmp_path, old, new, expected):
    recipe = tiny_recipe(tmp_path)
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new, 1))
    run = loaded(COMMAND, "train", str(recipe), folder=tmp_path)
    assert run["code"] == 2 and expected in run["error"], run["error"]
    is_light(run)


def test_a_list_imports_no_paper():
    run = loaded(COMMAND, "list")
    assert run["code"] == 0
    is_light(run)
    names = loaded(
        "    import zoo; code = [len(zoo.list_models()), zoo.model_info('vim_tiny').source]"
    )
    assert names["code"][0] > 100 and names["code"][1].startswith("hf://")
    is_light(names)
    assert papers(names) == set()


def papers(run: dict) -> set[str]:
    """Files of papers that were imported."""
    return {
        name
        for name in run["modules"]
        if name.startswith("zoo.models.") and name.count(".") == 3 and "._" not in name
    }


@pytest.mark.slow
def test_timm_knows_the_backbones_without_their_papers():
    run = loaded(
        "    import zoo, timm\n"
        "    code = [timm.list_models('vmamba_*'), timm.list_models('vim_*', pretrained=True),\n"
        "            timm.get_pretrained_cfg('vmamba_tiny').first_conv]"
    )
    assert len(run["code"][0]) == 12 and len(run["code"][1]) == 5
    assert run["code"][2] == "patch_embed.0"
    assert papers(run) == set()


def test_a_model_costs_timm_and_its_own_paper():
    timm = loaded("    import timm")
    run = loaded(
        "    import zoo\n"
        "    m = zoo.create_model('vmamba_tiny', depths=(1, 1, 1, 1), dims=8)\n"
        "    code = type(m).__name__"
    )
    assert run["code"] == "VMamba" and papers(run) == {"zoo.models.vision.vmamba"}
    more = set(run["modules"]) - set(timm["modules"])
    others = {name for name in more if name.partition(".")[0] not in ("zoo", "torch", "timm")}
    assert len(others) < 25, sorted(others)


@pytest.mark.slow
def test_the_first_step_of_the_quickstart():
    """Beyond what Lightning itself imports: timm, the parser, and what this recipe is about."""
    lightning = loaded("    import lightning.pytorch")
    run = loaded(
        "    import lightning.pytorch as pl\n"
        "    class Stop(pl.Callback):\n"
        "        def on_train_batch_end(self, *args): raise SystemExit(5)\n"
        "    from zoo.train import train\n"
        "    from zoo.cli import Recipe\n"
        "    from pathlib import Path\n"
        "    import tempfile, zoo.cli\n"
        "    build = Recipe.build_trainer\n"
        "    Recipe.build_trainer = lambda self, callbacks=(), **more: build(\n"
        "        self, callbacks=[*callbacks, Stop()], **more)\n"
        "    try:\n"
        "        with tempfile.TemporaryDirectory() as runs:\n"
        "            train(Recipe(Path('recipes/vision/vmamba/small.yaml')), 'a', Path(runs))\n"
        "    except BaseException as error:\n"
        "        code = type(error).__name__"
    )
    assert run["code"] == "Interrupted"
    assert papers(run) == {"zoo.models.vision.vmamba"}
    held_off = {
        *("datasets", "diffusers", "h5py", "nibabel", "soundfile", "skimage", "rasterio"),
        *("segmentation_models_pytorch", "pycocotools", "trackeval"),
    }
    more = run["packages"] - lightning["packages"]
    assert not held_off & more, sorted(held_off & more)
