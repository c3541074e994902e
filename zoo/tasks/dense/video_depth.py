"""Depth of the frames of a video, and its next frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.functional.image import structural_similarity_index_measure

from zoo.data.base import DataModule
from zoo.data.dense.videos import VideoDataModule
from zoo.data.formats.pictures import read_picture
from zoo.errors import ZooError
from zoo.layers.sizes import pad_to_multiple
from zoo.losses.depth import log_depth_loss
from zoo.metrics.depth import DepthErrors
from zoo.models.dense.prelude_net import VideoOutput
from zoo.plots.maps import coloured
from zoo.plots.panels import Panels, panel_rows
from zoo.tasks._dense import DenseTask


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

    def configure_losses(self) -> None:
        """Functions of zoo.losses.depth."""

    def configure_metrics(self) -> None:
        """Scores of frames and depth."""
        self.set_scores({})
        self.means, self.errors = nn.ModuleDict(), nn.ModuleDict()
        for split in ("val", "test"):
            for name in ("frame_mse", "copy_mse", "ssim", "deviation", "mean_depth"):
                self.means[f"{split}_{name}"] = MeanMetric()
            for name in ("usual", "aligned", "shifted"):
                self.errors[f"{split}_{name}"] = DepthErrors(align=name == "aligned")

    def check_data(self, data: DataModule) -> None:
        """The data must be videos."""
        if not isinstance(data, VideoDataModule):
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no videos, expected a class such as "
                "zoo.data.dense.videos.VirtualKITTI"
            )

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

    def evaluate(self, batch: dict[str, Any], scores: MetricCollection) -> VideoOutput:
        """Scores of one batch; returns the outputs, lightings at axis 1."""
        split = "test" if self.trainer.testing else "val"
        frames, target = batch["frames"], batch["depth"]
        lightings = frames.shape[:2]
        flat = {name: batch[name].flatten(0, 1) for name in ("frames", "depth")}
        output = self._watch(self.eval_model, flat["frames"])
        self.eval_loss.update(self._loss(output, flat), len(frames))
        output = VideoOutput(*(None if o is None else o.unflatten(0, lightings) for o in output))
        if output.frames is not None:
            mine, truth = (f[:, :, 1:].flatten(0, 2) for f in (output.frames, frames))
            before = frames[:, :, :-1].flatten(0, 2)
            self.means[f"{split}_frame_mse"].update((mine - truth).square().mean())
            self.means[f"{split}_copy_mse"].update((before - truth).square().mean())
            ssim = structural_similarity_index_measure(mine, truth, data_range=1.0)
            self.means[f"{split}_ssim"].update(ssim)
        if output.depth is not None:
            depth, target = output.depth[:, :, 1:], target[:, :, 1:]
            for name in ("usual", "aligned"):
                self.errors[f"{split}_{name}"].update(depth[:, 0], target[:, 0])
            if lightings[1] > 1:
                self.errors[f"{split}_shifted"].update(depth[:, 1:], target[:, 1:])
                self.means[f"{split}_deviation"].update(depth.std(1, correction=0).mean())
                self.means[f"{split}_mean_depth"].update(depth.mean())
        return output

    def _log_scores(self, split: str, scores: MetricCollection) -> None:
        self.log(f"{split}/loss", self.eval_loss.compute())
        self.eval_loss.reset()
        means = {
            name: self.means[f"{split}_{name}"].compute()
            for name in ("frame_mse", "copy_mse", "ssim", "deviation", "mean_depth")
            if self.means[f"{split}_{name}"].update_count
        }
        errors = {
            name: self.errors[f"{split}_{name}"].compute()
            for name in ("usual", "aligned", "shifted")
            if self.errors[f"{split}_{name}"].count
        }
        values = {n: means[n] for n in ("frame_mse", "copy_mse", "ssim") if n in means}
        values |= errors.get("usual", {})
        if "aligned" in errors:
            values["abs_rel_aligned"] = errors["aligned"]["abs_rel"]
        if "shifted" in errors:
            values["abs_rel_shifted"] = errors["shifted"]["abs_rel"]
            values["gap"] = values["abs_rel_shifted"] / values["abs_rel"]
            values["spread"] = means["deviation"] / means["mean_depth"]
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, prog_bar=True)
        for metric in (*self.means.values(), *self.errors.values()):
            metric.reset()

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

    @torch.inference_mode()
    def predict_files(
        self, files: Sequence[Path], data: DataModule, folder: Path
    ) -> list[dict[str, Any]]:
        """Pictures of one folder are the frames of one video, in the order of their names.

        Writes for each frame a picture of what is said of it, and the depth by itself.
        """
        self.eval()
        self.check_data(data)
        rows: list[dict[str, Any]] = []
        for parent, paths in groupby(sorted(files), key=lambda path: path.parent):
            state, size = None, None
            for path in paths:
                pixels = np.asarray(read_picture(path))
                if size is None:
                    size = pixels.shape
                if pixels.shape != size:
                    raise ZooError(
                        f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels, but the video in "
                        f"{parent} began with {size[1]}x{size[0]}"
                    )
                image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
                inputs = data.to_input(image)[None].to(self.device)
                padded = pad_to_multiple(inputs, self.model.stride)
                if state is None:
                    state = self.eval_model.initial_state(padded)
                output, state = self.eval_model.step(padded, state)
                output = self._crop_video(output, size)
                panels, columns = self.show(pixels, output)
                rows.append({"file": str(path), **columns})
                name = f"{len(rows):04d}_{path.stem}"
                panel_rows([panels], path.name).savefig(folder / f"{name}.png")
                if output.depth is not None:
                    Image.fromarray(coloured(panels["depth"])).save(folder / f"{name}_result.png")
        return rows

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
