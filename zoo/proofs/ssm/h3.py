"""H3: recall, and that convolution, parts and single steps are one function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.data.synthetic.associative_recall import associative_recall
from zoo.models.ssm._h3_kernels import DiagonalKernel
from zoo.models.ssm.h3 import H3LM
from zoo.ops import butterfly_conv, fft_conv, state_passing_conv
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import IGNORE, Samples, SyntheticTask, TrainedNetwork


class AssociativeRecall(SyntheticTask):
    """The value behind the last key, see :mod:`zoo.data.synthetic.associative_recall`.

    Args:
        length, vocab_size: of the sequences.
    """

    def __init__(self, length: int = 20, vocab_size: int = 10) -> None:
        self.length = length
        self.symbols = self.classes = vocab_size
        self.known = {"guess": 1 / (vocab_size // 2 - 1)}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Tokens [B, L + 2]; the last place is asked."""
        tokens, values = associative_recall(count, self.length, self.symbols, generator)
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -1] = values
        return Samples((tokens,), targets)


class S4DMixer(nn.Module):
    """A layer with H3's diagonal SSM alone: convolution, GELU, a gated linear layer."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.kernel = DiagonalKernel(d_model, 64)
        self.D = nn.Parameter(torch.randn(d_model))
        self.output_linear = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.GLU())

    def forward(self, u: Tensor, state: None = None) -> Tensor:
        """[B, L, d_model] to the same."""
        x = u.transpose(1, 2)
        y = fft_conv(x, self.kernel(x.shape[-1]), self.D)
        return self.output_linear(nn.functional.gelu(y).transpose(1, 2))


class Positions(nn.Module):
    """Learned positions, which attention needs and H3 does not.

    Args:
        model: takes their sum with the tokens.
        length: of the longest sequence.
    """

    def __init__(self, model: H3LM, length: int) -> None:
        super().__init__()
        self.model = model
        self.positions = nn.Embedding(length, model.config.d_model)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] -> logits [B, L, V]."""
        places = self.positions.weight[: ids.shape[1]]
        embedded = self.model.get_input_embeddings()(ids) + places
        return self.model(inputs_embeds=embedded).logits


class Logits(nn.Module):
    """What a language model answers, without its cache."""

    def __init__(self, model: H3LM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] -> logits [B, L, V]."""
        return self.model(ids).logits


class Recall(TrainedNetwork):
    """Accuracy of associative recall after training on it (2 layers of width 32).

    Args:
        layer: "H3", "S4D" or "attention".
        length, vocab_size: of the sequences.
        steps, lr: of the training.
        test_samples: that are measured.
    """

    def __init__(
        self,
        layer: str,
        length: int = 20,
        vocab_size: int = 10,
        steps: int = 1500,
        lr: float = 3e-3,
        test_samples: int = 1024,
    ) -> None:
        task = AssociativeRecall(length, vocab_size)
        super().__init__(task, steps, batch_size=32, lr=lr, test_samples=test_samples)
        self.layer = layer

    def network(self) -> nn.Module:
        """A small language model of one kind of layer, its logits alone."""
        attention = self.layer == "attention"
        model = H3LM(
            d_model=32, n_layer=2, vocab_size=self.task.symbols, pad_vocab_size_multiple=1,
            attn_layer_idx=[0, 1] if attention else [], attn_cfg={"num_heads": 1},
        )  # fmt: skip
        if self.layer == "S4D":
            for block in model.backbone.layers:
                block.mixer = S4DMixer(32)
        if not attention:
            return Logits(model)
        assert isinstance(self.task, AssociativeRecall)
        return Positions(model, self.task.length + 2)


class OneFunction(Measurement):
    """Largest differences between the forms of H3 with random weights, in float32, relative to the
    largest value.

    Args:
        length: of the sequence.
    """

    def __init__(self, length: int = 64) -> None:
        self.length = length

    @torch.inference_mode()
    def measure(self, seed: int) -> Measured:
        """``steps`` and ``parts`` of a hybrid's logits against one pass, ``growth`` of the cache
        of a model without attention in bytes; ``passed``: a convolution in four parts joined by the
        state against one; ``blocks``: the block Fourier transform's against the library's;
        ``future``: the influence of a later token."""
        torch.manual_seed(seed)
        model = H3LM(d_model=32, n_layer=3, vocab_size=50, attn_layer_idx=[1],
                     attn_cfg={"num_heads": 4}).eval()  # fmt: skip
        ids = torch.randint(50, (2, self.length))
        whole = model(ids).logits

        def deviation(a: Tensor, b: Tensor) -> float:
            return ((a - b).abs().max() / b.abs().max()).item()

        def read(*sizes: int) -> Tensor:
            cache = model.allocate_cache(2)
            logits = [model(part, cache=cache).logits for part in ids.split(sizes, dim=1)]
            return torch.cat(logits, dim=1)

        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 50
        recurrent = H3LM(d_model=32, n_layer=1, vocab_size=50).eval()
        cache = recurrent.allocate_cache(2)
        before = cache.nbytes
        recurrent(ids, cache=cache)
        kernel = DiagonalKernel(32, 64)
        u, (log_A, B, C) = torch.randn(2, 32, 1000), kernel.discrete()
        one = fft_conv(u, kernel(1000))
        steps = read(*[1] * self.length)
        parts = read(self.length // 3, self.length - self.length // 3)
        axes = Axes("Difference from one pass", "tokens before", "of logits, at most", "y")
        curves = []
        for name, logits in (("token by token", steps), ("in two parts", parts)):
            apart = (logits - whole).abs().amax((0, 2)).clamp_min(1e-9)
            curves.append(Curve(axes, range(self.length), apart.tolist(), name))
        values = {
            "steps": deviation(steps, whole),
            "parts": deviation(parts, whole),
            "growth": float(cache.nbytes - before),
            "passed": deviation(state_passing_conv(u, log_A, B, C, chunk=250)[0], one),
            "blocks": deviation(butterfly_conv(u, kernel(1000), (16, 16, 8)), one),
            "future": (model(changed).logits - whole)[:, :-1].abs().max().item(),
        }
        return Measured(values, curves)
