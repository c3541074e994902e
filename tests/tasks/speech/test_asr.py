import csv
from pathlib import Path

import pytest
import torch

import zoo.predict
from tests.test_cli import error_of
from zoo.data.speech.speech import LibriSpeech, SmallSpeech
from zoo.errors import ZooError
from zoo.tasks.speech.asr import SpeechRecognition
from zoo.train import main as train

SIZES = "{{d_model: 16, encoder_layers: 1, decoder_layers: 1, n_mels: 8, vocab_size: 60, {more}}}"
RECIPE = (
    """
model:
  class_path: zoo.tasks.SpeechRecognition
  init_args:
    model: samba_asr_tiny
    model_args: """
    + SIZES
    + """
    search: {{beams: {beams}, max_tokens: 5}}
    stream_seconds: {stream}
    optimizer: {{lr_batch_size: null}}
data:
  class_path: zoo.data.LibriSpeech
  init_args:
    root: {root}
    sample: {{train: 8, val: 1, test: 3, source: shipped}}
    train: [train-clean-100]
    n_mels: 8
    vocabulary: {vocabulary}
    peak: {peak}
    keep_features: true
    batch_size: 4
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
"""
)


def run(folder: Path, name: str, **settings) -> Path:
    values = {"more": "", "beams": 1, "stream": 0, "vocabulary": "null", "peak": "null"} | settings
    recipe = folder / "recipes" / "speech" / f"{name}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(RECIPE.format(root=folder / "speech", **values))
    assert train([str(recipe), "--runs", str(folder / "runs")]) == 0
    (path,) = (folder / "runs" / "speech" / name).iterdir()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("asr")


@pytest.fixture(scope="module")
def pieces(folder) -> Path:
    """A run with learned word pieces and a beam search."""
    return run(folder, "pieces", vocabulary=40, beams=2)


def predict(run: Path, files: list[Path], output: Path) -> list[dict[str, str]]:
    arguments = [*map(str, files), "--checkpoint", str(run), "--output", str(output)]
    assert zoo.predict.main(arguments) == 0
    with (output / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sounds(folder: Path) -> list[Path]:
    return sorted((folder / "speech" / "test-clean").rglob("*.flac"))


def test_a_run_measures_and_draws(pieces):
    assert "spectrograms" in [path.stem for path in pieces.rglob("*.png")]
    written = "".join(path.read_text() for path in pieces.rglob("*.csv"))
    for name in ("val/wer", "val/cer", "test/wer", "test/cer", "test/ctc_wer", "test/rtf"):
        assert name in written


def test_predict_writes_down_what_is_said(folder, pieces, tmp_path, capsys):
    # the tokens are in the checkpoint: the training data are not asked for
    (folder / "speech").rename(folder / "elsewhere")
    try:
        files = sorted((folder / "elsewhere" / "test-clean").rglob("*.flac"))
        rows = predict(pieces, files[:2], tmp_path / "out")
    finally:
        (folder / "elsewhere").rename(folder / "speech")
    assert [row["file"] for row in rows] == [str(path) for path in files[:2]]
    assert rows[0].keys() == {"file", "transcript", "seconds", "rtf"}
    for row in rows:
        (text,) = (tmp_path / "out").glob(f"*_{Path(row['file']).stem}.txt")
        assert text.read_text() == row["transcript"] + "\n"
        cues = text.with_suffix(".srt").read_text().splitlines()[2::4]
        assert " ".join(cues) == row["transcript"]
        assert text.with_suffix(".vtt").read_text().startswith("WEBVTT")
    assert 1 < float(rows[0]["seconds"]) < 4
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert "transcript" in capsys.readouterr().out


def test_a_stream_hears_the_same(folder, tmp_path):
    causal = run(folder, "causal", more="bidirectional: false", peak=2, stream=0)
    whole = predict(causal, sounds(folder), tmp_path / "whole")
    stream = run(folder, "stream", more="bidirectional: false", peak=2, stream=0.3)
    piecewise = predict(stream, sounds(folder), tmp_path / "stream")
    assert [r["transcript"] for r in whole] == [r["transcript"] for r in piecewise]


def test_predict_says_what_is_no_sound(pieces, tmp_path, capsys):
    (tmp_path / "it.wav").write_text("no sound")
    end = ["--checkpoint", str(pieces), "--output", str(tmp_path / "out")]
    line = error_of(capsys, zoo.predict.main([str(tmp_path / "it.wav"), *end]))
    assert "it.wav: not a readable sound file" in line


def test_words_stand_where_ctc_finds_them(folder):
    data = LibriSpeech(str(folder / "none"))
    task = SpeechRecognition("samba_asr_tiny")
    task.tokens = data.tokens
    text = data.tokens.encode("red cup")
    ctc = torch.zeros(30, 32)
    ctc[:, 0] = 5
    for place, token in zip((2, 4, 6, 10, 20, 22, 24), text, strict=True):
        ctc[place, token] = 20
    words = task._heard(torch.zeros(60, 80), text, ctc, "").words
    assert [word for word, _, _ in words] == ["red", "cup"]
    assert words[0][1] == pytest.approx(0.04) and words[1][1] == pytest.approx(0.40)
    assert words[1][2] == pytest.approx(0.50)


def test_wrong_settings_are_said(tmp_path):
    sample = SmallSpeech(train=2, val=1, test=1, source="shipped")
    data = LibriSpeech(str(tmp_path / "it"), train=["train-clean-100"], sample=sample)
    for arguments, said in (
        ({"n_mels": 40}, "n_mels is 80, the model's n_mels 40"),
        ({"vocab_size": 20}, "the model knows 20 tokens, the data have 32"),
    ):
        task = SpeechRecognition("samba_asr_tiny", arguments)
        with pytest.raises(ZooError, match=said):
            task.check_data(data)
    with pytest.raises(ZooError, match="has no speech, expected"):
        SpeechRecognition("samba_asr_tiny").check_data(zoo.data.Digits())
