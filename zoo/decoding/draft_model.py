"""A second, smaller language model as the proposer: what all two-model methods share."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoTokenizer

from zoo.decoding.method import Method, Need, Run, needing_nothing
from zoo.decoding.sampling import check_logits
from zoo.decoding.session import Scores, Session, floating_dtype
from zoo.decoding.targets import unwrapped
from zoo.decoding.tree import Tree
from zoo.decoding.verify import Draft
from zoo.errors import ZooError
from zoo.models.language._causal_lm import load_causal_lm
from zoo.models.language._protocol import text_config

DRAFT = Need("draft", "--draft")
#: Models of one tokenizer pad their vocabularies differently, but no further than by this.
PADDING_ROWS = 1024
#: Of the numbers that two tokenizers share, so many may stand for other tokens: added ones do.
OTHER_TOKENS = 0.01


class DraftModelMethod(Method):
    """Keeps a draft model's cache in step with the decided text.

    Args:
        draft: a causal LM with the target's tokenizer, or the folder or hub name of one. It may
            have a few rows more or fewer than the target, as padding leaves them.
    """

    needs = (DRAFT,)
    session: Session

    def __init__(self, draft: nn.Module | str | Path) -> None:
        self.draft = draft

    def load(self, model: nn.Module) -> None:
        """Load the draft model, in the target's precision; one that was given keeps its own."""
        if not isinstance(self.draft, nn.Module):
            self.draft = load_causal_lm(self.draft).to(floating_dtype(model))
        self.draft = unwrapped(self.draft).to(next(model.parameters()).device)
        check_one_tokenizer(self.draft, model)
        self._tokens = text_config(self.draft).vocab_size
        self._wanted = text_config(model).vocab_size

    def start(self, run: Run, prompt: Scores) -> None:
        """Open the draft model's cache."""
        self.session = run.open(self.draft)

    def catch_up(self, run: Run, hidden: int | None = None) -> Scores:
        """Let the draft model read what was decided since; what follows, ``[B, 1, V]``."""
        rows = [
            [token if token < self._tokens else 0 for token in sequence[length:]]
            for sequence, length in zip(run.sequences, self.session.lengths, strict=True)
        ]
        return self._over_targets_tokens(self.session.advance(rows, hidden))

    def grow(self, tokens: Tensor, parents: Tensor, hidden: int | None = None) -> Scores:
        """Let the draft model read drafted nodes; see :meth:`Session.grow`."""
        if self._tokens < self._wanted:
            tokens = tokens.masked_fill(tokens >= self._tokens, 0)
        return self._over_targets_tokens(self.session.grow(tokens, parents, hidden))

    def _over_targets_tokens(self, scores: Scores) -> Scores:
        """Logits ``[B, n, V]`` over the target's vocabulary: what it lacks is never proposed."""
        logits = scores.logits
        if self._tokens > self._wanted:
            logits = logits[..., : self._wanted]
        elif self._tokens < self._wanted:
            logits = pad(logits, (0, self._wanted - self._tokens), value=-math.inf)
        check_logits(logits, "the draft model")
        return scores._replace(logits=logits)


def check_one_tokenizer(draft: nn.Module, target: nn.Module) -> None:
    """Refuse a pair of models whose tokens mean different things.

    The text would be the target's all the same, but hardly a draft would be accepted.

    Raises:
        ZooError: if their tokenizers are at hand and differ, or the sizes of their vocabularies do
            by more than padding explains.
    """
    mine, theirs = text_config(draft).vocab_size, text_config(target).vocab_size
    vocabularies = [_vocabulary(model) for model in (draft, target)]
    if all(vocabularies):
        first, second = ({i: token for token, i in v.items()} for v in vocabularies)
        shared = first.keys() & second.keys()
        other = sum(first[i] != second[i] for i in shared)
        if other > OTHER_TOKENS * len(shared):
            raise ZooError(
                f"the tokenizers of draft model and target differ: {other} of {len(shared)} "
                "numbers stand for other tokens; both need one tokenizer; without a draft model "
                f"there are {needing_nothing()}"
            )
    elif abs(mine - theirs) > PADDING_ROWS:
        raise ZooError(
            f"the draft model has {mine} tokens, the target {theirs}: both need one vocabulary; "
            f"without a draft model there are {needing_nothing()}"
        )


def _vocabulary(model: nn.Module) -> Mapping[str, int]:
    """The vocabulary of the tokenizer that lies beside a model's weights; empty if none does."""
    source = getattr(getattr(model, "whole", model), "name_or_path", "")
    if not source:
        return {}
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True).get_vocab()
    except Exception:  # there is none, or one that cannot be read: then nothing is known
        return {}


def trial_draft(target: nn.Module, noise: float = 0.03) -> nn.Module:
    """A copy of a model that often agrees with it; see :meth:`Method.trials`."""
    draft = copy.deepcopy(target)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in draft.parameters():
            p.add_((noise * torch.randn(p.shape, generator=generator)).to(p))
    return draft


def chain_draft(run: Run, chosen: list[Tensor], probs: list[Tensor], counts: list[int]) -> Draft:
    """Chains of ``counts[b]`` drafted tokens, with the distributions they were drawn from.

    Args:
        chosen: ``[B]`` for each step.
        probs: ``[B, V]`` for each step; empty if they were not drawn.
        counts: how many steps each sequence made before it stopped.
    """
    roots = torch.tensor(run.roots, device=run.target.device)
    tokens = torch.stack([roots, *chosen], dim=1)[:, : max(counts) + 1]
    distributions = None
    if probs:
        # nothing was drawn after the last one
        distributions = torch.stack([*probs, torch.zeros_like(probs[0])], dim=1)
    siblings = "independent" if probs else "top"
    return Draft([Tree.chain(count) for count in counts], tokens, distributions, siblings=siblings)
