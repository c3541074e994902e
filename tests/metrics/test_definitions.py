"""Metrics against their definitions, written out pixel by pixel or by another library."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from sklearn import metrics as sklearn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert, box_iou

from zoo import ops
from zoo.metrics import change, multi_task
from zoo.metrics.counting import GAME
from zoo.metrics.depth import DepthErrors
from zoo.metrics.detection import AveragePrecision
from zoo.metrics.flops import multiply_adds
from zoo.metrics.segmentation import BoundaryF1, ImageIoU, VolumeScores, hausdorff95
from zoo.metrics.tracking import paired_iou
from zoo.metrics.vector_mean import VectorMean

IGNORE = 255


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


def measured(metric, *batches):
    """What a metric computes of batches that come one after the other; twice, with a reset."""
    for _ in range(2):
        metric.reset()
        for batch in batches:
            metric.update(*(tensor(part) for part in batch))
        found = metric.compute()
    return found


def halves(*arrays):
    """Two batches, the second smaller."""
    cut = len(arrays[0]) * 2 // 3
    return [a[:cut] for a in arrays], [a[cut:] for a in arrays]


# change


def test_binary_change(rng):
    mine, truth = rng.integers(0, 2, (2, 3, 6, 6))
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    truth[truth == 1] *= rng.random((truth == 1).sum()) < 0.4
    found = measured(change.BinaryChangeScores(), *halves(mine, truth))
    known = truth != IGNORE
    a, b = mine[known], truth[known]
    assert found == pytest.approx(
        {
            "recall": sklearn.recall_score(b, a),
            "precision": sklearn.precision_score(b, a),
            "oa": sklearn.accuracy_score(b, a),
            "f1": sklearn.f1_score(b, a),
            "iou": sklearn.jaccard_score(b, a),
            "kappa": sklearn.cohen_kappa_score(b, a),
        },
        rel=1e-6,
    )


def test_semantic_change(rng):
    mine, truth = rng.integers(0, 5, (2, 3, 6, 6))  # two covers: 0 and four kinds of change
    mine[rng.random(mine.shape) < 0.4] = 0
    truth[:, :3] = 0
    truth[rng.random(truth.shape) < 0.1] = -1
    found = measured(change.SemanticChangeScores(covers=2), *halves(mine, truth))
    known = truth >= 0
    a, b = mine[known], truth[known]
    unchanged = ((a == 0) & (b == 0)).sum() / ((a == 0) | (b == 0)).sum()
    changed = ((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum()
    right = ((a == b) & (b > 0)).sum()
    precision, recall = right / (a > 0).sum(), right / (b > 0).sum()
    among = (a > 0) | (b > 0)
    per_picture = [(m == t)[t >= 0].mean() for m, t in zip(mine, truth, strict=True)]
    kappa = sklearn.cohen_kappa_score(a[among], b[among])
    assert found == pytest.approx(
        {
            "oa": np.mean(per_picture),
            "miou": (unchanged + changed) / 2,
            "f_scd": 2 * precision * recall / (precision + recall),
            "sek": kappa * math.exp(changed - 1),
        },
        rel=1e-6,
    )
    assert change.SemanticChangeScores().matrix.shape == (37, 37)


def test_damage(rng):
    where = rng.integers(0, 2, (3, 8, 8))
    level = where * rng.integers(1, 5, where.shape)
    building = np.where(rng.random(where.shape) < 0.8, where, 1 - where)
    damage = np.where(rng.random(where.shape) < 0.7, level, rng.integers(0, 5, where.shape))
    found = measured(change.DamageScores(), *halves(building, damage, where, level))
    inside = where == 1
    names = ("no_damage", "minor", "major", "destroyed")
    # predicted class 0 inside a building is a miss of its class, no claim of another
    each = sklearn.f1_score(level[inside], damage[inside], labels=[1, 2, 3, 4], average=None)
    localisation = sklearn.f1_score(where.ravel(), building.ravel())
    classification = 4 / (1 / each).sum()
    expected = {f"f1_{name}": score for name, score in zip(names, each, strict=True)}
    expected |= {"f1_loc": localisation, "f1_clf": classification}
    expected["f1"] = 0.3 * localisation + 0.7 * classification
    assert found == pytest.approx(expected, rel=1e-5)


def test_ratios_without_a_denominator():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert change.ratio(one, zero) == 0 and change.ratio(one, one + 1) == 0.5
    assert change.harmonic_mean(zero, zero) == 0
    assert change.harmonic_mean(one, one * 0.5).item() == pytest.approx(2 / 3)
    counts = change.confusion(torch.tensor([0, 1, 1, 2, -1]), torch.tensor([1, 1, 0, 0, 0]), 2)
    assert counts.tolist() == [[0, 1], [1, 1]] and counts.dtype == torch.int64
    assert change.kappa(torch.eye(3).double()) == 1


# counts and depth


@pytest.mark.parametrize("level", [0, 1, 2])
def test_game(rng, level):
    mine, truth = rng.random((2, 3, 1, 8, 16))
    side = 2**level
    errors = []
    for a, b in zip(mine[:, 0], truth[:, 0], strict=True):
        rows, columns = np.split(np.arange(8), side), np.split(np.arange(16), side)
        cells = [(a - b)[np.ix_(r, c)].sum() for r in rows for c in columns]
        errors.append(np.abs(cells).sum())
    found = measured(GAME(level), *halves(mine, truth))
    assert found.item() == pytest.approx(np.mean(errors), rel=1e-6)


@pytest.mark.parametrize("align", [False, True])
def test_depth(rng, align):
    mine, truth = rng.random((2, 3, 2, 3, 5)) * 4 + 0.3
    truth[rng.random(truth.shape) < 0.2] = 0
    truth[0, 0, 0, :2] = 1.0, 4.0  # both ends of the range are outside
    a, b = [], []
    for m, t in zip(mine.reshape(-1, 15), truth.reshape(-1, 15), strict=True):
        valid = (t > 1) & (t < 4)
        middle = [np.percentile(x[valid], 50, method="lower") for x in (m, t)]
        a.append(m[valid] * (middle[1] / middle[0] if align else 1))
        b.append(t[valid])
    a, b = np.concatenate(a), np.concatenate(b)
    factor = np.maximum(a / b, b / a)
    found = measured(DepthErrors(1.0, 4.0, align), *halves(mine, truth))
    expected = {
        "abs_rel": (np.abs(a - b) / b).mean(),
        "rmse": np.sqrt(((a - b) ** 2).mean()),
        **{f"delta{k}": (factor < 1.25**k).mean() for k in (1, 2, 3)},
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert 0 < expected["delta1"] < expected["delta2"] < expected["delta3"] < 1
    if not align:  # a limit itself is too far; depth has no end, and no depth below 1e-9
        limits = torch.tensor([[[1.25, 1.25**2, 1.25**3, 0.0, 1000.0]]])
        found = measured(DepthErrors(), (limits, torch.tensor([[[1.0, 1.0, 1.0, 1.0, 1000.0]]])))
        assert [found[f"delta{k}"].item() for k in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6])


# dense tasks


def test_label_iou(rng):
    output, truth = rng.normal(size=(3, 4, 5, 5)), rng.integers(0, 3, (3, 5, 5))
    output[:, 3] -= 9  # class 3 never occurs
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    known = truth != IGNORE
    a, b = output.argmax(1)[known], truth[known]
    each = sklearn.jaccard_score(b, a, labels=[0, 1, 2, 3], average=None, zero_division=0)
    found = measured(multi_task.LabelIoU(4), *halves(output, truth))
    assert found.item() == pytest.approx(each.mean()) and each[3] == 0


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_max_f(rng, beta):
    output, truth = rng.normal(size=(3, 2, 5, 5)), rng.integers(0, 2, (3, 5, 5))
    output[:, 1] += 0.7 * truth
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    known = truth != IGNORE
    chance = 1 / (1 + np.exp(output[:, 0] - output[:, 1]))[known]
    scores = []
    for threshold in np.arange(0.05, 0.96, 0.05):
        weighted = sklearn.fbeta_score(
            truth[known], chance >= threshold, beta=math.sqrt(beta), zero_division=0
        )
        scores.append(weighted)
    found = measured(multi_task.MaxF(beta), *halves(output, truth))
    assert found.item() == pytest.approx(max(scores))
    if beta == 0.3:
        assert measured(multi_task.MaxF(), *halves(output, truth)) == found
    sure = torch.zeros(1, 2, 1, 2)
    sure[:, 1] = torch.tensor([30.0, -30.0])
    assert measured(multi_task.MaxF(), (sure, torch.zeros(1, 1, 2).long())) == 0


def test_angular_error(rng):
    output, truth = rng.normal(size=(2, 3, 3, 4, 4))
    truth[0, :, 0], truth[1, 1:, 2, 2] = 0, 0
    angles = []
    for b, y, x in np.ndindex(3, 4, 4):
        mine, wanted = output[b, :, y, x], truth[b, :, y, x]
        if wanted.any():
            cosine = mine @ wanted / np.linalg.norm(mine) / np.linalg.norm(wanted)
            angles.append(math.degrees(math.acos(cosine)))
    found = measured(multi_task.AngularError(), *halves(output, truth))
    assert len(angles) == 44 and found.item() == pytest.approx(np.mean(angles), rel=1e-6)


def test_edge_ods(rng):
    """Ridges of known height, with the distances of all pairs of pixels."""
    output, truth = np.full((3, 1, 24, 32), -9.0), np.zeros((3, 24, 32), int)
    for b in range(3):
        for column, height in ((5, 2.0), (14, 0.5), (23, -0.5), (29, -1.5)):
            output[b, 0, :, column + int(rng.integers(-2, 3))] = height + rng.normal() / 4
            truth[b, : int(rng.integers(12, 24)), column] = 1
    truth[0, 20:] = IGNORE
    levels = np.arange(1, 20) / 20
    right, claimed, found, actual = np.zeros((4, 19))
    for picture, labels in zip(output[:, 0], truth, strict=True):
        chance = 1 / (1 + np.exp(-picture))
        thin = multi_task._suppress(chance.astype(np.float32)) * (labels != IGNORE)
        edges = np.argwhere(labels == 1)
        reach = max(0.0075 * math.hypot(24, 32), 1.0)
        for i, level in enumerate(levels):
            mine = np.argwhere(thin >= level)
            claimed[i] += len(mine)
            actual[i] += len(edges)
            if len(mine):
                near = cdist(mine, edges) <= reach
                right[i] += near.any(1).sum()
                found[i] += near.any(0).sum()
    precision, recall = right / np.maximum(claimed, 1), found / np.maximum(actual, 1)
    scores = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    result = measured(multi_task.EdgeODS(), *halves(output, truth))
    assert result.item() == pytest.approx(scores.max()) and 0.2 < scores.max() < 0.9
    few = measured(multi_task.EdgeODS(thresholds=3), *halves(output, truth))
    assert few.item() == pytest.approx(scores[[4, 9, 14]].max())
    nothing = multi_task.EdgeODS()
    assert measured(nothing, (output, truth * 0)) == 0
    # a picture so large that more than a pixel is near
    wide, line = np.full((1, 1, 200, 300), -9.0), np.zeros((1, 200, 300), int)
    wide[..., 100], line[..., 102] = 3.0, 1
    assert measured(multi_task.EdgeODS(), (wide, line)) == 1
    wide[..., 104], wide[..., 100] = 3.0, -9.0
    line[..., 102], line[..., 101] = 0, 1
    assert measured(multi_task.EdgeODS(), (wide, line)) == 0


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 120, 160])
def test_ridges_are_thinned_across(angle):
    y, x = np.mgrid[:40, :40] - 20
    across = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    ridge = np.exp(-((across / 4) ** 2)).astype(np.float32)
    thin = multi_task._suppress(ridge)[4:-4, 4:-4]
    distance = np.abs(across[4:-4, 4:-4])
    assert thin[(distance > 1) & (distance < 2.5)].max() == 0  # the ridge itself, not its foot
    middle = distance < 0.2
    assert (thin[middle] > 0).mean() > 0.9
    assert np.array_equal(thin[thin > 0], ridge[4:-4, 4:-4][thin > 0])


def test_mean_gain():
    single = {"miou": 0.5, "rmse": 2.0, "f": 0.8}
    lower = {"miou": False, "rmse": True, "f": False}
    scores = {"miou": 0.6, "rmse": 2.5, "f": 0.7, "other": 9.0}
    expected = 100 * (0.2 - 0.25 - 0.125) / 3
    assert multi_task.mean_gain(scores, single, lower) == pytest.approx(expected)


# label maps


def test_image_iou(rng):
    mine, truth = rng.integers(0, 3, (2, 4, 5, 5))
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    mine[3], truth[3] = 0, 2  # neither has class 1
    scores = []
    for a, b in zip(mine, truth, strict=True):
        known = b != IGNORE
        one = [(x[known] == 1).astype(int) for x in (b, a)]
        scores.append(sklearn.jaccard_score(*one, zero_division=1))
    found = measured(ImageIoU(), *halves(mine, truth))
    assert found.item() == pytest.approx(np.mean(scores)) and scores[3] == 1


@pytest.mark.parametrize("width", [3, 7])
def test_boundary_f1(rng, width):
    truth = np.repeat(np.repeat(rng.integers(0, 2, (4, 3, 3)), 6, 1), 6, 2)
    mine = np.where(rng.random(truth.shape) < 0.8, truth, 1 - truth)
    truth[0, 5:8] = IGNORE
    truth[3] = 0  # no boundary
    reach = width // 2
    scores = []
    for a, b in zip(mine, truth, strict=True):
        pairs = []
        for y, x in np.ndindex(b.shape):
            window = b[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            if len(np.unique(window)) > 1 and b[y, x] != IGNORE:
                pairs.append((b[y, x] == 1, a[y, x] == 1))
        scores.append(sklearn.f1_score(*np.array(pairs).T) if pairs else 1.0)
    found = measured(BoundaryF1(width), *halves(mine, truth))
    assert found.item() == pytest.approx(np.mean(scores))
    if width == 7:
        assert BoundaryF1().width == 15


def surface(mask):
    """Pixels of a mask with a neighbour outside, the border of the array being outside."""
    return np.argwhere(mask & ~binary_erosion(mask))


def test_hausdorff95(rng):
    a, b = rng.random((2, 4, 6, 7)) < 0.4
    for spacing in ((1.0, 1.0, 1.0), (3.0, 1.0, 0.5)):
        distances = cdist(surface(a) * spacing, surface(b) * spacing)
        nearest = np.concatenate([distances.min(1), distances.min(0)])
        expected = np.percentile(nearest, 95)
        assert hausdorff95(a, b, spacing) == pytest.approx(expected)
        assert hausdorff95(b, a, spacing) == pytest.approx(expected)


def test_volume_scores(rng):
    spacing = (2.0, 1.0, 0.5)
    volumes = [rng.integers(0, 3, (2, 3, 5, 5)) for _ in range(2)]
    volumes[1][1][volumes[1][1] == 2] = 0  # class 2 is made up; class 3 is nowhere
    volumes.append([np.full((1, 4, 4), 0), np.full((1, 4, 4), 1)])  # class 1 is missed
    dice, hd95 = [], []
    for mine, truth in volumes:
        for label in (1, 2, 3):
            a, b = mine == label, truth == label
            both = a.any() and b.any()
            made_up = 1.0 if a.any() else 0.0
            dice.append(sklearn.f1_score(b.ravel(), a.ravel()) if both else made_up)
            hd95.append(hausdorff95(a, b, spacing) if both else 0.0)
    found = measured(VolumeScores(4, spacing), *volumes)
    assert found["dsc"].item() == pytest.approx(np.mean(dice), rel=1e-6)
    assert found["hd95"].item() == pytest.approx(np.mean(hd95), rel=1e-6)
    assert VolumeScores(2).spacing == (1.0, 1.0, 1.0)


# boxes


def test_paired_iou(rng):
    a, b = (torch.from_numpy(rng.random((6, 4)) * 10) for _ in range(2))
    b[5, :2] = 50
    corners = [box_convert(boxes, "cxcywh", "xyxy") for boxes in (a, b)]
    torch.testing.assert_close(paired_iou(a, b), box_iou(*corners).diag())


@pytest.mark.parametrize("masks", [False, True])
def test_average_precision_is_cocos(rng, masks):
    """Under our names; groups of objects count as nothing."""

    def objects(count, scores):
        corner = rng.random((count, 2)) * 150
        boxes = tensor(np.concatenate([corner, corner + rng.random((count, 2)) * 120 + 8], 1))
        found = {"boxes": boxes.float(), "labels": tensor(rng.integers(0, 2, count))}
        if masks:
            grid = np.mgrid[:300, :300][:, None]
            low, high = (boxes[:, i : i + 2].T.numpy()[::-1, :, None, None] for i in (0, 2))
            found["masks"] = tensor(((grid >= low) & (grid < high)).all(0))
        extra = {"scores": tensor(rng.random(count)).float()} if scores else {}
        return found | (extra or {"iscrowd": torch.arange(count) == 0})

    truth = [objects(4, False) for _ in range(3)]
    found = [{**t, "scores": tensor(rng.random(4)).float()} for t in truth]
    for boxes in found:
        boxes.pop("iscrowd")
        boxes["boxes"] = boxes["boxes"] + tensor(rng.normal(size=(4, 4)) * 2).float()
    found = [
        {name: torch.cat([f[name], o[name]]) for name in f}
        for f, o in zip(found, [objects(2, True) for _ in range(3)], strict=True)
    ]
    kinds = ("bbox", "segm") if masks else ("bbox",)
    theirs = MeanAveragePrecision(iou_type=kinds)
    theirs.update(found, [t | {"iscrowd": t["iscrowd"].int()} for t in truth])
    expected = theirs.compute()
    metric = AveragePrecision(masks)
    metric.update(found, truth)
    result = metric.compute()
    names = {"ap": "map", "ap50": "map_50", "ap75": "map_75", "ap_small": "map_small"}
    names |= {"ap_medium": "map_medium", "ap_large": "map_large"}
    pairs = {mine: ("bbox_" if masks else "") + his for mine, his in names.items()}
    pairs |= {f"mask_{mine}": f"segm_{his}" for mine, his in names.items()} if masks else {}
    assert result == {mine: expected[his] for mine, his in pairs.items()}
    assert 0 < result["ap"] < result["ap50"] < 1
    assert all(value.dtype == torch.float32 for value in result.values())


# work and means


class Work(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = torch.nn.Linear(3, 5), torch.nn.Conv1d(5, 7, 3, padding=1)

    def forward(self, x):
        x = self.conv(self.linear(x).transpose(1, 2))  # [B, 7, L]
        x = ops.causal_conv1d(x, torch.ones(7, 4), None)
        delta, B = torch.rand_like(x), torch.rand(len(x), 1, 2, x.shape[-1])
        return ops.selective_scan(x, delta, -torch.ones(7, 2), B, B, torch.ones(7))


def test_multiply_adds():
    length = 11
    found = multiply_adds(Work(), torch.rand(2, length, 3))
    linear, conv, causal = 3 * 5, 5 * 7 * 3, 7 * 4
    scan = 7 * (9 * 2 + 1)
    assert found == 2 * length * (linear + conv + causal + scan)


def test_vector_mean(rng):
    values = rng.random((5, 3))
    metric = VectorMean()
    found = measured(metric, *halves(values))
    torch.testing.assert_close(found, tensor(values.mean(0)).float())
    # what two processes have, one of them nothing
    metric.reset()
    metric.update(tensor(values))
    metric.total = [torch.cat([metric.total[0], torch.zeros(0), metric.total[0]])]
    metric.count *= 2
    torch.testing.assert_close(metric.compute(), found)
