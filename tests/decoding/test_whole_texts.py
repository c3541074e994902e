"""Methods that search before they write: what they found is what is written."""

import pytest
import torch

from tests.language_models import make_model
from zoo.decoding import generate
from zoo.decoding.methods.beam import Beam
from zoo.decoding.methods.conditional_beam import ExactMode
from zoo.decoding.methods.pg_td import PGTD
from zoo.decoding.methods.superposed import Superposed
from zoo.decoding.whole_texts import WholeTextMethod

METHODS = {
    "beam": lambda: Beam(width=3),
    "exact_mode": lambda: ExactMode(attribute="length=3", nodes=200),
    "pg_td": lambda: PGTD(reward=lambda tokens: sum(tokens) % 7 / 7, rollouts=4),
    "superposed": lambda: Superposed(k=2, tau=1.0),
}


def test_all_are_tried():
    names = {kind.name for kind in _below(WholeTextMethod)}
    assert names == {*METHODS, "conditional_beam"}  # which needs a trained head


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("length", [1, 4])
@torch.no_grad()
def test_the_best_that_was_found_is_written(name, length):
    """From the first token on, also after a prompt of one token, behind which nothing is read."""
    model, method = make_model("llama"), METHODS[name]()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])[:, :length]
    out = generate(model, ids, method, max_new_tokens=3, stop_tokens=())
    assert out.new_tokens == [found[0].tokens for found in method.found]
    again = generate(model, ids, METHODS[name](), max_new_tokens=3, stop_tokens=(), temperature=0.0)
    assert again.new_tokens == out.new_tokens
    for row in range(2):
        alone = generate(
            model, ids[row : row + 1], METHODS[name](), max_new_tokens=3, stop_tokens=()
        )
        assert alone.new_tokens == [out.new_tokens[row]]


def _below(kind):
    for other in kind.__subclasses__():
        yield from (other, *_below(other))
