"""Tasks and data modules do what a user of Lightning expects of any."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import zoo
from tests.tiny import ROOT
from tests.tiny_tasks import TINY
from zoo.cli import Recipe
from zoo.data import Digits
from zoo.errors import ZooError
from zoo.tasks import ImageClassification, Segmentation


def classifier(**settings) -> ImageClassification:
    args = {"stem_width": 8, "channels": [8, 16, 16, 32]}
    return ImageClassification("resnet10t", 10, model_args=args, **settings)


def trainer(**settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet["enable_model_summary"] = False
    return pl.Trainer(accelerator="cpu", max_epochs=1, **quiet | settings)


@pytest.fixture
def loader() -> DataLoader:
    torch.manual_seed(0)
    images, labels = torch.randn(20, 3, 32, 32), torch.randint(0, 10, (20,))
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def test_a_checkpoint_is_loaded_by_its_class(trained_run):
    path = trained_run / "checkpoints" / "best.ckpt"
    task = ImageClassification.load_from_checkpoint(path)
    assert task.class_names == [str(digit) for digit in range(10)]
    task.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(task(x), zoo.load(path, device="cpu").task.eval()(x))
    with pytest.raises(ZooError, match=r"is a checkpoint of ImageClassification, expected one of"):
        Segmentation.load_from_checkpoint(path)
    with pytest.raises(ZooError, match="got num_classes: the recipe in the checkpoint has all"):
        ImageClassification.load_from_checkpoint(path, num_classes=3)


def test_a_plain_loader_trains_and_predicts(loader):
    """The rate for a number of samples is that of the loader's batch."""
    task, fit = classifier(), trainer()
    lr, per = task.optimizer_settings.lr, task.optimizer_settings.lr_batch_size
    fit.fit(task, loader, loader)
    assert fit.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(lr * 4 / per)
    answers = fit.predict(task, loader)
    assert [answer.shape for answer in answers] == [(4, 10)] * 5
    images, _ = next(iter(loader))
    with torch.no_grad():
        torch.testing.assert_close(answers[0], task.eval()(images))
        torch.testing.assert_close(answers[0], task.predict_step(images))


def test_a_data_module_is_predicted():
    data, task = Digits(image_size=32, batch_size=64, eval_batch_size=180), classifier()
    answers = trainer().predict(task, datamodule=data)
    assert sum(len(answer) for answer in answers) == len(data.source("test"))


def test_a_batch_by_names():
    recipe, overrides = TINY["BinaryChangeDetection"]
    task, _ = Recipe(ROOT / "recipes" / f"{recipe}.yaml", overrides).build()
    task.eval()
    pair = {"pre": torch.randn(1, 3, 32, 32), "post": torch.randn(1, 3, 32, 32)}
    with torch.no_grad():
        answer = task.predict_step(pair | {"change": torch.zeros(1, 32, 32)})
        torch.testing.assert_close(answer, task(**pair))
    with pytest.raises(
        ZooError, match=r"a batch has \['pre'\], but BinaryChangeDetection needs post"
    ):
        task.predict_step({"pre": pair["pre"]})


def test_what_answers_no_batches_says_so():
    recipe, overrides = TINY["LanguageModeling"]
    task, _ = Recipe(ROOT / "recipes" / f"{recipe}.yaml", overrides).build()
    with pytest.raises(ZooError, match="LanguageModeling answers no batches: use zoo predict"):
        task.predict_step({"input_ids": torch.zeros(1, 4, dtype=torch.long)})


def test_loggers_get_the_recipe(trained_run):
    """TensorBoard's are beside its events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in trained_run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert (folder / "hparams.yaml").read_text().count("resnet10t") == 1
