"""The changes of tests.mutations, put in place by tests.patching."""

import ast
import importlib
import os
import sys

import pytest
import yaml

from tests.mutations import mutants
from tests.patching import functions_of, learn, patch
from tests.tiny import ROOT

SURVIVORS = ROOT / "tests" / "survivors.yaml"
SOURCE = """
from dataclasses import dataclass, field
import functools

SCALE = 3
TABLE = {"wide": (2, 5)}

class Base:
    def area(self, x):
        return x * 7

class Square(Base):
    factor = 11

    def area(self, x):
        return super().area(x) + self.factor

@dataclass
class Settings:
    width: int = 13
    made: list = field(default_factory=list)

def wrapped(function):
    @functools.wraps(function)
    def call(x):
        return function(x) - 17
    return call

@wrapped
def shifted(x, by=19):
    return x + by + SCALE + TABLE["wide"][1]

double, triple = (lambda x: x * 23), (lambda x: x * 29)

def all_values(x):
    return Square().area(x), Settings().width, shifted(x), double(x), triple(x)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    file = tmp_path / "zoo_of_changes.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(file.stem)
    del sys.modules[file.stem]


def after(module, change: str) -> str:
    """What a fork of this process computes after one change; "" if the change ends it."""
    tree = ast.parse(SOURCE)
    (mutant,) = [m for m in mutants(tree, SOURCE) if m.change == change]
    learn(module.__file__, ast.parse(SOURCE))
    functions = functions_of(module.__file__)
    get, put = os.pipe()
    if os.fork() == 0:
        try:
            mutant.apply()
            patch(module, module.__file__, tree, functions, at_import=not mutant.lines)
            os.write(put, repr(module.all_values(2)).encode())
        finally:
            os._exit(0)
    os.wait()
    os.close(put)
    with os.fdopen(get) as answer:
        return answer.read()


def test_survivors_are_changes_that_there_are():
    gone = []
    for name, entries in yaml.safe_load(SURVIVORS.read_text(encoding="utf-8")).items():
        source = (ROOT / name).read_text(encoding="utf-8")
        known = {(m.text, m.change) for m in mutants(ast.parse(source), source)}
        for entry in entries:
            assert entry["reason"]
            line, change = entry["line"], entry.get("change")
            if not any(line == text and change in (None, other) for text, other in known):
                gone.append(f"{name}: {line}: {change}")
    assert not gone, "explained, but no longer there"


@pytest.mark.parametrize(
    ("change", "place", "value"),
    [
        ("7 -> 8", 0, 27),
        ("11 -> 12", 0, 26),
        ("super().area(x) + self.factor -> self.factor", 0, 11),  # the closure of super goes
        ("13 -> 14", 1, 14),
        ("17 -> 18", 2, 11),
        ("19 -> 20", 2, 13),
        ("3 -> 4", 2, 13),
        ("5 -> 6", 2, 13),
        ("23 -> 24", 3, 48),
        ("29 -> 30", 4, 60),
    ],
)
def test_a_change_is_seen_everywhere_and_alone(module, change, place, value):
    expected = [25, 13, 12, 46, 58]
    assert module.all_values(2) == tuple(expected)
    expected[place] = value
    assert after(module, change) == repr(tuple(expected))
