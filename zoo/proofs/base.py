"""A proof is a claim, named measurements, and inequalities between them that must hold.

In a recipe's ``proof.yaml``::

    proofs:
    - claim: Four scan directions reach every cell, one does not.
      labels: {four: four directions, one: one direction}
      measurements:
        four: {class_path: zoo.proofs.vmamba.Reach, init_args: {forward_type: v05_noz}}
        one: {class_path: zoo.proofs.vmamba.Reach, init_args: {forward_type: v051d_noz}}
      must_hold:
      - four.share == 1
      - one.share <= 0.55
"""

from __future__ import annotations

import ast
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from zoo.errors import ZooError
from zoo.plots.proofs import Curve, Pictures

#: Seeds that a recorded verdict needs.
SEEDS = (0, 1, 2)


@dataclass
class Measured:
    """What a measurement gives: numbers for the inequalities, and what is drawn.

    Args:
        values: named numbers.
        curves: lines, drawn into one panel with those of other measurements that have equal axes.
        pictures: name -> picture, for each of a few samples; those that are the same in several
            measurements (input, truth) are drawn once.
    """

    values: dict[str, float]
    curves: list[Curve] = field(default_factory=list)
    pictures: list[Pictures] = field(default_factory=list)


class Measurement(ABC):
    """Something that can be measured; its settings are the arguments of its class.

    Attributes:
        settings: as a recipe gives them; set by what reads the recipe.
    """

    #: Whether the seed changes anything.
    seeded: ClassVar[bool] = True
    #: Modules whose code it runs without importing them, see :mod:`zoo.proofs.kept`.
    runs: ClassVar[Sequence[str]] = ()

    settings: Any = None

    @abstractmethod
    def measure(self, seed: int) -> Measured:
        """Measure once. Weights, made data and everything else that is drawn follow from the seed;
        the same settings and seed give the same numbers, times excepted. Times are values whose
        names begin with ``seconds``.
        """

    def made_from(self, seed: int) -> str:
        """Text of what it depends on beyond settings and code, such as a recipe."""
        return ""


@dataclass
class Proof:
    """What a ``proof.yaml`` holds a list of.

    Args:
        claim: the paper's claim in a sentence.
        measurements: by name.
        must_hold: inequalities such as ``ours.accuracy - baseline.accuracy >= 0.1``; numbers,
            names, arithmetic, ``min``, ``max`` and ``abs``. The first is the one that tables show.
        labels: what figures call the measurements: the mechanism, the baseline.
        show: names of the pictures and titles of the panels that are drawn, in order; all by
            default.

    Raises:
        ZooError: an inequality compares times by something else than a ratio of two or more, which
            the next machine would not repeat; or a label belongs to no measurement.
    """

    claim: str
    measurements: dict[str, Measurement]
    must_hold: list[str]
    labels: dict[str, str] = field(default_factory=dict)
    show: list[str] | None = None

    def __post_init__(self) -> None:
        for text in self.must_hold:
            _check_times(text)
        for name in self.labels:
            if name not in self.measurements:
                raise ZooError(
                    f"labels: no measurement {name!r}, there are {list(self.measurements)}"
                )

    def label(self, name: str) -> str:
        """What figures call a measurement."""
        return self.labels.get(name, name.replace("_", " "))


@dataclass
class Inequality:
    """One checked inequality: what was measured on its left, the threshold on its right."""

    text: str
    left: str
    measured: float
    relation: str
    threshold: float
    holds: bool


_RELATIONS = {
    ast.GtE: (">=", operator.ge),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.Lt: ("<", operator.lt),
    ast.Eq: ("==", operator.eq),
}
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}


def check(text: str, measured: Mapping[str, Mapping[str, float]]) -> Inequality:
    """Evaluate an inequality over measurements: ``measured[name][metric]`` is ``name.metric``.

    Raises:
        ZooError: if it is no inequality, or names something that was not measured.
    """
    tree = _parse(text)
    left, right = (_value(side, text, measured) for side in (tree.left, tree.comparators[0]))
    sign, holds = _RELATIONS[type(tree.ops[0])]
    return Inequality(text, ast.unparse(tree.left), left, sign, right, bool(holds(left, right)))


def _parse(text: str) -> ast.Compare:
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ZooError(f"must_hold: {text!r} cannot be read: {error.msg}") from error
    if not (
        isinstance(tree, ast.Compare) and len(tree.ops) == 1 and type(tree.ops[0]) in _RELATIONS
    ):
        signs = ", ".join(sign for sign, _ in _RELATIONS.values())
        raise ZooError(f"must_hold: {text!r} is no inequality, expected one of {signs} in it")
    return tree


def _check_times(text: str) -> None:
    tree = _parse(text)
    if not any(
        isinstance(node, ast.Attribute) and node.attr.startswith("seconds")
        for node in ast.walk(tree)
    ):
        return
    match tree:
        case ast.Compare(
            left=ast.BinOp(op=ast.Div()),
            ops=[sign],
            comparators=[ast.Constant(value=int() | float() as threshold)],
        ) if (isinstance(sign, ast.Gt | ast.GtE) and threshold >= 2) or (
            isinstance(sign, ast.Lt | ast.LtE) and threshold <= 0.5
        ):
            return
    raise ZooError(
        f"must_hold: {text!r} judges a time, which differs from run to run: expected a ratio of "
        "times that is >= 2 or <= 0.5"
    )


def _value(node: ast.expr, text: str, measured: Mapping[str, Mapping[str, float]]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Attribute(value=ast.Name(id=name), attr=metric):
            if name not in measured:
                raise ZooError(
                    f"must_hold: {text!r}: no measurement {name!r}, there are {list(measured)}"
                )
            if metric not in measured[name]:
                raise ZooError(
                    f"must_hold: {text!r}: {name!r} measures {list(measured[name])}, not {metric!r}"
                )
            return measured[name][metric]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](
                _value(left, text, measured), _value(right, text, measured)
            )
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, text, measured)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            values = [_value(argument, text, measured) for argument in args]
            return values[0] if len(values) == 1 and name != "abs" else _FUNCTIONS[name](*values)
    raise ZooError(f"must_hold: {text!r}: cannot use {ast.unparse(node)!r} in it")
