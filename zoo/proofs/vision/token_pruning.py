"""Token pruning: what the scan remembers of tokens that are gone, and which ones may go."""

from __future__ import annotations

import time
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.data.base import DataModule
from zoo.data.synthetic.cues import (
    MARKER_CHANNELS,
    MARKER_CLASSES,
    marker_sequences,
)
from zoo.layers.kept_tokens import gap_scan, gaps_before, step_sizes, take
from zoo.layers.mamba import Mamba
from zoo.layers.scan_orders import only_kept, permute, snake
from zoo.metrics.flops import multiply_adds
from zoo.models.vision.token_pruning import mix_both_ways
from zoo.ops import selective_scan
from zoo.proofs.base import Measurement
from zoo.proofs.synthetic import fit
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task


class Aligned(Measurement):
    """Largest difference between scans of the kept tokens alone and of the whole sequence.

    In the whole sequence the tokens that are not kept are zero: they put nothing in and take the
    step of a zero token. Random weights, a 9x7 grid, each sample keeps other cells.

    Args:
        kept: how many tokens are kept.
    """

    def __init__(self, kept: int = 25) -> None:
        self.kept = kept

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """Both ways along the sequence, and PlainMamba's four ways through the grid.

        ``held`` is the largest difference, along the sequence, between states that wait over a gap
        and closed gaps.
        """
        torch.manual_seed(0)
        height, width, batch, dim, state = 9, 7, 4, 8, 16
        tokens = torch.randn(batch, height * width, 2 * (dim + state))
        places = torch.rand(batch, height * width).topk(self.kept).indices.sort().values
        gone = torch.ones(tokens.shape[:2], dtype=torch.bool).scatter(1, places, False)
        A, D, bias = -torch.rand(dim, state) - 0.1, torch.randn(dim), torch.randn(dim) - 2
        whole = tokens.masked_fill(gone[..., None], 0)
        few = take(tokens, places)

        def scan(x: Tensor, gaps: Tensor | None, reverse: bool = False) -> Tensor:
            u, dt, B, C = x.transpose(1, 2).split([dim, dim, state, state], dim=1)
            if gaps is None:
                y: Tensor = selective_scan(  # type: ignore[assignment]
                    u, dt, A, B, C, D, delta_bias=bias, delta_softplus=True, reverse=reverse
                )
            else:
                steps = step_sizes(dt, bias)
                y = gap_scan(u, steps, A, B, C, D, F.softplus(bias), gaps, reverse)
            return y.transpose(1, 2)

        errors = []
        behind = gaps_before(-places.flip(1)).flip(1)
        for gaps, reverse in ((gaps_before(places), False), (behind, True)):
            wanted = take(scan(whole, None, reverse), places)
            errors.append((scan(few, gaps, reverse) - wanted).abs().max().item())
        order = snake(height, width)
        kept = only_kept(order, places)
        assert kept.gaps is not None
        for k in range(4):
            there, back = order.index[k], order.inverse[k]
            wanted = take(permute(scan(permute(whole, there, back), None), back, there), places)
            there, back = kept.index[k], kept.inverse[k]
            y = permute(scan(permute(few, there, back), kept.gaps[k]), back, there)
            errors.append((y - wanted).abs().max().item())
        held = scan(few, torch.zeros_like(places)) - scan(few, None)
        return {
            "sequence": max(errors[:2]),
            "grid": max(errors[2:]),
            "held": held.abs().max().item(),
        }


class MarkerDistance(Measurement):
    """Accuracy with which two layers of Vim's mixer tell how far apart two markers were.

    All tokens but the headers and the two markers are taken away before the first layer.

    Args:
        gap: "none" to take nothing away; "decay", "hold" or "close", see
            :class:`zoo.models.vision.token_pruning.Pruning`.
        dim, d_state: of the mixers.
        steps, batch_size, lr: of the training.
        test_sequences: that are measured.
        seed: of weights and sequences.
    """

    def __init__(
        self,
        gap: Literal["none", "decay", "hold", "close"],
        dim: int = 32,
        d_state: int = 8,
        steps: int = 400,
        batch_size: int = 64,
        lr: float = 1e-2,
        test_sequences: int = 2000,
        seed: int = 0,
    ) -> None:
        self.gap, self.dim, self.d_state = gap, dim, d_state
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.test_sequences, self.seed = test_sequences, seed

    def measure(self) -> dict[str, float]:
        """Train, then measure new sequences."""
        torch.manual_seed(self.seed)
        network = _Mixers(self.dim, self.d_state, self.gap == "decay")
        generator = torch.Generator().manual_seed(self.seed)

        def predict(count: int) -> tuple[Tensor, Tensor]:
            tokens, classes, places = marker_sequences(count, generator)
            length = tokens.shape[1]
            if self.gap != "none":
                tokens = take(tokens, places)
            line = places if self.gap in ("decay", "hold") else None
            return network(tokens, line, length), classes

        def loss(step: int) -> Tensor:
            return F.cross_entropy(*predict(self.batch_size))

        fit(network, loss, self.steps, self.lr)
        with torch.inference_mode():
            logits, classes = predict(self.test_sequences)
        return {"accuracy": (logits.argmax(dim=1) == classes).float().mean().item()}


class _Mixers(nn.Module):
    """Two of Vim's mixers on tokens without positions, and the mean of what comes out."""

    def __init__(self, dim: int, d_state: int, decay: bool) -> None:
        super().__init__()
        self.decay = decay
        self.embed = nn.Linear(MARKER_CHANNELS, dim)
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
        self.mixers = nn.ModuleList(
            Mamba(dim, d_state=d_state, bimamba_type="v2", if_divide_out=True) for _ in range(2)
        )
        self.head = nn.Sequential(nn.RMSNorm(dim), nn.Linear(dim, MARKER_CLASSES))

    def forward(self, x: Tensor, line: Tensor | None, length: int) -> Tensor:
        x = self.embed(x)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mix_both_ways(mixer, norm(x), line, length, self.decay)[0]
        return self.head(x).mean(dim=1)


class WithoutTraining(Trained):
    """A recipe's Vim, trained on whole pictures, that then drops patches: accuracy for each gap.

    Args:
        recipe, overrides, seeds: see :class:`zoo.proofs.trained.Trained`.
        pruning: arguments of :class:`zoo.models.vision.token_pruning.PrunedVim` beside ``gap``.
    """

    def __init__(self, pruning: dict, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.pruning = pruning

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> dict[str, float]:
        """Accuracy on the test pictures with aligned and with closed gaps."""
        arguments = {**task.model_args, "num_classes": task.num_classes}
        measured = {}
        for gap in ("decay", "close"):
            model = zoo.create_model("token_pruning_vim_tiny", gap=gap, **self.pruning, **arguments)
            model.load_state_dict(task.eval_model.state_dict())
            model.eval()
            right = [
                (model(images).argmax(dim=1) == classes)
                for images, classes in data.test_dataloader()
            ]
            measured[gap] = torch.cat(right).float().mean().item()
        return measured


class Cost(Measurement):
    """What a pruned network saves: its multiply-adds and its time over those of the whole network.

    Args:
        whole, pruned: names of the models.
        batch_size: pictures of 224x224 pixels in a pass.
    """

    def __init__(self, whole: str, pruned: str, batch_size: int = 2) -> None:
        self.whole, self.pruned, self.batch_size = whole, pruned, batch_size

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """They take turns; of the processor's time, which others on the machine disturb least."""
        torch.manual_seed(0)
        models = [zoo.create_model(name).eval() for name in (self.whole, self.pruned)]
        images = torch.randn(self.batch_size, 3, 224, 224)
        work = [multiply_adds(model, images) for model in models]
        seconds: list[list[float]] = [[], []]
        for _ in range(6):
            for model, times in zip(models, seconds, strict=True):
                started = time.process_time()
                model(images)
                times.append(time.process_time() - started)
        whole, pruned = (median(sorted(times)[:3]) for times in seconds)
        return {"multiply_adds": work[1] / work[0], "time": pruned / whole}
