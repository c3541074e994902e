"""Token Recycling: what the matrix learns while it is used."""

from __future__ import annotations

from zoo.decoding import Tree, generate
from zoo.decoding.methods.token_recycling import TokenRecycling
from zoo.proofs.base import Measurement
from zoo.proofs.decoding._unit_language import (
    LENGTH,
    PROMPT,
    is_greedy_text,
    loaded,
    prompts,
    unit_lm,
)


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

    def measure(self) -> dict[str, float]:
        """Decode."""
        model = loaded(unit_lm())
        shape = {} if self.chain is None else {"tree": Tree.chain(self.chain)}
        method, lengths = TokenRecycling(learn=self.learn, **shape), []
        for number, prompt in enumerate(prompts(self.texts)):
            out = generate(
                model,
                prompt[None],
                method,
                max_new_tokens=LENGTH - PROMPT,
                temperature=1.0,
                seed=number,
            )
            lengths += out.accept_lengths[0][:-1]  # the last one is cut off
        half = lengths[len(lengths) // 2 :]
        return {
            "tokens_per_step": sum(lengths) / len(lengths),
            "first": sum(lengths[:5]) / 5,
            "second_half": sum(half) / len(half),
            "greedy_is_plain": is_greedy_text(model, "token_recycling", **shape),
        }
