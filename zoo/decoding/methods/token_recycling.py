"""Token Recycling: the runners-up of earlier steps are the candidates of later ones.

Paper: Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token
Recycling (2024, arXiv 2408.08696). No training and no model: a matrix of V x 8 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.checkpoints import read_state_dict
from zoo.decoding.method import Method, Run, register_method
from zoo.decoding.recompute import full_pass
from zoo.decoding.session import Scores
from zoo.decoding.tree import Tree
from zoo.decoding.tree_templates import TOKEN_RECYCLING, find_tree
from zoo.decoding.verify import Draft, Verdict
from zoo.errors import ZooError
from zoo.models.language._protocol import text_config


@register_method
class TokenRecycling(Method):
    """Candidates come from an adjacency matrix: row w holds the last top-k tokens seen after w.

    The object keeps its matrix from one call of :func:`zoo.decoding.generate` to the next.

    Args:
        tree: shape of the candidates: paths of places in the rows, or the name of a published
            tree, by default the authors' "2.2.2" of 80 nodes.
        top_k: width of the matrix.
        read_prompt: also enter what the target would have said along the prompt (not in the paper).
        matrix: file of a saved matrix to start from.
        learn: False leaves the matrix as it is.
    """

    name = "token_recycling"
    proposer = "runners-up of earlier steps"

    def __init__(
        self,
        tree: str | Sequence[Sequence[int]] | Tree = TOKEN_RECYCLING,
        top_k: int = 8,
        read_prompt: bool = False,
        matrix: str | Path | None = None,
        learn: bool = True,
    ) -> None:
        self.tree = find_tree(tree)
        self.top_k, self.read_prompt, self.learn = top_k, read_prompt, learn
        if max(self.tree.ranks) >= top_k:
            raise ZooError(
                f"the tree takes candidate {max(self.tree.ranks)}, but top_k = {top_k} keeps only "
                f"0 to {top_k - 1}"
            )
        self.matrix: Tensor | None = None
        if matrix is not None:
            self.matrix = _read_matrix(Path(matrix))

    def reset(self) -> None:
        """Forget everything (the paper's cold start)."""
        self.matrix = None

    def save(self, file: str | Path) -> None:
        """Write the matrix, int32 ``[V, top_k]``, for the argument ``matrix``."""
        if self.matrix is None:
            raise ZooError("there is no matrix to save yet: generate something first")
        save_file({"matrix": self.matrix.contiguous()}, file)

    def load(self, model: nn.Module) -> None:
        """Make the matrix when it is first needed."""
        vocabulary = text_config(model).vocab_size
        shape = (vocabulary, min(self.top_k, vocabulary))
        if self.matrix is None:
            self.matrix = torch.zeros(shape, dtype=torch.int32)
        if self.matrix.shape != shape:
            raise ZooError(
                f"the matrix is {list(self.matrix.shape)}, the model needs {list(shape)}: call "
                "reset(), or make a new method object"
            )
        self.matrix = self.matrix.to(next(model.parameters()).device)
        self.tree = self.tree.limited(len(self.tree), vocabulary)

    def start(self, run: Run, prompt: Scores) -> None:
        """Read the prompts, if that was asked for."""
        if self.read_prompt:
            self._read_prompts(run)

    def propose(self, run: Run) -> Draft:
        """Grow the tree from the roots, one gather per level."""
        tokens = torch.zeros(
            len(run.roots), len(self.tree), dtype=torch.long, device=run.target.device
        )
        tokens[:, 0] = torch.tensor(run.roots, device=tokens.device)
        for nodes in self.tree.levels:
            parents = tokens[:, [self.tree.parents[node] for node in nodes]]  # [B, n]
            ranks = torch.tensor([self.tree.ranks[node] for node in nodes], device=tokens.device)
            tokens[:, list(nodes)] = self.matrix[parents, ranks].long()
        return Draft([self.tree] * len(tokens), tokens)

    def update(self, run: Run, draft: Draft, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """Enter the target's top tokens after every node, accepted or not."""
        if self.learn:
            self._enter(draft.tokens.flatten(), scores.logits.flatten(0, 1))

    def _enter(self, tokens: Tensor, logits: Tensor) -> None:
        best = logits.topk(self.matrix.shape[1], dim=-1).indices.to(self.matrix.dtype)
        # a token may stand in the tree several times: the last node wins, the deepest, on any
        # device
        order = torch.arange(len(tokens), device=tokens.device)
        last = torch.full((len(self.matrix),), -1, device=tokens.device)
        last.scatter_reduce_(0, tokens, order, "amax")
        rows = (last >= 0).nonzero().squeeze(1)
        self.matrix[rows] = best[last[rows]]

    def _read_prompts(self, run: Run) -> None:
        session = run.target
        for row, sequence in enumerate(run.sequences):
            ids = torch.tensor([sequence], device=session.device)
            out = session.of_tokens(full_pass(run.model, ids, **session.inputs_for([row])))
            self._enter(ids[0], out.logits[0])


def _read_matrix(file: Path) -> Tensor:
    tensors = read_state_dict(file)
    if set(tensors) != {"matrix"}:
        raise ZooError(
            f"{file} holds {', '.join(sorted(tensors)[:4])}: expected a file that "
            "TokenRecycling.save wrote"
        )
    return tensors["matrix"].to(torch.int32)
