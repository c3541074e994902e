"""Change detection: what differs between two pictures of one place, binary, semantic, or damage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from zoo.data.base import DataModule
from zoo.data.change.pairs import PAIR_FOLDERS, PairDataModule
from zoo.data.formats.map_files import NO_DATA, MapFile, windows
from zoo.data.formats.rasters import Raster
from zoo.data.synthetic.change_scenes import COVERS, DAMAGES
from zoo.errors import ZooError
from zoo.losses.segmentation import IGNORE, known_cross_entropy, lovasz_softmax
from zoo.metrics.change import BinaryChangeScores, DamageScores, SemanticChangeScores
from zoo.plots.panels import COLOURS, Panels, overlay, panel_rows
from zoo.tasks._dense import DenseTask
from zoo.tasks._scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Longest side of the pictures that are made of a user's pair.
PREVIEW = 1600
#: Numbers of colours of :func:`zoo.plots.panels.overlay`.
RED, OLIVE, BLUE, ORANGE, GREEN = 1, 6, 8, 9, 10

Pair = tuple[Path, Path]


class ChangeTask(DenseTask):
    """Two pictures in, a map of labels out; batches as of :class:`PairDataModule`.

    A user's pair is read, judged and written in overlapping tiles, so that it may be larger than
    memory. A georeferenced pair gives a GeoTIFF with the same georeference and a GeoJSON file of
    the areas with labels above 0, another a PNG file.

    Args:
        tile: side of the tiles.
        overlap: of neighbouring tiles, in pixels.
        kwargs: see :class:`DenseTask`.
    """

    #: Names of the labels of the map; 0 is not drawn.
    names: Sequence[str]
    #: Label maps that the data must have.
    needs: Sequence[str]
    monitor_mode = "max"
    input_names = ("before", "after")
    data_type, data_example = PairDataModule, "zoo.data.LEVIRCDPlus"
    data_has = "pairs of pictures"

    def __init__(self, tile: int = 1024, overlap: int = 128, **kwargs: Any) -> None:
        if not 0 <= overlap < tile:
            raise ZooError(
                f"model.init_args.overlap is {overlap}, expected 0 to less than tile, {tile}"
            )
        self.tile_side, self.overlap = tile, overlap
        super().__init__(**kwargs)

    @override
    def configure_metrics(self, split: str) -> dict[str, Metric]:
        return {"loss": MeanMetric(), "change": self.benchmark()}

    @abstractmethod
    def benchmark(self) -> Metric:
        """The benchmark's metric, which computes several scores."""

    @abstractmethod
    def loss(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """Loss of the network's output."""

    @abstractmethod
    def labels(self, output: Any) -> Tensor:
        """The network's output -> map [B, H, W], indices into ``names``."""

    @abstractmethod
    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """The map [B, H, W] that should come out."""

    @abstractmethod
    def measure(self, output: Any, batch: dict[str, Tensor], metric: Metric) -> None:
        """Update the benchmark's metric."""

    def colour_numbers(self, labels: np.ndarray) -> np.ndarray:
        """Labels -> numbers of their colours, 0 for none."""
        return labels

    @property
    def summary(self) -> dict[str, slice]:
        """Columns of ``predictions.csv``: shares of the known pixels, and whose they are."""
        return {f"share of {n}": slice(i, i + 1) for i, n in enumerate(self.names) if i > 0}

    def check_data(self, data: DataModule) -> None:
        """The data must be pairs with the labels of this task."""
        super().check_data(data)
        missing = [name for name in self.needs if name not in data.labels]
        if missing:
            raise ZooError(
                f"data.class_path: {type(data).__name__} has no labels of {', '.join(missing)}, "
                f"which {type(self).__name__} learns; it has {', '.join(data.labels)}"
            )

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] -> labels [B, H, W]."""
        return self.labels(self.eval_model(pre, post))

    def training_loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss of one batch."""
        return self.loss(self.model(batch["pre"], batch["post"]), batch)

    def evaluate(self, batch: dict[str, Any], scores: Scores) -> Tensor:
        """Scores of one batch; returns the labels."""
        output = self.eval_model(batch["pre"], batch["post"])
        scores["loss"].update(self.loss(output, batch), len(batch["pre"]))
        self.measure(output, batch, scores["change"])
        return self.labels(output)

    # pictures

    def panels(self, batch: dict[str, Any], predictions: Tensor, index: int) -> Panels:
        """The pair, truth, prediction, and where they differ."""
        before, after = (
            self.trainer.datamodule.to_display(batch[date][index]) for date in ("pre", "post")
        )
        truth, mine = (t[index].cpu().numpy() for t in (self.truth(batch), predictions))
        paper = np.full_like(after, 230)
        verdict = np.where(mine > 0, RED, BLUE)
        verdict[truth == mine] = GREEN
        verdict[(truth == mine) & (truth == 0)] = 0
        return {
            "before": before,
            "after": after,
            "truth": overlay(paper, self.colour_numbers(truth), 1.0),
            "prediction": overlay(paper, self.colour_numbers(mine), 1.0),
            "right, wrong, missed": overlay(paper, verdict, 1.0),
        }

    def show(self, picture: np.ndarray, output: Any) -> tuple[Panels, dict[str, Any]]:
        """One picture shows no change."""
        raise ZooError("a picture alone shows no change, expected a pair")

    def find_inputs(self, sources: Sequence[Path]) -> Sequence[Pair]:
        """A pair from a command's files and folders: two pictures, before and after; two folders
        with pictures of the same names; or a folder with two such folders in it (A and B, T1 and
        T2, ...)."""
        if len(sources) == 1 and sources[0].is_dir():
            for names in PAIR_FOLDERS:
                inside = [sources[0] / name for name in names]
                if all(folder.is_dir() for folder in inside):
                    sources = inside
        kinds = [source.is_dir() for source in sources]
        if len(sources) == 2 and not any(kinds):
            return [(sources[0], sources[1])]
        if len(sources) != 2 or not all(kinds):
            raise ZooError(
                "change is seen in pairs: give two pictures, before and after; two folders with "
                "pictures of the same names; or one folder that holds two, such as A and B"
            )
        before, after = (self._by_name(folder) for folder in sources)
        lonely = sorted(before.keys() ^ after.keys())
        if lonely:
            raise ZooError(
                f"{sources[0]} and {sources[1]} hold different names: {len(lonely)} stand in one "
                f"of them only, such as '{lonely[0]}'"
            )
        return [(before[name], after[name]) for name in before]

    def _by_name(self, folder: Path) -> dict[str, Path]:
        """Pictures below a folder by their paths in it, without ending."""
        named: dict[str, Path] = {}
        for path in super().find_inputs([folder]):
            name = str(path.relative_to(folder).with_suffix(""))
            if name in named:
                raise ZooError(f"{path} and {named[name].name} have one name, expected one of each")
            named[name] = path
        return named

    @override
    def describe(self, source: Pair) -> dict[str, Any]:
        before, after = source
        return {"before": str(before), "after": str(after)}

    def predict_one(
        self, source: Pair, data: DataModule, stem: Path
    ) -> tuple[dict[str, Any], Figure]:
        """Write a map of a pair, its areas, a picture of it over the later picture; one beside
        both."""
        with data.open_pair(*source) as pair:
            return self._map(pair, data, stem)

    def _map(
        self, pair: tuple[Raster, Raster], data: DataModule, path: Path
    ) -> tuple[dict[str, Any], Figure]:
        """Write the files of one pair; columns of ``predictions.csv``, and a picture."""
        height, width = pair[0].height, pair[0].width
        numbers = self.colour_numbers(np.arange(len(self.names)))
        colours = {
            label: tuple(COLOURS[(number - 1) % len(COLOURS)].astype(int).tolist())
            for label, number in enumerate(numbers)
            if number > 0
        }
        result = MapFile(path.with_name(f"{path.name}_map"), pair[0], colours)
        counts = np.zeros(256, np.int64)
        for labels, top, left in self._tiles(pair, data):
            result.write(labels, top, left)
            counts += np.bincount(labels.ravel(), minlength=256)
        result.close()

        scale = min(1.0, PREVIEW / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        first, second = (raster.overview(*size) for raster in pair)
        labels = result.overview(*size)
        drawn = overlay(second, self.colour_numbers(np.where(labels == NO_DATA, 0, labels)))
        Image.fromarray(drawn).save(path.with_name(f"{path.name}_overlay.png"))
        panels = {"before": first, "after": second, "change": drawn}
        areas = "" if pair[0].crs is None else result.write_polygons(self.names)
        shares = counts[:NO_DATA] / max(1, counts[:NO_DATA].sum())
        columns = {"areas": areas} | {
            name: round(float(shares[chosen].sum()), 6) for name, chosen in self.summary.items()
        }
        return columns, panel_rows([panels], path.name)

    def _tiles(
        self, pair: tuple[Raster, Raster], data: Any
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Labels uint8 of one part of the picture after the other, and where it lies."""
        rows, columns = (
            windows(full, self.tile_side, self.overlap) for full in (pair[0].height, pair[0].width)
        )
        for top, bottom, first_row, last_row in rows:
            for left, right, first_column, last_column in columns:
                read = [raster.read(top, left, bottom - top, right - left) for raster in pair]
                images = [
                    data.to_input(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))[None]
                    for pixels, _ in read
                ]
                labels = self(*(image.to(self.device) for image in images))[0]
                labels = labels.cpu().numpy().astype(np.uint8)
                labels[~(read[0][1] & read[1][1])] = NO_DATA
                kept = labels[
                    first_row - top : last_row - top, first_column - left : last_column - left
                ]
                yield kept, first_row, first_column


class BinaryChangeDetection(ChangeTask):
    """Changed or not; cross-entropy and 0.75 Lovasz-softmax.

    Args:
        kwargs: see :class:`ChangeTask`.
    """

    monitor = "val/kappa"
    names = ("unchanged", "changed")
    needs = ("change",)

    def benchmark(self) -> Metric:
        """Recall, precision, accuracy, F1, IoU, Kappa."""
        return BinaryChangeScores()

    def loss(self, output: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Loss of change logits."""
        truth = batch["change"]
        return known_cross_entropy(output, truth) + 0.75 * lovasz_softmax(output, truth)

    def labels(self, output: Tensor) -> Tensor:
        """1: changed."""
        return output.argmax(1)

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """1: changed."""
        return batch["change"]

    def measure(self, output: Tensor, batch: dict[str, Tensor], metric: Metric) -> None:
        """Update the scores."""
        metric.update(self.labels(output), batch["change"])


class SemanticChangeDetection(ChangeTask):
    """From which land cover to which.

    Losses of change, of the land cover at each date where it changed, and of different opinions
    where it did not. Labels are 0 and (before - 1) * 6 + after.

    Args:
        kwargs: see :class:`ChangeTask`.
    """

    monitor = "val/sek"
    names = ("unchanged", *(f"{a} to {b}" for a in COVERS[1:] for b in COVERS[1:]))
    needs = ("change", "cover_pre", "cover_post")

    def benchmark(self) -> Metric:
        """Accuracy, F1, mean IoU, separated Kappa."""
        return SemanticChangeScores(len(COVERS) - 1)

    def loss(self, output: tuple[Tensor, Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Loss of the three logits."""
        change, *covers = output
        truths = [
            batch[name].where(batch[name] > 0, IGNORE) for name in ("cover_pre", "cover_post")
        ]
        loss = known_cross_entropy(change, batch["change"])
        lovasz = lovasz_softmax(change, batch["change"])
        for cover, truth in zip(covers, truths, strict=True):
            loss = loss + 0.5 * known_cross_entropy(cover, truth)
            lovasz = lovasz + 0.5 * lovasz_softmax(cover, truth)
        first, second = (cover.softmax(1) * (truths[0] == IGNORE)[:, None] for cover in covers)
        return loss + 0.25 * mse_loss(first, second) + 0.75 * lovasz

    def labels(self, output: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """From-to classes; class 0 of the land covers is not trained, and not asked."""
        change, *covers = output
        before, after = (cover[:, 1:].argmax(1) for cover in covers)
        return change.argmax(1) * (before * (len(COVERS) - 1) + after + 1)

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """From-to classes; below 0 where a cover is missing."""
        joint = (batch["cover_pre"] - 1) * (len(COVERS) - 1) + batch["cover_post"]
        joint = joint.where((batch["cover_pre"] > 0) & (batch["cover_post"] > 0), -1)
        return joint.where(batch["change"] == 1, 0)

    def measure(self, output: Any, batch: dict[str, Tensor], metric: Metric) -> None:
        """Update the scores."""
        metric.update(self.labels(output), self.truth(batch))

    @property
    def summary(self) -> dict[str, slice]:
        """The share of all changes."""
        return {"share of changed": slice(1, None)}

    def colour_numbers(self, labels: np.ndarray) -> np.ndarray:
        """Coloured by what is there afterwards."""
        return np.where(labels > 0, (labels - 1) % (len(COVERS) - 1) + 1, 0)


class DamageAssessment(ChangeTask):
    """Where buildings stood and how badly they are damaged.

    The loss of damage is of true buildings alone; a batch without any trains the localisation (the
    authors leave it out).

    Args:
        kwargs: see :class:`ChangeTask`.
    """

    monitor = "val/f1"
    names = DAMAGES
    needs = ("building", "damage")

    def benchmark(self) -> Metric:
        """F1 of localisation, of damage, and overall."""
        return DamageScores()

    def loss(self, output: tuple[Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Loss of building and damage logits."""
        building, damage = output
        where = batch["building"]
        level = batch["damage"].where(batch["damage"] > 0, IGNORE)
        loss = known_cross_entropy(building, where) + known_cross_entropy(damage, level)
        return loss + 0.5 * lovasz_softmax(building, where) + 0.75 * lovasz_softmax(damage, level)

    def labels(self, output: tuple[Tensor, Tensor]) -> Tensor:
        """Damage where a building was found, else 0."""
        building, damage = output
        return building.argmax(1) * damage.argmax(1)

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """Damage."""
        return batch["damage"]

    def measure(self, output: Any, batch: dict[str, Tensor], metric: Metric) -> None:
        """Update the scores."""
        building, damage = (logits.argmax(1) for logits in output)
        metric.update(building, damage, batch["building"], batch["damage"])

    def colour_numbers(self, labels: np.ndarray) -> np.ndarray:
        """From green, no damage, to red, destroyed."""
        return np.array([0, GREEN, OLIVE, ORANGE, RED])[labels]
