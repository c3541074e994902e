import numpy as np
import pytest
import torch

from zoo.data.formats.mot_files import read_clip, write_clip
from zoo.metrics.tracking import paired_iou, tracking_scores


@pytest.fixture
def clip(tmp_path):
    """Two objects that pass far from each other, 20 frames."""
    t = np.arange(20.0)
    boxes = np.stack([[10 + 5 * t, 0 * t + 20], [400 - 5 * t, 0 * t + 200]]).transpose(2, 0, 1)
    boxes = np.concatenate([boxes, np.broadcast_to([40, 80], (20, 2, 2))], -1)
    write_clip(tmp_path / "clip", 640, 360, boxes, [np.zeros((0, 5))] * 20)
    return read_clip(tmp_path / "clip")


def test_perfect_tracks(clip):
    scores = tracking_scores([clip], [clip.truth])
    assert scores == {
        "hota": 1, "deta": 1, "assa": 1, "mota": 1, "idf1": 1, "idsw": 0
    }  # fmt: skip


def test_one_exchange_halfway(clip):
    tracks = clip.truth.copy()
    late = tracks[:, 0] > 10
    tracks[late, 1] = 3 - tracks[late, 1]
    scores = tracking_scores([clip], [tracks])
    assert scores["deta"] == pytest.approx(1) and scores["idf1"] == pytest.approx(0.5)
    assert scores["idsw"] == 2 and scores["mota"] == pytest.approx(1 - 2 / 40)
    # every pair of an object and a track is right in 10 of 30 frames
    assert scores["hota"] == pytest.approx((1 / 3) ** 0.5)


def test_nothing_found(clip):
    scores = tracking_scores([clip], [np.zeros((0, 6))])
    assert scores["hota"] == scores["idf1"] == scores["mota"] == 0


def test_overlap_of_pairs():
    a = torch.tensor([[5.0, 5, 10, 10], [0, 0, 2, 2]])
    b = torch.tensor([[10.0, 5, 10, 10], [9, 9, 2, 2]])
    assert paired_iou(a, b).tolist() == pytest.approx([1 / 3, 0])
