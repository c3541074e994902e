"""Every layer of the survey behind one interface: causal, the same in parts and steps, and one
convolution where it is time-invariant; those without a paper here against their equations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import ZooError
from zoo.models.ssm._backbone import kernel_groups
from zoo.models.ssm.mamba360 import LAYERS, SequenceLayer, create_layer

H, L = 8, 24
VARIANTS = [
    *((name, {}) for name in LAYERS if name not in ("dss", "liquid_s4", "long_conv", "mamba2")),
    ("dss", {"variant": "exp"}),
    ("dss", {"variant": "softmax", "l_max": L}),
    *(("liquid_s4", {"form": form, "degree": 3}) for form in ("exact", "pb", "kb")),
    ("long_conv", {"l_max": L}),
    ("mamba2", {"headdim": 4, "d_state": 6}),
    ("s4", {"l_max": L, "init": "fourier"}),
    ("s5", {"blocks": 2, "d_state": 4, "discretization": "bilinear"}),
    ("hyena", {"l_max": L, "order": 3}),
]
ids = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings in VARIANTS]


@pytest.fixture(params=VARIANTS, ids=ids)
def layer(request) -> SequenceLayer:
    torch.manual_seed(0)
    name, settings = request.param
    return create_layer(name, H, **settings).double()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def test_no_step_sees_a_later_one(layer):
    x = torch.randn(2, L, H, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y[:, 10].square().sum(), x)
    assert gradient[:, 11:].abs().max() <= 1e-12 * gradient.abs().max()
    assert gradient[:, 10].abs().min() > 0


def test_parts_and_steps_are_the_whole(layer):
    x = torch.randn(2, L, H, dtype=torch.float64)
    if not layer.has_state:
        with pytest.raises(ZooError, match=r"has no state, expected one of lssl, lmu, s4"):
            layer.allocate_state(2)
        return
    whole, state = layer(x), layer.allocate_state(2)
    parts = torch.cat([layer(x[:, :9], state), layer(x[:, 9:], state)], 1)
    assert relative(parts, whole) <= 1e-5  # states are at least float32
    with torch.no_grad():
        state = layer.allocate_state(3)
        layer(torch.randn(3, 5, H, dtype=torch.float64), state)
        state = layer.allocate_state(2)
        steps = torch.cat([layer(x[:, t : t + 1], state) for t in range(L)], 1)
        # sequences of a batch are kept apart
        state = type(state).stack([layer.allocate_state(1), layer.allocate_state(1)]).select([1, 0])
        again = layer(x[:, :9], state.clone())
    assert relative(steps, whole) <= 1e-5
    assert relative(again, whole[:, :9]) <= 1e-5


def test_invariant_layers_are_a_convolution(layer):
    if layer.kind != "lti":
        with pytest.raises(ZooError, match="only time-invariant layers are a convolution"):
            layer.impulse(L)
        return
    x = torch.randn(2, L, H, dtype=torch.float64)
    K = layer.impulse(L)
    K = torch.diag_embed(K.T).permute(1, 2, 0) if K.dim() == 2 else K  # [H, H, L]
    assert K.shape == (H, H, L)
    lag = torch.arange(L)[:, None] - torch.arange(L)
    matrix = K[..., lag.clamp(min=0)] * (lag >= 0)  # [H, H, L, L]
    assert relative(torch.einsum("oits,bsi->bto", matrix, x), layer(x)) <= 1e-6


def test_kinds():
    """Only a selective layer's answer to the sum of two inputs, noise and symbols, is not a sum."""
    kinds = {name: row.kind for name, row in LAYERS.items()}
    assert [name for name, kind in kinds.items() if kind == "selective"] == ["mamba", "mamba2"]
    assert [n for n, k in kinds.items() if k == "gated_lti"] == ["gss", "liquid_s4", "h3", "hyena"]


def test_lru_is_its_recurrence():
    layer = create_layer("lru", 3, d_state=4).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    m = layer.mixer
    modulus, angle = torch.exp(-torch.exp(m.nu_log)), torch.exp(m.theta_log)
    eigenvalues = torch.polar(modulus, angle)
    B, C = (torch.view_as_complex(p) for p in (m.B, m.C))
    h, out = torch.zeros(2, 4, dtype=torch.complex128), []
    for u in x.unbind(1):
        h = eigenvalues * h + torch.exp(m.gamma_log) * (u.to(B.dtype) @ B.T)
        out.append((h @ C.T).real + m.D * u)
    assert relative(layer(x), torch.stack(out, 1)) <= 1e-12


@pytest.mark.parametrize("ring", [(0.0, 1.0), (0.9, 0.999), (0.99, 0.9999)])
def test_an_lrus_state_has_the_variance_of_its_input(ring):
    """Equation 7 of its paper: sum over steps of |Lambda^k e^g B|^2, for white noise."""
    torch.manual_seed(0)
    mixer = create_layer("lru", 64, d_state=512, r_min=ring[0], r_max=ring[1]).double().mixer
    log, B = mixer.discrete()
    modulus = log.real.exp()
    variance = B.abs().square().sum(1) / (1 - modulus**2)
    assert abs(variance.mean().item() - 1) <= 0.15
    without = variance / mixer.gamma_log.exp().square()
    assert ring[0] == 0 or without.mean().item() >= 5


def test_an_lrus_eigenvalues_lie_on_the_ring():
    modulus = create_layer("lru", 4, d_state=999, r_min=0.5, r_max=0.8).mixer.discrete()[0]
    radii = modulus.real.exp()
    assert 0.5 <= radii.min() < 0.52 and 0.78 < radii.max() <= 0.8
    with pytest.raises(ZooError, match=r"0 <= r_min < r_max <= 1, got 0.9 and 0.5"):
        create_layer("lru", 4, r_min=0.9, r_max=0.5)


def test_mega_ema_is_its_recurrence():
    layer = create_layer("mega_ema", 3, d_state=2).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    m = layer.mixer
    p = torch.sigmoid(m.delta)
    q = 1 - p * torch.sigmoid(m.alpha)
    h, out = torch.zeros(2, 3, 2, dtype=torch.float64), []
    for u in x.unbind(1):
        h = q * h + p * m.beta * u[..., None]
        out.append((m.gamma * h).sum(-1) / math.sqrt(2))
    assert relative(layer(x), torch.stack(out, 1)) <= 1e-12


def liquid(layer: SequenceLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A-bar, B-bar and C of a Liquid-S4."""
    log_A, B, C = layer.mixer.modes()
    return log_A.exp(), B, C


def test_liquid_s4_is_its_recurrence():
    layer = create_layer("liquid_s4", 3, d_state=4, form="exact").double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    A, B, C = liquid(layer, x)
    h, out = torch.zeros(2, 3, 2, dtype=torch.complex128), []
    for u in x.unbind(1):
        h = (A + B * u[..., None]) * h + B * u[..., None]
        out.append(2 * (C * h).sum(-1).real + layer.mixer.D * u)
    assert relative(layer(x), torch.stack(out, 1)) <= 1e-12


@pytest.mark.parametrize("form", ["pb", "kb"])
def test_liquid_s4_adds_products_of_neighbours(form):
    layer = create_layer("liquid_s4", 3, d_state=4, form=form, degree=3, bend="tanh").double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    A, B, C = liquid(layer, x)

    def input(t: int) -> Tensor:
        return x[:, t] if t >= 0 else torch.zeros_like(x[:, 0])

    out = []
    for t in range(7):
        y = layer.mixer.D * x[:, t]
        for degree in (1, 2, 3):
            for s in range(t + 1):
                if form == "pb" and degree > 1 and s:
                    continue
                product = math.prod(
                    [input(t - s - i) for i in range(1, degree)], start=input(t - s)
                )
                product = product if degree == 1 else torch.tanh(product)
                y = y + 2 * (C * A**s * B**degree).sum(-1).real * product
        out.append(y)
    assert relative(layer(x), torch.stack(out, 1)) <= 1e-12


@pytest.mark.parametrize("settings", [{}, {"rank": 2}, {"bidirectional": False}, {"dims": 3}])
def test_s4nd_is_a_convolution_with_products_of_kernels(settings):
    torch.manual_seed(0)
    layer = create_layer("s4nd", 3, d_state=4, **settings).double()
    sizes = (4, 5, 2)[: settings.get("dims", 2)]
    kernels = []  # of each axis [R, H, lag], lags from 1 - S to S - 1
    for kernel, size in zip(layer.kernels, sizes, strict=True):
        k = kernel(size)[0]
        behind, ahead = k.chunk(2) if layer.bidirectional else (k, torch.zeros_like(k))
        kernels.append(torch.cat([ahead[..., : size - 1].flip(-1), behind], -1))
    letters = "abc"[: len(sizes)]
    K = torch.einsum(",".join(f"rh{a}" for a in letters) + f"->h{letters}", *kernels)
    x = torch.randn(2, *sizes, 3, dtype=torch.float64)
    out = layer.D * x
    for to in itertools.product(*map(range, sizes)):
        for at in itertools.product(*map(range, sizes)):
            lag = tuple(t - s + size - 1 for t, s, size in zip(to, at, sizes, strict=True))
            out[(slice(None), *to)] += K[(slice(None), *lag)] * x[(slice(None), *at)]
    assert relative(layer(x), out) <= 1e-6


def test_s4nd_at_another_resolution():
    """Twice as many places at half the step: every second one is as before, of slow waves."""
    torch.manual_seed(0)
    layer = create_layer("s4nd", 2, dims=1, d_state=4, bandlimit=0.5, dt_max=0.01).double()
    t = torch.arange(64, dtype=torch.float64) / 64
    wave = torch.sin(2 * math.pi * t)[None, :, None].expand(1, -1, 2)
    coarse = layer(wave[:, ::2]) - layer.D * wave[:, ::2]
    fine = layer(wave, rate=0.5) - layer.D * wave
    assert relative(fine[:, ::2], coarse) <= 0.1
    with pytest.raises(ZooError, match=r"S4ND of 1 axes takes \[B, 1 sizes, H\], got 4 dimensions"):
        layer(torch.zeros(1, 3, 3, 2))


def test_parameters_of_the_survey():
    settings = {"s4d": {}, "s5": {}, "lru": {}, "gss": {}, "mamba": {}, "hyena": {"l_max": 100},
                "mamba2": {"headdim": 32, "d_state": 64}}  # fmt: skip
    counts = {
        name: sum(p.numel() for p in create_layer(name, 64, **arguments).parameters())
        for name, arguments in settings.items()
    }
    counts["hyena"] -= 3 * 100  # the waves of its times
    assert counts == {
        "s4d": 8_320, "s5": 8_352, "lru": 16_640, "gss": 40_304, "mamba": 32_640,
        "hyena": 30_208, "mamba2": 34_444,
    }  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_recurrences_have_no_weight_decay(name):
    settings = {"headdim": 2} if name == "mamba2" else {}
    model = zoo.create_model("mamba360", layer=name, layer_args=settings, d_model=4, n_layers=1)
    first, *others = kernel_groups(model, 0.1)
    assert first["weight_decay"] == 0.1
    kept = {id(p) for group in others for p in group["params"]}
    assert all(group["weight_decay"] == 0 for group in others)
    for key, parameter in model.named_parameters():
        if key.rsplit(".", 1)[-1] in ("A_log", "A_real", "inv_dt", "nu_log", "Lambda_re", "alpha"):
            assert id(parameter) in kept


@pytest.mark.parametrize("name", ["lru", "mega_ema", "liquid_s4", "s4nd"])
def test_recurrences_stay_precise_under_autocast(name):
    layer = create_layer(name, 4, d_state=4)
    x = torch.randn(2, 6, 5, 4) if name == "s4nd" else torch.randn(2, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert torch.equal(mixed, layer(x))


def test_a_network_goes_on_from_part_to_part():
    torch.manual_seed(0)
    network = zoo.create_model("mamba360", layer="lru", d_model=4, n_layers=2).model
    x = torch.randn(2, 9, 4)
    cache = network.allocate_cache(2)
    parts = torch.cat([network(x[:, :5], cache=cache), network(x[:, 5:], cache=cache)], 1)
    assert relative(parts, network(x)) <= 1e-5
    network = zoo.create_model("mamba360", layer="hyena", d_model=4, n_layers=1).model
    with pytest.raises(ZooError, match="Hyena reads whole inputs: it has no state"):
        network.allocate_cache(2)


def test_errors_say_what_is_there():
    with pytest.raises(ZooError, match=r"layer is 's5d', expected one of lssl, .*, s4nd"):
        create_layer("s5d", 8)
    with pytest.raises(ZooError, match=r"the layer lru: .*d_stat"):
        create_layer("lru", 8, d_stat=3)
    with pytest.raises(ZooError, match="filters have 4 steps, got an input of 5: set l_max"):
        create_layer("hyena", 8, l_max=4)(torch.zeros(1, 5, 8))
    with pytest.raises(ZooError, match="kernels have 4 taps, got an input of 5"):
        create_layer("long_conv", 8, l_max=4)(torch.zeros(1, 5, 8))
    with pytest.raises(ZooError, match="two factors or more"):
        create_layer("liquid_s4", 8, degree=1)
    with pytest.raises(ZooError, match="order is 2 or more and emb_dim odd"):
        create_layer("hyena", 8, emb_dim=4)
    with pytest.raises(ZooError, match="no step size to scale"):
        zoo.create_model("mamba360", d_model=4, n_layers=1)(torch.zeros(1, 3, 1), rate=2.0)
    assert zoo.create_layer is create_layer
