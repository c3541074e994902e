"""Depth of the frames of a video, and its next frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.dense.videos import VideoDataModule
from zoo.data.formats.files import natural_sorted
from zoo.data.formats.pictures import read_picture
from zoo.errors import ZooError
from zoo.layers.sizes import pad_to_multiple
from zoo.losses.depth import log_depth_loss
from zoo.metrics.depth import DepthErrors
from zoo.models.dense.prelude_net import VideoOutput
from zoo.plots.maps import coloured
from zoo.plots.panels import Panels, panel_rows
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Errors of depth: in the first lighting, there after scaling by medians, in the others.
DEPTH = ("usual", "aligned", "shifted")


class VideoDepth(DenseTask):
    """Depth and next frames; batches as of :class:`VideoDataModule`.

    The first frame, which nothing comes before, is neither learnt from nor scored. Measured are
    ``frame_mse`` and ``ssim`` of predicted frames, beside ``copy_mse`` of the frame before; errors
    of depth (``abs_rel``, ``rmse``, ``delta1`` ...; ``abs_rel_aligned`` after scaling by medians);
    and where scenes come in several lightings ``abs_rel_shifted`` in all but the first, its ratio
    ``gap`` to that in the first, and ``spread``, the deviation of a pixel's depth over lightings
    divided by the mean depth.

    Args:
        prediction_weight: of the encoder's errors.
        layer_weights: of the error of each of the encoder's layers.
        depth_weight: of the loss of depth, for frames that have it; 0: learn from videos alone.
        freeze_encoder: train the decoder alone.
        extrap_start: from this frame on the network sees its own predictions, and learns from the
            error of the pixels.
        kwargs: see :class:`DenseTask`.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    data_type, data_has, data_example = VideoDataModule, "videos", "zoo.data.VirtualKITTI"

    def __init__(
        self,
        prediction_weight: float = 1.0,
        layer_weights: Sequence[float] = (1.0, 0.0, 0.0, 0.0),
        depth_weight: float = 1.0,
        freeze_encoder: bool = False,
        extrap_start: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.prediction_weight, self.depth_weight = prediction_weight, depth_weight
        self.layer_weights = list(layer_weights)
        self.freeze_encoder, self.extrap_start = freeze_encoder, extrap_start
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network; freeze its encoder if that is wanted."""
        super().configure_models()
        self.predicts = hasattr(self.model, "a_sizes")
        layers = len(self.model.a_sizes) if self.predicts else len(self.layer_weights)
        if len(self.layer_weights) != layers:
            raise ZooError(
                f"model.init_args.layer_weights has {len(self.layer_weights)} values, expected "
                f"{layers}, one for each layer of {self.model_name}"
            )
        if self.freeze_encoder:
            self.model.enc.requires_grad_(False)

    def configure_metrics(self, split: str) -> dict[str, Metric]:
        """Scores of frames and depth."""
        means = ("loss", "frame_mse", "copy_mse", "ssim", "deviation", "mean_depth")
        errors = {name: DepthErrors(align=name == "aligned") for name in DEPTH}
        return {**{name: MeanMetric() for name in means}, **errors}

    def forward(self, frames: Tensor) -> VideoOutput:
        """Frames [B, T, 3, H, W] -> predicted frames, errors, depth."""
        return self.eval_model(frames)

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Errors of prediction, and of depth where it is known."""
        return self._loss(self._watch(self.model, batch["frames"]), batch)

    def _watch(self, model: nn.Module, frames: Tensor) -> VideoOutput:
        return model(frames, self.extrap_start) if self.extrap_start else model(frames)

    def _loss(self, output: VideoOutput, batch: dict[str, Any]) -> Tensor:
        frames, target = batch["frames"], batch["depth"]
        loss = frames.new_zeros(())
        if output.errors is not None and self.extrap_start:
            # half, as the two signs of the error units halve it
            error = (output.frames[:, 1:] - frames[:, 1:]).abs().mean() / 2
            loss = loss + self.prediction_weight * error
        elif output.errors is not None:
            weights = output.errors.new_tensor(self.layer_weights)
            loss = loss + self.prediction_weight * (output.errors[:, 1:] @ weights).mean()
        if output.depth is not None and self.depth_weight:
            depth_loss = log_depth_loss(output.depth[:, 1:], target[:, 1:])
            loss = loss + self.depth_weight * depth_loss
        return loss

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> VideoOutput:
        """Scores of one batch; returns the outputs, lightings at axis 1."""
        frames, target = batch["frames"], batch["depth"]
        size, lightings = frames.shape[:2]
        flat = {name: batch[name].flatten(0, 1) for name in ("frames", "depth")}
        output = self._watch(self.eval_model, flat["frames"])
        scores["loss"].update(self._loss(output, flat), size)
        split = (None if o is None else o.unflatten(0, (size, lightings)) for o in output)
        output = VideoOutput(*split)
        if output.frames is not None:
            mine, truth = (f[:, :, 1:].flatten(0, 2) for f in (output.frames, frames))
            before = frames[:, :, :-1].flatten(0, 2)
            scores["frame_mse"].update((mine - truth).square().mean(), size)
            scores["copy_mse"].update((before - truth).square().mean(), size)
            ssim = structural_similarity_index_measure(mine, truth, data_range=1.0)
            scores["ssim"].update(ssim, size)
        if output.depth is not None:
            depth, target = output.depth[:, :, 1:], target[:, :, 1:]
            for name in ("usual", "aligned"):
                scores[name].update(depth[:, 0], target[:, 0])
            if lightings > 1:
                scores["shifted"].update(depth[:, 1:], target[:, 1:])
                scores["deviation"].update(depth.std(1, correction=0).mean(), size)
                scores["mean_depth"].update(depth.mean(), size)
        return output

    def summarize(self, results: dict[str, Any]) -> dict[str, Any]:
        """Errors in the usual lighting, and how they differ in the others."""
        values = {n: results[n] for n in ("loss", "frame_mse", "copy_mse", "ssim") if n in results}
        values |= results.get("usual", {})
        if "aligned" in results:
            values["abs_rel_aligned"] = results["aligned"]["abs_rel"]
        if "shifted" in results:
            values["abs_rel_shifted"] = results["shifted"]["abs_rel"]
            values["gap"] = values["abs_rel_shifted"] / values["abs_rel"]
            values["spread"] = results["deviation"] / results["mean_depth"]
        return values

    # pictures

    def panels(self, batch: dict[str, Any], predictions: VideoOutput, index: int) -> Panels:
        """The last frame in the first and the last lighting, and what is said of it."""
        show = self.trainer.datamodule.to_display
        panels: dict[str, np.ndarray] = {}
        lightings = {"": 0}
        if batch["frames"].shape[1] > 1:
            lightings[", other light"] = -1
        for suffix, v in lightings.items():
            panels[f"frame{suffix}"] = show(batch["frames"][index, v, -1])
            if predictions.frames is not None:
                panels[f"predicted{suffix}"] = show(predictions.frames[index, v, -1])
            if predictions.depth is not None:
                panels[f"depth{suffix}"] = _map(predictions.depth[index, v, -1])
        if predictions.depth is not None and batch["depth"].any():
            panels["true depth"] = _map(batch["depth"][index, 0, -1])
        return panels

    def find_inputs(self, sources: Sequence[Path]) -> Sequence[Path]:
        """Pictures of one folder are the frames of one video, in the order of their names."""
        return natural_sorted(super().find_inputs(sources))

    def begin_prediction(self, data: DataModule) -> None:
        """Forget an earlier video."""
        super().begin_prediction(data)
        self._video: _Watched | None = None

    @override
    def exported(self) -> tuple[nn.Module, Callable[..., Any]]:
        """One frame, with the state from the one before and for the one after."""
        return OneFrame(self.eval_model), self.eval_model.step

    def predict_one(
        self, source: Path, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        """What is said of a frame, and the depth by itself; the next frame goes on from here."""
        pixels = np.asarray(read_picture(source))
        if self._video is None or self._video.folder != source.parent:
            self._video = _Watched(source.parent, pixels.shape)
        size = self._video.size
        if pixels.shape != size:
            raise ZooError(
                f"{source}: {pixels.shape[1]}x{pixels.shape[0]} pixels, but the video in "
                f"{source.parent} began with {size[1]}x{size[0]}"
            )
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        inputs = data.to_input(image)[None].to(self.device)
        padded = pad_to_multiple(inputs, self.model.stride)
        if self._video.state is None:
            self._video.state = self.eval_model.initial_state(padded)
        output, self._video.state = self.eval_model.step(padded, self._video.state)
        output = self._crop_video(output, size)
        panels, columns = self.show(pixels, output)
        if output.depth is not None:
            Image.fromarray(coloured(panels["depth"])).save(f"{stem}_result.png")
        return columns, panel_rows([panels], source.name)

    def _crop_video(self, output: VideoOutput, size: Sequence[int]) -> VideoOutput:
        height, width = size[:2]
        frames, errors, depth = output
        frames = None if frames is None else frames[..., :height, :width]
        return VideoOutput(frames, errors, None if depth is None else depth[..., :height, :width])

    def show(self, picture: np.ndarray, output: VideoOutput) -> tuple[Panels, dict[str, Any]]:
        """A frame, what had been predicted of it, and its depth."""
        panels: dict[str, np.ndarray] = {"frame": picture}
        columns: dict[str, Any] = {}
        if output.depth is not None:
            panels["depth"] = _map(output.depth[0])
            columns["mean_depth"] = round(float(panels["depth"].mean()), 3)
        if output.frames is not None:
            predicted = output.frames[0].clamp(0, 1).movedim(0, -1).cpu().numpy()
            panels["predicted"] = (predicted * 255).round().astype(np.uint8)
            columns["prediction_error"] = round(float(abs(predicted - picture / 255).mean()), 4)
        return panels, columns


def _map(depth: Tensor) -> np.ndarray:
    return depth.detach().float().cpu().numpy()


@dataclass
class _Watched:
    """A video whose frames are predicted one after the other.

    Attributes:
        folder: of its frames.
        size: of each, (height, width, channels).
        state: of the network behind the last frame.
    """

    folder: Path
    size: Sequence[int]
    state: Any = None


class OneFrame(nn.Module):
    """A model's step as a network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, state: Any = None) -> tuple[VideoOutput, Any]:
        """One frame [B, 3, H, W] and the state before -> outputs and the state after."""
        return self.model.step(frame, state)  # type: ignore[operator]
