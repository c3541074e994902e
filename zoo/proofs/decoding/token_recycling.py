"""Token Recycling: what the matrix learns while it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from zoo.decoding import Tree, generate
from zoo.decoding.method import Run
from zoo.decoding.methods.token_recycling import TokenRecycling
from zoo.decoding.session import Scores
from zoo.decoding.verify import Draft, Verdict
from zoo.plots.decoding import tree_figure
from zoo.plots.proofs import Axes, Curve, Pictures
from zoo.plots.style import rendered
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding import _unit_language
from zoo.proofs.decoding._unit_language import (
    METHODS,
    PROMPT,
    decode,
    is_greedy_text,
    loaded,
    prompts,
    unit_lm,
)

#: Passes whose tokens are averaged for the figure, and how many are drawn.
WINDOW, DRAWN = 20, 400


class Recycling(Measurement):
    """Texts decoded one after the other at temperature 1, starting from an empty matrix.

    Measures ``tokens_per_step``, that of the ``first`` five steps and of the ``second_half``, and
    ``greedy_is_plain``.

    Args:
        chain: depth of a chain of first candidates, in place of the authors' tree.
        learn: False never writes into the matrix.
        texts: how many.
    """

    def __init__(self, chain: int | None = None, learn: bool = True, texts: int = 30) -> None:
        self.chain, self.learn, self.texts = chain, learn, texts

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Decode."""
        model = loaded(unit_lm(seed))
        shape = {} if self.chain is None else {"tree": Tree.chain(self.chain)}
        method, lengths = TokenRecycling(learn=self.learn, **shape), []
        for number, prompt in enumerate(prompts(self.texts, seed)):
            out = generate(
                model,
                prompt[None],
                method,
                max_new_tokens=_unit_language.LENGTH - PROMPT,
                temperature=1.0,
                seed=1000 * seed + number,
            )
            lengths += out.accept_lengths[0][:-1]  # the last one is cut off
        half = lengths[len(lengths) // 2 :]
        starts = range(0, min(len(lengths), DRAWN), WINDOW)
        axes = Axes("From an empty matrix on", "passes of the target", "tokens of a pass, mean")
        means = [sum(part := lengths[start : start + WINDOW]) / len(part) for start in starts]
        curve = Curve(axes, [start + WINDOW / 2 for start in starts], means)
        return Measured(
            {
                "tokens_per_step": sum(lengths) / len(lengths),
                "first": sum(lengths[:5]) / 5,
                "second_half": sum(half) / len(half),
                "greedy_is_plain": is_greedy_text(model, "token_recycling", seed, **shape),
            },
            [curve],
            self._tree(model, seed) if self.chain is None and self.learn else [],
        )

    def _tree(self, model: nn.Module, seed: int) -> list[Pictures]:
        """The tree: how often each node is kept in a batch of texts, and the longest path."""
        method = Watched()
        decode(model, method, seed)
        shares = {node: count / method.trees for node, count in method.kept.items()}
        figure = tree_figure(method.tree.parents, shares, method.longest)
        return [{"share of passes that keep a node; in red the longest path": rendered(figure)}]


class Watched(TokenRecycling):
    """Counts which nodes of its tree are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Counter[int] = Counter()
        self.longest: list[int] = []
        self.trees = 0

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Count, and go on."""
        super().update(run, draft, scores, verdicts)
        self.trees += len(verdicts)
        for verdict in verdicts:
            self.kept.update(verdict.path)
            self.longest = max(self.longest, verdict.path, key=len)
