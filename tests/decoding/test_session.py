"""A tree's logits are those of its paths, read one by one, in every family of models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.language_models import VOCAB, make_model
from zoo.decoding.session import Session
from zoo.decoding.steering import open_session
from zoo.decoding.tree import Tree, batch_parents

MODELS = ("llama", "qwen2", "mistral", "gpt2", "mamba", "jamba")


def random_trees(generator: torch.Generator, count: int, size: int) -> list[Tree]:
    def number(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    sizes = [1 + number(size) for _ in range(count)]
    return [Tree([-1, *(number(node) for node in range(1, n))]) for n in sizes]


def score(session: Session, trees: list[Tree], tokens: Tensor) -> Tensor:
    """Logits of the trees, which are opened in two parts."""
    parents = batch_parents(trees)
    if parents.shape[1] == 1:
        return session.grow(tokens, parents).logits
    cut = parents.shape[1] // 2
    parts = [
        session.grow(tokens[:, :cut], parents[:, :cut]),
        session.grow(tokens[:, cut:], parents[:, cut:]),
    ]
    return torch.cat([part.logits for part in parts], dim=1)


@torch.no_grad()
def assert_logits_of_paths(
    model: nn.Module, texts: list[list[int]], trees: list[Tree], tokens: Tensor, logits: Tensor
) -> None:
    for row, tree in enumerate(trees):
        leaves = [tree.path(node) for node in range(len(tree)) if not tree.children[node]]
        for path in leaves[:6]:
            ids = torch.tensor([texts[row] + tokens[row, list(path)].tolist()])
            plain = model(input_ids=ids).logits[0, -len(path) :]
            torch.testing.assert_close(logits[row, list(path)], plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_logits_of_random_trees_also_after_commits(kind: str) -> None:
    model = make_model(kind)
    generator = torch.Generator().manual_seed(len(kind))
    texts = [
        torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in (3, 9, 1)
    ]
    session = open_session(model, len(texts))
    session.advance(texts)
    for _ in range(3):
        trees = random_trees(generator, len(texts), 12 if kind in ("mamba", "jamba") else 64)
        width = max(map(len, trees))
        tokens = torch.randint(1, VOCAB, (len(texts), width), generator=generator)
        logits = score(session, trees, tokens)
        assert_logits_of_paths(model, texts, trees, tokens, logits)
        paths = [
            tree.path(int(torch.randint(len(tree), (), generator=generator))) for tree in trees
        ]
        session.commit(paths)
        for text, path, row in zip(texts, paths, tokens, strict=True):
            text += row[list(path)].tolist()
        assert session.lengths == list(map(len, texts))
    # a sequence less, and more decided tokens at once
    session.select([2, 0])
    texts = [texts[2], texts[0]]
    more = [[5, 6, 7], [8]]
    after = session.advance(more).logits[:, 0]
    for row, (text, new) in enumerate(zip(texts, more, strict=True)):
        plain = model(input_ids=torch.tensor([text + new])).logits[0, -1]
        torch.testing.assert_close(after[row], plain, atol=1e-4, rtol=1e-4)
