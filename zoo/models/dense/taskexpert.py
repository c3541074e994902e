"""TaskExpert: a memorial mixture of experts assembles the features of several dense tasks.

Ye and Xu, "TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial
Mixture-of-Experts", ICCV 2023 (arXiv 2307.15324). The authors never released its code. Known are
the parts: at several layers of a vision transformer, experts make generic features; gates of each
task, which look at the sample, weigh them; a memory of each task is read as one more expert and
written with the task's feature; after the last layer it feeds the task's head. Everything finer
follows what the public relatives on the same framework do (InvPT, TaskPrompter and above all MLoRE:
taps, router, heads, losses), or is our choice. No figure of the paper should be expected of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from zoo.errors import ZooError, check_choice
from zoo.layers.sizes import check_multiple
from zoo.models.registry import register_model

#: Channels of the outputs for each task of the two benchmarks.
PASCAL_CONTEXT = {"semseg": 21, "human_parts": 7, "sal": 2, "normals": 3, "edge": 1}
NYUD = {"semseg": 40, "depth": 1, "normals": 3, "edge": 1}

#: Weights of the experts at each tap: task -> [B, experts + memory] or [B, experts + memory, D].
Gates = list[dict[str, Tensor]]

GateKind = Literal["dynamic", "static"]
NormKind = Literal["batch", "group"]


class TaskExpert(nn.Module):
    """Backbone, a memorial mixture of experts at each tap, heads.

    ``forward``: [B, 3, H, W] -> task -> [B, channels, H, W].

    Args:
        backbone: gives a list of maps [B, num_features, H/stride, W/stride].
        tasks: name -> channels of its output.
        dim: D, channels of experts and memory.
        n_experts: N of each tap.
        memory: read the memory as one more expert and let the gates see it. Without, features of
            the taps are still summed up.
        gate: ``dynamic``: the sample decides; ``static``: one learnt weighting for all samples.
        per_channel: gates of each channel.
        position_gate: let gates see what is where; fixes the size of pictures to ``img_size``.
        img_size: (height, width), needed for ``position_gate`` alone.
        norm: of experts and heads; groups of 8 channels for tiny batches.
        upsample: by how much memories are enlarged before the heads.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tasks: Mapping[str, int],
        dim: int = 384,
        n_experts: int = 5,
        memory: bool = True,
        gate: GateKind = "dynamic",
        per_channel: bool = False,
        position_gate: bool = True,
        img_size: tuple[int, int] | None = None,
        norm: NormKind = "batch",
        upsample: float = 4.0,
    ) -> None:
        super().__init__()
        if not tasks:
            raise ZooError("tasks is empty, expected names with channels such as {depth: 1}")
        self.tasks, self.stride, self.upsample = dict(tasks), backbone.stride, float(upsample)
        self.fixed_size = tuple(img_size) if position_gate and img_size is not None else None
        check_choice("gate", gate, get_args(GateKind))
        check_choice("norm", norm, get_args(NormKind))
        if position_gate and gate == "dynamic" and img_size is None:
            raise ZooError("position_gate: needs img_size, or set it to false")
        cells = None
        if self.fixed_size is not None:
            cells = (self.fixed_size[0] // self.stride) * (self.fixed_size[1] // self.stride)
        self.backbone = backbone
        self.moe = nn.ModuleList(
            MemorialMoE(
                backbone.num_features, dim, tasks, n_experts, memory, gate, per_channel, cells, norm
            )
            for _ in backbone.taps
        )
        self.memory = nn.ParameterDict({task: 0.02 * torch.randn(dim) for task in tasks})
        self.heads = nn.ModuleDict({task: _head(dim, n, norm) for task, n in tasks.items()})

    @property
    def encoder(self) -> nn.Module:
        """The backbone, by the name that the dense tasks load an encoder's weights into."""
        return self.backbone

    def no_weight_decay(self) -> set[str]:
        """Memories, and what the backbone says."""
        listed = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in listed} | {f"memory.{task}" for task in self.tasks}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Picture -> output of each task."""
        return self.decode(image)[0]

    def decode(self, image: Tensor) -> tuple[dict[str, Tensor], Gates]:
        """Picture -> output of each task, and the gates at each tap."""
        memory, gates = self.assemble(image)
        outputs = {}
        for task, head in self.heads.items():
            x = head(interpolate(memory[task], scale_factor=self.upsample, mode="bilinear"))
            outputs[task] = interpolate(x, size=image.shape[-2:], mode="bilinear")
        return outputs, gates

    def assemble(self, image: Tensor) -> tuple[dict[str, Tensor], Gates]:
        """Picture -> memory of each task [B, D, h, w] after the last tap, and the gates."""
        check_multiple(image, self.stride)
        if self.fixed_size is not None and tuple(image.shape[-2:]) != self.fixed_size:
            raise ZooError(
                f"an image of {image.shape[-2]}x{image.shape[-1]} pixels, but gates that see "
                f"places were built for {self.fixed_size[0]}x{self.fixed_size[1]}: resize it, or "
                "build the model with position_gate: false"
            )
        maps = self.backbone(image)
        shape = (len(image), -1, *maps[0].shape[-2:])
        memory = {task: m[None, :, None, None].expand(shape) for task, m in self.memory.items()}
        gates: Gates = []
        for moe, x in zip(self.moe, maps, strict=True):
            memory, weights = moe(x, memory)
            gates.append(weights)
        return memory, gates


class MemorialMoE(nn.Module):
    """Experts on one map, gates and memory of each task; see :class:`TaskExpert`."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        tasks: Sequence[str] | Mapping[str, int],
        n_experts: int,
        memory: bool,
        gate: str,
        per_channel: bool,
        cells: int | None,
        norm: str,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_chans, dim, 1)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), _norm(norm, dim), nn.GELU())
            for _ in range(n_experts)
        )
        self.read = nn.ModuleDict({t: nn.Conv2d(dim, dim, 1) for t in tasks if memory})
        choices = (n_experts + memory, dim if per_channel else 1)
        self.gate = nn.ModuleDict(
            {
                t: Gate(dim, choices, memory, cells) if gate == "dynamic" else StaticGate(choices)
                for t in tasks
            }
        )
        self.out = nn.ModuleDict(
            {t: nn.Sequential(nn.Conv2d(dim, dim, 1), _norm(norm, dim), nn.GELU()) for t in tasks}
        )
        self.write = nn.ModuleDict(
            {
                t: nn.Sequential(
                    nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Conv2d(dim, dim, 1)
                )
                for t in tasks
            }
        )

    def forward(
        self, x: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Map [B, C, h, w] and memories [B, D, h, w] -> new memories and gates."""
        x = self.reduce(x)
        features = torch.stack([expert(x) for expert in self.experts], 1)  # [B, N, D, h, w]
        written, gates = {}, {}
        for task, old in memory.items():
            weights = self.gate[task](x, old)  # [B, N + memory, 1 or D]
            offered = features
            if self.read:
                offered = torch.cat([features, self.read[task](old)[:, None]], 1)
            # over the experts; einsum would copy the features
            assembled = (weights[..., None, None] * offered).sum(1)
            written[task] = old + self.write[task](self.out[task](assembled))
            gates[task] = weights.squeeze(-1)
        return written, gates


class Gate(nn.Module):
    """Weights of the experts for one task, from the sample.

    Three views of it, D/4 channels each: features averaged over the map; features weighted by place
    (``cells`` of them, MLoRE's position-aware branch); and the averaged memory.
    """

    def __init__(self, dim: int, choices: tuple[int, int], memory: bool, cells: int | None) -> None:
        super().__init__()
        part = dim // 4
        self.choices, self.see_memory = choices, memory
        self.context1, self.context2 = nn.Conv2d(dim, part, 1), nn.Conv2d(part, part, 1)
        self.context_norm = nn.LayerNorm(part)
        if cells is not None:
            self.place = nn.Linear(cells, 1)
            self.place_norm = nn.LayerNorm(dim)
            self.place_out = nn.Linear(dim, part)
        if memory:
            self.remember = nn.Linear(dim, part)
        self.logits = nn.Linear(part * (1 + (cells is not None) + memory), choices[0] * choices[1])

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Features and memory [B, D, h, w] -> weights [B, choices, channels], over choices 1."""
        context = self.context1(x).flatten(2).transpose(1, 2)  # [B, hw, D/4]
        context = self.context_norm(context).transpose(1, 2).unflatten(2, x.shape[-2:])
        views = [self.context2(gelu(context)).mean((2, 3))]
        if hasattr(self, "place"):
            views.append(self.place_out(gelu(self.place_norm(self.place(x.flatten(2))[..., 0]))))
        if self.see_memory:
            views.append(self.remember(memory.mean((2, 3))))
        return self.logits(torch.cat(views, 1)).unflatten(1, self.choices).softmax(1)


class StaticGate(nn.Module):
    """Learnt weights of the experts that are the same for all samples."""

    def __init__(self, choices: tuple[int, int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(choices))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Features (their batch size alone counts) -> weights [B, choices, channels]."""
        return self.logits.softmax(0).expand(len(x), -1, -1)


class ConvTaps(nn.Module):
    """A small backbone: two strided convolutions, then one convolution a tap; it sees 23 pixels.

    Args:
        width: channels.
        taps: how many maps it gives.
    """

    stride = 4

    def __init__(self, width: int = 32, taps: int = 2) -> None:
        super().__init__()
        self.num_features, self.taps = width, tuple(range(1, taps + 1))

        def block(in_chans: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(in_chans, width, 3, stride, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(width), nn.GELU())

        self.stem = nn.Sequential(block(3, 2), block(width, 2))
        self.layers = nn.ModuleList(block(width, 1) for _ in range(taps))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Picture -> maps."""
        x, maps = self.stem(image), []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(channels // 8, channels)


def _head(dim: int, channels: int, norm: str) -> nn.Sequential:
    """The relatives' ConvHead."""
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1), _norm(norm, dim), nn.GELU(), nn.Conv2d(dim, channels, 1)
    )


def _on_vit(size: str, **kwargs: Any) -> TaskExpert:
    large = size == "large"
    vit: dict[str, Any] = {
        "embed_dim": 1024 if large else 768,
        "depth": 24 if large else 12,
        "num_heads": 16 if large else 12,
        "taps": (6, 12, 18, 24) if large else (3, 6, 9, 12),
        "drop_path_rate": 0.15,
    }
    vit |= kwargs.pop("vit", {})
    size_of_pictures = tuple(kwargs["img_size"])
    return TaskExpert(ViTTaps(size_of_pictures, **vit), **kwargs)


class ViTTaps(nn.Module):
    """Maps from several layers of a transformer without class token.

    ``forward``: [B, 3, H, W] -> a map [B, embed_dim, H/patch, W/patch] of each tap, the last one
    normalised. timm's checkpoints load; their position embeddings are resized, and so are ours for
    pictures of another size.

    Args:
        img_size: (height, width) that the position embedding is made for.
        patch_size: side of a patch.
        embed_dim, depth, num_heads: of the transformer.
        taps: layers whose output is given, counted from 1; the last is ``depth``.
        drop_path_rate: stochastic depth of the last layer, from 0 in the first.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        taps: Sequence[int] = (3, 6, 9, 12),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if list(taps) != sorted(set(taps)) or not taps or taps[-1] != depth or taps[0] < 1:
            raise ZooError(f"taps {list(taps)}: expected rising layer numbers that end in {depth}")
        self.num_features, self.stride, self.taps = embed_dim, patch_size, tuple(taps)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim, strict_img_size=False)
        self.grid = self.patch_embed.grid_size
        # its first entry is the class token's in timm's checkpoints, and unused here
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm)
            for rate in rates
        )
        self.norm = norm(embed_dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """The position embedding is not shrunk."""
        return {"pos_embed"}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Picture -> maps."""
        check_multiple(image, self.stride)
        grid = [side // self.stride for side in image.shape[-2:]]
        pos_embed = self.pos_embed
        if tuple(grid) != self.grid:
            pos_embed = resample_abs_pos_embed(pos_embed, grid, list(self.grid))
        x = self.patch_embed(image) + pos_embed[:, 1:]  # [B, hw, C]
        maps = []
        for layer, block in enumerate(self.blocks, start=1):
            x = block(x)
            if layer in self.taps:
                tap = self.norm(x) if layer == len(self.blocks) else x
                maps.append(tap.transpose(1, 2).unflatten(2, grid))
        return maps

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's vision transformer without what stands above the last norm."""
        ours = self.state_dict()
        kept = {name: value for name, value in state_dict.items() if name in ours}
        if "pos_embed" in kept and kept["pos_embed"].shape != self.pos_embed.shape:
            kept["pos_embed"] = resample_abs_pos_embed(kept["pos_embed"], list(self.grid))
        return kept


@register_model(parameters=385_533_102)
def taskexpert_vit_large_pascal(**kwargs: Any) -> TaskExpert:
    """TaskExpert on ViT-L/16 for PASCAL-Context, 512x512; 386 M parameters."""
    settings = {"tasks": PASCAL_CONTEXT, "img_size": (512, 512), "dim": 512}
    return _on_vit("large", **settings | kwargs)


@register_model(parameters=132_277_166)
def taskexpert_vit_base_pascal(**kwargs: Any) -> TaskExpert:
    """TaskExpert on ViT-B/16 for PASCAL-Context, 512x512; 132 M parameters."""
    settings = {"tasks": PASCAL_CONTEXT, "img_size": (512, 512), "dim": 384}
    return _on_vit("base", **settings | kwargs)


@register_model(parameters=471_053_981)
def taskexpert_vit_large_nyud(**kwargs: Any) -> TaskExpert:
    """TaskExpert on ViT-L/16 for NYUD-v2, 448x576; 471 M parameters."""
    settings = {"tasks": NYUD, "img_size": (448, 576), "dim": 768}
    return _on_vit("large", **settings | kwargs)


@register_model(parameters=178_261)
def taskexpert_conv(width: int = 32, taps: int = 2, **kwargs: Any) -> TaskExpert:
    """TaskExpert on a few convolutions, for any size; 0.2 M parameters."""
    settings = {"tasks": NYUD, "dim": 32, "n_experts": 4, "position_gate": False, "upsample": 2.0}
    settings |= kwargs
    return TaskExpert(ConvTaps(width, taps), **settings)
