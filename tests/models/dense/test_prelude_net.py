import h5py
import numpy as np
import pytest
import torch

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.models.dense.prelude_net import PreludeNet, hard_sigmoid


@pytest.mark.parametrize(
    ("name", "changes", "parameters"),
    [
        ("prelude_net_prednet", {}, 6_915_948),
        ("prelude_net", {}, 6_915_948 + 7_868_377),
        ("prelude_net_conv", {}, 6_915_948 + 1_526_617),
        ("prelude_net_tiny", {}, 103_255 + 15_517),
        ("prelude_net_tiny", {"decoder": "conv_lstm"}, 103_255 + 78_553),
    ],
)
def test_parameter_count(name, changes, parameters):
    assert count(name, **changes) == parameters


def tiny(**changes) -> PreludeNet:
    torch.manual_seed(0)
    model = zoo.create_model("prelude_net_tiny", frame_bias=0.3, **changes)
    return model.eval()


@pytest.mark.parametrize("decoder", ["conv", "conv_lstm"])
@pytest.mark.parametrize("options", [{}, {"decoder_error": True, "max_depth": 20.0}])
def test_shapes_and_learning(decoder, options):
    model = tiny(decoder=decoder, **options)
    frames = torch.rand(2, 3, 3, 16, 24)
    output = model(frames)
    assert output.frames.shape == frames.shape
    assert output.errors.shape == (2, 3, 3)
    check_learning(model, lambda: model(frames).depth + model(frames).errors.sum(), (2, 3, 16, 24))


def test_errors_are_half_the_absolute_difference():
    frames = torch.rand(2, 4, 3, 16, 16)
    output = tiny()(frames)
    expected = (frames - output.frames).abs().mean((2, 3, 4)) / 2
    torch.testing.assert_close(output.errors[..., 0], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("mode", ["infer", "predict"])
@pytest.mark.parametrize("decoder_error", [False, True])
def test_what_is_predicted_has_not_been_seen(mode, decoder_error):
    model = tiny(mode=mode, decoder_error=decoder_error)
    frames = torch.rand(1, 4, 3, 16, 16)
    changed = frames.clone()
    changed[:, 2:] = torch.rand(1, 2, 3, 16, 16)
    before, after = model(frames), model(changed)
    assert torch.equal(before.frames[:, :3], after.frames[:, :3])
    assert not torch.equal(before.frames[:, 3], after.frames[:, 3])
    assert torch.equal(before.depth[:, :2], after.depth[:, :2])
    assert torch.equal(before.depth[:, 2], after.depth[:, 2]) == (mode == "predict")


def test_extrapolation_does_not_look():
    model = tiny()
    frames = torch.rand(1, 5, 3, 16, 16)
    changed = frames.clone()
    changed[:, 3:] = 0
    a, b = (model(video, extrap_start=3) for video in (frames, changed))
    assert torch.equal(a.frames, b.frames) and torch.equal(a.depth, b.depth)


def test_steps_are_the_video():
    model = tiny(decoder="conv_lstm", decoder_error=True)
    frames = torch.rand(1, 3, 3, 16, 16)
    state, depth = model.initial_state(frames[:, 0]), []
    for t in range(3):
        output, state = model.step(frames[:, t], state)
        depth.append(output.depth)
    assert torch.equal(torch.stack(depth, 1), model(frames).depth)


def test_recomputing_steps_changes_nothing():
    frames = torch.rand(1, 3, 3, 16, 16)
    gradients = []
    for checkpointing in (False, True):
        model = tiny(grad_checkpointing=checkpointing)
        model(frames).depth.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("hybrid", ["joint", "detached"])
def test_which_loss_reaches_the_encoder(hybrid):
    model = tiny(hybrid=hybrid)
    model(torch.rand(1, 3, 3, 16, 16)).depth.sum().backward()
    reached = any(p.grad is not None and p.grad.any() for p in model.enc.parameters())
    assert reached == (hybrid == "joint")


def test_gates_are_those_of_keras():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    torch.testing.assert_close(hard_sigmoid(x), torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0]))


def keras_weights(layers: int = 3) -> dict[str, np.ndarray]:
    """Arrays of the tiny encoder as Keras has them, in its order."""
    rng = np.random.default_rng(0)
    a, r = (3, 8, 16), (12, 16, 24)
    arrays = {}
    for unit in ("a", "ahat", "c", "f", "i", "o"):
        for level in range(layers - (unit == "a")):
            above = r[level + 1] if level + 1 < layers else 0
            chans = {"a": 2 * a[level], "ahat": r[level]}.get(unit, r[level] + 2 * a[level] + above)
            out = {"a": a[min(level + 1, layers - 1)], "ahat": a[level]}.get(unit, r[level])
            kernel = rng.normal(size=(3, 3, chans, out)).astype(np.float32)
            arrays[f"layer_{unit}_{level}/kernel:0"] = kernel
            arrays[f"layer_{unit}_{level}/bias:0"] = kernel[0, 0, 0]
    return arrays


@pytest.mark.parametrize("named", [True, False])
def test_keras_weights_load(tmp_path, named):
    arrays = keras_weights()
    assert len(arrays) == 34
    path = tmp_path / "prednet.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["pred_net_1", "dense_1"]
        names = list(arrays) if named else [f"w{i:02d}" for i in range(len(arrays))]
        group = file.create_group("pred_net_1")
        group.attrs["weight_names"] = names
        for name, array in zip(names, arrays.values(), strict=True):
            group[name] = array
        group = file.create_group("dense_1")  # weighs the errors of a training model
        group.attrs["weight_names"] = ["kernel:0", "bias:0"]
        group["kernel:0"], group["bias:0"] = np.ones((3, 1)), np.zeros(1)
    model = tiny()
    head = model.head.weight.clone()
    zoo.load_pretrained(model, path)
    kernel = arrays["layer_c_1/kernel:0"]
    assert torch.equal(model.enc[1].g.weight, torch.tensor(kernel.transpose(3, 2, 0, 1)))
    assert torch.equal(model.enc[2].ahat.bias, torch.tensor(arrays["layer_ahat_2/bias:0"]))
    assert torch.equal(model.head.weight, head)


def test_weights_of_another_encoder_are_refused(tmp_path):
    state = {f"{i}": torch.tensor(v) for i, v in enumerate(keras_weights().values())}
    with pytest.raises(ZooError, match="34 arrays of convolutions, expected 46"):
        PreludeNet(d_sizes=()).remap_state_dict(state)


def test_wrong_arguments_are_said():
    with pytest.raises(ZooError, match="3, 2 and 0 layers"):
        PreludeNet((3, 8, 16), (12, 16), ())
    with pytest.raises(ZooError, match=r"18x16.*multiples of 4"):
        tiny()(torch.rand(1, 2, 3, 18, 16))
