"""ADED's table, its search and its file."""

from __future__ import annotations

import math
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.language_models import VOCAB, make_model
from zoo.decoding import generate, make_method
from zoo.decoding.methods.aded import ADED, TreeSearch, TrigramTable, cut_paths, tree_of_paths
from zoo.errors import ZooError


def test_counted_shares_and_the_heaviest_successors() -> None:
    texts = [[1, 2, 3], [1, 2, 3], [1, 2, 4, 2], [5, 6]] + [[7, 7, t] for t in range(20)]
    table = TrigramTable.counted([*texts, [7, 7, 19]])
    assert table.pairs[1, 2] == pytest.approx({3: 2 / 3, 4: 1 / 3})
    assert table.pairs[2, 4] == {2: 1.0} and (5, 6) not in table.pairs
    # the twelve heaviest stay, with the weights they had; first that which came twice
    assert list(table.pairs[7, 7]) == [19, *range(11)]
    assert table.pairs[7, 7][19] == pytest.approx(2 / 21)
    assert table.largest() == 19 and TrigramTable().largest() == -1 and len(table) == 3


def test_what_stands_at_the_end_gains_weight_up_to_a_limit() -> None:
    table = TrigramTable({(1, 2): {3: 2.98}})
    table.strengthen([9] * 30 + [1, 2, 3])
    assert table.pairs[1, 2] == {3: 3.0}
    # eleven of the fourteen sequences of the last sixteen tokens are 9 9 9
    assert table.pairs[9, 9] == pytest.approx({9: 11 * 0.04, 1: 0.04})
    assert table.pairs[9, 1] == pytest.approx({2: 0.04})
    small = TrigramTable({(1, 2): {3: 1.0}, (2, 3): {4: 1.0}}, limit=2)
    small.strengthen([5, 6, 7])
    assert list(small.pairs) == [(2, 3), (5, 6)]
    small.strengthen([5, 6])  # nothing to learn
    assert len(small) == 2


def test_the_file_is_read_again_and_damage_is_seen(tmp_path) -> None:
    file = tmp_path / "table.safetensors"
    table = TrigramTable({(1, 2): {3: 0.5, 4: 0.25}, (2, 3): {1: 3.0}})
    table.save(file)
    tensors = load_file(file)
    assert tensors["keys"].tolist() == [[1, 2], [2, 3]] and tensors["indptr"].tolist() == [0, 2, 3]
    assert TrigramTable.read(file).pairs == table.pairs
    TrigramTable().save(file)
    assert len(TrigramTable.read(file)) == 0
    for name, value in (
        ("indptr", torch.tensor([0, 3, 2])),
        ("indptr", torch.tensor([0, 2])),
        ("indptr", torch.tensor([1, 2, 3])),
        ("indptr", torch.tensor([0, 2, 4])),
        ("weight", torch.tensor([0.5, -1.0, 3.0])),
        ("weight", torch.tensor([0.5, math.nan, 3.0])),
        ("weight", torch.tensor([0.5, 1.0])),
        ("keys", torch.tensor([[1, 2, 3], [4, 5, 6]])),
    ):
        save_file(tensors | {name: value}, file)
        with pytest.raises(ZooError, match="the file is damaged"):
            TrigramTable.read(file)
    save_file({"matrix": torch.ones(2)}, file)
    with pytest.raises(ZooError, match="holds matrix: expected a file"):
        TrigramTable.read(file)


def test_the_search_follows_upper_bounds() -> None:
    table = TrigramTable({(0, 1): {2: 0.7, 3: 0.3}, (1, 2): {2: 0.5}, (2, 2): {4: 1.0}})
    search = TreeSearch(table, (0, 1), depth=4)
    search.run(1, random.Random(0))
    first, second = search.root.children
    assert (first.pair, first.prior) == ((1, 2), 0.7) and second.pair == (1, 3)
    assert (first.visits, second.visits, second.score) == (0, 1, 1.0)  # the last child, and no more
    search.run(1, random.Random(0))
    # 0 1 2 2 4: of the pairs on it only (1, 2) can repeat its last token
    assert first.visits == 1 and first.children[0].visits == 1 and first.score == 1.5
    search.run(1, random.Random(0))
    reach = (32 + math.log((2 + 8 + 1) / 8)) * math.sqrt(2)
    bounds = [1.5 + reach * 0.7 / 2, 1.0 + reach * 0.3 / 2]
    assert bounds[0] > bounds[1] and first.visits == 2 and search.root.chosen() is first
    along = TreeSearch(table, (0, 1), depth=4, along_path=True)
    along.run(2, random.Random(0))
    assert along.root.children[0].score == pytest.approx(1 + 0.7 + 0.5 + 1.0)


def test_paths_are_the_most_visited_with_a_token_more() -> None:
    table = TrigramTable({(0, 1): {2: 0.7, 3: 0.3}, (1, 2): {5: 0.5, 6: 0.4}, (2, 5): {7: 1.0}})
    search = TreeSearch(table, (0, 1), depth=3)
    search.run(60, random.Random(0))
    assert search.root.visits == 60
    # the root itself, then by visits; behind 2 and behind 2 5 the likeliest token is known
    assert search.paths(3) == [[2, 5], [2, 5, 7]]
    assert sorted(search.paths(10)) == [[2, 5], [2, 5, 7], [2, 6], [3]]
    assert TreeSearch(table, (8, 8), 4).paths(4) == []


def test_what_is_cut_and_what_becomes_of_the_rest() -> None:
    paths = [[1, 2, 3], [1, 2], [4, 5, 6], [7]]
    assert cut_paths(paths, 9, "diverse") == paths
    assert cut_paths(paths, 6, "diverse") == [[1, 2, 3], [1, 2], [7]]
    assert cut_paths(paths, 5, "diverse") == [[1, 2], [7]]
    assert cut_paths(paths, 5, "visits") == [[1, 2, 3], [1, 2]]
    tree, tokens = tree_of_paths(paths, 9, 64)
    assert tree.parents == (-1, 0, 0, 0, 1, 2, 4, 5) and tokens == [9, 1, 4, 7, 2, 5, 3, 6]
    assert tree.ranks == (0, 0, 1, 2, 0, 0, 0, 0)
    tree, tokens = tree_of_paths(paths, 9, 4)
    assert tree.parents == (-1, 0, 0, 0, 1) and tokens == [9, 1, 4, 7, 2]
    assert len(tree_of_paths([], 9, 4)[0]) == 1


def test_a_second_reading_goes_faster_and_a_frozen_table_stays(tmp_path) -> None:
    model = make_model("llama")
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    plain = generate(model, ids, max_new_tokens=30)
    for options in ({}, {"search": "greedy"}, {"cut": "visits", "along_path": True, "nodes": 5}):
        method = ADED(**options)
        first, second = (generate(model, ids, method, max_new_tokens=30) for _ in range(2))
        assert first.new_tokens == second.new_tokens == plain.new_tokens
        assert second.steps < first.steps and second.tokens_per_step > 2
        method.save(tmp_path / "table.safetensors")
        frozen = make_method("aded", table=tmp_path / "table.safetensors", learn=False, **options)
        before = {pair: dict(after) for pair, after in frozen.table.pairs.items()}
        assert generate(model, ids, frozen, max_new_tokens=30).tokens_per_step > 2
        assert frozen.table.pairs == before
    assert generate(model, ids, ADED(learn=False), max_new_tokens=30).tokens_per_step == 1


def test_what_does_not_fit_is_said(tmp_path) -> None:
    foreign = ADED(TrigramTable({(1, 2): {VOCAB: 1.0}}))
    with pytest.raises(ZooError, match="token 50, the target only 50"):
        generate(make_model("llama"), torch.tensor([[1, 2]]), foreign)
    with pytest.raises(ZooError, match="search is 'x'"):
        ADED(search="x")
    with pytest.raises(ZooError, match="a depth of 2 or more"):
        ADED(depth=1)
    with pytest.raises(ZooError, match="there is no file"):
        ADED(tmp_path / "nothing.safetensors")
