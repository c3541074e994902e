"""Which session fits a model, found out before the first token by what the model itself says.

Trees ask things of a model that its own generation never does: tokens at other positions than their
place in the cache, masks that are not causal, states that are copied. Models answer in silence
whatever they make of it. So the sessions are tried, the fastest first, on a few tokens and a
small tree, and the first that agrees with the model's full pass at every node is taken.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zoo.decoding.attention import Attention
from zoo.decoding.recompute import RecomputeSession, full_pass
from zoo.decoding.recurrent import RecurrentSession, is_recurrent
from zoo.decoding.session import AttentionSession, Session, floating_dtype, position_limit
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config

log = logging.getLogger("zoo")

#: Tokens of the trial's longer text, and at most so many where a window or chunk is crossed.
LENGTH, LONGEST = 12, 80
#: The longer text has so many tokens more than the other.
LONGER = 3
#: A tree in which slots are not depths, given in two parts, and the path kept of each row's.
PARENTS, PARTS, KEPT = (-1, 0, 0, 1, 2), ((0, 1, 2), (3, 4)), ((0, 2, 4), (0,))
#: A session may differ from the full pass so many times more than that does from itself where its
#: text is longer; or by so many roundings of the logits' size, in float32 and in half precision.
NOISE, ROUNDINGS, HALF_ROUNDINGS = 6.0, 2000.0, 4.0

#: Logits of this size are there to rule a token out.
FORBIDDEN = 1e4

Open = Callable[[nn.Module, int], Session]


@dataclass(frozen=True)
class Steering:
    """How a model is decoded.

    Attributes:
        kind: of its sessions; see :attr:`zoo.decoding.session.Session.kind`.
        open: opens one for a model and a batch size.
        reasons: why the faster kinds were not taken, one line each.
    """

    kind: str
    open: Open
    reasons: tuple[str, ...] = ()


_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Steering]] = WeakKeyDictionary()


def open_session(model: nn.Module, batch_size: int, lengths: tuple[int, int] = (0, 0)) -> Session:
    """The fastest session whose scores are the model's own.

    Args:
        model: a causal LM, in eval mode.
        batch_size: number of sequences.
        lengths: tokens of the shortest text at the beginning, and of the longest at the end.
    """
    if _rotates_by_length(model, *lengths):
        # one pass has one set of frequencies, and the nodes of a tree are of different lengths
        session: Session = RecomputeSession(model, batch_size, alone=True)
    else:
        session = steering(model, lengths[1]).open(model, batch_size)
    if lengths[1]:  # what a tree holds behind the end is never asked for
        session.last_position = min(session.last_position, lengths[1] - 1)
    return session


def steering(model: nn.Module, longest: int = 0) -> Steering:
    """How a model can be decoded; tried once for each model, precision and attention.

    Args:
        model: a causal LM, in eval mode.
        longest: tokens of the longest text.

    Raises:
        ZooError: if it is no model that reads tokens and gives logits.
    """
    whose = getattr(model, "whole", model)
    parameter = next(model.parameters())
    attention = getattr(model.config, "_attn_implementation", None)
    far = any(size < longest for size in _other_windows(model))
    key = (attention, parameter.dtype, parameter.device, far)
    known = _KNOWN.setdefault(whose, {})
    if key not in known:
        known[key] = _try_all(model, far)
        if known[key].kind == RecomputeSession.kind:
            log.warning(
                "%s is read from the beginning again at every step, which is exact and slow: %s",
                type(whose).__name__,
                "; ".join(known[key].reasons),
            )
    return known[key]


def _candidates(model: nn.Module, far: bool = False) -> Iterator[Open]:
    """Sessions that may fit, the fastest first; ``far``: texts cross windows that a trial does not
    reach and a mask does not draw."""
    reads = inspect.signature(model.forward).parameters
    others = far or is_recurrent(model) or getattr(model, "reads_by_row", False)
    if not others and hasattr(model.config, "_attn_implementation"):
        if Attention(model).swaps:
            yield AttentionSession
        yield partial(AttentionSession, own=True)
    if "position_ids" in reads:
        yield partial(RecurrentSession, positions=True)
    yield RecurrentSession
    yield RecomputeSession


@torch.no_grad()
def _try_all(model: nn.Module, far: bool) -> Steering:
    trial = _Trial(model)
    reasons = []
    for candidate in _candidates(model, far):
        try:
            session = candidate(model, 2)
            off = trial.distance(session)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a foreign model does with what it does not know
            reason = str(error).partition("\n")[0]
            reasons.append(f"{_kind(candidate)}: {type(error).__name__}: {reason[:120]}")
            continue
        if off <= trial.tolerance:
            return Steering(session.kind, candidate, tuple(reasons))
        reasons.append(
            f"{session.kind}: its logits are off by {off / trial.size:.1g} of their size"
        )
    # nothing that follows a token is in its text: this is the definition
    return Steering(RecomputeSession.kind, partial(RecomputeSession, alone=True), tuple(reasons))


def _kind(candidate: Open) -> str:
    return getattr(candidate, "func", candidate).kind  # type: ignore[union-attr]


class _Trial:
    """Two short texts with a small tree on each, and what the model says about every node."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        limit = min([position_limit(model), *(place for _, place in _turns(model))])
        length = max(4, min(_length(model), limit - 8))
        tokens = iter(_tokens(model, 2 * length + 32))
        self.texts = [[next(tokens) for _ in range(n)] for n in (length, length - LONGER)]
        self.nodes = [[next(tokens) for _ in PARENTS] for _ in self.texts]
        self.more = [[next(tokens) for _ in range(n)] for n in (2, 1)]
        paths = [[self.nodes[row][n] for n in KEPT[row]] for row in range(2)]
        self.ends = [
            text + path + more
            for text, path, more in zip(self.texts, paths, self.more, strict=True)
        ]
        try:
            self._read()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # see above
            raise ZooError(
                f"{type(model).__name__} cannot be decoded; given tokens as input_ids: "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
            ) from error

    @torch.no_grad()
    def _read(self) -> None:
        """The full passes, and how far they are from each other where a text goes on."""
        places = range(len(self.texts[0]) - 3, len(self.texts[0]))
        texts = [(0, self.texts[0][:place]) for place in places]
        for row in range(2):
            texts += [(row, self.texts[row]), (row, self.ends[row])]
            texts += [(row, self.text_at(row, node)) for node in range(len(PARENTS))]
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for row, text in texts:
            by_length.setdefault(len(text), []).append((row, text))
        self._full: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        for group in by_length.values():
            logits = self._pass(group)
            for place, (row, text) in enumerate(group):
                self._full[row, tuple(text)] = logits[place, -1]
        own = torch.stack([self.full(0, self.texts[0][:place]) for place in places])
        longer = self._pass([(0, self.texts[0])])[0, [place - 1 for place in places]]
        if own.isnan().any():
            raise ZooError("its logits are NaN")
        self.size = float(own[own.abs() < FORBIDDEN].square().mean().sqrt())
        noise = max(_off(a, b) for a, b in zip(longer, own, strict=True))
        floor = _roundings(self.model) * self.size
        # more than that is no noise: what the model says depends on what follows
        self.tolerance = max(NOISE * noise if noise < floor else 0.0, floor)

    def _pass(self, texts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        ids = torch.tensor([list(text) for _, text in texts])
        rows = [row for row, _ in texts]
        inputs = {"rows": rows} if getattr(self.model, "reads_by_row", False) else {}
        out = full_pass(self.model, ids.to(next(self.model.parameters()).device), **inputs)
        return out.logits[..., : text_config(self.model).vocab_size].double()

    def full(self, row: int, text: Sequence[int]) -> Tensor:
        """What follows a text, ``[V]``."""
        return self._full[row, tuple(text)]

    def text_at(self, row: int, node: int) -> list[int]:
        """The text that ends with a node of the tree."""
        path = []
        while node >= 0:
            path.append(self.nodes[row][node])
            node = PARENTS[node]
        return self.texts[row] + path[::-1]

    def distance(self, session: Session) -> float:
        """How far a session is from the full pass at the node where it is farthest."""
        offs = []

        def compare(scores: Any, place: int, texts: Sequence[Sequence[int]]) -> None:
            for row, text in enumerate(texts):
                offs.append(_off(scores.logits[row, place].double(), self.full(row, text)))

        compare(session.advance(self.texts), 0, self.texts)
        for part in PARTS:
            tokens = torch.tensor([[row[node] for node in part] for row in self.nodes])
            parents = torch.tensor([[PARENTS[node] for node in part]] * 2)
            scores = session.grow(tokens.to(session.device), parents.to(session.device))
            for place, node in enumerate(part):
                compare(scores, place, [self.text_at(row, node) for row in range(2)])
        session.commit(KEPT)
        compare(session.advance(self.more), 0, self.ends)
        return max(off if math.isfinite(off) else math.inf for off in offs)


def _off(logits: Tensor, own: Tensor) -> float:
    """Distance of logits ``[V]``, those that rule a token out aside."""
    allowed = own.abs() < FORBIDDEN
    return float((logits - own)[allowed].square().mean().sqrt())


def _roundings(model: nn.Module) -> float:
    """By how much of their size logits may be off that were computed in another order."""
    eps = torch.finfo(floating_dtype(model)).eps
    device = next(model.parameters()).device
    if eps > 1e-4:
        return HALF_ROUNDINGS * min(eps, torch.finfo(torch.bfloat16).eps)
    if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return HALF_ROUNDINGS * torch.finfo(torch.float16).eps
    # many models compute parts in float32 whatever their own precision
    return ROUNDINGS * torch.finfo(torch.float32).eps


def _length(model: nn.Module) -> int:
    """So many tokens that a window or a chunk is crossed, if it is not too wide."""
    sizes = [LENGTH, *(size + 6 for size in _windows(model).values())]
    return max(size for size in sizes if size <= LONGEST)


def _windows(model: nn.Module) -> dict[str, int]:
    """What the configuration says about how far attention reaches."""
    words = ("window", "chunk", "local", "block_size")
    return {
        name: value
        for name, value in vars(text_config(model)).items()
        if any(word in name for word in words)
        and isinstance(value, int)
        and not isinstance(value, bool)
    }


def _other_windows(model: nn.Module) -> list[int]:
    """Those that no trial crosses and that are not drawn into the masks of trees."""
    drawn = ("sliding_window", "attention_chunk_size")
    return [s for name, s in _windows(model).items() if name not in drawn and s + 6 > LONGEST]


def _tokens(model: nn.Module, count: int) -> list[int]:
    """Tokens that mean nothing special to the model, in an order that does not repeat."""
    special = set()
    for config in (model.config, text_config(model)):
        for name, value in vars(config).items():
            if "token" in name:
                special.update(torch.as_tensor(value).flatten().tolist() if _ints(value) else ())
    size = text_config(model).vocab_size
    usable = [token for token in range(min(size, 4096)) if token not in special] or [0]
    return [usable[(17 * place + place * place) % len(usable)] for place in range(count)]


def _ints(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def _turns(model: nn.Module) -> list[tuple[str, int]]:
    """Lengths of a text behind which rotary positions turn at another speed, with their rule."""
    config = text_config(model)
    settings = getattr(config, "rope_parameters", None) or {}
    turns = []
    for rope in [settings, *(value for value in settings.values() if isinstance(value, dict))]:
        known = getattr(config, "max_position_embeddings", None)
        place = rope.get("original_max_position_embeddings") or known
        for rule in ("dynamic", "longrope"):
            if rule in str(rope.get("rope_type", "")) and place is not None:
                turns.append((rule, place))
    return turns


def _rotates_by_length(model: nn.Module, shortest: int, longest: int) -> bool:
    """Whether rotary frequencies change somewhere between two lengths of a text."""
    return any(
        longest > place and (rule == "dynamic" or shortest <= place)
        for rule, place in _turns(model)
    )
