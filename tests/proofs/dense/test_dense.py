"""What the proofs of dense prediction measure, on the smallest of their recipes."""

import pytest

from zoo.proofs.dense.medusa_medical import Looks
from zoo.proofs.dense.mutual_inpainting import MeanFill, MutualBlock
from zoo.proofs.dense.prelude_net import DepthOfVideos
from zoo.proofs.dense.sfanet import ConstantCount
from zoo.proofs.dense.sinet import Blocking
from zoo.proofs.dense.yonos_sr import DecoderStage, TargetNoise


@pytest.fixture
def tiny(tmp_path):
    """Overrides: few samples of 64 pixels, one epoch."""
    return {
        "data.init_args.root": str(tmp_path / "set"),
        "data.init_args.sample": {"train": 16, "val": 4, "test": 6, "size": 64},
        "data.init_args.batch_size": 4,
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 1,
    }


def test_blocking(tiny):
    recipe = "dense/sinet/small.yaml"
    tiny |= {"data.init_args.image_size": 64, "model.init_args.encoder_epochs": 0}
    measured = Blocking(recipe, tiny).measure(0).values
    assert measured["parameters"] == 86_910
    assert 0 <= measured["interior_error"] <= 1 and measured["gate_ratio"] > 0
    assert 0 <= measured["foreign_interior_error"] <= 1
    tiny["model.init_args.model_args"] = {"gate": "open"}
    always = Blocking(recipe, tiny).measure(0).values
    assert always["gate_ratio"] == pytest.approx(1), "an open gate is the same everywhere"


def test_mutual_block(tiny):
    recipe = "dense/mutual_inpainting/small.yaml"
    with_it = MutualBlock(recipe, tiny).measure(0).values
    tiny["model.init_args.model_args.equalise"] = False
    without = MutualBlock(recipe, tiny).measure(0).values
    assert with_it["gap"] > 0 and without["gap"] > 0
    assert 0 <= with_it["structure_share"] <= 1
    assert without["parameters"] < with_it["parameters"] < 1.02 * without["parameters"]


def test_looks(tiny):
    measured = Looks("dense/medusa_medical/small.yaml", tiny).measure(0).values
    assert measured["contrast"] > 0 and 0 <= measured["acc1"] <= 1


def test_noise_of_targets(tiny):
    tiny["data.init_args.sample"] = {"train": 8, "val": 2, "test": 2, "size": 32}
    tiny["model.init_args.stages"] = [{"train": "unet", "scale": 2, "epochs": 1}]
    measured = TargetNoise("dense/yonos_sr/small.yaml", tiny).measure(0).values
    assert measured["sharp_noise"] > 0 and measured["distilled_noise"] > 0
    assert measured["sharp_noise"] != measured["distilled_noise"]


def test_decoder_stage_leaves_the_denoiser(tiny):
    tiny["data.init_args.sample"] = {"train": 8, "val": 2, "test": 2, "size": 32}
    tiny["model.init_args.stages"] = [{"train": "unet", "scale": 4, "epochs": 1}]
    stage = {"model.init_args.stages": [{"train": "decoder", "scale": 4, "epochs": 1}]}
    proof = DecoderStage(stage, recipe="dense/yonos_sr/small.yaml", overrides=tiny)
    measured = proof.measure(0).values
    assert measured["denoiser_moved"] == 0
    assert measured["l1_after"] != measured["l1_before"]


def test_depth_of_videos(tiny):
    tiny["data.init_args.sample"] = {"train": 2, "val": 1, "test": 1, "size": 16}
    measured = DepthOfVideos("dense/prelude_net/small.yaml", tiny).measure(0).values
    assert measured["constant_abs_rel"] > 0 and measured["copy_mse"] > 0 and measured["gap"] > 0


@pytest.mark.parametrize(
    ("measurement", "recipe", "name"),
    [
        (ConstantCount, "dense/sfanet/small.yaml", "mae"),
        (MeanFill, "dense/mutual_inpainting/small.yaml", "hole_l1"),
    ],
)
def test_trivial_answers(measurement, recipe, name, tiny):
    del tiny["trainer.limit_train_batches"], tiny["trainer.max_epochs"]
    assert measurement(recipe, tiny).measure(0).values[name] > 0
