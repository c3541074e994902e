"""The bench: what it measures, prints and writes."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import zoo.bench
from zoo.bench.arguments import OPS
from zoo.bench.bounds import Bounds
from zoo.bench.case import Case, Peer, Work
from zoo.bench.measure import caller, median_seconds, peak_bytes
from zoo.bench.models import ModelRow
from zoo.bench.plot import plot_models
from zoo.bench.rows import Setting, measure_growth, measure_row
from zoo.bench.table import CPU, GPU, GROWTH, QUICK
from zoo.errors import ZooError

SETTING = Setting("cpu", threads=1, seconds=0.01)


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_quick_run_of_one_op(tmp_path, capsys):
    folder, page = tmp_path / "results", tmp_path / "results.md"
    folder.mkdir()
    path = folder / "bench.json"
    arguments = ["causal_conv1d", "--quick", "--threads", "1"]
    output = ["--json", str(path), "--plot", str(folder), "--page", str(page)]
    assert zoo.bench.main([*arguments, *output]) == 0
    assert (folder / "growth-cpu.png").stat().st_size > 10_000
    assert "### causal_conv1d\n\n| batch x dim x length x width | dtype |" in page.read_text()
    assert "| 1 x 64 x 128 x 4 | float32 | forward |" in page.read_text()
    assert "(results/growth-cpu.png)" in page.read_text()
    again = page.read_text()
    page.unlink()
    assert zoo.bench.main(["--page", str(page)]) == 0
    assert page.read_text() == again

    result = json.loads(path.read_text())
    assert set(result) == {"environment", "bounds", "ops", "growth", "models"}
    assert result["environment"]["threads"] == 1
    assert torch.__version__.startswith(result["environment"]["versions"]["torch"])
    assert result["environment"]["cpu_capability"]
    assert result["bounds"]["matmul_flops"] > 1e8
    (row,) = result["ops"]
    assert row["op"] == "causal_conv1d" and row["dtype"] == "float32"
    assert row["sizes"] == {
        "batch": 1, "dim": 64, "length": 128, "width": 4, "channel_last": False
    }  # fmt: skip
    assert 0 < row["error"] < 1e-5
    assert row["seconds"] > 0 and row["bound_by"] in ("memory", "arithmetic")
    assert row["fraction_of_bound"] == pytest.approx(row["bound_seconds"] / row["seconds"])
    assert set(row["peers"]) == {"F.conv1d + SiLU", "PyTorch reference"}
    for name, seconds in row["peers"].items():
        assert row["ratios"][name] == pytest.approx(seconds / row["seconds"])
    (growth,) = result["growth"]
    assert growth["lengths"] == [256, 512, 1024] and len(growth["seconds"]) == 3
    assert result["models"] == []

    shown = capsys.readouterr().out
    assert "batch x dim x length x width" in shown and "1 x 64 x 128 x 4" in shown
    assert "F.conv1d + SiLU takes" in shown
    assert "selective_scan" not in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["convolution"], "there is no op 'convolution'; expected of selective_scan"),
        (["--device", "tpu"], "--device is 'tpu', expected one of cpu, cuda"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--json", "/nowhere/bench.json"], "--json: there is no folder /nowhere; make it first"),
        (["--page", "nothing.md"], "--page: there is no JSON file in nothing; measure with --json"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert zoo.bench.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    assert zoo.bench.main(["--device", "cuda"]) == 2
    assert "PyTorch finds no GPU; use --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.op)
def test_peers_compute_the_same(case):
    """Otherwise a ratio of their times says nothing."""
    torch.manual_seed(0)
    like = torch.empty(0)
    expected = case.run(case.inputs(like))
    for name, peer in case.peers.items():
        if "cpu" not in peer.devices:
            continue
        try:
            function = peer.load()
        except ImportError:
            continue
        torch.manual_seed(0)
        found = function(case.inputs(like))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("case", [*CPU, *GPU, *GROWTH])
def test_every_line_is_sound(case):
    """Shapes on no device at all: nothing is computed."""
    inputs = case.inputs(torch.empty(0, device="meta"))
    assert math.isfinite(case.work(4).bytes) and case.work(4).bytes > 0
    assert all(t.device.type == "meta" for t in inputs.values() if isinstance(t, torch.Tensor))


@dataclass(frozen=True, kw_only=True)
class Doubling(Case):
    """Memory twice that of its input, work in proportion to the length."""

    length: int = 1 << 20
    op: ClassVar[str] = "doubling"
    peers: ClassVar[dict] = {
        "twice": Peer(lambda: lambda i: (i["x"] * 2, i["x"] * 2)[0]),
        "absent": Peer(lambda: __import__("no_such_package")),
    }

    def inputs(self, like):
        return {"x": torch.ones(self.length, dtype=like.dtype, device=like.device)}

    def run(self, inputs):
        return torch.cat([inputs["x"], inputs["x"]])

    def work(self, itemsize):
        return Work(bytes=3 * itemsize * self.length)


def test_row_of_a_known_op():
    bounds = Bounds(
        {1 << 20: 1e-4, 1 << 28: 1e-2}, matmul_flops=1e9, exponentials=1e9, exponential=5
    )
    row = measure_row(Doubling(length=1 << 24), SETTING, bounds)
    assert set(row.ratios) == {"twice"}
    assert row.bound_by == "memory"
    assert row.bound_seconds == pytest.approx(1e-2 * 192 / 256)
    assert row.input_bytes == 64 << 20
    if row.peak_bytes is not None:  # of the whole process: all else in it is a few MB
        assert row.peak_bytes / row.input_bytes == pytest.approx(2, abs=0.3)


def test_a_wrong_op_is_not_timed(monkeypatch):
    def off(self, inputs):
        return torch.cat([inputs["x"], inputs["x"]]) * (
            1 + 1e-3 * (inputs["x"].dtype != torch.double)
        )

    monkeypatch.setattr(Doubling, "run", off)
    with pytest.raises(
        ZooError, match=r"doubling .* deviates by 1.0e-03 from float64, at most 1e-05"
    ):
        measure_row(Doubling(length=8), SETTING, Bounds({8: 1.0}, 1.0, 1.0, 5))


def test_growth_of_a_linear_op(monkeypatch):
    """With a clock that says a millisecond for 1024 steps, and a little for the call."""
    lengths = iter([256, 4096, 65536])
    monkeypatch.setattr(
        "zoo.bench.rows.median_seconds", lambda *_: {"": 1e-5 + next(lengths) * 1e-3 / 1024}
    )
    growth = measure_growth(Doubling(), [256, 4096, 65536], SETTING)
    assert growth.lengths == [256, 4096, 65536]
    assert growth.seconds[1] == pytest.approx(4.01e-3)
    assert growth.exponent == pytest.approx(1, abs=0.01)


def test_a_page_needs_results_of_this_bench(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old.json").write_text('{"rows": []}')
    assert zoo.bench.main(["--page", str(tmp_path / "b.md")]) == 2
    assert "old.json is not a result of this version of the bench" in capsys.readouterr().err


def test_shares_are_drawn(tmp_path):
    rows = [
        ModelRow("A", "a step", 1.0, {"ssd": 0.6, "other": 0.4}),
        ModelRow("B", "one", 2.0, {"other": 1.0}),
    ]
    assert plot_models(rows, tmp_path, "cpu", "here").stat().st_size > 5_000


def test_backward_is_timed_with_the_forward():
    case = Doubling(length=8, backward=True)
    inputs = case.inputs(torch.empty(0))
    seen = []

    def function(arguments):
        seen.append(arguments["x"].requires_grad)
        return case.run(arguments)

    caller(case, function, inputs)()
    assert seen == [True]
    assert not inputs["x"].requires_grad


def test_bound_is_the_larger_of_both():
    bounds = Bounds({100: 1.0, 1000: 5.0}, matmul_flops=10.0, exponentials=1.0, exponential=5)
    assert bounds.copy_seconds(50) == 0.5
    assert bounds.copy_seconds(500) == 2.5
    assert bounds.copy_seconds(2000) == 10.0
    assert bounds.seconds(Work(bytes=100, multiply_adds=4)) == (1.0, "memory")
    assert bounds.seconds(Work(bytes=100, exponentials=2)) == (2.0, "arithmetic")
    assert bounds.seconds(Work(bytes=100, matmul_flops=30)) == (3.0, "arithmetic")


def test_measurements_take_turns():
    calls = []
    timed = {name: (lambda name=name: calls.append(name), 1) for name in ("a", "b")}
    seconds = median_seconds(timed, 0.003)
    assert set(seconds) == {"a", "b"} and all(s > 0 for s in seconds.values())
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns == ["a", "b"] * 3


def test_peak_memory_counts_what_is_freed():
    peak = peak_bytes(lambda: torch.ones(1 << 23).sum(), "cpu")
    if peak is None:
        pytest.skip("the system does not tell")
    assert peak == pytest.approx(1 << 25, rel=0.3)


def test_the_command_line_knows_what_there_is():
    assert (*dict.fromkeys(case.op for case in CPU), "models") == OPS
