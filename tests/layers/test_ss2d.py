import pytest
import torch
import torch.nn.functional as F

from zoo.errors import ZooError
from zoo.layers.ss2d import OUT_NORMS, SS2D, SSD2D


def ways(scan, height, width):
    """The cells in the order in which each of the four directions visits them."""
    cells = torch.arange(height * width).view(height, width)
    rows, columns = cells.flatten(), cells.T.flatten()
    if scan == "cross2d":
        return [rows, columns, rows.flip(0), columns.flip(0)]
    if scan == "bidi":
        return [rows, rows, rows.flip(0), rows.flip(0)]
    if scan == "unidi":
        return [rows] * 4
    quarters = (cells[0::2, 0::2], cells[1::2, 0::2].T, cells[0::2, 1::2], cells[1::2, 1::2].T)
    return [quarter.flatten() for quarter in quarters]


def literal_scan(op, x, scan):
    """SS2D's scan of a map [d, H, W], one direction and one step after the other."""
    d, height, width = x.shape
    flat = x.flatten(1)
    y = torch.zeros_like(flat)
    A = -op.A_logs.exp().view(4, d, -1)
    D = op.Ds.view(4, d)
    for k, way in enumerate(ways(scan, height, width)):
        state = torch.zeros_like(A[k])
        for cell in way:
            u = flat[:, cell]
            sizes = [op.dt_rank, op.d_state, op.d_state]
            dt, B, C = (op.x_proj_weight[k] @ u).split(sizes)
            delta = F.softplus(op.dt_projs_weight[k] @ dt + op.dt_projs_bias[k])
            state = torch.exp(delta[:, None] * A[k]) * state + (delta * u)[:, None] * B
            y[:, cell] += state @ C + D[k] * u
    return y.view_as(x)


@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
@pytest.mark.parametrize("scan", ["cross2d", "bidi", "unidi", "atrous"])
def test_scan_agrees_with_the_definition(scan, size):
    if scan == "atrous" and size[1] % 2:
        size = (4, 6)
    torch.manual_seed(0)
    op = SS2D(8, d_state=3, scan=scan).double()
    torch.nn.init.normal_(op.A_logs)
    torch.nn.init.normal_(op.Ds)
    x = torch.randn(2, op.d_inner, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([literal_scan(op, image, scan) for image in x])
        torch.testing.assert_close(op.scan_map(x), expected)


def reach(scan, size=(5, 6), cell=(2, 3)):
    """Cells of the input that the output at ``cell`` depends on."""
    torch.manual_seed(0)
    op = SS2D(8, d_state=2, d_conv=1, scan=scan, gate=None).double()
    x = torch.randn(1, *size, 8, dtype=torch.float64, requires_grad=True)
    op(x)[0, cell[0], cell[1]].sum().backward()
    return x.grad[0].abs().amax(-1) > 0


def test_reach():
    assert reach("cross2d").all()
    assert reach("bidi").all()
    causal = torch.arange(30).view(5, 6) <= 2 * 6 + 3
    assert torch.equal(reach("unidi"), causal)


def test_cascade_reaches_everything():
    assert reach("cascade2d").all()


@pytest.mark.parametrize("out_norm", OUT_NORMS)
@pytest.mark.parametrize("gate", ["act", "linear", None])
def test_forms(out_norm, gate):
    op = SS2D(8, d_state=2, out_norm=out_norm, gate=gate, out_act=True, dropout=0.1)
    assert op(torch.randn(2, 3, 4, 8)).shape == (2, 3, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scan": "spiral"}, "scan is one of cross2d, unidi, bidi, cascade2d, atrous, not spiral"),
        ({"gate": "yes"}, "gate is one of act, linear, None, not yes"),
        ({"out_norm": "bn"}, "out_norm is one of ln, none"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ZooError, match=message):
        SS2D(8, **arguments)


@pytest.mark.parametrize("scan", ["cross2d", "bidi", "unidi"])
def test_mamba2_form_is_the_general_one_with_one_decay_a_head(scan):
    """SSD2D is SS2D whose channels of a head share A and the step size."""
    torch.manual_seed(0)
    heads, state = 4, 3
    ssd = SSD2D(16, d_state=state, ssm_ratio=2.0, dt_rank=heads, scan=scan, init="v1").double()
    general = SS2D(16, d_state=state, ssm_ratio=2.0, dt_rank=heads, scan=scan).double()
    inner = ssd.d_inner
    width = inner // heads
    with torch.no_grad():
        general.x_proj_weight.copy_(ssd.x_proj_weight)
        general.A_logs.copy_(ssd.A_logs.repeat_interleave(width, 1).view(-1, 1).expand(-1, state))
        general.Ds.copy_(ssd.Ds.flatten())
        general.dt_projs_bias.copy_(ssd.dt_projs_bias.repeat_interleave(width, 1))
        to_channels = torch.eye(heads).repeat_interleave(width, 0)
        general.dt_projs_weight.copy_(to_channels.expand(4, -1, -1))
        x = torch.randn(2, inner, 9, 11, dtype=torch.float64)  # more than one chunk of 64
        torch.testing.assert_close(ssd.scan_map(x), general.scan_map(x))


def test_mamba2_form_refuses_what_it_cannot_do():
    with pytest.raises(ZooError, match="scan is one of cross2d, unidi, bidi, not atrous"):
        SSD2D(16, scan="atrous", init="v2")
    with pytest.raises(ZooError, match="init is one of v1, v2, not v0"):
        SSD2D(16)
