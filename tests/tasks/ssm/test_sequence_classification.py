from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.tiny import ROOT
from zoo.cli import Recipe, quiet
from zoo.data.formats.maps import SmallSample
from zoo.data.ssm.long_range_arena import DocumentRetrieval
from zoo.data.ssm.pixels import SequentialDigits
from zoo.errors import ZooError
from zoo.tasks.ssm.sequence_classification import SequenceClassification

RECIPE = ROOT / "recipes/ssm/lmuformer/small.yaml"
TINY = {"in_channels": 1, "embed_dims": 8, "num_heads": 2}


def small(tmp_path: Path) -> Recipe:
    return Recipe(
        RECIPE,
        [
            '--data.init_args.sample={"train": 12, "val": 6, "test": 6}',
            f"--data.init_args.root={tmp_path / 'words'}",
            "--data.init_args.batch_size=6",
        ],
    )


def test_words_are_heard_frame_by_frame(tmp_path):
    quiet()
    recipe = small(tmp_path)
    task, data = recipe.build()
    trainer = recipe.build_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    assert set(metrics) == {"test/loss", "test/acc"}
    assert set(task.figures()) == {"confusion_matrix", "predictions"}
    assert len(task.shown) == 6
    (tmp_path / "out").mkdir()
    wav = sorted((tmp_path / "words").glob("*/*.wav"))[0]
    (row,) = task.predict_files([wav], data, tmp_path / "out")
    assert (tmp_path / "out" / f"0001_{wav.stem}.png").is_file()
    assert row["prediction"] in data.class_names and row["steps"] == 100
    assert 1 <= row["decided_at_step"] <= 100
    # what it hears in steps it hears at once
    whole = task(data.read_file(wav)[None]).float().softmax(-1)[0]
    assert data.class_names[int(whole.argmax())] == row["prediction"]
    assert row["probability"] == pytest.approx(float(whole.max()), abs=1e-4)


def test_losses_are_those_of_the_definition():
    task = SequenceClassification("lmuformer", 3, TINY, loss="bce", label_smoothing=0.1)
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 1.0]])
    shares = torch.tensor([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3], [0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3]])
    p = logits.sigmoid()
    expected = -(shares * p.log() + (1 - shares) * (1 - p).log()).mean()
    torch.testing.assert_close(task._loss(logits, torch.tensor([0, 2])), expected)
    task = SequenceClassification("lmuformer", 3, TINY)
    mixed = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]])
    expected = -(mixed * F.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(task._loss(logits, mixed), expected)


def test_data_must_fit(tmp_path):
    task = SequenceClassification("lmuformer", 10, TINY)
    data = SequentialDigits()
    data.setup("test")
    task.check_data(data)
    data.d_input = 3
    with pytest.raises(ZooError, match=r"data have d_input 3, but .* set .*d_input to 3"):
        task.check_data(data)
    pairs = DocumentRetrieval(str(tmp_path / "aan"), SmallSample(4, 2, 2, size=20))
    pairs.setup("test")
    with pytest.raises(ZooError, match=r"data have d_input None"):
        SequenceClassification("lmuformer", 2, TINY).check_data(pairs)


def test_paper_recipe_builds():
    with torch.device("meta"):
        task, data = Recipe(RECIPE.with_name("paper.yaml")).build()
    assert sum(p.numel() for p in task.model.parameters()) == 1_621_796
    assert (data.d_input, data.mixup, data.batch_size) == (128, 0.6, 128)


def test_columns_of_a_picture_that_does_not_stream(tmp_path):
    from PIL import Image

    task, data = SequenceClassification("lmuformer", 10, TINY), SequentialDigits()
    Image.new("L", (9, 9), 200).save(tmp_path / "digit.png")
    (tmp_path / "out").mkdir()
    (row,) = task.predict_files([tmp_path / "digit.png"], data, tmp_path / "out")
    assert set(row) == {"file", "prediction", "probability", "steps"} and row["steps"] == 64
