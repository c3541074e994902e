"""Calls that the fingerprints of decoding name: everything drawn is drawn by a formula."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tests.formula import fill, uniform
from zoo.decoding import generate as decode
from zoo.decoding import method_class
from zoo.decoding.methods.hydra import build_heads
from zoo.decoding.methods.spectr import _Trie
from zoo.decoding.optimal_transport import k_seq
from zoo.decoding.sampling import Sampler
from zoo.decoding.tree import (
    Tree,
    ancestor_matrix,
    batch_parents,
    best_static_tree,
    best_subtree,
)
from zoo.decoding.tree_templates import find_tree
from zoo.decoding.verify import Draft, make_verifier
from zoo.models.decoding.kangaroo import KangarooAdapter
from zoo.models.decoding.medusa import MedusaHeads
from zoo.models.decoding.specdec_pp import AcceptanceHead

NONE = -1


class FormulaSampler(Sampler):
    """Draws with numbers by formula, so that a draw is the same on every machine and version."""

    count = 0

    def draw(self, probs: Tensor) -> Tensor:
        """By the inverse of the distribution function."""
        self.count += 1
        point = (uniform(f"draw {self.count}", tuple(probs.shape[:-1])) + 1) / 2
        mass = probs.double().cumsum(-1)
        above = mass > point[..., None] * mass[..., -1:]
        return above.int().argmax(-1)

    def uniform(self) -> float:
        """The next number."""
        self.count += 1
        return float((uniform(f"number {self.count}", (1,)) + 1) / 2)


def rows(lists: list[list[int]]) -> Tensor:
    """Lists of different lengths as one tensor, -1 behind their ends."""
    return pad_sequence([torch.tensor(row) for row in lists], True, NONE)


# Models are called on ids; what they are decoded with stands beside them.


def with_beside(target: nn.Module, method: str, form: str = "", **options: Any) -> Any:
    """A method beside a target: heads filled by formula, a draft model that is nearly its copy."""
    kind = method_class(method)
    wide = {"intermediate_size": 24}
    if method == "medusa":
        options["heads"] = MedusaHeads.for_target(target, {"num_heads": 3, "num_layers": 2})
    if method == "hydra":
        settings = {
            "mlp": {"num_layers": 2},
            "prefix": {"arch": "prefix-mlp", "num_layers": 2},
            "ungrounded": {"num_layers": 2, "grounded": False},
            "cross-attn": {"arch": "cross-attn"},
            "eagle-attn": {"arch": "eagle-attn", "hidden_state_offset": 1},
        }[form]
        options["heads"] = build_heads(target, wide | settings)
    if method == "kangaroo" and form != "no adapter":
        options["adapter"] = KangarooAdapter.for_target(target, {"exit_layer": 1})
    elif method == "kangaroo":
        options |= {"adapter": None, "exit_layer": 1}
    if method == "specdec_pp":
        options["head"] = AcceptanceHead(target.config.hidden_size, 2)
    for part in options.values():
        if isinstance(part, nn.Module):
            fill(part.double().eval())
    if method in ("draft_tree", "spectr", "speculative", "specdec_pp"):
        draft = options["draft"] = copy.deepcopy(target)
        with torch.no_grad():
            for name, p in draft.named_parameters():
                p.add_(0.12 * uniform(name, tuple(p.shape)))
    return kind(**options)


def decoded(
    model: nn.Module, input_ids: Tensor, method: str, form: str = "", steps: int = 8, **options: Any
) -> dict[str, Any]:
    """The text, and of every step the drafts, the shapes of their trees and what was accepted."""
    settings = {k: options.pop(k) for k in ("temperature", "top_p", "verifier") if k in options}
    found: dict[str, list[list[int]]] = {"tokens": [], "parents": [], "paths": []}
    sums = []

    def on_step(run: Any, draft: Draft, scores: Any, verdicts: Any) -> None:
        found["tokens"] += draft.tokens.tolist()
        found["parents"] += [list(tree.parents) for tree in draft.trees]
        found["paths"] += [[*verdict.path, verdict.token] for verdict in verdicts]
        if draft.probs is not None:
            sums.append((draft.probs * uniform("probs", tuple(draft.probs.shape))).sum())

    beside = with_beside(model, method, form, **options)
    with mock.patch("zoo.decoding.generate.Sampler", FormulaSampler):
        text = decode(
            model, input_ids, beside, max_new_tokens=steps, on_step=on_step, stop_tokens=[],
            **settings,
        )  # fmt: skip
    result: dict[str, Any] = {"text": text.sequences}
    result |= {name: rows(lists) for name, lists in found.items()}
    if sums:
        result["probs"] = torch.stack(sums)
    if getattr(beside, "matrix", None) is not None:
        result["matrix"] = beside.matrix
    return result


class Rule(nn.Module):
    """A verifier beside fixed drafts and fixed logits.

    Args:
        verifier: its name.
        tree: the name of a published tree, or parents.
        temperature: of the sampler.
        siblings: how the drafts were found.
        options: of the verifier.
    """

    def __init__(
        self, verifier: str, tree: Any, temperature: float = 1.0, siblings: str = "top",
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rule = make_verifier(verifier, **options)
        self.tree = find_tree(tree) if isinstance(tree, str) else Tree(tree)
        self.temperature, self.siblings = temperature, siblings

    def forward(self, logits: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Logits and noise ``[B, N, V]`` -> paths, tokens and first tokens of B texts.

        The draft's distribution is the target's with noise; children are drawn from it, the
        most probable first where no chance has a part.
        """
        sampler, tree, batch = FormulaSampler(self.temperature, seed=0), self.tree, len(logits)
        q = (logits + noise).softmax(-1)  # [B, N, V]
        tokens = torch.zeros(batch, len(tree), dtype=torch.long)
        draws: list[list[list[int]]] | None = [] if self.siblings == "independent" else None
        for row in range(batch):
            for node, children in enumerate(tree.children):
                if self.siblings == "top":
                    ranks = [tree.ranks[child] for child in children]
                    tokens[row, list(children)] = q[row, node].argsort(descending=True)[ranks]
                left = q[row, node].clone()
                for child in children if self.siblings != "top" else ():
                    tokens[row, child] = token = sampler.draw(left)
                    if self.siblings == "without_replacement":
                        left[token] = 0
            if draws is not None:  # two children with one token are one candidate drawn twice
                draws.append([_first(tokens[row], list(c)) for c in tree.children])
        probs = None if self.siblings == "top" else q
        draft = Draft([tree] * batch, tokens, probs, draws, self.siblings)
        verdicts = self.rule.verify(draft, logits, sampler)
        return {
            "paths": rows([[*verdict.path, verdict.token] for verdict in verdicts]),
            "first": torch.tensor(self.rule.first(logits[:, 0], sampler)),
        }


def _first(tokens: Tensor, nodes: list[int]) -> list[int]:
    """Nodes, each replaced by the first that holds its token."""
    found: dict[int, int] = {}
    return [found.setdefault(int(tokens[node]), node) for node in nodes]


class Shapes(nn.Module):
    """Trees from numbers: their parents, ranks, depths and ancestors."""

    def forward(self, **given: Any) -> dict[str, Any]:
        """One of ``choices``, ``name``, ``accuracy`` with ``size``, ``grown`` with ``size``."""
        kept: list[int] = []
        if "choices" in given:
            tree = Tree.from_choices(given["choices"])
        elif "accuracy" in given:
            tree = best_static_tree(given["accuracy"].abs(), given["size"])
        elif "grown" in given:
            scores = [0.0]
            for node, parent in enumerate(given["grown"][1:]):
                scores.append(scores[parent] + float(given["steps"][node]))
            tree, kept = best_subtree(given["grown"], scores, given["size"])
        else:
            tree = find_tree(given["name"])
        if "limit" in given:
            tree = tree.limited(*given["limit"])
        beside = Tree.chain(len(tree) + 1)
        return {
            "parents": torch.tensor(tree.parents),
            "ranks": torch.tensor(tree.ranks),
            "depths": torch.tensor(tree.depths),
            "levels": rows([list(level) for level in tree.levels]),
            "paths": rows([list(tree.path(node)) for node in range(len(tree))]),
            "ancestors": ancestor_matrix(batch_parents([tree, beside])),
            "kept": torch.tensor(kept) if kept else None,
        }


class Trie(nn.Module):
    """Drafts merged where they begin alike."""

    def forward(self, tokens: Tensor) -> dict[str, Any]:
        """Tokens ``[L, K]`` -> nodes of the tree, their tokens, draws and who is new."""
        trie = _Trie(3, tokens.shape[1])
        fresh = [trie.extend(level) for level in tokens.tolist()]
        return {
            "parents": torch.tensor(trie.parents),
            "tokens": torch.tensor(trie.tokens),
            "draws": rows(trie.draws),
            "fresh": rows(fresh),
            "at": torch.tensor(trie.at),
        }


class Transport(nn.Module):
    """The rule of k-SEQ."""

    def forward(self, q: Tensor, p: Tensor, k: Any) -> Any:
        """Logits ``[n, V]`` of draft and target."""
        return k_seq(q.softmax(-1), (2 * p).softmax(-1), k)
