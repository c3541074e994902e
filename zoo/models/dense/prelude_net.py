"""PreludeNet: depth from video by predictive coding.

Ziskind, Kim and Burachas, "Learning Invariant World State Representations with Predictive Coding",
2022 (arXiv 2207.02972). No code is published and the abstract alone could be read: predictive
coding layers that learn from the video itself, and a predictive decoder with lateral, bottom-up and
top-down connections that learns from labels. The encoder here is PredNet (Lotter et al. 2017),
whose authors' Keras weights load; the decoder, its losses and its options are our choice.

Frames, errors and states agree with a NumPy transcription of PredNet's step on random weights to
1e-5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, softplus
from torch.utils.checkpoint import checkpoint

from zoo.errors import ZooError, check_choice
from zoo.layers.plain import is_plain
from zoo.layers.sizes import check_multiple
from zoo.layers.unet import BilinearUp, UNet
from zoo.models.registry import register_model

#: Channels of PredNet's KITTI model.
KITTI = (3, 48, 96, 192)

Decoder = Literal["conv_lstm", "conv"]
Mode = Literal["infer", "predict"]
Hybrid = Literal["joint", "detached"]


class VideoOutput(NamedTuple):
    """What a network says about a video.

    Attributes:
        frames: predicted frames [B, T, 3, H, W], frame t from those before it; None: no prediction.
        errors: mean activity of each layer's error units [B, T, L]; None as ``frames``.
        depth: [B, T, H, W]; None: no decoder.
    """

    frames: Tensor | None
    errors: Tensor | None
    depth: Tensor | None


class State(NamedTuple):
    """What one step leaves to the next; a list has an entry a layer, fine to coarse.

    Attributes:
        r, c: hidden state and cell of the encoder.
        e: its errors.
        frame: the predicted frame.
        d, dc: state and cell of the decoder.
        surprise: the decoder's own signed error, [B, 2, H, W].
    """

    r: list[Tensor]
    c: list[Tensor]
    e: list[Tensor]
    frame: Tensor
    d: list[Tensor]
    dc: list[Tensor]
    surprise: Tensor


class PreludeNet(nn.Module):
    """Predictive encoder and decoder.

    ``forward``: frames [B, T, 3, H, W] in 0..1, H and W multiples of ``stride`` ->
    :class:`VideoOutput`. ``step`` takes one frame and a state, for videos of any length.

    Args:
        a_sizes: channels of targets and predictions of each encoder layer, the image's first.
        r_sizes: channels of the encoder's representations.
        d_sizes: channels of the decoder; empty: no decoder, which is PredNet.
        decoder: recurrent layers, or plain convolutions.
        mode: ``infer``: depth of a frame that has been seen; ``predict``: before it is seen.
        hybrid: ``joint``: the decoder's loss reaches the encoder; ``detached``: it does not.
        decoder_error: feed the decoder what it inferred for the last frame less what it had
            predicted, split by sign as the encoder's errors are.
        max_depth: upper end of the depth; None: open.
        frame_bias: initial bias of the predicted frame; above 0 it keeps ReLU from starting dead.
        grad_checkpointing: recompute each step in the backward pass instead of storing it.
    """

    def __init__(
        self,
        a_sizes: Sequence[int] = KITTI,
        r_sizes: Sequence[int] = KITTI,
        d_sizes: Sequence[int] = (24, 48, 96, 192),
        decoder: Decoder = "conv_lstm",
        mode: Mode = "infer",
        hybrid: Hybrid = "joint",
        decoder_error: bool = False,
        max_depth: float | None = None,
        frame_bias: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_choice("decoder", decoder, get_args(Decoder))
        check_choice("mode", mode, get_args(Mode))
        check_choice("hybrid", hybrid, get_args(Hybrid))
        if len(a_sizes) != len(r_sizes) or len(d_sizes) not in (0, len(a_sizes)):
            raise ZooError(
                f"a_sizes, r_sizes and d_sizes have {len(a_sizes)}, {len(r_sizes)} and "
                f"{len(d_sizes)} layers: expected as many each, or no d_sizes"
            )
        self.a_sizes, self.r_sizes, self.d_sizes = tuple(a_sizes), tuple(r_sizes), tuple(d_sizes)
        self.stride = 2 ** (len(a_sizes) - 1)
        self.mode, self.hybrid = mode, hybrid
        self.decoder_error, self.max_depth = decoder_error, max_depth
        self.grad_checkpointing = grad_checkpointing
        self.enc = nn.ModuleList(
            EncoderLayer(a, r, above, target)
            for a, r, above, target in zip(
                a_sizes, r_sizes, [*r_sizes[1:], 0], [*a_sizes[1:], 0], strict=True
            )
        )
        nn.init.constant_(self.enc[0].ahat.bias, frame_bias)
        self.dec = nn.ModuleList()
        recurrent = decoder == "conv_lstm"
        for level, d in enumerate(d_sizes):
            above = sum(d_sizes[level + 1 : level + 2])
            chans = r_sizes[level] + 2 * a_sizes[level] + above + d * recurrent
            chans += 2 * (decoder_error and level == 0)
            self.dec.append(ConvLSTM(chans, d) if recurrent else conv3x3(chans, d))
        self.head = conv3x3(d_sizes[0], 1) if d_sizes else None

    def forward(self, frames: Tensor, extrap_start: int | None = None) -> VideoOutput:
        """Video -> predictions; from frame ``extrap_start`` on the video is not looked at, the
        frame predicted one step earlier stands for it.
        """
        state = self.initial_state(frames[:, 0])
        seen, errors, depth = [], [], []
        for t in range(frames.shape[1]):
            extrapolate = extrap_start is not None and t >= max(extrap_start, 1)
            frame = state.frame if extrapolate else frames[:, t]
            if self.grad_checkpointing and torch.is_grad_enabled():
                one, state = checkpoint(self.step, frame, state, use_reentrant=False)
            else:
                one, state = self.step(frame, state)
            seen.append(one.frames)
            errors.append(one.errors)
            depth.append(one.depth)
        stack = [torch.stack(part, 1) for part in (seen, errors)]
        return VideoOutput(*stack, None if self.head is None else torch.stack(depth, 1))

    def initial_state(self, frame: Tensor) -> State:
        """Zeros for a video whose frames are like ``frame`` [B, 3, H, W]."""
        check_multiple(frame, self.stride)
        batch, _, height, width = frame.shape

        def zeros(sizes: Sequence[int]) -> list[Tensor]:
            return [
                frame.new_zeros(batch, size, height >> level, width >> level)
                for level, size in enumerate(sizes)
            ]

        r, d = zeros(self.r_sizes), zeros(self.d_sizes)
        e = zeros([2 * size for size in self.a_sizes])
        surprise = frame.new_zeros(batch, 2, height, width)
        return State(r, list(r), e, torch.zeros_like(frame), d, list(d), surprise)

    def step(self, frame: Tensor, state: State) -> tuple[VideoOutput, State]:
        """One frame [B, 3, H, W] -> outputs without a time axis, and the next state."""
        r, c = list(state.r), list(state.c)
        for level in reversed(range(len(self.enc))):  # top-down, from the last step's errors
            x = [r[level], state.e[level]]
            if level + 1 < len(self.enc):
                x.append(interpolate(r[level + 1], scale_factor=2.0))
            r[level], c[level] = self.enc[level](torch.cat(x, 1), c[level])
        e, target, predicted = [], frame, frame
        for level, layer in enumerate(self.enc):  # bottom-up
            ahat = layer.ahat(r[level]).relu()
            if level == 0:
                ahat = predicted = ahat.clamp(max=1)
            e.append(torch.cat([(ahat - target).relu(), (target - ahat).relu()], 1))
            if level + 1 < len(self.enc):
                target = max_pool2d(layer.a(e[level]).relu(), 2)
        errors = torch.stack([units.flatten(1).mean(1) for units in e], 1)  # [B, L]
        depth, d, dc, surprise = None, state.d, state.dc, state.surprise
        if self.decoder_error:
            ahead, _, _ = self._decode(r, state.e, state)
            depth, d, dc = self._decode(r, e, state)
            surprise = torch.stack([(depth - ahead).relu(), (ahead - depth).relu()], 1)
            depth = ahead if self.mode == "predict" else depth
        elif self.head is not None:
            depth, d, dc = self._decode(r, state.e if self.mode == "predict" else e, state)
        return VideoOutput(predicted, errors, depth), State(r, c, e, predicted, d, dc, surprise)

    def _decode(
        self, r: list[Tensor], e: list[Tensor], state: State
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Representations and errors -> depth [B, H, W], the decoder's states and cells."""
        d, dc = list(state.d), list(state.dc)
        for level in reversed(range(len(self.dec))):
            x = [r[level], e[level]]
            if self.hybrid == "detached":
                x = [lateral.detach() for lateral in x]
            if level + 1 < len(self.dec):
                x.append(interpolate(d[level + 1], scale_factor=2.0))
            if self.decoder_error and level == 0:
                x.append(state.surprise)
            layer = self.dec[level]
            if isinstance(layer, ConvLSTM):
                d[level], dc[level] = layer(torch.cat([*x, d[level]], 1), dc[level])
            else:
                d[level] = layer(torch.cat(x, 1)).relu()
        return _to_depth(self.head(d[0]), self.max_depth), d, dc

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keras' names of PredNet's weights -> ours.

        Takes those files whose kernels were written with the TensorFlow backend; Theano's are
        mirrored. Of a training model the layers that weigh the errors are left out. The decoder, of
        which such a file knows nothing, keeps its values.
        """
        if any(name.startswith("enc.") for name in state_dict):
            return state_dict
        ours = from_keras(state_dict, len(self.a_sizes))
        return self.state_dict() | ours


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras' piecewise sigmoid, clip(0.2 x + 0.5, 0, 1); PyTorch's own has the slope 1/6."""
    return (0.2 * x + 0.5).clamp(0, 1)


class ConvLSTM(nn.Module):
    """One step of a convolutional LSTM whose input already holds the hidden state.

    ``forward``: input [B, in_chans, H, W], cell [B, hidden, H, W] -> hidden state and cell, both
    [B, hidden, H, W]. Weights start as in Keras: Glorot uniform, no bias.

    Args:
        in_chans: channels of the input, with those of the hidden state.
        hidden: channels of the state.
        gate: activation of the three gates.
    """

    def __init__(
        self, in_chans: int, hidden: int, gate: Callable[[Tensor], Tensor] = hard_sigmoid
    ) -> None:
        super().__init__()
        self.gate = gate
        self.i, self.f, self.o, self.g = (conv3x3(in_chans, hidden) for _ in range(4))

    def forward(self, x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Input and cell -> hidden state and cell."""
        gates = (self.i, self.f, self.o, self.g)
        if is_plain(*gates):  # four convolutions of one input are faster as one
            weight = torch.cat([conv.weight for conv in gates])
            bias = torch.cat([conv.bias for conv in gates])
            i, f, o, g = conv2d(x, weight, bias, padding=1).chunk(4, 1)
        else:
            i, f, o, g = (conv(x) for conv in gates)
        cell = self.gate(f) * cell + self.gate(i) * g.tanh()
        return self.gate(o) * cell.tanh(), cell


def conv3x3(in_chans: int, out_chans: int) -> nn.Conv2d:
    """Convolution 3x3 that keeps the size, initialised as in Keras."""
    conv = nn.Conv2d(in_chans, out_chans, 3, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class EncoderLayer(ConvLSTM):
    """One layer of PredNet: a recurrent representation, its prediction, what goes up.

    Args:
        a, r: channels of target and representation.
        above: channels of the next layer's representation, 0 at the top.
        target: channels of the next layer's target, 0 at the top.
    """

    def __init__(self, a: int, r: int, above: int, target: int) -> None:
        super().__init__(r + 2 * a + above, r)
        self.ahat = conv3x3(r, a)
        if target:
            self.a = conv3x3(2 * a, target)


class FrameUNet(UNet):
    """What PreludeNet is compared with: a U-Net that sees one frame at a time.

    ``forward``: as :class:`PreludeNet`, without predicted frames.

    Args:
        widths: channels of the levels, fine to coarse.
        max_depth: upper end of the depth; None: open.
    """

    def __init__(
        self, widths: Sequence[int] = (24, 32, 48), max_depth: float | None = None
    ) -> None:
        super().__init__(3, 1, widths, BilinearUp)
        self.max_depth = max_depth

    def forward(self, frames: Tensor) -> VideoOutput:
        """Frames [B, T, 3, H, W] -> depth."""
        depth = _to_depth(super().forward(frames.flatten(0, 1)), self.max_depth)
        return VideoOutput(None, None, depth.unflatten(0, frames.shape[:2]))

    def initial_state(self, frame: Tensor) -> None:
        """It remembers nothing."""

    def step(self, frame: Tensor, state: None) -> tuple[VideoOutput, None]:
        """One frame [B, 3, H, W] -> outputs without a time axis."""
        return VideoOutput(None, None, self(frame[:, None]).depth[:, 0]), None


def _to_depth(x: Tensor, max_depth: float | None) -> Tensor:
    """[B, 1, H, W], any values -> depth [B, H, W]."""
    return softplus(x[:, 0]) if max_depth is None else x[:, 0].sigmoid() * max_depth


def from_keras(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """PredNet's Keras weights under our names.

    Args:
        weights: in the order of the file: units a, ahat, c, f, i, o, each by layer, each kernel
            [kh, kw, in, out] and bias; or in any order, with names that end in
            ``layer_<unit>_<layer>/<kernel|bias>:0``.
        layers: of the encoder.

    Raises:
        ZooError: the number of arrays is another than the encoder needs.
    """
    wanted = [
        (unit, level, kind)
        for unit in ("a", "ahat", "c", "f", "i", "o")
        for level in range(layers - (unit == "a"))
        for kind in ("kernel", "bias")
    ]
    names = [re.search(r"layer_([a-z]+)_(\d+)/(kernel|bias)(:0)?$", name) for name in weights]
    if any(names):
        arrays = {
            (name[1], int(name[2]), name[3]): value
            for name, value in zip(names, weights.values(), strict=True)
            if name
        }
    else:
        kernels = [i for i, value in enumerate(weights.values()) if value.ndim == 4]
        values = list(weights.values())
        in_order = [value for i in kernels for value in values[i : i + 2]]
        arrays = dict(zip(wanted, in_order, strict=False))
        if len(in_order) != len(wanted):
            raise ZooError(
                f"{len(in_order)} arrays of convolutions, expected {len(wanted)} for a PredNet of "
                f"{layers} layers"
            )
    if set(arrays) != set(wanted):
        missing = sorted(
            f"layer_{u}_{level}/{kind}" for u, level, kind in set(wanted) ^ set(arrays)
        )
        raise ZooError(f"not a PredNet of {layers} layers: {missing[0]} is missing or too much")
    return {
        f"enc.{level}.{'g' if unit == 'c' else unit}.{'weight' if kind == 'kernel' else kind}": (
            value.permute(3, 2, 0, 1).contiguous() if kind == "kernel" else value
        )
        for (unit, level, kind), value in arrays.items()
    }


@register_model(parameters=14_784_325)
def prelude_net(**kwargs: Any) -> PreludeNet:
    """PreludeNet on PredNet's KITTI encoder, recurrent decoder; 14.8 M parameters."""
    return PreludeNet(**kwargs)


@register_model(parameters=8_442_565)
def prelude_net_conv(**kwargs: Any) -> PreludeNet:
    """PreludeNet on PredNet's KITTI encoder, convolutional decoder; 8.4 M parameters."""
    return PreludeNet(**{"decoder": "conv", **kwargs})


@register_model(parameters=6_915_948)
def prelude_net_prednet(**kwargs: Any) -> PreludeNet:
    """PredNet's KITTI model, next frames alone; 6.9 M parameters."""
    return PreludeNet(**{"d_sizes": (), **kwargs})


@register_model(parameters=118_772)
def prelude_net_tiny(**kwargs: Any) -> PreludeNet:
    """PreludeNet of three layers, convolutional decoder; 0.12 M parameters."""
    sizes = {"a_sizes": (3, 8, 16), "r_sizes": (12, 16, 24), "d_sizes": (8, 12, 16)}
    return PreludeNet(**{"decoder": "conv", **sizes, **kwargs})


@register_model(parameters=102_745)
def prelude_net_frame_unet(**kwargs: Any) -> FrameUNet:
    """A U-Net on single frames, the baseline; 0.1 M parameters."""
    return FrameUNet(**kwargs)
