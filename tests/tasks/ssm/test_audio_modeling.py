import math

import numpy as np
import pytest
import soundfile
import torch

from tests.tiny import ROOT
from zoo.cli import Recipe, quiet
from zoo.data.formats.quantised_sound import dequantise, quantise
from zoo.data.formats.sound import RATE
from zoo.data.ssm.raw_audio import RawAudio, SmallAudio
from zoo.data.synthetic.plucked_tones import plucked_tone
from zoo.errors import ZooError
from zoo.tasks.ssm.audio_modeling import AudioModeling

RECIPE = ROOT / "recipes/ssm/sashimi/small.yaml"
TINY = {"d_model": 4, "n_layers": 1, "d_state": 4, "pool": [4]}


def test_levels_of_a_sound():
    sound = torch.tensor([-0.5, 0.0, 0.25, 0.5])
    assert quantise(sound, "linear").tolist() == [0, 127, 191, 255]
    # sign(x) log(1 + 255 |x|) / log(256), 0..1, in 256 steps
    half = round((math.log(1 + 255 * 0.5) / math.log(256) + 1) / 2 * 256 - 0.5)
    assert quantise(sound).tolist()[::3] == [0, 255]
    assert abs(quantise(sound).tolist()[2] - half) <= 1
    for kind, error in (("linear", 0.009), ("mu-law", 0.05)):
        x = torch.linspace(-1, 1, 401)
        assert (dequantise(quantise(x, kind), kind) - x).abs().max() <= error
    assert quantise(torch.full((5,), 0.2)).tolist() == [128] * 5, "silence"


def test_a_note_has_its_pitch():
    note = plucked_tone(np.random.default_rng(0), 8000, RATE, (440.0, 441.0))
    spectrum = np.abs(np.fft.rfft(note * np.hanning(8000)))
    assert abs(spectrum.argmax() * RATE / 8000 - 440) <= 2
    assert np.abs(note[:2000]).max() > 2 * np.abs(note[-2000:]).max()


def test_clips_of_both_layouts(tmp_path):
    flat = RawAudio(str(tmp_path / "a"), SmallAudio(44, 3, 3, size=1600), length=800)
    assert [len(flat.source(s)) for s in ("train", "val", "test")] == [88, 6, 6]
    first, second = (flat.eval_transform(flat.source("train")[i])["tokens"] for i in (0, 1))
    assert first.shape == second.shape == (800,) and not torch.equal(first, second)
    digits = tmp_path / "b"
    for name in ("one/0.wav", "one/1.wav", "two/0.wav"):
        (digits / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(digits / name, np.sin(np.arange(700)), RATE)
    (digits / "validation_list.txt").write_text("one/1.wav\n")
    (digits / "testing_list.txt").write_text("two/0.wav\n")
    listed = RawAudio(str(digits), length=800)
    found = {s: [x.path.parent.name for x in listed.source(s)] for s in ("train", "val", "test")}
    assert found == {"train": ["one"], "val": ["one"], "test": ["two"]}
    assert listed.eval_transform(listed.source("train")[0])["tokens"][700:].unique().numel() == 1
    with pytest.raises(ZooError, match="is not a folder, expected"):
        RawAudio(str(tmp_path / "c")).source("train")
    (tmp_path / "d").mkdir()
    with pytest.raises(ZooError, match="holds no sound files"):
        RawAudio(str(tmp_path / "d")).source("train")


def test_recipe_makes_and_continues_sounds(tmp_path):
    quiet()
    settings = {
        "sample": '{"train": 44, "val": 3, "test": 3, "size": 512}',
        "root": tmp_path / "notes",
        "length": 512,
    }
    options = [f"--data.init_args.{name}={value}" for name, value in settings.items()]
    options.append("--model.init_args.generate_seconds=0.01")
    options.append(f"--model.init_args.model_args={TINY}")
    recipe = Recipe(RECIPE, options)
    task, data = recipe.build()
    trainer = recipe.build_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    assert 0 < metrics["test/bits"] < 20
    assert set(task.figures()) == {"sounds"} and task.made.shape == (2, 160)
    (tmp_path / "out").mkdir()
    wav = sorted((tmp_path / "notes").glob("*.wav"))[0]
    (row,) = task.predict_files([wav], data, tmp_path / "out")
    sound, rate = soundfile.read(tmp_path / "out" / row["sound"])
    assert rate == RATE and len(sound) == 512 + 160
    # quantised, and in the clip's own range
    given, _ = soundfile.read(wav)
    assert np.corrcoef(sound[:512], given)[0, 1] > 0.98


def test_the_most_probable_continuation_is_that_of_the_convolution():
    task = AudioModeling("sashimi", {**TINY, "vocab_size": 16}, temperature=0.0).eval()
    prompt = torch.randint(16, (2, 8))
    made = task.continued(prompt, 8)
    both = torch.cat([prompt, made], 1)
    before = torch.nn.functional.pad(both[:, :-1], (1, 0), value=8)
    with torch.no_grad():
        logits = task.model(before)
    assert torch.equal(logits[:, 8:].argmax(-1), made)


def test_levels_and_lengths_must_fit():
    task = AudioModeling("sashimi", {**TINY, "vocab_size": 16})
    with pytest.raises(ZooError, match="bits is 8, but the model has 16 levels"):
        task.check_data(RawAudio(""))
    with pytest.raises(ZooError, match="length is 10, expected a multiple of 4"):
        task.check_data(RawAudio("", bits=4, length=10))
