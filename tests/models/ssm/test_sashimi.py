import pytest
import torch

import zoo
from zoo.errors import ZooError
from zoo.models.ssm.sashimi import ScalarNorm, rename_sashimi

TINY = {"d_model": 8, "n_layers": 2, "pool": [2, 4], "d_state": 8}
FORMS = [
    {},
    {"unet": True},
    {"norm": "scalar", "n_ssm": None},
    {"ff": 0, "pool": [4]},
    {"pool": []},
    {"pool": [2, 2, 2], "n_layers": 3, "unet": True},
]


def built(**settings):
    torch.manual_seed(0)
    return zoo.create_model("sashimi_backbone", **{**TINY, **settings}).double().eval()


@pytest.mark.parametrize("form", FORMS)
def test_steps_equal_the_convolution(form):
    model = built(**form)
    x = torch.randn(3, 32, 8, dtype=torch.float64)
    with torch.no_grad():
        whole = model(x)
        state = model.begin(3)
        steps = torch.stack([model.step(now, state) for now in x.unbind(1)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", FORMS[:2])
def test_no_sample_sees_what_follows(form):
    model = built(**form)
    x = torch.randn(1, 32, 8, dtype=torch.float64, requires_grad=True)
    for place in (0, 7, 13):
        (gradient,) = torch.autograd.grad(model(x)[:, place].square().sum(), x)
        seen = gradient.abs().amax((0, 2)) > 1e-12 * gradient.abs().max()
        assert seen.tolist() == [True] * (place + 1) + [False] * (31 - place)


def test_both_ways_has_no_steps():
    with pytest.raises(ZooError, match="it sees the end"):
        built(bidirectional=True).begin(1)


def test_lengths_are_multiples_of_the_pools():
    with pytest.raises(ZooError, match=r"has 20 samples, expected a multiple of 8"):
        built()(torch.zeros(1, 20, 8, dtype=torch.float64))
    with pytest.raises(ZooError, match="norm is 'batch', expected layer or scalar"):
        built(norm="batch")


def test_names_of_the_authors():
    """Convolutions of width 1, weight norms and the modular code's names."""
    model = zoo.create_model("sashimi", **TINY, vocab_size=16, norm="scalar")
    theirs = {}
    for key, value in model.state_dict().items():
        if key.startswith(("encoder.", "decoder.")):
            where, name = key.split(".")
            middle = ".0.output_transform." if where == "decoder" else ".0."
            theirs[where + middle + name] = value
            continue
        name = key.replace(".norm.m", ".norm.norm.m").replace(".norm.s", ".norm.norm.s")
        if name.endswith(".linear.weight"):
            norm = value.norm(dim=1)[:, None, None]
            theirs[f"{name}_g"], theirs[f"{name}_v"] = norm, 3 * value[..., None]
        else:
            theirs[name] = value
    ours = rename_sashimi(theirs)
    assert ours.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(ours[key], value)


def test_one_shift_and_one_scale():
    norm = ScalarNorm()
    norm.m.data.fill_(0.5)
    norm.s.data.fill_(2.0)
    x = torch.tensor([[[1.0, 3.0]]])  # mean 2, deviation 1
    assert norm(x).tolist() == [[[-1.0, 3.0]]]
