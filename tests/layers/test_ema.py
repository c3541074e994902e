from __future__ import annotations

import pytest
import torch

from zoo.errors import ZooError
from zoo.layers.ema import MultiHeadEMA


def layer(**settings):
    torch.manual_seed(0)
    ema = MultiHeadEMA(3, 4, **settings).double()
    with torch.no_grad():
        for parameter in ema.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return ema


def recurrence(ema, x, rows=slice(None)):
    """Step by step, from the equations; without the skip weight."""
    delta, alpha = ema.delta[rows].sigmoid(), ema.alpha[rows].sigmoid()
    N = delta.shape[1]
    if ema.beta is not None:
        q, into, gamma = 1 - delta * alpha, delta * ema.beta[rows], ema.gamma[rows]
    else:
        angle = 2 * torch.pi / N * torch.arange(1, N + 1) * ema.theta[rows].sigmoid()[:, None]
        q, into = (1 - alpha * delta) * torch.exp(1j * angle), alpha
        gamma = ema.gamma[rows, :, 0] + 1j * ema.gamma[rows, :, 1]
    h, found = torch.zeros(len(x), 3, N, dtype=q.dtype), []
    for step in x.unbind(1):
        h = q * h + into * step[..., None]
        y = (h * gamma).sum(-1) / N**0.5
        found.append(y.real if y.is_complex() else y)
    return torch.stack(found, 1)


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_convolution_steps_and_equations_agree(complex, skip):
    ema, x = layer(complex=complex, skip=skip), torch.randn(2, 11, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = recurrence(ema, x) + (ema.omega * x if skip else 0)
        state = ema.allocate_state(2)
        parts = [ema(part, state) for part in x.split([4, 1, 1, 5], dim=1)]
        torch.testing.assert_close(ema(x), expected)
        torch.testing.assert_close(torch.cat(parts, 1), expected)
        pulse = torch.zeros(1, 7, 3, dtype=torch.float64)
        pulse[:, 0] = 1
        torch.testing.assert_close(ema.impulse(7), ema(pulse)[0].T)


@pytest.mark.parametrize("complex", [False, True])
def test_both_directions(complex):
    ema = layer(complex=complex, bidirectional=True)
    for length in (1, 9):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        with torch.no_grad():
            before = recurrence(ema, x, slice(3))
            after = recurrence(ema, x.flip(1), slice(3, None)).flip(1)
            torch.testing.assert_close(ema(x), before + after + ema.omega * x)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_truncation(bidirectional):
    """Nothing passes further than the kernel reaches."""
    ema = layer(bidirectional=bidirectional, truncation=3)
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    other = x.clone()
    other[:, 4] += 1
    changed = (ema(x) - ema(other)).abs().amax((0, 2)) > 1e-9
    assert changed.nonzero().flatten().tolist() == ([2, 3, 4, 5, 6] if bidirectional else [4, 5, 6])


def test_steps_that_are_refused():
    with pytest.raises(ZooError, match="bidirectional=False"):
        layer(bidirectional=True).allocate_state(1)
    with pytest.raises(ZooError, match="bidirectional=False"):
        layer(bidirectional=True).impulse(3)
    with pytest.raises(ZooError, match="truncation=None"):
        layer(truncation=3).allocate_state(1)


def test_initialisation():
    """Signs of beta alternate; turns are logarithmic from nearly a whole one to 1 / H of one."""
    ema = MultiHeadEMA(64, 4)
    assert ema.beta.sign().unique(dim=0).tolist() == [[1, -1, 1, -1]]
    assert ema.delta.abs().max() <= 0.4
    turns = MultiHeadEMA(64, 4, complex=True)
    assert float(turns.theta.sigmoid()[-1].detach()) == pytest.approx(1 / 64, rel=1e-4)
    assert turns.gamma[..., 1].abs().max() == 0
