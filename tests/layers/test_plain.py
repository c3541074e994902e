"""Layers that a fused path would bypass are called: hooks and adapters take effect."""

import copy

import pytest
import torch
from torch import nn

from zoo.layers.cache import RecurrentState
from zoo.layers.causal_attention import SelfAttention
from zoo.layers.mamba import Mamba
from zoo.layers.mamba2 import Mamba2
from zoo.layers.plain import is_plain
from zoo.layers.short_conv import make_short_conv, short_conv
from zoo.models.vision.plainmamba import PlainMamba
from zoo.models.vision.token_pruning import PrunedPlainMamba, PrunedVim


class Wrapped(nn.Module):
    """What an adapter does: a module around the one that holds the weight."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def wrap(model):
    """The same network, every linear layer and convolution inside another module."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if type(part) in (nn.Linear, nn.Conv1d, nn.Conv2d) and not isinstance(module, Wrapped):
                setattr(module, name, Wrapped(part))
    return model


def same_wrapped(model, *inputs, call=lambda model, *inputs: model(*inputs)):
    """Output and all gradients do not change if everything has to be called."""
    model.zero_grad()
    other = wrap(model)
    mine, theirs = call(model, *inputs), call(other, *inputs)
    torch.testing.assert_close(theirs, mine)
    mine.square().sum().backward()
    theirs.square().sum().backward()
    gradients = [p.grad for p in other.parameters()]
    assert all(g is not None for g in gradients)
    torch.testing.assert_close(gradients, [p.grad for p in model.parameters()])


def test_plain():
    linear = nn.Linear(2, 2)
    assert is_plain(linear, nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1))
    handle = linear.register_forward_hook(lambda *_: None)
    assert not is_plain(nn.Conv2d(1, 1, 1), linear)
    handle.remove()
    assert is_plain(linear)
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: None)
    assert not is_plain(linear)
    handle.remove()
    linear.forward = lambda x: x
    assert not is_plain(linear) and not is_plain(Wrapped(nn.Linear(2, 2)))
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert not is_plain(parametrised)


@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_mamba(kind):
    torch.manual_seed(0)
    model = Mamba(6, d_state=3, bias=True, bimamba_type=kind, if_divide_out=True).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    same_wrapped(model, x)
    packed = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2]], dtype=torch.int32)
    same_wrapped(model, x, call=lambda model, x: model(x, seq_idx=packed))


def test_mamba_goes_on_where_a_state_stands():
    torch.manual_seed(0)
    model = Mamba(6, d_state=3).double()
    other = wrap(model)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        whole = model(x)
        state = model.allocate_state(2)
        parts = [other(x[:, :4], state), *(other(x[:, i : i + 1], state) for i in (4, 5, 6))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


class Quantised(torch.Tensor):
    """A weight as torchao stores it: of a class that knows how to be multiplied, nothing else."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.whole = weight

    def __tensor_flatten__(self):
        return ["whole"], None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            return function(args[0], args[1].whole, *args[2:], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].whole)
        raise NotImplementedError(f"a quantised weight knows no {function}")


@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_weights_of_a_class_of_their_own(kind):
    torch.manual_seed(0)
    model = Mamba(6, d_state=3, bimamba_type=kind, if_divide_out=True)
    x = torch.randn(2, 7, 6)
    with torch.no_grad():
        whole = model(x)
        for part in model.modules():
            if isinstance(part, nn.Linear):
                part.weight = nn.Parameter(Quantised(part.weight.detach()), requires_grad=False)
                assert not is_plain(part)
        torch.testing.assert_close(model(x), whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, settings",
    [
        (Mamba, {}),
        (Mamba2, {"d_state": 8, "headdim": 8}),
        (SelfAttention, {"num_heads": 2, "d_conv": 4, "causal": True}),
    ],
)
def test_a_quantised_layer_goes_on_where_a_state_stands(kind, settings):
    torch.manual_seed(0)
    layer, x = kind(16, **settings), torch.randn(2, 7, 16)
    quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear})
    with torch.no_grad():
        state = quantised.allocate_state(2)
        parts = [quantised(part, state) for part in x.split([4, 1, 1, 1], dim=1)]
        whole = layer(x)
        assert (torch.cat(parts, 1) - whole).norm() < 0.1 * whole.norm()


def test_convolution_of_packed_sequences_with_padding():
    torch.manual_seed(0)
    conv = make_short_conv(3, 4).double()
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    packed = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1]], dtype=torch.int32)
    mine = short_conv(x, conv, seq_idx=packed)
    torch.testing.assert_close(short_conv(x, Wrapped(conv), seq_idx=packed), mine)
    state = RecurrentState(torch.randn(1, 3, 4, dtype=torch.float64), torch.zeros(1))
    other = state.clone()
    mine = short_conv(x, conv, None, state=state)
    torch.testing.assert_close(short_conv(x, Wrapped(conv), None, state=other), mine)
    torch.testing.assert_close(other.conv, state.conv)


IMAGES = {"img_size": 32, "patch_size": 8, "num_classes": 3}


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("pruned", [True, False])
def test_plainmamba(official, pruned):
    torch.manual_seed(0)
    arguments = {**IMAGES, "embed_dims": 12, "num_layers": 2, "strict_official": official}
    arguments |= {"prune_after": (1,)} if pruned else {}
    model = (PrunedPlainMamba if pruned else PlainMamba)(**arguments)
    for layer in model.layers:
        nn.init.normal_(layer.mamba.dt_proj.bias)
    same_wrapped(model.double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize("gap", ["decay", "hold", "close"])
def test_pruned_vim(gap):
    torch.manual_seed(0)
    arguments = {**IMAGES, "stride": 8, "embed_dim": 12, "depth": 3, "drop_path_rate": 0.0}
    model = PrunedVim(prune_after=(1,), gap=gap, **arguments).double()
    same_wrapped(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))
