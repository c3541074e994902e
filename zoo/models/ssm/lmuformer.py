"""LMUFormer: a Legendre memory in the place of attention, for sequences that come step by step.

Zeyu Liu, Gourav Datta, Anni Li, Peter A. Beerel. LMUFormer: Low Complexity Yet Powerful Spiking
Model With Legendre Memory Units. ICLR 2024, arXiv 2402.04882.

Embedding (convolutions of width 3) -> blocks (x += LMU(x); x += channel mixer(x)) -> a linear head
at each step -> mean over the steps. Training runs all steps at once, as the memory of a step is a
fixed convolution of a single input; :meth:`LMUFormer.stream` runs them one by one.

Four forms by their authors' names: ``lmu_rnn_conv1d`` (real), ``slmu_rnn_conv1d`` and
``slmu_rnn_ms_conv1d`` (spiking; in the second, residuals carry membrane-like real values) and
``attn_ms_conv1d`` (spiking attention in the memory's place, a baseline). The time of the neurons is
that of the sequence.

Where paper and code differ we follow the code: each convolution looks a step ahead, so that the
answer to a step waits for five more; the ReLU of the real embedding stands before its norm. Not
followed: the code's recurrent form of the spiking memory, which leaves out its norm and spikes and
so computes something else; ours is the parallel form, step by step. Matrices of the memory are
computed, not read; any length will do.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.registry import register_model
from zoo.models.ssm._lmuformer_steps import (
    LIF,
    Conv3,
    LegendreMemory,
    LMUFormerStream,
    Pass,
    Wait,
)

Form = Literal["lmu", "slmu", "slmu_ms", "attn_ms"]
FORMS = ("lmu", "slmu", "slmu_ms", "attn_ms")


class LMUFormer(nn.Module):
    """See the module.

    Args:
        num_classes: K.
        in_channels: F, features of a step.
        embed_dims: width C.
        depths: blocks.
        mlp_ratios: width of the channel mixer, of C.
        num_heads: of ``attn_ms``.
        form: which of the four.
        theta: steps that the memory reaches back.
        test_mode: ``all_seq`` gives the logits after each step [L, B, K], as the authors measure
            early answers; ``normal`` those of the whole.
    """

    vocab_size = None
    paired = False

    def __init__(
        self,
        num_classes: int = 35,
        in_channels: int = 128,
        embed_dims: int = 256,
        depths: int = 1,
        mlp_ratios: float = 4.0,
        num_heads: int = 16,
        form: Form = "lmu",
        theta: int = 128,
        test_mode: Literal["normal", "all_seq"] = "normal",
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ZooError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
        if embed_dims % num_heads:
            raise ZooError(
                f"embed_dims is {embed_dims}, expected a multiple of num_heads {num_heads}"
            )
        self.d_input, self.num_classes, self.form = in_channels, num_classes, form
        self.test_mode = test_mode
        spiking_residuals = form.endswith("_ms")
        if form == "lmu":
            self.patch_embed: nn.Module = Tokenizer(in_channels, embed_dims)
        elif form == "slmu":
            self.patch_embed = SpikingTokenizer(in_channels, embed_dims)
        else:
            self.patch_embed = MembraneTokenizer(in_channels, embed_dims)
        self.block = nn.ModuleList(
            [Block(embed_dims, mlp_ratios, num_heads, form, theta) for _ in range(depths)]
        )
        if spiking_residuals:
            self.head_bn = nn.BatchNorm1d(embed_dims)
            self.head_lif = LIF()
        self.head = nn.Linear(embed_dims, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [B, L, F] -> logits [B, K]; with ``all_seq`` [L, B, K].

        Args:
            inputs: padding at the ends.
            lengths: steps of each [B]; None: all.

        Raises:
            ZooError: another number of features.
        """
        if inputs.dim() != 3 or inputs.shape[-1] != self.d_input:
            raise ZooError(
                f"inputs have shape {tuple(inputs.shape)}, expected [B, L, {self.d_input}]"
            )
        mask = None
        if lengths is not None:
            places = torch.arange(inputs.shape[1], device=inputs.device)
            mask = (places < lengths[:, None]).to(inputs.dtype)[:, None]  # [B, 1, L]
        x = self.forward_features(inputs, Pass(mask))  # [B, C, L]
        if self.test_mode == "all_seq":
            steps = torch.arange(1, x.shape[-1] + 1, device=x.device)
            return self.head((x.cumsum(-1) / steps).permute(2, 0, 1))
        logits = self.head(x.transpose(1, 2))  # [B, L, K]
        if mask is None:
            return logits.mean(1)
        return (logits * mask.transpose(1, 2)).sum(1) / mask.sum(-1)

    def forward_features(self, inputs: Tensor, way: Pass) -> Tensor:
        """Features [B, L, F] -> what the head sees [B, C, L]."""
        x = self.patch_embed(inputs.transpose(1, 2), way)
        if x.shape[-1] == 0:  # of a short piece all steps wait
            return x
        for block in self.block:
            x = block(x, way)
        if self.form.endswith("_ms"):
            x = self.head_lif(self.head_bn(x), way)
        return x

    def stream(self) -> LMUFormerStream:
        """Begin to listen, in evaluation mode.

        Raises:
            ZooError: attention must hear all first.
        """
        if self.form == "attn_ms":
            raise ZooError("attn_ms has no stream: its attention looks at the whole sequence")
        return LMUFormerStream(self)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' keys -> ours: without ``module.`` and the memory's fixed matrices."""
        computed = (".lmu.A", ".lmu.B", ".lmu.H", ".lmu.fft_H")
        stripped = {key.removeprefix("module."): value for key, value in state_dict.items()}
        return {key: value for key, value in stripped.items() if not key.endswith(computed)}


# embeddings: [B, F, L] -> [B, C, L]


class Tokenizer(nn.Module):
    """Four convolutions, and one more beside them that tells the place (convolutional position)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        widths = [in_channels] + [dim] * 4
        self.conv_layers = nn.ModuleList(
            nn.ModuleList([Conv3(i, o), nn.ReLU(), nn.Identity(), nn.BatchNorm1d(o)])
            for i, o in pairwise(widths)
        )
        self.rpe_conv, self.wait = Conv3(dim, dim), Wait()

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Embed; padding counts as zeros."""
        for conv, relu, _, norm in self.conv_layers:
            x = norm(relu(conv(x, way)))
        return self.wait(x, way) + self.rpe_conv(x, way)


class MembraneTokenizer(nn.Module):
    """Four convolutions with spikes between them; the sum with the fifth is real."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        for suffix, width in zip(("", "1", "2", "3"), (in_channels, dim, dim, dim), strict=True):
            self.add_module(f"proj_conv{suffix}", Conv3(width, dim))
            self.add_module(f"proj_bn{suffix}", nn.BatchNorm1d(dim))
            self.add_module(f"proj_lif{suffix}", LIF())
        self.rpe_conv, self.wait = Conv3(dim, dim), Wait()

    def stages(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """Convolution, norm and neurons of each of the four."""
        kinds = ("conv", "bn", "lif")
        found = [[getattr(self, f"proj_{k}{s}") for k in kinds] for s in ("", "1", "2", "3")]
        return [(conv, norm, neurons) for conv, norm, neurons in found]

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Embed; padding counts as zeros."""
        *stages, (conv, norm, neurons) = self.stages()
        for first, bn, lif in stages:
            x = lif(bn(first(x, way)), way)
        x = conv(x, way)
        return self.wait(x, way) + self.rpe_conv(neurons(norm(x), way), way)


class SpikingTokenizer(MembraneTokenizer):
    """The earlier form: spikes behind every norm, and whole numbers behind the sum."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(in_channels, dim)
        self.rpe_bn, self.rpe_lif = nn.BatchNorm1d(dim), LIF()

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Embed; padding counts as zeros."""
        for conv, norm, neurons in self.stages():
            x = neurons(norm(conv(x, way)), way)
        return self.wait(x, way) + self.rpe_lif(self.rpe_bn(self.rpe_conv(x, way)), way)


# blocks: [B, C, L] -> the same


class Block(nn.Module):
    """Memory (or attention) and channel mixer, each added to what comes in."""

    def __init__(self, dim: int, mlp_ratio: float, num_heads: int, form: Form, theta: int) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attn: nn.Module
        if form == "attn_ms":
            self.attn = SpikingAttention(dim, num_heads)
        else:
            self.attn = MIXERS[form](dim, theta)
        self.mlp: nn.Module
        if form.endswith("_ms"):
            self.mlp = MembraneFFN(dim, hidden)
        else:
            self.mlp = ConvFFN(dim, hidden, spiking=form == "slmu")

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Mix steps, then channels."""
        x = x + self.attn(x, way)
        return x + self.mlp(x, way)


class LMU(nn.Module):
    """Legendre memory, then a linear map of its channels; causal."""

    def __init__(self, dim: int, theta: int) -> None:
        super().__init__()
        self.lmu: LMUCell = LMUCell(dim, dim, dim, theta)
        self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """What is added to [B, C, L]."""
        return self.proj_bn(self.proj_conv(self.lmu(x, way)))


class SLMU(LMU):
    """The earlier spiking form: twice the memory, spikes behind the last norm."""

    def __init__(self, dim: int, theta: int) -> None:
        super().__init__(dim, theta)
        self.lmu = SpikingLMUCell(dim, dim, 2 * dim, theta)
        self.proj_lif = LIF()

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Spikes."""
        return self.proj_lif(super().forward(x, way), way)


class SLMUMs(LMU):
    """Spikes before the cell, real values behind it."""

    def __init__(self, dim: int, theta: int) -> None:
        super().__init__(dim, theta)
        self.lmu = SpikingLMUCell(dim, dim, 2 * dim, theta)
        self.prev_bn, self.prev_lif = nn.BatchNorm1d(dim), LIF(threshold=0.5)

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """What is added to [B, C, L]."""
        return super().forward(self.prev_lif(self.prev_bn(x), way), way)


MIXERS: dict[str, Callable[[int, int], LMU]] = {"lmu": LMU, "slmu": SLMU, "slmu_ms": SLMUMs}


class LMUCell(nn.Module):
    """u = relu(w_u x + b), m the memory of u, h = relu(W_h [m; x] + b) (equations 18-20).

    Args:
        input_size, hidden_size: channels before and behind it.
        memory_size: q, numbers that are kept.
        theta: steps that they stand for.
    """

    def __init__(self, input_size: int, hidden_size: int, memory_size: int, theta: int) -> None:
        super().__init__()
        self.W_u = nn.Linear(input_size, 1)
        self.W_h = nn.Linear(memory_size + input_size, hidden_size)
        self.memory = LegendreMemory(memory_size, theta)

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """[B, C, L] -> [B, C', L]."""
        m = self.memory(self.W_u(x.transpose(1, 2)).transpose(1, 2).relu(), way)
        both = torch.cat([m.to(x.dtype), x], 1)
        return self.W_h(both.transpose(1, 2)).transpose(1, 2).relu()


class SpikingLMUCell(LMUCell):
    """The same with neurons behind a norm each: for input, memory and output."""

    def __init__(self, input_size: int, hidden_size: int, memory_size: int, theta: int) -> None:
        super().__init__(input_size, hidden_size, memory_size, theta)
        self.bn_u, self.f_u = nn.BatchNorm1d(1), LIF()
        self.bn_m, self.f_m = nn.BatchNorm1d(memory_size), LIF()
        self.bn_h, self.f_h = nn.BatchNorm1d(hidden_size), LIF()

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """[B, C, L] -> spikes [B, C', L]."""
        u = self.f_u(self.bn_u(self.W_u(x.transpose(1, 2)).transpose(1, 2)), way)
        m = self.f_m(self.bn_m(self.memory(u, way).to(x.dtype)), way)
        both = torch.cat([m.to(x.dtype), x], 1)
        return self.f_h(self.bn_h(self.W_h(both.transpose(1, 2)).transpose(1, 2)), way)


class ConvFFN(nn.Module):
    """Channel mixer: 1 x 1 convolution, norm, activation, twice."""

    def __init__(self, dim: int, hidden: int, spiking: bool) -> None:
        super().__init__()
        self.fc1_conv, self.fc1_bn = nn.Conv1d(dim, hidden, 1), nn.BatchNorm1d(hidden)
        self.fc2_conv, self.fc2_bn = nn.Conv1d(hidden, dim, 1), nn.BatchNorm1d(dim)
        self.fc1_lif, self.fc2_lif = (LIF(), LIF()) if spiking else (nn.GELU(), nn.ReLU())

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Each step alone, but for the neurons' state."""
        state = (way,) if isinstance(self.fc1_lif, LIF) else ()
        x = self.fc1_lif(self.fc1_bn(self.fc1_conv(x)), *state)
        return self.fc2_lif(self.fc2_bn(self.fc2_conv(x)), *state)


class MembraneFFN(nn.Module):
    """Channel mixer: norm, neurons, 1 x 1 convolution, twice."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_bn, self.fc1_lif = nn.BatchNorm1d(dim), LIF()
        self.fc1_conv = nn.Conv1d(dim, hidden, 1)
        self.fc2_bn, self.fc2_lif = nn.BatchNorm1d(hidden), LIF()
        self.fc2_conv = nn.Conv1d(hidden, dim, 1)

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Each step alone, but for the neurons' state."""
        x = self.fc1_conv(self.fc1_lif(self.fc1_bn(x), way))
        return self.fc2_conv(self.fc2_lif(self.fc2_bn(x), way))


class SpikingAttention(nn.Module):
    """Attention of spikes over the whole sequence, without a softmax (Spikformer's)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, 0.25
        self.pre_bn, self.pre_lif = nn.BatchNorm1d(dim), LIF()
        for name in "qkv":
            self.add_module(f"{name}_conv", nn.Conv1d(dim, dim, 1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm1d(dim))
            self.add_module(f"{name}_lif", LIF())
        self.attn_lif = LIF(threshold=0.5)
        self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, way: Pass) -> Tensor:
        """Every step looks at all steps but padding."""
        x = self.pre_lif(self.pre_bn(x))
        q, k, v = (
            getattr(self, f"{n}_lif")(getattr(self, f"{n}_bn")(getattr(self, f"{n}_conv")(x)))
            for n in "qkv"
        )
        q, k, v = (t.unflatten(1, (self.num_heads, -1)) for t in (q, way.hide(k), v))
        # without a softmax keys and values go first; [B, heads, C / heads, L]
        x = (v @ k.transpose(-1, -2)) @ q * self.scale
        return self.proj_bn(self.proj_conv(self.attn_lif(x.flatten(1, 2))))


@register_model(parameters=1_621_796)
def lmuformer(**kwargs: Any) -> LMUFormer:
    """LMUFormer, real-valued (lmu_rnn_conv1d); Speech Commands."""
    return LMUFormer(**{"form": "lmu", **kwargs})


@register_model(parameters=1_689_894)
def lmuformer_spiking(**kwargs: Any) -> LMUFormer:
    """Spiking LMUFormer with real-valued residuals (slmu_rnn_ms_conv1d)."""
    return LMUFormer(**{"form": "slmu_ms", **kwargs})


@register_model(parameters=1_689_382)
def lmuformer_spiking_early(**kwargs: Any) -> LMUFormer:
    """The earlier spiking form (slmu_rnn_conv1d)."""
    return LMUFormer(**{"form": "slmu", **kwargs})


@register_model(parameters=1_689_379)
def lmuformer_attention(**kwargs: Any) -> LMUFormer:
    """Spiking attention in the memory's place, the baseline (attn_ms_conv1d)."""
    return LMUFormer(**{"form": "attn_ms", **kwargs})
