"""Kernels of state space models against powers of their matrices, and against their steps."""

import math

import pytest
import torch

from zoo.errors import ZooError
from zoo.layers.s4 import S4Block, SSMConv
from zoo.layers.ssm_kernel import DiagonalKernel, NPLRKernel
from zoo.layers.ssm_recurrence import krylov, matrix_power, with_conjugates

H, N = 4, 8


def by_powers(kernel: DiagonalKernel, length: int, rate: float = 1.0) -> torch.Tensor:
    """C A^l B of the discrete model, written out from the continuous one."""
    dt, A, B, C = kernel.continuous(rate)
    A, B, C = with_conjugates(A), with_conjugates(B[0]), with_conjugates(C)
    dt = torch.cat([dt.expand(-1, A.shape[1] // 2)] * 2, 1)
    matrix = torch.diag_embed(A)
    if isinstance(kernel, NPLRKernel):
        P = with_conjugates(torch.view_as_complex(kernel.P).repeat(1, kernel.repeat, 1))
        matrix = matrix - torch.einsum("rhm,rhn->hmn", P, P.conj())
    identity = torch.eye(A.shape[1], dtype=A.dtype)
    if kernel.disc == "zoh" and not isinstance(kernel, NPLRKernel):
        A_bar, B_bar = torch.matrix_exp(dt[..., None] * matrix), ((dt * A).exp() - 1) / A * B
    else:
        back = identity - dt[..., None] / 2 * matrix
        A_bar = torch.linalg.solve(back, identity + dt[..., None] / 2 * matrix)
        B_bar = torch.linalg.solve(back, (dt * B)[..., None])[..., 0]
    values, x = [], B_bar
    for _ in range(length):
        values.append(torch.einsum("chn,hn->ch", C, x).real)
        x = (A_bar @ x[..., None])[..., 0]
    return torch.stack(values, -1)


KERNELS = {
    "zoh": dict(init="diag-lin", n_ssm=2),
    "bilinear": dict(init="diag-inv", disc="bilinear", channels=2),
    "untied": dict(init="diag-legs", dt_tie=False, dt_fast=True),
    "softplus": dict(init="diag", n_ssm=2, dt_transform="softplus", real_transform="softplus"),
    "legs": dict(nplr=True, init="legs", n_ssm=1),
    "legt": dict(nplr=True, init="legt", rank=2, channels=2),
    "rank 3": dict(nplr=True, init="legt", rank=3),
    "fourier": dict(nplr=True, init="hippo", n_ssm=2, dt_transform="softplus"),
}


def make(name: str, **more) -> DiagonalKernel:
    torch.manual_seed(0)
    settings = KERNELS[name] | more
    kind = NPLRKernel if settings.pop("nplr", False) else DiagonalKernel
    return kind(H, d_state=N, dt_min=0.01, **settings).double()


@pytest.mark.parametrize("length", [1, 2, 31, 48])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_is_the_powers_of_the_matrix(name, length):
    kernel = make(name)
    expected = by_powers(kernel, length)  # before C becomes the truncated one
    torch.testing.assert_close(kernel(length)[0], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mode", ["linear", "dense", "diagonal"])
@pytest.mark.parametrize("name", KERNELS)
def test_steps_and_parts_give_the_convolution(name, mode):
    if "nplr" not in KERNELS[name]:
        mode = "diagonal"
    layer = SSMConv(H, activation=None)
    layer.kernel = make(name, channels=1)
    layer = layer.double()
    x = torch.randn(2, 150, H, dtype=torch.float64)
    with torch.no_grad():
        whole = layer(x)
        state = layer.allocate_state(2, mode)
        parts = torch.cat([layer(part, state) for part in x.split([3, 70, 77], 1)], 1)
        torch.testing.assert_close(parts, whole, rtol=1e-7, atol=1e-9)
        stepped = layer.allocate_state(2, mode)
        steps = torch.cat([layer(x[:, i : i + 1], stepped) for i in range(150)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(state.ssm, stepped.ssm, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["legs", "zoh", "bilinear"])
def test_half_the_rate_is_twice_the_step(name):
    kernel = make(name)
    coarse = by_powers(kernel, 24, rate=2.0)
    kernel(48)  # C becomes the one for 48 steps of rate 1
    torch.testing.assert_close(kernel(24, rate=2.0)[0], coarse, rtol=2e-2, atol=1e-3)
    layer = SSMConv(H, activation=None)
    layer.kernel = make(name, channels=1)
    layer.double()
    x = torch.randn(1, 24, H, dtype=torch.float64)
    with torch.no_grad():
        whole, state = layer(x, rate=2.0), layer.allocate_state(1, rate=2.0)
        steps = torch.cat([layer(x[:, i : i + 1], state) for i in range(24)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-8, atol=1e-10)


def test_the_length_grows_by_doubling_and_the_kernel_stays():
    kernel = make("legs")
    expected = by_powers(kernel, 70)
    assert kernel.length == 0
    for asked, length in [(16, 16), (10, 16), (70, 128)]:
        torch.testing.assert_close(kernel(asked)[0], expected[..., :asked], rtol=1e-8, atol=1e-10)
        assert (kernel.length, int(kernel.l_kernel)) == (length, length)
    again = make("legs")
    again.load_state_dict(kernel.state_dict())
    assert again.length == 128
    torch.testing.assert_close(again(70)[0], expected, rtol=1e-8, atol=1e-10)
    assert make("legs", l_max=48).length == 48


def test_growth_is_no_growth_of_the_default_length():
    kernel = make("legs", l_max=48).float()
    kernel.load_state_dict(make("legs").float().state_dict())  # C itself
    kernel(5)
    assert kernel.length == 48


def test_dss_is_a_softmax_over_the_length():
    """DSS, proposition 1(b): rows of exp(lambda dt l), normalised, weighted by C / lambda."""
    kernel = DiagonalKernel(H, d_state=N, disc="dss", l_max=32, real_transform="none").double()
    with torch.no_grad():
        kernel.A_real[:2] = -0.3  # a growing mode
        kernel.A_imag += 1
    dt, A, B, C = kernel.continuous()
    rows = torch.exp(dt[..., None] * A[..., None] * torch.arange(32))
    soft = rows / rows.sum(-1, keepdim=True)
    expected = torch.einsum("chn,hnl->chl", C * B / A, soft).real
    torch.testing.assert_close(kernel(32)[0], expected, rtol=1e-4, atol=1e-5)
    layer = SSMConv(H, mode="diag", activation=None, d_state=N, disc="dss", l_max=32).double()
    x = torch.randn(1, 32, H, dtype=torch.float64)
    with torch.no_grad():
        whole, state = layer(x), layer.allocate_state(1)
        steps = torch.cat([layer(x[:, i : i + 1], state) for i in range(32)], 1)
        torch.testing.assert_close(steps, whole, rtol=1e-8, atol=1e-10)
        with pytest.raises(ZooError, match="no state passes"):
            layer(x, state)


def test_real_modes_are_decaying_exponentials():
    kernel = DiagonalKernel(H, d_state=3, is_real=True, init="diag-real", n_ssm=1).double()
    dt, A, B, C = kernel.continuous()
    assert A.shape == (H, 3) and not A.is_complex()
    powers = torch.exp(dt[..., None] * A[..., None] * torch.arange(9))
    expected = 2 * torch.einsum("chn,hnl->chl", C * ((dt * A).exp() - 1) / A * B, powers)
    torch.testing.assert_close(kernel(9)[0], expected)
    layer = SSMConv(H, mode="diag", is_real=True, d_state=3, init="diag-real").double()
    x = torch.randn(2, 9, H, dtype=torch.float64)
    with torch.no_grad():
        state = layer.allocate_state(2)
        steps = torch.cat([layer(part, state) for part in x.split([1, 4, 1, 3], 1)], 1)
        torch.testing.assert_close(steps, layer(x))


def test_a_band_limit_silences_fast_modes():
    kernel = make("zoh", bandlimit=0.05)
    dt, A, _, C = kernel.continuous()
    fast = dt * A.imag.abs() / (2 * math.pi) >= 0.025
    assert fast.any() and not fast.all()
    assert (C[0][fast] == 0).all() and (C[0][~fast] != 0).all()


def test_the_second_kernel_looks_ahead():
    torch.manual_seed(0)
    layer = SSMConv(H, mode="diag", bidirectional=True, activation=None, d_state=N).double()
    x = torch.randn(1, 10, H, dtype=torch.float64)
    back, ahead = layer.kernel(10)[0]
    for t in range(10):
        y = layer.D[0] * x[0, t]
        y = y + sum(back[:, i] * x[0, t - i] for i in range(t + 1))
        y = y + sum(ahead[:, i] * x[0, t + 1 + i] for i in range(9 - t))
        torch.testing.assert_close(layer(x)[0, t], y)
    with pytest.raises(ZooError, match="both directions"):
        layer.allocate_state(1)


def test_channels_lie_as_asked():
    torch.manual_seed(0)
    layer = SSMConv(H, mode="diag", channels=3, activation=None, d_state=N)
    x = torch.randn(2, 6, H)
    y = layer(x)
    layer.swap_channels = True
    torch.testing.assert_close(layer(x), y.unflatten(2, (3, H)).transpose(2, 3).flatten(2))
    with torch.no_grad():
        state = layer.allocate_state(2)
        steps = torch.cat([layer(x[:, i : i + 1], state) for i in range(6)], 1)
    torch.testing.assert_close(steps, layer(x))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(mode="diag", init="diag-lin", activation="glu", final_act=None),
        dict(bottleneck=2, gate=3, gate_act="gelu", mult_act="gelu", final_act="id"),
        dict(gate=1, channels=2, final_act="id", activation=None),
        dict(tie_dropout=True, dropout=0.3, transposed=False),
    ],
)
def test_blocks_step_as_they_convolve(settings):
    torch.manual_seed(0)
    block = S4Block(H, d_state=N, l_max=20, **settings).double().eval()
    along = 1 if settings.get("transposed") is False else 2
    x = torch.randn(2, *((20, H) if along == 1 else (H, 20)), dtype=torch.float64)
    with torch.no_grad():
        whole, state = block(x), block.allocate_state(2)
        steps = torch.cat([block(part, state=state) for part in x.split(1, along)], along)
    torch.testing.assert_close(steps, whole, rtol=1e-8, atol=1e-9)
    copy = state.clone().select([1, 0, 1])
    torch.testing.assert_close(type(copy).stack([copy, state]).ssm[3:], state.ssm)
    with pytest.raises(ZooError, match="cannot be cut back"):
        copy.truncate(3)


def test_padding_is_read_as_zero():
    torch.manual_seed(0)
    block = S4Block(H, d_state=N, mode="diag", init="diag-lin", bidirectional=True).eval()
    x, lengths = torch.randn(2, H, 9), torch.tensor([9, 4])
    padded = x.clone()
    padded[1, :, 4:] = 0
    torch.testing.assert_close(block(x, lengths), block(padded))


def test_dropout_of_channels_is_one_mask_for_all_steps():
    torch.manual_seed(0)
    layer = SSMConv(16, mode="diag", dropout=0.5, tie_dropout=True, activation=None, d_state=N)
    kept, y = layer(torch.randn(2, 5, 16)), layer.eval()
    assert y.training is False
    silent = kept == 0
    assert (silent == silent[:, :1]).all() and 0 < silent[:, 0].float().mean() < 1


def test_frozen_parameters_are_buffers_and_rates_are_told():
    kernel = NPLRKernel(H, d_state=N, lr={"A": 0.0, "dt": 0.001, "B": None})
    assert {name for name, _ in kernel.named_parameters()} == {"inv_dt", "C", "B"}
    assert kernel.learning_rates() == {"inv_dt": 0.001, "B": None}
    assert set(NPLRKernel(H, d_state=N, lr=0.001).learning_rates().values()) == {0.001}


def test_steps_are_log_uniform():
    torch.manual_seed(0)
    for transform in ("exp", "softplus"):
        kernel = DiagonalKernel(2000, d_state=2, dt_min=0.01, dt_max=1, dt_transform=transform)
        log = kernel.continuous()[0].log10()
        assert -2.001 < log.min() < -1.95 and -0.05 < log.max() < 0.001
        assert log.mean().item() == pytest.approx(-1, abs=0.05)
    kernel = NPLRKernel(H, d_state=N, deterministic=True, n_ssm=1, dt_min=0.01, dt_max=10)
    torch.testing.assert_close(kernel.continuous()[0][:, 0], torch.tensor([0.01, 0.1, 1, 10]))
    # C is the first coefficient of the matrix that HiPPO wrote down
    dense = NPLRKernel(H, d_state=N, deterministic=True, init="legs", dt_min=1e-4, dt_max=1e-4)
    assert dense.double()(1)[0].flatten().tolist() == pytest.approx([1e-4] * H, rel=1e-2)


def test_half_precision_computes_in_float32():
    torch.manual_seed(0)
    block = S4Block(H, d_state=N, l_max=16)
    x = torch.randn(2, H, 16)
    exact = block(x)
    y = block.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.05)


def test_krylov_and_power_by_squaring():
    A, b = torch.randn(3, 4, 4).double() / 2, torch.randn(3, 4).double()
    columns = [b]
    for _ in range(12):
        columns.append((A @ columns[-1][..., None])[..., 0])
    for length in (1, 2, 7, 13):
        torch.testing.assert_close(krylov(A, b, length), torch.stack(columns[:length], -1))
    for exponent in (0, 1, 6, 7):
        expected = torch.linalg.matrix_power(A, exponent)
        torch.testing.assert_close(matrix_power(A, exponent), expected)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DiagonalKernel(4, disc="euler"), "not 'euler'"),
        (lambda: DiagonalKernel(4, dt_transform="log"), "not 'log'"),
        (lambda: DiagonalKernel(4, n_ssm=3), "must divide"),
        (lambda: NPLRKernel(4, is_real=True), "is_real: false"),
        (lambda: DiagonalKernel(4).recurrence("linear"), "'diagonal', not 'linear'"),
        (lambda: NPLRKernel(4).recurrence("fast"), "not 'fast'"),
        (lambda: NPLRKernel(4, d_state=64).recurrence("diagonal"), "cannot be diagonalised"),
        (lambda: DiagonalKernel(4, disc="dss").recurrence(), "set l_max"),
        (lambda: SSMConv(4, mode="s6"), "not 's6'"),
        (lambda: SSMConv(4, l_max=8)(torch.zeros(1, 9, 4)), "8 steps long"),
        (lambda: SSMConv(4, dropout=1.0), "below 1"),
        (lambda: S4Block(4, activation="sin"), "not 'sin'"),
        (lambda: S4Block(4, final_act=None, channels=2), "final_act"),
    ],
)
def test_what_it_refuses(call, says):
    with pytest.raises(ZooError, match=says):
        call()


def test_an_unstable_model_makes_no_steps():
    layer = SSMConv(4, mode="diag", real_transform="none")
    with torch.no_grad():
        layer.kernel.A_real.fill_(-3.0)
    with pytest.raises(ZooError, match="unstable"):
        layer.allocate_state(1)
