"""From softmax to linear attention: the feature maps of a converted model learn its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.data.language.text import TextDataModule
from zoo.errors import ZooError
from zoo.metrics.attention import attention_entropy, attention_kl, monotonicity
from zoo.metrics.vector_mean import VectorMean
from zoo.models.language._causal_lm import export_causal_lm, load_causal_lm
from zoo.models.recurrent.hedgehog import Compared, comparing, convert
from zoo.plots.attention import entropy_by_layer, weights_by_score
from zoo.tasks._freezing import train_only
from zoo.tasks._scores import Scores
from zoo.tasks.base import Task
from zoo.tasks.language.language_modeling import check_vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a conversion adds.
NEW = ["*.feature_map_q.*", "*.feature_map_k.*", "*.window_factors"]
#: Keys that are drawn.
_DRAWN = 512


class AttentionDistillation(Task):
    """Turn the attention of a language model into linear attention (Hedgehog, arXiv 2402.04347).

    Every layer gets the input that it has in the teacher, and its feature maps learn to give the
    weights of softmax; nothing else learns. Samples are read from their beginning to their end,
    whatever the data's mask says, and have to fit into memory squared.

    Args:
        teacher: a causal LM that a recipe exported, a folder, or a hub name; Llama-style.
        conversion: arguments of :func:`zoo.models.recurrent.hedgehog.convert`.
        xent_factor: of the cross-entropy between the weights, mean over layers, heads and queries.
        mse_factor: of the squared error of what the heads give.
        export: name under which the converted model is kept, or a folder.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type, data_has, data_example = TextDataModule, "tokens", "zoo.data.PythonSource"

    def __init__(
        self,
        teacher: str,
        conversion: dict[str, Any] | None = None,
        xent_factor: float = 1.0,
        mse_factor: float = 0.0,
        export: str | None = None,
        **kwargs: Any,
    ) -> None:
        if xent_factor < 0 or mse_factor < 0 or not xent_factor + mse_factor:
            raise ZooError(
                f"model.init_args.xent_factor {xent_factor} and mse_factor {mse_factor}: expected "
                "factors from 0 on, not both 0"
            )
        self.teacher, self.conversion = teacher, conversion or {}
        self.xent_factor, self.mse_factor, self.export = xent_factor, mse_factor, export
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Load and convert the teacher; only what is new learns."""
        with blaming("model.init_args.conversion"):
            self.model = convert(load_causal_lm(self.teacher), **self.conversion)
        train_only(self.model, NEW, required=False)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Loss, divergence from softmax, entropies of both, and Spearman's correlation with q·k."""
        names = ("loss", "kl", "entropy", "softmax_entropy", "monotonicity")
        metrics: dict[str, Metric] = {name: MeanMetric() for name in names}
        if split == "test":
            metrics |= {name: VectorMean() for name in ("by_layer", "softmax_by_layer")}
        return metrics

    def check_data(self, data: DataModule) -> None:
        """The vocabulary must be large enough."""
        super().check_data(data)
        check_vocabulary(data, self.model, "model.init_args.teacher")

    def compare(self, ids: Tensor) -> list[Compared]:
        """Both attentions of all layers over texts ``[B, L]``."""
        with comparing(self.model) as found:
            self.model(input_ids=ids, use_cache=False)
        return found

    def loss(self, found: list[Compared]) -> Tensor:
        """Mean over the layers."""
        losses = []
        for layer in found:
            loss = layer.pred.new_zeros(())
            if self.xent_factor:
                xent = -(layer.true.detach() * layer.pred.clamp_min(1e-12).log()).sum(-1).mean()
                loss = loss + self.xent_factor * xent
            if self.mse_factor:
                loss = loss + self.mse_factor * F.mse_loss(layer.y_pred, layer.y_true.detach())
            losses.append(loss)
        return torch.stack(losses).mean()

    def training_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy of the weights, and error of the heads, as the factors say."""
        return self.loss(self.compare(batch[0]))

    def evaluate(self, batch: tuple[Tensor, ...], scores: Scores) -> list[Compared]:
        """Measure one batch."""
        found, count = self.compare(batch[0]), len(batch[0])
        scores["loss"].update(self.loss(found), count)
        entropies, exact = (
            torch.stack([attention_entropy(w).mean((1, 2)) for w in weights], dim=1)
            for weights in ([c.pred for c in found], [c.true for c in found])
        )
        for name, values in (("entropy", entropies), ("softmax_entropy", exact)):
            scores[name].update(values.mean(), count)
        for compared in found:
            scores["kl"].update(attention_kl(compared.true, compared.pred).mean(), count)
            order = monotonicity(compared.scores, compared.pred)
            scores["monotonicity"].update(order.mean(), count)
        if "by_layer" in scores:
            scores["by_layer"].update(entropies)
            scores["softmax_by_layer"].update(exact)
        return found

    def keep_examples(self, batch: Any, outputs: list[Compared]) -> None:
        """The last query of the last layer in the first test sample."""
        if not self.shown:
            last = outputs[-1]
            for weights in (last.true, last.pred):
                pair = (last.scores[0, :, -1], weights[0, :, -1])
                self.shown.append(tuple(t.flatten()[:_DRAWN].cpu().tolist() for t in pair))

    def finish_test(self) -> dict[str, Any]:
        """Export the converted model."""
        if self.export is not None and self.trainer.is_global_zero:
            export_causal_lm(self.eval_model, self.trainer.datamodule.tokenizer, self.export)
        return {}

    def figures(self) -> dict[str, Figure]:
        """Entropy of each layer, and weights against q·k."""
        layers = {
            name: self.results[key].reshape(-1).cpu().tolist()  # of one layer it is a number
            for name, key in (("softmax", "softmax_by_layer"), ("linear attention", "by_layer"))
        }
        points = dict(zip(layers, self.shown, strict=True))
        return {"entropy": entropy_by_layer(layers), "monotonicity": weights_by_score(points)}
