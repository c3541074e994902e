"""Hedgehog: what a feature map keeps of softmax, measured in a model that was trained with it."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from zoo.metrics.attention import attention_entropy, attention_kl, monotonicity
from zoo.models.decoding.base_lm import base_lm_small
from zoo.models.recurrent.hedgehog import Compared, comparing, convert, converted_layers
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import fit

#: Keys and values that there are, and pairs of a training text.
KEYS, VALUES, PAIRS = 32, 32, 10
#: Texts of a step, and of a measurement.
BATCH, TEXTS = 64, 128
#: Features of a head in every map: 2 x 16 of Hedgehog, 32 of T2R. The map without training has the
#: head's own channels, 16.
MAPS = {
    "softmax": {"feature_map": "softmax"},
    "relu": {"feature_map": "relu", "feature_dim": 32, "bias": True, "identity": False},
    "elu": {"feature_map": "elu", "learned": False},
}


class Recall(nn.Module):
    """A two-layer Transformer of width 64 that reads pairs, one a token, then keys alone."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(KEYS, 64), nn.Embedding(VALUES + 1, 64)
        self.lm = base_lm_small(
            vocab_size=VALUES, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
        )  # fmt: skip

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        """Both [B, L]; value ``VALUES`` is none. Logits [B, L, VALUES]."""
        embedded = self.keys(keys) + self.values(values)
        return self.lm(inputs_embeds=embedded, use_cache=False).logits


def draw(count: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs with different keys, then their keys in another order without values.

    Returns:
        keys and values ``[count, 2 * pairs]``, and the values of the second half.
    """
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(VALUES, (count, pairs), generator=generator)
    order = torch.rand(count, pairs, generator=generator).argsort(1)
    unknown = torch.full_like(values, VALUES)
    return (
        torch.cat([keys, keys.gather(1, order)], 1),
        torch.cat([values, unknown], 1),
        values.gather(1, order),
    )


@functools.cache
def _teacher(seed: int, steps: int) -> Recall:
    torch.manual_seed(seed)
    network, drawn = Recall(), torch.Generator().manual_seed(3 * seed)

    def loss(step: int) -> Tensor:
        keys, values, answers = draw(BATCH, PAIRS, drawn)
        logits = network(keys, values)[:, PAIRS:]
        return F.cross_entropy(logits.flatten(0, 1), answers.flatten())

    return fit(network, loss, steps, 4e-3)  # type: ignore[return-value]


@torch.no_grad()
def _accuracy(network: Recall, seed: int, pairs: int = PAIRS) -> float:
    tests = torch.Generator().manual_seed(3 * seed + 1)
    keys, values, answers = draw(2 * TEXTS, pairs, tests)
    right = network(keys, values)[:, pairs:].argmax(-1) == answers
    return float(right.double().mean())


@torch.no_grad()
def _compared(network: Recall, seed: int, pairs: int) -> list[Compared]:
    keys, values, _ = draw(TEXTS, pairs, torch.Generator().manual_seed(3 * seed + 2))
    with comparing(network.lm) as found:
        network(keys, values)
    return found


class Teacher(Measurement):
    """The Transformer that all others are made from.

    Args:
        steps: of its training.
    """

    def __init__(self, steps: int = 600) -> None:
        self.steps = steps

    def measure(self, seed: int) -> Measured:
        """``accuracy`` at the pairs of the training."""
        return Measured({"accuracy": _accuracy(_teacher(seed, self.steps), seed)})


class Distilled(Measurement):
    """The Transformer with linear attention in all layers, and no further training of it.

    Measures ``kl`` of the weights from softmax's (mean over layers, heads and queries, nats),
    ``entropy_gap`` (the absolute difference of the mean entropies), ``monotonicity`` (Spearman's
    correlation with q·k), ``accuracy``, and ``kl_longer`` at ``longer`` pairs.

    Args:
        feature_map: "softmax" (Hedgehog), "relu" (T2R), or "elu", which learns nothing.
        steps: of the distillation, and of the teacher's training.
        longer: pairs of texts that are longer than those of the distillation.
    """

    def __init__(self, feature_map: str, steps: int = 600, longer: int = 16) -> None:
        self.feature_map, self.steps, self.longer = feature_map, steps, longer

    def measure(self, seed: int) -> Measured:
        """Distil, then look at both attentions and swap them."""
        network = copy.deepcopy(_teacher(seed, self.steps)).requires_grad_(False)
        torch.manual_seed(seed)
        convert(network.lm, **MAPS[self.feature_map])
        if self.feature_map != "elu":
            self._distil(network, seed)
        found = _compared(network, seed, PAIRS)
        kl = torch.stack([attention_kl(c.true, c.pred).mean() for c in found])
        entropies = torch.stack([attention_entropy(c.pred).mean() for c in found])
        exact = torch.stack([attention_entropy(c.true).mean() for c in found])
        order = torch.stack([monotonicity(c.scores, c.pred).mean() for c in found])
        axes = Axes("Weights of softmax and of linear attention", "query", "entropy, nats")
        places = range(1, 2 * PAIRS + 1)
        last = found[-1]

        def entropy(weights: Tensor) -> list[float]:
            return attention_entropy(weights).mean((0, 1)).tolist()

        lengths = (2, 5, PAIRS, self.longer, 2 * self.longer)
        kls = [self._kl(network, seed, pairs) for pairs in lengths]
        curves = [
            Curve(axes, places, entropy(last.pred)),
            Curve(axes, places, entropy(last.true), "softmax", "known"),
            Curve(Axes("Unseen lengths", "pairs", "KL from softmax, nats", "y"), lengths, kls),
            *_by_score(last),
        ]  # fmt: skip
        return Measured(
            {
                "kl": float(kl.mean()),
                "entropy_gap": float((entropies - exact).abs().mean()),
                "monotonicity": float(order.mean()),
                "accuracy": _accuracy(network, seed),
                "kl_longer": kls[3],
            },
            curves,
        )

    def _distil(self, network: Recall, seed: int) -> None:
        maps = [p for n, p in network.lm.named_parameters() if "feature_map" in n]
        for parameter in maps:
            parameter.requires_grad_()
        drawn = torch.Generator().manual_seed(3 * seed + 9)

        def loss(step: int) -> Tensor:
            keys, values, _ = draw(BATCH, PAIRS, drawn)
            with comparing(network.lm) as found:
                network(keys, values)
            terms = [attention_kl(c.true.detach(), c.pred).mean() for c in found]
            return torch.stack(terms).mean()

        fit(network, loss, self.steps, 1e-2)

    def _kl(self, network: Recall, seed: int, pairs: int) -> float:
        found = _compared(network, seed, min(pairs, KEYS))
        return float(torch.stack([attention_kl(c.true, c.pred).mean() for c in found]).mean())


def _by_score(layer: Compared) -> list[Curve]:
    """Weights against q·k, one text's last query."""
    axes = Axes("Weights grow with q·k", "q·k, scaled", "weight", "y")
    scores = layer.scores[0, :, -1].flatten().tolist()
    return [
        Curve(axes, scores, layer.pred[0, :, -1].flatten().tolist(), style="points"),
        Curve(axes, scores, layer.true[0, :, -1].flatten().tolist(), "softmax", "points"),
    ]


class Forms(Measurement):
    """A converted layer's forms with random weights, in float64.

    Measures largest differences from the quadratic form: ``whole`` of the op, ``steps`` token by
    token, ``continued`` from the state of a prefix, ``windowed`` of steps of a terraced window; and
    ``rows``, the largest distance of a row's sum from 1, and ``least``, the smallest feature.
    """

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """Of 37 tokens."""
        values: dict[str, float] = {}
        curves: list[Curve] = []
        axes = Axes("Single steps against the quadratic form", "token", "relative difference", "y")
        kinds = {"all linear": {}, "window of 5": {"window": 5, "identity": False}}
        for line, settings in kinds.items():
            torch.manual_seed(seed)
            model = convert(Recall().lm, **settings).double()
            layer, x = converted_layers(model)[0], torch.randn(2, 37, 64, dtype=torch.float64)
            turned = model.model.rotary_emb(x, torch.arange(37)[None])
            q, k, v = layer.queries_keys_values(x, turned)
            compared = layer.compare(q, k, v)
            exact = layer.o_proj(compared.y_pred.transpose(1, 2).flatten(2))

            def apart(cuts: list[int], layer=layer, x=x, turned=turned, exact=exact) -> Tensor:
                cache, found = DynamicCache(), []
                pieces = zip(x.split(cuts, 1), *(t.split(cuts, 1) for t in turned), strict=True)
                for piece, cos, sin in pieces:
                    found.append(layer(piece, (cos, sin), cache=cache)[0])
                difference = (torch.cat(found, 1) - exact).abs().amax((0, 2))
                return difference / exact.abs().max()

            steps = apart([1] * 37)
            curves.append(Curve(axes, range(1, 38), steps.clamp_min(1e-17).tolist(), line))
            if line != "all linear":
                values["windowed"] = float(steps.max())
                continue
            values |= {
                "whole": float(apart([37]).max()),
                "steps": float(steps.max()),
                "continued": float(apart([20, 17]).max()),
                "rows": float((compared.pred.sum(-1) - 1).abs().max()),
                "least": float(layer.feature_map_k(k).min()),
            }
        return Measured(values, curves)
