import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

from zoo.data.language.labelled_text import Glue, LabelledText, SmallSentences
from zoo.errors import ZooError
from zoo.losses.distillation import sinkhorn_distance, soft_cross_entropy
from zoo.models.language._causal_lm import export_causal_lm
from zoo.models.language._transformers import LoraSettings, build_classifier
from zoo.tasks.language._text_inputs import find_lines
from zoo.tasks.language.text_classification import ClassDistillation, TextClassification

SIZES = dict(
    num_hidden_layers=1,
    hidden_size=16,
    intermediate_size=16,
    num_attention_heads=2,
    vocab_size=80,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def make_task(num_classes=2, **kwargs):
    return TextClassification("sinkd_bert_student", num_classes, SIZES, **kwargs)


@pytest.fixture
def data(tmp_path):
    sample = SmallSentences(train=12, val=6)
    made = Glue(
        str(tmp_path / "cola"), "cola", sample=sample, vocab_size=80, length=32, batch_size=4
    )
    made.setup("fit")
    return made


@pytest.fixture
def teacher(data, tmp_path):
    torch.manual_seed(1)
    model = build_classifier("sinkd_bert_teacher", 2, SIZES)
    return str(export_causal_lm(model, data.tokenizer, tmp_path / "teacher"))


def trainer(**settings):
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return Trainer(accelerator="cpu", limit_val_batches=0, **quiet, **{"max_epochs": 2} | settings)


def test_the_loss_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    s, t, hard = torch.randn(5, 3), torch.randn(5, 3), torch.tensor(1.5)
    form = ClassDistillation(alpha=0.8, temperature=3.0, sinkhorn=0.5)
    expected = 0.2 * hard + 0.8 * soft_cross_entropy(s, t, 2.0) + 0.5 * sinkhorn_distance(s, t)
    torch.testing.assert_close(form.loss(s, t, hard, 2.0), expected)
    form = ClassDistillation(alpha=1.0, sinkhorn=0.0)
    torch.testing.assert_close(
        form.loss(s[:, :1], t[:, :1], hard, 2.0), F.mse_loss(s[:, 0], t[:, 0]) / 4
    )
    with pytest.raises(ZooError, match=r"distillation\.alpha is 2, expected 0 to 1"):
        ClassDistillation(alpha=2)


def test_a_student_learns_with_logits_from_disk(data, teacher, tmp_path):
    form = ClassDistillation("kd_anneal", temperature=3.0, cache=str(tmp_path / "kept"))
    torch.manual_seed(0)
    task = make_task(teacher=teacher, distillation=form)
    trainer().fit(task, datamodule=data)
    assert task.teacher.computed == 12  # each text once in two epochs
    (file,) = (tmp_path / "kept").iterdir()
    again = make_task(teacher=teacher, distillation=form)
    batch = data.collate(data.load("train")[:3])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    kept = again.teacher.logits(inputs) if again.teacher.model else None
    assert again.teacher.computed == 0
    torch.testing.assert_close(kept, again.teacher.model(**inputs).logits, rtol=1e-5, atol=1e-6)
    assert not any("teacher" in name for name in task.state_dict())
    file.write_bytes(b"broken")
    with pytest.raises(ZooError, match=r"holds no logits .* delete it"):
        _ = make_task(teacher=teacher, distillation=form).teacher.model


def test_a_teacher_of_other_classes_is_refused(data, teacher, tmp_path):
    task = make_task(3, teacher=teacher)
    task.check_data = lambda data: None  # type: ignore[method-assign]
    with pytest.raises(ZooError, match="has 2 classes, the student 3"):
        trainer().fit(task, datamodule=data)
    with pytest.raises(ZooError, match=r"falls over the epochs: set trainer\.max_epochs"):
        endless = make_task(teacher=teacher, distillation=ClassDistillation("kd_anneal"))
        trainer(max_steps=2, max_epochs=-1).fit(endless, datamodule=data)
    with pytest.raises(ZooError, match="there is no classifier 'nowhere'"):
        trainer().fit(make_task(teacher="nowhere"), datamodule=data)
    with pytest.raises(ZooError, match="there is no classifier 'bert'"):  # fresh: it knows nothing
        trainer().fit(make_task(teacher="bert"), datamodule=data)


def test_adapters_and_head_alone_learn_and_are_merged(data, teacher, tmp_path):
    name = str(tmp_path / "adapted")
    task = TextClassification(
        teacher, 2, lora=LoraSettings(r=2, modules=["query", "value"]), export=name
    )
    learning = {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in name or "classifier" in name for name in learning)
    assert all(module.training for module in task.model.modules())
    trainer().fit(task, datamodule=data)
    batch = data.encode([("the king sees the cats .",)])
    with torch.no_grad():
        expected = task.eval().model(**batch).logits
    trainer().test(task, datamodule=data, verbose=False)
    plain = build_classifier(name, 2, {}).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, expected)
    assert not any("lora" in name for name in plain.state_dict())
    with pytest.raises(ZooError, match=r"model\.init_args\.lora: "):
        make_task(lora=LoraSettings(modules=["nothing"]))


def test_numbers_are_learnt_too(tmp_path):
    folder = tmp_path / "numbers"
    folder.mkdir()
    for name in ("train", "val"):
        rows = "".join(f"a {word},{n}\n" for n, word in enumerate(["one", "two", "three", "four"]))
        (folder / f"{name}.csv").write_text("text,label\n" + rows)
    data = LabelledText(str(folder), class_names=["score"], vocab_size=80, length=16, batch_size=4)
    task = make_task(1)
    run = trainer()
    run.fit(task, datamodule=data)
    (scores,) = run.test(task, datamodule=data, verbose=False)
    assert {"test/loss", "test/pearson", "test/spearman"} <= scores.keys()
    rows = task.predict_files(task.find_inputs([folder / "val.csv"]), data, tmp_path)
    assert isinstance(rows[1]["prediction"], float)
    (folder / "val.csv").write_text("text,label\nx,much\n")
    with pytest.raises(ZooError, match="label is 'much', expected a number"):
        data.__class__(str(folder), class_names=["score"]).load("val")


def test_lines_that_cannot_be_predicted_are_said(data, tmp_path):
    task = make_task()
    task.use_data(data)
    file = tmp_path / "a.txt"
    file.write_text("the king sees the cat .\n\n" + "the " * 40 + "\n")
    rows = task.predict_files(task.find_inputs([file]), data, tmp_path)
    assert rows[0]["prediction"] in ("0", "1") and 0.5 <= rows[0]["probability"] <= 1
    assert rows[1]["error"] == f"{file}, line 2 is empty, expected a text"
    assert "line 3: 42 tokens, more than the 32 that are read" in rows[2]["error"]
    assert [row["line"] for row in rows] == [1, 2, 3]
    pairs = LabelledText("x", text_columns=["a", "b"])
    with pytest.raises(ZooError, match="line 1: 1 texts, expected two with a tab between them"):
        task.predict_one(task.find_inputs([file])[0], pairs, tmp_path)
    file.write_bytes(b"a\n\xe9\n")
    with pytest.raises(ZooError, match=r"a\.txt, line 2: byte 1 is no UTF-8"):
        find_lines([file])
    file.write_text("")
    with pytest.raises(ZooError, match="no line of text"):
        find_lines([file])


def test_models_and_data_must_fit(data):
    task = make_task()
    data.length = 33
    with pytest.raises(ZooError, match="length is 33, but the model reads 32 tokens"):
        task.check_data(data)
    data.length, data._vocab_size = 32, 81
    with pytest.raises(ZooError, match="the model knows 80 tokens, the data have 81"):
        task.check_data(data)
    with pytest.raises(ZooError, match="num_classes is 0"):
        make_task(0)
    with pytest.raises(ZooError, match=r"name it by model\.init_args\.teacher"):
        make_task(distillation=ClassDistillation())
