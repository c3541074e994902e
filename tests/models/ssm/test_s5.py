"""S5's layer: its start, its scan with states and resets, its norms."""

import pytest
import torch

from zoo.errors import ZooError
from zoo.models.ssm._s5 import S5SSM, Basis, S5Layer, legs_basis


def identity(N):
    return Basis(*(part.to(torch.complex128) for part in (torch.ones(N), *[torch.eye(N)] * 2)))


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_parameters_start_with_the_variances_of_flax(blocks):
    torch.manual_seed(0)
    N, H = 128 // blocks, 64
    for C_init, std in (
        ("lecun_normal", (128 * H) ** -0.5),
        ("trunc_standard_normal", 128**-0.5),
        ("complex_normal", 0.5**0.5),
    ):
        ssm = S5SSM(H, identity(N), blocks, C_init, dt_min=0.01, dt_max=1.0)
        assert ssm.C.shape == (H, 128, 2) and ssm.B.shape == (128, H, 2)
        assert float(ssm.C.std()) == pytest.approx(std, rel=0.05)
        assert float(ssm.B[..., 0].std()) == pytest.approx(128**-0.5, rel=0.05)
        assert ssm.B[..., 1].count_nonzero() == 0
        if C_init != "complex_normal":  # drawn between two deviations
            assert float(ssm.C.abs().max()) < 2 * std / 0.879 and float(ssm.C.abs().max()) > 2 * std
        steps = ssm.log_step.exp()
        assert 0.01 <= float(steps.min()) < 0.012 and 0.8 < float(steps.max()) <= 1
    ssm = S5SSM(3, identity(4), 2, B_init="legs", bidirectional=True, C_init="complex_normal")
    assert ssm.C.shape == (3, 16, 2)
    expected = torch.tensor([1.0, 3, 5, 7] * 2).sqrt()[:, None].expand(-1, 3)
    torch.testing.assert_close(ssm.B[..., 0], expected)


def test_a_half_of_hippos_normal_part_stands_for_the_whole():
    """Real states of any readout are twice the real part."""
    basis = legs_basis(8)
    both = torch.cat([basis.V, basis.V.conj()], 1)
    torch.testing.assert_close(both @ both.mH, torch.eye(8).to(both.dtype))
    assert basis.Vinv.shape == (4, 8)


def test_resets_are_borders_of_episodes():
    torch.manual_seed(1)
    ssm = S5SSM(3, legs_basis(8), dt_min=0.1, dt_max=0.5)
    u, first = torch.randn(2, 9, 3), torch.randn(2, 4, dtype=torch.complex64)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[:, [4, 7]] = True
    y, last = ssm(u, first, reset)
    parts = [ssm(u[:, :4], first)[0], ssm(u[:, 4:7])[0], ssm(u[:, 7:])[0]]
    torch.testing.assert_close(y, torch.cat(parts, 1))
    torch.testing.assert_close(last, ssm(u[:, 7:])[1])
    assert not torch.allclose(y, ssm(u, first)[0], atol=1e-3)
    reset[:, 0] = True  # the state that came with it is forgotten, too
    torch.testing.assert_close(ssm(u, first, reset)[0], ssm(u, None, reset)[0])
    middle, state = ssm(u[:, :5])
    torch.testing.assert_close(torch.cat([middle, ssm(u[:, 5:], state)[0]], 1), ssm(u)[0])


def test_the_norm_is_where_it_is_wanted():
    x = torch.randn(2, 5, 4)
    for prenorm, gtrxl in ((True, False), (False, False), (True, True)):
        layer = S5Layer(S5SSM(4, legs_basis(4)), 4, "gelu", "layer", prenorm, gtrxl)
        with torch.no_grad():
            layer.norm.bias.fill_(0.5)
            y = layer.norm(x) if prenorm else x
            y = layer.seq(y)[0]
            y = layer.norm(y) if gtrxl else y
            expected = x + torch.nn.functional.gelu(y, approximate="tanh")
            torch.testing.assert_close(layer(x)[0], expected if prenorm else layer.norm(expected))


def test_wrong_settings():
    for settings in ({"C_init": "zeros"}, {"discretization": "euler"}, {"B_init": "ones"}):
        with pytest.raises(ZooError, match=f"{next(iter(settings))} is one of"):
            S5SSM(2, legs_basis(4), **settings)
    with pytest.raises(ZooError, match="activation is one of"):
        S5Layer(S5SSM(2, legs_basis(4)), 2, "glu")
    with pytest.raises(ZooError, match="norm is layer"):
        S5Layer(S5SSM(2, legs_basis(4)), 2, norm="group")
    for state, reset in ((torch.zeros(1, 2), None), (None, torch.zeros(1, 3, dtype=torch.bool))):
        with pytest.raises(ZooError, match="it sees the end"):
            S5SSM(2, legs_basis(4), bidirectional=True)(torch.ones(1, 3, 2), state, reset)
