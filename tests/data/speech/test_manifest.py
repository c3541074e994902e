import json

import numpy as np
import pytest
import soundfile
import torch

from zoo.data.formats.sound import read_sound
from zoo.data.speech.manifest import SpeechManifest
from zoo.errors import ZooError

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture
def recordings(tmp_path):
    """Ten recordings of 1 s, each a tone of its own, at 22 kHz."""
    (tmp_path / "wavs").mkdir()
    t = np.arange(22_050) / 22_050
    for number, word in enumerate(WORDS):
        tone = 0.1 * (number + 1) * np.sin(2 * np.pi * 300 * t)
        soundfile.write(tmp_path / "wavs" / f"{word}.wav", tone, 22_050)
    return tmp_path


def csv_of(mark, header, quote=""):
    rows = [mark.join((f"wavs/{w}.wav", f"{quote}Say {w}.{quote}", "1.0")) for w in WORDS]
    return "\n".join([header, *rows]) + "\n"


def lines_of(audio, text):
    rows = [{audio: f"wavs/{w}.wav", text: f"Say {w}.", "duration": 1.0} for w in WORDS]
    return "".join(json.dumps(row) + "\n" for row in rows)


TABLES = {
    "plain.csv": csv_of(",", "path,transcript,seconds"),
    "quoted.csv": csv_of(",", "audio_path,sentence,seconds", '"'),
    "semicolon.csv": csv_of(";", "file;text;seconds"),
    "common.tsv": csv_of("\t", "path\tsentence\tup_votes"),
    "bars.csv": csv_of("|", "wav|transcription|x"),
    "nemo.json": lines_of("audio_filepath", "text"),
    "nemo.jsonl": lines_of("audio_filepath", "text"),
    "list.json": json.dumps(
        [json.loads(line) for line in lines_of("audio", "transcript").splitlines()]
    ),
    "speechbrain.json": json.dumps(
        {
            w: {"wav": f"{{data_root}}/wavs/{w}.wav", "length": 1.0, "words": f"SAY {w.upper()}"}
            for w in WORDS
        }
    ),
    "speechbrain.csv": "ID,duration,wav,spk_id,wrd\n"
    + "".join(
        f"{w},1.0,$data_root/../wavs/{w}.wav,1,SAY {w.upper()}\n".replace("$data_root/../", "")
        for w in WORDS
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_all_kinds(recordings, name, caplog):
    (recordings / name).write_text(TABLES[name])
    data = SpeechManifest(str(recordings / name), batch_size=3)
    data.setup("fit")
    data.setup("test")
    texts = {split: [u.text for u in data.source(split)] for split in ("train", "val", "test")}
    assert [len(part) for part in texts.values()] == [8, 1, 1]
    assert sorted(text for part in texts.values() for text in part) == sorted(
        f"say {w}" for w in WORDS
    )
    assert texts["train"] == [f"say {w}" for w in WORDS if f"say {w}" in texts["train"]], "in order"
    for utterance in data.source("train"):
        word = utterance.text.split()[1]
        assert torch.equal(utterance.read(), read_sound(recordings / "wavs" / f"{word}.wav"))
    assert "a tenth of the recordings is kept for validation, another for the test" in caplog.text
    batch = next(iter(data.train_dataloader()))
    assert batch["features"].shape == (3, 100, 80)
    again = SpeechManifest(str(recordings / name), batch_size=3)
    assert [u.text for u in again.source("test")] == texts["test"]


def test_tables_of_each_split(recordings):
    rows = TABLES["plain.csv"].splitlines()
    folder = recordings / "tables"
    folder.mkdir()
    parts = {"train_x.csv": rows[1:6], "dev.csv": rows[6:8], "test-clean.csv": rows[8:]}
    for name, part in parts.items():
        (folder / name).write_text("\n".join([rows[0], *part]))
    wanted = {"train": WORDS[:5], "val": WORDS[5:7], "test": WORDS[7:]}
    by_folder = SpeechManifest(str(folder), audio_root=str(recordings))
    by_name = SpeechManifest(
        str(folder / "train_x.csv"),
        str(folder / "dev.csv"),
        str(folder / "test-clean.csv"),
        audio_root=str(recordings),
    )
    column = [rows[0] + ",split"]
    column += [
        f"{row},{s}"
        for s, part in zip(("train", "dev", "test"), parts.values(), strict=True)
        for row in part
    ]
    (recordings / "all.csv").write_text("\n".join(column))
    for data in (by_folder, by_name, SpeechManifest(str(recordings / "all.csv"))):
        for split, words in wanted.items():
            assert [u.text for u in data.source(split)] == [f"say {w}" for w in words]
    (folder / "test-clean.csv").unlink()
    data = SpeechManifest(str(folder), audio_root=str(recordings))
    assert [u.text for u in data.source("test")] == [f"say {w}" for w in wanted["val"]]
    (folder / "dev.csv").rename(folder / "test.csv")
    data = SpeechManifest(str(folder), audio_root=str(recordings))
    assert len(data.source("val")) == 1 and len(data.source("train")) == 4
    (folder / "training.csv").write_text("x")
    with pytest.raises(ZooError, match="holds both train_x"):
        SpeechManifest(str(folder)).source("train")


def test_parts_of_recordings(recordings):
    """NeMo's offset and duration; without an offset, the duration is that of the file."""
    whole = np.concatenate([soundfile.read(recordings / "wavs" / f"{w}.wav")[0] for w in WORDS])
    soundfile.write(recordings / "all.wav", whole, 22_050)
    rows = [
        {"audio_filepath": "all.wav", "text": w, "offset": float(i), "duration": 1.0}
        for i, w in enumerate(WORDS)
    ]
    (recordings / "it.json").write_text("\n".join(map(json.dumps, rows)))
    data = SpeechManifest(str(recordings / "it.json"), keep_features=True, batch_size=1)
    for utterance in data.source("train"):
        alone = read_sound(recordings / "wavs" / f"{utterance.text}.wav")
        assert len(utterance.read()) == 16_000
        peaks = [float(sound[4000:12000].abs().max()) for sound in (utterance.read(), alone)]
        assert peaks[0] == pytest.approx(peaks[1], abs=0.02)
    loud = [data.train_transform(u)["features"].max().item() for u in data.source("train")]
    assert len(set(loud)) == 8, "kept apart"


def test_long_recordings_are_left_out_of_training(recordings):
    rows = [json.loads(line) for line in TABLES["nemo.json"].splitlines()]
    rows[0]["duration"] = 31
    (recordings / "it.json").write_text("\n".join(map(json.dumps, rows)))
    assert len(SpeechManifest(str(recordings / "it.json")).source("train")) == 7
    (recordings / "it.csv").write_text(TABLES["plain.csv"])
    data = SpeechManifest(str(recordings / "it.csv"), max_seconds=0.9)
    with pytest.raises(ZooError, match="train split holds no samples"):
        data.source("train")
    assert len(data.source("val")) == 1


def test_missing_recordings_are_said(recordings, caplog):
    (recordings / "it.csv").write_text(TABLES["plain.csv"])
    for word in WORDS[:7]:
        (recordings / "wavs" / f"{word}.wav").unlink()
    data = SpeechManifest(str(recordings / "it.csv"))
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [1, 1, 1]
    assert "7 of 10 recordings are missing, such as" in caplog.text
    (recordings / "wavs").rename(recordings / "moved")
    with pytest.raises(ZooError, match=r"none of its 10 recordings is there.*audio_root"):
        SpeechManifest(str(recordings / "it.csv")).source("train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing, expected a table of recordings"),
        ("", "holds no rows, expected a table"),
        ("path,transcript\n", "holds no rows"),
        ("[]", "holds no rows"),
        ("[1, 2]", "holds no rows"),
        ("{broken", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (
            "sound_of,said\na.wav,x\n",
            "audio_column: .* has the columns sound_of, said, expected one of",
        ),
        (
            "path,said\na.wav,x\n",
            "text_column: .* has the columns path, said, expected one of text",
        ),
        ("path,text\n,x\n", "row 1: path '' and text 'x', expected a path and a transcript"),
        ("path,text\na.wav\n", "row 1: path 'a.wav' and text None"),
        ("path,text,offset\na.wav,x,soon\n", "row 1: offset 'soon', expected seconds"),
        ("path,text,duration\na.wav,x,-1\n", "row 1: duration '-1', expected seconds"),
        ("path,text,offset\na.wav,x,nan\n", "row 1: offset 'nan', expected seconds"),
        ('{"path": 3, "text": "x"}', "row 1: path 3 and text 'x'"),
        (
            "path,text,split\nwavs/one.wav,x,train\nwavs/two.wav,x,other\n",
            "a row of the split 'other'",
        ),
        ("path,text,split\nwavs/one.wav,x,test\n", "has no training recordings"),
        ("path,text\nwavs/one.wav,x\n", "1 samples cannot be shared out"),
    ],
)
def test_broken_tables_are_said(recordings, content, said):
    path = recordings / "it.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ZooError, match=said):
        SpeechManifest(str(path)).source("train")


def test_columns_of_other_names(recordings):
    (recordings / "it.csv").write_text(TABLES["plain.csv"].replace("path,transcript", "a,b"))
    data = SpeechManifest(str(recordings / "it.csv"), audio_column="a", text_column="B")
    assert len(data.source("train")) == 8
    with pytest.raises(
        ZooError, match=r"audio_column: .* has the columns a, b, seconds, expected 'c'"
    ):
        SpeechManifest(str(recordings / "it.csv"), audio_column="c").source("train")
