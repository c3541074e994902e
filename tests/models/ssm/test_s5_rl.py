"""Policies with a memory: single steps, packed episodes, the baseline's cell, flax arrays."""

import pytest
import torch
from torch.nn import functional as F

import zoo
from zoo.errors import ZooError
from zoo.models.ssm.s5_rl import ActorCritic, GRUCore

TINY = {"d_model": 8, "d_hidden": 8, "ssm_size": 8, "n_layers": 2}
FORMS = {
    "s5": {},
    "norms": {"do_norm": True, "prenorm": True, "do_gtrxl_norm": True},
    "all modes": {"conj_sym": False, "discretization": "bilinear", "activation": "half_glu2"},
    "not reset": {"reset": False},
    "gru": {"core": "gru"},
    "none": {"core": "none"},
}


def policy(**settings):
    torch.manual_seed(0)
    return ActorCritic(**TINY | settings)


def experience(batch=3, length=12):
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(batch, length, 9, generator=generator)
    return obs, torch.rand(batch, length, generator=generator) < 0.3


@pytest.mark.parametrize("form", FORMS)
def test_steps_are_the_scan(form):
    model, (obs, done) = policy(**FORMS[form]), experience()
    memory = model(torch.randn(3, 5, 9)).memory
    whole = model(obs, done, memory)
    state = model.begin(3, memory)
    steps = [model.step(obs[:, t], done[:, t], state) for t in range(obs.shape[1])]
    torch.testing.assert_close(torch.stack([s.actor for s in steps], 1), whole.actor)
    torch.testing.assert_close(torch.stack([s.value for s in steps], 1), whole.value)
    torch.testing.assert_close(state.memory, whole.memory)
    torch.testing.assert_close(steps[-1].memory, whole.memory)
    fresh = model(obs, done)  # as after a reset
    torch.testing.assert_close(fresh.actor, model(obs, done, model.begin(3).memory).actor)


@pytest.mark.parametrize("form", ["s5", "gru"])
def test_packed_episodes_are_each_alone(form):
    model, (obs, done) = policy(**FORMS[form]), experience(1)
    done[:, :] = False
    done[:, [4, 9]] = True
    gradients = []
    for parts in ([(obs, done)], [(part, None) for part in obs.split([4, 5, 3], 1)]):
        actor = torch.cat([model(*part).actor for part in parts], 1)
        gradients.append((actor, torch.autograd.grad(actor.square().sum(), model.encoder_0.weight)))
    torch.testing.assert_close(*gradients)
    other = model(obs.clone().index_fill_(1, torch.arange(4), 3.0), done).actor
    torch.testing.assert_close(other[:, 4:], gradients[0][0][:, 4:])
    assert not torch.allclose(policy(**FORMS[form], reset=False)(obs, done).actor, other)


def test_the_baselines_cell():
    """Against PyTorch's, whose other recurrent biases are zero and whose update gate is 1 - z."""
    core = GRUCore(6)
    torch.nn.init.normal_(core.bias)
    cell = torch.nn.GRU(6, 6, batch_first=True)
    with torch.no_grad():
        cell.weight_ih_l0.copy_(core.input.weight)
        cell.bias_ih_l0.copy_(core.input.bias)
        cell.weight_hh_l0.copy_(core.recurrent.weight)
        cell.bias_hh_l0.copy_(F.pad(core.bias, (12, 0)))
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(core(x)[0], cell(x)[0])
    torch.testing.assert_close(core(x)[1][0], cell(x)[1][0])


def test_arrays_of_both_networks_load():
    for model in (policy(), policy(core="gru")):
        own, flax = model.state_dict(), {}
        for key, value in own.items():
            if key.startswith("s5.") and model.core == "gru":
                continue
            name, _, kind = key.rpartition(".")
            if model.core == "gru":
                name = f"Dense_{[n for n, _ in model.named_children() if n != 's5'].index(name)}"
            name = name.replace("layers.", "layers_").replace(".", "/")
            matrix = kind == "weight"
            kind = {"weight": "kernel"}.get(kind, kind)
            flax[f"params/{name}/{kind}"] = value.T if matrix else value
        if model.core == "gru":
            cell = "params/ScannedRNN_0/GRUCell_0"
            for i, gate in enumerate("rzn"):
                flax[f"{cell}/i{gate}/kernel"] = own["s5.input.weight"][8 * i : 8 * i + 8].T
                flax[f"{cell}/i{gate}/bias"] = own["s5.input.bias"][8 * i : 8 * i + 8]
                flax[f"{cell}/h{gate}/kernel"] = own["s5.recurrent.weight"][8 * i : 8 * i + 8].T
            flax[f"{cell}/hn/bias"] = own["s5.bias"]
        loaded = model.remap_state_dict(flax)
        assert loaded.keys() == own.keys()
        assert all(torch.equal(loaded[key], value) for key, value in own.items())


def test_distributions_and_the_start():
    torch.manual_seed(0)
    model = zoo.create_model("s5_rl_pendulum", **TINY)
    with torch.no_grad():
        model.log_std.fill_(0.5)
    drawn = model.policy(torch.tensor([[1.0], [-2.0]]))
    expected = torch.distributions.Normal(torch.tensor([1.0, -2.0]), torch.tensor(0.5).exp())
    at = torch.tensor([0.3, -1.0])
    torch.testing.assert_close(drawn.log_prob(at[:, None]), expected.log_prob(at))
    logits = policy()(torch.randn(2, 5, 9)).actor
    assert float(logits.abs().max()) < 0.1, "the first policy prefers nothing"
    torch.testing.assert_close(policy().policy(logits).probs.sum(-1), torch.ones(2, 5))
    # orthogonal columns of the layers' gains
    layer = policy().action_body_0.weight
    torch.testing.assert_close(layer @ layer.T, 4 * torch.eye(8))


def test_wrong_settings():
    with pytest.raises(ZooError, match="core is one of s5, gru, none, not 'lstm'"):
        policy(core="lstm")
    with pytest.raises(ZooError, match="a policy does not see the future"):
        policy(bidirectional=True)
    obs, done = experience()
    with pytest.raises(ZooError, match=r"done \[B, L\], got \[3, 12, 9\] and \[3, 11\]"):
        policy()(obs, done[:, 1:])
