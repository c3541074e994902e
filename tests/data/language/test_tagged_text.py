import pytest
import torch

from zoo.data.formats.tokenizers import train_wordpiece
from zoo.data.language.tagged_text import Conll2003, SmallNames, TaggedText
from zoo.errors import ZooError

LINE = '{"tokens": ["the", "dogs", "of", "Lund"], "tags": ["O", "O", "O", "B-LOC"]}\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINE)
    (tmp_path / "dev.conll").write_text("Lund B-LOC\ndogs O\n")
    return tmp_path


def test_tags_stand_at_the_first_piece_of_each_word(folder):
    data = TaggedText(str(folder), length=16)
    data._tokenizer = train_wordpiece(["the dog s of l und"] * 9, 60)
    pieces = data.tokenizer(["dogs", "lund"], is_split_into_words=True).word_ids()
    batch = data.collate([*data.load("train"), *data.load("val")])
    assert data.class_names == ["O", "B-LOC"]
    assert batch["tags"] == [[0, 0, 0, 1], [1, 0]]
    for row, count in ((0, 4), (1, 2)):
        words = batch["words"][row]
        assert words[words >= 0].tolist() == list(range(count))
        assert batch["labels"][row][words >= 0].tolist() == batch["tags"][row]
        assert (batch["labels"][row][words < 0] == -100).all()
    # the second row: [CLS], the pieces of Lund, those of dogs, [SEP]
    assert batch["words"][1, 0] == -1 and batch["words"][1, 1] == 0
    assert batch["words"][1, 1 + pieces.count(1)] == 1


def test_long_sentences_are_cut_but_keep_their_tags(folder):
    data = TaggedText(str(folder), vocab_size=80, length=4)
    batch = data.collate(data.load("train"))
    assert batch["input_ids"].shape == (1, 4) and batch["tags"] == [[0, 0, 0, 1]]
    assert data.tokens_of(["the", "dogs"]) == data.tokens_of(["the"]) + data.tokens_of(["dogs"]) - 2


def test_facts_are_enough_for_a_checkpoint(folder):
    data, other = (TaggedText(place, vocab_size=80) for place in (str(folder), "gone"))
    other.restore(data.facts())
    assert other.class_names == ["O", "B-LOC"]
    for name, value in data.encode([["Lund", "dogs"]]).items():
        assert torch.equal(other.encode([["Lund", "dogs"]])[name], value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "line 1: 2 tokens and 1 tags, expected as many"),
        ('{"tokens": ["a"], "tags": ["B-LCO"]}', "the tag 'B-LCO' is unknown; did you mean B-LOC"),
        ('{"tokens": "a b", "tags": ["O", "O"]}', "tokens is 'a b', expected a list of texts"),
        ('{"tokens": ["a"]}', "tags is missing, expected a list of texts"),
        ('{"tokens": [], "tags": []}', r"tokens is \[\], expected a list of texts"),
    ],
)
def test_what_is_wrong_with_samples_is_said(tmp_path, line, expected):
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(ZooError, match=expected):
        TaggedText(str(tmp_path), class_names=["O", "B-LOC"]).load("train")


def test_conll_is_made_in_its_layout(tmp_path):
    sample = SmallNames(train=30, val=4, test=5)
    data = Conll2003(str(tmp_path / "c"), sample=sample, vocab_size=100)
    assert [len(data.load(split)) for split in ("train", "val", "test")] == [30, 4, 5]
    assert data.class_names == ["O", "B-LOC", "B-ORG", "B-PER", "I-ORG", "I-PER"]
    assert (tmp_path / "c/train.txt").read_text().split("\n\n")[0].endswith("\n. O")
    (tmp_path / "c/eng.testa").write_text("Lund B-LOC\n")  # the published name goes before
    assert Conll2003(str(tmp_path / "c")).load("val")[0].words == ("Lund",)
    with pytest.raises(ZooError, match=r"holds no eng\.train or train\.txt"):
        Conll2003(str(tmp_path / "d")).load("train")
