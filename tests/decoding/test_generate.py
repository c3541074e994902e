from __future__ import annotations

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from tests.language_models import VOCAB, make_model
from zoo.decoding import Tree, generate, list_methods
from zoo.decoding.attention import NAME
from zoo.decoding.draft_model import trial_draft
from zoo.errors import ZooError
from zoo.generate.run import Target, _Printer
from zoo.models.decoding.medusa import MedusaHeads


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))


def test_a_stop_token_ends_its_sequence_alone(llama, ids) -> None:
    free = generate(llama, ids, "plain", max_new_tokens=30).new_tokens
    stop = free[0][7]
    assert stop not in free[1][:12]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    for method, options in (
        ("token_recycling", {}),
        ("spectr", {"draft": trial_draft(llama)}),
        ("speculative", {"draft": llama, "length": 7}),
    ):
        out = generate(llama, ids, method, max_new_tokens=30, stop_tokens=stop, **options)
        assert out.new_tokens == expected
        assert [sum(row) for row in out.accept_lengths] == [len(row) for row in expected]
        assert out.sequences.shape[1] == 6 + max(map(len, expected))
        assert out.sequences[0, 6 + len(expected[0]) :].eq(0).all()


def test_tokens_are_streamed_in_order_and_once(llama, ids) -> None:
    seen: list[list[int]] = [[], []]
    out = generate(
        llama,
        ids,
        "token_recycling",
        max_new_tokens=17,
        on_tokens=lambda row, tokens: seen[row].extend(tokens),
    )
    assert seen == out.new_tokens
    assert [len(row) for row in seen] == [17, 17]


def test_printed_text_keeps_its_spaces_and_waits_for_whole_characters(capsys) -> None:
    words = {"\u2581def": 0, "\u2581run": 1, "<0xC3>": 2, "<0xBC>": 3}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], byte_fallback=True))
    model.decoder = tokenizers.decoders.Sequence(
        [  # as in Llama's tokenizer: no space before the first word
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    target = Target(None, PreTrainedTokenizerFast(tokenizer_object=model))
    printer, seen = _Printer(target, "def", torch.tensor([[0]])), []
    for tokens in ([1], [2], [3, 1]):
        printer(0, tokens)
        seen.append(capsys.readouterr().out)
    assert seen == ["def run", "", "\u00fc run"]


def test_counts_agree_with_each_other(llama, ids) -> None:
    out = generate(llama, ids[:1], "draft_tree", draft=trial_draft(llama), max_new_tokens=40)
    counts = out.acceptance
    assert out.steps == len(out.accept_lengths[0])
    assert counts.accepted == sum(counts.accepted_by_depth.values())
    assert counts.accepted == sum(counts.accepted_by_rank.values())
    assert counts.wasted == counts.drafted - counts.accepted > 0
    assert all(counts.accepted_by_depth[d] <= counts.offered_by_depth[d] for d in range(1, 6))
    assert out.target_tokens == 5 + counts.drafted + out.steps
    assert out.draft_calls > out.steps


def test_one_token_prompts(llama) -> None:
    prompt = torch.tensor([[3]])
    expected = generate(llama, prompt, "plain", max_new_tokens=9).new_tokens
    reference = llama.generate(prompt, max_new_tokens=9, do_sample=False)[0, 1:].tolist()
    assert expected == [reference]
    assert generate(llama, prompt, "token_recycling", max_new_tokens=9).new_tokens == expected


def test_the_attention_can_be_a_models_own_setting(llama, ids) -> None:
    plain = llama(ids).logits
    model = make_model("llama")
    model.set_attn_implementation(NAME)
    torch.testing.assert_close(model(ids).logits, plain)


def test_a_chain_only_method_refuses_a_recurrent_target() -> None:
    with pytest.raises(
        ZooError, match="decoded by tree attention, and MambaForCausalLM is decoded by copied"
    ):
        generate(make_model("mamba"), torch.tensor([[1, 2]]), "kangaroo", adapter=None)


def test_errors_say_what_to_do(llama, ids) -> None:
    with pytest.raises(ZooError, match=r"expected one of plain, .*draft_tree"):
        generate(llama, ids, "magic")
    with pytest.raises(ZooError, match=r"'spectr'.*draft"):
        generate(llama, ids, "spectr")
    with pytest.raises(ZooError, match=r"threshold of .*'kangaroo' is 'high': expected float"):
        generate(llama, ids, "kangaroo", adapter=None, threshold="high")
    with pytest.raises(ZooError, match=r"length of .* is 2\.5: expected int"):
        generate(llama, ids, "speculative", draft=llama, length=2.5)
    with pytest.raises(ZooError, match=f"beam of .*'draft_tree' is 100, expected 1 to {VOCAB}"):
        generate(llama, ids, "draft_tree", draft=llama, beam=100)
    for prompt in ("1 2 99", "1 -2"):
        with pytest.raises(ZooError, match=f"'{prompt}' has the token .*0 to {VOCAB - 1}"):
            Target(llama, None).encode(prompt)
    with pytest.raises(ZooError, match="must be token numbers"):
        Target(llama, None).encode(f"1 {2**70}")
    with pytest.raises(ZooError, match="256 positions"):
        generate(llama, ids, max_new_tokens=252)
    with pytest.raises(ZooError, match=r"\[B, T\]"):
        generate(llama, ids[0])
    with pytest.raises(ZooError, match="one vocabulary"):
        generate(llama, ids, "spectr", draft=make_model("llama", vocab_size=VOCAB + 1025))
    with pytest.raises(ZooError, match="no verifier 'x'"):
        generate(llama, ids, verifier="x")
    with pytest.raises(ZooError, match="MedusaHeads was given, expected HydraHeads"):
        generate(llama, ids, "hydra", heads=MedusaHeads(32, VOCAB))
    with pytest.raises(ZooError, match="drawn independently"):
        generate(llama, ids, "token_recycling", verifier="k_seq", temperature=1.0)


def test_methods_are_listed() -> None:
    assert list_methods()[0] == "plain"
    assert {"medusa", "hydra", "token_recycling", "kangaroo", "spectr", "specdec_pp"} <= set(
        list_methods()
    )


def test_best_tree_is_used(llama, ids) -> None:
    tree = Tree.from_choices([[0], [1], [0, 0]])
    out = generate(llama, ids, "token_recycling", tree=tree, max_new_tokens=10)
    assert max(out.acceptance.accepted_by_depth, default=0) <= 2
