import pytest
import torch

from zoo.data import Digits
from zoo.errors import ZooError
from zoo.tasks import ImageClassification, MixupSettings

ARGS = dict(model="resnet10t", model_args={"stem_width": 8, "channels": [8, 8, 8, 8]})


@pytest.mark.parametrize("num_classes, expected", [(3, {"acc1"}), (10, {"acc1", "acc5"})])
def test_top_five_needs_more_than_five_classes(num_classes, expected):
    task = ImageClassification(num_classes=num_classes, **ARGS)
    assert set(task.scores["val"]["classes"]) == expected


def test_loss_with_and_without_mixup():
    logits, classes = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    smoothed = ImageClassification(num_classes=10, label_smoothing=0.2, **ARGS)
    off, on = 0.02, 0.82
    targets = torch.full((4, 10), off).scatter_(1, classes[:, None], on)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(smoothed.train_criterion(logits, classes), expected)

    mixed = ImageClassification(
        num_classes=10, label_smoothing=0.2, mixup=MixupSettings(prob=0.0), **ARGS
    )
    _, soft = mixed.mixup(torch.zeros(4, 3, 8, 8), classes)
    assert torch.allclose(soft, targets, atol=1e-6)
    assert torch.allclose(mixed.train_criterion(logits, soft), expected, atol=1e-6)


def test_mixup_needs_pairs():
    task = ImageClassification(num_classes=10, mixup=MixupSettings(), **ARGS)
    with pytest.raises(ZooError, match="mixup needs an even number"):
        task.training_step((torch.zeros(3, 3, 8, 8), torch.tensor([1, 2, 3])), 0)


def test_number_of_classes_must_fit():
    task = ImageClassification(num_classes=7, **ARGS)
    with pytest.raises(ZooError, match="num_classes is 7, but the data have 10 classes"):
        task.check_data(Digits())


def test_wrong_model_arguments():
    with pytest.raises(ZooError, match=r"model_args: .*unexpected keyword argument 'wdth'"):
        ImageClassification("vmamba_tiny", 10, model_args={"wdth": 3})
    with pytest.raises(ZooError, match="there is no model 'vmamba_tyni'"):
        ImageClassification("vmamba_tyni", 10)


def test_defaults_of_published_weights():
    with torch.device("meta"):
        task = ImageClassification("vmamba_tiny", 1000)
    data = task.default_data()
    assert (data.image_size, data.mean[0]) == (224, 0.485)
    assert len(task.class_names) == 1000 and task.class_names[0] == "tench"
