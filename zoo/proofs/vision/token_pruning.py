"""Token pruning: what the scan remembers of tokens that are gone, and which ones may go."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, Literal

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
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement
from zoo.proofs.synthetic import Samples, SyntheticTask, TrainedNetwork
from zoo.proofs.trained import Trained
from zoo.tasks.base import Task

#: Of the figure.
KEEP_RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


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
    def measure(self, seed: int) -> Measured:
        """Both ways along the sequence, and PlainMamba's four ways through the grid.

        ``held`` is the largest difference, along the sequence, between states that wait over a gap
        and closed gaps.
        """
        torch.manual_seed(seed)
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

        errors = {}
        behind = gaps_before(-places.flip(1)).flip(1)
        for name, gaps, reverse in (
            ("forward", gaps_before(places), False),
            ("backward", behind, True),
        ):
            wanted = take(scan(whole, None, reverse), places)
            errors[name] = (scan(few, gaps, reverse) - wanted).abs()
        order = snake(height, width)
        kept = only_kept(order, places)
        assert kept.gaps is not None
        for k in range(4):
            there, back = order.index[k], order.inverse[k]
            wanted = take(permute(scan(permute(whole, there, back), None), back, there), places)
            there, back = kept.index[k], kept.inverse[k]
            y = permute(scan(permute(few, there, back), kept.gaps[k]), back, there)
            errors[f"grid, way {k + 1}"] = (y - wanted).abs()
        closed = scan(few, None)
        errors["gaps closed"] = (closed - take(scan(whole, None), places)).abs()
        held = scan(few, torch.zeros_like(places)) - closed
        axes = Axes("Difference from the whole sequence", "kept token", "at most", "y")
        most = {name: error.amax((0, 2)).clamp_min(1e-9).tolist() for name, error in errors.items()}
        return Measured(
            {
                "sequence": max(max(most[name]) for name in ("forward", "backward")),
                "grid": max(max(most[f"grid, way {k + 1}"]) for k in range(4)),
                "held": held.abs().max().item(),
            },
            [
                Curve(axes, range(1, self.kept + 1), most[name], f"aligned, {name}")
                for name in ("forward", "backward")
            ]
            + [Curve(axes, range(1, self.kept + 1), most["gaps closed"], "gaps closed")],
        )


class TwoMarkers(SyntheticTask):
    """How far apart two markers are, see :func:`zoo.data.synthetic.cues.marker_sequences`."""

    channels, classes = MARKER_CHANNELS, MARKER_CLASSES

    def __init__(self) -> None:
        self.known = {"guess": 1 / MARKER_CLASSES}

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Tokens [B, L, channels], and the places of headers and markers [B, 8]."""
        tokens, classes, places = marker_sequences(count, generator)
        return Samples((tokens, places), classes)


class MarkerDistance(TrainedNetwork):
    """Accuracy with which two layers of Vim's mixer tell how far apart two markers were.

    All tokens but the headers and the two markers are taken away before the first layer.

    Args:
        gap: "none" to take nothing away; "decay", "hold" or "close", see
            :class:`zoo.models.vision._pruning.Pruning`.
        dim, d_state: of the mixers.
        steps, lr: of the training.
    """

    def __init__(
        self,
        gap: Literal["none", "decay", "hold", "close"],
        dim: int = 32,
        d_state: int = 8,
        steps: int = 400,
        lr: float = 1e-2,
    ) -> None:
        super().__init__(TwoMarkers(), steps, lr=lr, test_samples=2000)
        self.gap, self.dim, self.d_state = gap, dim, d_state

    def network(self) -> nn.Module:
        """Two mixers on what is left."""
        return _Mixers(self.dim, self.d_state, self.gap)


class _Mixers(nn.Module):
    """Two of Vim's mixers on tokens without positions, and the mean of what comes out."""

    def __init__(self, dim: int, d_state: int, gap: str) -> None:
        super().__init__()
        self.gap = gap
        self.embed = nn.Linear(MARKER_CHANNELS, dim)
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
        self.mixers = nn.ModuleList(
            Mamba(dim, d_state=d_state, bimamba_type="v2", if_divide_out=True) for _ in range(2)
        )
        self.head = nn.Sequential(nn.RMSNorm(dim), nn.Linear(dim, MARKER_CLASSES))

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        line = places if self.gap in ("decay", "hold") else None
        x = self.embed(tokens if self.gap == "none" else take(tokens, places))
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            decay = self.gap == "decay"
            x = x + mix_both_ways(mixer, norm(x), line, tokens.shape[1], decay)[0]
        return self.head(x).mean(dim=1)


class WithoutTraining(Trained):
    """A recipe's Vim, trained on whole pictures, that then drops patches.

    Measures, beside the test's scores, the accuracy with aligned gaps (``decay``) and with closed
    ones (``close``) at the keep ratio of ``pruning``; draws both against the keep ratio.

    Args:
        recipe, overrides: see :class:`zoo.proofs.trained.Trained`.
        pruning: arguments of :class:`zoo.models.vision.token_pruning.PrunedVim` beside ``gap``.
    """

    def __init__(
        self, recipe: str, pruning: dict[str, Any], overrides: dict[str, Any] | None = None
    ) -> None:
        super().__init__(recipe, overrides)
        self.pruning = pruning

    @torch.inference_mode()
    def inspect(self, task: Task, data: DataModule) -> Measured:
        """Accuracy on the test pictures with aligned and with closed gaps."""
        arguments = {**task.model_args, "num_classes": task.num_classes}
        ratios = sorted({*KEEP_RATIOS, self.pruning["keep_ratio"]})
        axes = Axes("Without further training", "share of patches kept each time", "accuracy")
        values, curves = {}, []
        for gap, name in (("decay", "gaps aligned"), ("close", "gaps closed")):
            found = {}
            for ratio in ratios:
                pruning = {**self.pruning, "keep_ratio": ratio}
                model = zoo.create_model("token_pruning_vim_tiny", gap=gap, **pruning, **arguments)
                model.load_state_dict(task.eval_model.state_dict())
                model.eval()
                right = [
                    (model(images).argmax(dim=1) == classes)
                    for images, classes in data.test_dataloader()
                ]
                found[ratio] = torch.cat(right).float().mean().item()
            values[gap] = found[self.pruning["keep_ratio"]]
            curves.append(Curve(axes, list(found), list(found.values()), name))
        return Measured(values, curves)


class Cost(Measurement):
    """What a pruned network saves: its multiply-adds and its time over those of the whole network.

    Measures ``multiply_adds``, the ratio, and ``seconds_whole`` and ``seconds_pruned`` of the
    processor, which others on the machine disturb least.

    Args:
        whole, pruned: names of the models.
        batch_size: pictures of 224x224 pixels in a pass.
        repeats: passes; the middle one of the faster half counts.
    """

    def __init__(self, whole: str, pruned: str, batch_size: int = 2, repeats: int = 6) -> None:
        self.whole, self.pruned = whole, pruned
        self.batch_size, self.repeats = batch_size, repeats

    @torch.inference_mode()
    def measure(self, seed: int) -> Measured:
        """They take turns."""
        torch.manual_seed(seed)
        models = [zoo.create_model(name).eval() for name in (self.whole, self.pruned)]
        images = torch.randn(self.batch_size, 3, 224, 224)
        work = [multiply_adds(model, images) for model in models]
        seconds: list[list[float]] = [[], []]
        for _ in range(self.repeats):
            for model, times in zip(models, seconds, strict=True):
                started = time.process_time()
                model(images)
                times.append(time.process_time() - started)
        whole, pruned = (median(sorted(times)[: -(-self.repeats // 2)]) for times in seconds)
        axes = Axes("Whole and pruned", "multiply-adds of a picture, 10^9", "CPU seconds")
        points = [value / self.batch_size / 1e9 for value in work]
        times = [whole / self.batch_size, pruned / self.batch_size]
        return Measured(
            {"multiply_adds": work[1] / work[0], "seconds_whole": whole, "seconds_pruned": pruned},
            [Curve(axes, points, times)],
        )
