"""Gradient steps on what a transformer has cached of a text, so that it says better what follows.

Paper: Reconsidering the Past: Optimizing Hidden States in Language Models (Findings of EMNLP 2021,
arXiv 2112.08653), part of the thesis Making the Most of your Model (arXiv 2408.16241). No code was
published. The states that learn are cached keys and values; their positions never move here, so
rotary embeddings stay right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.decoding.cache import TreeCache, TreeCacheLayer
from zoo.decoding.session import AttentionSession
from zoo.decoding.steering import open_session
from zoo.decoding.targets import eval_mode, text_model, unwrapped
from zoo.errors import ZooError

#: Keys and values of one layer, ``[B, H, T, D]`` each.
Pair = tuple[Tensor, Tensor]


class _PastLayer(TreeCacheLayer):
    """Keys and values that gradients reach: new ones are joined to them, nothing is overwritten."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.lazy_initialization(*pair)
        self.keys, self.values = pair
        self.length = pair[0].shape[2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Join ``[B, H, n, D]``."""
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        self.length = self.keys.shape[2]
        return self.keys, self.values


class HiddenStates:
    """The cached states of a batch, corrected by each window of text that they lead to.

    For each whole window of ``window`` tokens but the first: the model reads it, the states before
    it take ``steps`` steps of Adam towards its likelihood, and its own states are computed anew
    from the corrected ones. Each state has moments and a count of steps of its own. What a token's
    gradient has changed only says what comes after that token.

    Args:
        session: has read texts, or will; its cache is corrected where it stands.
        window: tokens between corrections.
        lr: of Adam; 0 changes nothing.
        steps: for each window.
        betas, eps: of Adam.

    Attributes:
        windows: corrections so far, of all sequences.
        losses: sums over these windows of their mean loss before and after, in nats.
        moved: sum over these windows of the states' change, relative to their norm.

    Raises:
        ZooError: for settings out of range, or a cache that is no plain one.
    """

    def __init__(
        self,
        session: AttentionSession,
        window: int = 25,
        lr: float = 3e-3,
        steps: int = 1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        check_settings(window, lr, steps)
        if type(session.cache) is not TreeCache:
            raise ZooError(
                f"hidden states were to be corrected in a {type(session.cache).__name__}, which "
                "does not hold them as they are: leave the cache out"
            )
        self.session, self.window, self.lr, self.steps = session, window, lr, steps
        self.betas, self.eps = betas, eps
        #: Where the next window of each sequence begins.
        self.starts = [window] * session.batch_size
        # of each sequence and layer: first and second moments of keys and of values, [2, H, T, D]
        self._moments: list[list[list[Tensor]]] = [[] for _ in self.starts]
        self.windows, self.losses, self.moved = 0, [0.0, 0.0], 0.0

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        self.starts = [self.starts[row] for row in rows]
        self._moments = [self._moments[row] for row in rows]

    def catch_up(self, texts: Sequence[Sequence[int]], rest: bool = False) -> list[list[Tensor]]:
        """Correct by all windows that are complete.

        Args:
            texts: what the session has read of each sequence, and one token more at least.
            rest: compute the states behind the last window anew too; needed where more than one
                window was read at once.

        Returns:
            for each sequence the losses ``[n]`` of the windows' next tokens before they were used,
            and of the rest.
        """
        lengths = self.session.lengths
        found: list[list[Tensor]] = [[] for _ in texts]
        corrected: set[int] = set()
        while due := [r for r, n in enumerate(lengths) if n >= self.starts[r] + self.window]:
            for start, rows in _grouped(due, self.starts):
                end = start + self.window
                for row, losses in zip(rows, self._correct(texts, rows, start, end), strict=True):
                    found[row].append(losses)
                    self.starts[row] = end
                corrected.update(rows)
        if rest:
            for row in sorted(corrected):
                start, end = self.starts[row], lengths[row]
                if start < end:
                    past = self._past([row], start)
                    losses, cache = self._read(texts, [row], start, end, past)
                    self._put([row], cache)
                    found[row].append(losses[0])
        return found

    def _past(self, rows: Sequence[int], end: int) -> list[Pair]:
        index = torch.tensor(list(rows), device=self.session.device)
        return [layer.taken(index, end) for layer in self.session.cache.layers]

    def _put(self, rows: Sequence[int], cache: TreeCache) -> None:
        index = torch.tensor(list(rows), device=self.session.device)
        for layer, new in zip(self.session.cache.layers, cache.layers, strict=True):
            layer.put(index, new.keys, new.values)

    def _read(
        self,
        texts: Sequence[Sequence[int]],
        rows: Sequence[int],
        start: int,
        end: int,
        past: list[Pair],
    ) -> tuple[Tensor, TreeCache]:
        """Losses ``[G, end - start]`` of the tokens after those read, and the longer cache."""
        session = self.session
        known = [[*texts[row]][start : end + 1] for row in rows]
        ids = torch.tensor(known, device=session.device)
        # of the model's own attention there are gradients
        reader = AttentionSession(session.model, len(rows), own=True)
        reader.last_position = session.last_position
        reader.lengths = [start] * len(rows)
        reader.cache.layers = [_PastLayer(pair) for pair in past]
        session.count((end - start) * len(rows))
        logits = reader.grow(ids[:, :-1], reader.chain([end - start] * len(rows))).logits
        losses = F.cross_entropy(_exact(logits).transpose(1, 2), ids[:, 1:], reduction="none")
        return losses, reader.cache

    def _correct(
        self, texts: Sequence[Sequence[int]], rows: list[int], start: int, end: int
    ) -> Tensor:
        past = before = self._past(rows, start)
        moments = self._moments_of(rows, past)
        age = torch.arange(start, device=self.session.device) // self.window
        done = (start // self.window - 1 - age) * self.steps  # [T], steps of each state so far
        first: Tensor | None = None
        for step in range(self.steps):
            with torch.enable_grad():
                leaves = [tuple(t.detach().requires_grad_() for t in pair) for pair in past]
                losses, _ = self._read(texts, rows, start, end, leaves)  # type: ignore[arg-type]
                flat = [t for pair in leaves for t in pair]
                # each sequence has its own states, so a sum over the batch mixes nothing
                grads = torch.autograd.grad(losses.mean(1).sum(), flat, allow_unused=True)
            first = losses.detach() if first is None else first
            moved = [
                self._adam(state.detach(), grad, both, done + step + 1)
                for state, grad, both in zip(flat, grads, moments, strict=True)
            ]
            past = list(zip(moved[::2], moved[1::2], strict=True))
        after, cache = self._read(texts, rows, start, end, past)
        self._put(rows, cache)
        for place, row in enumerate(rows):
            self._moments[row] = [[part[place] for part in both] for both in moments]
        self._note(first, after, before, past)  # type: ignore[arg-type]
        return first  # type: ignore[return-value]

    def _moments_of(self, rows: Sequence[int], past: list[Pair]) -> list[list[Tensor]]:
        """Of each layer's keys, then its values, both moments ``[G, H, T, D]``; new states have
        none yet."""
        made = []
        for place, states in enumerate(t for pair in past for t in pair):
            empty = _exact(torch.zeros_like(states[0]))
            both = []
            for part in (0, 1):
                known = []
                for row in rows:
                    now = empty.clone()
                    if self._moments[row]:
                        old = self._moments[row][place][part]
                        now[:, : old.shape[1]] = old
                    known.append(now)
                both.append(torch.stack(known))
            made.append(both)
        return made

    def _adam(self, state: Tensor, grad: Tensor | None, moments: list[Tensor], t: Tensor) -> Tensor:
        """States after one step; the moments are changed where they stand."""
        if grad is None:
            return state
        (first, second), (b1, b2), grad = moments, self.betas, _exact(grad)
        first.lerp_(grad, 1 - b1)
        second.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        t = t[:, None]
        step = first / (1 - b1**t) / ((second / (1 - b2**t)).sqrt() + self.eps)
        return (_exact(state) - self.lr * step).to(state.dtype)

    def _note(self, first: Tensor, after: Tensor, old: list[Pair], new: list[Pair]) -> None:
        self.windows += len(first)
        for place, losses in enumerate((first, after)):
            self.losses[place] += float(losses.mean(1).sum())
        change = size = torch.zeros(len(first), device=first.device)
        for a, b in zip(old, new, strict=True):
            for was, now in zip(a, b, strict=True):
                change = change + (now.float() - was.float()).square().sum((1, 2, 3))
                size = size + was.float().square().sum((1, 2, 3))
        self.moved += float((change / size.clamp_min(1e-30)).sqrt().sum())

    def report(self) -> dict[str, float]:
        """``windows`` that corrected; their loss ``window_loss`` in nats a token, and
        ``window_loss_after`` of the corrected states; ``moved``, the states' relative change in a
        correction; and ``moment_bytes``, what the moments of the sequences that are left take."""
        count = max(self.windows, 1)
        held = [t for row in self._moments for both in row for t in both]
        return {
            "windows": self.windows,
            "window_loss": self.losses[0] / count,
            "window_loss_after": self.losses[1] / count,
            "moved": self.moved / count,
            "moment_bytes": sum(t.numel() * t.element_size() for t in held),
        }


def check_settings(window: int, lr: float, steps: int) -> None:
    """Raise a ZooError for settings of :class:`HiddenStates` that are out of range."""
    if window < 1 or steps < 1 or not lr >= 0:
        raise ZooError(
            f"window {window}, steps {steps}, lr {lr}: expected windows of 1 or more tokens, 1 or "
            "more steps and a rate of 0 or more"
        )


def _grouped(rows: Sequence[int], starts: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Rows by where their windows begin."""
    groups = defaultdict(list)
    for row in rows:
        groups[starts[row]].append(row)
    yield from sorted(groups.items())


@torch.no_grad()
def text_losses(model: nn.Module, ids: Tensor, window: int = 25, **settings: Any) -> Tensor:
    """Losses of a text's tokens, each said from states that only tokens before it have corrected.

    Args:
        model: a causal LM with attention.
        ids: int64 ``[B, T]``, of more than ``window`` tokens.
        window, settings: see :class:`HiddenStates`.

    Returns:
        nats ``[B, T - 1]``; with ``lr=0`` those of one plain pass.

    Raises:
        ZooError: if the model is not decoded by tree attention, or the texts are too short.
    """
    if ids.dim() != 2 or ids.shape[1] <= window:
        raise ZooError(f"ids are {list(ids.shape)}, expected [B, T] with T > window, {window}")
    model = unwrapped(model)
    with eval_mode(model):
        session = open_session(text_model(model, None), len(ids), (ids.shape[1], ids.shape[1]))
        if not isinstance(session, AttentionSession):
            raise ZooError(
                f"hidden states are corrected in a cache of keys and values, and "
                f"{type(model).__name__} is decoded by {session.kind}: take a transformer"
            )
        states = HiddenStates(session, window, **settings)
        read = ids[:, :-1]
        positions = torch.arange(read.shape[1], device=ids.device).repeat(len(ids), 1)
        logits = session.call({"input_ids": read}, positions, None).logits
        plain = F.cross_entropy(_exact(logits).transpose(1, 2), ids[:, 1:], reduction="none")
        session.lengths = [read.shape[1]] * len(ids)
        found = [torch.cat(row) for row in states.catch_up(ids.tolist(), rest=True) if row]
    if not found:  # no window but the first is complete
        return plain
    return torch.cat([plain[:, :window], torch.stack(found)], dim=1)


def _exact(values: Tensor) -> Tensor:
    """In float32, or better where it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
