import gzip
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.ndimage import label as regions

from zoo.data.formats.maps import SmallSample
from zoo.data.formats.sound import RATE, SpecAugment
from zoo.data.formats.text_lines import TextLines
from zoo.data.ssm.long_range_arena import (
    ByteReviews,
    DocumentRetrieval,
    ListOps,
    Pathfinder,
    SmallListOps,
    encode_bytes,
)
from zoo.data.ssm.pixels import SequentialCIFAR, SequentialDigits, SequentialMNIST
from zoo.data.ssm.speech_commands import SpeechCommands, _mel, kaldi_fbank, mfcc
from zoo.data.synthetic.chirped_words import WORDS
from zoo.data.synthetic.list_ops import list_ops
from zoo.data.synthetic.pathfinder import draw_pathfinder
from zoo.errors import ZooError

FEW = {"train": 32, "val": 4, "test": 4}
SHORT = SmallListOps(**FEW, min_length=5, max_length=60, max_depth=4, max_args=4)


def every_data(root: Path) -> list:
    """A small data set of every kind."""
    sample = SmallSample(**FEW, size=32)
    kwargs = {"batch_size": 4}
    return [
        ListOps(str(root / "listops"), SHORT, **kwargs),
        ByteReviews(str(root / "imdb"), sample, max_length=100, **kwargs),
        DocumentRetrieval(str(root / "aan"), sample, max_length=100, **kwargs),
        Pathfinder(str(root / "pathfinder32"), sample, **kwargs),
        SequentialDigits(**kwargs),
        SequentialMNIST(str(root / "mnist"), sample, **kwargs),
        SequentialCIFAR(str(root / "cifar"), sample, grey=False, **kwargs),
        SpeechCommands(str(root / "words"), sample, **kwargs),
    ]


def test_batches_of_every_data_set(tmp_path):
    for data in every_data(tmp_path):
        data.setup("fit")
        data.setup("test")
        name = type(data).__name__
        for batch in (next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))):
            inputs, lengths, labels = batch["inputs"], batch["lengths"], batch["labels"]
            assert inputs.shape[:1] == (4,) and labels.shape == (4,), name
            assert lengths.shape == ((4, 2) if data.paired else (4,)), name
            assert lengths.max() == inputs.shape[2 if data.paired else 1], name
            assert labels.min() >= 0 and labels.max() < len(data.class_names), name
            if data.vocab_size is None:
                assert inputs.shape[-1] == data.d_input, name
                assert inputs.abs().max() < 10, name
            else:
                assert inputs.dtype == torch.int64 and inputs.max() < data.vocab_size, name
                assert (inputs == 0).sum() == inputs.numel() - lengths.sum(), name
        first = inputs[0, 0] if data.paired else inputs[0]
        picture = data.to_picture(first)
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.std() > 0, name
        assert len(data.source("train")) + len(data.source("val")) >= 32, name


def test_list_ops_come_to_what_python_says():
    draws = random.Random(0)
    for _ in range(100):
        text, value = list_ops(draws, 3, 80, max_depth=4, max_args=5)
        tokens = text.replace("(", " ").replace(")", " ").split()
        assert 3 < len(tokens) < 80
        assert text.count("(") == text.count(")")
        functions = {
            "[MIN": "min([",
            "[MAX": "max([",
            "[MED": "int(__import__('statistics').median([",
            "[SM": "(10 + sum([",
        }
        closing = {"[MIN": "])", "[MAX": "])", "[MED": "]))", "[SM": "])) % 10"}
        code, stack = "", []
        for token in tokens:
            if token in functions:
                code += functions[token]
                stack.append(token)
            else:
                code += closing[stack.pop()] + ", " if token == "]" else token + ", "
        assert eval(code.rstrip(", ")) == value
        assert max(depths(tokens)) <= 3


def depths(tokens: list[str]) -> list[int]:
    depth, found = 0, []
    for token in tokens:
        depth += token.startswith("[") - (token == "]")
        found.append(depth)
    return found


def test_list_ops_of_the_published_size():
    lengths = []
    for seed in range(5):
        text, value = list_ops(random.Random(seed))
        tokens = text.replace("(", " ").replace(")", " ").split()
        lengths.append(len(tokens))
        assert 0 <= value <= 9 and max(depths(tokens)) <= 9
    assert min(lengths) > 500 and max(lengths) < 2000


def test_list_ops_are_read_as_they_stand(tmp_path):
    rows = (
        "Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n( ( ( [SM 7 ) ( ( ( [MIN 5 ) 8 ) ] ) ) ] )\t2\n"
    )
    (tmp_path / "basic_test.tsv").write_text(rows)
    data = ListOps(str(tmp_path), max_length=6)
    source = data.source("test")
    assert [s.label for s in source] == [9, 2]
    batch = data.collate([data.eval_transform(s) for s in source])
    # [MIN [MAX [MED [SM ] 0 .. 9
    assert batch["inputs"].tolist() == [[2, 8, 15, 5, 0, 0], [4, 13, 1, 11, 14, 5]]
    assert batch["lengths"].tolist() == [4, 6]
    path = tmp_path / "mine.txt"
    path.write_text("[MAX 2 9 ]")
    assert data.read_file(path).tolist() == [2, 8, 15, 5]
    for text, message in (("[MAX 2 x ]", "'x' is none of"), ("", "is empty")):
        path.write_text(text)
        with pytest.raises(ZooError, match=message):
            data.read_file(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a\tb\n", "begins with the columns a, b, expected Source, Target"),
        ("Source\tTarget\n[MAX 1 2 ]\tx\n", "line 1: .*expected an expression, a tab and a digit"),
    ],
)
def test_broken_list_ops(tmp_path, rows, message):
    (tmp_path / "basic_val.tsv").write_text(rows)
    with pytest.raises(ZooError, match=message):
        ListOps(str(tmp_path)).source("val")[0]


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes("ä\tb\r\n\n\nc".encode())
    lines = TextLines(path)
    assert [lines[i] for i in range(len(lines))] == ["ä\tb", "c"]
    with pytest.raises(ZooError, match="is missing"):
        TextLines(tmp_path / "y.tsv")


def test_bytes_and_their_end():
    assert encode_bytes(b"ab", 10).tolist() == [98, 99, 257]
    assert encode_bytes(bytes([0, 255, 7]), 3).tolist() == [1, 256, 257]


def test_pairs_of_papers(tmp_path):
    row = "1.0\tP1\tP2\tabc\tde\n"
    (tmp_path / "new_aan_pairs.eval.tsv").write_text(row + "0\tP1\tP2\ta\tbcd\n")
    data = DocumentRetrieval(str(tmp_path), max_length=3)
    batch = data.collate([data.eval_transform(s) for s in data.source("val")])
    assert batch["labels"].tolist() == [1, 0]
    assert batch["lengths"].tolist() == [[3, 3], [2, 3]]
    assert batch["inputs"][1].tolist() == [[98, 257, 0], [99, 100, 257]]
    (tmp_path / "new_aan_pairs.test.tsv").write_text("1\tonly\n")
    with pytest.raises(ZooError, match="2 columns, expected 0 or 1, two names"):
        data.source("test")[0]
    (tmp_path / "mine.tsv").write_text("one\ttwo")
    assert [len(t) for t in data.read_file(tmp_path / "mine.tsv")] == [3, 3]
    (tmp_path / "mine.tsv").write_text("one")
    with pytest.raises(ZooError, match="expected two texts and a tab"):
        data.read_file(tmp_path / "mine.tsv")


@pytest.mark.parametrize("connected", [True, False])
def test_dots_lie_on_one_path_or_on_two(connected):
    draws = np.random.default_rng(0)
    pictures = [draw_pathfinder(draws, 64, 9, connected) for _ in range(4)]
    for picture in pictures:
        assert picture.shape == (64, 64) and picture.max() == 255
        # the dots are by far the widest parts: eroded until the dashes are gone, two are left
        solid = picture > 127
        assert regions(binary_erosion(solid, np.ones((3, 3))))[1] == 2
        # 2 paths of 9 dashes, two of which lie under the dots, and distractors
        assert regions(solid)[1] >= 9 + 2


def test_pathfinder_is_shared_out(tmp_path):
    data = Pathfinder(str(tmp_path / "p"), SmallSample(16, 2, 2, size=32), level="easy")
    sources = {split: data.source(split) for split in ("train", "val", "test")}
    assert [len(s) for s in sources.values()] == [16, 2, 2]
    sample = data.eval_transform(sources["train"][0])
    assert sample["inputs"].shape == (1024, 1)
    assert sample["inputs"].min() == -1 and sample["inputs"].max() == 1
    table = tmp_path / "p" / "curv_baseline" / "metadata" / "0.npy"
    table.write_text("imgs/0 sample_0.png 0 x\n")
    with pytest.raises(ZooError, match=r"line 1: .*expected folder, file, number and 0 or 1"):
        Pathfinder(str(tmp_path / "p"), level="easy").load("train")
    with pytest.raises(ZooError, match=r"sample\.size is 8, expected 32"):
        Pathfinder(str(tmp_path / "q"), SmallSample(8, 1, 1, size=8)).load("train")


def test_permuted_digits_are_the_same_pixels():
    plain, permuted = SequentialDigits(), SequentialDigits(permute=True)
    first, second = (d.eval_transform(d.source("test")[0])["inputs"] for d in (plain, permuted))
    assert first.shape == (64, 1) and not torch.equal(first, second)
    torch.testing.assert_close(first.sort(0)[0], second.sort(0)[0])
    again = SequentialDigits(permute=True)
    torch.testing.assert_close(again.eval_transform(again.source("test")[0])["inputs"], second)


def test_mnist_packed_or_not(tmp_path):
    data = SequentialMNIST(str(tmp_path), SmallSample(18, 2, 4))
    data.root = tmp_path / "made"
    data.load("train")
    for path in list(data.root.glob("*-ubyte")):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    packed = SequentialMNIST(str(tmp_path))
    for split in ("train", "val", "test"):
        for mine, theirs in zip(data.source(split), packed.source(split), strict=True):
            assert mine.label == theirs.label and torch.equal(mine.read(), theirs.read())
    name = "t10k-images-idx3-ubyte"
    (tmp_path / name).write_bytes((data.root / name).read_bytes()[:-1])
    with pytest.raises(ZooError, match="is not a whole file of MNIST"):
        packed.load("test")
    (tmp_path / name).write_bytes(b"\0\0")
    with pytest.raises(ZooError, match="is not a whole file of MNIST"):
        packed.load("test")


def test_cifar_in_both_layouts(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (3, 3073), np.uint8)
    rows[:, 0] = [3, 0, 9]
    (tmp_path / "bin").mkdir()
    (tmp_path / "py").mkdir()
    rows.tofile(tmp_path / "bin" / "test_batch.bin")
    content = {b"labels": [3, 0, 9], b"data": rows[:, 1:]}
    (tmp_path / "py" / "test_batch").write_bytes(pickle.dumps(content))
    both = [SequentialCIFAR(str(tmp_path / n), grey=False).source("test") for n in ("bin", "py")]
    for mine, theirs in zip(*both, strict=True):
        assert mine.label == theirs.label and torch.equal(mine.read(), theirs.read())
    pixels = both[0][0].read()
    assert pixels.shape == (1024, 3)
    # plane after plane in the file, the colours of a pixel side by side here
    expected = rows[0, 1:].reshape(3, 1024).T / 127.5 - 1
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-6)
    grey = SequentialCIFAR(str(tmp_path / "bin")).source("test")[0].read()
    luma = expected @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(grey[:, 0], luma, atol=0.01)
    (tmp_path / "py" / "test_batch").write_bytes(pickle.dumps({b"labels": Path, b"data": 0}))
    with pytest.raises(ZooError, match="which is not read"):
        SequentialCIFAR(str(tmp_path / "py")).load("test")


def test_speech_commands_by_their_lists(tmp_path):
    for word in ("yes", "no", "_background_noise_"):
        (tmp_path / word).mkdir()
        for i in range(3):
            sound = np.full(RATE // 2, 0.1 * (i + 1), np.float32)
            soundfile.write(tmp_path / word / f"{i}_nohash_0.wav", sound, RATE)
    (tmp_path / "validation_list.txt").write_text("yes/1_nohash_0.wav\nno/0_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/2_nohash_0.wav\n")
    data = SpeechCommands(str(tmp_path), features="raw", every=2)
    found = {split: data.source(split) for split in ("train", "val", "test")}
    assert data.class_names == ("no", "yes")
    assert {s: [x.label for x in v] for s, v in found.items()} == {
        "train": [0, 0, 1],
        "val": [0, 1],
        "test": [1],
    }
    inputs = data.eval_transform(found["test"][0])["inputs"]
    assert inputs.shape == (8000, 1)  # padded to a second, every other sample
    assert inputs[:3900].mean() == pytest.approx(0.3, abs=1e-3) and inputs[4100:].abs().max() == 0
    yes = SpeechCommands(str(tmp_path), words=["yes"], mixup=1.0)
    assert len(yes.source("train")) == 1
    with pytest.raises(ZooError, match="has no folder maybe"):
        SpeechCommands(str(tmp_path), words=["maybe"]).source("train")
    with pytest.raises(ZooError, match="need features: fbank"):
        SpeechCommands(str(tmp_path), features="mfcc", noise=True)


def test_mixed_words_have_shares(tmp_path):
    settings = {"spec_augment": SpecAugment(1, 48, 1, 0.375), "noise": True}
    data = SpeechCommands(
        str(tmp_path / "w"), SmallSample(24, 6, 6), mixup=0.6, batch_size=24, **settings
    )
    data.setup("fit")
    assert data.class_names == tuple(sorted(WORDS))
    batch = next(iter(data.train_dataloader()))
    assert batch["inputs"].shape == (24, 128, 128) and batch["labels"].shape == (24, 6)
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(24))
    mixed = (batch["labels"].max(1).values < 1).sum()
    assert 5 < mixed < 24
    assert next(iter(data.val_dataloader()))["labels"].dtype == torch.int64


def test_kaldi_fbank_is_that_of_the_definition():
    torch.manual_seed(0)
    sound = torch.randn(1200) * 0.1 + 0.3
    bank = kaldi_fbank(sound, 8)
    assert bank.shape == (6, 8)
    frame = (sound - sound.mean()).double()[160:560]
    frame = frame - frame.mean()
    frame = frame - 0.97 * torch.cat([frame[:1], frame[:-1]])
    frame = frame * torch.hann_window(400, periodic=False, dtype=torch.float64)
    power = torch.fft.rfft(frame, 512).abs() ** 2

    def mel(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(20), mel(8000), 10)
    at = mel(np.arange(257) * RATE / 512)
    rows = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        rows.append(
            np.clip(np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None)
        )
    expected = np.log(np.stack(rows) @ power.numpy())
    np.testing.assert_allclose(bank[1].numpy(), expected, rtol=1e-4)


def test_mfcc_of_a_second():
    torch.manual_seed(0)
    found = mfcc(torch.randn(RATE))
    assert found.shape == (161, 20)
    # the first coefficient is the mean of the logarithms times the root of their number
    louder = mfcc(torch.randn(RATE) * 10)
    gap = (louder[:, 0] - found[:, 0]).mean() * 8
    seen = int((_mel().sum(0) > 0).sum())  # so narrow that some bands hold no frequency
    assert gap / seen == pytest.approx(np.log(100), abs=0.05)


def test_files_of_ones_own(tmp_path):
    picture = tmp_path / "x.png"
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(picture)
    assert SequentialDigits().read_file(picture).shape == (64, 1)
    assert SequentialMNIST("").read_file(picture).shape == (784, 1)
    assert SequentialCIFAR("", grey=False).read_file(picture).shape == (1024, 3)
    assert Pathfinder("").read_file(picture).shape == (600, 1)
    soundfile.write(tmp_path / "x.wav", np.zeros(RATE), RATE)
    assert SpeechCommands("", features="mfcc").read_file(tmp_path / "x.wav").shape == (161, 20)


def test_missing_folders_are_said(tmp_path):
    for kind in (ListOps, ByteReviews, DocumentRetrieval, Pathfinder, SequentialMNIST):
        with pytest.raises(ZooError, match="is not a folder, expected"):
            kind(str(tmp_path / "nowhere")).source("train")
        with pytest.raises(ZooError, match="is missing, expected"):
            kind(str(tmp_path)).source("train")
    with pytest.raises(ZooError, match="holds no folders"):
        SpeechCommands(str(tmp_path)).source("train")
