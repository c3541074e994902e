import re

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.models.dense.yonos_sr import YONOSSR, load_stable_diffusion, upsample

UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
}
VAE = {"block_out_channels": (32, 32), "layers_per_block": 1}


def small() -> YONOSSR:
    torch.manual_seed(0)
    return YONOSSR(UNET, VAE, context_length=5).eval()


def test_parameter_count():
    with torch.device("meta"):
        model = zoo.create_model("yonos_sr")
    parts = {
        "unet": model.unet,
        "encoder": model.vae.encoder,
        "decoder": model.vae.decoder,
        "quant": model.vae.quant_conv,
        "post_quant": model.vae.post_quant_conv,
    }
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == {
        "unet": 859_532_484,
        "encoder": 34_163_592,
        "decoder": 49_490_179,
        "quant": 72,
        "post_quant": 20,
    }
    assert model.stride == 64 and model.factor == 8
    assert count("yonos_sr_tiny") == 1_007_568


def test_shapes_and_learning():
    model = small()
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    model.context.normal_()  # keys of equal tokens would learn nothing
    # softmax cancels the bias of keys
    check_learning(model, lambda: model(image), (2, 3, 16, 24), but="to_k.bias")
    assert model(image, steps=3).shape == image.shape


def test_one_step_from_noise_is_the_clean_latent():
    model = small()
    condition, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    last = torch.full((2,), model.num_timesteps - 1)
    alpha, sigma = model.levels(last)
    assert not alpha.any() and torch.equal(sigma, torch.ones_like(sigma))
    expected = -model.velocity(noise, condition, last)
    torch.testing.assert_close(model.sample(condition, noise), expected)
    torch.testing.assert_close(model.denoise(noise, condition, last), expected)


@pytest.mark.parametrize("model", [small(), zoo.create_model("yonos_sr_tiny")])
def test_autoencoder(model):
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    output, divergence = model.train().autoencode(image)
    assert output.shape == image.shape
    assert (divergence > 0) == hasattr(model.vae, "quant_conv"), "only Stable Diffusion's has one"
    output.mean().backward()
    assert all(p.grad is not None for part in model.decoder_parts() for p in part.parameters())
    assert model.last_layer.grad is not None and 3 in model.last_layer.shape[:2]


def test_haar_autoencoder_begins_with_luma_untouched():
    model = zoo.create_model("yonos_sr_tiny")
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    output = model.decode(model.encode(image))
    torch.testing.assert_close((output * luma).sum(1), (image * luma).sum(1), atol=1e-3, rtol=0)
    flat = image[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(model.decode(model.encode(flat)), flat, atol=1e-3, rtol=0)


def test_a_fresh_residual_network_answers_the_condition():
    model = YONOSSR(UNET, VAE, context_length=5, residual=True).eval()
    condition, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(model.sample(condition, noise), condition)


def test_perfect_velocities_lead_to_the_picture_in_any_number_of_steps(monkeypatch):
    model = small()
    clean, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)

    def velocity(noisy, condition, t, unet=None):
        alpha, sigma = model.levels(t)
        return (alpha * noisy - clean) / sigma  # from z = alpha noisy - sigma v

    monkeypatch.setattr(model, "velocity", velocity)
    for steps in (1, 4):
        result = model.sample(clean, noise, steps)
        torch.testing.assert_close(result, clean, atol=1e-3, rtol=1e-3)


def test_tiles_that_hold_the_picture_change_nothing():
    model = small()
    low = torch.rand(1, 3, 6, 8) * 2 - 1
    whole = model.enlarge(low, 2, tile=64, overlap=8)
    assert whole.shape == (1, 3, 12, 16)
    assert torch.equal(whole, model.enlarge(low, 2, tile=64, overlap=8))
    assert not torch.equal(whole, model.enlarge(low, 2, tile=64, overlap=8, seed=1))
    assert model.enlarge(torch.rand(1, 3, 7, 9), 2, tile=12, overlap=4).shape == (1, 3, 14, 18)


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
PLACES = {  # of the small U-Net
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
}  # fmt: skip
VAE_PLACES = {
    "down_blocks.(.).resnets.(.)": r"down.\1.block.\2",
    "down_blocks.(.).downsamplers.0": r"down.\1.downsample",
    "up_blocks.0.resnets.(.)": r"up.1.block.\1",
    "up_blocks.1.resnets.(.)": r"up.0.block.\1",
    "up_blocks.0.upsamplers.0": "up.1.upsample",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.attentions.0.to_(.)": r"mid.attn_1.\1",
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
}  # fmt: skip


def original(unet, vae):
    """State dicts of diffusers -> one in the layout of Stable Diffusion's authors."""
    state = {"betas": torch.zeros(10)}
    for name, value in unet.items():
        place = max((p for p in PLACES if name.startswith(f"{p}.")), key=len)
        rest = name.removeprefix(f"{place}.")
        if ".resnets." in name:
            part, _, last = rest.partition(".")
            rest = f"{RESNET[part]}.{last}"
        state[f"model.diffusion_model.{PLACES[place]}.{rest}"] = value
    for name, value in vae.items():
        for old, new in VAE_PLACES.items():
            name = re.sub(old, new, name)
        pointwise = "attn_1" in name and value.ndim == 2
        state[f"first_stage_model.{name}"] = value[..., None, None] if pointwise else value
    return state


def test_original_layout_loads(tmp_path):
    model, other = small(), small()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    unet = other.unet.state_dict()
    unet["conv_in.weight"][:, 4:] = 0
    narrow = unet | {"conv_in.weight": unet["conv_in.weight"][:, :4].clone()}
    path = tmp_path / "sd.ckpt"
    torch.save({"state_dict": original(narrow, other.vae.state_dict())}, path)
    zoo.load_pretrained(model, path)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())


def test_stable_diffusion_in_the_layout_of_diffusers(tmp_path):
    model = small()
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, sample_size=64, **UNET)
    unet.save_pretrained(tmp_path / "unet")
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = AutoencoderKL(**VAE, **kinds, sample_size=512)
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ZooError, match="no folder text_encoder"):
        load_stable_diffusion(model, tmp_path)
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    text = CLIPTextModel(config).eval()
    text.save_pretrained(tmp_path / "text_encoder")
    load_stable_diffusion(model, tmp_path)
    tokens = torch.tensor([[62, 63, 63, 63, 63]])
    torch.testing.assert_close(model.context, text(tokens).last_hidden_state)
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    expected = unet(noisy, t, model.context.expand(2, -1, -1)).sample
    torch.testing.assert_close(model.velocity(noisy, torch.randn_like(noisy), t), expected)
    image = torch.rand(1, 3, 16, 16)
    latent = vae.encode(image).latent_dist.mode() * 0.18215
    torch.testing.assert_close(model.encode(image), latent)


def test_older_names_of_the_autoencoder_load():
    model = small()
    unet = {k: v[:, :4] if k == "conv_in.weight" else v for k, v in model.unet.state_dict().items()}
    old = {}
    for name, value in model.vae.state_dict().items():
        for a, b in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            if f".{a}." in name:
                name = name.replace(a, b)
                value = value[..., None, None] if value.ndim == 2 else value
        old[name] = value
    mapped = model.from_diffusers(unet, old)
    state = model.state_dict()
    assert set(mapped) == set(state)
    assert all(torch.equal(mapped[n], state[n]) for n in state if n != "unet.conv_in.weight")


def test_enlarging_is_bicubic_and_stays_in_range():
    low = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])[None, None]
    large = upsample(low, 4)
    assert large.shape == (1, 1, 8, 8) and large.abs().max() <= 1


def test_wrong_size_is_said():
    with pytest.raises(ZooError, match=r"10x16.*multiples of 4"):
        small()(torch.zeros(1, 3, 10, 16))
