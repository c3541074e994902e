"""Kangaroo: the target's first layers and a small adapter draft, its other layers verify.

Paper: Kangaroo: Lossless Self-Speculative Decoding via Double Early Exiting (2024, arXiv
2404.18911).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.decoding.draft_model import chain_draft
from zoo.decoding.heads import head_for
from zoo.decoding.method import Method, Need, Run, register_method
from zoo.decoding.session import AttentionSession, Scores
from zoo.decoding.stop_rules import Confidence
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError
from zoo.models.decoding.kangaroo import KangarooAdapter
from zoo.models.language._protocol import LayeredModel, text_config
from zoo.models.language._split_decoder import SplitDecoder


@register_method
class Kangaroo(Method):
    """A chain of drafts that ends where the draft is not confident; no layer runs twice for a
    token.

    Args:
        adapter: the trained adapter, or the folder or file it is in; None drafts from the shallow
            states as they are, through the target's own norm (the baseline without an adapter).
        exit_layer: number of shallow layers; by default what the adapter was trained for (2 where
            it does not say).
        threshold: eta; the token whose probability is below it is the last of its round.
        steps: gamma, most drafted tokens of a round.
    """

    name = "kangaroo"
    proposer = "the target's first layers and an adapter"
    needs = (Need("adapter", "--heads"),)
    sessions = AttentionSession
    starts_from_prompt = False

    def __init__(
        self,
        adapter: KangarooAdapter | str | Path | None,
        exit_layer: int | None = None,
        threshold: float = 0.6,
        steps: int = 6,
    ) -> None:
        self.adapter, self.exit_layer = adapter, exit_layer
        self.rule = Confidence(threshold, steps)
        #: Tokens that went through the shallow layers after the prompt.
        self.shallow_tokens = 0

    @classmethod
    def trials(cls, target: nn.Module) -> dict[str, Method]:
        """A fresh adapter after the first layer, or none; the threshold lets them draft."""
        adapter = KangarooAdapter.for_target(target, {"exit_layer": 1})
        return {
            "": cls(adapter, threshold=0.05),
            "no adapter": cls(None, exit_layer=1, threshold=0.05),
        }

    def load(self, model: nn.Module) -> None:
        """Load the adapter."""
        self._target: LayeredModel = SplitDecoder(model)
        self._output = model.get_output_embeddings()
        self._tokens = text_config(model).vocab_size
        if self.adapter is not None:
            self.adapter = head_for(
                (KangarooAdapter,), KangarooAdapter.for_target, self.adapter, model
            )
        if self.exit_layer is None:
            self.exit_layer = 2 if self.adapter is None else self.adapter.config.exit_layer
        self.hidden_layer = self.exit_layer
        if not 0 < self.exit_layer < len(self._target):
            raise ZooError(
                f"exit_layer is {self.exit_layer}, but the target has {len(self._target)} layers"
            )

    def start(self, run: Run, prompt: Scores) -> None:
        """Let the adapter read the prompt's shallow states."""
        self._session: AttentionSession | None = None
        if self.adapter is not None:
            self._session = AttentionSession(self.adapter, len(run.sequences))
            run.draft_sessions.append(self._session)
            counts = [len(sequence) - 1 for sequence in run.sequences]
            self._session.read({"inputs_embeds": prompt.hidden}, counts)
        # shallow states of decided tokens that the adapter has not read, at most one a sequence
        self._unread: list[Tensor] = [prompt.hidden[0, :0] for _ in run.sequences]

    def propose(self, run: Run) -> Draft:
        """Shallow layers and adapter in turn, token by token."""
        device = run.target.device
        token = torch.tensor(run.roots, device=device)
        running = torch.ones(len(token), dtype=torch.bool, device=device)
        counts, chosen, shallow = [0] * len(token), [], []
        while True:
            shallow.append(self._run_shallow(run.target, token))
            if not running.any():
                break
            logits = self._draft_logits(shallow[-1], first=len(shallow) == 1).float()
            token = logits.argmax(-1)
            chosen.append(token)
            counts = [count + int(on) for count, on in zip(counts, running.tolist(), strict=True)]
            confidence = logits.softmax(-1).amax(-1)
            running = running & ~self.rule.stops(len(chosen), confidence, None)
        self._shallow = torch.stack(shallow, dim=1)  # [B, n, d]
        return chain_draft(run, chosen, [], counts)

    def _run_shallow(self, session: AttentionSession, token: Tensor) -> Tensor:
        """Shallow states ``[B, d]`` of one token of each sequence, appended to its chain."""
        before = session.parents.shape[1] - 1
        positions, arguments = session.place(torch.full((len(token), 1), before))
        self.shallow_tokens += len(token)
        with session.attention.active():
            hidden = self._target.run(
                self._target.embed(token[:, None], positions),
                0,
                self.exit_layer,
                positions,
                cache=session.cache,
                **arguments,
            )
        return hidden[:, 0]

    def _draft_logits(self, shallow: Tensor, first: bool) -> Tensor:
        """Draft logits ``[B, V]`` after the newest shallow states ``[B, d]``."""
        session = self._session
        if session is None:
            return self._target.logits(shallow[:, None])[:, 0, : self._tokens]
        if not first:
            positions, arguments = session.place(self._tail)
            self._tail = torch.full_like(self._tail, session.parents.shape[1] - 1)
            inputs = {"inputs_embeds": shallow[:, None]}
            return self._logits(session.call(inputs, positions, None, **arguments).hidden[:, 0])
        states = [
            torch.cat([unread, state[None]])
            for unread, state in zip(self._unread, shallow, strict=True)
        ]
        self._counts = [len(state) for state in states]
        last = [count - 1 for count in self._counts]
        positions, arguments = session.place(session.chain(self._counts))
        inputs = {"inputs_embeds": torch.nn.utils.rnn.pad_sequence(states, batch_first=True)}
        hidden = session.call(inputs, positions, None, **arguments).hidden
        self._tail = torch.tensor(last, device=shallow.device)[:, None]
        return self._logits(hidden[range(len(last)), last])

    def _logits(self, states: Tensor) -> Tensor:
        """What the target's output layer says to the adapter's states."""
        return self._output(states)[..., : self._tokens]

    def score(self, run: Run, draft: Draft) -> Scores:
        """The deep layers, once for the whole chain."""
        session = run.target
        positions, arguments = session.described(session.parents.shape[1])
        session.count(positions.numel())
        with session.attention.active():
            hidden = self._target.run(
                self._shallow,
                self.exit_layer,
                len(self._target),
                positions,
                cache=session.cache,
                **arguments,
            )
        return Scores(self._target.logits(hidden)[..., : session.vocab_size], None)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Keep what the adapter has read of the accepted tokens, and what it has not."""
        if self._session is None:
            return
        width = max(self._counts)
        paths = []
        for row, verdict in enumerate(verdicts):
            # the adapter has read the root and all drafted tokens but the last
            further = min(len(verdict.path), self._shallow.shape[1] - 2)
            paths.append([*range(self._counts[row]), *range(width, width + further)])
            self._unread[row] = self._shallow[row, further + 1 : len(verdict.path) + 1]
        self._session.commit(paths)

    def select(self, run: Run, rows: Sequence[int]) -> None:
        """Keep the states of these sequences."""
        self._unread = [self._unread[row] for row in rows]
