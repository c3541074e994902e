from __future__ import annotations

import pytest

from zoo.metrics.diversity import diversity, repetition


def test_repetition_counts_within_texts_and_over_all() -> None:
    texts = [["a", "b", "a", "b", "a"], ["a", "b", "c"]]
    # 2-grams: ab ba ab ba (2 of 4 new), ab bc (both new)
    assert repetition(texts, 2) == pytest.approx(100 * (1 - 4 / 6))
    # the authors' script leaves out the last one of each
    assert repetition(texts, 2, drop_last=True) == pytest.approx(100 * (1 - 3 / 4))
    assert repetition(["a"], 2) == 0
    # 3-grams: aba bab aba, abc; 4-grams: abab baba
    assert diversity(texts) == pytest.approx(4 / 6 * 3 / 4 * 1)
    assert diversity([list(range(9))]) == 1
