"""Mamba and Mamba-2: what selection buys, and that parallel and stepwise forms are one function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.synthetic.selective_copying import FIRST_SYMBOL, selective_copying
from zoo.layers.mamba import Mamba
from zoo.layers.precision import at_least_fp32
from zoo.layers.short_conv import short_conv
from zoo.models.language.mamba import MambaLM
from zoo.ops import selective_scan, ssd, ssd_reference
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import IGNORE, Samples, SyntheticTask, TrainedNetwork


class TimeInvariant(Mamba):
    """The Mamba-1 mixer with step sizes, B and C that do not depend on the input.

    The numbers of its projections become constants: those of ``x_proj`` that made B and C are B and
    C, the rest and ``dt_proj`` mix the channels before the scan. So the count is the same.
    """

    def __init__(self, d_model: int, **arguments: Any) -> None:
        super().__init__(d_model, **arguments)
        self.register_module("x_proj", None)
        d, N = self.A_log.shape
        self.down = nn.Parameter(torch.randn(self.dt_rank, d) / d**0.5)
        self.up = nn.Parameter(self.dt_proj.weight.detach().clone())
        self.B, self.C = (nn.Parameter(torch.randn(d, N) / N**0.5) for _ in range(2))
        self.dt_bias = nn.Parameter(self.dt_proj.bias.detach().clone())
        self.register_module("dt_proj", None)

    def forward(self, x: Tensor, state: None = None, seq_idx: None = None) -> Tensor:
        """[B, L, d_model] to the same."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = short_conv(x, self.conv1d)
        u = u + u @ self.down.T @ self.up.T
        u, z = u.transpose(1, 2), z.transpose(1, 2)
        y: Tensor = selective_scan(  # type: ignore[assignment]
            u, torch.zeros_like(u), -at_least_fp32(self.A_log).exp(), self.B, self.C, self.D, z,
            delta_bias=self.dt_bias, delta_softplus=True,
        )  # fmt: skip
        return self.out_proj(y.transpose(1, 2))


class SelectiveCopying(SyntheticTask):
    """A few symbols among noise, asked for in the end, see
    :mod:`zoo.data.synthetic.selective_copying`.

    Args:
        length, memorize, symbols: of the sequences.
        fixed: the symbols stand at the beginning.
    """

    def __init__(
        self, length: int = 32, memorize: int = 4, symbols: int = 8, fixed: bool = False
    ) -> None:
        self.length, self.memorize, self.fixed = length, memorize, fixed
        self.symbols = self.classes = FIRST_SYMBOL + symbols
        self.known = {"guess": 1 / symbols}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Tokens [B, L]; the last ``memorize`` places are asked."""
        symbols = self.symbols - FIRST_SYMBOL
        tokens, data = selective_copying(
            count, self.length, self.memorize, symbols, generator, self.fixed
        )
        targets = torch.full_like(tokens, IGNORE)
        targets[:, self.length :] = data
        return Samples((tokens,), targets)


class Copying(TrainedNetwork):
    """Accuracy of selective copying after training on it.

    Args:
        layer: "Mamba1", "Mamba2" or "time_invariant".
        ssm_cfg: arguments of the mixer.
        d_model, n_layer: of the model.
        steps: of the training.
    """

    def __init__(
        self,
        layer: str,
        ssm_cfg: dict[str, Any] | None = None,
        d_model: int = 64,
        n_layer: int = 2,
        steps: int = 800,
    ) -> None:
        super().__init__(SelectiveCopying(), steps, test_samples=1024)
        self.layer, self.ssm_cfg = layer, ssm_cfg or {}
        self.d_model, self.n_layer = d_model, n_layer

    def network(self) -> nn.Module:
        """A small language model, its logits alone."""
        symbols = self.task.symbols - FIRST_SYMBOL
        return Logits(build(self.layer, self.ssm_cfg, self.d_model, self.n_layer, symbols))


class Logits(nn.Module):
    """What a language model answers, without its cache.

    Args:
        model: token ids [B, L] -> output with ``logits`` [B, L, V].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] -> [B, L, V]."""
        logits: Tensor = self.model(ids).logits
        return logits


def build(layer: str, ssm_cfg: dict[str, Any], d_model: int, n_layer: int, symbols: int) -> MambaLM:
    """A small language model of one kind of mixer."""
    kind = "Mamba1" if layer == "time_invariant" else layer
    model = MambaLM(
        d_model=d_model,
        n_layer=n_layer,
        vocab_size=FIRST_SYMBOL + symbols,
        ssm_cfg={"layer": kind, **ssm_cfg},
    )
    if layer == "time_invariant":
        for block in model.backbone.layers:
            mixer = TimeInvariant(d_model, **ssm_cfg)
            with torch.no_grad():
                mixer.out_proj.weight.copy_(block.mixer.out_proj.weight)
            block.mixer = mixer
    return model


class OneFunction(Measurement):
    """Largest differences between the forms of one model with random weights, in float32.

    Args:
        layer: "Mamba1" or "Mamba2".
        length: of the sequence.
    """

    def __init__(self, layer: str, length: int = 50) -> None:
        self.layer, self.length = layer, length

    @torch.inference_mode()
    def measure(self, seed: int) -> Measured:
        """Of logits: ``steps`` against one pass, ``parts`` against one pass; ``chunks``: of the
        chunked scan of Mamba-2 against its recurrence; ``growth`` of the cache, in bytes."""
        torch.manual_seed(seed)
        model = build(self.layer, {}, 64, 2, 62).eval()
        ids = torch.randint(64, (2, self.length))
        whole = model(ids).logits

        def read(*sizes: int) -> tuple[Tensor, list[int]]:
            cache, logits, nbytes = model.allocate_cache(2), [], []
            for part in ids.split(sizes, dim=1):
                logits.append(model(part, cache=cache).logits)
                nbytes.append(cache.nbytes)
            return torch.cat(logits, dim=1), nbytes

        steps, nbytes = read(*[1] * self.length)
        parts, _ = read(self.length // 2, self.length - self.length // 2)
        values = {
            "steps": (steps - whole).abs().max().item(),
            "parts": (parts - whole).abs().max().item(),
            "growth": float(nbytes[-1] - nbytes[0]),
        }
        if self.layer == "Mamba2":
            values["chunks"] = self._chunks()
        places = range(1, self.length + 1)
        error = Axes("Difference from one pass", "tokens before", "of logits, at most", "y")
        memory = Axes("Memory of the cache", "tokens before", "KiB")
        curves = [
            Curve(error, places, (y - whole).abs().amax((0, 2)).clamp_min(1e-9).tolist(), name)
            for name, y in (("token by token", steps), ("in two parts", parts))
        ]
        # 2 sequences, 2 layers, key and value of width 64, 4 bytes each
        attention = [2 * 4 * 2 * 2 * 64 * place / 1024 for place in places]
        curves += [
            Curve(memory, places, [n / 1024 for n in nbytes], self.layer),
            Curve(memory, places, attention, "keys and values of attention", "known"),
        ]
        return Measured(values, curves)

    def _chunks(self) -> float:
        H, P, G, N = 4, 8, 2, 16
        x, z = torch.randn(2, 2, self.length, H, P)
        B, C = torch.randn(2, 2, self.length, G, N)
        arguments = (
            x,
            torch.rand(2, self.length, H),
            -torch.rand(H) - 0.1,
            B,
            C,
            16,
            torch.ones(H),
            z,
        )
        chunked, recurrent = ssd(*arguments), ssd_reference(*arguments)
        assert isinstance(chunked, Tensor) and isinstance(recurrent, Tensor)
        return (chunked - recurrent).abs().max().item()
