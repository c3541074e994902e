import json

import pytest
import torch

import zoo
from zoo.data.formats.maps import SmallSample
from zoo.data.synthetic.figures import CATEGORIES
from zoo.data.vision.coco import COCO
from zoo.errors import ZooError
from zoo.models.vision.mask_rcnn import MaskRCNN
from zoo.tasks._scores import numbers
from zoo.tasks.vision.detection import Detection

SMALL = {
    "backbone_args": {"depths": (1, 1, 1, 1), "dims": 8, "drop_path_rate": 0.0},
    "num_classes": 3,
    "channels": 16,
    "head_channels": 16,
    "anchor_side": 12,
    "short_side": 64,
    "long_side": 64,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco") / "made"
    made = COCO(str(root), sample=SmallSample(train=8, val=2, test=2, size=64), batch_size=4)
    made.setup("fit")
    return made


def test_every_parameter_learns(data):
    torch.manual_seed(0)
    task = Detection(3, model="mask_rcnn_vmamba_tiny", model_args=SMALL)
    batch = next(iter(data.train_dataloader()))
    task.training_loss(batch).backward()
    # classes that no region has, and levels that no object is on, get nothing
    still = [n for n, p in task.model.named_parameters() if p.grad is None]
    assert still == []


def test_objects_of_pictures_of_any_size():
    model = MaskRCNN(**SMALL).eval()
    model.detector.roi_heads.score_thresh = 0.0
    sizes = [(40, 90), (64, 64)]
    with torch.no_grad():
        found = model([torch.rand(3, *size) for size in sizes])
    for objects, (height, width) in zip(found, sizes, strict=True):
        n = len(objects["scores"])
        assert 0 < n <= 100
        assert objects["boxes"].shape == (n, 4)
        assert (objects["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert objects["masks"].shape == (n, height, width)
        assert objects["labels"].min() >= 0 and objects["labels"].max() <= 2


def test_boxes_alone(data):
    model = MaskRCNN(**SMALL, masks=False)
    batch = next(iter(data.train_dataloader()))
    targets = [
        {"boxes": boxes, "labels": labels}
        for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)
    ]
    assert set(model(batch["image"], targets)) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    with torch.no_grad():
        assert "masks" not in model.eval()(batch["image"])[0]


def test_new_heads_for_other_classes(tmp_path):
    torch.save(MaskRCNN(**SMALL).state_dict(), tmp_path / "three.pth")
    model = MaskRCNN(**SMALL | {"num_classes": 5})
    zoo.load_pretrained(model, str(tmp_path / "three.pth"))


def test_a_backbone_of_timm():
    model = MaskRCNN(
        **SMALL
        | {
            "backbone": "resnet18",
            "backbone_args": {"out_indices": (1, 2, 3, 4)},
            "out_norms": False,
        }
    ).eval()
    with torch.no_grad():
        assert len(model([torch.rand(3, 64, 64)])) == 1


def test_true_objects_have_full_precision(data):
    """And a shifted box, or the wrong kind, has less."""
    task = Detection(3, model="mask_rcnn_vmamba_tiny", model_args=SMALL)
    batch = next(iter(data.test_dataloader()))
    names = ("boxes", "labels", "masks", "iscrowd")
    truth = [
        dict(zip(names, values, strict=True))
        for values in zip(*(batch[n] for n in names), strict=True)
    ]
    for change in ({}, {"boxes": 40.0}, {"labels": 1}):
        found = [t | {"scores": torch.ones(len(t["labels"]))} for t in truth]
        for objects in found:
            if "boxes" in change:
                objects["boxes"] = objects["boxes"] + change["boxes"]
            if "labels" in change:
                objects["labels"] = (objects["labels"] + 1) % 3
        scores = task.scores["val"]
        scores.reset()
        scores["ap"].update(found, truth)
        computed = numbers(scores.compute())
        if change:
            assert computed["ap"].item() < 0.2
        else:
            assert computed["ap"].item() == computed["mask_ap"].item() == pytest.approx(1)


def test_layout(data, tmp_path):
    assert tuple(data.class_names) == tuple(CATEGORIES)
    content = json.loads((data.root / "annotations/instances_train2017.json").read_text())
    assert [c["id"] for c in content["categories"]] == [1, 4, 9]
    sample = data.source("train")[0]
    first = [a for a in content["annotations"] if a["image_id"] == 1]
    x, y, w, h = first[0]["bbox"]
    assert sample["boxes"][0].tolist() == [x, y, x + w, y + h]
    rows, columns = sample["masks"][0].nonzero(as_tuple=True)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x, y, x + w, y + h]
    assert sample["masks"].sum((1, 2)).tolist() == [a["area"] for a in first]


def test_groups_do_not_train_and_mirrors_keep_boxes_on_objects(data):
    sample = data.source("train")[0]
    crowd = {**sample, "iscrowd": torch.ones_like(sample["iscrowd"])}
    crowd["iscrowd"][0] = 0
    torch.manual_seed(0)
    for _ in range(4):
        changed = data.train_transform(crowd)
        assert len(changed["boxes"]) == len(changed["masks"]) == len(changed["labels"]) == 1
        left = changed["masks"][0].any(0).nonzero().min()
        assert changed["boxes"][0, 0] == left


def test_mistakes_are_one_line(data, tmp_path):
    with pytest.raises(ZooError, match=r"instances_val2017.json is missing, expected annotations"):
        _ = COCO(str(data.root.parent)).class_names
    folder = tmp_path / "annotations"
    folder.mkdir()
    for text in ("{", '{"images": []}'):
        (folder / "instances_val2017.json").write_text(text)
        with pytest.raises(ZooError, match=r"instances_val2017.json: cannot be read"):
            _ = COCO(str(tmp_path)).class_names
    task = Detection(2, model="mask_rcnn_vmamba_tiny", model_args=SMALL)
    with pytest.raises(ZooError, match=r"num_classes is 2, but the data have 3 classes"):
        task.check_data(data)
    with pytest.raises(ZooError, match="1 or more kinds"):
        MaskRCNN(**SMALL | {"num_classes": 0})
