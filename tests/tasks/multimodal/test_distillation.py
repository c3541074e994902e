from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import ROOT
from zoo.cli import Recipe, quiet
from zoo.errors import ZooError
from zoo.losses.distillation import logit_kl
from zoo.models.language._causal_lm import export_causal_lm
from zoo.models.multimodal._mmmamba_attention import GroupedAttention, Mamba2Attention
from zoo.tasks._freezing import train_only

RECIPES = ROOT / "recipes" / "multimodal" / "mmmamba"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


def run(name: str, folder: Path, *overrides: str, steps: int = 2):
    quiet()
    sample = '{"train": 64, "val": 8, "test": 8, "size": 16}'
    overrides = (
        f"--data.init_args.root={folder}/grids",
        f"--data.init_args.sample={sample}",
        "--data.init_args.batch_size=4",
        *overrides,
    )
    task, data = Recipe(RECIPES / f"{name}.yaml", overrides).build()
    recipe = Recipe(RECIPES / f"{name}.yaml", overrides)
    trainer = recipe.build_trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        max_steps=steps, max_epochs=1000, limit_val_batches=1, limit_test_batches=1,
        val_check_interval=1, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    return task, data, metrics


def exported(name: str, folder: Path) -> str:
    return f"--model.init_args.{name.partition('=')[0]}={folder / name.partition('=')[2]}"


@pytest.mark.slow
def test_the_recipes_chain(folder):
    """Teacher, three stages, both variants: what learns, what rests, what is handed on."""
    _, _, scores = run("small", folder, exported("export=teacher", folder))
    assert {"test/loss", "test/acc"} <= set(scores)
    teacher = exported("teacher=teacher", folder)

    one, _, scores = run("small_stage1", folder, teacher, exported("export=one", folder))
    assert scores["test/loss"] > 0 and "error_by_layer" in one.figures()
    weights = one.teacher.state_dict()
    for layer, origin in zip(one.model.decoder_layers, one.teacher.decoder_layers, strict=True):
        mixer, attention = layer.attention, origin.attention
        assert torch.equal(mixer.q_proj.weight, attention.projections()["q_proj.weight"])
        assert torch.equal(mixer.o_proj.weight, attention.wo.weight)
        assert mixer.o_proj.weight.grad is None and mixer.q_proj.weight.grad is None
        assert mixer.in_proj.weight.abs().max() > 0
        assert torch.equal(layer.feed_forward.w1.weight, origin.feed_forward.w1.weight)

    start = exported("start=one", folder)
    two, _, _ = run("small_stage2", folder, teacher, start, exported("export=two", folder))
    first, before = (t.model.decoder_layers[1].attention for t in (two, one))
    assert not torch.equal(first.q_proj.weight, before.q_proj.weight)
    assert torch.equal(first.o_proj.weight, before.o_proj.weight)
    zero, _, _ = run("small_stage2", folder, teacher, start, exported("export=zero", folder),
                     "--model.init_args.optimizer.lr=0")  # fmt: skip
    for name, value in zero.model.state_dict().items():
        assert torch.equal(value, one.model.state_dict()[name]), name

    start = exported("start=two", folder)
    for kind, attention in (("linear", []), ("hybrid", [0])):
        test = '--model.init_args.length_test={"lengths": [4, 8], "steps": 1}'
        overrides = (teacher, start, exported(f"export={kind}", folder), test)
        task, data, scores = run(f"small_stage3_{kind}", folder, *overrides)
        assert {"test/loss", "test/acc", "test/teacher_acc", "test/agreement"} <= set(scores)
        assert scores["test/teacher_growth"] > 1
        assert (scores["test/student_growth"] == 1) == (not attention)
        kinds = [type(layer.attention) for layer in task.model.decoder_layers]
        assert kinds == [GroupedAttention if i in attention else Mamba2Attention for i in range(4)]
        assert {"answers", "cost_by_length"} <= set(task.figures())
        mixer = task.model.decoder_layers[2].attention
        assert torch.equal(mixer.dt_bias, two.model.decoder_layers[2].attention.dt_bias)
        assert not torch.equal(
            mixer.v_proj.weight, two.model.decoder_layers[2].attention.v_proj.weight
        )
    for name, value in weights.items():
        assert torch.equal(value, task.teacher.state_dict()[name]), name
    kept = task.model.decoder_layers[0].attention.wqkv.weight
    assert torch.equal(kept, task.teacher.decoder_layers[0].attention.wqkv.weight)

    picture = folder / "picture.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    rows = task.predict_files([picture], data, folder)
    assert rows[0]["question"] == "a1 ?" and (folder / "0001_picture.png").is_file()


def test_a_teacher_of_transformers_and_text(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=40, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    export_causal_lm(LlamaForCausalLM(config), None, tmp_path / "teacher")
    recipe = tmp_path / "stage.yaml"
    recipe.write_text(
        f"""
model:
  class_path: zoo.tasks.Distillation
  init_args: {{teacher: {tmp_path}/teacher, stage: 1, optimizer: {{lr: 0.01, lr_batch_size: null}},
    length_test: {{lengths: [4, 8], steps: 1}}}}
data:
  class_path: zoo.data.UnitLanguage
  init_args: {{samples: 64, length: 16, batch_size: 4}}
trainer: {{max_steps: 2, max_epochs: 1000, limit_val_batches: 1, limit_test_batches: 1}}
"""
    )
    for overrides in ([], ["--model.init_args.stage=3"]):
        parsed = Recipe(recipe, overrides)
        task, data = parsed.build()
        trainer = parsed.build_trainer(
            logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(task, datamodule=data)
        scores = trainer.test(task, datamodule=data, verbose=False)[0]
        assert isinstance(task.teacher, LlamaForCausalLM) and scores["test/teacher_growth"] > 1
    parsed = Recipe(recipe, ["--model.init_args.teacher=/nowhere"])
    with pytest.raises(ZooError, match="no decoder '/nowhere'"):
        parsed.build()
    parsed = Recipe(recipe, ["--model.init_args.model_args.foo=1"])
    with pytest.raises(ZooError, match=r"^model\.init_args\.model_args: .*'foo'"):
        parsed.build()
    task.model.config.vocab_size = 10
    with pytest.raises(ZooError, match="knows 10 tokens"):
        task.check_data(data)


def test_kl_divergence():
    p, q = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=q), torch.distributions.Categorical(logits=p)
    )
    torch.testing.assert_close(logit_kl(p, q), expected.mean())
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    torch.testing.assert_close(logit_kl(p, q, mask), expected[mask > 0].mean())
    torch.testing.assert_close(logit_kl(p, q, temperature=2.0), 4 * logit_kl(p / 2, q / 2))


def test_patterns():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert train_only(model, ["1.*"]) == ["1.weight", "1.bias"]
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    with pytest.raises(ZooError, match=r"matches 5\.x"):
        train_only(model, ["1.*", "5.x"])
