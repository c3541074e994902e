"""SeqBoat: who finds a pair again, and how many tokens have to look for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.synthetic.sparse_recall import sparse_recall
from zoo.layers.ema import MultiHeadEMA
from zoo.models.recurrent._seqboat_attention import local_attention, local_attention_reference
from zoo.models.recurrent.seqboat import SeqBoatLayer, compress, extract
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import IGNORE, Samples, SyntheticTask, TrainedBlock


class SparseRecall(SyntheticTask):
    """The last token tells the value of its key; see
    :func:`zoo.data.synthetic.sparse_recall.sparse_recall`.

    Args:
        length, vocab_size, pairs: see there.
    """

    def __init__(self, length: int = 128, vocab_size: int = 16, pairs: int = 6) -> None:
        self.length, self.symbols, self.pairs = length, vocab_size, pairs
        self.classes = vocab_size
        self.known = {"guess": 1 / (vocab_size - 1)}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Tokens [B, L]."""
        tokens, values, _ = sparse_recall(count, self.length, self.symbols, self.pairs, generator)
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -1] = values
        return Samples((tokens,), targets)


class Recall(TrainedBlock):
    """Two layers of width 64 at sparse recall, averages and attention in both directions.

    Measures ``rate``, the share of active tokens in the layer that has the fewest, ``rate_0`` and
    ``rate_1`` of both, and ``scores``, how many scores of attention a sequence takes at most; draws
    which share of flags, keys and values, and of filler, is active in each layer.

    Args:
        route: of :class:`zoo.models.recurrent.seqboat.SeqBoatLayer`.
        window: of the attention.
        init_temp_scale: of the router.
        kwargs: see :class:`zoo.proofs.synthetic.TrainedBlock`.
    """

    def __init__(
        self, route: str = "learned", window: int = 128, init_temp_scale: float = 1.0,
        steps: int = 600, batch_size: int = 32, test_samples: int = 1024, **kwargs: object,
    ) -> None:  # fmt: skip
        def block(dim: int) -> nn.Module:
            return SeqBoatLayer(
                dim, d_qk=32, window=window, prenorm=True, bias="rotary", route=route,
                init_temp_scale=init_temp_scale,
            )  # fmt: skip

        self.window = window
        super().__init__(
            SparseRecall(), block, dim=64, depth=2, steps=steps, batch_size=batch_size,
            test_samples=test_samples, **kwargs,
        )  # type: ignore[arg-type]  # fmt: skip

    def inspect(self, network: nn.Module, samples: Samples) -> Measured:
        """Who is active, over other samples."""
        assert isinstance(network, nn.Sequential) and isinstance(self.task, SparseRecall)
        task, drawn = self.task, torch.Generator().manual_seed(1)
        tokens, _, marked = sparse_recall(256, task.length, task.symbols, task.pairs, drawn)
        marked[:, -1] = True
        x, rates, scores, curves = network[0](tokens), [], 0, []
        with torch.inference_mode():
            for layer in network[1 : 1 + self.depth]:
                x, active = layer.routed(x)
                most = int(active.sum(1).max())
                scores += most * min(most, 3 * self.window)
                rates.append(active)
        stacked = torch.stack(rates).double()  # [layers, B, L]
        axes = Axes("Tokens that use attention", "layer", "share")
        for name, where in (("flags, keys, values", marked), ("filler", ~marked)):
            shares = [float(layer[where].mean()) for layer in stacked]
            curves.append(Curve(axes, range(1, 1 + self.depth), shares, name))
        means = stacked.mean((1, 2)).tolist()
        values = {f"rate_{i}": rate for i, rate in enumerate(means)}
        return Measured(values | {"rate": min(means), "scores": float(scores)}, curves)


class Forms(Measurement):
    """Whether the linear form is the quadratic one, in float64.

    Measures largest differences: ``attention``, blocks of a window against all pairs; ``always``, a
    layer whose tokens are all active against attention without packing; ``packing``, of tokens that
    were packed and put back; ``averages``, the convolution against its recurrence. Draws the first
    of them against the length.

    Args:
        length: of the sequences, no multiple of a window.
        lengths: that are drawn.
    """

    def __init__(self, length: int = 75, lengths: Sequence[int] = (9, 20, 75, 150, 300)) -> None:
        self.length, self.lengths = length, list(lengths)

    @torch.no_grad()
    def measure(self, seed: int) -> Measured:
        """With random tensors."""
        torch.manual_seed(seed)
        active = torch.rand(3, self.length) < 0.4
        active[0] = False
        x = torch.randn(3, self.length, 6, dtype=torch.float64)
        put_back = extract(compress(x, active)[0], active)
        ema = MultiHeadEMA(6, 4).double()
        steps = [ema(part, state) for state in [ema.allocate_state(3)] for part in x.split(1, 1)]
        axes = Axes("Attention in blocks", "tokens", "difference from all pairs", "x")
        curves = [
            Curve(axes, self.lengths, [self._attention(n, causal) for n in self.lengths], name)
            for name, causal in (("both directions", False), ("causal", True))
        ]
        values = {
            "attention": max(self._attention(self.length, causal) for causal in (False, True)),
            "always": max(self._always(x, causal) for causal in (False, True)),
            "packing": float((put_back - x * active[..., None]).abs().max()),
            "averages": float((ema(x) - torch.cat(steps, 1)).abs().max()),
        }
        return Measured(values, curves)

    def _attention(self, length: int, causal: bool) -> float:
        q, k, v = torch.randn(3, 3, length, 8, dtype=torch.float64)
        valid = torch.rand(3, length) < 0.7
        given = (q, k, v, valid, 8, causal)
        sees = valid if causal else torch.ones_like(valid)  # the others may see nothing
        pairs = (f(*given)[sees] for f in (local_attention, local_attention_reference))
        first, second = pairs
        return float((first - second).abs().max())

    def _always(self, x: Tensor, causal: bool) -> float:
        layer = SeqBoatLayer(6, 8, window=8, bidirectional=not causal, route="always").double()
        mx = F.silu(layer.ssm(x))
        z, r, v = F.silu(layer.mx_proj(mx)).split(layer.sizes, dim=-1)
        q, k = (z[..., None, :] * layer.gamma + layer.beta).unbind(-2)
        where = torch.arange(self.length).expand(3, -1)
        everywhere = torch.ones(3, self.length, dtype=torch.bool)
        h = local_attention_reference(
            q * layer.scale, k, v, everywhere, 8, causal, bias=layer.rel_pos_bias, positions=where
        )
        out = x + layer.hx_proj(mx)[..., 2:] + layer.h_proj(h * r)
        return float((layer(x) - layer.norm(F.silu(out))).abs().max())
