import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.dense.super_resolution import SuperResolution as Pictures
from zoo.data.formats.maps import SmallSample
from zoo.errors import ZooError
from zoo.tasks import OptimizerSettings, ScheduleSettings
from zoo.tasks.dense.super_resolution import Stage, SuperResolution

TINY = {
    "unet": {"block_out_channels": (16, 32)},
    "haar_width": 8,
}
CHAIN = [
    Stage("autoencoder", 1),
    Stage("unet", 1, scale=2),
    Stage("unet", 1, scale=4, distil=True),
    Stage("decoder", 1, scale=4),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("pictures") / "crops")


def pictures(root, **changes) -> Pictures:
    sample = SmallSample(train=4, val=1, test=2, size=32)
    settings = {"size": 16, "eval_size": 16, "scales": [2, 4], "batch_size": 2}
    return Pictures(root, sample=sample, **settings | changes)


def task(stages=tuple(CHAIN), **changes) -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(
        stages,
        model="yonos_sr_tiny",
        model_args=TINY,
        tile=16,
        overlap=4,
        optimizer=OptimizerSettings(lr=1e-3, lr_batch_size=None),
        schedule=ScheduleSettings(sched="constant", warmup_epochs=0),
        **changes,
    )


class Watch(pl.Callback):
    """Which parts change in each epoch, and the scale of the latents."""

    def __init__(self):
        self.changed, self.scales, self.before = [], [], {}

    def on_train_epoch_start(self, trainer, module):
        self.before = {n: p.detach().clone() for n, p in module.model.named_parameters()}

    def on_train_epoch_end(self, trainer, module):
        parts = set()
        for name, parameter in module.model.named_parameters():
            if not torch.equal(parameter, self.before[name]):
                parts.add(".".join(name.split(".")[:2]) if name.startswith("vae") else "unet")
        self.changed.append(parts)
        self.scales.append(float(module.model.latent_scale))


def train(module, data, epochs, *callbacks, **changes):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        limit_val_batches=0,
        **changes,
    )
    trainer.fit(module, datamodule=data)
    return trainer


def test_each_stage_changes_its_part_alone(root):
    module, watch = task(gan_weight=0.5, discriminator={"ndf": 4, "n_layers": 1}), Watch()
    trainer = train(module, pictures(root), 4, watch)
    autoencoder = {"vae.encoder", "vae.decoder"}
    assert watch.changed == [
        autoencoder,
        {"unet"},
        {"unet"},
        {"vae.decoder"},
    ]
    assert watch.scales[0] == pytest.approx(0.18215) and watch.scales[1] != watch.scales[0]
    assert len(set(watch.scales[1:])) == 1
    scores = trainer.test(module, datamodule=pictures(root), verbose=False)[0]
    assert {"test/psnr", "test/ssim", "test/bicubic_psnr", "test/autoencoder_psnr"} <= set(scores)
    assert scores["test/bicubic_psnr"] > 15
    assert "examples" in module.figures()


def test_the_teacher_is_the_denoiser_before_its_stage(root):
    module = task()
    train(module, pictures(root), 2)
    before = {n: p.clone() for n, p in module.model.unet.state_dict().items()}
    module.stages = [Stage("unet", 1, scale=4, distil=True)]
    train(module, pictures(root), 1)
    teacher, student = module.teacher.state_dict(), module.model.unet.state_dict()
    assert all(torch.equal(teacher[n], value) for n, value in before.items())
    assert any(not torch.equal(student[n], value) for n, value in before.items())
    assert not any(p.requires_grad for p in module.teacher.parameters())


def test_the_noisy_share_of_the_schedule(root, monkeypatch):
    times = []
    module = task([Stage("unet", 1, scale=4)], noisy_share=0.2)
    denoise = module.model.denoise
    monkeypatch.setattr(
        module.model,
        "denoise",
        lambda *inputs: (times.extend(inputs[2].tolist()), denoise(*inputs))[1],
    )
    train(module, pictures(root), 3)
    assert len(times) == 12 and min(times) >= 800 and max(times) < 1000


def test_checkpoints_keep_the_teacher(root, tmp_path):
    stages = [Stage("unet", 2, scale=4, distil=True)]
    module = task(stages)
    trainer = train(module, pictures(root), 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    teacher = {n: p.clone() for n, p in module.teacher.state_dict().items()}
    again = task(stages)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"])
    assert all(torch.equal(again.teacher.state_dict()[n], value) for n, value in teacher.items())
    assert again.stage_of_teacher == 0


def test_pictures_of_any_size(root, tmp_path):
    module, data = task(), pictures(root)
    path = tmp_path / "odd.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 7, 3), np.uint8)).save(path)
    folder = tmp_path / "out"
    folder.mkdir()
    rows = module.predict_files([path], data, folder)
    assert rows == [{"file": str(path), "width": 28, "height": 44}]
    with Image.open(folder / "0001_odd_result.png") as picture:
        assert picture.size == (28, 44)
    assert (folder / "0001_odd.png").is_file()


def test_wrong_settings_are_said(root):
    with pytest.raises(ZooError, match="stages is empty"):
        task([])
    with pytest.raises(ZooError, match=r"noisy_share is 0\.0, expected more than 0"):
        task(noisy_share=0.0)
    with pytest.raises(ZooError, match=r"steps is 4, but noisy_share 0\.2"):
        task(noisy_share=0.2, steps=4)
    with pytest.raises(ZooError, match="the stages need 8 as well"):
        task([Stage("unet", 1, scale=8)]).check_data(pictures(root))
    with pytest.raises(ZooError, match="expected a multiple of 4"):
        module = task()
        data = pictures(root)
        data.size = 18
        module.check_data(data)
