"""Greedy text is the model's own, token by token, whatever the method, the model and the tree."""

from __future__ import annotations

import pytest
import torch

from tests.language_models import VOCAB, make_model, trials
from tests.tiers import tiers
from zoo.decoding import Method, Sampler, Tree, generate
from zoo.decoding.draft_model import trial_draft
from zoo.decoding.method import Run
from zoo.decoding.verify import Draft

NEW = 12
MODELS = ("llama", "qwen2", "mistral", "gpt2", "mamba")


def plain_greedy(model, prompt: torch.Tensor, count: int = NEW) -> list[int]:
    out = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", tiers(MODELS, slow={"qwen2", "mistral", "gpt2"}))
def test_every_method_gives_the_models_own_greedy_text(kind: str) -> None:
    model = make_model(kind)
    torch.manual_seed(3)
    ids = torch.randint(1, VOCAB, (6, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left
    mask[2, 6:] = 0  # padded on the right
    mask[3, :8] = 0  # one token
    expected = [plain_greedy(model, row[keep]) for row, keep in zip(ids, mask.bool(), strict=True)]
    accepted = 0
    for name, method in trials(model):
        out = generate(model, ids, method, attention_mask=mask, max_new_tokens=NEW)
        assert out.new_tokens == expected, name
        if kind == "llama":
            single = generate(model, ids[:1], method, max_new_tokens=NEW)
            assert single.new_tokens == expected[:1], name
            assert single.sequences[0].tolist() == ids[0].tolist() + expected[0]
        accepted += out.acceptance.accepted
    assert accepted > 100  # otherwise nothing was tested but plain decoding


class RandomTrees(Method):
    """Trees of random shape whose tokens are partly the true continuation."""

    name = "random_trees"

    def __init__(self, truth: list[list[int]], prompts: list[int], seed: int) -> None:
        self.truth, self.prompts = truth, prompts
        self.generator = torch.Generator().manual_seed(seed)

    def _int(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.generator))

    def propose(self, run: Run) -> Draft:
        trees, tokens = [], []
        for sequence in run.sequences:
            size = 1 + self._int(64)
            trees.append(Tree([-1, *(self._int(node) for node in range(1, size))]))
            row = next(
                r
                for r, (text, start) in enumerate(zip(self.truth, self.prompts, strict=True))
                if sequence[start:] == text[: len(sequence) - start]
            )
            position = len(sequence) - self.prompts[row]
            after = self.truth[row][position:] + [0] * 64
            tree = trees[-1]
            tokens.append(
                [sequence[-1]]
                + [
                    after[tree.depths[n] - 1] if self._int(2) else self._int(VOCAB)
                    for n in range(1, size)
                ]
            )
        width = max(map(len, trees))
        padded = [row + [0] * (width - len(row)) for row in tokens]
        return Draft(trees, torch.tensor(padded))


@pytest.mark.parametrize("kind", MODELS)
def test_random_trees_change_nothing(kind: str) -> None:
    model = make_model(kind)
    for seed in range(4 if kind == "llama" else 1):
        torch.manual_seed(seed)
        ids = torch.randint(1, VOCAB, (3, 5))
        expected = [plain_greedy(model, row, 24) for row in ids]
        method = RandomTrees(expected, [5, 5, 5], seed)
        out = generate(model, ids, method, max_new_tokens=24)
        assert out.new_tokens == expected
        assert out.acceptance.accepted > 12


def test_models_that_mix_attention_and_recurrent_layers() -> None:
    model = make_model("jamba")
    ids = torch.randint(1, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [0, 0] + [1] * 4])
    expected = [plain_greedy(model, ids[0]), plain_greedy(model, ids[1, 2:])]
    for method, options in (("plain", {}), ("speculative", {"draft": trial_draft(model)})):
        out = generate(model, ids, method, attention_mask=mask, max_new_tokens=NEW, **options)
        assert out.new_tokens == expected


def test_a_perfect_chain_of_four_gives_five_tokens_per_step(llama) -> None:
    ids = torch.randint(1, VOCAB, (1, 5), generator=torch.Generator().manual_seed(0))
    out = generate(llama, ids, "speculative", max_new_tokens=40, draft=llama, length=4)
    assert out.accept_lengths == [[5] * 8]
    assert out.tokens_per_step == 5
    assert out.acceptance.wasted == 0


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_models_that_keep_their_attention_get_a_mask(implementation: str) -> None:
    model = make_model("mistral")
    model.set_attn_implementation(implementation)
    model._supports_attention_backend = False
    ids = torch.randint(1, VOCAB, (1, 8), generator=torch.Generator().manual_seed(0))
    out = generate(model, ids, "token_recycling", max_new_tokens=NEW)
    assert out.new_tokens == [plain_greedy(model, ids[0])]
    assert out.acceptance.accepted > 0


def test_bfloat16_target_runs(llama) -> None:
    ids = torch.randint(1, VOCAB, (1, 8), generator=torch.Generator().manual_seed(0))
    model = make_model("llama").bfloat16()
    out = generate(model, ids, "draft_tree", draft=llama, max_new_tokens=8)
    assert len(out.new_tokens[0]) == 8
    assert llama.dtype == torch.float32  # the caller's own model stays as it is


def test_the_models_own_attention_is_put_back(llama) -> None:
    before = llama.config._attn_implementation
    generate(llama, torch.tensor([[1, 2, 3]]), "token_recycling", max_new_tokens=4)
    assert llama.config._attn_implementation == before


def test_sampling_is_repeatable_and_follows_its_seed(llama) -> None:
    ids = torch.tensor([[1, 2, 3]])
    options = dict(method="token_recycling", temperature=1.0, max_new_tokens=20)
    first, again, other = (generate(llama, ids, seed=s, **options) for s in (1, 1, 2))
    assert first.new_tokens == again.new_tokens != other.new_tokens
    assert Sampler(0.0).greedy
