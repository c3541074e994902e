import pytest
import torch

from zoo.data.formats.text_rows import read_rows, text_lines
from zoo.data.formats.tokenizers import train_wordpiece, wordpiece
from zoo.data.language.labelled_text import GLUE, Glue, LabelledText, SmallSentences
from zoo.errors import ZooError


def test_tables_of_every_kind_say_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a, b", "label": "x"}\n\n{"text": "c", "label": "y"}\n'
    )
    (tmp_path / "a.csv").write_text('text,label\n"a, b",x\n\nc,y\n')
    (tmp_path / "a.tsv").write_bytes("\ufefftext\tlabel\r\na, b\tx\r\nc\ty\r\n".encode())
    for ending in ("jsonl", "csv", "tsv"):
        rows = read_rows(tmp_path / f"a.{ending}")
        assert [dict(row) for row in rows] == [
            {"text": "a, b", "label": "x"},
            {"text": "c", "label": "y"},
        ]
    assert rows[1].place.endswith("a.tsv, line 3")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", b"text\tlabel\nx\n", r"a\.tsv, line 2: 1 cells, expected 2: text, label"),
        ("a.jsonl", b'{"text": 1}\n{"text"\n', r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1: '\[1\]', expected an object"),
        ("a.csv", b"text,label\nx,y\n\xff,y\n", r"a\.csv, line 3: byte 1 is no UTF-8"),
        ("a.txt", b"x", r"expected a table that ends in \.jsonl"),
    ],
)
def test_a_broken_table_says_its_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ZooError, match=expected):
        read_rows(tmp_path / name)


def test_rows_with_missing_cells_can_be_left_out(tmp_path, caplog):
    (tmp_path / "a.tsv").write_text("text\tlabel\nx\ny\t1\n")
    assert [dict(row) for row in read_rows(tmp_path / "a.tsv", skip_broken=True)] == [
        {"text": "y", "label": "1"}
    ]
    assert "1 rows with other than 2 cells left out" in caplog.text


def test_lines_are_numbered(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\ntwo")
    assert list(text_lines(tmp_path / "a.txt")) == [(1, "one"), (2, ""), (3, "two")]
    (tmp_path / "b.txt").write_bytes(b"one\n")
    assert list(text_lines(tmp_path / "b.txt")) == [(1, "one")]


def test_word_pieces_mark_pairs_and_come_back():
    made = train_wordpiece(["the cat sees the dog", "a dog"] * 4, 60)
    again = wordpiece(made.backend_tokenizer.to_str())
    found = again("the dog", "a cat", return_tensors="pt")
    tokens = again.convert_ids_to_tokens(found["input_ids"][0])
    assert tokens == ["[CLS]", "the", "dog", "[SEP]", "a", "cat", "[SEP]"]
    assert found["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert (again.pad_token_id, again.unk_token_id, again.mask_token_id) == (0, 1, 4)
    assert again.decode(found["input_ids"][0], skip_special_tokens=True) == "the dog a cat"


def write(folder, name, *lines):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")


def test_pairs_from_a_folder(tmp_path):
    write(tmp_path / "d", "train.csv", "a,b,c", "one,two,yes", "three,four,no", "five,six,yes")
    write(tmp_path / "d", "dev.jsonl", '{"a": "one", "b": "two", "c": "no"}')
    data = LabelledText(
        str(tmp_path / "d"), text_columns=["a", "b"], label_column="c", vocab_size=40, length=8
    )
    assert data.class_names == ["no", "yes"]
    assert [row.label for row in data.load("train")] == [1, 0, 1]
    assert data.load("test") == data.load("val") == [(("one", "two"), 0)]
    batch = data.collate(data.load("train"))
    assert batch["labels"].tolist() == [1, 0, 1] and batch["labels"].dtype == torch.int64
    assert batch["input_ids"].shape[1] <= 8
    assert batch["attention_mask"].sum(1).tolist() == [
        min(8, data.tokens_of(row.texts)) for row in data.load("train")
    ]
    # a checkpoint's facts are enough
    other = LabelledText("gone", text_columns=["a", "b"], vocab_size=40, length=8)
    other.restore(data.facts())
    assert other.class_names == ["no", "yes"]
    assert (
        other.encode([("one", "two")])["input_ids"].tolist()
        == data.encode([("one", "two")])["input_ids"].tolist()
    )


def test_what_is_wrong_with_samples_is_said(tmp_path):
    write(tmp_path / "d", "train.tsv", "text\tlabel", "x\ta", "y\tb")
    for line, expected in (
        ("x\tc", r"val\.tsv, line 2: the label 'c' is unknown; expected one of a, b"),
        (" \ta", r"val\.tsv, line 2: text is empty"),
    ):
        write(tmp_path / "d", "val.tsv", "text\tlabel", line)
        with pytest.raises(ZooError, match=expected):
            LabelledText(str(tmp_path / "d")).load("val")
    write(tmp_path / "d", "val.tsv", "words\tlabel", "x\ta")
    with pytest.raises(ZooError, match="no column 'text', the row has words, label"):
        LabelledText(str(tmp_path / "d")).load("val")
    with pytest.raises(ZooError, match="holds no train that ends in"):
        LabelledText(str(tmp_path / "e")).load("train")
    with pytest.raises(ZooError, match="expected one or two"):
        LabelledText("x", text_columns=["a", "b", "c"])


@pytest.mark.parametrize("task", GLUE)
def test_every_task_of_glue(tmp_path, task):
    layout = GLUE[task]
    columns = layout.columns or ("index", *layout.texts, layout.label)
    label = "3.5" if task == "sts-b" else layout.classes[-1]
    cells = {column: f"text of {column}" for column in columns} | {layout.label: label}
    lines = [] if layout.columns else ["\t".join(columns)]
    lines.append("\t".join(cells[column] for column in columns))
    for name in ("train", layout.val, layout.test):
        write(tmp_path / "g", f"{name}.tsv", *lines)
    data = Glue(str(tmp_path / "g"), task.upper(), vocab_size=40)
    for split in ("train", "val", "test"):
        (row,) = data.load(split)
        assert row.texts == tuple(f"text of {column}" for column in layout.texts)
        assert row.label == (3.5 if task == "sts-b" else len(layout.classes) - 1)
    kind = data.collate([row])["labels"].dtype
    assert kind == (torch.float32 if task == "sts-b" else torch.int64)


def test_cola_is_made_in_its_layout(tmp_path):
    sample = SmallSentences(train=40, val=10)
    data = Glue(str(tmp_path / "cola"), "CoLA", sample=sample, vocab_size=100)
    data.setup("fit")
    line = (tmp_path / "cola/train.tsv").read_text().splitlines()[1].split("\t")
    assert line[:3] == ["made", "0", "*"]
    assert [row.label for row in data.load("train")] == [1, 0] * 20
    for row in data.load("train"):
        words = row.texts[0].split()
        verb = words[-4]
        subject = next(word for word in words[1:] if words[words.index(word) + 1] in
                       ("behind", "near", "beside", "with"))  # fmt: skip
        agrees = subject.endswith("s") != verb.endswith("s")
        assert agrees == (row.label == 1)
    with pytest.raises(ZooError, match="makes CoLA alone"):
        Glue(str(tmp_path / "x"), "rte", sample=sample)
    with pytest.raises(ZooError, match="did you mean mrpc"):
        Glue(str(tmp_path / "x"), "mrp")
