"""Beams and exact search against all texts there are; what a head promises; what is reported."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from tests.language_models import VOCAB, make_model
from zoo.data.language.chain_strings import ChainStrings
from zoo.decoding import generate
from zoo.decoding.attributes import ATTRIBUTES, find_attribute
from zoo.decoding.methods.beam import Beam
from zoo.decoding.methods.conditional_beam import ConditionalBeam, ExactMode
from zoo.errors import ZooError
from zoo.models.decoding.conditional_beam import LEAST, AttributeHead
from zoo.tasks.decoding.attribute_head import sampled

STOP, SMALL, LIMIT = 3, 6, 4


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return make_model("llama", layers=1, vocab_size=SMALL)


class Certain(AttributeHead):
    """Promises everything."""

    def log_promise(self, hidden: Tensor, missing: Tensor) -> Tensor:
        return torch.zeros(hidden.shape[:-1])


def all_texts() -> list[list[int]]:
    """Every continuation of at most four tokens that the stop token or the limit ends."""
    others = [token for token in range(SMALL) if token != STOP]
    texts = [[*text, STOP] for n in range(LIMIT) for text in itertools.product(others, repeat=n)]
    return texts + [list(text) for text in itertools.product(others, repeat=LIMIT)]


@torch.no_grad()
def log_prob(model: nn.Module, prompt: Tensor, text: list[int], temperature: float = 1.0) -> float:
    ids = torch.tensor([[*prompt.tolist(), *text]])
    said = (model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return float(said[range(len(text)), text].sum())


def best(model: nn.Module, prompt: Tensor, attribute: str | None, **options) -> tuple[list, float]:
    judged = None if attribute is None else find_attribute(attribute)
    texts = [t for t in all_texts() if judged is None or judged.holds(t, t[-1] == STOP)]
    scored = [(log_prob(model, prompt, text, **options), text) for text in texts]
    value, text = max(scored)
    return text, value


@pytest.mark.parametrize("attribute", [None, "non_empty", "length=2", "varied=1", "complete"])
def test_searches_find_the_likeliest_text_of_all(small, attribute) -> None:
    ids = torch.tensor([[1, 2, 0, 4], [0, 0, 5, 5]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    common = {"attention_mask": mask, "max_new_tokens": LIMIT, "stop_tokens": STOP}
    exact = ExactMode(attribute)
    methods: list[Beam] = [exact]
    if attribute is None:
        methods.append(Beam(SMALL**LIMIT))
    else:
        methods.append(ConditionalBeam(Certain(32, attribute), width=SMALL**LIMIT))
    truth = [best(small, row[keep], attribute) for row, keep in zip(ids, mask.bool(), strict=True)]
    for method in methods:
        out = generate(small, ids, method, **common)
        assert out.new_tokens == [text for text, _ in truth], method.name
        found = [texts[0].score for texts in method.found]
        assert found == pytest.approx([value for _, value in truth], abs=1e-4)
        assert out.report["log_prob"] == pytest.approx(sum(found) / 2)
        assert out.report.get("satisfied", 1.0) == 1
    assert generate(small, ids, exact, **common).report["proved"] == 1


def test_the_temperature_is_that_of_what_is_searched(small) -> None:
    ids = torch.tensor([[1, 2, 0, 4]])
    out = generate(
        small, ids, Beam(999), max_new_tokens=LIMIT, stop_tokens=STOP, temperature=0.3, seed=1
    )
    text, value = best(small, ids[0], None, temperature=0.3)
    assert out.new_tokens == [text] and out.report["log_prob"] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_one_text_is_the_greedy_one_and_wider_beams_are_likelier(kind: str) -> None:
    model = make_model(kind, layers=2)
    ids = torch.randint(1, VOCAB, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    common = {"attention_mask": mask, "max_new_tokens": 6, "stop_tokens": 7}
    greedy = generate(model, ids, **common)
    assert generate(model, ids, Beam(1), **common).new_tokens == greedy.new_tokens
    wide = generate(model, ids, Beam(4), **common)
    judged = generate(model, ids, ConditionalBeam(Certain(32, "length=6"), width=4), **common)
    for row, keep in enumerate(mask.bool()):
        values = [log_prob(model, ids[row][keep], o.new_tokens[row]) for o in (wide, greedy)]
        assert values[0] >= values[1] - 1e-4
    assert judged.new_tokens == wide.new_tokens or judged.report["satisfied"] == 1
    again = generate(model, ids[:1], Beam(4), max_new_tokens=6, stop_tokens=7)
    assert again.new_tokens == wide.new_tokens[:1]  # whatever else is in the batch


def test_a_promise_of_one_changes_nothing_and_a_true_one_does(small) -> None:
    ids = torch.tensor([[1, 2, 0, 4], [4, 5, 0, 1]])
    common = {"max_new_tokens": 8, "stop_tokens": ()}
    for width in (1, 2, 5):
        certain = ConditionalBeam(Certain(32, "length=8"), width=width)
        plain = generate(small, ids, Beam(width), **common)
        same = generate(small, ids, certain, **common)
        assert same.new_tokens == plain.new_tokens
        assert same.report["log_prob"] == pytest.approx(plain.report["log_prob"])
        assert same.report["tokens_read"] > plain.report["tokens_read"]

    class Against(Certain):
        """Gives up about half of all texts, by the first number of their last state."""

        def log_promise(self, hidden: Tensor, missing: Tensor) -> Tensor:
            return -50.0 * (hidden[..., 0] > 0).float()

    other = generate(small, ids, ConditionalBeam(Against(32, "length=8"), width=2), **common)
    plain = generate(small, ids, Beam(2), **common)
    assert other.new_tokens != plain.new_tokens


def test_what_no_text_has_is_reported(small) -> None:
    ids = torch.tensor([[1, 2, 0, 4]])
    head = Certain(32, "length=9")
    for method in (ConditionalBeam(head, width=9), ExactMode("length=9")):
        out = generate(small, ids, method, max_new_tokens=2, stop_tokens=STOP)
        assert out.report["satisfied"] == 0 and out.new_tokens[0]
    few = generate(small, ids, ExactMode(nodes=1), max_new_tokens=LIMIT, stop_tokens=STOP)
    assert few.report["proved"] == 0


def test_constraints_and_stop_strings_hold_inside_the_search(small) -> None:
    ids = torch.tensor([[1, 2, 0, 4]])
    common = {"max_new_tokens": LIMIT, "stop_tokens": STOP}
    for method in (Beam(40), ExactMode()):
        plain = generate(small, ids, method, min_new_tokens=3, **common).new_tokens[0]
        banned = [[token] for token in set(plain) - {STOP}]
        out = generate(small, ids, method, bad_words_ids=banned, **common).new_tokens[0]
        assert out and not {t for [t] in banned} & set(out)
        long = generate(small, ids, method, min_new_tokens=LIMIT, **common).new_tokens[0]
        assert STOP not in long[:-1] and len(long) == LIMIT


def test_attributes() -> None:
    assert not find_attribute("non_empty").holds([STOP], True)
    assert find_attribute("non_empty").holds([1], False)
    assert find_attribute("length=2").holds([1, 2, STOP], True)
    assert find_attribute("length=2").holds([1, 2], False)
    assert not find_attribute("length=2").possible([1, 2, 4])
    assert find_attribute("varied").number == 4
    assert not find_attribute("varied=2").holds([1, 2, 5, 1, 2], False)
    assert find_attribute("varied=2").holds([1, 1, 2], False)
    assert not find_attribute("complete").holds([1, 2], False)
    assert [str(find_attribute(t)) for t in ("complete", "length=7")] == ["complete", "length=7"]
    for text in ("empty", "length", "length=0", "complete=3", "varied=x"):
        with pytest.raises(ZooError, match="attribute"):
            find_attribute(text)
    assert set(ATTRIBUTES) == {"non_empty", "length", "varied", "complete"}


def test_the_heads_promise_is_a_probability_that_is_not_nothing() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(5, 8)
    head = AttributeHead(8)
    logits = head.net[2](torch.nn.functional.gelu(head.net[0](hidden)))[:, 0]
    missing = torch.zeros(5, dtype=torch.long)
    assert torch.allclose(head.log_promise(hidden, missing).exp(), logits.sigmoid(), atol=1e-6)
    head.net[2].bias.data.fill_(-99.0)
    assert torch.allclose(head.log_promise(hidden, missing).exp(), torch.full((5,), LEAST))
    lengths = AttributeHead(8, "length", horizon=4)
    probs = lengths(hidden).softmax(-1)
    places = torch.tensor([-1, 0, 3, 4, 9])
    promised = lengths.log_promise(hidden, places).exp()
    expected = [
        LEAST,
        *(float(probs[row, place]) for row, place in ((1, 0), (2, 3), (3, 4), (4, 4))),
    ]
    assert promised.tolist() == pytest.approx(expected, rel=1e-4)
    goal = torch.tensor([0, 1, 2, 7, 4])
    by_hand = [-math.log(float(probs[row, min(int(g), 4)])) for row, g in enumerate(goal)]
    assert lengths.loss(hidden[None], goal[None])[0].tolist() == pytest.approx(by_hand, rel=1e-4)


def test_heads_for_something_else_are_refused(small, tmp_path) -> None:
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ZooError, match="trained for the attribute 'non_empty'"):
        generate(small, ids, ConditionalBeam(AttributeHead(32), "length=3"), max_new_tokens=2)
    with pytest.raises(ZooError, match="width"):
        Beam(0)
    with pytest.raises(ZooError, match="nodes"):
        ExactMode(nodes=0)


def test_samples_are_labelled_by_how_they_end(small) -> None:
    prompts = torch.tensor([[1, 2]] * 16)
    torch.manual_seed(0)
    hidden, goal, counts = sampled(small, prompts, find_attribute("complete"), False, 5, [STOP])
    torch.manual_seed(0)
    again, lengths, _ = sampled(small, prompts, find_attribute("length=1"), True, 5, [STOP])
    assert torch.equal(hidden, again) and hidden.shape == (16, goal.shape[1], 32)
    for row in range(16):
        prefixes = int(counts[row].sum())
        assert counts[row, :prefixes].all()
        whole = int(lengths[row, 0])
        assert goal[row].unique().numel() == 1
        # a text that was ended has a prefix for each of its tokens, the empty one among them
        assert prefixes == whole + int(goal[row, 0])
        assert lengths[row, :prefixes].tolist() == [whole - place for place in range(prefixes)]
    assert 0 < goal[:, 0].sum() < 16


def test_strings_follow_their_chain() -> None:
    data = ChainStrings(symbols=4, string_length=5, empty_share=0.25)
    texts = data.strings(4000, 0)
    empty = texts[:, 1] == data.end
    assert abs(float(empty.float().mean()) - 0.25) < 0.03
    assert (texts[:, 0] == data.begin).all() and (texts[~empty, -1] == data.end).all()
    assert (texts[empty, 2:] == 0).all()
    full = texts[~empty, 1:-1] - 1
    counts = torch.zeros(4, 4).index_put_(
        (full[:, :-1].flatten(), full[:, 1:].flatten()), torch.tensor(1.0), accumulate=True
    )
    assert torch.allclose(counts / counts.sum(1, keepdim=True), data.chain(), atol=0.04)
    ids, mask = data.load("val")[0]
    assert torch.equal(mask, (ids > 0).float())
    with pytest.raises(ZooError, match="empty share"):
        ChainStrings(empty_share=1.0)
