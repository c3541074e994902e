import json

import pytest

from zoo.data.formats.tokenizers import load_tokenizer, vocabulary_size
from zoo.data.language.text import train_tokenizer
from zoo.errors import ZooError


@pytest.fixture
def folder(tmp_path):
    train_tokenizer(["some words and some more words"] * 4, 270).save_pretrained(tmp_path / "t")
    return tmp_path / "t"


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_tokenizer_of_a_folder(folder):
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer("some words")["input_ids"]) == "some words"
    assert vocabulary_size(tokenizer, "it") == 270 == len(tokenizer)


def renumber(folder, number):
    """Give the last token another number."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = number
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_the_highest_number_counts(folder):
    renumber(folder, 400)
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer) == 270 and vocabulary_size(tokenizer, "it") == 401


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / "tokenizer.json").write_text("{"),
        lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe"),
        lambda f: (f / "tokenizer.json").write_text("[" * 100_000),
        lambda f: change(f / "tokenizer.json", model={"type": "None"}),
        lambda f: change(f / "tokenizer.json", added_tokens=3),
        lambda f: (f / "tokenizer_config.json").write_text("[]"),
        lambda f: [path.unlink() for path in f.iterdir()],
    ],
)
def test_broken_tokenizers_are_said(folder, spoil):
    spoil(folder)
    with pytest.raises(
        ZooError, match=r"data\.init_args\.tokenizer '.*' cannot be loaded: "
    ) as found:
        load_tokenizer(str(folder))
    assert "\n" not in str(found.value)


def test_code_that_comes_along_is_not_run(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.It", "evil.It"]},
        tokenizer_class="It",
    )
    with pytest.raises(ZooError, match="cannot be loaded"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()


def test_numbers_far_apart_are_refused(folder):
    renumber(folder, 2**31)
    with pytest.raises(ZooError, match=r"270 tokens with numbers up to 2,147,483,648, expected"):
        load_tokenizer(str(folder))
