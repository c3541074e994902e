"""MEDFE: inpainting with a mutual encoder-decoder and feature equalisation.

Liu et al., "Rethinking Image Inpainting via a Mutual Encoder-Decoder with Feature Equalizations",
ECCV 2020 (arXiv 2007.06929). Shallow encoder maps carry texture, deep ones structure; both are
filled by partial convolutions, fused, equalised (channel weights and bilateral propagation) and
given back to every level of a U-Net.

The authors' three checkpoint files (``*_net_EN.pth``, ``*_net_DE.pth``, ``*_net_MEDFE.pth``) are
those of ``encoder``, ``decoder`` and ``mutual`` here, and load into them as they are. The code with
which they were trained differs from the intent; ``legacy=True`` follows it: the propagated maps are
reshaped without a transposition, and the hole mask at the reduced size is (nearly) always empty. In
the checkpoints the "ones" of the partial convolutions' masks are random, too. With random weights,
output and gradients agree with the authors' code to 1e-5 of the largest value
(KumapowerLIU/Rethinking-Inpainting-MEDFE at 33b420d; encoder, decoder and discriminator as
SanderGielisse/MEDFE-CAE at a3c0a7a keeps them).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, leaky_relu, pad, unfold
from torch.nn.utils.parametrizations import spectral_norm

from zoo.errors import ZooError
from zoo.layers.sizes import check_multiple
from zoo.models.registry import register_model

#: Colour of painted holes, RGB in 0..255.
HOLE_COLOUR = (123.0, 104.0, 117.0)


class MEDFE(nn.Module):
    """The generator.

    ``forward``: image [B, 3, H, W] in -1..1 and mask [B, 1, H, W] (1: hole), H and W multiples of
    ``reduction`` -> picture [B, 3, H, W], structure and texture images [B, 3, H/8, W/8], in -1..1.

    Args:
        ngf: channels of the first stage (the authors' name).
        res_num: residual blocks behind the encoder.
        equalise: with feature equalisation; False gives the fused features back as they are.
        mutual: with the mutual block; False is a plain U-Net, whose two images are None.
        legacy: follow the authors' code, see above.
        reduction: total stride of the encoder; 16 or 32 for small pictures, whose last stages then
            keep the size. The deepest map must have 3x3 places or more.
    """

    def __init__(
        self,
        ngf: int = 64,
        res_num: int = 4,
        equalise: bool = True,
        mutual: bool = True,
        legacy: bool = False,
        reduction: int = 64,
    ) -> None:
        super().__init__()
        if reduction not in (16, 32, 64):
            raise ZooError(f"reduction {reduction}, expected 16, 32 or 64")
        self.stride, self.least = reduction, 3 * reduction
        self.encoder = Encoder(ngf, res_num, reduction)
        self.mutual = MutualBlock(ngf, equalise, legacy, reduction) if mutual else None
        self.decoder = Decoder(ngf, reduction)
        # the authors' 0.02, which narrower layers need more of for the same output
        std = 0.02 * (64 / ngf) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.requires_grad:
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Image with holes -> picture, structure image, texture image."""
        check_multiple(image, self.stride)
        if min(image.shape[-2:]) < self.least:
            raise ZooError(
                f"an image of {image.shape[-2]}x{image.shape[-1]} pixels, expected at least "
                f"{self.least} on each side"
            )
        colour = image.new_tensor(HOLE_COLOUR)[:, None, None] * 2 / 255 - 1
        painted = image * (1 - mask) + colour * mask
        features = self.encoder(torch.cat([painted, (1 - mask).expand_as(image)], 1))
        structure = texture = None
        if self.mutual is not None:
            features, structure, texture = self.mutual(features, mask)
        return self.decoder(features), structure, texture

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the three files, put together, -> ours; ours are left as they are."""
        mutual = MutualBlock.remap_state_dict
        renamed = {}
        for name, value in state_dict.items():
            if name.startswith(("Encoder_", "middle.")):
                renamed[f"encoder.{name}"] = value
            elif name.startswith("Decoder_"):
                renamed[f"decoder.{name}"] = value
            elif name.startswith(("pc_block.", "loss.")):
                renamed |= {f"mutual.{ours}": value for ours in mutual({name: value})}
            else:
                renamed[name] = value
        return renamed


class Encoder(nn.Module):
    """Six convolutions of stride 2, then dilated residual blocks at the last size."""

    def __init__(self, ngf: int = 64, res_num: int = 4, reduction: int = 64) -> None:
        super().__init__()
        widths = [6, ngf, 2 * ngf, 4 * ngf, 8 * ngf, 8 * ngf, 8 * ngf]
        for i in range(1, 7):
            act = [nn.LeakyReLU(0.2)] if i > 1 else []
            norm = [nn.InstanceNorm2d(widths[i], affine=True)] if 1 < i < 6 else []
            conv = nn.Conv2d(widths[i - 1], widths[i], *_halving(i, reduction))
            self.add_module(f"Encoder_{i}", _Unit(*act, conv, *norm))
        self.middle = nn.Sequential(*(ResidualBlock(8 * ngf) for _ in range(res_num)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 6, H, W] -> six maps, strides 2 to 64."""
        features = []
        for i in range(1, 7):
            x = self.get_submodule(f"Encoder_{i}")(x)
            features.append(x)
        features[-1] = self.middle(x)
        return features


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first dilated, plus the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(2),
            nn.Conv2d(dim, dim, 3, dilation=2, bias=False),
            nn.InstanceNorm2d(dim),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(dim, dim, 3, bias=False),
            nn.InstanceNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape; H and W at least 3."""
        return x + self.conv_block(x)


class Decoder(nn.Module):
    """Six transposed convolutions with the encoder's maps beside them."""

    def __init__(self, ngf: int = 64, reduction: int = 64) -> None:
        super().__init__()
        inputs = [8, 16, 16, 8, 4, 2]
        outputs = [8, 8, 4, 2, 1]
        for i, in_scale in enumerate(inputs, start=1):
            last = i == 6
            out_chans = 3 if last else outputs[i - 1] * ngf
            size = _halving(7 - i, reduction)
            conv = nn.ConvTranspose2d(in_scale * ngf, out_chans, *size)
            end = nn.Tanh() if last else nn.InstanceNorm2d(out_chans, affine=True)
            self.add_module(f"Decoder_{i}", _Unit(nn.ReLU(), conv, end))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Six maps -> [B, 3, H, W]."""
        y = self.get_submodule("Decoder_1")(features[5])
        for i in range(2, 7):
            y = self.get_submodule(f"Decoder_{i}")(torch.cat([y, features[6 - i]], 1))
        return y


class MutualBlock(nn.Module):
    """Texture and structure branches, their fusion and equalisation (paper, section 3)."""

    def __init__(
        self, ngf: int = 64, equalise: bool = True, legacy: bool = False, reduction: int = 64
    ) -> None:
        super().__init__()
        self.legacy = legacy
        mid, deep = 4 * ngf, 8 * ngf
        self.down_128 = _Unit(*_conv_in(ngf, 2 * ngf, 4, 2, 1), *_conv_in(2 * ngf, mid, 4, 2, 1))
        self.down_64 = _Unit(*_conv_in(2 * ngf, mid, 4, 2, 1))
        self.down_32 = _Unit(*_conv_in(mid, mid, 1))
        self.up = UpTo(deep, mid)
        self.down = _Unit(*_conv_in(3 * mid, mid, 1))
        for kernel in (3, 5, 7):
            stack = (PartialUnit(mid, kernel) for _ in range(5))
            self.add_module(f"cov_{kernel}", nn.Sequential(*stack))
        self.fuse = _Unit(*_conv_in(deep, deep, 1))
        self.base = Equalisation(deep, legacy) if equalise else nn.Identity()
        self.up_128, self.up_64, self.up_32 = UpTo(deep, ngf), UpTo(deep, 2 * ngf), UpTo(deep, mid)
        for name, count in (("down_16", 1), ("down_8", 2), ("down_4", 3)):
            stages = range(4, 4 + count)
            steps = [m for i in stages for m in _conv_in(deep, deep, *_halving(i, reduction))]
            self.add_module(name, _Unit(*steps[:-1]))  # no activation before the sum
        self.side = nn.Sequential(nn.Conv2d(mid, 3, 1), nn.Tanh())

    def forward(
        self, features: Sequence[Tensor], mask: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Six maps and the hole mask -> six maps, structure image, texture image."""
        f1, f2, f3, f4, f5, f6 = (leaky_relu(f, 0.2) for f in features)
        size = f3.shape[-2:]  # H/8
        texture = self.down(torch.cat([self.down_128(f1), self.down_64(f2), self.down_32(f3)], 1))
        structure = self.down(torch.cat([self.up(f, size) for f in (f4, f5, f6)], 1))
        known = self.known(mask).expand_as(texture)
        structure, texture = (self._fill(x, known) for x in (structure, texture))
        e = self.base(self.fuse(torch.cat([structure, texture], 1)))  # [B, 8 ngf, H/8, W/8]
        added = [
            self.up_128(e, f1.shape[-2:]),
            self.up_64(e, f2.shape[-2:]),
            self.up_32(e, size),
            self.down_16(e),
            self.down_8(e),
            self.down_4(e),
        ]
        maps = [f + a for f, a in zip(features, added, strict=True)]
        return maps, self.side(structure), self.side(texture)

    @staticmethod
    def remap_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the authors' ``MEDFE`` file -> ours."""
        sides = {"pc_block.": "", "loss.0.down_model.": "side."}
        renamed = {}
        for name, value in state_dict.items():
            theirs = next((side for side in sides if name.startswith(side)), "")
            renamed[sides.get(theirs, "") + name.removeprefix(theirs)] = value
        return renamed

    def known(self, mask: Tensor) -> Tensor:
        """Hole mask [B, 1, H, W] -> 1 where the reduced map is known, [B, 1, H/8, W/8]."""
        for _ in range(3):
            # zeros beyond the border count as known, as in a padded convolution
            mask = avg_pool2d(mask, 4, 2, 1)
        return (mask <= (1.0 if self.legacy else 0.5)).to(mask.dtype)

    def _fill(self, x: Tensor, known: Tensor) -> Tensor:
        """Partial convolutions of three sizes side by side, fused; both branches share them."""
        stacks = (self.get_submodule(f"cov_{kernel}") for kernel in (3, 5, 7))
        return self.down(torch.cat([stack((x, known))[0] for stack in stacks], 1))


class PartialUnit(nn.Module):
    """Partial convolution, instance norm, leaky ReLU; hands the grown mask on."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = PartialConv2d(dim, kernel)
        self.bn = nn.InstanceNorm2d(dim, affine=True)

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(x, known) -> (y, known), all [B, C, H, W]."""
        y, known = self.conv(*state)
        return leaky_relu(self.bn(y), 0.2), known


class PartialConv2d(nn.Module):
    """Convolution of the known positions, divided by how many there are (Liu et al. 2018).

    The mask's kernel is a frozen parameter because the authors' checkpoints hold one.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.input_conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, bias=False)
        self.mask_conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, bias=False)
        nn.init.ones_(self.mask_conv.weight)
        self.mask_conv.requires_grad_(False)

    def forward(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] twice -> the same."""
        count = self.mask_conv(known)
        reached = count != 0
        y = self.input_conv(x * known) / count.where(reached, 1.0)
        return y * reached, reached.to(x.dtype)


class Equalisation(nn.Module):
    """Channel weights, then bilateral propagation: all positions by distance, 3x3 by likeness."""

    def __init__(self, dim: int, legacy: bool, sigma: float = 1.5) -> None:
        super().__init__()
        self.model = nn.Sequential(ChannelWeights(dim, max(1, dim // 16)))
        self.down = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 1, bias=False), nn.InstanceNorm2d(dim), nn.LeakyReLU(0.2)
        )
        self.legacy, self.sigma = legacy, sigma

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        x = self.model(x)
        parts = [self.spatial(x), self.range(x)]
        if self.legacy:
            # [H W, C] read as [C, H, W], as the authors' code does
            parts = [p.flatten(2).transpose(1, 2).reshape(x.shape) for p in parts]
        return self.down(torch.cat(parts, 1))

    def spatial(self, x: Tensor) -> Tensor:
        """Mean of all positions with weights of a normalised Gaussian of the distance (eq. 3)."""
        rows, columns = (_gaussian(side, self.sigma, x) for side in x.shape[-2:])
        return rows @ x @ columns.T

    def range(self, x: Tensor) -> Tensor:
        """Mean of the 3x3 neighbours with softmax weights of their likeness (eq. 4)."""
        b, c, h, w = x.shape
        likeness = x.sigmoid()
        around = unfold(pad(likeness, (1, 1, 1, 1)), 3).view(b, c, 9, h, w)
        weights = (around * likeness[:, :, None]).mean(1).softmax(1)  # [B, 9, H, W]
        values = unfold(pad(x, (1, 1, 1, 1)), 3).view(b, c, 9, h, w)
        return (values * weights[:, None]).sum(2)


class ChannelWeights(nn.Module):
    """Squeeze and excitation with pointwise convolutions."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(dim, inner, 1), nn.ReLU(), nn.Conv2d(inner, dim, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return x * self.fc(x.mean((2, 3), keepdim=True))


class UpTo(nn.Module):
    """Bilinear to a size, pointwise convolution, instance norm, leaky ReLU."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.bn = nn.InstanceNorm2d(out_chans)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """[B, C, h, w] -> [B, out_chans, *size]."""
        x = interpolate(x, size=tuple(size), mode="bilinear")
        return leaky_relu(self.bn(self.conv(x)), 0.2)


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 under spectral norm: a score for each patch.

    ``forward``: [B, 3, H, W] -> [B, 1, H/32, W/32].

    Args:
        ndf: channels of the first, doubled up to 8 times as many.
        n_layers: convolutions between the first two and the last (the authors' names).
    """

    def __init__(self, ndf: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        widths = [3, *(ndf * min(2**i, 8) for i in range(n_layers + 1)), 1]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor) -> Tensor:
        """Image -> scores."""
        return self.model(image)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of PyTorch's older spectral norm, in the authors' files, -> its present ones."""
        places = {
            "weight_orig": "parametrizations.weight.original",
            "weight_u": "parametrizations.weight.0._u",
            "weight_v": "parametrizations.weight.0._v",
        }
        renamed = {}
        for name, value in state_dict.items():
            module, _, last = name.rpartition(".")
            renamed[f"{module}.{places.get(last, last)}"] = value
        return renamed


class _Unit(nn.Module):
    """A sequence one level deeper, as in the authors' checkpoints."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _halving(stage: int, reduction: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of a stage: half the size unless ``reduction`` is reached."""
    return (4, 2, 1) if 2**stage <= reduction else (3, 1, 1)


def _conv_in(
    in_chans: int, out_chans: int, kernel: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Convolution without bias, instance norm, leaky ReLU."""
    conv = nn.Conv2d(in_chans, out_chans, kernel, stride, padding, bias=False)
    return [conv, nn.InstanceNorm2d(out_chans), nn.LeakyReLU(0.2)]


def _gaussian(side: int, sigma: float, like: Tensor) -> Tensor:
    """[side, side], each row a Gaussian around its own place that sums to 1."""
    place = torch.arange(side, device=like.device, dtype=like.dtype)
    weights = torch.exp(-(place[:, None] - place).square() / (2 * sigma**2))
    return weights / weights.sum(1, keepdim=True)


@register_model(parameters=130_316_070)
def mutual_inpainting(**kwargs: Any) -> MEDFE:
    """MEDFE's generator, 130,316,070 parameters with the frozen masks."""
    return MEDFE(**kwargs)
