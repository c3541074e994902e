import pytest
import timm
import torch

import zoo
from tests.dense import check_learning, count
from zoo.errors import ZooError
from zoo.losses.multi_task import balance_loss
from zoo.models.dense.taskexpert import ViTTaps

TASKS = {"semseg": 4, "depth": 1}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("taskexpert_vit_large_pascal", 385_533_102),
        ("taskexpert_vit_base_pascal", 132_277_166),
        ("taskexpert_vit_large_nyud", 471_053_981),
    ],
)
def test_parameter_count(name, parameters):
    assert count(name) == parameters


def small(**changes):
    torch.manual_seed(0)
    settings = {"tasks": TASKS, "dim": 16, "n_experts": 3, "width": 8, **changes}
    return zoo.create_model("taskexpert_conv", **settings)


def test_four_taps_as_the_relatives_have_them():
    with torch.device("meta"):
        model = zoo.create_model("taskexpert_vit_large_pascal")
    assert model.backbone.taps == (6, 12, 18, 24) and len(model.moe) == 4
    names = {name.split(".")[2] for name in model.state_dict() if name.startswith("moe.0.")}
    assert names == {"reduce", "experts", "read", "gate", "out", "write"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gate": "static"},
        {"memory": False},
        {"per_channel": True, "norm": "group"},
        {"position_gate": True, "img_size": (32, 48)},
    ],
)
def test_shapes_and_learning(changes):
    model = small(**changes)
    image = torch.randn(2, 3, 32, 48)
    outputs, gates = model.decode(image)
    assert {task: tuple(o.shape) for task, o in outputs.items()} == {
        "semseg": (2, 4, 32, 48),
        "depth": (2, 1, 32, 48),
    }
    choices = 3 + changes.get("memory", True)
    for tap in gates:
        for weights in tap.values():
            assert weights.shape[:2] == (2, choices)
            torch.testing.assert_close(weights.sum(1), torch.ones_like(weights.sum(1)))
    check_learning(model, lambda: torch.cat(list(model(image).values()), 1), (2, 5, 32, 48))


def test_gates_look_at_the_sample_unless_they_are_static():
    for gate, same in (("dynamic", False), ("static", True)):
        gates = small(gate=gate).eval().decode(torch.randn(2, 3, 32, 32))[1]
        first, second = gates[0]["semseg"]
        assert torch.equal(first, second) == same


def test_one_expert_without_memory_is_a_static_decoder():
    _, gates = small(n_experts=1, memory=False).decode(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(w, torch.ones(2, 1)) for tap in gates for w in tap.values())


def test_memory_is_read():
    model = small().eval()
    image = torch.randn(1, 3, 32, 32)
    before = model(image)["semseg"]
    for read in model.moe[-1].read.values():
        torch.nn.init.zeros_(read.weight), torch.nn.init.zeros_(read.bias)
    assert (model(image)["semseg"] - before).abs().max() > 1e-5


def test_balance_is_of_use_over_samples_and_tasks():
    equal = [{"a": torch.full((2, 4), 0.25), "b": torch.full((2, 4), 0.25)}]
    assert balance_loss(equal) == 0
    torch.testing.assert_close(
        balance_loss([{"a": torch.eye(2), "b": torch.eye(2)}]), torch.tensor(0.0)
    )
    assert balance_loss([{"a": torch.tensor([[1.0, 0.0]])}]) > 1


def test_timms_weights_load_into_the_backbone(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
    path = tmp_path / "vit.pth"
    torch.save(theirs.state_dict(), path)
    mine = ViTTaps((32, 48), 16, 192, 2, 3, taps=(1, 2)).eval()
    zoo.load_pretrained(mine, path)
    image = torch.randn(1, 3, 32, 48)
    tokens = theirs.patch_embed(image) + theirs.pos_embed[:, 1:]
    expected = theirs.norm(theirs.blocks(tokens)).transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(mine(image)[-1], expected)
    assert mine(torch.randn(1, 3, 64, 64))[0].shape == (1, 192, 4, 4)
    larger = timm.create_model("vit_tiny_patch16_224", depth=2)
    torch.save(larger.state_dict(), path)
    zoo.load_pretrained(mine, path)  # its position embedding is resized


def test_wrong_arguments_are_said():
    with pytest.raises(ZooError, match="gates that see places were built for 32x32"):
        small(position_gate=True, img_size=(32, 32))(torch.zeros(1, 3, 32, 48))
    with pytest.raises(ZooError, match="needs img_size"):
        small(position_gate=True)
    with pytest.raises(ZooError, match="rising layer numbers that end in 2"):
        ViTTaps((32, 32), depth=2, taps=(1,))
    with pytest.raises(ZooError, match="tasks is empty"):
        small(tasks={})
