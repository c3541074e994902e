"""MambaMixer: selection among tokens and among channels (Behrouz et al., arXiv 2403.19888).

ViM2 for pictures and TSM2 for time series. The authors published no code and no weights; what the
paper leaves open is decided here and marked "our choice", and published parameter counts are met
only nearly (ViM2-T, S, B: 22.5, 40.5, 69.9 M here, 20, 43, 74 M there). TSM2's sizes, and its norm
over width and patches, follow a public replication (n8thantran/mambamixer-replication, 34052f7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers.mamba import Mamba
from zoo.layers.ss2d import SS2D
from zoo.layers.vss import VSSBlock, stem_v1
from zoo.models.registry import register_model
from zoo.models.vision._backbone import drop_path_rates, register_backbone
from zoo.models.vision._staged import PLACES, Stage, StagedBackbone

CHANNEL_MIXERS = ("mamba", "mlp", "none")


class ViM2(StagedBackbone):
    """Vision MambaMixer (section 4): a four-stage backbone, weighted averaging within each stage.

    Args:
        patch_size: side of a patch, stride of the stem.
        in_chans: input channels.
        num_classes: outputs; 0 for features only.
        depths: token mixers of each stage.
        channel_depths: channel mixers of each stage, spread evenly among them.
        dims: channels of each stage, or of the first, each next having twice as many.
        d_state, ssm_ratio: of the token mixers, see :class:`zoo.layers.ss2d.SS2D`.
        channel_ratio: width of the channel mixers of each stage over the stage's (table 8).
        channel_width: see :class:`ChannelMixer`.
        channel_mixer: "mamba"; or "mlp" (the paper's ablation), or "none".
        averaging: False for plain skip connections.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last mixer, rising linearly from 0.
        global_pool: pooling before the classifier: avg, max, avgmax, or "" for none.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 6, 2),
        channel_depths: Sequence[int] = (1, 1, 3, 1),
        dims: int | Sequence[int] = 96,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        channel_ratio: Sequence[float] = (2, 2, 2, 1),
        channel_width: int = 8,
        channel_mixer: str = "mamba",
        averaging: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        _check_channel_mixer(channel_mixer)
        if channel_mixer == "none":
            channel_depths = [0] * len(depths)
        if any(c and t % c for t, c in zip(depths, channel_depths, strict=True)):
            raise ZooError(
                f"channel_depths {[*channel_depths]} do not divide depths {[*depths]}: after every "
                "so many token mixers stands one channel mixer"
            )
        self.patch_embed = stem_v1(in_chans, dims[0], patch_size, nn.LayerNorm)
        self.min_size = patch_size
        token = {"d_state": d_state, "ssm_ratio": ssm_ratio}
        rates = drop_path_rates(drop_path_rate, sum(depths))
        stages = []
        for i, (dim, depth, channels) in enumerate(zip(dims, depths, channel_depths, strict=True)):
            first = sum(depths[:i])
            of_stage = rates[first : first + depth]
            tokens = [VSSBlock(dim, SS2D, token, {"mlp_ratio": 0}, rate) for rate in of_stage]
            mixers = [
                ChannelBlock(dim, channel_mixer, channel_ratio[i], channel_width, rate)
                for rate in of_stage[:: depth // channels if channels else 1][:channels]
            ]
            down = PatchMerging(dim, dims[i + 1]) if i + 1 < len(dims) else nn.Identity()
            stages.append(Stage([AveragedBlocks(tokens, mixers, averaging)], down))
        norm = nn.LayerNorm(dims[-1])
        self.finish(stages, dims, patch_size, norm, num_classes, drop_rate, global_pool)


class ChannelBlock(nn.Module):
    """x + mixer(norm(x)), where the mixer is :class:`ChannelMixer` or an MLP over the channels."""

    def __init__(
        self, dim: int, kind: str, ratio: float, width: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        hidden = int(ratio * dim)
        self.mixer = Mlp(dim, hidden) if kind == "mlp" else ChannelMixer(dim, hidden, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return x + self.drop_path(self.mixer(self.norm(x)))


class ChannelMixer(nn.Module):
    """Selective channel mixer of one position: its channels are the sequence (section 3.2).

    A scan whose features are the positions would fix the size of the pictures. So every position is
    a sequence of its own, and each channel's value is widened by a learned vector of that channel,
    the same at all positions (our choice).

    Args:
        dim: C.
        hidden: E, channels that are scanned, both ways.
        width: features that a channel's value is widened to.
    """

    def __init__(self, dim: int, hidden: int, width: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden)
        self.widen = nn.Parameter(torch.empty(hidden, width))
        self.scan = Mamba(width, expand=1, bimamba_type="v2")
        self.narrow = nn.Parameter(torch.empty(hidden, width))
        self.out_proj = nn.Linear(hidden, dim)
        nn.init.trunc_normal_(self.widen, std=1.0)
        nn.init.trunc_normal_(self.narrow, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        channels = self.in_proj(x)[..., None] * self.widen  # [..., E, width]
        y = self.scan(channels.flatten(0, -3)).view_as(channels)
        return self.out_proj((y * self.narrow).sum(dim=-1))


class TSM2(nn.Module):
    """Time Series MambaMixer (section 5): forward in time, both ways among the variates.

    Each window is normalised by itself (RevIN without weights), cut into patches of each variate,
    mixed, and mapped to the horizon by one linear layer that all variates share.

    Args:
        variates: M, series that are forecast together, in a fixed order.
        seq_len: L, steps of history.
        pred_len: T, steps of forecast.
        patch_len, stride: of the patches.
        d_model: width of the patches.
        depth: pairs of a token and a channel mixer.
        d_state, d_conv, expand: see :class:`zoo.layers.mamba.Mamba`.
        dropout: after the embedding, of each mixer and before the last layer.
        channel_mixer: "mamba"; or "mlp" over the width (the paper's ablation TSM2-MLP), or "none".
        averaging: False for plain skip connections.
    """

    def __init__(
        self,
        variates: int = 7,
        seq_len: int = 512,
        pred_len: int = 96,
        patch_len: int = 16,
        stride: int = 8,
        d_model: int = 32,
        depth: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dropout: float = 0.3,
        channel_mixer: str = "mamba",
        averaging: bool = True,
    ) -> None:
        super().__init__()
        _check_channel_mixer(channel_mixer)
        if seq_len < patch_len:
            raise ZooError(f"seq_len {seq_len} is shorter than a patch, patch_len {patch_len}")
        self.variates, self.seq_len, self.pred_len = variates, seq_len, pred_len
        self.patch_len, self.stride = patch_len, stride
        patches = (seq_len - patch_len) // stride + 1
        self.embed = nn.Linear(patch_len, d_model)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(patches, d_model))
        self.dropout = nn.Dropout(dropout)
        ssm: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        tokens = [
            SeriesMixer(d_model, "time", Mamba(d_model, **ssm), dropout) for _ in range(depth)
        ]
        channels = []
        for _ in range(0 if channel_mixer == "none" else depth):
            if channel_mixer == "mlp":
                mixer: nn.Module = Mlp(d_model, int(2 * expand * d_model))
            else:
                mixer = Mamba(d_model, bimamba_type="v2", **ssm)
            channels.append(SeriesMixer(d_model, "variates", mixer, dropout))
        self.blocks = AveragedBlocks(tokens, channels, averaging)
        self.norm_width, self.norm_time = nn.LayerNorm(d_model), nn.LayerNorm(patches)
        self.head = nn.Linear(patches * d_model, pred_len)

    def forward(self, x: Tensor) -> Tensor:
        """History [B, L, M] to forecast [B, T, M]."""
        if x.shape[1:] != (self.seq_len, self.variates):
            raise ZooError(
                f"a history of {x.shape[1]} steps of {x.shape[2]} variates, but the network was "
                f"built for seq_len {self.seq_len} and variates {self.variates}"
            )
        mean, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True) + 1e-5
        x = ((x - mean) / std).transpose(1, 2)  # [B, M, L]
        patches = x.unfold(2, self.patch_len, self.stride)  # [B, M, N, patch_len]
        y = self.blocks(self.dropout(self.embed(patches) + self.pos_embed))  # [B, M, N, D]
        y = self.norm_time(self.norm_width(y).transpose(2, 3)).transpose(2, 3)
        y = self.head(self.dropout(y.flatten(2)))  # [B, M, T]
        return y.transpose(1, 2) * std + mean

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides norms and biases."""
        return {"pos_embed"}


class SeriesMixer(nn.Module):
    """x + mixer(norm(x)) along the patches of each variate, or along the variates of each patch."""

    def __init__(self, d_model: int, along: str, mixer: nn.Module, dropout: float) -> None:
        super().__init__()
        self.along = along
        self.norm = nn.LayerNorm(d_model)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, N, D] to the same."""
        y = self.norm(x)
        y = y if self.along == "time" else y.transpose(1, 2)  # [B, N, M, D]
        y = self.mixer(y.flatten(0, 1)).view_as(y)
        return x + self.dropout(y if self.along == "time" else y.transpose(1, 2))


def _check_channel_mixer(kind: str) -> None:
    if kind not in CHANNEL_MIXERS:
        raise ZooError(f"channel_mixer is one of {', '.join(CHANNEL_MIXERS)}, not {kind}")


# The published variants. Accuracy is top-1 on ImageNet-1k at 224 pixels, as published.


class AveragedBlocks(nn.Module):
    r"""Token and channel mixers, each fed a learned sum of what all before it gave (eqs. 8 and 9).

    .. math::
        x = \sum_i \alpha_i y^{(i)}_{Token} + \sum_i \beta_i y^{(i)}_{Channel}, \qquad
        y^{(0)}_{Token} = y^{(0)}_{Channel} = \mathrm{input}

    over the outputs that are there by then; token mixers have :math:`\alpha, \beta`, channel mixers
    :math:`\theta, \gamma`. At first a block sees the last output alone, so that the blocks are a
    plain stack.

    Args:
        token_mixers, channel_mixers: modules [..., C] -> [..., C], with their own skip connection;
            after every len(token_mixers) / len(channel_mixers) of the first comes one of the
            second.
        averaging: False for the plain stack, without weights.
    """

    def __init__(
        self,
        token_mixers: Sequence[nn.Module],
        channel_mixers: Sequence[nn.Module],
        averaging: bool = True,
    ) -> None:
        super().__init__()
        self.token_mixers = nn.ModuleList(token_mixers)
        self.channel_mixers = nn.ModuleList(channel_mixers)
        every = len(token_mixers) // len(channel_mixers) if channel_mixers else 0
        #: (whether it mixes tokens, its number among its like), in order.
        self.order: list[tuple[bool, int]] = []
        for i in range(len(token_mixers)):
            self.order.append((True, i))
            if every and (i + 1) % every == 0:
                self.order.append((False, (i + 1) // every - 1))
        self.weights = nn.ParameterList()
        if averaging:
            seen = [1, 1]  # outputs of channel and of token mixers, the input among both
            last = 0  # among outputs of token mixers, then those of channel mixers
            for mixes_tokens, _ in self.order:
                weights = torch.zeros(sum(seen))
                weights[last] = 1.0
                self.weights.append(nn.Parameter(weights))
                seen[mixes_tokens] += 1
                last = seen[1] - 1 if mixes_tokens else sum(seen) - 1

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Through all blocks; ``args`` go to each."""
        outputs: list[list[Tensor]] = [[x], [x]]  # of channel and of token mixers
        for number, (mixes_tokens, i) in enumerate(self.order):
            mixers = self.token_mixers if mixes_tokens else self.channel_mixers
            if len(self.weights):
                earlier = [*outputs[1], *outputs[0]]
                terms = zip(self.weights[number].unbind(), earlier, strict=True)
                x = torch.stack([weight * y for weight, y in terms]).sum(dim=0)
            x = mixers[i](x, *args)
            outputs[mixes_tokens].append(x)
        return x


@register_backbone(parameters=22_514_905, **PLACES)
def vim2_tiny(**kwargs: Any) -> ViM2:
    """ViM2-T: 22.5 M parameters (published: 20 M), 82.7 % top-1."""
    return ViM2(**kwargs)


@register_backbone(parameters=40_495_384, **PLACES)
def vim2_small(**kwargs: Any) -> ViM2:
    """ViM2-S: 40.5 M parameters (published: 43 M), 83.7 % top-1."""
    return ViM2(**{**_DEEP, "drop_path_rate": 0.3, **kwargs})


@register_backbone(parameters=69_856_856, **PLACES)
def vim2_base(**kwargs: Any) -> ViM2:
    """ViM2-B: 69.9 M parameters (published: 74 M), 83.9 % top-1."""
    return ViM2(**{**_DEEP, "dims": 128, "drop_path_rate": 0.5, **kwargs})


_DEEP: dict[str, Any] = {"depths": (2, 2, 18, 2), "channel_depths": (1, 1, 9, 1)}


@register_model(parameters=243_884)
def tsm2(**kwargs: Any) -> TSM2:
    """TSM2 for seven variates, 512 steps of history and 96 of forecast."""
    return TSM2(**kwargs)
