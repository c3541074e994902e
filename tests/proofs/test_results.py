"""Verdicts over seeds, the record, the page, and going on after a stop."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.tiny import ROOT
from zoo import prove
from zoo.errors import ZooError
from zoo.plots.proofs import Axes, Curve
from zoo.proofs.base import Measured, Measurement, Proof
from zoo.proofs.results import judge, record, spread, write_page

VALUES = {0: 0.9, 1: 0.8, 2: 0.6}


class Made(Measurement):
    """Gives a number for each seed."""

    stop_at: int | None = None

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def measure(self, seed: int) -> Measured:
        if seed == Made.stop_at:
            raise KeyboardInterrupt
        curve = Curve(Axes("Learning", "step", "loss"), [0, 1], [1.0, VALUES[seed]])
        return Measured({"value": self.factor * VALUES[seed]}, [curve])


def proof(*must_hold: str) -> Proof:
    return Proof("It works.", {"ours": Made(), "theirs": Made(0.5)}, list(must_hold))


def results(must_hold: str, seeds=(0, 1, 2)):
    one = proof(must_hold)
    runs = {s: {name: m.measure(s) for name, m in one.measurements.items()} for s in seeds}
    return one, runs, judge(one, runs, [1.0] * len(seeds))


def test_a_verdict_needs_each_of_three_seeds():
    assert results("ours.value >= 0.5")[2].verdict == "holds"
    assert results("ours.value >= 0.7")[2].verdict == "FAILS", "the mean is 0.77"
    one = results("ours.value >= 0.7", seeds=(0,))[2]
    assert one.verdict == "measured with 1 seed" and one.all_hold and not one.holds
    assert results("ours.value >= 0.7", seeds=(0, 1))[2].verdict == "measured with 2 seeds"
    assert results("ours.value >= 1", seeds=(0,))[2].verdict == "FAILS"


def test_times_are_judged_by_a_factor_of_two_alone():
    for text in (
        "ours.seconds / theirs.seconds <= 0.5",
        "(ours.seconds_long / ours.seconds) / (theirs.seconds_long / theirs.seconds) >= 2",
    ):
        proof(text)
    for text in (
        "ours.seconds / theirs.seconds <= 0.9",
        "ours.seconds_long <= 3",
        "theirs.seconds - ours.seconds > 0",
        "ours.seconds <= theirs.seconds",
    ):
        with pytest.raises(ZooError, match="judges a time"):
            proof(text)


def test_record_and_page(tmp_path):
    folder = tmp_path / "results"
    for system, text in (("vision/good", "ours.value >= 0.5"), ("vision/bad", "ours.value > 0.7")):
        one, runs, result = results(text)
        record(system, [one], [runs], [result], folder)
    stored = json.loads((folder / "vision" / "bad.json").read_text())["proofs"][0]
    assert stored["seeds"] == [0, 1, 2]
    assert stored["measurements"]["ours"]["value"] == [0.9, 0.8, 0.6]
    assert stored["inequalities"][0]["holds"] == [True, True, False]
    assert "[0.9, 0.8, 0.6]" in (folder / "vision" / "bad.json").read_text(), "one line"
    assert (folder / "vision" / "good-0.png").is_file()
    write_page(tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert "1 of 2 claims of 2 systems hold with three seeds, 1 fail." in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert "[vision/bad](#visionbad)" in table[2] and "**FAILS**" in table[2]
    assert '<img src="results/vision/good-0.png"' in table[3]
    assert "`ours.value` 0.7667 (0.6 to 0.9) >= 0.5" in table[3]
    assert "**FAILS** with seed 2" in page


def test_page_of_something_else(tmp_path):
    (tmp_path / "results" / "a").mkdir(parents=True)
    (tmp_path / "results" / "a" / "b.json").write_text("{}")
    with pytest.raises(ZooError, match="is no result of a proof"):
        write_page(tmp_path / "results.md")


def test_spread():
    assert spread([0.5]) == spread([0.5, 0.5]) == "0.5"
    assert spread([1.0, 2.0, 6.0]) == "3 (1 to 6)"


def test_command_goes_on_where_it_was_stopped(in_tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_CACHE", str(in_tmp_path / "cache"))
    file = in_tmp_path / "recipes" / "vision" / "it" / "proof.yaml"
    file.parent.mkdir(parents=True)
    kind = f"{__name__}.Made"
    file.write_text(
        "proofs:\n"
        "- claim: It works.\n"
        "  measurements:\n"
        f"    ours: {{class_path: {kind}}}\n"
        f"    theirs: {{class_path: {kind}, init_args: {{factor: 0.5}}}}\n"
        "  must_hold: [ours.value - theirs.value >= 0.3]\n"
    )
    command = ["it", "--seeds", "0,1,2", "--record"]
    monkeypatch.setattr(Made, "stop_at", 1)
    assert prove.main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (in_tmp_path / "docs").exists(), "nothing half is recorded"
    monkeypatch.setattr(Made, "stop_at", None)
    assert prove.main(command) == 0
    printed = capsys.readouterr().out
    assert "ours (seed 0, kept): value 0.9" in printed and "ours (seed 1, 0 s)" in printed
    assert "docs/results.md" in printed
    assert "1 of 1 claims of 1 systems hold" in (in_tmp_path / "docs" / "results.md").read_text()
    assert prove.main(["it"]) == 0, "one seed, not recorded"


@pytest.mark.parametrize("seeds", ["", "0,0", "-1", "a"])
def test_wrong_seeds(seeds, in_tmp_path):
    assert prove.main(["it", "--seeds", seeds]) == 2


RECORDS = sorted(ROOT.glob("docs/results/*/*.json"))


@pytest.mark.parametrize("file", RECORDS, ids=[f"{f.parent.name}/{f.stem}" for f in RECORDS])
def test_record_is_of_the_claims_that_the_recipe_makes(file):
    recorded = json.loads(file.read_text())
    recipe = yaml.safe_load((ROOT / "recipes" / recorded["system"] / "proof.yaml").read_text())
    assert [
        (proof["claim"], [inequality["text"] for inequality in proof["inequalities"]])
        for proof in recorded["proofs"]
    ] == [(proof["claim"], proof["must_hold"]) for proof in recipe["proofs"]], "measure it again"
