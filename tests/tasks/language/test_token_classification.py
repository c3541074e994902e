import json

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

from zoo.data.language.tagged_text import Conll2003, SmallNames, TaggedText
from zoo.errors import ZooError
from zoo.models.language._transformers import build_tagger, build_transformer
from zoo.tasks.language.token_classification import TokenClassification

SIZES = dict(
    num_hidden_layers=1,
    hidden_size=16,
    intermediate_size=16,
    num_attention_heads=2,
    vocab_size=100,
    max_position_embeddings=32,
)


@pytest.fixture
def data(tmp_path):
    sample = SmallNames(train=40, val=4, test=4)
    made = Conll2003(str(tmp_path / "c"), sample=sample, vocab_size=100, length=32, batch_size=4)
    made.setup("fit")
    return made


class Known(torch.nn.Module):
    """Says of each token the class that it is told."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, input_ids, **_):
        return type("Output", (), {"logits": F.one_hot(self.classes, 6).float()})


def test_words_that_were_cut_off_count_as_wrong(data):
    task = TokenClassification("bert", 6, model_args=SIZES)
    task.use_data(data)
    data.length = 4
    batch = data.collate([row for row in data.load("train") if len(row.words) > 4][:1])
    read = int((batch["labels"] >= 0).sum())
    truth = batch["tags"][0]
    task.model = Known(batch["labels"].clamp(min=0))  # right wherever it reads
    scores = task.scores["test"]
    task.evaluate(batch, scores)
    found = scores.compute()
    assert float(found["acc"]) == pytest.approx(read / len(truth)) and read < len(truth)
    assert float(found["spans"]["recall"]) < 1


def test_the_loss_is_the_mean_over_words(data):
    task = TokenClassification("bert", 6, model_args=SIZES).eval()
    batch = data.collate(data.load("train")[:3])
    logits = task.model(batch["input_ids"], batch["attention_mask"]).logits
    every = [
        -logits[row, place].log_softmax(-1)[label]
        for row in range(3)
        for place, label in enumerate(batch["labels"][row].tolist())
        if label >= 0
    ]
    torch.testing.assert_close(task.training_loss(batch), torch.stack(every).mean())


def test_it_learns_is_kept_and_predicts_lines(data, tmp_path):
    name = str(tmp_path / "kept")
    torch.manual_seed(0)
    task = TokenClassification("bert", 6, model_args=SIZES, export=name)
    run = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    run.fit(task, datamodule=data)
    (scores,) = run.test(task, datamodule=data, verbose=False)
    assert {"test/loss", "test/acc", "test/precision", "test/recall", "test/f1"} <= scores.keys()
    kept = build_tagger(name, 6, {}).eval()
    assert kept.config.id2label[1] == "B-LOC"

    file = tmp_path / "a.txt"
    file.write_text("Anna  Lund met\n\n" + "Lund " * 40)
    words = data.encode([["Anna", "Lund", "met"]])["words"]
    wanted = torch.zeros_like(words)
    wanted[words == 0], wanted[words == 1] = (
        data.class_names.index("B-PER"), data.class_names.index("I-PER")
    )  # fmt: skip
    task.model = Known(wanted)
    rows = task.predict_files(task.find_inputs([file]), data, tmp_path)
    assert rows[0]["prediction"] == "B-PER I-PER O"
    assert json.loads(rows[0]["entities"]) == [
        {"type": "PER", "text": "Anna  Lund", "start": 0, "end": 10}
    ]
    assert "line 2 is empty" in rows[1]["error"]
    assert "more than the 32 that are read" in rows[2]["error"]


def test_tags_without_spans_have_an_accuracy_alone(tmp_path):
    (tmp_path / "train.conll").write_text("the DET\ndog NOUN\n")
    data = TaggedText(str(tmp_path), vocab_size=40, length=16)
    task = TokenClassification("bert", 2, model_args=SIZES).eval()
    task.use_data(data)
    task.evaluate(data.collate(data.load("train")), task.scores["val"])
    assert task.scores["val"].compute().keys() == {"loss", "acc"}


def test_what_cannot_be_built_is_said():
    from transformers import AutoModelForTokenClassification as Auto

    with pytest.raises(ZooError, match="hiden_size is no setting of bert; did you mean hidden_siz"):
        build_transformer(Auto, "bert", {"hiden_size": 3}, "token classifier")
    with pytest.raises(ZooError, match="there is no token classifier 'nowhere'"):
        build_tagger("nowhere", 3, {})
    with pytest.raises(ZooError, match="num_classes is 1, expected the number of tags"):
        TokenClassification("bert", 1)
