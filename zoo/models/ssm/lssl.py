"""LSSL: linear state-space layers (Gu, Johnson, Goel, Saab, Dao, Rudra and Ré, arXiv 2110.13985).

The first of the deep state space models: a continuous system, discretised by a step size of each
feature, run as a recurrence, as a convolution, or at another sampling rate. The state matrix is
dense, so that the kernel takes all powers of it, O(N L) memory for each feature: the reason for S4.

Kept from the authors' code (state-spaces/s4 at e757cef, ``modules/lssl.py``): names and shapes of
parameters, measures and their trained forms. Different: the rate scales the step of A and of B
(there only that of A); steps exist; the powers are not kept between calls; and the tridiagonal
forms run (there they need an extension that was never published), through a dense inverse. The
paper's near-linear algorithm (theorem 2), which the authors later called unstable, is not here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.precision import at_least_fp32
from zoo.layers.s4 import activation_of, dropout_of
from zoo.layers.ssm_recurrence import DenseRecurrence, SSMState, krylov
from zoo.models.registry import register_model
from zoo.models.ssm._backbone import Backbone, SequenceModel, rename_outer
from zoo.models.ssm._transitions import make_transition
from zoo.ops import fft_conv

#: Constants that the authors' code keeps among the weights.
CONSTANTS = ("transition.I", "transition.ones", "transition.arange", "transition.e")


class LSSLLayer(nn.Module):
    r"""One linear state-space layer (sections 3 and 4).

    .. math::
        \bar A = (I - \tfrac\Delta2 A)^{-1} (I + \tfrac\Delta2 A), \quad
        \bar B = (I - \tfrac\Delta2 A)^{-1} \Delta B, \quad
        K = (C \bar B, C \bar A \bar B, \dots), \quad y = K * u + D u

    Args:
        d: H, features.
        d_model: N, order; 0 or less for H.
        measure, measure_args: of the state matrix, see
            :func:`zoo.models.ssm._transitions.make_transition`.
        learn: 0 fixes A, B and dt (LSSL-f); 1: one A for all features; 2: one each; 3: a dense one.
        lr: learning rate of A and B.
        init: of C and D: "normal", "uniform" or "constant".
        dt: ``min``, ``max``, ``learn`` (None: as ``learn`` says), ``lr`` and ``init`` ("random" or
            "uniform", evenly spread) of the steps.
        channels: M, outputs of each feature.
        bias: of the outputs.
        activation, dropout: before the last layer.
        ff: a linear layer from all channels back to H.
        l_max: longest input; None for no bound.

    Raises:
        ZooError: if settings do not fit.
    """

    def __init__(
        self,
        d: int,
        d_model: int = -1,
        measure: str = "legs",
        measure_args: dict[str, Any] | None = None,
        learn: int = 0,
        lr: float = 1e-4,
        init: str = "normal",
        dt: dict[str, Any] | None = None,
        channels: int = 1,
        bias: bool = False,
        activation: str | None = "gelu",
        ff: bool = True,
        dropout: float = 0.0,
        l_max: int | None = None,
    ) -> None:
        super().__init__()
        N = d_model if d_model > 0 else d
        steps = {"min": 1e-3, "max": 0.1, "learn": None, "lr": 1e-3, "init": "random"} | (dt or {})
        if learn not in range(4) or set(steps) != {"min", "max", "learn", "lr", "init"}:
            raise ZooError(
                f"learn is 0, 1, 2 or 3 and dt has min, max, learn, lr and init, got {learn} and "
                f"{', '.join(steps)}"
            )
        if not ff and channels > 1:
            raise ZooError(f"ff: false leaves {channels} channels of each feature, expected one")
        self.l_max, self.dt_lr = l_max, steps["lr"]
        self.transition = make_transition(measure, N, learn, d, lr, **(measure_args or {}))
        makers = {"normal": torch.randn, "constant": torch.ones, "uniform": torch.rand}
        if init not in makers:
            raise ZooError(f"init is normal, uniform or constant, not '{init}'")
        self.C = nn.Parameter(makers[init](d, channels, N) * (1.732 if init == "uniform" else 1))
        D = torch.ones if init == "constant" else torch.randn
        self.D = nn.Parameter(D(d, channels))
        self.E = nn.Parameter(torch.zeros(d, channels)) if bias else None
        low, high = math.log(steps["min"]), math.log(steps["max"])
        evenly = steps["init"] == "uniform"
        log_dt = torch.linspace(low, high, d) if evenly else torch.rand(d) * (high - low) + low
        if learn if steps["learn"] is None else steps["learn"]:
            self.log_dt = nn.Parameter(log_dt)
        else:
            self.register_buffer("log_dt", log_dt)
        self.activate = activation_of(activation)
        self.drop = dropout_of(dropout, False)
        self.output_linear = nn.Linear(channels * d, d) if ff else nn.Identity()

    def learning_rates(self) -> dict[str, float | None]:
        """Of the steps, where they are trained."""
        return {"log_dt": self.dt_lr} if isinstance(self.log_dt, nn.Parameter) else {}

    def discrete(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """A-bar ``[H, N, N]`` and B-bar ``[H, N]`` of steps ``rate`` times as long."""
        return self.transition.discrete(at_least_fp32(self.log_dt).exp() * rate)

    def kernel(self, length: int, rate: float = 1.0) -> Tensor:
        """K ``[M, H, length]``: C times the Krylov matrix (section 3.2)."""
        powers = krylov(*self.discrete(rate), length)  # [H, N, L]
        return torch.einsum("hmn,hnl->mhl", at_least_fp32(self.C), powers)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: SSMState | None = None,
        rate: float = 1.0,
    ) -> Tensor:
        """``[B, L, H]`` to the same.

        Args:
            x: steps.
            lengths: of the sequences; no step sees a later one, so that they play no role.
            state: of :meth:`allocate_state`; x goes on where it stands, and it advances.
            rate: sampling is so many times slower than in training.

        Raises:
            ZooError: if x is longer than ``l_max``.
        """
        if self.l_max is not None and x.shape[1] > round(self.l_max / rate):
            raise ZooError(
                f"the input of {x.shape[1]} steps is longer than l_max {self.l_max} at rate "
                f"{rate:g}: cut it into parts and pass the state, or set l_max"
            )
        u = at_least_fp32(x.transpose(1, 2))  # [B, H, L]
        D = at_least_fp32(self.D).T  # [M, H]
        if state is not None:
            y, states = [], state.ssm
            for step in u.unbind(-1):
                out, states = state.recurrence.step(states, step)
                y.append(out + D * step[:, None])
            state.ssm = states
            out = torch.stack(y, -1)  # [B, M, H, L]
        else:
            K = self.kernel(x.shape[1], rate)
            out = fft_conv(u, K, D)  # [B, M, H, L]
        out = out.permute(0, 3, 2, 1)  # [B, L, H, M]
        out = out if self.E is None else out + self.E
        return self.output_linear(self.drop(self.activate(out)).flatten(2).to(x.dtype))

    def allocate_state(
        self, batch_size: int, mode: str | None = None, rate: float = 1.0
    ) -> SSMState:
        """The state before the first step, for the weights as they are now.

        Raises:
            ZooError: if the mode is not None or "dense".
        """
        if mode not in (None, "dense"):
            raise ZooError(
                f"the state matrix of LSSL is dense: expected mode 'dense', not '{mode}'"
            )
        with torch.no_grad():
            A, B = self.discrete(rate)
            recurrence = DenseRecurrence(A, B, at_least_fp32(self.C).transpose(0, 1))
        return SSMState(recurrence.initial_state(batch_size), recurrence)


class LSSL(SequenceModel):
    """A stack of LSSL layers that classifies a sequence (appendix F).

    Args:
        num_classes: classes; or outputs of a regression.
        d_input: features of a step; None for tokens.
        vocab_size: number of tokens; None for features.
        d_model: H, width.
        n_layers: layers.
        d_state: N, order.
        channels: M.
        learn: 1 trains the state matrix and the steps, 0 (LSSL-f) only C, D and what mixes.
        dropout: in a layer and after it.
        norm, prenorm: "layer" or "batch", after the sums or before the layers.
        decoder: "pool", the mean of all steps, or "last".
        paired: whether two sequences are compared.
        layer: other arguments of :class:`LSSLLayer`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        d_input: int | None = None,
        vocab_size: int | None = None,
        d_model: int = 128,
        n_layers: int = 6,
        d_state: int = 128,
        channels: int = 1,
        learn: int = 1,
        dropout: float = 0.0,
        norm: str = "layer",
        prenorm: bool = False,
        decoder: str = "pool",
        paired: bool = False,
        **layer: Any,
    ) -> None:
        def make(d: int) -> nn.Module:
            settings = dict(channels=channels, learn=learn, dropout=dropout)
            return LSSLLayer(d, d_state, **(settings | layer))

        backbone = Backbone(d_model, n_layers, [make], norm, prenorm, dropout)
        super().__init__(backbone, d_model, num_classes, d_input, vocab_size, decoder, paired)

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the authors' code; the constants among them are left out."""
        return rename_outer({k: v for k, v in state.items() if not k.endswith(CONSTANTS)})


def build(settings: dict[str, Any], overrides: dict[str, Any]) -> LSSL:
    """A variant with some of its settings replaced."""
    return LSSL(**(settings | overrides))


@register_model(parameters=207_382)
def lssl_mnist(**overrides: Any) -> LSSL:
    """LSSL for sequential and permuted MNIST: 6 layers of width 128 and order 128."""
    return build(dict(d_input=1, dropout=0.2, l_max=784), overrides)


@register_model(parameters=201_226)
def lssl_f_mnist(**overrides: Any) -> LSSL:
    """LSSL-f for sequential and permuted MNIST, with fixed state matrices and steps."""
    return build(dict(d_input=1, dropout=0.2, l_max=784, learn=0), overrides)


#: The large configuration: 4 channels of each feature.
LARGE: dict[str, Any] = dict(d_model=256, n_layers=4, d_state=256, channels=4)


@register_model(parameters=2_116_114)
def lssl_cifar(**overrides: Any) -> LSSL:
    """LSSL for sequential CIFAR-10: 4 layers of width 256, order 256 and 4 channels."""
    return build(LARGE | dict(d_input=3, dropout=0.3, l_max=1024), overrides)


@register_model(parameters=2_107_914)
def lssl_f_cifar(**overrides: Any) -> LSSL:
    """LSSL-f for sequential CIFAR-10, with fixed state matrices and steps."""
    return build(LARGE | dict(d_input=3, dropout=0.3, l_max=1024, learn=0), overrides)


@register_model(parameters=206_605)
def lssl_bidmc(**overrides: Any) -> LSSL:
    """LSSL for vital signs of BIDMC as a regression: 6 layers of width 128 and order 128."""
    return build(dict(num_classes=1, d_input=2, dropout=0.1, l_max=4000, prenorm=True), overrides)


@register_model(parameters=799_762)
def lssl_speech(**overrides: Any) -> LSSL:
    """LSSL for raw Speech Commands, ten words: 4 layers of width 256, 2 channels."""
    settings = dict(d_input=1, d_model=256, n_layers=4, channels=2, dropout=0.2, l_max=16000,
                    prenorm=True)  # fmt: skip
    return build(settings, overrides)


@register_model(parameters=210_070)
def lssl_mfcc(**overrides: Any) -> LSSL:
    """LSSL for MFCC features of Speech Commands, ten words: 6 layers of width 128."""
    return build(dict(d_input=20, dropout=0.4, l_max=161, prenorm=True), overrides)


@register_model(parameters=1_190_536)
def lssl_celeba(**overrides: Any) -> LSSL:
    """LSSL for attributes of CelebA as sequences of 38,000 pixels: 3 layers, 4 channels."""
    settings = dict(num_classes=2, d_input=3, d_model=256, n_layers=3, channels=4, dropout=0.1,
                    l_max=38000, prenorm=True)  # fmt: skip
    return build(settings, overrides)
