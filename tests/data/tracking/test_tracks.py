import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.base import SampleKey
from zoo.data.formats.mot_files import (
    clip_of_detections,
    frame_pictures,
    read_clip,
    read_detections,
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


INFO = "[Sequence]\nimWidth=64\nimHeight=48\nseqLength={}\n"


def clip_with(folder, truth=(), detections=None, length=12, pictures=()):
    """A clip's folder with these rows; ``detections`` None: no file of them."""
    (folder / "gt").mkdir(parents=True)
    (folder / "det").mkdir()
    (folder / "img1").mkdir()
    (folder / "seqinfo.ini").write_text(INFO.format(length))
    (folder / "gt" / "gt.txt").write_text("".join(f"{row}\n" for row in truth))
    if detections is not None:
        (folder / "det" / "det.txt").write_text("".join(f"{row}\n" for row in detections))
    for name in pictures:
        Image.new("RGB", (64, 48)).save(folder / "img1" / name)
    return folder


def test_distractors_are_left_out(tmp_path):
    rows = ["2,1,0,0,4,8,1,1,1", "1,1,0,0,4,8,1,1,0.5", "1,2,0,0,4,8,0,1,1", "1,3,0,0,4,8,1,12,1"]
    clip = read_clip(clip_with(tmp_path / "it", rows), detected=False)
    assert clip.truth[:, :2].tolist() == [[1, 1], [2, 1]]
    assert len(clip.annotations) == 4


def test_annotations_of_other_years(tmp_path):
    """MOT15 has -1 where later years have the class; bare rows have neither mark nor class."""
    old = read_clip(clip_with(tmp_path / "a", ["1,1,0,0,4,8,1,-1,-1,-1"]), detected=False)
    bare = read_clip(clip_with(tmp_path / "b", ["1,1,0,0,4,8"]), detected=False)
    assert old.truth.tolist() == bare.truth.tolist() == [[1, 1, 0, 0, 4, 8]]


def row_of(frame):
    """A box that says in which frame it stands."""
    return f"{10 * frame},20,20,30,0.95"


def frames_of(detections):
    """The frame that each frame's only box names, None without a box."""
    return [int(rows[0, 0]) // 10 if len(rows) else None for rows in detections]


@pytest.mark.parametrize("name", ["{}", "{:06d}", "frame_{}", "c2_{:03d}", "img{}_det"])
def test_frames_are_counted_by_the_names_of_their_files(tmp_path, name):
    """Some have none, where a detector found nothing; 2 comes before 10."""
    shown = [frame for frame in range(1, 13) if frame not in (4, 5, 6, 12)]
    for frame in shown:
        (tmp_path / f"{name.format(frame)}.txt").write_text("0," + row_of(frame))
    found = read_detections(tmp_path, 12)
    assert frames_of(found) == [f if f in shown else None for f in range(1, 13)]
    assert frames_of(read_detections(tmp_path)) == frames_of(found)[:11]


def test_two_files_of_one_frame_are_an_error(tmp_path):
    for name in ("7.txt", "000007.txt"):
        (tmp_path / name).write_text("0," + row_of(7))
    with pytest.raises(ZooError, match=r"both have the number 7"):
        read_detections(tmp_path)


def test_frames_counted_from_zero(tmp_path, caplog):
    """A table that names frame 0; a folder with a file 0.txt."""
    table = tmp_path / "det.txt"
    table.write_text("".join(f"{frame - 1},-1,{row_of(frame)}\n" for frame in range(1, 13)))
    for length in (None, 12, 20):
        assert frames_of(read_detections(table, length))[:12] == list(range(1, 13))
    assert "counts frames from 0" in caplog.text
    with pytest.raises(ZooError, match="names frame 11, but the clip has 11 frames, the first"):
        read_detections(table, 11)
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in (1, 3):
        (folder / f"{frame - 1}.txt").write_text("0," + row_of(frame))
    assert frames_of(read_detections(folder)) == [1, None, 3]


@pytest.mark.parametrize(
    ("first_picture", "truth", "detections", "wanted"),
    [
        (0, [0], [1, 2], [None, 1, 2]),  # nothing found in frame 0: as truth and pictures count
        (None, [0], [1, 2], [None, 1, 2]),
        (0, [], [1, 2], [None, 1, 2]),
        (0, [], [1, 12], [1, None]),  # frame 12 of 12 is counted from 1, whatever the pictures do
        (1, [1], [1, 2], [1, 2]),
        (1, [0], [1, 2], [1, 2]),
        (1, [1], [0, 1], [0, 1]),
    ],
)
def test_a_table_that_does_not_say_counts_as_its_clip(
    tmp_path, first_picture, truth, detections, wanted
):
    pictures = [] if first_picture is None else range(first_picture, first_picture + 12)
    clip = read_clip(
        clip_with(
            tmp_path / "it",
            [f"{frame},1,{row_of(frame)}" for frame in truth],
            [f"{frame},-1,{row_of(frame)}" for frame in detections],
            pictures=[f"{number}.png" for number in pictures],
        )
    )
    assert frames_of(clip.detections)[: len(wanted)] == wanted
    assert [int(frame) for frame in clip.truth[:, 0]] == [1] * len(truth)


def test_pictures_are_found_by_their_numbers(tmp_path):
    folder = clip_with(tmp_path / "it", pictures=["2.png", "10.png", "1.jpg", "cover.png"])
    assert [(n, p.name) for n, p in frame_pictures(folder).items()] == [
        (1, "1.jpg"),
        (2, "2.png"),
        (10, "10.png"),
    ]
    (folder / "img1" / "0.png").write_bytes((folder / "img1" / "2.png").read_bytes())
    assert list(frame_pictures(folder)) == [1, 2, 3, 11]


def test_size_claims_are_refused_before_memory_is_taken(tmp_path):
    table = tmp_path / "det.txt"
    for frame in (10**6, 10**18):
        table.write_text(f"1,-1,5,5,9,9,0.9\n{frame},-1,5,5,9,9,0.9\n")
        with pytest.raises(ZooError, match=r"of which 2 rows|expected a whole number"):
            read_detections(table)
    folder = clip_with(tmp_path / "it", [], [], length=10**12)
    with pytest.raises(ZooError, match="1,000,000,000,000 frames, of which 0 rows"):
        read_clip(folder)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("imHeight=-4", "64 x -4 pixels"),
        ("imHeight=1000000000", "64 x 1e\\+09 pixels"),
        ("seqLength=0", "seqLength 0"),
        ("frameRate=nan", "frameRate nan"),
        ("frameRate=0", "frameRate 0"),
        ("frameRate=inf", "frameRate inf"),
        ("imWidth=%(x)s", "expected imWidth, imHeight"),
    ],
)
def test_impossible_clips_are_said(tmp_path, setting, said):
    folder = clip_with(tmp_path / "it", [], [])
    name = setting.partition("=")[0]
    lines = [line for line in INFO.format(12).splitlines() if not line.startswith(name)]
    (folder / "seqinfo.ini").write_text("\n".join([*lines, setting]))
    with pytest.raises(ZooError, match=said):
        read_clip(folder)


def test_the_size_of_pictures_nobody_has(tmp_path, caplog):
    (tmp_path / "mine.csv").write_text("frame,x,y,w,h\n1,10,20,30,40.5\n2,90,5,30,40\n")
    clip = clip_of_detections(tmp_path / "mine.csv")
    assert (clip.width, clip.height, clip.length) == (120, 61, 2)
    assert "taken for 120 x 61" in caplog.text
    (tmp_path / "mine.csv").write_text("frame,x,y,w,h\n1,1e9,20,30,40.5\n")
    with pytest.raises(ZooError, match="expected sides of 1 to 65535"):
        clip_of_detections(tmp_path / "mine.csv")


def test_tracks_are_written_as_mot_challenge_wants_them(tmp_path):
    write_tracks(tmp_path / "it.txt", np.array([[1, 2, 3.456, 4, 5, 6]]))
    assert (tmp_path / "it.txt").read_text() == "1,2,3.46,4.00,5.00,6.00,1,-1,-1,-1\n"


def test_a_users_clip(root, tmp_path):
    clip = clip_of_detections(root / "test" / "circle-00" / "det" / "det.txt")
    assert (clip.name, clip.width, clip.length) == ("circle-00", 640, 12)
    # frames and detections in one folder, no seqinfo.ini
    for path in frame_pictures(root / "test" / "circle-00").values():
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
        (lambda c: (c / "det" / "det.txt").write_text("a,b\n"), "columns a, b; expected frame"),
        (lambda c: (c / "det" / "det.txt").write_text("1,-1,1,1,1,1,x\n"), "line 1: 'x', expected"),
        (lambda c: (c / "det" / "det.txt").write_bytes(b"\xff\xfe"), "expected rows of numbers"),
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
