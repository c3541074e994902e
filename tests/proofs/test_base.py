import pytest

from zoo.errors import ZooError
from zoo.proofs.base import check

MEASURED = {
    "ours": {"accuracy": 0.97, "seconds": 2.0},
    "baseline": {"accuracy": 0.6, "seconds": 5.0},
}


@pytest.mark.parametrize(
    "text, measured, threshold, holds",
    [
        ("ours.accuracy >= 0.95", 0.97, 0.95, True),
        ("baseline.accuracy >= 0.95", 0.6, 0.95, False),
        ("ours.accuracy - baseline.accuracy > 0.3", 0.37, 0.3, True),
        ("ours.seconds / baseline.seconds <= 0.5", 0.4, 0.5, True),
        ("baseline.accuracy <= 65/128 + (1 - 65/128) / 4", 0.6, 0.630859375, True),
        ("max(ours.seconds, baseline.seconds) == 5", 5, 5, True),
        ("abs(-ours.seconds) < 2", 2, 2, False),
    ],
)
def test_check(text, measured, threshold, holds):
    found = check(text, MEASURED)
    assert found.measured == pytest.approx(measured)
    assert found.threshold == pytest.approx(threshold)
    assert found.holds is holds


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ours.accuracy", "is no inequality"),
        ("0 < ours.accuracy < 1", "is no inequality"),
        ("ours.acc > 0", r"'ours' measures \['accuracy', 'seconds'\], not 'acc'"),
        ("theirs.acc > 0", "no measurement 'theirs'"),
        ("__import__('os').system('true') == 0", "cannot use"),
        ("ours.accuracy >", "cannot be read"),
    ],
)
def test_wrong_inequality(text, expected):
    with pytest.raises(ZooError, match=expected):
        check(text, MEASURED)
