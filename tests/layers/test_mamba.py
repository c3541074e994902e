import pytest
import torch
import torch.nn.functional as F

from zoo.errors import ZooError
from zoo.layers.mamba import Mamba
from zoo.layers.norms import add_norm


def literal_branch(mixer, x, z, suffix=""):
    """One direction of the mixer on sequences [B, L, d], step by step from the start."""
    part = {name: getattr(mixer, name + suffix) for name in ("conv1d", "x_proj", "dt_proj", "D")}
    width = part["conv1d"].weight.shape[-1]
    A = -(mixer.A_b_log if suffix else mixer.A_log).exp()
    padded = F.pad(x, (0, 0, width - 1, 0))
    state = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        window = padded[:, t : t + width]  # [B, W, d]
        u = F.silu((window * part["conv1d"].weight[:, 0].T).sum(1) + part["conv1d"].bias)
        sizes = [mixer.dt_rank, mixer.d_state, mixer.d_state]
        dt, B, C = part["x_proj"](u).split(sizes, dim=-1)
        delta = F.softplus(part["dt_proj"](dt))
        state = torch.exp(delta[..., None] * A) * state + (delta * u)[..., None] * B[:, None]
        y = (state * C[:, None]).sum(-1) + part["D"] * u
        outputs.append(y * F.silu(z[:, t]))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(("bimamba_type", "half"), [("none", False), ("v2", False), ("v2", True)])
def test_agrees_with_the_definition(bimamba_type, half):
    torch.manual_seed(0)
    mixer = Mamba(8, d_state=3, d_conv=3, bimamba_type=bimamba_type, if_divide_out=half).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    inner, z = mixer.in_proj(x).chunk(2, dim=-1)
    y = literal_branch(mixer, inner, z)
    if bimamba_type == "v2":
        y = y + literal_branch(mixer, inner.flip(1), z.flip(1), "_b").flip(1)
    torch.testing.assert_close(mixer(x), mixer.out_proj(y / 2 if half else y))


def test_first_bidirectional_form_differs_backward_in_A_alone():
    torch.manual_seed(0)
    forward, both = Mamba(8, d_state=3), Mamba(8, d_state=3, bimamba_type="v1", d_conv=4)
    both.load_state_dict({**both.state_dict(), **forward.state_dict()})
    x = torch.randn(2, 6, 8)
    # With a state that is lost at once (A = -exp(50)), both directions see only the present step.
    torch.nn.init.constant_(forward.A_log, 50.0)
    both.A_log.data.fill_(50.0)
    both.A_b_log.data.fill_(50.0)
    torch.testing.assert_close(both(x), 2 * forward(x))


def test_one_direction_is_causal_and_two_are_not():
    x = torch.randn(1, 9, 8, requires_grad=True)
    for kind, reached in (("none", [True] * 5 + [False] * 4), ("v2", [True] * 9)):
        (gradient,) = torch.autograd.grad(Mamba(8, bimamba_type=kind)(x)[0, 4].sum(), x)
        assert (gradient[0].abs().amax(-1) > 0).tolist() == reached


def test_initial_step_sizes():
    steps = F.softplus(Mamba(64).dt_proj.bias)
    assert 0.00099 < steps.min() < 0.01 < steps.max() < 0.101


def test_wrong_type():
    with pytest.raises(ZooError, match="bimamba_type is none, v1 or v2, not v4"):
        Mamba(8, bimamba_type="v4")


def test_add_norm_keeps_the_stream_in_float32():
    norm = torch.nn.RMSNorm(8)
    x = torch.randn(2, 8).bfloat16()
    normed, stream = add_norm(x, None, norm)
    assert normed.dtype == torch.bfloat16 and stream.dtype == torch.float32
    normed, stream = add_norm(x, stream, norm)
    torch.testing.assert_close(stream, 2 * x.float())
    torch.testing.assert_close(normed, norm(stream).bfloat16())
    _, half = add_norm(x, None, norm.bfloat16(), residual_in_fp32=False)
    assert half.dtype == torch.bfloat16
