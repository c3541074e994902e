"""One model with its cache, able to score trees: what target and draft models have in common."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zoo.decoding.attention import Attention, OpenTree
from zoo.decoding.cache import TreeCache
from zoo.decoding.tree import PADDING, ancestor_matrix
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config
from zoo.models.language._split_decoder import cache_name, states_before_norm
from zoo.ops.tree_attention import pack_ancestors


class Scores(NamedTuple):
    """What a model says about some nodes.

    Attributes:
        logits: ``[B, n, V]``, of the token that follows each node.
        hidden: ``[B, n, d]``, states after the number of layers that was asked for; -1: those that
            the logits are computed from, after the final norm.
    """

    logits: Tensor
    hidden: Tensor | None


class Session(ABC):
    """A model, and the sequences of a batch as far as it has read them.

    The committed part of sequence b has ``lengths[b]`` tokens. On top of it stands the open tree:
    nodes that were scored but are not decided yet. :meth:`grow` adds nodes to it, :meth:`commit`
    keeps one path of each sequence and drops the rest.
    """

    #: How it goes on from what was read, in a few words.
    kind: ClassVar[str]

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self.model = model
        self.device, self.dtype = next(model.parameters()).device, floating_dtype(model)
        config = text_config(model)
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        #: The last position that the model knows; nodes behind it are never asked for.
        self.last_position = position_limit(model) - 1
        self.lengths = [0] * batch_size
        #: Which sequence of the first batch each row is.
        self.numbers = list(range(batch_size))
        #: Model calls, and tokens that went through them.
        self.calls = 0
        self.tokens = 0

    def count(self, tokens: int) -> None:
        """Count one pass."""
        self.calls += 1
        self.tokens += tokens

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @abstractmethod
    def advance(self, rows: Sequence[Sequence[int]], hidden: int | None = None) -> Scores:
        """Read decided tokens, at least one for each sequence.

        Returns:
            Logits ``[B, 1, V]`` after the last token of each sequence, and the states ``[B, n, d]``
            of all of them, which in shorter rows are followed by meaningless ones.
        """

    @abstractmethod
    def grow(self, tokens: Tensor, parents: Tensor, hidden: int | None = None) -> Scores:
        """Add nodes to the open tree and score them.

        Args:
            tokens: int64 ``[B, n]``.
            parents: int64 ``[B, n]``, index of an open node (these included), -1 for a child of the
                committed prefix's last token, -2 for a node that only fills up.
        """

    @abstractmethod
    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep these open nodes of each sequence, in order of depth, and close the tree."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these sequences of the batch. The tree is closed."""
        self.lengths = [self.lengths[row] for row in rows]
        self.numbers = [self.numbers[row] for row in rows]

    def inputs_for(self, rows: Sequence[int]) -> dict[str, Any]:
        """What the model's call needs besides tokens to read for these rows, one each."""
        if not getattr(self.model, "reads_by_row", False):
            return {}
        return {"rows": [self.numbers[row] for row in rows]}

    def of_tokens(self, out: Any) -> Any:
        """A model's output without the logits of rows that only fill up the embedding."""
        if out.logits.shape[-1] > self.vocab_size:
            out.logits = out.logits[..., : self.vocab_size]
        return out

    def filled(
        self, logits: Tensor | None, states: Tensor | None, shape: tuple[int, int], hidden: Any
    ) -> Scores:
        """Scores of nodes of which none was read: those behind the last position."""
        if logits is None:
            logits = torch.zeros(*shape, self.vocab_size, device=self.device)
        if states is None and hidden is not None:
            states = torch.zeros(*shape, self.hidden_size, device=self.device, dtype=self.dtype)
        return Scores(logits, states)


def floating_dtype(model: nn.Module) -> torch.dtype:
    """What a model computes in; quantised weights are integers."""
    kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(kinds, torch.get_default_dtype())


def position_limit(model: nn.Module) -> int:
    """How many tokens a text of the model may have; a very large number if it does not say."""
    config = text_config(model)
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return min([limit for limit in limits if isinstance(limit, int) and limit > 0] or [1 << 30])


class AttentionSession(Session):
    """A transformer: all nodes are scored in one pass under the tree's mask.

    Args:
        model, batch_size: see :class:`Session`.
        own: leave the model its own attention, and give it a dense mask.
    """

    kind = "tree attention"

    def __init__(self, model: nn.Module, batch_size: int, own: bool = False) -> None:
        super().__init__(model, batch_size)
        self.cache: TreeCache = TreeCache()
        self.attention = Attention(model, own)
        self.parents = torch.empty(batch_size, 0, dtype=torch.long, device=self.device)
        self._cache_name = cache_name(model.forward)
        self._depth = getattr(text_config(model), "num_hidden_layers", None)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def slots(self) -> int:
        """Cache slots of the committed part, the same for all sequences; shorter ones have gaps."""
        return max(self.lengths)

    def advance(self, rows: Sequence[Sequence[int]], hidden: int | None = None) -> Scores:
        """Read decided tokens."""
        counts = [len(row) for row in rows]
        padded = [[*row, *[0] * (max(counts) - len(row))] for row in rows]
        scores = self.read({"input_ids": torch.tensor(padded, device=self.device)}, counts, hidden)
        if scores.logits.shape[1] == 1:
            return scores
        last = [count - 1 for count in counts]
        return Scores(scores.logits[range(len(last)), last][:, None], scores.hidden)

    def read(
        self, inputs: dict[str, Tensor], counts: list[int], hidden: int | None = None
    ) -> Scores:
        """Read decided tokens or embeddings and commit them.

        Args:
            inputs: ``input_ids`` ``[B, n]`` or ``inputs_embeds`` ``[B, n, d]``, padded on the
                right.
            counts: how many of each row are real, at least one.
            hidden: which states to return as well.
        """
        if min(counts) < 1:
            raise ZooError("every sequence of a batch needs at least one token to read")
        if self.slots:
            positions, arguments = self.place(self.chain(counts))
            scores = self.call(inputs, positions, hidden, **arguments)
            self.commit([range(count) for count in counts])
            return scores
        # causal attention never looks at padding on the right, and later masks leave it out
        options: dict[str, Any] = {}
        if self._keeps_logits and len(set(counts)) == 1:
            options["logits_to_keep"] = 1
        positions = torch.arange(max(counts), device=self.device).repeat(len(counts), 1)
        scores = self.call(inputs, positions.clamp_max(self.last_position), hidden, **options)
        self.lengths = list(counts)
        self.cache.settle(min(counts))
        return scores

    def chain(self, counts: Sequence[int]) -> Tensor:
        """Parents of a chain of ``counts[b]`` nodes that starts the open tree."""
        step = torch.arange(max(counts), device=self.device)
        real = step < torch.tensor(counts, device=self.device)[:, None]
        return torch.where(real, step - 1, PADDING)

    def grow(self, tokens: Tensor, parents: Tensor, hidden: int | None = None) -> Scores:
        """Add nodes and score them in one pass."""
        positions, arguments = self.place(parents)
        return self.call({"input_ids": tokens}, positions, hidden, **arguments)

    def place(self, parents: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Enter nodes into the open tree; :meth:`described` of them."""
        self.parents = torch.cat([self.parents, parents.to(self.device)], dim=1)  # [B, M]
        return self.described(parents.shape[1])

    def described(self, newest: int) -> tuple[Tensor, dict[str, Any]]:
        """Of the ``newest`` nodes: positions ``[B, n]``, and the keyword arguments of a model's
        call or a layer's that tell its attention what they see."""
        rows = ancestor_matrix(self.parents)[:, -newest:]  # [B, n, M]
        lengths = torch.tensor(self.lengths, device=self.device)
        tree = OpenTree(lengths, pack_ancestors(rows), torch.full_like(lengths, self.slots))
        depths = rows.sum(-1) - 1
        positions = lengths[:, None] + depths
        slots = self.slots + self.parents.shape[1]
        arguments = self.attention.arguments(tree, positions, slots, self.dtype)
        return positions.clamp_max(self.last_position), arguments

    def call(
        self, inputs: dict[str, Tensor], positions: Tensor, hidden: int | None, **arguments: Any
    ) -> Scores:
        """Run the model on nodes that were placed."""
        self.count(positions.numel())
        before_norm = hidden is not None and hidden == self._depth
        kept = states_before_norm(self.model) if before_norm else nullcontext([])
        with self.attention.active(), kept as states:
            out = self.model(
                **inputs,
                position_ids=positions,
                use_cache=True,
                output_hidden_states=hidden is not None and not before_norm,
                **{self._cache_name: self.cache},
                **arguments,
            )
        if not hasattr(out, "logits"):
            return Scores(None, out.last_hidden_state)  # type: ignore[arg-type]
        out = self.of_tokens(out)
        if hidden is not None:
            states = [states[0] if before_norm else out.hidden_states[hidden]]
        return Scores(out.logits, states[0] if states else None)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep one path of each sequence."""
        counts = [len(path) for path in paths]
        width = max(counts)
        padded = [[*path, *[0] * (width - len(path))] for path in paths]
        new = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.cache.commit(
            torch.tensor(self.lengths, device=self.device),
            self.slots,
            torch.tensor(padded, device=self.device, dtype=torch.long).view(len(paths), width),
            torch.tensor(counts, device=self.device),
            max(new),
        )
        self.lengths = new
        self.parents = self.parents[:, :0]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        super().select(rows)
        index = torch.tensor(list(rows), device=self.device)
        self.parents = self.parents[index]
        self.cache.select(index, self.slots)
