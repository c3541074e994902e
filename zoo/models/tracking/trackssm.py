"""TrackSSM: where will a tracked box be in the next frame? (Hu et al. 2024, arXiv 2409.00487).

A Mamba encoder turns the last boxes of a trajectory into one "flow" feature; the layers of the
Flow-SSM decoder walk the newest box to the next frame's, each by one step of an SSM whose
parameters come from the flow feature. The tracker around it is
:mod:`zoo.models.tracking._byte_track`.

Outputs, training loss and gradients agree with the authors' code (Xavier-Lin/TrackSSM, commit
b7f3520) on random weights; their checkpoints load as they are. The paper's figure shows one hidden
state that is refined; in the code, which this follows, neither it nor the box carries a gradient
from layer to layer. Their source has to be edited for some data sets; here that is ``sigmoid`` and
``giou``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from zoo.errors import ZooError
from zoo.layers.mamba import Mamba
from zoo.layers.mamba_block import MambaBlock
from zoo.layers.norms import add_norm
from zoo.layers.plain import split_bias
from zoo.layers.precision import at_least_fp32
from zoo.layers.ssm_init import s4d_real_log
from zoo.models.registry import register_model
from zoo.ops import selective_scan


class TrackSSM(nn.Module):
    """Motion predictor (paper, section 3).

    ``forward``: a trajectory's last boxes and their changes [B, L, 8], newest last, to the boxes
    after each decoder layer [layers, B, 4]; the last of them is the prediction. Boxes are (centre
    x, centre y, width, height), x and width over the picture's width, y and height over its height.

    Args:
        encoder: arguments of :class:`TimeInfoAggregation`.
        decoder: arguments of :class:`TimeInfoDecoder`.
        interval: L, boxes that the model was trained on.
        giou: train on the overlap too, as the authors do for SportsMOT alone.
        targets: train each layer to end its share of the straight way to the next box ("linear",
            the paper's step-by-step linear training), or all at the next box ("final").
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        interval: int = 5,
        giou: bool = True,
        targets: Literal["linear", "final"] = "linear",
    ) -> None:
        super().__init__()
        if targets not in ("linear", "final"):
            raise ZooError(f"targets is linear or final, not {targets!r}")
        self.interval, self.giou, self.targets = interval, giou, targets
        self.encoder = TimeInfoAggregation(**(encoder or {}))
        self.ssm_decoder = TimeInfoDecoder(**(decoder or {}))
        widths = self.encoder.mamba_net.d_model, self.ssm_decoder.d_model
        if widths[0] != widths[1]:
            raise ZooError(f"encoder and decoder have one d_model, not {widths[0]} and {widths[1]}")

    def forward(self, condition: Tensor) -> Tensor:
        """[B, L, 8] -> boxes after each layer [layers, B, 4]."""
        return self.ssm_decoder(condition[:, -1, :4], self.encoder(condition))[0]

    @torch.inference_mode()
    def generate(self, histories: Sequence[np.ndarray], img_w: int, img_h: int) -> np.ndarray:
        """Predict the next boxes of tracks of any age.

        Args:
            histories: of each track, the last boxes and their changes in pixels [1 to L, 8]. What
                is short of L is filled up with the newest row, as in the authors' tracker.
            img_w, img_h: size of the picture.

        Returns:
            boxes over the picture's size [N, 4].
        """
        rows = np.stack([h[np.minimum(np.arange(self.interval), len(h) - 1)] for h in histories])
        scale = np.tile([img_w, img_h], 4)
        weight = self.encoder.mamba_net.embedding.weight
        condition = torch.from_numpy(rows / scale).to(weight.device, weight.dtype)
        return at_least_fp32(self(condition)[-1]).cpu().numpy()

    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        """Smooth L1 and, with ``giou``, 1 - GIoU; summed over the layers, mean over the batch.

        Args:
            condition: [B, L, 8].
            target: the next frame's boxes [B, 4].
        """
        boxes = self(condition)
        goals = self.layer_targets(condition[:, -1, :4], target)
        loss = F.smooth_l1_loss(boxes, goals, reduction="none").sum(0).mean()
        if self.giou:
            corners = (box_convert(t, "cxcywh", "xyxy") for t in (boxes, goals))
            # eps keeps empty boxes finite; the authors have none
            loss = loss + generalized_box_iou_loss(*corners, eps=1e-12).sum(0).mean()
        return loss

    def layer_targets(self, start: Tensor, target: Tensor) -> Tensor:
        """Where each layer shall be, from the newest and the next boxes [B, 4] (equation 9)."""
        layers = len(self.ssm_decoder.head_series)
        if self.targets == "final":
            return target.expand(layers, -1, -1)
        share = torch.arange(1, layers + 1, device=start.device, dtype=start.dtype) / layers
        return start + share[:, None, None] * (target - start)


class TimeInfoAggregation(nn.Module):
    """The encoder: a stack of Mamba blocks, of which the last time step is kept.

    ``forward``: [B, L, v_size] -> flow feature [B, d_model].

    Args:
        d_model: width.
        n_layer: Mamba blocks.
        v_size: numbers of a time step.
    """

    def __init__(self, d_model: int = 256, n_layer: int = 6, v_size: int = 8) -> None:
        super().__init__()
        self.mamba_net = MambaEncoder(d_model, n_layer, v_size)

    def forward(self, x: Tensor) -> Tensor:
        """Summarise a trajectory."""
        return self.mamba_net(x)[:, -1]


class MambaEncoder(nn.Module):
    """Mamba's stack of pre-norm blocks; [B, L, v_size] -> [B, L, d_model]."""

    def __init__(self, d_model: int, n_layer: int, v_size: int) -> None:
        super().__init__()
        self.d_model = d_model
        # the authors' "vocabulary": a bias-free linear layer, its weight stored transposed
        self.embedding = nn.Embedding(v_size, d_model)
        norm = partial(nn.RMSNorm, d_model, eps=1e-5)
        self.layers = nn.ModuleList(MambaBlock(Mamba(d_model), norm) for _ in range(n_layer))
        self.norm_f = norm()
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            for layer in self.layers:
                layer.mixer.out_proj.weight /= math.sqrt(n_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Encode every time step from those before it."""
        table = self.embedding(torch.arange(x.shape[-1], device=x.device))
        x, residual = x @ table, None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return add_norm(x, residual, self.norm_f)[0]


class TimeInfoDecoder(nn.Module):
    """The Flow-SSM decoder: layers with weights of their own, alike at the start.

    ``forward``: newest box [B, 4], flow feature [B, d_model] -> boxes [layers, B, 4] and hidden
    states [layers, B, d_model, d_s] after each layer.

    Args:
        d_model: width, a multiple of 8.
        n_layer: layers.
        d_s: N, state size of each channel.
        sigmoid: keep boxes within the picture; the authors switch it off for MOT17 and MOT20.
    """

    def __init__(
        self, d_model: int = 256, n_layer: int = 6, d_s: int = 16, sigmoid: bool = True
    ) -> None:
        super().__init__()
        if d_model % 8:
            raise ZooError(f"d_model is a multiple of 8, 2 for each coordinate, not {d_model}")
        self.d_model = d_model
        self.head_series = nn.ModuleList(FlowSSM(d_model, d_s, sigmoid) for _ in range(n_layer))
        for layer in self.head_series:
            layer.load_state_dict(self.head_series[0].state_dict())

    def forward(self, box: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Walk the box to the next frame."""
        boxes, states, state = [], [], None
        for layer in self.head_series:
            box, state = layer(box, flow, state)
            boxes.append(box)
            states.append(state)
            box, state = box.detach(), state.detach()
        return torch.stack(boxes), torch.stack(states)


class FlowSSM(nn.Module):
    """One step of an SSM on the box's embedding, with parameters from the flow feature."""

    def __init__(self, d_model: int, d_s: int, sigmoid: bool) -> None:
        super().__init__()
        self.d_model, self.d_state, self.sigmoid = d_model, d_s, sigmoid
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_model, bias=False)
        self.x_proj = nn.Linear(d_model, self.dt_rank + 2 * d_s, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_model)
        self.A_log = nn.Parameter(s4d_real_log(d_model, d_s))
        self.D = nn.Parameter(torch.ones(d_model))
        self.linear1 = nn.Linear(d_model, 512)
        self.linear2 = nn.Linear(512, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.normal_bboxes = nn.Linear(d_model, 4)

    def forward(self, box: Tensor, flow: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Box [B, 4], flow [B, C], state [B, C, N] (None: zero) -> the next box and state."""
        u, z = self.in_proj(sine_embedding(box, self.d_model // 4)).chunk(2, dim=-1)  # [B, C]
        dt, B, C = self.x_proj(flow).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt, bias = split_bias(self.dt_proj, dt)
        u, dt, B, C, z = (t.unsqueeze(-1) for t in (F.silu(u), dt, B, C, z))  # a single time step
        y, state = selective_scan(
            u, dt, -self.A_log.exp(), B, C, self.D, z, delta_bias=bias,
            delta_softplus=True, return_last_state=True, initial_state=state,
        )  # fmt: skip
        y = y.squeeze(-1)
        y = self.norm2(y + self.linear2(F.relu(self.linear1(y))))
        box = self.normal_bboxes(y)
        return (box.sigmoid() if self.sigmoid else box), state


def sine_embedding(coordinates: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Embed every coordinate by itself, sine and cosine alternating.

    Args:
        coordinates: [..., K], about 0..1.
        dim: numbers for each coordinate, even.
        temperature: longest period over the shortest, nearly.

    Returns:
        [..., K * dim], the coordinates' embeddings in their order.
    """
    index = torch.arange(0, dim, 2, dtype=coordinates.dtype, device=coordinates.device)
    angle = 2 * math.pi * coordinates[..., None] / temperature ** (index / dim)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-3)


@register_model(parameters=5_129_496)
def trackssm(**kwargs: Any) -> TrackSSM:
    """TrackSSM for DanceTrack and SportsMOT, 5,129,496 parameters."""
    return TrackSSM(**kwargs)


@register_model(parameters=5_129_496)
def trackssm_mot17(**kwargs: Any) -> TrackSSM:
    """TrackSSM for MOT17 and MOT20: its boxes may leave the picture."""
    decoder = {"sigmoid": False, **(kwargs.pop("decoder", None) or {})}
    return TrackSSM(decoder=decoder, **kwargs)
