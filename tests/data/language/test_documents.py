import gzip
import json

import pytest
import torch

from zoo.data.language.documents import Documents
from zoo.data.language.text import PythonSource, packed
from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_lines(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in texts))


def test_blocks_know_their_documents():
    mask, document = packed(torch.tensor([7, 7, 8, 8, 8, 9]))
    assert mask.tolist() == [1, 1, 0, 1, 1, 0]
    assert document.tolist() == [0, 0, 1, 1, 1, 2] and document.dtype == torch.int32


def test_the_layout_of_the_pile(tmp_path):
    texts = [f"document {n} says " + "word " * (n % 5 + 1) for n in range(40)]
    write_lines(tmp_path / "pile" / "train" / "00.jsonl", texts[:20])
    write_lines(tmp_path / "pile" / "train" / "01.jsonl", texts[20:30])
    write_lines(tmp_path / "pile" / "val.jsonl", texts[30:35])
    write_lines(tmp_path / "pile" / "test.jsonl", texts[35:])
    data = Documents(str(tmp_path / "pile"), vocab_size=270, length=16, batch_size=2)
    data.setup("fit")
    ids, mask, document = data.source("train")[0]
    assert len(ids) == len(mask) == len(document) == 16 and data.vocab_size == 270
    text = data.tokenizer.decode(ids)
    assert text.startswith("document 0 says word") and "document 1" in text
    first = (document == 0).sum()
    assert data.tokenizer.decode(ids[:first]) == texts[0] and mask[first] == 0
    batch = next(iter(data.train_dataloader()))
    assert [part.shape for part in batch] == [(2, 16)] * 3
    held_out = data.tokenizer.decode(data.source("val")[0][0])
    assert held_out.startswith("document 30")


def test_plain_text_files_are_shared_out(tmp_path):
    for n in range(20):
        (tmp_path / f"{n:02d}.txt").write_text(f"text {n}\n\n" * 8)
    data = Documents(str(tmp_path), vocab_size=270, length=8, batch_size=2, separate=False)
    data.setup("fit")
    data.setup("test")
    assert data.tokenizer.decode(data.source("test")[0][0]).startswith("text 19\n")
    assert len(data.source("val")[0]) == 2


STORY = "".join(f"{n}: once upon a time, and a little more of it\n" for n in range(600))


@pytest.mark.parametrize("name", ["book.txt", "book", "book.log", "notes.md", "book.txt.gz"])
def test_a_text_file(tmp_path, name, caplog):
    """Each line is in one split, in order."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(STORY.encode()) if name.endswith("gz") else STORY.encode())
    data = Documents(str(path), vocab_size=270, length=16, batch_size=2)
    data.setup("fit")
    data.setup("test")
    documents = {split: data._read()[split]["text"] for split in ("train", "val", "test")}
    parts = {split: "".join(texts) for split, texts in documents.items()}
    assert "".join(parts.values()) == STORY
    assert all(part.endswith("\n") for part in parts.values())
    for split in ("val", "test"):
        assert len(parts[split]) == pytest.approx(0.05 * len(STORY), abs=50)
        assert len(data.source(split)) > 10
    assert "holds 1 documents: the last two twentieths of their lines" in caplog.text


def test_few_documents_stay_apart(tmp_path):
    write_lines(tmp_path / "a.jsonl", [STORY[:9000], STORY[9000:18000], "", STORY[18000:]])
    data = Documents(str(tmp_path / "a.jsonl"), vocab_size=270, length=16, batch_size=2)
    data.setup("fit")
    texts = data._read()["train"]["text"]
    assert texts[0] == STORY[:9000] and texts[1] == STORY[9000:18000]
    assert STORY[18000:].startswith(texts[2]) and len(texts[2]) > 5000


def test_short_texts_are_said(tmp_path):
    (tmp_path / "a.txt").write_text(STORY[:2000])
    with pytest.raises(
        ZooError, match=r"2,000 characters, too few .* 2048 tokens: expected 65,536"
    ):
        Documents(str(tmp_path / "a.txt"), batch_size=1).setup("fit")
    short = Documents(str(tmp_path / "a.txt"), length=8, vocab_size=270, batch_size=2)
    short.setup("fit")
    assert len(short.source("val")) > 0
    for split in ("train", "val", "test"):
        write_lines(tmp_path / "named" / f"{split}.jsonl", ["few words"] * 3)
    with pytest.raises(ZooError, match="the train documents fill no block of 64 tokens"):
        Documents(str(tmp_path / "named"), length=64, vocab_size=270, batch_size=1).setup("fit")


def test_what_is_no_text_is_said(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 500)
    (tmp_path / "b.jsonl.zst").write_bytes(b"no archive")
    (tmp_path / "c.parquet").write_bytes(b"no table")
    (tmp_path / "d.txt").write_bytes(b"")
    for name in ("a.bin", "b.jsonl.zst", "c.parquet", "d.txt"):
        with pytest.raises(ZooError, match=r"data\.init_args\.source"):
            Documents(str(tmp_path / name), batch_size=1, length=8).setup("fit")


def test_errors(tmp_path):
    def setup(name, **options):
        Documents(str(tmp_path / name), batch_size=1, **options).setup("fit")

    with pytest.raises(ZooError, match="no documents"):
        setup("nothing")
    write_lines(tmp_path / "one" / "a.jsonl", ["x"])
    with pytest.raises(ZooError, match="1 characters, too few to share out in blocks of 2048"):
        setup("one")
    write_lines(tmp_path / "many" / "a.jsonl", ["x"] * 20)
    with pytest.raises(ZooError, match="columns text, meta in train, expected 'words'"):
        setup("many", column="words")
    with pytest.raises(ZooError, match="tokenizer 'nowhere' cannot be loaded"):
        setup("many", tokenizer="nowhere")
    (tmp_path / "many" / "b.txt").write_text("x")
    with pytest.raises(ZooError, match=r"several kinds \(json, text\)"):
        setup("many")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jsonl").write_text("{broken")
    with pytest.raises(ZooError, match="cannot be read"):
        setup("broken")


def test_python_files_can_be_kept_apart():
    data = PythonSource(length=64, vocab_size=300, max_bytes=60_000, separate=True, batch_size=2)
    source = data.source("train")
    assert any(source[n][2].max() > 0 for n in range(len(source)))


def test_a_split_without_text_is_said():
    data = PythonSource(length=64, vocab_size=300, max_bytes=1, batch_size=2)
    with pytest.raises(ZooError, match=r"PythonSource: the (val|test) split holds no samples"):
        for split in ("val", "test"):
            data.source(split)
