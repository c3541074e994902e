"""What ``make test`` leaves to ``make test-all``: tests that take seconds and have faster ones of
their kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any

import pytest


def tiers(values: Iterable[Any], *, slow: Collection[Any]) -> list[Any]:
    """Parameters of a test; those in ``slow`` are marked so."""
    values = list(values)
    assert set(slow) <= set(values), f"not there: {sorted(set(slow) - set(values))}"
    return [pytest.param(v, marks=pytest.mark.slow) if v in slow else v for v in values]


def all_but_first(values: Iterable[Any], kind: Callable[[Any], Hashable]) -> list[Any]:
    """The values of which an earlier one is of the same kind."""
    seen: set[Hashable] = set()
    return [v for v in values if (k := kind(v)) in seen or seen.add(k)]
