"""What is kept is whole, is never replaced, and two processes do not disturb each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT
from zoo.checkpoints.exports import export, put_in_place, trained_folder
from zoo.errors import ZooError

#: Waits until the other process is at the same place, then writes two files slowly.
RACER = """
import sys, time
from pathlib import Path
from zoo.checkpoints.exports import export, put_in_place

kind, folder, mine, other = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]

def make(part):
    (folder.parent / f"{mine}.ready").touch()
    while not (folder.parent / f"{other}.ready").exists():
        time.sleep(0.005)
    for name in ("config", "weights"):
        (part / name).write_text(mine)
        time.sleep(0.05)

print((put_in_place if kind == "keep" else export)(folder, make))
print(sorted((file.name, file.read_text()) for file in folder.iterdir()))
"""


def race(kind: str, folder: Path) -> list[str]:
    """What two processes print that make ``folder`` at once."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, kind, str(folder), mine, other],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    printed = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    return printed


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_of_two_processes_that_make_the_same_the_first_wins(tmp_path):
    folder = tmp_path / "model"
    printed = race("keep", folder)
    assert len(set(contents(folder).values())) == 1, "half of each"
    assert printed[0] == printed[1], "both use what is kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ready", "b.ready", "model"]


@pytest.mark.slow
def test_of_two_exports_under_one_name_both_are_kept(tmp_path):
    folder = tmp_path / "model"
    printed = race("export", folder)
    kept = [contents(tmp_path / name) for name in ("model", "model-2")]
    assert sorted("".join(sorted(one.values())) for one in kept) == ["aa", "bb"]
    assert sum("holds what another run exported" in text for text in printed) == 1


def write(text: str):
    return lambda folder: (folder / "weights").write_text(text)


def test_export_of_the_same_content_is_not_kept_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    first = export("teacher", write("one"))
    assert first == trained_folder("teacher") == tmp_path / "models" / "teacher"
    assert export("teacher", write("one")) == first
    assert capsys.readouterr().out == ""
    assert export("teacher", write("two")).name == "teacher-2"
    assert "exported as teacher-2" in capsys.readouterr().out
    assert export("teacher", write("two")).name == "teacher-2"
    assert contents(first) == {"weights": "one"}
    assert export(tmp_path / "elsewhere" / "it", write("one")) == tmp_path / "elsewhere" / "it"


def test_what_is_kept_is_not_made_again(tmp_path):
    folder = put_in_place(tmp_path / "it", write("one"))
    assert put_in_place(folder, lambda _: pytest.fail("made again")) == folder


def test_nothing_is_left_of_what_failed(tmp_path):
    def fail(folder: Path) -> None:
        write("half")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_in_place(tmp_path / "it", fail)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ZooError, match="cannot be made"):
        put_in_place(tmp_path / "file" / "it", write("one"))
