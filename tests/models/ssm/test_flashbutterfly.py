import pytest
import torch

from zoo.errors import ZooError
from zoo.models.ssm._flashbutterfly_kernels import BlockFFT, LongConvKernel
from zoo.models.ssm.flashbutterfly import H3Conv, H3ConvLM, LongConv, LongConvModel


def test_squash_moves_towards_zero():
    kernel = LongConvKernel(1, 5, lam=0.5)
    kernel.kernel.data = torch.tensor([[[-2.0, -0.4, 0.0, 0.5, 0.75]]])
    assert kernel()[0, 0].tolist() == [-1.5, 0, 0, 0, 0.25]
    dropped = LongConvKernel(1, 1000, lam=0.5, kernel_dropout=0.2)
    dropped.kernel.data.fill_(1.5)
    assert set(dropped().flatten().tolist()) == {0.0, 1.25}
    assert dropped.eval()().eq(1).all()


def test_initial_kernels():
    torch.manual_seed(0)
    assert LongConvKernel(50, 100).kernel.std().item() == pytest.approx(0.002, rel=0.05)
    kernel = LongConvKernel(16, 4000, weight_init="double_exp").kernel.detach()[0]
    first, last = kernel[:, :400].std(-1) / 0.02, kernel[:, -400:].std(-1) / 0.02
    torch.testing.assert_close(first[0], torch.tensor(0.95), atol=0.1, rtol=0)
    torch.testing.assert_close(last[0], torch.tensor(0.38), atol=0.05, rtol=0)  # e^-0.95
    assert last[15] < 0.01  # 8^(15/16) times as fast


def test_smoothing_is_a_mean_over_time_or_a_bell_over_frequencies():
    kernel = LongConvKernel(1, 16, lam=0.0, use_ma_smoothing=True, ma_window_len=3)
    kernel.kernel.data = torch.eye(16)[4][None, None]
    third = torch.tensor(1 / 3)
    torch.testing.assert_close(kernel()[0, 0, 3:6], third.expand(3))
    window = dict(use_ma_smoothing=True, ma_window_len=3)
    kernel = LongConvKernel(1, 16, lam=0.0, smooth_freq=True, **window)
    kernel.kernel.data = torch.cos(2 * torch.pi * 4 * torch.arange(16) / 16)[None, None]
    found = torch.fft.rfft(kernel()[0, 0]).real / 8
    bell = torch.exp(torch.tensor(-0.5)).item()
    torch.testing.assert_close(found[2:7], torch.tensor([0, bell, 1, bell, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings, sees", [
    ({}, "past"), ({"channels": 2}, "past"), ({"bidirectional": True}, "all"),
    ({"circular": True}, "all"), ({"block_fft_conv": True}, "past"),
    ({"block_fft_conv": True, "bidirectional": True}, "all"),
])  # fmt: skip
@pytest.mark.parametrize("length", [16, 11])
def test_what_a_step_sees(settings, sees, length):
    """By the gradient; also of inputs that are shorter than the kernel."""
    torch.manual_seed(0)
    layer = LongConv(4, l_max=16, lam=0.0, **settings).double()
    layer.kernel.kernel.data.normal_()
    u = torch.randn(1, 4, length, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(u)[0, :, 5].square().sum(), u)
    seen = grad[0].abs().amax(0) > 1e-4  # learned factors begin rounded to float32
    assert seen.all() if sees == "all" else seen.tolist() == [t <= 5 for t in range(length)]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [16, 11, 1])
def test_learned_factors_begin_as_the_fourier_transform_and_learn(bidirectional, length):
    torch.manual_seed(0)
    plain = LongConv(4, l_max=16, channels=2, lam=0.0, bidirectional=bidirectional)
    plain.kernel.kernel.data.normal_()
    learned = LongConv(4, l_max=16, channels=2, lam=0.0, bidirectional=bidirectional,
                       block_fft_conv=True, block_fft_conv_args={"max_m": 8})  # fmt: skip
    assert learned.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    u = torch.randn(2, 4, length)
    torch.testing.assert_close(learned(u), plain(u), rtol=1e-4, atol=1e-5)
    if length == 16:
        learned(u).square().sum().backward()
        for name in ("mat_4", "mat_8"):
            for fft in (learned.block_fft_u, learned.block_fft_k):
                assert getattr(fft, name).grad.abs().max() > 0


def test_factors_that_are_added_begin_small():
    torch.manual_seed(0)
    added = BlockFFT(learn_additive=True, H=3)
    x = torch.randn(2, 3, 30)
    difference = (added(x, 32) - torch.fft.fft(x, n=32)).abs().max().item()
    assert 0 < difference < 3
    assert (BlockFFT(False)(x, 32) - torch.fft.fft(x, n=32)).abs().max() < 1e-4
    assert not list(BlockFFT(False).parameters())


def test_authors_standalone_files_load():
    model = LongConvModel(d_input=1, d_model=4, n_layers=2, l_max=8, circular=True)
    theirs = {
        name.replace(".kernel.kernel", ".kernel"): tensor
        for name, tensor in model.state_dict().items()
    }
    assert "conv_layers.1.kernel" in theirs
    assert model.remap_state_dict(theirs).keys() == model.state_dict().keys()
    assert model.no_weight_decay() == {f"conv_layers.{i}.kernel.kernel" for i in (0, 1)}


@pytest.mark.parametrize("prenorm", [False, True])
def test_padding_has_no_influence(prenorm):
    torch.manual_seed(0)
    model = LongConvModel(vocab_size=9, d_model=4, n_layers=2, l_max=16, bidirectional=True,
                          lam=0.0, prenorm=prenorm).eval()  # fmt: skip
    for layer in model.conv_layers:
        layer.kernel.kernel.data.normal_()
    tokens = torch.randint(1, 9, (1, 10))
    padded = torch.cat([tokens, torch.full((1, 6), 3)], dim=1)
    torch.testing.assert_close(model(padded, torch.tensor([10])), model(tokens))


def test_language_model_in_parts_and_its_cache():
    torch.manual_seed(0)
    layers = dict(attn_layer_idx=[1], attn_cfg={"num_heads": 2}, ssm_cfg={"l_max": 12, "lam": 0.0})
    model = H3ConvLM(d_model=16, n_layer=2, vocab_size=40, **layers).eval()
    for kernel in (m for m in model.modules() if isinstance(m, LongConvKernel)):
        kernel.kernel.data.normal_()
    ids = torch.randint(40, (2, 10))
    whole, cache = model(ids).logits, model.allocate_cache(2)
    parts = [model(part, cache=cache).logits for part in ids.split([1, 4, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    cache.truncate(6)
    torch.testing.assert_close(model(ids[:, 6:7], cache=cache).logits, whole[:, 6:7])
    one, other = model(ids[:1, :3], use_cache=True).cache, model(ids[1:, :5], use_cache=True).cache
    both = type(one).stack([one, other]).select([1, 0])
    next_ids = torch.stack([ids[1, 5:6], ids[0, 3:4]])
    found = model(next_ids, cache=both).logits
    torch.testing.assert_close(found[:, 0], torch.stack([whole[1, 5], whole[0, 3]]),
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    assert len(model.no_weight_decay()) == 2


@pytest.mark.parametrize("build, words", [
    (lambda: LongConv(4, activation="what"), "activation"),
    (lambda: LongConv(4, circular=True, bidirectional=True), "circular"),
    (lambda: LongConv(4, channels=2, postact=None), "several channels"),
    (lambda: LongConv(4, weight_init="what"), "weight_init"),
    (lambda: LongConv(4, use_ma_smoothing=True, ma_window_len=4), "odd"),
    (lambda: LongConv(4, block_fft_conv=True, block_fft_conv_args={"max_m": 6}), "power of two"),
    (lambda: LongConv(4, l_max=8)(torch.randn(1, 4, 9)), "8 taps"),
    (lambda: H3Conv(4, l_max=8)(torch.randn(1, 9, 4)), "8 taps"),
    (lambda: LongConvModel(), "one of d_input"),
    (lambda: LongConvModel(d_input=1, norm="what"), "norm"),
])  # fmt: skip
def test_wrong_settings_are_refused(build, words):
    with pytest.raises(ZooError, match=words):
        build()
