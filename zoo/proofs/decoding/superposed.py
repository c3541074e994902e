"""Superposed decoding: a sparse chain of tokens, and a model that is linear in what it reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.decoding import generate
from zoo.decoding.methods.superposed import Superposed
from zoo.decoding.ngrams import NGrams
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.decoding._unit_language import METHODS

#: Tokens of the language, what may follow each, and the length of the texts that are counted.
TOKENS, SUCCESSORS, LENGTH = 60, 6, 30
#: Temperature and kept tokens; the paper's 0.06 is for a vocabulary of 32,000.
SETTINGS: dict[str, Any] = {"alpha": 0.5, "tau": 1.0}


class LinearChain(nn.Module):
    """A language model that says the mean of what may follow each part of a superposition.

    Args:
        law: probabilities ``[V, V]``.
    """

    def __init__(self, law: Tensor) -> None:
        super().__init__()
        size = len(law)
        self.config = SimpleNamespace(
            vocab_size=size, hidden_size=size, num_hidden_layers=0, eos_token_id=None
        )
        self.embedding = nn.Embedding.from_pretrained(torch.eye(size))
        self.law = nn.Parameter(law, requires_grad=False)

    def get_input_embeddings(self) -> nn.Module:
        """One number for each token."""
        return self.embedding

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Logits ``[B, T, V]``."""
        return SimpleNamespace(logits=(self.embedding(input_ids) @ self.law).clamp_min(1e-9).log())


class Drafting(Measurement):
    """Drafts of ten tokens from every token.

    Measures of three drafts the share that holds legal transitions only, ``legal``, and
    ``legal_alone`` without n-grams; the mean negative log-likelihood of the best drafts less that
    of nucleus samples (0.9), ``behind_nucleus``; the largest number of passes for a token with 1, 3
    and 8 drafts, ``passes``; and whether one draft is the greedy text, ``greedy_is_plain``.

    Args:
        texts: that are counted.
        new_tokens: of each draft.
    """

    def __init__(self, texts: int = 400, new_tokens: int = 10) -> None:
        self.texts, self.new_tokens = texts, new_tokens

    runs = METHODS

    def measure(self, seed: int) -> Measured:
        """Make a language, count, and draft."""
        generator = torch.Generator().manual_seed(seed)
        law = torch.zeros(TOKENS, TOKENS)
        for row in law:
            chosen = torch.randperm(TOKENS, generator=generator)[:SUCCESSORS]
            parts = -torch.rand(SUCCESSORS, generator=generator).log()
            row[chosen] = parts / parts.sum()
        ngrams = NGrams.of(self._texts(law, generator))
        model = LinearChain(law)
        before = torch.multinomial(law.T + 1e-9, 1, generator=generator)
        begun = torch.cat([before, torch.arange(TOKENS)[:, None]], 1)

        def write(method: Any, **options: Any) -> Tensor:
            out = generate(model, begun, method, max_new_tokens=self.new_tokens, **options)
            return out.sequences[:, 1:]

        def loss(texts: Tensor) -> Tensor:
            return -law[texts[:, :-1], texts[:, 1:]].clamp_min(1e-9).log().mean(-1)

        values, curves = {}, []
        axes = Axes("Drafts from every token", "drafts", "legal drafts")
        shares: dict[str, list[float]] = {"legal": [], "legal_alone": []}
        passes = []
        for name, table in (("legal", ngrams), ("legal_alone", None)):
            for k in (1, 3, 8):
                method = Superposed(k, ngrams=table, **SETTINGS)
                write(method)
                passes.append(method.report()["passes_per_token"])
                legal = []
                best = []
                for token, found in enumerate(method.found):
                    texts = torch.tensor([[token, *draft.tokens] for draft in found])
                    nll = loss(texts)
                    legal.append(
                        float((law[texts[:, :-1], texts[:, 1:]] > 0).all(-1).double().mean())
                    )
                    best.append(float(nll.min()))
                shares[name].append(sum(legal) / len(legal))
                if k == 3:
                    values[name] = shares[name][-1]
                    if table is not None:
                        values["best_loss"] = sum(best) / len(best)
        nucleus = float(loss(write("plain", temperature=1.0, top_p=0.9, seed=seed)).mean())
        values["behind_nucleus"] = values.pop("best_loss") - nucleus
        values["passes"] = max(passes)
        single = write(Superposed(1, smoothing=None, **SETTINGS))
        values["greedy_is_plain"] = float(torch.equal(single, write("plain")))
        names = {"legal": "with n-grams", "legal_alone": "without"}
        curves = [Curve(axes, [1, 3, 8], y, names[name]) for name, y in shares.items()]
        return Measured(values, curves)

    def _texts(self, law: Tensor, generator: torch.Generator) -> list[list[int]]:
        """Texts of the language."""
        texts = torch.randint(TOKENS, (self.texts, 1), generator=generator)
        for _ in range(LENGTH):
            following = torch.multinomial(law[texts[:, -1]], 1, generator=generator)
            texts = torch.cat([texts, following], 1)
        return texts.tolist()
