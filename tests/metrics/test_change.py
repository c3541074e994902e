"""Worked by hand, or equal to the authors' code on random maps (checked once)."""

import math

import pytest
import torch

from zoo.metrics.change import BinaryChangeScores, DamageScores, SemanticChangeScores


def test_binary_scores_by_hand():
    scores = BinaryChangeScores()
    truth = torch.tensor([[[1, 1, 1, 1, 0, 0, 0, 0, 0, 255]]])
    mine = torch.tensor([[[1, 1, 1, 0, 1, 0, 0, 0, 0, 1]]])
    scores.update(mine[..., :5], truth[..., :5])
    scores.update(mine[..., 5:], truth[..., 5:])
    found = scores.compute()  # 3 hits, 1 missed, 1 false, 4 right zeros
    expected = 7 / 9, (4 * 4 + 5 * 5) / 81
    assert found == pytest.approx(
        {
            "recall": 0.75,
            "precision": 0.75,
            "oa": 7 / 9,
            "f1": 0.75,
            "iou": 0.6,
            "kappa": (expected[0] - expected[1]) / (1 - expected[1]),
        }
    )


def test_undefined_scores_are_zero():
    scores = BinaryChangeScores()
    scores.update(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long())
    assert scores.compute() == {
        "recall": 0, "precision": 0, "oa": 1, "f1": 0, "iou": 0, "kappa": 0,
    }  # fmt: skip


def test_semantic_scores_of_perfect_and_of_blind_predictions():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 37, (2, 20, 20), generator=generator)
    truth[:, :10] = 0
    scores = SemanticChangeScores()
    scores.update(truth, truth)
    assert scores.compute() == pytest.approx({"oa": 1, "f_scd": 1, "miou": 1, "sek": 1})
    blind = SemanticChangeScores()
    blind.update(torch.zeros_like(truth), truth)
    found = blind.compute()
    assert found["sek"] == found["f_scd"] == 0 and found["oa"] == (truth == 0).float().mean()


def test_semantic_scores_by_hand():
    """Change found where it is, but half of the from-to classes wrong."""
    truth = torch.tensor([[[0] * 4 + [1, 1, 8, 8]]])
    mine = torch.tensor([[[0] * 4 + [1, 8, 8, 1]]])
    scores = SemanticChangeScores()
    scores.update(mine, truth)
    found = scores.compute()
    assert found["miou"] == 1 and found["f_scd"] == 0.5
    assert found["sek"] == 0  # 2 of 4 right, as chance has it; exp(1 - 1) = 1
    mine[0, 0, 5] = 0
    scores.reset()
    scores.update(mine, truth)
    found = scores.compute()  # IoU: 4/5 unchanged, 3/4 changed; one changed pixel missed
    assert found["miou"] == pytest.approx(0.775)
    assert found["f_scd"] == pytest.approx(4 / 7)
    among = (2 / 4 - (1 * 0 + 2 * 2 + 1 * 2) / 16) / (1 - (0 + 4 + 2) / 16)
    assert found["sek"] == pytest.approx(among * math.exp(0.75 - 1))


def test_covers_that_are_not_known_do_not_count():
    scores = SemanticChangeScores(covers=2)
    scores.update(torch.tensor([[[1, 2, 0]]]), torch.tensor([[[1, -1, 0]]]))
    assert scores.compute()["oa"] == 1 and scores.matrix.sum() == 2


def test_damage_scores_by_hand():
    building = torch.tensor([[[1, 1, 1, 1, 0, 1]]])
    where = torch.tensor([[[1, 1, 1, 1, 1, 0]]])
    damage = torch.tensor([[[1, 2, 3, 4, 1, 4]]])
    level = torch.tensor([[[1, 2, 3, 4, 2, 0]]])
    scores = DamageScores()
    scores.update(building, damage, where, level)
    found = scores.compute()
    assert found["f1_loc"] == pytest.approx(0.8)
    each = [found[f"f1_{name}"] for name in ("no_damage", "minor", "major", "destroyed")]
    assert each == pytest.approx([2 / 3, 2 / 3, 1, 1], abs=1e-5)
    assert found["f1_clf"] == pytest.approx(0.8, abs=1e-5)
    assert found["f1"] == pytest.approx(0.8, abs=1e-5)


def test_a_damage_class_never_found_makes_the_harmonic_mean_zero():
    scores = DamageScores()
    ones = torch.ones(1, 1, 4, dtype=torch.int64)
    scores.update(ones, ones, ones, torch.tensor([[[1, 2, 3, 4]]]))
    assert scores.compute()["f1_clf"] == 0
