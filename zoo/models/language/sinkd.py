"""SinKD's students and teachers: BERT of 12 and of 6 layers with a classifier (Sinkhorn Distance
Minimization for Knowledge Distillation, LREC-COLING 2024, arXiv 2402.17110).

The paper is a loss, :func:`zoo.losses.distillation.sinkhorn_distance`; its models are transformers'
BERT, whose own implementation is used. The authors' files are folders of transformers 3.0, and the
students start from Google's small BERTs (arXiv 1908.08962): :meth:`BertClassifier.remap_state_dict`
reads both.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from zoo.errors import ZooError, suggest
from zoo.models.registry import register_model

log = logging.getLogger("zoo")


class BertClassifier(BertForSequenceClassification):
    """Transformers' BERT with a classifier: ``input_ids`` ``[B, L]`` to ``.logits`` ``[B, C]``."""

    #: A classifier for another number of classes is left out when weights are loaded.
    head_names = ("classifier",)

    def remap_state_dict(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of 2018 to 2020 -> ours: ``LayerNorm.gamma`` and ``beta`` of converted TensorFlow
        files, the buffer ``position_ids``; heads of pre-training are left out, and where there is
        no classifier the fresh one stays.
        """
        found = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
                "LayerNorm.beta", "LayerNorm.bias"
            ): tensor
            for name, tensor in tensors.items()
            if not name.startswith("cls.") and not name.endswith(".position_ids")
        }
        if "classifier.weight" not in found and "bert.pooler.dense.weight" in found:
            log.info("the weights are of pre-training: the classifier starts fresh")
            found["classifier.weight"] = self.classifier.weight.detach()
            found["classifier.bias"] = self.classifier.bias.detach()
        return found


def _bert(settings: dict[str, Any], overrides: dict[str, Any]) -> BertClassifier:
    known = BertConfig().to_dict()
    for name in overrides:
        if name != "num_labels" and name not in known:
            raise ZooError(f"{name} is no setting of BERT; {suggest(name, known)}")
    return BertClassifier(BertConfig(**(settings | overrides)))


@register_model(parameters=109_483_778)
def sinkd_bert_teacher(**overrides: Any) -> BertClassifier:
    """BERT-base with a classifier, the teacher: 12 layers, width 768, two classes."""
    return _bert(dict(num_hidden_layers=12, num_labels=2), overrides)


@register_model(
    source="hf://google/bert_uncased_L-6_H-768_A-12",
    parameters=66_956_546,
)
def sinkd_bert_student(**overrides: Any) -> BertClassifier:
    """BERT of 6 layers with a classifier, the student: width 768, two classes."""
    return _bert(dict(num_hidden_layers=6, num_labels=2), overrides)
