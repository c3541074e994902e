"""Mamba-360: the layers of a survey of state space models behind one interface (arXiv 2404.16112).

The survey compares papers by their own figures and publishes no code. Here every layer of its
tables whose authors published one is built by name, :func:`create_layer`, and one classifier,
:class:`Mamba360`, holds any of them, so that they can be compared on equal terms. Layers with a
paper in this zoo are that paper's; the others are in ``_mamba360_invariant.py``,
``_mamba360_gated.py`` and, for pictures, ``_mamba360_maps.py``.

They agree with: state-spaces/s4 (S4, S4D, and DSS with its softmax), lindermanlab/S5, H3, long
convolutions and Hyena of HazyResearch, the GSS of lucidrains, state-spaces/mamba. LRU, Mega's
averages and Liquid-S4 are checked against their papers' equations, step by step in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, check_choice
from zoo.layers.cache import LayerState, TensorState
from zoo.layers.mamba import Mamba
from zoo.layers.mamba2 import Mamba2
from zoo.layers.precision import at_least_fp32
from zoo.layers.s4 import SSMConv
from zoo.models.registry import register_model
from zoo.models.ssm._backbone import Backbone, SequenceModel
from zoo.models.ssm._mamba360_gated import GSS, Hyena, LiquidS4
from zoo.models.ssm._mamba360_invariant import DSS, LRU, LegendreUnit, MegaEMA, with_skip
from zoo.models.ssm._mamba360_maps import S4ND
from zoo.models.ssm._s5 import S5SSM, legs_basis
from zoo.models.ssm.flashbutterfly import LongConv
from zoo.models.ssm.h3 import H3
from zoo.models.ssm.lssl import LSSLLayer

Kind = Literal["lti", "gated_lti", "selective"]
#: Parameters of recurrences, beside those of kernels that say so themselves.
RECURRENT = {
    *("A_log", "dt_bias", "dt_proj.bias", "D"),
    *("nu_log", "theta_log", "gamma_log", "delta", "alpha"),
    *("Lambda_re", "Lambda_im", "log_step", "dss.Lambda_real", "dss.Lambda_imag"),
}


class SequenceLayer(nn.Module):
    """A layer of the survey: ``[B, L, H]`` to the same, each step from those before it.

    Attributes:
        kind: "lti" (linear, the same at all times: one convolution), "gated_lti" (such a one
            between gates or products of inputs) or "selective" (its recurrence follows the input).
        mixer: the layer as its paper has it.
    """

    kind: Kind
    mixer: Any

    def __init__(self, mixer: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.mixer, self.kind = mixer, kind

    @property
    def has_state(self) -> bool:
        """Whether it goes on from part to part, and step by step, at constant cost."""
        kernel = getattr(self.mixer, "kernel", None)
        return hasattr(self.mixer, "allocate_state") and getattr(kernel, "disc", None) != "dss"

    def forward(self, x: Tensor, state: LayerState | None = None) -> Tensor:
        """The outputs.

        Args:
            x: ``[B, L, H]``.
            state: of :meth:`allocate_state`: x goes on where it stands, and it advances.

        Raises:
            ZooError: if a state is given to a layer that has none.
        """
        if state is None:
            return self.mixer(x)
        self._check_state()
        return self.mixer(x, state=state)

    def allocate_state(self, batch_size: int) -> LayerState:
        """The state before the first step, for the weights as they are now.

        Raises:
            ZooError: if the layer has none.
        """
        self._check_state()
        return self.mixer.allocate_state(batch_size)

    def _check_state(self) -> None:
        if not self.has_state:
            raise ZooError(
                f"{type(self.mixer).__name__} reads whole inputs: it has no state, expected one of "
                f"{', '.join(name for name in LAYERS if name not in WITHOUT_STATE)}"
            )

    def learning_rates(self) -> dict[str, float | None]:
        """Parameters of the recurrence, which have no weight decay."""
        names = [f"mixer.{name}" for name, _ in self.mixer.named_parameters() if name in RECURRENT]
        return dict.fromkeys(names)

    def impulse(self, length: int) -> Tensor:
        """The kernel that the layer is, skips included: ``[H, length]``, or ``[H, H, length]``
        (outputs by inputs) where features mix.

        Raises:
            ZooError: if the layer is not "lti".
        """
        if self.kind != "lti":
            raise ZooError(
                f"{type(self.mixer).__name__} is {self.kind}: only time-invariant layers are a "
                "convolution"
            )
        return self.mixer.impulse(length)


class Conv(SSMConv):
    """S4's convolution alone, without an activation."""

    def __init__(self, d_model: int, **settings: Any) -> None:
        super().__init__(d_model, **({"activation": None} | settings))

    def impulse(self, length: int) -> Tensor:
        """``[H, length]``."""
        return with_skip(self.kernel(length)[0][0], at_least_fp32(self.D[0]))


class Convolved(DSS):
    """DSS's convolution."""

    impulse = Conv.impulse


class Dense(LSSLLayer):
    """LSSL's layer without a layer behind it."""

    def __init__(self, d_model: int, d_state: int = 64, **settings: Any) -> None:
        super().__init__(d_model, d_state, **({"ff": False, "activation": None} | settings))

    def impulse(self, length: int) -> Tensor:
        """``[H, length]``."""
        return with_skip(self.kernel(length)[0], at_least_fp32(self.D)[:, 0])


class Long(LongConv):
    """A long convolution without a layer behind it, over ``[B, L, H]``."""

    def __init__(self, d_model: int, **settings: Any) -> None:
        super().__init__(d_model, **({"activation": "id", "postact": None} | settings))

    def forward(self, u: Tensor) -> Tensor:
        """``[B, L, H]`` to the same."""
        return super().forward(u.transpose(1, 2)).transpose(1, 2)

    def impulse(self, length: int) -> Tensor:
        """``[H, length]``."""
        kernel = at_least_fp32(self.kernel()[0])
        kernel = F.pad(kernel, (0, max(0, length - kernel.shape[-1])))[..., :length]
        return with_skip(kernel, at_least_fp32(self.D[0]))


class S5(S5SSM):
    """S5's state space model, over HiPPO-LegS.

    Args:
        d_model: H.
        d_state: real size of the state, even.
        settings: of :class:`zoo.models.ssm._s5.S5SSM`.
    """

    def __init__(self, d_model: int, d_state: int = 64, **settings: Any) -> None:
        super().__init__(d_model, legs_basis(d_state), **settings)

    def forward(self, u: Tensor, state: TensorState | None = None) -> Tensor:  # type: ignore[override]
        """``[B, L, H]`` to the same; ``state`` goes on and is replaced."""
        y, last = super().forward(u, None if state is None else state.parts[0])
        if state is not None:
            state.parts = (last,)
        return y

    def allocate_state(self, batch_size: int) -> TensorState:
        """Zeros ``[B, P]``."""
        Lambda, _ = self.discrete()
        return TensorState(Lambda.new_zeros(batch_size, len(Lambda)))

    def impulse(self, length: int) -> Tensor:
        """``[H, H, length]``: what each feature answers to each, one after the other."""
        H = len(self.D)
        pulses = torch.zeros(H, length, H, dtype=self.D.dtype, device=self.D.device)
        pulses[:, 0] = torch.eye(H, dtype=self.D.dtype, device=self.D.device)
        return self(pulses).permute(2, 0, 1)


@dataclass(frozen=True)
class Layer:
    """A row of the survey.

    Args:
        kind: see :class:`SequenceLayer`.
        build: given H and settings, builds the mixer.
        paper: where it was published.
    """

    kind: Kind
    build: Callable[..., nn.Module]
    paper: str


def _s4d(d_model: int, **settings: Any) -> nn.Module:
    # B is fixed at one, as in S4's minimal version
    return Conv(d_model, **({"mode": "diag", "init": "diag-lin", "lr": {"B": 0.0}} | settings))


#: Name -> layer; the survey's order, oldest first within a kind.
LAYERS: dict[str, Layer] = {
    "lssl": Layer("lti", Dense, "arXiv 2110.13985"),
    "lmu": Layer("lti", LegendreUnit, "arXiv 2102.11417"),
    "s4": Layer("lti", Conv, "arXiv 2111.00396"),
    "dss": Layer("lti", Convolved, "arXiv 2203.14343"),
    "s4d": Layer("lti", _s4d, "arXiv 2206.11893"),
    "s5": Layer("lti", S5, "arXiv 2208.04933"),
    "mega_ema": Layer("lti", MegaEMA, "arXiv 2209.10655"),
    "long_conv": Layer("lti", Long, "arXiv 2302.06646"),
    "lru": Layer("lti", LRU, "arXiv 2303.06349"),
    "gss": Layer("gated_lti", GSS, "arXiv 2206.13947"),
    "liquid_s4": Layer("gated_lti", LiquidS4, "arXiv 2209.12951"),
    "h3": Layer("gated_lti", H3, "arXiv 2212.14052"),
    "hyena": Layer("gated_lti", Hyena, "arXiv 2302.10866"),
    "mamba": Layer("selective", Mamba, "arXiv 2312.00752"),
    "mamba2": Layer("selective", Mamba2, "arXiv 2405.21060"),
}
#: Name of the layer for maps ``[B, S1, S2, H]``, S4ND (arXiv 2210.06583).
MAPS = "s4nd"
#: Those that read whole inputs; and DSS with its softmax.
WITHOUT_STATE = ("long_conv", "hyena")


def create_layer(name: str, d_model: int, **settings: Any) -> nn.Module:
    """A layer of the survey by its name.

    Args:
        name: lssl, lmu, s4, dss, s4d, s5, mega_ema, long_conv, lru, gss, liquid_s4, h3, hyena,
            mamba or mamba2, a :class:`SequenceLayer`; or s4nd, for maps ``[B, S1, S2, H]``.
        d_model: H, width of the steps.
        settings: of the layer, such as ``d_state``; long_conv and hyena take ``l_max``.

    Raises:
        ZooError: if there is no such layer, or it has no such setting.
    """
    check_choice("layer", name, [*LAYERS, MAPS])
    try:
        mixer = (S4ND if name == MAPS else LAYERS[name].build)(d_model, **settings)
    except TypeError as error:
        raise ZooError(f"the layer {name}: {error}") from error
    return mixer if name == MAPS else SequenceLayer(mixer, LAYERS[name].kind)


class MixedLayer(nn.Module):
    """A layer of the survey and what mixes its features: GELU, linear layer, gate.

    Args:
        d_model: H.
        mixer: the layer.
    """

    def __init__(self, d_model: int, mixer: SequenceLayer) -> None:
        super().__init__()
        self.mixer = mixer
        self.output = nn.Linear(d_model, 2 * d_model)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: LayerState | None = None,
        rate: float = 1.0,
    ) -> Tensor:
        """``[B, L, H]`` to the same.

        Args:
            x: steps.
            lengths: of the sequences; no step sees a later one, so that they play no role.
            state: see :meth:`SequenceLayer.forward`.
            rate: 1: the layers of the survey have no common step size.

        Raises:
            ZooError: for another rate.
        """
        if rate != 1:
            raise ZooError(f"Mamba360 has no step size to scale: expected rate 1, got {rate:g}")
        return F.glu(self.output(F.gelu(self.mixer(x, state))))

    def allocate_state(self, batch_size: int, mode: None = None, rate: float = 1.0) -> LayerState:
        """See :meth:`SequenceLayer.allocate_state`."""
        return self.mixer.allocate_state(batch_size)


def mixed_layer(d_model: int, layer: str, settings: dict[str, Any]) -> MixedLayer:
    """A layer of the survey by its name, with what mixes its features.

    Raises:
        ZooError: if there is no such layer of sequences, or it has no such setting.
    """
    check_choice("Mamba360: layer", layer, LAYERS)
    return MixedLayer(d_model, cast(SequenceLayer, create_layer(layer, d_model, **settings)))


class Mamba360(SequenceModel):
    """A classifier of sequences with any layer of the survey.

    Args:
        num_classes: classes.
        layer: name, see :func:`create_layer`.
        layer_args: settings of the layer.
        d_input: features of a step; None for tokens.
        vocab_size: number of tokens; None for features.
        d_model, n_layers: H and how many layers.
        decoder: "pool" or "last".
        norm, prenorm, dropout: see :class:`zoo.models.ssm._backbone.ResidualBlock`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        layer: str = "s4d",
        layer_args: dict[str, Any] | None = None,
        d_input: int | None = 1,
        vocab_size: int | None = None,
        d_model: int = 128,
        n_layers: int = 4,
        decoder: str = "pool",
        norm: str | None = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        backbone = Backbone(
            d_model, n_layers, [lambda width: mixed_layer(width, layer, layer_args or {})],
            norm=norm, prenorm=prenorm, dropout=dropout,
        )  # fmt: skip
        super().__init__(backbone, d_model, num_classes, d_input, vocab_size, decoder)

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The survey published no weights: those saved here."""
        return dict(state)


@register_model(parameters=201_482)
def mamba360(**overrides: Any) -> Mamba360:
    """The survey's comparison: 4 layers of width 128; S4D unless another ``layer`` is named."""
    return Mamba360(**overrides)
