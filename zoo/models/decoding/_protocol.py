"""What a draft head is, and what it takes over from the language model it stands beside."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class DraftHead(Protocol):
    """The class of a trained head: an ``nn.Module`` that also offers this.

    Its trainer (:class:`zoo.tasks.decoding._draft_training.DraftTraining`) calls it on the states
    of whole texts and exports it; :func:`zoo.decoding.heads.head_for` reads that, or the file of
    the authors, for the method of decoding that it belongs to.

    Attributes:
        config: all that ``for_target`` needs to build it again, a dict or an object with
            ``to_dict``; it is written as ``config.json`` beside the weights.
    """

    config: Any

    @classmethod
    def for_target(
        cls,
        target: nn.Module,
        settings: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> nn.Module:
        """A head with fresh weights that fits a language model.

        Args:
            target: the language model, a :class:`zoo.models.language._protocol.LanguageModel`.
            settings: content of the head's ``config.json``, ours or the authors', which goes before
                what the target says; None or empty if there is none.
            keys: names of the tensors in the head's file, which know best how many heads there are.
        """

    def remap_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the authors' file to ours; what is not the head's is left out."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """States of the target at all positions of texts ``[B, T, d]``, and what else the head
        reads, to logits or states; the head's trainer and method agree on it.

        A head with an attention layer is called like a model of transformers
        (:class:`zoo.models.decoding._one_layer.OneLayerModel`), so that it reads trees as well.
        """


def output_rows(target: nn.Module, vocab_size: int, width: int) -> Tensor | None:
    """The output layer's weight ``[vocab_size, width]``, from which heads start.

    None if the target's has another width or fewer rows; rows that only pad are left out.
    """
    layer = target.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if weight is None or len(weight) < vocab_size or weight.shape[1] != width:
        return None
    return weight.data[:vocab_size]
