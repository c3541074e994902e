import pytest

from zoo.data.formats.conll import read_conll, write_conll
from zoo.errors import ZooError


def test_sentences_come_with_their_first_and_last_column(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n# NN B-NP O\n"
    )
    rows = read_conll(file, "tokens", "tags")
    assert [dict(row) for row in rows] == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#"], "tags": ["O"]},
    ]
    assert [row.place for row in rows] == [f"{file}, line 3", f"{file}, line 7"]
    file.write_text("New York\tB-LOC\n")  # a token may hold a space where tabs part the columns
    assert read_conll(file, "tokens", "tags")[0]["tokens"] == ["New York"]


def test_what_is_written_is_read(tmp_path):
    sentences = [[("Anna", "B-PER"), (".", "O")], [("Lund", "B-LOC")]]
    write_conll(tmp_path / "a.txt", sentences)
    rows = read_conll(tmp_path / "a.txt", "a", "b")
    assert [list(zip(row["a"], row["b"], strict=True)) for row in rows] == sentences


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a O\nb\n", r"a\.txt, line 2: 'b', expected 2 columns"),
        ("a\n", r"a\.txt, line 1: 'a', expected a token and its tag"),
        ("a\t\n", r"a\.txt, line 1: 'a\\t', expected 2 columns"),
    ],
)
def test_a_broken_line_is_said(tmp_path, content, expected):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ZooError, match=expected):
        read_conll(tmp_path / "a.txt", "a", "b")
