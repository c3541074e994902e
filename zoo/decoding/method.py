"""What a decoding method is: it proposes, and learns what became of its proposals."""

from __future__ import annotations

import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, get_args, get_type_hints

from torch import Tensor, nn

from zoo.decoding import methods
from zoo.decoding.sampling import Sampler
from zoo.decoding.session import Scores, Session
from zoo.decoding.tree import batch_parents
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError


@dataclass
class Run:
    """The state of one call of :func:`zoo.decoding.generate`.

    Attributes:
        target: the model that is decoded, with its cache.
        sampler: how tokens are drawn from logits, draft's and target's alike.
        sequences: the decided tokens of each sequence that is not finished; the last one is the
            root of the next tree and the only one that the target has not read.
        stop_tokens: tokens that end a sequence; nothing need be drafted after them.
        draft_sessions: further models with caches; they are counted in the result.
    """

    target: Session
    sampler: Sampler
    sequences: list[list[int]]
    stop_tokens: frozenset[int] = frozenset()
    draft_sessions: list[Session] = field(default_factory=list)

    @property
    def model(self) -> nn.Module:
        """The target model."""
        return self.target.model

    @property
    def roots(self) -> list[int]:
        """The newest decided token of each sequence."""
        return [sequence[-1] for sequence in self.sequences]


class Method(ABC):
    """One way of proposing candidates.

    A call of :func:`zoo.decoding.generate` begins with ``load`` and ``start``; a step is
    ``propose``, ``score`` (the target reads the tree), verification, ``update``. One object may
    serve several calls, one after the other.
    """

    name: ClassVar[str]
    #: Rule of acceptance at temperatures above 0; at 0 it is always the greedy one.
    verifier: ClassVar[str] = "sample_match"
    #: Whether the last prompt token is the first root. Otherwise the target reads the whole prompt
    #: at first, and its next token is the root.
    starts_from_prompt: ClassVar[bool] = True
    #: Which of the target's hidden states ``start`` and ``update`` read: after so many layers, -1
    #: for those of the last norm, None for none.
    hidden_layer: int | None = None

    def load(self, model: nn.Module) -> None:  # noqa: B027
        """Make ready, before the prompt is read, what stands beside the target ``model``."""

    def start(self, run: Run, prompt: Scores | None) -> None:  # noqa: B027
        """Begin: the target has read all tokens but the roots; ``prompt`` is what it answered."""

    @abstractmethod
    def propose(self, run: Run) -> Draft:
        """Candidates for the tokens after the roots."""

    def score(self, run: Run, draft: Draft) -> Scores:
        """Let the target read the tree: logits ``[B, N, V]``."""
        return run.target.grow(draft.tokens, batch_parents(draft.trees), self.hidden_layer)

    def update(  # noqa: B027
        self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]
    ) -> None:
        """After a step: the roots are decided, and the target has kept the accepted nodes."""

    def select(self, run: Run, rows: Sequence[int]) -> None:  # noqa: B027
        """Keep only these sequences of the batch; the others are finished."""


_METHODS: dict[str, type[Method]] = {}


def register_method(cls: type[Method]) -> type[Method]:
    """Enter a method under its ``name``."""
    _METHODS[cls.name] = cls
    return cls


def list_methods() -> list[str]:
    """Names of all methods, plain decoding first."""
    for module in pkgutil.iter_modules(methods.__path__):
        import_module(f"{methods.__name__}.{module.name}")
    return ["plain", *sorted(set(_METHODS) - {"plain"})]


def make_method(name: str, **options) -> Method:
    """A method by name.

    Raises:
        ZooError: if there is no such method, or it does not take these options.
    """
    known = list_methods()
    if name not in known:
        raise ZooError(f"there is no decoding method '{name}': expected one of {', '.join(known)}")
    _check_numbers(name, options)
    try:
        return _METHODS[name](**options)
    except ZooError:
        raise
    except (TypeError, ValueError) as error:
        reason = str(error).rpartition("__init__() ")[2]
        takes = ", ".join(inspect.signature(_METHODS[name]).parameters) or "none"
        raise ZooError(
            f"options of the decoding method '{name}': {reason}; it takes {takes}"
        ) from error


def _check_numbers(method: str, options: dict[str, Any]) -> None:
    """Options that are numbers or switches must be; what they would break comes much later."""
    for name, hint in get_type_hints(_METHODS[method].__init__).items():
        kinds = get_args(hint) or (hint,)
        if name not in options or not {int, float, bool, type(None)}.issuperset(kinds):
            continue
        value = options[name]
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
            raise ZooError(
                f"option {name} of the decoding method '{method}' is {value!r}: expected {expected}"
            )


def accepted_hidden(hidden: Tensor, verdicts: Sequence[Verdict]) -> Tensor:
    """States ``[B, d]`` at the last accepted node of each sequence, from those of all nodes."""
    last = [verdict.path[-1] if verdict.path else 0 for verdict in verdicts]
    return hidden[range(len(last)), last]
