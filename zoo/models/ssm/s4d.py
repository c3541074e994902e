"""S4D: diagonal state space models (Gu, Gupta, Goel and Ré, arXiv 2206.11893).

S4 without the low-rank part: the kernel is a sum of damped waves, and what matters is where they
start. The kernel, with its ways to discretise, to parametrise and to initialise, is
:class:`zoo.layers.ssm_kernel.DiagonalKernel`; here are the networks of the paper's study and of the
authors' minimal version (state-spaces/s4 at e757cef, ``models/s4/s4d.py``).

As their code has it, S4D-LegS starts with the input of HiPPO not halved, which the paper's theorem
would want.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from zoo.models.registry import register_model
from zoo.models.ssm._backbone import rename_s4
from zoo.models.ssm.s4 import S4


class S4D(S4):
    """A stack of S4D layers that classifies a sequence.

    Args:
        init: where A starts: "diag-lin", "diag-inv", "diag-legs", "diag-real", "diag-quad",
            "diag" (the first two, half of the copies each) and others, see
            :func:`zoo.layers.hippo.initial_ssm`.
        disc: "zoh", "bilinear" or "dss".
        final_act: "glu", or "id" as in the paper's study.
        settings: others of :class:`zoo.models.ssm.s4.S4`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        init: str = "diag-lin",
        disc: str = "zoh",
        final_act: str = "glu",
        **settings: Any,
    ) -> None:
        kernel = dict(mode="diag", init=init, disc=disc, final_act=final_act)
        super().__init__(num_classes, **(kernel | settings))

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of S4's code of any version, or of its minimal S4D."""
        if not any(key.startswith("s4_layers.") for key in state):
            return rename_s4(state)
        renamed = {}
        for key, value in state.items():
            key = re.sub(r"^s4_layers\.(\d+)\.(D|kernel\.)", r"model.layers.\1.layer.layer.\2", key)
            key = re.sub(r"^s4_layers\.(\d+)\.", r"model.layers.\1.layer.", key)
            key = re.sub(r"^norms\.(\d+)\.", r"model.layers.\1.norm.norm.", key)
            key = re.sub(r"^decoder\.(weight|bias)$", r"decoder.output_transform.\1", key)
            if key.endswith((".D", "kernel.C")):
                value = value[None]
            renamed[key] = value
        ones = {}  # B is 1 there, and no parameter
        for key, C in renamed.items():
            if key.endswith("kernel.C"):
                B = torch.zeros_like(C)
                B[..., 0] = 1
                ones[key[:-1] + "B"] = B
        return rename_s4(renamed | ones)


def build(settings: dict[str, Any], overrides: dict[str, Any]) -> S4D:
    """A variant with some of its settings replaced."""
    return S4D(**(settings | overrides))


@register_model(parameters=201_482)
def s4d_minimal(**overrides: Any) -> S4D:
    """The minimal S4D for sequential CIFAR-10: 4 layers of width 128, one direction, B fixed."""
    settings = dict(
        d_input=3, d_model=128, n_layers=4, prenorm=False, dropout=0.1, n_ssm=None,
        bidirectional=False, dt_transform="exp", lr={"A": 0.001, "dt": 0.001, "B": 0.0},
    )  # fmt: skip
    return build(settings, overrides)


#: Of the paper's study: 4 layers of width 128, no gate after the convolution.
STUDY: dict[str, Any] = dict(d_model=128, n_layers=4, final_act="id")


@register_model(parameters=135_946)
def s4d_cifar(**overrides: Any) -> S4D:
    """S4D of the paper's study, sequential CIFAR-10: 4 layers of width 128, both directions."""
    return build(STUDY | dict(d_input=3, prenorm=False, dropout=0.1, l_max=1024), overrides)


@register_model(parameters=106_403)
def s4d_speech(**overrides: Any) -> S4D:
    """S4D of the paper's study, raw Speech Commands of 35 words: one direction, last step."""
    settings = dict(num_classes=35, d_input=1, norm="batch", bidirectional=False, decoder="last")
    return build(STUDY | settings | dict(l_max=16000), overrides)


@register_model(parameters=333_057)
def s4d_bidmc(**overrides: Any) -> S4D:
    """S4D of the paper's study, vital signs of BIDMC as a regression: states of 256."""
    settings = dict(num_classes=1, d_input=2, d_state=256, l_max=4000)
    return build(STUDY | settings, overrides)


#: Of the Long Range Arena: a matrix for each feature, initialised as HiPPO-LegS's normal part.
ARENA: dict[str, Any] = dict(init="diag-legs", n_ssm=None, dt_transform="exp", norm="batch",
                             lr={"A": 0.001, "B": 0.001})  # fmt: skip


@register_model(parameters=533_770)
def s4d_listops(**overrides: Any) -> S4D:
    """S4D-LegS for ListOps of the Long Range Arena: 8 layers of width 128."""
    settings = dict(vocab_size=16, d_model=128, n_layers=8, prenorm=False, l_max=2048)
    return build(ARENA | settings, overrides)


@register_model(parameters=1_255_938)
def s4d_text(**overrides: Any) -> S4D:
    """S4D-LegS for byte-level reviews of the Long Range Arena: 6 layers of width 256."""
    return build(ARENA | dict(num_classes=2, vocab_size=258, l_max=4096), overrides)


@register_model(parameters=1_518_338)
def s4d_retrieval(**overrides: Any) -> S4D:
    """S4D-LegS for pairs of documents of the Long Range Arena: 6 layers of width 256."""
    settings = dict(num_classes=2, vocab_size=258, l_max=4000, paired=True)
    return build(ARENA | settings, overrides)


@register_model(parameters=3_956_746)
def s4d_image(**overrides: Any) -> S4D:
    """S4D-LegS for grey CIFAR-10 pixels of the Long Range Arena: 6 layers of width 512."""
    settings = dict(d_input=1, d_model=512, norm="layer", prenorm=False, dropout=0.1, l_max=1024)
    return build(ARENA | settings, overrides)


@register_model(parameters=1_190_402)
def s4d_pathfinder(**overrides: Any) -> S4D:
    """S4D-LegS for Pathfinder of the Long Range Arena: 6 layers of width 256."""
    return build(ARENA | dict(num_classes=2, d_input=1, l_max=1024), overrides)


@register_model(parameters=1_190_402)
def s4d_pathx(**overrides: Any) -> S4D:
    """S4D-LegS for Path-X of the Long Range Arena: 6 layers of width 256."""
    settings = dict(num_classes=2, d_input=1, l_max=16384, dt_min=1e-4,
                    lr={"A": 5e-4, "B": 0.001})  # fmt: skip
    return build(ARENA | settings, overrides)
