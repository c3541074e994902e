"""Hidden transfer: pseudo states by another way, what they leave alone, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.language_models import VOCAB, WIDTH, make_model
from zoo.decoding import generate
from zoo.decoding.heads import head_for, save_head
from zoo.decoding.methods.hidden_transfer import HiddenTransferDecoding
from zoo.errors import ZooError
from zoo.models.decoding.hidden_transfer import HiddenTransfer, default_layers
from zoo.models.language._split_decoder import SplitDecoder


def wild(layers: list[int], bias: bool = True) -> HiddenTransfer:
    head = HiddenTransfer(WIDTH, layers, bias)
    generator = torch.Generator().manual_seed(0)
    for p in head.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return head


def by_replacing(target: nn.Module, head: HiddenTransfer, text: Tensor) -> Tensor:
    """What is said behind a text ``[T]``, ``[K, V]``: the whole model reads K more tokens, whose
    states are put in their place before the layer where they join, and seen by nobody below it."""
    length = len(text)
    ids = torch.cat([text, text.new_zeros(head.slots)])[None]
    layers = SplitDecoder(target).layers

    def at(depth: int):
        def before(module: nn.Module, args: tuple, kwargs: dict):
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            for slot, layer in enumerate(head.layers):
                if layer == depth:
                    hidden[:, length + slot] = head.transfer[slot](hidden[:, length - 1])
            return (
                ((hidden, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": hidden})
            )

        return before

    hooks = [
        layer.register_forward_pre_hook(at(depth), with_kwargs=True)
        for depth, layer in enumerate(layers)
    ]
    try:
        # a causal mask: slots stand in order, and one that has not joined is seen by none that has
        logits = target(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits[0, length:]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("layers", [[1, 1, 1], [1, 2]])
@torch.no_grad()
def test_pseudo_states_are_those_of_a_pass_with_replaced_states(kind: str, layers: list) -> None:
    target, head = make_model(kind), wild(layers)
    ids = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    seen = []
    said = head(target, ids, torch.tensor([[8, 4], [2, 6]]), lambda *states: seen.append(states))
    torch.testing.assert_close(said.logits, target(input_ids=ids).logits, atol=1e-3, rtol=1e-4)
    for row, cuts in enumerate([[8, 4], [2, 6]]):
        for place, cut in enumerate(cuts):
            expected = by_replacing(target, head, ids[row, : cut + 1])
            torch.testing.assert_close(said.slots[row, place], expected, atol=1e-3, rtol=1e-4)
    assert [depth for depth, _, _ in seen] == [2, 3]
    assert seen[-1][1].shape == (2, len(layers), 2, WIDTH) and seen[0][2].shape == (2, 12, WIDTH)


def test_gradients_reach_the_maps_alone() -> None:
    target, head = make_model("llama").requires_grad_(False), wild([1, 2, 3])
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    said = head(target, ids, torch.tensor([[3, 5], [2, 4]]))
    assert not said.logits.requires_grad
    said.slots.square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in head.parameters())
    first = torch.autograd.grad(head(target, ids, torch.tensor([[3], [2]])).slots[:, :, 0].sum(),
                                head.transfer[2].weight, allow_unused=True)[0]  # fmt: skip
    assert first is None or float(first.abs().sum()) == 0  # an earlier slot sees no later one


def test_real_tokens_do_not_see_pseudo_states_and_the_draft_is_what_the_model_says() -> None:
    target, head = make_model("llama"), wild([1, 1, 2])
    text = torch.tensor([[1, 2, 3, 4, 5]])
    method = HiddenTransferDecoding(head, HiddenTransferDecoding.trial_trees())
    steps = []

    def look(run, draft, scores, verdicts) -> None:
        layer = run.target.cache.layers[-1]
        lower = run.target.cache.layers[0]
        steps.append((draft, scores.logits.clone(), list(run.sequences[0]), layer.length))
        assert lower.length < layer.length  # pseudo states are in the upper layers only

    out = generate(target, text, method, max_new_tokens=20, on_step=look)
    assert out.new_tokens == generate(target, text, max_new_tokens=20).new_tokens
    for draft, logits, written, _ in steps:
        for node, depth in enumerate(draft.trees[0].depths):
            if len(written) + depth > 25:  # behind the end of the text nothing is asked for
                continue
            path = [int(draft.tokens[0, n]) for n in draft.trees[0].path(node)]
            alone = target(input_ids=torch.tensor([[*written[:-1], *path]])).logits[0, -1]
            torch.testing.assert_close(logits[0, node], alone, atol=1e-3, rtol=1e-4)
    # the tokens of depth 1 are what slot 0 says behind the node that was accepted last
    draft, _, written, _ = steps[-1]
    said = head(target, torch.tensor([written[:-1]]), torch.tensor([[len(written) - 2]])).slots
    level = [node for node, depth in enumerate(draft.trees[0].depths) if depth == 1]
    ranks = [draft.trees[0].ranks[node] for node in level]
    best = said[0, 0, 0].topk(max(ranks) + 1).indices
    assert draft.tokens[0, level].tolist() == best[ranks].tolist()


def test_saved_maps_are_read_again(tmp_path) -> None:
    target, head = make_model("llama"), wild([1, 2])
    head.config["accuracy"] = [[0.5, 0.1], [0.25, 0.125]]
    save_head(head, tmp_path)
    read = head_for((HiddenTransfer,), HiddenTransfer.for_target, tmp_path, target)
    assert read.config == head.config and sorted(read.state_dict()) == sorted(head.state_dict())
    assert {"transfer.0.weight", "transfer.1.weight"} < head.state_dict().keys()
    fresh = HiddenTransfer.for_target(target)
    assert torch.equal(fresh.transfer[1].weight, torch.eye(WIDTH)) and fresh.layers == [2, 2, 2]
    assert default_layers(32) == [24, 25, 26] and default_layers(1, 1) == [1]


def test_what_does_not_fit_is_said() -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ZooError, match="do not fit a target of 32 numbers and 3 layers"):
        generate(make_model("llama"), ids, "hidden_transfer", heads=HiddenTransfer(WIDTH, [4]))
    with pytest.raises(ZooError, match=r"layers is \[2, 1\]: expected"):
        HiddenTransfer(WIDTH, [2, 1])
    with pytest.raises(ZooError, match="needs a target that is decoded by tree attention"):
        generate(make_model("mamba"), ids, "hidden_transfer", heads=HiddenTransfer(WIDTH, [1]))
