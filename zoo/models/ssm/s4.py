"""S4: structured state spaces for long sequences (Gu, Goel and Ré, arXiv 2111.00396).

The layer, a convolution with the kernel of a state space model whose matrix is diagonal plus low
rank, is :class:`zoo.layers.s4.S4Block`; its kernel and its steps are in
:mod:`zoo.layers.ssm_kernel`. Here are the networks: classifiers of the Long Range Arena, of pixels
and of speech, and the language model's backbone, in the configurations of the authors' repository
(state-spaces/s4 at e757cef, its fourth version; those of the paper differ in width, depth and
rates).

Where code and paper differ, this follows the code: the matrix is diag(A) - P P* (the paper's P Q*
can become unstable), convolutions look both ways, with a layer that is gated (GLU) after them, and
the convolution that looks ahead begins one step ahead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.layers.cache import Cache
from zoo.models.registry import register_model
from zoo.models.ssm._backbone import (
    Backbone,
    FeedForward,
    SequenceModel,
    kernel_groups,
    rename_s4,
    s4_layer,
)


class S4(SequenceModel):
    """A stack of S4 layers that classifies a sequence (section 4 and appendix D).

    Args:
        num_classes: classes; or outputs of a regression.
        d_input: features of a step; None for tokens.
        vocab_size: number of tokens; None for features.
        d_model: H, width.
        n_layers: layers.
        d_state: N, real size of a state.
        norm, prenorm: "layer" or "batch", before the layers or after the sums.
        dropout, tie_dropout: after layers and inside them; tied: of whole features.
        bidirectional: a second kernel looks ahead.
        residual: layers are added to their inputs.
        decoder: "pool", the mean of all steps, or "last".
        paired: whether two sequences are compared.
        l_max: longest input; None for no bound.
        lr: learning rate of A, B and dt, see :class:`zoo.layers.ssm_kernel.DiagonalKernel`.
        layer: other arguments of :class:`zoo.layers.s4.S4Block` and its kernel.
    """

    def __init__(
        self,
        num_classes: int = 10,
        d_input: int | None = None,
        vocab_size: int | None = None,
        d_model: int = 256,
        n_layers: int = 6,
        d_state: int = 64,
        norm: str = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = True,
        bidirectional: bool = True,
        residual: bool = True,
        decoder: str = "pool",
        paired: bool = False,
        l_max: int | None = None,
        lr: float | dict[str, float | None] | None = 0.001,
        **layer: Any,
    ) -> None:
        make = s4_layer(
            **{"mode": "dplr", "init": "legs", "n_ssm": 1, "dt_transform": "softplus"}
            | {"d_state": d_state, "bidirectional": bidirectional, "l_max": l_max, "lr": lr}
            | {"dropout": dropout, "tie_dropout": tie_dropout}
            | layer
        )
        backbone = Backbone(
            d_model, n_layers, [make], norm, prenorm, dropout, tie_dropout, residual
        )
        super().__init__(backbone, d_model, num_classes, d_input, vocab_size, decoder, paired)


class S4Stack(nn.Module):
    """The language model's backbone: twice S4 and a feed-forward layer, n times (appendix D.3.3).

    Args:
        d_model: width.
        n_layers: repetitions.
        dropout: after every layer and inside it.
        l_max: longest input that is read at once; longer ones go through in parts.
        d_state: N.
        expand: width of the feed-forward layer.
        lr: learning rate of A, B and dt.
        layer: other arguments of :class:`zoo.layers.s4.S4Block`.
    """

    def __init__(
        self,
        d_model: int = 1024,
        n_layers: int = 16,
        dropout: float = 0.25,
        l_max: int | None = 8192,
        d_state: int = 64,
        expand: float = 4,
        lr: float | dict[str, float | None] | None = 5e-4,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        make = s4_layer(
            **{"d_state": d_state, "l_max": l_max, "dropout": dropout, "n_ssm": 1, "lr": lr}
            | {"dt_transform": "softplus"}
            | layer
        )
        feed_forward = partial(FeedForward, expand=expand, dropout=dropout)
        self.model = Backbone(d_model, n_layers, [make, make, feed_forward], dropout=dropout)

    def forward(
        self,
        inputs_embeds: Tensor,
        lengths: Tensor | None = None,
        cache: Cache | None = None,
        rate: float = 1.0,
    ) -> Tensor:
        """``[B, L, d_model]`` to the same; see :meth:`zoo.models.ssm._backbone.Backbone.forward`.

        With a cache, the inputs go on where the last ones ended.
        """
        return self.model(inputs_embeds, lengths, cache, rate)

    def allocate_cache(self, batch_size: int, mode: str | None = None) -> Cache:
        """The states before the first step."""
        return self.model.allocate_cache(batch_size, mode)

    def weight_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: those of the kernels have rates of their own and no decay."""
        return kernel_groups(self, weight_decay)

    def remap_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of S4's code, of any version; those of its embedding and softmax are left out."""
        backbone = {k: v for k, v in state.items() if k.startswith("model.")}
        return rename_s4(backbone)


def build(settings: dict[str, Any], overrides: dict[str, Any]) -> S4:
    """A variant with some of its settings replaced."""
    return S4(**(settings | overrides))


@register_model(parameters=814_674)
def s4_listops(**overrides: Any) -> S4:
    """S4 for ListOps of the Long Range Arena: 6 layers of width 256, states of 4."""
    settings = dict(vocab_size=16, d_state=4, norm="batch", prenorm=False, l_max=2048,
                    lr={"A": 0.001, "B": 0.001})  # fmt: skip
    return build(settings, overrides)


@register_model(parameters=875_082)
def s4_text(**overrides: Any) -> S4:
    """S4 for byte-level reviews of the Long Range Arena: 6 layers of width 256, states of 4."""
    settings = dict(num_classes=2, vocab_size=258, d_state=4, norm="batch", l_max=4096,
                    lr={"A": 0.001, "B": 0.001})  # fmt: skip
    return build(settings, overrides)


@register_model(parameters=1_137_482)
def s4_retrieval(**overrides: Any) -> S4:
    """S4 for pairs of documents of the Long Range Arena: 6 layers of width 256, states of 4."""
    settings = dict(num_classes=2, vocab_size=258, d_state=4, norm="batch", l_max=4000,
                    paired=True, lr={"A": 0.001, "B": 0.001})  # fmt: skip
    return build(settings, overrides)


@register_model(parameters=3_564_682)
def s4_image(**overrides: Any) -> S4:
    """S4 for grey CIFAR-10 pixels of the Long Range Arena: 6 layers of width 512."""
    settings = dict(d_input=1, d_model=512, norm="batch", prenorm=False, dropout=0.1, l_max=1024)
    return build(settings, overrides)


@register_model(parameters=1_288_706)
def s4_pathfinder(**overrides: Any) -> S4:
    """S4 for Pathfinder of the Long Range Arena: 6 layers of width 256, a matrix per feature."""
    settings = dict(num_classes=2, d_input=1, norm="batch", n_ssm=None, l_max=1024)
    return build(settings, overrides)


@register_model(parameters=1_288_706)
def s4_pathx(**overrides: Any) -> S4:
    """S4 for Path-X of the Long Range Arena: as Pathfinder, over 16,384 pixels."""
    settings = dict(num_classes=2, d_input=1, norm="batch", n_ssm=None, l_max=16384, dt_min=1e-4)
    return build(settings, overrides)


@register_model(parameters=3_566_858)
def s4_cifar(**overrides: Any) -> S4:
    """S4 for sequential CIFAR-10, pixel after pixel: 6 layers of width 512."""
    settings = dict(d_input=3, d_model=512, prenorm=False, dropout=0.1, n_ssm=2, l_max=1024)
    return build(settings, overrides)


@register_model(parameters=303_626)
def s4_speech(**overrides: Any) -> S4:
    """S4 for raw Speech Commands, ten words: 6 layers of width 128."""
    settings = dict(d_input=1, d_model=128, norm="batch", n_ssm=2, l_max=16000)
    return build(settings, overrides)


@register_model(
    source="hf://krandiash/sashimi-release/checkpoints/s4-wt103.pt", parameters=203_743_232
)
def s4_wt103(**overrides: Any) -> S4Stack:
    """Backbone of S4's language model of WikiText-103: 16 times two S4 layers and one of MLP."""
    return S4Stack(**overrides)
