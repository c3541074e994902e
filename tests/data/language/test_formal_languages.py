from __future__ import annotations

import itertools

import pytest
import torch

from zoo.data.language.formal_languages import LANGUAGES, FormalLanguage
from zoo.data.synthetic.formal_languages import (
    GROUPS,
    associative_recall,
    counting,
    group_words,
    modular_arithmetic,
    multiplication_table,
    parity,
)
from zoo.errors import ZooError


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_parity_and_counting():
    bits, answers = parity(4, 20, drawn())
    for row, answer in zip(bits.tolist(), answers.tolist(), strict=True):
        assert answer == [sum(row[: i + 1]) % 2 for i in range(20)]
    bits, answers = counting(4, 20, 3, drawn())
    for row, answer in zip(bits.tolist(), answers.tolist(), strict=True):
        assert answer == [sum(row[: i + 1]) % 3 for i in range(20)]


@pytest.mark.parametrize("group, order", [*zip(GROUPS, (6, 24, 120, 60), strict=True)])
def test_groups(group, order):
    """Associative, with element 0 as the identity and every row and column a permutation."""
    table = multiplication_table(group)
    everything = torch.arange(order)
    assert table.shape == (order, order)
    assert torch.equal(table[0], everything) and torch.equal(table[:, 0], everything)
    for lines in (table, table.T):
        assert torch.equal(lines.sort(dim=1).values, everything.expand(order, order))
    a, b, c = (torch.randint(order, (200,), generator=drawn()) for _ in range(3))
    b, c = b.flip(0), c.roll(7)
    assert torch.equal(table[table[a, b], c], table[a, table[b, c]])
    assert not torch.equal(table, table.T)  # not commutative


def test_group_words():
    """The product of permutations, the first one applied first."""
    words, products = group_words(3, 12, "S4", drawn())
    elements = list(itertools.permutations(range(4)))
    for row, answers in zip(words.tolist(), products.tolist(), strict=True):
        things = list(range(4))
        for element, answer in zip(row, answers, strict=True):
            things = [elements[element][i] for i in things]
            assert elements[answer] == tuple(things)


def test_modular_arithmetic():
    symbols, values = modular_arithmetic(20, 15, 5, drawn())
    for row, answers in zip(symbols.tolist(), values.tolist(), strict=True):
        for end in range(0, 15, 2):
            text = "".join(str(s) if s < 5 else "+-*"[s - 5] for s in row[: end + 1])
            assert answers[end] == eval(text) % 5
            assert end == 0 or answers[end - 1] == answers[end - 2]


def test_associative_recall():
    symbols, answers = associative_recall(8, 6, 4, keys=10, values=7, generator=drawn())
    assert symbols.shape == (8, 16)
    for row, answer in zip(symbols.tolist(), answers.tolist(), strict=True):
        stored = dict(zip(row[0:12:2], row[1:12:2], strict=True))
        assert len(stored) == 6 and max(stored) < 10 <= min(stored.values())
        assert [stored[key] for key in row[12:]] == answer and len(set(row[12:])) == 4


@pytest.mark.parametrize("language", LANGUAGES)
def test_samples(language):
    """Padding, the sequence, a question and its answer, which counts alone."""
    data = FormalLanguage(language, lengths=(2, 5), test_lengths=(7, 9), samples=40)
    assert data.length == 11
    train, test = data.load("train"), data.load("test")
    assert len(train) == 40 and len(test) == 4
    maker, symbols, _ = LANGUAGES[language]
    for source, low, high in ((train, 2, 5), (test, 7, 9)):
        lengths = set()
        for i in range(len(source)):
            ids, mask = source[i]
            assert mask.tolist() == [0] * 10 + [1] and ids[-2] == 1
            assert ids.max() < data.vocab_size
            word = ids[:-2][ids[:-2] > 0] - 2
            lengths.add(len(word))
            assert low <= len(word) <= high and (ids[: 9 - len(word)] == 0).all()
            assert word.max() < symbols <= ids[-1] - 2
        assert len(lengths) > 1 or source is test
    words, answers = maker(40, 5, torch.Generator().manual_seed(0))
    ids, _ = train[0]
    length = int((ids[:-2] > 0).sum())
    assert torch.equal(ids[9 - length : 9] - 2, words[0, :length])
    assert ids[-1] == 2 + symbols + answers[0, length - 1]


def test_wrong_settings():
    with pytest.raises(ZooError, match="language is 'S6'"):
        FormalLanguage("S6")
    with pytest.raises(ZooError, match=r"data.init_args.lengths is \[5, 3\]"):
        FormalLanguage(lengths=(5, 3))
