import pytest
import torch

from zoo.data.language.recall import AssociativeRecall
from zoo.errors import ZooError


def test_every_answer_was_there_before():
    data = AssociativeRecall(pairs=(2, 5), test_pairs=(8, 8), keys=9, samples=40, batch_size=4)
    for split, low, high in (("train", 2, 5), ("test", 8, 8)):
        source = data.load(split)
        assert len(source) == (40 if split == "train" else 4)
        sizes = set()
        for index in range(len(source)):
            ids, mask = source[index]
            assert ids.shape == mask.shape == (32,)
            text = ids[ids > 0].tolist()
            size = len(text) // 4
            sizes.add(size)
            assert ids.tolist() == [0] * (32 - len(text)) + text
            pairs = dict(zip(text[: 2 * size : 2], text[1 : 2 * size : 2], strict=True))
            assert len(pairs) == size  # different keys
            assert all(1 <= key <= 9 < value <= 18 for key, value in pairs.items())
            asked = dict(zip(text[2 * size :: 2], text[2 * size + 1 :: 2], strict=True))
            assert asked == pairs
            places = list(range(32 - 2 * size + 1, 32, 2))
            assert mask.nonzero()[:, 0].tolist() == places
        assert min(sizes) >= low and max(sizes) <= high
    assert not torch.equal(data.load("val")[0][0], data.load("test")[0][0])
    assert data.vocab_size == 19


def test_more_pairs_than_keys_are_refused():
    with pytest.raises(ZooError, match="10 pairs of 9 different keys"):
        AssociativeRecall(keys=9)
