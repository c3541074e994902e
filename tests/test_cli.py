"""Commands: what they print, write and return; a user's error is one line and exit code 2."""

import csv
import json
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

import zoo.__main__
import zoo.evaluate
import zoo.list
import zoo.train
from tests.tiny import ROOT, start, tiny_recipe
from zoo.arguments import new_folder
from zoo.cli import Recipe
from zoo.command import command
from zoo.errors import ZooError
from zoo.runs.folder import LAST, latest_run, run_path
from zoo.trainer_errors import refused

STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/acc1", "mode": "x"},
}


def error_of(capsys, code: int) -> str:
    """The one line on stderr."""
    assert code == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("lr:", "lrr:", "tiny.yaml: model.init_args.optimizer.lrr: no such key; did you mean lr?"),
        ("lr: 0.002", "lr: abc", "model.init_args.optimizer.lr: 'abc' given, expected float"),
        ("trainer:", "trainr:", "tiny.yaml: trainr: no such key; did you mean trainer?"),
        ("max_epochs", "max_epoch", "trainer.max_epoch: no such key; did you mean max_epochs"),
        ("max_epochs: 1", "max_epochs: x", "trainer.max_epochs: 'x' given, expected int or null"),
        (
            "image_size",
            "imge_size",
            "data.init_args.imge_size: no such key; did you mean image_size",
        ),
        ("ImageClassification", "Foo", "model.class_path: 'zoo.tasks.Foo' given, expected a class"),
        (
            "zoo.data.Digits",
            "zoo.tasks.ImageClassification",
            "data.class_path: expected a subclass of DataModule",
        ),
        ("zoo.data.Digits", "zoo.data.ImageFolder", "data.init_args.root: missing"),
        (
            "warmup_epochs: 1",
            "sched: cosin",
            "schedule.sched: 'cosin' given, expected cosine, tanh",
        ),
        ("  init_args:", "  init_arg:", "init_arg: no such key; did you mean init_args?"),
        ("num_classes: 10", "num_classes: 7", "num_classes is 7, but the data have 10 classes"),
        ("stem_width", "stem_wdth", "model_args: ResNet.__init__() got an unexpected keyword"),
        ("resnet10t", "vmamba_tyni", "there is no model 'vmamba_tyni': did you mean"),
        ("batch_size: 128", "batch_size: 0", "batch_size is 0, expected 1 or more"),
        ("batch_size: 128", "batch_size: [", "tiny.yaml, line 6: not valid YAML"),
    ],
)
def test_wrong_recipe_is_one_line(in_tmp_path, capsys, old, new, expected):
    recipe = tiny_recipe(in_tmp_path)
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new, 1))
    assert expected in error_of(capsys, zoo.train.main([str(recipe)]))
    assert not (in_tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--model.lrr", "3"], "--model.lrr: no such key; expected one of"),
        (["--model.optimizer.lr=x"], "--model.optimizer.lr: 'x' given, expected float"),
        (["--trainer.max_epoch", "3"], "--trainer.max_epoch: no such key; did you mean max_epochs"),
        (["--trainr.max_epochs", "3"], "--trainr.max_epochs: no such key; did you mean trainer?"),
        (["--trainer.max_epochs"], "--trainer.max_epochs: a value is missing"),
        (["extra"], "extra: unexpected argument"),
        (["--trainer.accelerator", "gpx"], "trainer: You selected an invalid accelerator name"),
        (["--checkpoint.every_n_steps", "0"], "checkpoint.every_n_steps is 0, expected 1 or more"),
        (["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch is 0, expected 1 or"),
        (["--trainer.val_check_interval=0"], "val_check_interval is 0, expected steps, a share"),
        (["--model.class_path", "zoo.tasks." + "a" * 5000], "aaa... given, expected a class that"),
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches is 0, expected 1 or"),
        (["--runs", "recipes/test/tiny.yaml"], "--runs: the folder recipes/test/tiny.yaml/test/"),
        (["--model.optimizer.opt", "adamv"], "optimizer.opt is 'adamv'; did you mean adam"),
        (["--model.num_classes", "0"], "num_classes is 0, expected 2 or more"),
        (["--model.model_args.stem_width", "x"], "model.init_args.model or model_args: "),
        (["--model.model_args", "{channels: []}"], "model.init_args.model or model_args: list ind"),
        (["--data.num_workers", "-1"], "data.init_args.num_workers is -1, expected 0 or more"),
        (["--data.image_size", "-3"], "data.init_args.image_size is -3, expected 1 or more"),
        (["--data.augmentation.auto_augment", "foo"], "auto_augment is 'foo', expected such as"),
        (
            ["--trainer.callbacks", json.dumps([STOPPING])],
            "trainer: `mode` can be min, max, got x",
        ),
        (["--seed_everything", "-1"], "seed_everything: -1 is not in bounds"),
        (["--model.optimizer.lr_batch_size", "0"], "lr_batch_size is 0, expected 1 or more"),
        (["--resume"], "--resume: no run with a checkpoint in runs/test/tiny"),
        (["--ckpt_path", "no.ckpt"], "no.ckpt does not exist, expected a checkpoint"),
        (
            ["--data", "zoo.data.ImageFolder", "--data.root", "/no/such/folder"],
            "data.init_args.root: /no/such/folder is not a folder, expected a folder with train/",
        ),
    ],
)
def test_wrong_option_is_one_line(in_tmp_path, capsys, options, expected):
    recipe = tiny_recipe(in_tmp_path)
    assert expected in error_of(capsys, zoo.train.main([str(recipe), *options]))
    assert not (in_tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["model.init_args.stages", "model.stages"])
def test_a_list_given_anew_takes_nothing_from_the_one_before(name):
    recipe = ROOT / "recipes/dense/yonos_sr/small.yaml"
    stage = {"train": "unet", "epochs": 1}
    assert Recipe(recipe).config.model.init_args.stages[2].distil
    (*_, third) = Recipe(
        recipe, [f"--{name}={json.dumps([stage] * 3)}"]
    ).config.model.init_args.stages
    assert third.epochs == 1 and not third.distil
    assert Recipe(recipe, ["--model.optimizer.lr=1"]).config.model.init_args.stages[2].distil


def test_broken_files_are_one_line(in_tmp_path, capsys, trained_run):
    assert "which recipe?" in error_of(capsys, zoo.train.main([]))
    assert "no.yaml does not exist" in error_of(capsys, zoo.train.main(["no.yaml"]))
    recipe = tiny_recipe(in_tmp_path)
    recipe.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a recipe" in error_of(capsys, zoo.train.main([str(recipe)]))

    recipe = str(tiny_recipe(in_tmp_path))
    whole = (trained_run / "checkpoints/last.ckpt").read_bytes()
    (in_tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    for run, arguments in (
        (zoo.train.main, [recipe, "--ckpt_path", "cut.ckpt"]),
        (zoo.evaluate.main, ["cut.ckpt"]),
    ):
        line = error_of(capsys, run(arguments))
        assert "cut.ckpt" in line and "truncated or no checkpoint" in line
    best = str(trained_run / "checkpoints/best.ckpt")
    line = error_of(capsys, zoo.train.main([recipe, "--ckpt_path", best]))
    assert "best.ckpt holds weights alone and cannot be gone on from" in line
    torch.save({"weight": torch.zeros(1)}, "other.ckpt")
    assert "is not a checkpoint of a run" in error_of(capsys, zoo.evaluate.main(["other.ckpt"]))
    assert not (in_tmp_path / "runs").exists()


def test_a_checkpoint_of_another_model_is_one_line(in_tmp_path, capsys, trained_run):
    files = {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()}
    other = "--model.init_args.model_args.channels=[8, 16, 16, 24]"
    for line in (
        error_of(capsys, zoo.evaluate.main([str(trained_run), other])),
        error_of(capsys, zoo.train.main(["--resume", str(trained_run), other])),
    ):
        assert "do not fit ResNet: other shapes (checkpoint / model): layer4.0.conv1" in line
        assert "[32, 16, 3, 3] / [24, 16, 3, 3]" in line and len(line) < 500
    average = ["--resume", str(trained_run), "--model.ema_decay=null"]
    line = error_of(capsys, zoo.train.main(average))
    assert "ema_decay is None, but the checkpoint has EMA weights" in line
    assert files == {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()}


def test_an_output_that_cannot_be_written_is_one_line(in_tmp_path, capsys, trained_run):
    (in_tmp_path / "x.txt").write_text("")
    for output, expected in (("x.txt/y.json", "--output: the folder x.txt"), (".", "is a folder")):
        line = error_of(capsys, zoo.evaluate.main([str(trained_run), "--output", output]))
        assert expected in line


def test_infinite_loss_is_one_line_and_keeps_what_was_saved(in_tmp_path, capsys):
    recipe = tiny_recipe(in_tmp_path, model__init_args__optimizer={"lr": 1e30})
    line = error_of(capsys, zoo.train.main([str(recipe), "--checkpoint.every_n_steps", "1"]))
    assert "the training loss became nan in epoch 0, step" in line
    (saved,) = in_tmp_path.glob("runs/test/tiny/*/checkpoints/last.ckpt")
    weights = torch.load(saved, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for key, value in weights.items() if "model." in key)


def test_a_run_without_steps_logged_or_batches_tested(in_tmp_path, capsys):
    limits = ["--trainer.limit_test_batches", "0", "--trainer.limit_train_batches", "1"]
    recipe = str(tiny_recipe(in_tmp_path))
    assert zoo.train.main([recipe, *limits, "--trainer.log_every_n_steps", "0"]) == 0
    assert "nothing was tested, as trainer.limit_test_batches is 0" in capsys.readouterr().out
    (run,) = in_tmp_path.glob("runs/test/tiny/*")
    assert "limit_test_batches is 0: nothing is" in error_of(capsys, zoo.evaluate.main([str(run)]))


@pytest.mark.parametrize("name", ["WandbLogger", "MLFlowLogger", "CometLogger"])
def test_a_logger_that_is_not_installed_is_one_line(in_tmp_path, capsys, name):
    package = name.removesuffix("Logger").lower()
    if find_spec(package) or find_spec(f"{package}_ml"):
        pytest.skip(f"{package} is installed")
    given = json.dumps({"class_path": f"lightning.pytorch.loggers.{name}"})
    options = [str(tiny_recipe(in_tmp_path)), "--trainer.logger", given]
    line = error_of(capsys, zoo.train.main(options)).lower()
    assert "tiny.yaml: trainer: " in line and package in line and "install" in line


@pytest.mark.slow
def test_a_callback_finds_the_size_of_the_batches(in_tmp_path, capsys):
    finder = {"class_path": "lightning.pytorch.callbacks.BatchSizeFinder"}
    finder["init_args"] = {"max_trials": 1, "steps_per_trial": 1, "init_val": 64}
    options = ["--trainer.callbacks", json.dumps([finder]), "--trainer.limit_train_batches", "1"]
    assert zoo.train.main([str(tiny_recipe(in_tmp_path)), *options]) == 0
    assert "test of the best checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    "callback, expected",
    [("BackboneFinetuning", "has no attribute 'backbone'"), ("LearningRateFinder", "should have")],
)
def test_a_callback_that_wants_what_a_task_lacks_is_one_line(
    in_tmp_path, capsys, callback, expected
):
    given = json.dumps([{"class_path": f"lightning.pytorch.callbacks.{callback}"}])
    options = [str(tiny_recipe(in_tmp_path)), "--trainer.callbacks", given]
    line = error_of(capsys, zoo.train.main(options))
    assert "tiny.yaml: trainer: " in line and expected in line


def test_a_batch_of_one_value_is_one_line(in_tmp_path, capsys):
    recipe = tiny_recipe(in_tmp_path)
    line = error_of(capsys, zoo.train.main([str(recipe), "--data.batch_size", "1"]))
    assert "raise --data.init_args.batch_size" in line


def test_debug_variable_shows_the_traceback(monkeypatch):
    @command
    def fail(argv):
        raise ZooError("because")

    assert fail([]) == 2
    monkeypatch.setenv("ZOO_DEBUG", "1")
    with pytest.raises(ZooError, match="because"):
        fail([])


def test_run_folder(trained_run):
    files = {str(path.relative_to(trained_run)) for path in trained_run.rglob("*")}
    assert files >= {
        "recipe.yaml",
        "metrics.csv",
        "learning_curve.png",
        "confusion_matrix.png",
        "predictions.png",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "tensorboard",
    }
    recipe = yaml.safe_load((trained_run / "recipe.yaml").read_text())
    assert recipe["model"]["init_args"]["optimizer"]["weight_decay"] == 0.05  # resolved defaults
    assert recipe["data"]["class_path"] == "zoo.data.Digits"
    with (trained_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/acc1"]) for row in rows) == 3
    assert sum(bool(row["train/loss"]) for row in rows) == 3
    assert 0 <= float(rows[-1]["test/acc1"]) <= float(rows[-1]["test/acc5"]) <= 1


def test_best_checkpoint_holds_the_judged_weights_alone(trained_run):
    best = torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)
    last = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)
    assert "optimizer_states" not in best and "optimizer_states" in last
    assert all(key.startswith("model.") for key in best["state_dict"])
    assert any(key.startswith("ema.module.") for key in last["state_dict"])
    assert best["class_names"] == list("0123456789")


def test_evaluate_repeats_the_test(trained_run, capsys, in_tmp_path):
    with (trained_run / "metrics.csv").open(newline="") as file:
        tested = float(list(csv.DictReader(file))[-1]["test/acc1"])
    assert zoo.evaluate.main([str(trained_run), "--output", "out.json"]) == 0
    report = json.loads((in_tmp_path / "out.json").read_text())
    assert report["test/acc1"] == pytest.approx(tested, abs=1e-7)
    assert f"{tested:.2%}" in capsys.readouterr().out
    code = zoo.evaluate.main([str(trained_run), "--data.init_args.image_sise", "16"])
    assert "--data.init_args.image_sise: no such key" in error_of(capsys, code)
    recipe = tiny_recipe(in_tmp_path)
    assert "nothing trained in it" in error_of(capsys, zoo.evaluate.main([str(recipe)]))


def test_evaluation_takes_one_device(tmp_path, trained_run, capsys):
    """Whatever the recipe was trained on."""
    recipe = tiny_recipe(tmp_path, trainer__accelerator="gpu", trainer__devices=8)
    arguments = [str(trained_run), "--recipe", str(recipe)]
    output = ["--output", str(tmp_path / "it.json")]
    assert zoo.evaluate.main([*arguments, *output]) == 0
    wrong = ["--trainer.accelerator", "tpu", "--trainer.devices", "1"]
    assert "trainer: " in error_of(capsys, zoo.evaluate.main([*arguments, *output, *wrong]))


@pytest.mark.slow
def test_finished_run_goes_on_with_more_epochs(trained_run, in_tmp_path):
    checkpoint = str(trained_run / "checkpoints/last.ckpt")
    assert zoo.train.main(["--ckpt_path", checkpoint, "--trainer.max_epochs", "4"]) == 0
    (run,) = in_tmp_path.glob("runs/test/tiny/*")
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4 * (1257 // 128)
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows if row["train/loss"]] == [3]


def test_runs_of_one_second_have_folders_of_their_own(in_tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.runs.folder.time.strftime", lambda _: "2026-01-02_03-04-05")
    root, stamp = Path("runs"), "2026-01-02_03-04-05"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder("--runs", run_path(root, "a/b")), range(12)))
    assert len(set(made)) == 12 and all(path.is_dir() for path in made)
    assert {path.name for path in made} == {stamp, *(f"{stamp}-{n}" for n in range(2, 13))}
    for path in made:
        (path / "checkpoints").mkdir()
        (path / LAST).write_text("")
    assert latest_run(root, "a/b").name == f"{stamp}-12"


@pytest.mark.slow
def test_a_new_run_takes_no_folder_that_is_there(in_tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.runs.folder.time.strftime", lambda _: "now")
    recipe = str(tiny_recipe(in_tmp_path, data__init_args__batch_size=628))
    assert zoo.train.main([recipe]) == 0
    before = (in_tmp_path / "runs/test/tiny/now/metrics.csv").read_bytes()
    assert zoo.train.main([recipe]) == 0
    assert (in_tmp_path / "runs/test/tiny/now/metrics.csv").read_bytes() == before
    assert (in_tmp_path / "runs/test/tiny/now-2/checkpoints/best.ckpt").is_file()


def test_list(capsys):
    assert zoo.list.main(["vmamba_tiny"]) == 0
    out = capsys.readouterr().out
    assert "30,249,064" in out and "vision/vmamba" in out and "small.yaml" in out
    assert "no model matches 'foo*'" in error_of(capsys, zoo.list.main(["foo*"]))


def test_unknown_command(capsys):
    assert "did you mean train?" in error_of(capsys, zoo.__main__.main(["trian"]))
    assert zoo.__main__.main(["--help"]) == 0
    assert "predict" in capsys.readouterr().out


def test_info_needs_torch_alone(tmp_path):
    script = (
        "import sys, zoo.__main__; code = zoo.__main__.main(['info']); "
        "assert not {'lightning', 'timm', 'torchmetrics'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 10
    assert any(line.startswith("CPU kernels") for line in lines)


@pytest.mark.slow
def test_exit_code_of_the_process(tmp_path):
    recipe = tiny_recipe(tmp_path)
    process = start("train", recipe, "--model.lrr", "3", folder=tmp_path)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert output.strip().splitlines()[-1].startswith("error: --model.lrr: no such key")
    assert "Traceback" not in output


def test_a_profiler_that_has_recorded_nothing_is_said():
    """Such as that of a run that is gone on with and has ended already."""
    error = AssertionError("Profiler must be initialized before accessing events")
    assert "too short for it to record" in str(refused(error, Namespace()))
