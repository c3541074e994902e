"""YONOS-SR: super-resolution by one step of latent diffusion.

Noroozi et al., "You Only Need One Step: Fast Super-Resolution with Stable Diffusion via Scale
Distillation", ECCV 2024 (arXiv 2401.17258). No code is published. The backbone is Stable Diffusion
v1 as `diffusers` builds it; the picture that is to be sharpened, enlarged to the wanted size, is
encoded and joined to the noisy latent by channels. That way in, the v-parameterisation and a
schedule rescaled to end in pure noise (so that one step from there is defined) are our choice.

Weights of Stable Diffusion v1 load in the original layout and, by :func:`load_stable_diffusion`,
in that of diffusers. The map from the original layout is diffusers' own; against the original code
on random weights, noise prediction and both halves of the autoencoder agree to 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from zoo.checkpoints import read_state_dict
from zoo.errors import ZooError
from zoo.layers.sizes import at_any_size, check_multiple, pad_to_multiple
from zoo.models.registry import register_model

#: Stable Diffusion v1; what diffusers has as its defaults is left out.
UNET = {"out_channels": 4, "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
#: What makes the latents' variance about 1.
LATENT_SCALE = 0.18215


class YONOSSR(nn.Module):
    """Autoencoder, conditional U-Net and schedule.

    ``forward``: pictures [B, 3, H, W] in -1..1, enlarged to the wanted size (multiples of
    ``stride``) -> sharp ones, of the same size and range.

    Args:
        unet: settings of diffusers' ``UNet2DConditionModel`` that differ from Stable Diffusion v1.
        vae: the same of ``AutoencoderKL``, but for the kinds of blocks, which follow from
            ``block_out_channels``.
        haar_width: instead of ``vae`` a :class:`HaarAutoencoder` of this width.
        context_length: tokens of the constant context of the U-Net's cross-attention.
        residual: the U-Net answers what the clean latent differs from the condition by, starting
            from nothing; so a network trained from scratch need not learn to copy.
    """

    def __init__(
        self,
        unet: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        haar_width: int | None = None,
        context_length: int = 77,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        # here, for its import takes seconds, and listing all models imports this file
        from diffusers import DDIMScheduler, UNet2DConditionModel

        if haar_width is None:
            self.vae, channels, self.factor = _stable_diffusion_vae(vae)
        else:
            self.vae = HaarAutoencoder(haar_width)
            channels, self.factor = self.vae.latent_channels, 2
        self.latent_channels = channels
        unet_settings = UNET | {"out_channels": channels} | dict(unet or {})
        self.unet = UNet2DConditionModel(in_channels=2 * channels, **unet_settings)
        if residual:
            for values in self.unet.conv_out.parameters():
                nn.init.zeros_(values)
        self.stride = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        width = self.unet.config.cross_attention_dim
        self.register_buffer("context", torch.zeros(1, context_length, width))
        self.register_buffer("latent_scale", torch.tensor(LATENT_SCALE))
        self.schedule = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )

    @property
    def num_timesteps(self) -> int:
        """T of the schedule; t = T - 1 is pure noise."""
        return self.schedule.config.num_train_timesteps

    def encode(self, image: Tensor) -> Tensor:
        """Picture [B, 3, H, W] -> latent [B, 4, H/8, W/8], the mean of its distribution."""
        check_multiple(image, self.factor)
        if isinstance(self.vae, HaarAutoencoder):
            return self.vae.encoder(image) * self.latent_scale
        return self.vae.encode(image).latent_dist.mode() * self.latent_scale

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> picture."""
        if isinstance(self.vae, HaarAutoencoder):
            return self.vae.decoder(latent / self.latent_scale)
        return self.vae.decode(latent / self.latent_scale).sample

    def autoencode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Picture -> what remains of it, and how far its latents' distribution is from a normal one
        (KL divergence, 0 without a distribution).
        """
        if isinstance(self.vae, HaarAutoencoder):
            return self.vae.decoder(self.vae.encoder(image)), image.new_zeros(())
        distribution = self.vae.encode(image).latent_dist
        return self.vae.decode(distribution.sample()).sample, distribution.kl().mean()

    def decoder_parts(self) -> list[nn.Module]:
        """The second half of the autoencoder."""
        names = ("decoder", "post_quant_conv")
        return [getattr(self.vae, name) for name in names if hasattr(self.vae, name)]

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last kernel."""
        return [p for p in self.vae.decoder.parameters() if p.ndim == 4][-1]

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B] -> share of signal alpha and of noise sigma, [B, 1, 1, 1]."""
        signal = self.schedule.alphas_cumprod.to(t.device)[t][:, None, None, None]
        return signal.sqrt(), (1 - signal).sqrt()

    def velocity(
        self, noisy: Tensor, condition: Tensor, t: Tensor, unet: nn.Module | None = None
    ) -> Tensor:
        """What the U-Net (or another one, a teacher) says is v = alpha noise - sigma z.

        Args:
            noisy: noisy latent [B, 4, H/8, W/8].
            condition: encoded low-resolution picture, of the same shape.
            t: timesteps [B].
            unet: instead of the model's own.
        """
        context = self.context.expand(len(noisy), -1, -1)
        answer = (unet or self.unet)(torch.cat([noisy, condition], 1), t, context).sample
        if self.residual:
            answer = answer - self.levels(t)[1] * condition
        return answer

    def denoise(
        self, noisy: Tensor, condition: Tensor, t: Tensor, unet: nn.Module | None = None
    ) -> Tensor:
        """As :meth:`velocity` -> clean latent z = alpha noisy - sigma v."""
        alpha, sigma = self.levels(t)
        return alpha * noisy - sigma * self.velocity(noisy, condition, t, unet)

    def sample(self, condition: Tensor, noise: Tensor, steps: int = 1) -> Tensor:
        """Encoded low-resolution picture and noise -> clean latent by deterministic DDIM."""
        self.schedule.set_timesteps(steps)
        latent = noise
        for t in self.schedule.timesteps.tolist():
            v = self.velocity(
                latent, condition, torch.full((len(latent),), t, device=latent.device)
            )
            latent = self.schedule.step(v, t, latent).prev_sample
        return latent

    def forward(self, enlarged: Tensor, noise: Tensor | None = None, steps: int = 1) -> Tensor:
        """Enlarged pictures -> sharp ones; ``noise`` [B, 4, H/8, W/8] is drawn if not given."""
        check_multiple(enlarged, self.stride)
        condition = self.encode(enlarged)
        if noise is None:
            noise = torch.randn_like(condition)
        return self.decode(self.sample(condition, noise, steps))

    def enlarge(
        self,
        low: Tensor,
        scale: int,
        steps: int = 1,
        tile: int = 512,
        overlap: int = 64,
        seed: int = 0,
    ) -> Tensor:
        """Pictures of any size, in overlapping tiles.

        Args:
            low: [B, 3, H, W] in -1..1.
            scale: how many times as large the result is.
            steps: of DDIM.
            tile, overlap: of the result, in pixels.
            seed: of the noise, which is one canvas for all tiles.

        Returns:
            [B, 3, scale H, scale W] in -1..1.
        """
        enlarged = upsample(low, scale)
        padded = pad_to_multiple(enlarged, self.stride)
        sides = [side // self.factor for side in padded.shape[-2:]]
        shape = (len(low), self.latent_channels, *sides)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(low)
        # the noise travels with the pixels, so that each tile gets its own part of it
        canvas = torch.cat([padded, interpolate(noise, scale_factor=float(self.factor))], 1)

        def restore(part: Tensor) -> Tensor:
            return self(part[:, :3], part[:, 3:, :: self.factor, :: self.factor], steps)

        result = at_any_size(restore, canvas, self.stride, tile, overlap)
        return result[..., : enlarged.shape[-2], : enlarged.shape[-1]].clamp(-1, 1)

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stable Diffusion's original names -> ours; see :meth:`from_diffusers` for the rest."""
        if not any(name.startswith("model.diffusion_model.") for name in state_dict):
            return state_dict
        from diffusers.loaders.single_file_utils import (
            convert_ldm_unet_checkpoint,
            convert_ldm_vae_checkpoint,
        )

        unet = convert_ldm_unet_checkpoint(dict(state_dict), dict(self.unet.config))
        vae = convert_ldm_vae_checkpoint(dict(state_dict), dict(self.vae.config))
        return self.from_diffusers(unet, vae)

    def from_diffusers(
        self, unet: Mapping[str, Tensor], vae: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """diffusers' state dicts of a text-to-image model -> ours.

        The U-Net's first convolution gets channels for the condition, zero. Context and scale of
        the latents keep their values.
        """
        unet = dict(unet)
        missing = self.unet.config.in_channels - unet["conv_in.weight"].shape[1]
        unet["conv_in.weight"] = pad(unet["conv_in.weight"], (0, 0, 0, 0, 0, missing))
        ours = {"context": self.context, "latent_scale": self.latent_scale}
        ours |= {f"unet.{name}": value for name, value in unet.items()}
        return ours | {f"vae.{_attention(name)}": _linear(name, v) for name, v in vae.items()}


class HaarAutoencoder(nn.Module):
    """A small autoencoder that need not learn to copy.

    ``encoder``: picture [B, 3, H, W] -> latents [B, 6, H/2, W/2]; ``decoder``: back. They begin as
    the Haar transform of 2x2 pixels in YCbCr without the colours' differences, as JPEG's 4:2:0:
    luma passes untouched, colours at half the size. Convolutions on either side learn the rest.

    Args:
        width: channels of the convolutions.
    """

    latent_channels = 6

    def __init__(self, width: int) -> None:
        super().__init__()
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        colours = torch.tensor(
            [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]]
        )
        # rows: luma's mean and differences, both colours' means, both colours' differences
        order = [0, 1, 2, 3, 4, 8, 5, 6, 7, 9, 10, 11]
        haar = torch.kron(colours, signs / 2)[order]  # [12, 3 colours x 2x2 pixels]
        split = nn.Conv2d(3, 6, 2, 2, bias=False)
        merge = nn.ConvTranspose2d(12, 3, 2, 2, bias=False)
        with torch.no_grad():
            split.weight.copy_(haar[:6].view(6, 3, 2, 2))
            merge.weight.copy_(torch.linalg.inv(haar).T.reshape(12, 3, 2, 2))
        self.encoder = nn.Sequential(split, _Refine(6, 6, width))
        self.decoder = nn.Sequential(_Refine(6, 12, width), merge)


class _Refine(nn.Module):
    """Adds to the input, and to zeros where there is none, what convolutions find; at first 0."""

    def __init__(self, in_chans: int, out_chans: int, width: int) -> None:
        super().__init__()
        self.more = out_chans - in_chans
        last = nn.Conv2d(width, out_chans, 3, padding=1)
        for values in last.parameters():
            nn.init.zeros_(values)
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, out_chans, H, W]."""
        return pad(x, (0, 0, 0, 0, 0, self.more)) + self.layers(x)


def _stable_diffusion_vae(settings: Mapping[str, Any] | None) -> tuple[nn.Module, int, int]:
    """The autoencoder, its latents' channels, and how many times smaller they are."""
    from diffusers import AutoencoderKL

    settings = VAE | dict(settings or {})
    levels = len(settings["block_out_channels"])
    vae = AutoencoderKL(
        **settings,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    return vae, vae.config.latent_channels, 2 ** (levels - 1)


def upsample(low: Tensor, scale: int) -> Tensor:
    """Bicubic, [B, C, H, W] -> [B, C, scale H, scale W], kept in -1..1."""
    return interpolate(low, scale_factor=float(scale), mode="bicubic").clamp(-1, 1)


def _attention(name: str) -> str:
    """Names of the autoencoder's attention in older files of diffusers -> present ones."""
    if ".attentions." not in name:
        return name
    for old, new in (
        (".query.", ".to_q."),
        (".key.", ".to_k."),
        (".value.", ".to_v."),
        (".proj_attn.", ".to_out.0."),
    ):
        name = name.replace(old, new)
    return name


def _linear(name: str, value: Tensor) -> Tensor:
    """Some files have pointwise convolutions where the attention has linear maps."""
    return value[..., 0, 0] if ".attentions." in name and value.ndim == 4 else value


def load_stable_diffusion(model: YONOSSR, folder: str | Path) -> None:
    """Start from Stable Diffusion v1 in the layout of diffusers.

    Args:
        model: takes all weights; its context becomes the encoding of the empty text.
        folder: with ``unet``, ``vae`` and ``text_encoder``.

    Raises:
        ZooError: something is missing or does not fit.
    """
    folder = Path(folder).expanduser()
    for part in ("unet", "vae", "text_encoder"):
        if not (folder / part).is_dir():
            raise ZooError(
                f"{folder} has no folder {part}, expected Stable Diffusion v1 as diffusers has it: "
                "unet, vae and text_encoder"
            )
    state = model.from_diffusers(*(read_state_dict(folder / part) for part in ("unet", "vae")))
    state["context"] = _empty_text(folder / "text_encoder", model.context.shape[1])
    ours = model.state_dict()
    wrong = [n for n in {**ours, **state} if n not in ours or n not in state]
    wrong += [n for n in ours if n in state and ours[n].shape != state[n].shape]
    if wrong:
        raise ZooError(f"{folder} does not fit: {len(wrong)} tensors differ, such as {wrong[0]}")
    model.load_state_dict(state)


@torch.inference_mode()
def _empty_text(folder: Path, length: int) -> Tensor:
    """CLIP's encoding of no text: a start token, and end tokens to the full length."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(folder)
    start, end = encoder.config.vocab_size - 2, encoder.config.vocab_size - 1
    tokens = torch.tensor([[start] + [end] * (length - 1)])
    return encoder(tokens).last_hidden_state.clone()


@register_model(parameters=943_186_347)
def yonos_sr(**kwargs: Any) -> YONOSSR:
    """YONOS-SR on Stable Diffusion v1; 943 M parameters, of which the U-Net has 860 M."""
    return YONOSSR(**kwargs)


@register_model(parameters=1_007_568)
def yonos_sr_tiny(unet: Mapping[str, Any] | None = None, **kwargs: Any) -> YONOSSR:
    """YONOS-SR with latents of half the picture's size, learnt as residuals; 1.0 M parameters."""
    small_unet = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "sample_size": 16,
    }
    return YONOSSR(
        **{
            "unet": small_unet | dict(unet or {}),
            "haar_width": 32,
            "context_length": 1,
            "residual": True,
            **kwargs,
        }
    )
