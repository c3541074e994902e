"""PTD: state space models by perturb-then-diagonalise (Yu, Nigmetov, Morozov, Mahoney and Erichson,
arXiv 2310.01698).

S4D and S5 diagonalise HiPPO's matrix without its low-rank part, which leaves a peak in the transfer
function: an input at that frequency drowns all others. PTD keeps the whole matrix, adds a small
dense E that makes it diagonalisable (:mod:`zoo.models.ssm._ptd_basis`), and leaves S4's and S5's
networks as they are: :class:`S4PTD`, :class:`S5PTD`.

As in the authors' code (AnnanYu/Approximate_Diagonal at ec98d6a): S4-PTD has as many modes as
``d_state`` says, all of them counted twice in the kernel as if each had a conjugate, and trains C
times B as one parameter; S5-PTD takes the real part of all modes. Different: states pass from part
to part and step by step (there a step forgets its input); the search for E keeps the modes stable,
where there the real parts of a finished basis change their sign; padding does not reach the states;
C of the robustness network has no weight decay (there 0.05).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.layers.plain import like
from zoo.layers.ssm_kernel import DiagonalKernel, untransformed
from zoo.models.registry import register_model
from zoo.models.ssm._backbone import Decoder, rename_s4
from zoo.models.ssm._ptd_basis import ptd_basis
from zoo.models.ssm._s5 import S5SSM, S5Layer, rename_flax
from zoo.models.ssm.s4 import S4

#: What the optimizer does with B of S5: whether it has the rate of the state matrix, and a decay.
OPTIONS = {"standard": (True, False), "BandCdecay": (True, True), "BfastandCdecay": (False, True)}


class PTDKernel(DiagonalKernel):
    """S4's kernel with the modes of A + E (section 4).

    Args:
        d_model, channels, l_max: see :class:`zoo.layers.ssm_kernel.DiagonalKernel`.
        d_state: N, modes.
        basis: a .mat file of the authors; None: a search.
        fold: C stands for C times B.
        settings: others of :class:`zoo.layers.ssm_kernel.DiagonalKernel`.
    """

    def __init__(
        self,
        d_model: int,
        channels: int = 1,
        l_max: int | None = None,
        *,
        d_state: int = 64,
        basis: str | None = None,
        fold: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(d_model, channels, l_max, d_state=2 * d_state, **settings)
        Lambda, V, Vinv = ptd_basis(d_state, basis)
        B = Vinv @ (2 * torch.arange(d_state) + 1).sqrt().to(V.dtype)
        C = torch.randn(channels, d_model, d_state).to(V.dtype) @ V
        with torch.no_grad():
            self.A_real.copy_(untransformed(Lambda.real.abs(), self.real_transform))
            self.A_imag.copy_(-Lambda.imag)
            self.B.copy_(torch.view_as_real(B))
            self.C.copy_(torch.view_as_real(C * B if fold else C))
        self.fold = fold
        if fold:
            del self.B

    def _input(self) -> Tensor:
        return torch.ones_like(self._complex(self.C[:1])) if self.fold else super()._input()


class S4PTD(S4):
    """A stack of S4 layers with PTD's kernels that classifies a sequence.

    Args:
        basis: a .mat file of the authors; None: a search.
        settings: of :class:`zoo.models.ssm.s4.S4` and :class:`PTDKernel`.
    """

    def __init__(self, num_classes: int = 10, basis: str | None = None, **settings: Any) -> None:
        super().__init__(
            num_classes, mode=PTDKernel, basis=basis, **({"init": "diag-lin"} | settings)
        )

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the authors' S4 block or of their standalone networks."""
        if not any(key.startswith("s4_layers.") for key in state):
            return rename_s4(state)
        renamed = {}
        for key, value in state.items():
            key = re.sub(r"^s4_layers\.(\d+)\.(D|kernel\.)", r"model.layers.\1.layer.layer.\2", key)
            key = re.sub(r"^s4_layers\.(\d+)\.", r"model.layers.\1.layer.", key)
            key = re.sub(r"^norms\.(\d+)\.", r"model.layers.\1.norm.norm.", key)
            key = re.sub(r"^decoder\.", r"decoder.output_transform.", key)
            key = key.replace("kernel.log_A_real", "kernel.A_real")
            if key.endswith("output_linear.0.weight"):
                value = value.squeeze(-1)  # a convolution of width 1 there
            elif key.endswith((".D", "kernel.B", "kernel.C")):
                value = value[None]
            elif key.endswith("kernel.log_dt"):
                key, value = key.removesuffix("log_dt") + "inv_dt", value[:, None]
            renamed[key] = value
        return renamed


class S5Stack(nn.Module):
    """A linear layer and S5 layers (StackedEncoderModel).

    Args:
        d_input: features of a step, or number of tokens.
        d_model: H.
        layers: of S5.
    """

    def __init__(self, d_input: int, d_model: int, layers: list[S5Layer]) -> None:
        super().__init__()
        self.encoder = nn.Linear(d_input, d_model)
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: Tensor, lengths: Tensor | None, rate: float) -> Tensor:
        """Features ``[B, L, F]`` or tokens ``[B, L]`` to ``[B, L, H]``."""
        if inputs.dim() == 2:
            one_hot = F.one_hot(inputs, self.encoder.in_features)
            inputs = one_hot.to(like(self.encoder).dtype)
        x = self.encoder(inputs)
        for layer in self.layers:
            x, _ = layer(x, lengths, rate=rate)
        return x


class S5PTD(nn.Module):
    """A stack of S5 layers with PTD's basis that classifies a sequence.

    A :class:`zoo.models.ssm._protocol.SequenceClassifier`.

    Args:
        num_classes: classes.
        d_input: features of a step; None for tokens.
        vocab_size: number of tokens; None for features.
        d_model: H, width.
        n_layers: layers.
        ssm_size: P, modes of a layer.
        blocks: J; each starts with the basis of order P / J.
        basis: a .mat file of the authors; None: a search.
        activation, prenorm, batchnorm, dropout: see :class:`zoo.models.ssm._s5.S5Layer`.
        mode: "pool", the mean of all steps, or "last".
        paired: whether two sequences are compared.
        opt_config: what is done with B: "standard" (the rate of the state matrix, no decay),
            "BandCdecay" (that rate, decay), "BfastandCdecay" (the rate of all others, decay).
        ssm_lr: learning rate of the state matrix and the steps.
        dt_global: steps have the rate of all others, and decay.
        ssm: others of :class:`zoo.models.ssm._s5.S5SSM`.

    Raises:
        ZooError: if settings do not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        d_input: int | None = None,
        vocab_size: int | None = None,
        d_model: int = 128,
        n_layers: int = 6,
        ssm_size: int = 256,
        blocks: int = 8,
        basis: str | None = None,
        activation: str = "half_glu1",
        prenorm: bool = True,
        batchnorm: bool = True,
        dropout: float = 0.0,
        mode: str = "pool",
        paired: bool = False,
        opt_config: str = "standard",
        ssm_lr: float = 0.001,
        dt_global: bool = False,
        **ssm: Any,
    ) -> None:
        super().__init__()
        if (d_input is None) == (vocab_size is None) or blocks < 1 or ssm_size % blocks:
            raise ZooError(
                f"a step is d_input features or one of vocab_size tokens, and blocks divide "
                f"ssm_size: got {d_input} and {vocab_size}, {blocks} and {ssm_size}"
            )
        if opt_config not in OPTIONS:
            raise ZooError(f"opt_config is one of {', '.join(OPTIONS)}, not '{opt_config}'")
        self.d_input, self.vocab_size, self.paired = d_input, vocab_size, paired
        self.opt_config, self.ssm_lr, self.dt_global = opt_config, ssm_lr, dt_global
        start = ptd_basis(ssm_size // blocks, basis)
        settings = {"conj_sym": False, "bidirectional": True} | ssm
        norm = "batch" if batchnorm else "layer"
        self.encoder = S5Stack(
            d_input or vocab_size or 0,
            d_model,
            [
                S5Layer(
                    S5SSM(d_model, start, blocks, **settings),
                    d_model, activation, norm, prenorm, dropout=dropout,
                )
                for _ in range(n_layers)
            ],
        )  # fmt: skip
        self.decoder = Decoder(d_model, num_classes, mode, paired)
        if paired:
            self.decoder.classifier[1] = nn.GELU("tanh")

    def forward(self, inputs: Tensor, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Logits ``[B, num_classes]``.

        Args:
            inputs: features ``[B, L, F]`` or tokens ``[B, L]``; paired ``[B, 2, L, ...]``.
            lengths: steps of each sequence, ``[B]`` or ``[B, 2]``; padding follows them.
            rate: sampling is so many times slower than in training.
        """
        if self.paired:
            inputs, lengths = inputs.flatten(0, 1), None if lengths is None else lengths.flatten()
        return self.decoder(self.encoder(inputs, lengths, rate), lengths)

    def weight_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: the state matrix and the steps have a rate of their own and no decay,
        B what ``opt_config`` says."""
        slow, decays = OPTIONS[self.opt_config]
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            last = name.rpartition(".")[2]
            kind = (False, True)
            if last in ("Lambda_re", "Lambda_im") or (last == "log_step" and not self.dt_global):
                kind = (True, False)
            elif last == "B":
                kind = (slow, decays)
            groups.setdefault(kind, []).append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": weight_decay if decay else 0.0,
                **({"lr": self.ssm_lr} if own_rate else {}),
            }
            for (own_rate, decay), parameters in groups.items()
        ]

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Arrays of the authors' flax model, keys joined by dots or slashes."""
        renamed = {}
        for key, value in rename_flax(state).items():
            key = re.sub(r"^decoder\.(weight|bias)$", r"decoder.output_transform.\1", key)
            key = key.replace("decoder.layer1.", "decoder.classifier.0.")
            renamed[key.replace("decoder.layer2.", "decoder.classifier.2.")] = value
        return renamed


def build_s4(settings: dict[str, Any], overrides: dict[str, Any]) -> S4PTD:
    """A variant of S4-PTD with some of its settings replaced."""
    return S4PTD(**(dict(norm="batch") | settings | overrides))


@register_model(parameters=1_592_842)
def s4_ptd_listops(**overrides: Any) -> S4PTD:
    """S4-PTD for ListOps of the Long Range Arena: 8 layers of width 256."""
    settings = dict(vocab_size=16, n_layers=8, prenorm=False, l_max=2048, dt_max=1.0, lr=0.0004)
    return build_s4(settings, overrides)


@register_model(parameters=1_256_706)
def s4_ptd_text(**overrides: Any) -> S4PTD:
    """S4-PTD for byte-level reviews of the Long Range Arena: 6 layers of width 256."""
    settings = dict(num_classes=2, vocab_size=258, l_max=4096, lr={"A": 0.001})
    return build_s4(settings, overrides)


@register_model(parameters=497_794)
def s4_ptd_retrieval(**overrides: Any) -> S4PTD:
    """S4-PTD for pairs of documents of the Long Range Arena: 6 layers of width 128."""
    settings = dict(num_classes=2, vocab_size=258, d_model=128, l_max=4000, paired=True,
                    lr={"A": 0.001})  # fmt: skip
    return build_s4(settings, overrides)


@register_model(parameters=400_138)
def s4_ptd_image(**overrides: Any) -> S4PTD:
    """S4-PTD for grey CIFAR-10 pixels of the Long Range Arena: 6 layers of width 128."""
    settings = dict(d_input=1, d_model=128, norm="layer", prenorm=False, dropout=0.1, l_max=1024)
    return build_s4(settings, overrides)


@register_model(parameters=1_191_170)
def s4_ptd_pathfinder(**overrides: Any) -> S4PTD:
    """S4-PTD for Pathfinder of the Long Range Arena: 6 layers of width 256."""
    return build_s4(dict(num_classes=2, d_input=1, l_max=1024), overrides)


@register_model(parameters=399_362)
def s4_ptd_pathx(**overrides: Any) -> S4PTD:
    """S4-PTD for Path-X of the Long Range Arena: 6 layers of width 128."""
    settings = dict(num_classes=2, d_input=1, d_model=128, l_max=16384, dt_min=1e-4)
    return build_s4(settings, overrides)


def build_s5(settings: dict[str, Any], overrides: dict[str, Any]) -> S5PTD:
    """A variant of S5-PTD with some of its settings replaced."""
    return S5PTD(**(settings | overrides))


#: Of the authors' standalone networks for CIFAR-10's pixels.
ALONE: dict[str, Any] = dict(d_input=3, d_state=32, norm="layer", prenorm=False, dropout=0.1,
                             n_ssm=None, bidirectional=False, dt_transform="exp")  # fmt: skip


@register_model(parameters=167_690)
def s4_ptd_robust(**overrides: Any) -> S4PTD:
    """The network of the robustness study: 4 layers of width 128 without residuals, C trained."""
    settings = dict(d_model=128, n_layers=4, residual=False, skip=False, fold=False,
                    lr={"A": 0.0, "B": 0.0, "dt": 0.0, "C": 0.004})  # fmt: skip
    return build_s4(ALONE | settings, overrides)


@register_model(parameters=3_564_554)
def s4_ptd_ablation(**overrides: Any) -> S4PTD:
    """The network of the study of E's size: 6 layers of width 512."""
    return build_s4(ALONE | dict(d_model=512), overrides)


@register_model(parameters=237_834)
def s5_ptd_listops(**overrides: Any) -> S5PTD:
    """S5-PTD for ListOps of the Long Range Arena: 8 layers of width 128, blocks of 2."""
    settings = dict(vocab_size=20, n_layers=8, ssm_size=16, activation="half_glu2",
                    opt_config="BfastandCdecay")  # fmt: skip
    return build_s5(settings, overrides)


@register_model(parameters=2_207_618)
def s5_ptd_text(**overrides: Any) -> S5PTD:
    """S5-PTD for reviews of the Long Range Arena: 6 layers of width 256, blocks of 16."""
    settings = dict(num_classes=2, vocab_size=135, d_model=256, ssm_size=192, blocks=12,
                    activation="half_glu2", dropout=0.1, dt_global=True)  # fmt: skip
    return build_s5(settings, overrides)


@register_model(parameters=1_364_226)
def s5_ptd_retrieval(**overrides: Any) -> S5PTD:
    """S5-PTD for pairs of documents of the Long Range Arena: 6 layers of width 128."""
    settings = dict(num_classes=2, vocab_size=98, blocks=16, paired=True, dt_global=True,
                    C_init="trunc_standard_normal")  # fmt: skip
    return build_s5(settings, overrides)


@register_model(parameters=8_676_106)
def s5_ptd_image(**overrides: Any) -> S5PTD:
    """S5-PTD for grey CIFAR-10 pixels of the Long Range Arena: 6 layers of width 512."""
    settings = dict(d_input=1, d_model=512, ssm_size=384, blocks=3, dropout=0.1, clip_eigs=True,
                    B_init="legs", opt_config="BfastandCdecay")  # fmt: skip
    return build_s5(settings, overrides)


@register_model(parameters=2_000_642)
def s5_ptd_pathfinder(**overrides: Any) -> S5PTD:
    """S5-PTD for Pathfinder of the Long Range Arena: 6 layers of width 192."""
    settings = dict(num_classes=2, d_input=1, d_model=192, dropout=0.05, ssm_lr=0.0009,
                    C_init="trunc_standard_normal")  # fmt: skip
    return build_s5(settings, overrides)


@register_model(parameters=1_286_146)
def s5_ptd_pathx(**overrides: Any) -> S5PTD:
    """S5-PTD for Path-X of the Long Range Arena: 6 layers of width 128."""
    settings = dict(num_classes=2, d_input=1, blocks=16, dt_min=1e-4, force_neg=True, ssm_lr=0.0006,
                    C_init="complex_normal", opt_config="BandCdecay")  # fmt: skip
    return build_s5(settings, overrides)
