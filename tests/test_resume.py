"""A run that was killed and resumed ends like one that was never stopped, bit by bit."""

import platform

import torch

from tests.kills import differences, finish, kill_at, last_step, only_run
from tests.tiny import tiny_recipe

STEPS_PER_EPOCH = 1257 // 128
EVERY = 4
KILL_AT = STEPS_PER_EPOCH + 2 * EVERY + 2  # in epoch 1, between two checkpoints

#: What a kill in the middle of a write leaves.
LEFT = f".last.ckpt.{platform.node().partition('.')[0]}-999999999.0.part"


def test_killed_and_resumed_run_ends_with_the_same_numbers(tmp_path):
    everything_random = dict(
        model__init_args__ema_decay=0.9,
        model__init_args__mixup={"mixup": 0.8, "cutmix": 1.0},
        model__init_args__model_args={
            "stem_width": 8,
            "channels": [8, 16, 16, 32],
            "drop_rate": 0.1,
            "drop_path_rate": 0.2,
        },
        data__init_args__augmentation={"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25},
        checkpoint__every_n_steps=EVERY,
        trainer__max_epochs=3,
        trainer__log_every_n_steps=1,
    )
    for name in ("whole", "killed"):
        recipe = tiny_recipe(tmp_path / name, **everything_random)
    relative = recipe.relative_to(tmp_path / "killed")

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # worker processes in one of the two: they must not matter
    kill_at(KILL_AT, killed, relative, "--data.init_args.num_workers", 2)
    run = only_run(killed)
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] <= last_step(killed) + 1
    assert saved["global_step"] % STEPS_PER_EPOCH != 0, "the checkpoint must be in mid-epoch"
    assert not (run / "learning_curve.png").exists()
    (run / "checkpoints" / LEFT).touch()

    assert finish(killed, relative, "--resume") == run
    assert differences(finish(whole, relative), run) == []
    for name in ("learning_curve.png", "confusion_matrix.png", "predictions.png", "recipe.yaml"):
        assert (run / name).stat().st_size > 0
