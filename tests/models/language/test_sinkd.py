import logging

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

import zoo
from zoo.checkpoints.loading import load_tensors
from zoo.errors import ZooError

SIZES = dict(
    num_hidden_layers=1,
    hidden_size=16,
    intermediate_size=16,
    num_attention_heads=2,
    vocab_size=30,
    max_position_embeddings=12,
)


def as_in_2018(name):
    """Names of converted TensorFlow files."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def test_weights_of_pre_training_leave_the_classifier_fresh(caplog):
    torch.manual_seed(0)
    published = BertForPreTraining(BertConfig(**SIZES)).eval()
    model = zoo.create_model("sinkd_bert_student", **SIZES).eval()
    head = model.classifier.weight.clone()
    old = {as_in_2018(name): value for name, value in published.state_dict().items()}
    old["bert.embeddings.position_ids"] = torch.arange(12)[None]
    assert any(name.startswith("cls.") for name in old)
    with caplog.at_level(logging.INFO, "zoo"):
        load_tensors(model, old, "old.bin")
    assert "the classifier starts fresh" in caplog.text
    assert torch.equal(model.classifier.weight, head)
    ids = torch.randint(30, (2, 7))
    with torch.no_grad():
        wanted = published.bert(ids).pooler_output
        torch.testing.assert_close(model.bert(ids).pooler_output, wanted)
        torch.testing.assert_close(model(ids).logits, model.classifier(wanted))


def test_a_students_file_brings_its_classifier(caplog):
    model = zoo.create_model("sinkd_bert_student", **SIZES)
    other = zoo.create_model("sinkd_bert_student", **SIZES).state_dict()
    with caplog.at_level(logging.INFO, "zoo"):
        load_tensors(model, dict(other), "student.bin")
    assert "starts fresh" not in caplog.text
    assert torch.equal(model.classifier.weight, other["classifier.weight"])
    assert torch.equal(model.classifier.bias, other["classifier.bias"])


def test_weights_of_something_else_are_refused():
    model = zoo.create_model("sinkd_bert_student", **SIZES)
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if "pooler" not in name and "classifier" not in name
    }
    with pytest.raises(ZooError, match=r"classifier\.bias"):
        load_tensors(model, weights, "encoder.bin")
    with pytest.raises(
        ZooError, match="hidden_sizes is no setting of BERT; did you mean hidden_size"
    ):
        zoo.create_model("sinkd_bert_student", hidden_sizes=3)


def test_sizes():
    with torch.device("meta"):
        teacher, student = (
            zoo.create_model(f"sinkd_bert_{name}", num_labels=3) for name in ("teacher", "student")
        )
    assert [len(model.bert.encoder.layer) for model in (teacher, student)] == [12, 6]
    assert teacher.classifier.weight.shape == student.classifier.weight.shape == (3, 768)
    assert student.config.vocab_size == 30522 and student.config.layer_norm_eps == 1e-12
