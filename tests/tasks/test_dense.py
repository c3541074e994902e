"""Tasks on pictures of any size, stages of training, and what users get wrong."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from skimage.data import astronaut

from zoo.data.dense.crowds import ShanghaiTech
from zoo.data.dense.inpainting import Inpainting as InpaintingData
from zoo.data.dense.portraits import Portraits
from zoo.data.dense.volumes import NiftiVolumes, Synapse
from zoo.data.dense.xrays import COVIDx
from zoo.data.formats.maps import SmallSample
from zoo.data.vision.ade20k import ADE20K
from zoo.errors import ZooError
from zoo.plots.panels import COLOURS
from zoo.tasks import OptimizerSettings
from zoo.tasks.dense.crowd_counting import CrowdCounting
from zoo.tasks.dense.inpainting import Inpainting, inception_distance
from zoo.tasks.dense.medical_classification import MedicalClassification
from zoo.tasks.dense.segmentation import Segmentation, SegmentationLoss

MEDUSA = {
    "backbone": "resnet10t",
    "backbone_args": {"stem_type": "deep", "stem_width": 4, "channels": [8, 8, 8, 8]},
    "body_widths": [4, 8],
    "global_chans": 4,
    "body_size": 32,
}


@pytest.fixture
def photo(tmp_path) -> Path:
    """A real picture of an awkward size."""
    path = tmp_path / "photo.png"
    Image.fromarray(astronaut()).resize((150, 101)).save(path)
    return path


def fit(task, data, **settings):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **{"max_epochs": 1, "limit_val_batches": 1} | settings,
    )
    trainer.fit(task, datamodule=data)
    return trainer


def predict(task, data, files, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(parents=True)
    return task.predict_files(task.find_inputs(files), data, folder), sorted(folder.iterdir())


def test_segmented_picture_has_its_own_size(photo, tmp_path):
    torch.manual_seed(0)
    task = Segmentation(model="sinet", num_classes=2)
    rows, drawn = predict(task, Portraits(root="", image_size=64), [photo], tmp_path)
    assert set(rows[0]) == {"file", "share of background", "share of person"}
    assert rows[0]["share of background"] + rows[0]["share of person"] == pytest.approx(1, abs=2e-4)
    names = ["0001_photo.png", "0001_photo_labels.png", "0001_photo_result.png"]
    assert [path.name for path in drawn] == names
    assert Image.open(drawn[2]).size == (150, 101)
    labels = Image.open(drawn[1])
    assert labels.mode == "P" and labels.getpalette()[:6] == [0, 0, 0, *COLOURS[0].astype(int)]
    share = (np.asarray(labels) == 1).mean()
    assert share == pytest.approx(rows[0]["share of person"], abs=1e-4)


def test_names_of_classes_are_kept_in_checkpoints(photo, tmp_path):
    """So a picture is judged where the data set, whose file has the names, is not at hand."""
    gone = ADE20K(root=str(tmp_path / "gone"), crop=32)
    task = Segmentation(model="sinet", num_classes=2)
    with pytest.raises(ZooError, match="gone"):
        predict(task, gone, [photo], tmp_path / "without")
    task.class_names = ["wall", "window"]
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    other = Segmentation(model="sinet", num_classes=2)
    other.load_weights(checkpoint)
    rows, _ = predict(other, gone, [photo], tmp_path / "with")
    assert set(rows[0]) == {"file", "share of wall", "share of window"}


def test_slices_become_grey(photo, tmp_path):
    args = {"widths": [4, 8], "window": 2, "head_dim": 4}
    task = Segmentation(model="wau_unet", num_classes=9, model_args=args)
    rows, _ = predict(task, Synapse(root="", image_size=32), [photo], tmp_path)
    assert len(rows[0]) == 10


class Bands(torch.nn.Module):
    """The class whose value, -1, 0 or 1, is nearest to the first channel."""

    def forward(self, x):
        return torch.cat([-(x[:, :1] - value).abs() for value in (-1, 0, 1)], dim=1)


def volumes(root: Path) -> np.ndarray:
    """Three volumes with labels 0, 1 and 4; the values of the first, standardised."""
    rng, place = np.random.default_rng(0), np.diag([2.0, 1.5, 3, 1])
    for i in range(3):
        image, label = rng.normal(5, 3, (8, 8, 5)), rng.choice([0, 1, 4], (8, 8, 5))
        for folder, values in (("imagesTr", np.float32(image)), ("labelsTr", np.uint8(label))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, place), root / folder / f"{i}.nii.gz")
    values = np.asarray(nibabel.load(root / "imagesTr/0.nii.gz").dataobj)
    return (values - values.mean()) / values.std()


def bands() -> Segmentation:
    task = Segmentation(model="wau_unet", num_classes=3, model_args={"widths": [4, 8]})
    task.model = Bands()
    return task


def test_a_volume_is_answered_with_one(tmp_path, photo):
    """In the numbers of the training data's labels, also when those are gone."""
    values = volumes(tmp_path / "data")
    data = NiftiVolumes(root=str(tmp_path / "data"), image_size=8, batch_size=1)
    task, other = bands(), bands()
    task.check_data(data)
    task.use_data(data)
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "it.ckpt")
    other.load_weights(torch.load(tmp_path / "it.ckpt", weights_only=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "data/imagesTr/0.nii.gz").rename(tmp_path / "mine/v.nii.gz")
    shutil.rmtree(tmp_path / "data")

    data = NiftiVolumes(root=str(tmp_path / "data"), image_size=8, batch_size=1)
    (row,), drawn = predict(other, data, [tmp_path / "mine"], tmp_path)
    assert [path.name for path in drawn] == ["0001_v.nii.png", "0001_v.nii_labels.nii.gz"]
    found = nibabel.load(drawn[1])
    wanted = np.array([0, 1, 4])[np.abs(values[..., None] - [-1, 0, 1]).argmin(-1)]
    assert np.array_equal(np.asarray(found.dataobj), wanted)
    assert np.array_equal(found.affine, np.diag([2.0, 1.5, 3, 1]))
    assert row["share of label 4"] == pytest.approx((wanted == 4).mean(), abs=1e-4)
    (row,), _ = predict(other, data, [photo], tmp_path / "picture")
    assert "share of background" in row

    pictures = Segmentation(model="sinet", num_classes=2)
    with pytest.raises(ZooError, match=r"v\.nii\.gz is a volume, but this network has learnt pict"):
        predict(pictures, Portraits(root=""), [tmp_path / "mine"], tmp_path / "no")


def test_counted_picture_gets_its_density(photo, tmp_path):
    torch.manual_seed(0)
    task = CrowdCounting(model="m_sfanet", model_args={"width": 2, "depths": [1, 1, 1, 1, 1]})
    data = ShanghaiTech(root="")
    image = torch.from_numpy(np.asarray(Image.open(photo)).transpose(2, 0, 1) / np.float32(255))
    task.eval()
    density, attention = task.predict_image(image, data)
    assert density.shape == attention.shape == (1, 1, 51, 75)
    rows, drawn = predict(task, data, [photo], tmp_path)
    assert rows[0]["count"] == pytest.approx(float(density.sum()), abs=0.01)
    assert len(drawn) == 1


@pytest.fixture
def inpainting():
    torch.manual_seed(0)
    args = {"ngf": 2, "reduction": 16, "res_num": 1}
    return Inpainting(model="mutual_inpainting", model_args=args, gan_weight=0.0)


def test_only_holes_are_filled(inpainting, photo, tmp_path):
    mask = np.zeros((101, 150), np.uint8)
    mask[30:60, 40:90] = 255
    Image.fromarray(mask).save(tmp_path / "photo_mask.png")
    data = InpaintingData(root="")
    # the mask itself is no picture to fill
    rows, drawn = predict(inpainting, data, [photo, tmp_path / "photo_mask.png"], tmp_path)
    assert len(rows) == 1 and rows[0]["hole"] == pytest.approx(30 * 50 / (101 * 150), abs=1e-4)
    before, after = (np.asarray(Image.open(p)).astype(int) for p in (photo, drawn[1]))
    assert np.abs(before - after)[mask == 0].max() <= 1
    assert np.abs(before - after)[mask > 0].mean() > 5


def test_small_picture_is_padded_to_what_the_network_takes(inpainting, tmp_path):
    Image.new("RGB", (20, 9), "teal").save(tmp_path / "tiny.png")
    Image.new("L", (20, 9), 255).save(tmp_path / "tiny_mask.png")
    rows, drawn = predict(inpainting, InpaintingData(root=""), [tmp_path / "tiny.png"], tmp_path)
    assert rows[0]["hole"] == 1 and Image.open(drawn[1]).size == (20, 9)


def test_missing_and_wrong_masks_are_said(inpainting, photo, tmp_path):
    data = InpaintingData(root="")
    with pytest.raises(
        ZooError, match=r"photo\.png: no mask beside it, expected .*photo_mask\.png"
    ):
        inpainting.predict_files([photo], data, tmp_path)
    Image.new("L", (10, 10)).save(tmp_path / "photo_mask.png")
    with pytest.raises(
        ZooError, match=r"a mask of \(10, 10\) pixels for a picture of \(101, 150\)"
    ):
        inpainting.predict_files([photo], data, tmp_path)
    with pytest.raises(ZooError, match="only masks are given"):
        inpainting.find_inputs([tmp_path / "photo_mask.png"])
    with pytest.raises(ZooError, match="nowhere"):
        inception_distance("nowhere.pth")


def test_scores_of_filled_pictures(inpainting, tmp_path):
    data = InpaintingData(
        root=str(tmp_path / "set"), sample=SmallSample(8, 2, 4, 48), image_size=48, batch_size=4
    )
    inpainting.gan_weight = 0.0
    trainer = fit(inpainting, data)
    scores = trainer.test(inpainting, datamodule=data, verbose=False)[0]
    assert {"test/psnr", "test/ssim", "test/l1", "test/hole_l1", "test/psnr_20_30"} <= set(scores)
    assert scores["test/hole_l1"] > scores["test/l1"] > 0
    assert "examples" in inpainting.figures()


def test_adversarial_losses_reach_their_own_networks_alone():
    torch.manual_seed(0)
    args = {"ngf": 2, "reduction": 16, "res_num": 1}
    task = Inpainting(model="mutual_inpainting", model_args=args, crop=64).eval()
    image, mask = torch.rand(1, 3, 64, 64) * 2 - 1, torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 20:40] = 1
    gradients = []
    for task.gan_weight in (0.2, 0.7):
        task.zero_grad()
        task.training_loss({"image": image, "mask": mask, "structure": image}).backward()
        gradients.append(
            [
                torch.cat([p.grad.flatten().clone() for p in part.parameters() if p.requires_grad])
                for part in (task.discriminators, task.model.decoder)
            ]
        )
    (critics, generator), (critics_again, generator_again) = gradients
    assert critics.any() and torch.equal(critics, critics_again)
    assert not torch.equal(generator, generator_again)


def test_first_stage_trains_the_encoder_alone(tmp_path):
    data = Portraits(
        root=str(tmp_path / "set"),
        sample=SmallSample(8, 2, 2, 64),
        image_size=64,
        augmentation="none",
        batch_size=4,
    )
    task = Segmentation(
        model="sinet",
        num_classes=2,
        encoder_epochs=1,
        loss=SegmentationLoss(boundary_weight=0.5, class_weights="frequency"),
        optimizer=OptimizerSettings("adam", lr=0.01, lr_batch_size=None, weight_decay=0.0),
    )
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    fit(task, data)
    changed = {n for n, p in task.model.named_parameters() if not torch.equal(p, before[n])}
    assert all(name.startswith("encoder.") for name in changed) and len(changed) > 100
    assert task.pixels.sum() == 8 * 64 * 64
    task.encoder_epochs = 0
    fit(task, data)
    changed = {n for n, p in task.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(name.startswith("level2_C.") for name in changed)


def test_lovasz_wants_one_channel(photo):
    task = Segmentation(model="sinet", num_classes=2, loss=SegmentationLoss("lovasz"))
    assert task.model.num_classes == 1
    image = torch.rand(2, 3, 64, 64)
    mask = torch.randint(0, 2, (2, 64, 64))
    loss = task._loss(task.model(image), mask)
    loss.backward()
    assert task(image).unique().tolist() in ([0], [1], [0, 1])


def test_volumes_are_scored_whole(tmp_path):
    data = Synapse(
        root=str(tmp_path / "set"), sample=SmallSample(16, 8, 16, 32), image_size=32, batch_size=5
    )
    args = {"widths": [4, 8], "window": 2, "head_dim": 4}
    task = Segmentation(model="wau_unet", num_classes=4, model_args=args)
    trainer = fit(task, data, limit_train_batches=1)
    scores = trainer.test(task, datamodule=data, verbose=False)[0]
    assert {"test/dsc", "test/hd95", "test/miou"} <= set(scores)
    data.setup("test")
    parts = []
    for rank in (0, 1):
        data._world = lambda rank=rank: (rank, 2)
        parts.append(torch.cat([b["volume"] for b in data.test_dataloader()]).unique().tolist())
    assert parts == [[0], [1]], "a process has whole volumes"


def medusa(tmp_path, **changes):
    data = COVIDx(
        root=str(tmp_path / "set"), sample=SmallSample(20, 4, 8, 32), image_size=32, batch_size=8
    )
    task = MedicalClassification(
        model="medusa_medical_resnet50",
        num_classes=2,
        model_args=MEDUSA,
        label_smoothing=0.0,
        optimizer=OptimizerSettings("adam", lr=0.01, lr_batch_size=None, weight_decay=0.0),
        **changes,
    )
    return task, data


def test_the_body_learns_lungs_first(tmp_path):
    task, data = medusa(tmp_path, body_epochs=1)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    fit(task, data)
    changed = {n for n, p in task.named_parameters() if not torch.equal(p, before[n])}
    assert all(name.startswith(("model.body.", "lungs.")) for name in changed) and changed
    trainer = fit(task, data, max_epochs=2)
    groups = trainer.optimizers[0].param_groups
    rates = {group["body"]: group["lr"] for group in groups}
    assert rates[True] == pytest.approx(0.1 * rates[False])
    scores = trainer.test(task, datamodule=data, verbose=False)[0]
    names = ("acc1", "sensitivity_0", "sensitivity_1", "ppv_0", "ppv_1")
    assert {f"test/{name}" for name in names} <= set(scores)
    assert {"attention", "confusion_matrix", "predictions"} == set(task.figures())


def test_a_body_without_masks_is_said(tmp_path):
    task, data = medusa(tmp_path, body_epochs=1)
    data.source("train")
    (tmp_path / "set" / "masks").rename(tmp_path / "set" / "none")
    with pytest.raises(ZooError, match="body_epochs: the data give no lung masks"):
        fit(task, data)


def test_classified_xray_shows_where_the_body_looks(tmp_path, photo):
    task, data = medusa(tmp_path)
    rows, drawn = predict(task, data, [photo], tmp_path)
    assert rows[0]["prediction"] in ("0", "1", "negative", "positive")
    assert [path.name for path in drawn] == ["0001_photo.png", "0001_photo_attention.png"]


@pytest.mark.parametrize(
    ("task", "data", "expected"),
    [
        (Segmentation(model="sinet", num_classes=2), ShanghaiTech(root=""), "has no label maps"),
        (Segmentation(model="sinet", num_classes=3), Portraits(root=""), "the data have 2 classes"),
        (CrowdCounting(model="m_segnet", model_args={"width": 2}), Portraits(root=""), "no points"),
    ],
)
def test_data_of_another_task_are_said(task, data, expected):
    with pytest.raises(ZooError, match=expected):
        task.check_data(data)
