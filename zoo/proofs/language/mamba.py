"""Mamba and Mamba-2: what selection buys, and that parallel and stepwise forms are one function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.synthetic.selective_copying import FIRST_SYMBOL, selective_copying
from zoo.layers.mamba import Mamba
from zoo.layers.precision import at_least_fp32
from zoo.layers.short_conv import short_conv
from zoo.models.language.mamba import MambaLM
from zoo.ops import selective_scan, ssd, ssd_reference
from zoo.proofs.base import Measurement
from zoo.proofs.synthetic import fit


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


class Copying(Measurement):
    """Accuracy of selective copying after training on it.

    Args:
        layer: "Mamba1", "Mamba2" or "time_invariant".
        ssm_cfg: arguments of the mixer.
        d_model, n_layer: of the model.
        length, memorize, symbols: of the task, see :mod:`zoo.data.synthetic.selective_copying`.
        steps, batch_size, lr: of the training.
        test_sequences: fresh sequences that are measured.
        seed: of weights and sequences.
    """

    def __init__(
        self,
        layer: str,
        ssm_cfg: dict[str, Any] | None = None,
        d_model: int = 64,
        n_layer: int = 2,
        length: int = 32,
        memorize: int = 4,
        symbols: int = 8,
        steps: int = 800,
        batch_size: int = 64,
        lr: float = 3e-3,
        test_sequences: int = 1024,
        seed: int = 0,
    ) -> None:
        self.layer, self.ssm_cfg = layer, ssm_cfg or {}
        self.d_model, self.n_layer = d_model, n_layer
        self.task = dict(length=length, memorize=memorize, symbols=symbols)
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.test_sequences, self.seed = test_sequences, seed

    def measure(self) -> dict[str, float]:
        """Accuracy per asked symbol, and parameters."""
        torch.manual_seed(self.seed)
        model = build(self.layer, self.ssm_cfg, self.d_model, self.n_layer, self.task["symbols"])
        generator = torch.Generator().manual_seed(self.seed)

        def answers(batch_size: int) -> tuple[Tensor, Tensor]:
            tokens, data = selective_copying(batch_size, **self.task, generator=generator)
            return model(tokens, logits_to_keep=data.shape[1]).logits, data

        def loss(step: int) -> Tensor:
            logits, data = answers(self.batch_size)
            return F.cross_entropy(logits.flatten(0, 1), data.flatten())

        fit(model, loss, self.steps, self.lr)
        with torch.inference_mode():
            logits, data = answers(self.test_sequences)
        return {
            "accuracy": (logits.argmax(-1) == data).double().mean().item(),
            "parameters": sum(p.numel() for p in model.parameters()),
        }


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
        seed: of weights and tokens.
    """

    def __init__(self, layer: str, length: int = 50, seed: int = 0) -> None:
        self.layer, self.length, self.seed = layer, length, seed

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """Of logits: ``steps`` against one pass, ``parts`` against one pass; ``chunks``: of the
        chunked scan of Mamba-2 against its recurrence; ``growth`` of the cache, in bytes."""
        torch.manual_seed(self.seed)
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
        result = {
            "steps": (steps - whole).abs().max().item(),
            "parts": (parts - whole).abs().max().item(),
            "growth": float(nbytes[-1] - nbytes[0]),
        }
        if self.layer == "Mamba2":
            result["chunks"] = self._chunks()
        return result

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
