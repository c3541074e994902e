"""PPD's prompt tokens: their authors' folders, cuts inside a text, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.language_models import VOCAB, WIDTH, make_model
from zoo.decoding import generate, make_method
from zoo.decoding.heads import head_for, save_head
from zoo.errors import ZooError
from zoo.models.decoding._virtual_tokens import virtual_tokens
from zoo.models.decoding.ppd import PromptTokens

FORM = {
    "num_special_tokens": 2,
    "virtual_tokens_per_special_token": 2,
    "vt_attention_type": "ensemble",
    "aggregation_type": "weighted",
    "use_custom_lm_head": True,
}


def peft_folder(folder: Path, head: PromptTokens) -> Path:
    """What the authors' ``save_pretrained`` writes."""
    own = head.state_dict()
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, **FORM}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"prompt_embeddings": own["prompt_embeddings"]}, folder / "adapter_model.bin")
    for name in ("weighting_layers", "custom_lm_head"):
        part = {k.removeprefix(f"{name}."): t for k, t in own.items() if k.startswith(name)}
        torch.save(part, folder / f"{name}.pt")
    return folder


def read(source, target) -> PromptTokens:
    return head_for((PromptTokens,), PromptTokens.for_target, source, target)


def test_the_authors_folder_and_ours(tmp_path) -> None:
    target = make_model("llama")
    head = PromptTokens(WIDTH, VOCAB, **FORM)
    torch.nn.init.normal_(head.weighting_layers[1].weight)
    (tmp_path / "theirs").mkdir()
    theirs = peft_folder(tmp_path / "theirs", head)
    before = (theirs / "adapter_config.json").read_text()
    head.config["accuracy"] = [[0.5, 0.1], [0.25, 0.125]]
    save_head(head, tmp_path / "ours")
    for source in (theirs, tmp_path / "ours"):
        loaded = read(source, target)
        assert loaded.state_dict().keys() == head.state_dict().keys()
        for key, t in head.state_dict().items():
            assert torch.equal(t, loaded.state_dict()[key]), key
    assert (theirs / "adapter_config.json").read_text() == before
    assert loaded.config == head.config
    assert read(theirs, target).config == head.config | {"accuracy": None}
    (theirs / "second.bin").write_bytes(b"")
    with pytest.raises(ZooError, match="2 files of an adapter's weights"):
        read(theirs, target)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("attention", ["decoder", "encoder", "ensemble"])
def test_behind_a_cut_is_behind_the_text_that_ends_there(kind: str, attention: str) -> None:
    target = make_model(kind).requires_grad_(False)
    head = PromptTokens(
        WIDTH, VOCAB, 3, 2, attention, "adaptive_weighted", num_exits=2, use_custom_lm_head=True
    )
    torch.nn.init.normal_(head.prompt_embeddings)
    ids = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    said = head.behind(target, ids, torch.tensor([[11, 4], [2, 9]]))
    assert not said.logits.requires_grad and said.slots.requires_grad
    torch.testing.assert_close(said.logits, target(input_ids=ids).logits, atol=1e-3, rtol=1e-4)
    for row, cuts in enumerate([[11, 4], [2, 9]]):
        for place, cut in enumerate(cuts):
            whole = head(target, ids[row : row + 1, : cut + 1])
            torch.testing.assert_close(
                said.slots[row, place], whole[0, cut + 1 :], atol=1e-3, rtol=1e-4
            )


def test_virtual_tokens_are_vectors_for_a_while() -> None:
    target = make_model("llama")
    embed = target.get_input_embeddings()
    rows = torch.randn(2, WIDTH, requires_grad=True)
    ids = torch.tensor([[1, VOCAB + 1, 2, VOCAB]])
    with virtual_tokens(target, VOCAB, rows):
        out = embed(ids)
        assert torch.equal(embed(torch.tensor([[3]])), embed.weight[3][None, None])
        assert torch.equal(embed(input=ids), out)
    assert torch.equal(out[0, [1, 3]], rows[[1, 0]]) and torch.equal(out[0, 0], embed.weight[1])
    assert not embed._forward_hooks and not embed._forward_pre_hooks
    with pytest.raises(IndexError):
        embed(ids)


def test_what_does_not_fit_is_said() -> None:
    target = make_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ZooError, match="for a vocabulary of 7, the target has 50"):
        generate(target, ids, "ppd", heads=PromptTokens(WIDTH, 7))
    apart = PromptTokens(WIDTH, VOCAB, 2, 2, "encoder")
    with pytest.raises(ZooError, match="do not fit into a tree"):
        generate(target, ids, "ppd", heads=apart)
    with pytest.raises(ZooError, match="vt_attention_type is 'x'"):
        PromptTokens(WIDTH, VOCAB, vt_attention_type="x")
    with pytest.raises(ZooError, match="expected 1 or more of each"):
        PromptTokens(WIDTH, VOCAB, num_special_tokens=0)


def test_trees_follow_measured_accuracies_and_the_last_node() -> None:
    target = make_model("llama")
    head = PromptTokens(WIDTH, VOCAB)
    head.config["accuracy"] = [[0.4, 0.2, 0.1], [0.3, 0.1, 0.1], [0.2, 0.1, 0.1]]
    method = make_method("ppd", heads=head, budget=20)
    sizes, states = [], []

    def look(run, draft, scores, verdicts) -> None:
        sizes.append(len(draft.trees[0]))
        chosen, path = method._chosen[0], verdicts[0].path
        states.append((len(method._guesses[0]), chosen.slots[path[-1] if path else 0]))

    out = generate(target, torch.tensor([[1, 2, 3, 4]]), method, max_new_tokens=24, on_step=look)
    plain = generate(target, torch.tensor([[1, 2, 3, 4]]), max_new_tokens=24)
    assert out.new_tokens == plain.new_tokens
    assert sizes[0] == 1 and states[0][0] == 0  # nothing is guessed before the first pass
    for (_, left), (state, _), size in zip(states, states[1:], sizes[1:], strict=False):
        assert state == left and size == len(method.states[state].tree)
    assert all(slotted.size <= 20 for slotted in method.states.values())
    fastest = make_method("ppd", heads=head)
    generate(target, torch.tensor([[1, 2, 3, 4]]), fastest, max_new_tokens=4)
    assert fastest.budget >= 2 and set(fastest.states) == {1, 2, 3}
