import struct

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from zoo.data.formats.sound import SpecAugment, change_speed, log_mel, read_sound
from zoo.data.formats.transcripts import EOS, SOS, Tokens, check_alphabet, plain_text
from zoo.data.speech.speech import CommonVoice, HuggingFaceSpeech, LibriSpeech, SmallSpeech
from zoo.data.synthetic.spoken import SLOTS, spoken_sentences
from zoo.errors import ZooError

SAMPLE = SmallSpeech(train=4, val=1, test=2, source="shipped")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    LibriSpeech(str(root / "libri"), sample=SAMPLE).source("train")
    CommonVoice(str(root / "common"), sample=SAMPLE).source("train")
    return root


def test_shipped_sentences():
    spoken = list(spoken_sentences(420, "shipped"))
    words = {word for slot in SLOTS for word in slot}
    assert len({s.text for s in spoken}) == 420
    assert {word for s in spoken for word in s.text.split()} == words
    assert {s.speaker for s in spoken} == {0, 1, 2, 3, 4}
    seconds = np.array([len(s.sound) for s in spoken]) / 16_000
    assert seconds.min() > 1 and seconds.max() < 4
    assert min(np.abs(s.sound).max() for s in spoken) > 0.1
    with pytest.raises(ZooError, match="421 sentences were asked for, 420 come with"):
        list(spoken_sentences(421, "shipped"))


def test_librispeech_layout(root):
    data = LibriSpeech(str(root / "libri"), batch_size=2)
    (table, *_) = sorted((root / "libri" / "train-clean-100").glob("*/*/*.trans.txt"))
    name, _, text = table.read_text().splitlines()[0].partition(" ")
    assert text.isupper() and (table.parent / f"{name}.flac").is_file()
    assert table.name == f"{table.parts[-3]}-{table.parts[-2]}.trans.txt"
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["features"].shape[0::2] == (2, 80) and batch["features"].shape[1] > 100
    assert batch["tokens"][:, 0].tolist() == [SOS, SOS]
    for tokens, length, text in zip(
        batch["tokens"], batch["token_lengths"], batch["texts"], strict=True
    ):
        assert tokens[length - 1] == EOS and data.tokens.decode(tokens.tolist()) == text
    assert not batch["features"][batch["lengths"].argmin(), batch["lengths"].min() :].any()
    assert len(data.source("val")) == 1
    long = LibriSpeech(str(root / "libri"), train=["train-clean-100"], max_seconds=0.5)
    with pytest.raises(ZooError, match="train split holds no samples"):
        long.source("train")


def test_common_voice_layout(root):
    data = CommonVoice(str(root / "common"), batch_size=2)
    header, row = (root / "common" / "dev.tsv").read_text().splitlines()
    assert header.split("\t") == ["client_id", "path", "sentence"] and row.endswith(".")
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert all(text == plain_text(text) for text in batch["texts"])
    assert 0.5 < batch["features"].max() < 2


def test_data_sets_of_the_hub(root, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = sorted((root / "libri").rglob("*.flac"))[:3]
    rows = datasets.Dataset.from_dict(
        {"audio": [{"bytes": f.read_bytes(), "path": None} for f in files], "text": ["A", "b", "c"]}
    ).cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "hub")
    data = HuggingFaceSpeech(str(tmp_path / "hub"))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["texts"] == ["a", "b", "c"]
    torch.testing.assert_close(batch["features"][0, :50], log_mel(read_sound(files[0]))[:50])
    with pytest.raises(ZooError, match=r"text_column: .*no column 'sentence'"):
        HuggingFaceSpeech(str(tmp_path / "hub"), text_column="sentence").source("train")
    with pytest.raises(ZooError, match=r"val_split: .*no split 'validation', it has train, test"):
        data.source("val")


def test_log_mel_is_whispers():
    sound = torch.randn(16_000 + 77) / 10
    theirs = WhisperFeatureExtractor(feature_size=80)(
        sound.numpy(), sampling_rate=16_000, padding=False, return_tensors="pt"
    ).input_features[0]
    torch.testing.assert_close(log_mel(sound).T, theirs, atol=1e-5, rtol=1e-5)
    assert log_mel(sound, 24).shape == (100, 24)


def test_features_with_a_fixed_peak_do_not_depend_on_what_follows():
    sound = torch.randn(16_000) / 100
    loud = torch.cat([sound, torch.randn(16_000) * 10])
    assert torch.equal(log_mel(sound, peak=2.0)[:90], log_mel(loud, peak=2.0)[:90])


def test_sound_of_any_rate_and_channels(tmp_path):
    t = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), 44_100)
    sound = read_sound(tmp_path / "tone.wav")
    assert len(sound) == 16_000 and sound.dtype == torch.float32
    assert sound.abs().max() == pytest.approx(0.5, abs=0.02)
    assert len(change_speed(sound, 1.1)) == pytest.approx(16_000 / 1.1, abs=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"no sound", "not a readable sound file"), ("short", "0.001 s")],
)
def test_unreadable_sound_is_said(tmp_path, content, said):
    path = tmp_path / "it.wav"
    if content == "short":
        soundfile.write(path, np.zeros(16), 16_000)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ZooError, match=said):
        read_sound(path)


def test_a_part_of_a_sound(tmp_path):
    sound = np.arange(32_000, dtype=np.float32) / 64_000
    soundfile.write(tmp_path / "it.wav", sound, 16_000, "FLOAT")
    part = read_sound(tmp_path / "it.wav", start=0.5, seconds=0.25)
    assert torch.equal(part, torch.from_numpy(sound[8_000:12_000]))
    assert len(read_sound(tmp_path / "it.wav", start=1.5)) == 8_000
    for start, seconds in ((9.0, None), (0.0, 0.001)):
        with pytest.raises(ZooError, match=r"expected 0.025 s or more"):
            read_sound(tmp_path / "it.wav", start=start, seconds=seconds)


def test_long_sounds_are_read_whole(tmp_path):
    """In several blocks, of any number of channels."""
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (400_000, 3)).astype(np.float32)
    soundfile.write(tmp_path / "it.wav", sound, 16_000, "FLOAT")
    np.testing.assert_allclose(read_sound(tmp_path / "it.wav"), sound.mean(1), atol=1e-7)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: b[:40] + struct.pack("<I", 2**32 - 1) + b[44:], None),  # the length of the data
        (lambda b: b[:24] + struct.pack("<I", 1) + b[28:], "1 samples a second, expected 1000 to"),
        (
            lambda b: b[:24] + struct.pack("<I", 2**31 - 1) + b[28:],
            "samples a second|not a readable",
        ),
        (lambda b: b[:24] + struct.pack("<I", 0) + b[28:], "samples a second|not a readable"),
        (lambda b: b[:22] + struct.pack("<H", 0) + b[24:], "not a readable sound file"),
        (lambda b: b[:22] + struct.pack("<H", 65535) + b[24:], "not a readable|of sound, expected"),
        (lambda b: b[:60], "0.000 s of sound|0.001 s of sound"),
        (lambda b: b[:30], "not a readable sound file"),
    ],
)
def test_headers_of_sounds_that_lie(tmp_path, spoil, said):
    soundfile.write(tmp_path / "it.wav", np.zeros(16_000), 16_000)
    (tmp_path / "it.wav").write_bytes(spoil((tmp_path / "it.wav").read_bytes()))
    if said is None:
        assert len(read_sound(tmp_path / "it.wav")) == 16_000
        return
    with pytest.raises(ZooError, match=said):
        read_sound(tmp_path / "it.wav")


def test_hours_of_nothing_in_a_small_file(tmp_path, monkeypatch):
    """FLAC packs silence into next to nothing, and more densely than libsndfile writes it."""
    monkeypatch.setattr("zoo.data.formats.sound.DENSEST", 100)
    with soundfile.SoundFile(tmp_path / "it.flac", "w", 48_000, 1) as file:
        for _ in range(12):
            file.write(np.zeros(48_000 * 300, np.int16))
    assert (tmp_path / "it.flac").stat().st_size < 700_000
    with pytest.raises(ZooError, match=r"more than \d+ minutes in [\d,]+ bytes"):
        read_sound(tmp_path / "it.flac")


def test_sounds_that_are_not_finite(tmp_path):
    sound = np.zeros(16_000, np.float32)
    sound[7] = np.nan
    soundfile.write(tmp_path / "it.wav", sound, 16_000, "FLOAT")
    with pytest.raises(ZooError, match="values that are not finite"):
        read_sound(tmp_path / "it.wav")


def test_spec_augment_hides_bands_and_stretches():
    torch.manual_seed(0)
    features = torch.rand(200, 40)
    masked = SpecAugment(1, 10, 2, 0.1)(features)
    hidden = masked != features
    assert 0 < hidden.float().mean() < 0.5
    assert torch.all(masked[hidden] == features.mean())
    assert SpecAugment(0, 10, 0, 0.1)(features) is not None


def test_tokens():
    tokens = Tokens.characters()
    assert len(tokens) == 32 and tokens.decode(tokens.encode("it's me")) == "it's me"
    pieces = Tokens.pieces((s.text for s in spoken_sentences(100, "shipped")), 60)
    again = Tokens.from_json(pieces.to_json())
    ids = pieces.encode("move the red ball")
    assert again.encode("move the red ball") == ids and again.decode(ids) == "move the red ball"
    assert len(ids) < len("move the red ball")
    with pytest.raises(ZooError, match=r"'caf\xe9' has characters.*: \xe9"):
        check_alphabet(tokens, ["cafe", "caf\xe9"], "alphabet")
    assert plain_text("Hello, it\u2019s ME\u2014now_!") == "hello it's me now"


def test_wrong_settings_are_said(tmp_path):
    with pytest.raises(ZooError, match=r"is not a folder.*--data.init_args.root FOLDER"):
        LibriSpeech(str(tmp_path / "none")).source("train")
    with pytest.raises(ZooError, match=r"data.init_args.train names the subsets"):
        LibriSpeech(str(tmp_path)).source("train")
    with pytest.raises(ZooError, match=r"dev.tsv is missing"):
        CommonVoice(str(tmp_path)).source("val")
    with pytest.raises(ZooError, match="spectrograms of one speed can be kept"):
        LibriSpeech(str(tmp_path), keep_features=True, speeds=[0.9, 1.0])
