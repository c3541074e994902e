"""What a decoding method is: it proposes, and learns what became of its proposals.

A new method is one file in :mod:`zoo.decoding.methods`: a class that derives from :class:`Method`,
says what it needs and enters itself with :func:`register_method`. The command line, the comparison,
the documentation and the tests of all methods find it there.
"""

from __future__ import annotations

import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, get_args, get_type_hints

from torch import Tensor, nn

from zoo.decoding import methods
from zoo.decoding.cache import TreeCache
from zoo.decoding.constraints import Constraints, Stop
from zoo.decoding.sampling import Sampler
from zoo.decoding.session import Scores, Session
from zoo.decoding.steering import open_session, steering
from zoo.decoding.targets import Source, text_model
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
        source: what the encoder reads, where the target is an encoder-decoder.
        stop: what ends a sequence; its tokens are ``stop_tokens``.
        limit: most new tokens of a sequence.
        constraints: on the logits; the loop applies them to what :meth:`Method.score` returns, and
            a method that looks further ahead does so itself. None: there are none.
    """

    target: Session
    sampler: Sampler
    sequences: list[list[int]]
    stop_tokens: frozenset[int] = frozenset()
    draft_sessions: list[Session] = field(default_factory=list)
    source: Source | None = None
    stop: Stop = field(default_factory=Stop)
    limit: int = 128
    constraints: Constraints | None = None

    @property
    def model(self) -> nn.Module:
        """The target model."""
        return self.target.model

    @property
    def roots(self) -> list[int]:
        """The newest decided token of each sequence."""
        return [sequence[-1] for sequence in self.sequences]

    def constrained(
        self, logits: Tensor, texts: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> Tensor:
        """Logits ``[n, V]`` after texts, each of which goes on from the sequence in ``rows``."""
        if not self.constraints:
            return logits
        return self.constraints.after(logits, texts, [self.target.numbers[row] for row in rows])

    def open(self, model: nn.Module) -> Session:
        """A further model beside the target, which has read nothing yet."""
        session = open_session(text_model(model, self.source), len(self.sequences))
        self.draft_sessions.append(session)
        return session


class Need(NamedTuple):
    """What a method cannot do without, besides the target.

    Attributes:
        argument: which of its arguments takes it.
        flag: which option of the command line gives it: ``--heads`` or ``--draft``.
    """

    argument: str
    flag: str


class Method(ABC):
    """One way of proposing candidates.

    A call of :func:`zoo.decoding.generate` begins with ``check``, ``load`` and ``start``; a step is
    ``propose``, ``score`` (the target reads the tree), verification, ``update``. One object may
    serve several calls, one after the other.
    """

    #: What it is called by.
    name: ClassVar[str]
    #: Who proposes, in a few words.
    proposer: ClassVar[str]
    #: What it cannot do without.
    needs: ClassVar[tuple[Need, ...]] = ()
    #: Whether the text is distributed as the target's own, with a verifier for which it is.
    lossless: ClassVar[bool] = True
    #: Whether a temperature above 0 draws the text. Otherwise it is found without chance at all.
    draws: ClassVar[bool] = True
    #: Whether it applies the constraints by itself, with :meth:`Run.constrained`.
    constrains: ClassVar[bool] = False
    #: Rule of acceptance at temperatures above 0; at 0 it is always the greedy one.
    verifier: ClassVar[str] = "sample_match"
    #: Sessions of the target that it can work with.
    sessions: ClassVar[type[Session]] = Session
    #: Whether the last prompt token is the first root. Otherwise the target reads the whole prompt
    #: at first, and its next token is the root.
    starts_from_prompt: ClassVar[bool] = True
    #: Whether it reads the prompts itself, to their ends; ``start`` then gets scores of nothing.
    reads_prompts: ClassVar[bool] = False
    #: Which of the target's hidden states ``start`` and ``update`` read: after so many layers, -1
    #: for those of the last norm, None for none.
    hidden_layer: int | None = None

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """Instances beside a small target, with fresh weights where others are trained.

        Whatever must hold for every method is tried on them: the text, its distribution, targets of
        all kinds. The key tells the forms of one method apart; it is empty for the plain form.
        """
        return {"": cls()}

    def check(self, session: Session) -> None:
        """Refuse a target that the method cannot work with.

        Raises:
            ZooError: if it is decoded by another kind of session than the method needs.
        """
        if not isinstance(session, self.sessions):
            reasons = steering(session.model).reasons
            reason = f" ({reasons[-1]})" if reasons else ""
            raise ZooError(
                f"the method '{self.name}' needs a target that is decoded by "
                f"{self.sessions.kind}, and {type(session.model).__name__} is decoded by "
                f"{session.kind}{reason}: take another method, such as "
                f"{needing_nothing()}"
            )

    def load(self, model: nn.Module) -> None:  # noqa: B027
        """Make ready, before the prompt is read, what stands beside the target ``model``."""

    def cache(self, model: nn.Module) -> TreeCache | None:
        """A cache for the target ``model`` other than a plain one."""
        return None

    def modules(self) -> list[nn.Module]:
        """The networks that stand beside the target."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]

    def start(self, run: Run, prompt: Scores) -> None:  # noqa: B027
        """Begin: the target has read all tokens but the roots; ``prompt`` is what it answered."""

    @abstractmethod
    def propose(self, run: Run) -> Draft:
        """Candidates for the tokens after the roots."""

    def score(self, run: Run, draft: Draft) -> Scores:
        """Let the target read the tree: logits ``[B, N, V]``."""
        return run.target.grow(draft.tokens, batch_parents(draft.trees), self.hidden_layer)

    def commit(self, run: Run, paths: Sequence[Sequence[int]]) -> None:
        """Let the target keep the root and the accepted nodes of each tree."""
        run.target.commit(paths)

    def report(self) -> dict[str, float]:
        """What it changed in the last call, beside the numbers that all methods have."""
        return {}

    def update(  # noqa: B027
        self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]
    ) -> None:
        """After a step: the roots are decided, and the target has kept the accepted nodes.

        The logits of ``scores`` are those that were verified, after all constraints.
        """

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


def needing_nothing() -> str:
    """Names of the lossless methods that serve any target as it is, for messages."""
    able = [
        name
        for name in list_methods()
        if (cls := _METHODS[name]).lossless and not cls.needs and cls.sessions is Session
    ]
    return ", ".join(sorted(able, reverse=True))


def method_class(name: str) -> type[Method]:
    """The class that is registered under a name.

    Raises:
        ZooError: if there is none.
    """
    known = list_methods()
    if name not in known:
        raise ZooError(f"there is no decoding method '{name}': expected one of {', '.join(known)}")
    return _METHODS[name]


def make_method(name: str, **options) -> Method:
    """A method by name.

    Raises:
        ZooError: if there is no such method, or it does not take these options.
    """
    cls = method_class(name)
    _check_numbers(cls, options)
    try:
        return cls(**options)
    except ZooError:
        raise
    except (TypeError, ValueError) as error:
        reason = str(error).rpartition("__init__() ")[2]
        takes = ", ".join(inspect.signature(cls).parameters) or "none"
        raise ZooError(
            f"options of the decoding method '{name}': {reason}; it takes {takes}"
        ) from error


def _check_numbers(cls: type[Method], options: dict[str, Any]) -> None:
    """Options that are numbers or switches must be; what they would break comes much later."""
    for name, hint in get_type_hints(cls.__init__).items():
        kinds = get_args(hint) or (hint,)
        if name not in options or not {int, float, bool, type(None)}.issuperset(kinds):
            continue
        value = options[name]
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
            raise ZooError(
                f"option {name} of the decoding method '{cls.name}' is {value!r}: expected "
                f"{expected}"
            )


def accepted_hidden(hidden: Tensor, verdicts: Sequence[Verdict]) -> Tensor:
    """States ``[B, d]`` at the last accepted node of each sequence, from those of all nodes."""
    last = [verdict.path[-1] if verdict.path else 0 for verdict in verdicts]
    return hidden[range(len(last)), last]
