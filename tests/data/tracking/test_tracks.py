import numpy as np
import pytest
import torch

from zoo.data.base import SampleKey
from zoo.data.formats.mot_files import (
    clip_of_detections,
    frame_pictures,
    read_clip,
    read_detections,
    read_truth,
    write_tracks,
)
from zoo.data.synthetic.moving_boxes import MOTIONS, make_scene
from zoo.data.tracking.tracks import MOTChallenge, SmallScenes, TrackWindows
from zoo.errors import ZooError

SAMPLE = SmallScenes(train=3, val=1, test=3, frames=12, objects=2, pictures=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tracks") / "made"
    MOTChallenge(str(root), SAMPLE, test="test").source("train")
    return root


def test_made_clips_have_the_published_layout(root):
    clip = root / "test" / "circle-00"
    assert {p.name for p in clip.iterdir()} == {"gt", "det", "img1", "seqinfo.ini"}
    assert len(frame_pictures(clip)) == 12 and not frame_pictures(root / "test" / "sway-01")
    assert (clip / "gt" / "gt.txt").read_text().splitlines()[0].startswith("1,1,")
    read = read_clip(clip)
    assert (read.width, read.height, read.length) == (640, 360, 12)
    assert len(read.detections) == 12 and read.truth.shape == (24, 6)
    assert [len(track) for track in read.tracks().values()] == [12, 12]


@pytest.mark.parametrize("motion", MOTIONS)
def test_only_lines_go_on_as_they_went(motion):
    scene = make_scene(np.random.default_rng(0), motion)
    centres = scene.boxes[..., :2] + scene.boxes[..., 2:] / 2
    surprise = np.abs(np.diff(centres, n=2, axis=0)).mean()
    assert surprise < 1e-9 if motion == "line" else surprise > 2
    low, high = scene.boxes[..., :2].min(), scene.boxes[..., :2].max()
    assert low > -10 and high < 640


def test_windows(root):
    data = MOTChallenge(str(root), test="test", interval=5, batch_size=4)
    windows = data.source("train")
    assert len(windows) == 3 * 2 * (12 - 6)
    clip = read_clip(root / "train" / "circle-00", detected=False)
    track = clip.tracks()[1][:, 1:] / np.array([640, 360] * 2)
    sample = windows[1]
    torch.testing.assert_close(
        sample["condition"][:, :4], torch.from_numpy(track[2:7]).float(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        sample["condition"][:, 4:], torch.from_numpy(np.diff(track[1:7], axis=0)).float(),
        atol=1e-6, rtol=0,
    )  # fmt: skip
    torch.testing.assert_close(
        sample["cur_bbox"], torch.from_numpy(track[7]).float(), atol=1e-6, rtol=0
    )
    batch = next(iter(data.train_dataloader()))
    assert batch["condition"].shape == (4, 5, 8) and batch["cur_bbox"].shape == (4, 4)


def test_noise_is_fixed_by_sample_and_epoch(root):
    clips = [read_clip(root / "train" / "circle-00", detected=False)]
    windows, still = TrackWindows(clips, 5, jitter=0.1, seed=1), TrackWindows(clips, 5)

    def condition(*keys):
        return windows.__getitems__([SampleKey(*key) for key in keys])["condition"]

    assert torch.equal(condition((0, 3), (0, 4))[1:], condition((0, 4)))
    assert not torch.equal(condition((0, 4)), condition((1, 4)))
    noise = condition((0, 4))[0, :, :4] - still[4]["condition"][:, :4]
    assert 0.001 < noise.std() < 0.05
    assert torch.equal(windows[4]["cur_bbox"], still[4]["cur_bbox"])


def test_test_batches_are_clips(root):
    data = MOTChallenge(str(root), test="test")
    names = [clip.name for batch in data.test_dataloader() for clip in batch]
    assert names == ["circle-00", "line-02", "sway-01"]


def test_a_file_of_detections_for_each_frame(root, tmp_path):
    """DiffMOT's layout."""
    clip = read_clip(root / "val" / "circle-00")
    folder = tmp_path / "val" / "circle-00"
    folder.mkdir(parents=True)
    for number, rows in enumerate(clip.detections, start=1):
        lines = [f"0,{x},{y},{w},{h},{s}\n" for x, y, w, h, s in rows]
        (folder / f"{number:06d}.txt").write_text("".join(lines))
    for a, b in zip(read_detections(folder), clip.detections, strict=True):
        np.testing.assert_allclose(a, b)
    data = MOTChallenge(str(root), test="val", detections=str(tmp_path))
    (same,) = data.source("test")
    np.testing.assert_allclose(same.detections[3], clip.detections[3])


def test_distractors_are_left_out(tmp_path):
    rows = ["2,1,0,0,4,8,1,1,1", "1,1,0,0,4,8,1,1,0.5", "1,2,0,0,4,8,0,1,1", "1,3,0,0,4,8,1,12,1"]
    (tmp_path / "gt.txt").write_text("\n".join(rows))
    assert read_truth(tmp_path / "gt.txt")[:, :2].tolist() == [[1, 1], [2, 1]]


def test_tracks_are_written_as_mot_challenge_wants_them(tmp_path):
    write_tracks(tmp_path / "it.txt", np.array([[1, 2, 3.456, 4, 5, 6]]))
    assert (tmp_path / "it.txt").read_text() == "1,2,3.46,4.00,5.00,6.00,1,-1,-1,-1\n"


def test_a_users_clip(root, tmp_path):
    clip = clip_of_detections(root / "test" / "circle-00" / "det" / "det.txt")
    assert (clip.name, clip.width, clip.length) == ("circle-00", 640, 12)
    # frames and detections in one folder, no seqinfo.ini
    for path in frame_pictures(root / "test" / "circle-00"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "mine.txt").write_text("3,-1,10,10,40,80,0.9\n")
    clip = clip_of_detections(tmp_path / "mine.txt")
    assert (clip.name, clip.width, clip.height, clip.length) == ("mine", 640, 360, 12)
    assert [len(rows) for rows in clip.detections[:4]] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: (c / "seqinfo.ini").unlink(), "seqinfo.ini is missing, expected a folder"),
        (lambda c: (c / "seqinfo.ini").write_text("[Sequence]\n"), "expected imWidth, imHeight"),
        (lambda c: (c / "det" / "det.txt").write_text("1,2\n"), "rows of 2 numbers, expected 7"),
        (lambda c: (c / "det" / "det.txt").write_text("a,b\n"), "rows of numbers with commas"),
        (lambda c: (c / "det" / "det.txt").write_text("99,-1,1,1,1,1,1\n"), "clip has 12 frames"),
    ],
)
def test_broken_clips_are_said(tmp_path, spoil, said):
    MOTChallenge(str(tmp_path / "it"), SAMPLE, test="test").source("train")
    spoil(tmp_path / "it" / "val" / "circle-00")
    with pytest.raises(ZooError, match=said):
        read_clip(tmp_path / "it" / "val" / "circle-00")


def test_wrong_settings_are_said(tmp_path):
    with pytest.raises(ZooError, match="'jump', expected some of circle, sway, line"):
        MOTChallenge(str(tmp_path), SmallScenes(motions=["jump"]))
    with pytest.raises(ZooError, match=r"train is not a folder.*--data.init_args.root FOLDER"):
        MOTChallenge(str(tmp_path / "none")).source("train")
