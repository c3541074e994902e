"""A proof is a claim, named measurements, and inequalities between them that must hold.

In a recipe's ``proof.yaml``::

    proofs:
    - claim: Four scan directions reach every cell, one does not.
      measurements:
        four: {class_path: zoo.proofs.vision.vmamba.Reach, init_args: {forward_type: v05_noz}}
        one: {class_path: zoo.proofs.vision.vmamba.Reach, init_args: {forward_type: v051d_noz}}
      must_hold:
      - four.share == 1
      - one.share <= 0.55
"""

from __future__ import annotations

import ast
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zoo.errors import ZooError


class Measurement(ABC):
    """Something that can be measured; its settings are the arguments of its class."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Named numbers. The same settings give the same numbers, times excepted."""


@dataclass
class Proof:
    """What a ``proof.yaml`` holds a list of.

    Args:
        claim: the paper's claim in a sentence.
        measurements: by name.
        must_hold: inequalities such as ``ours.accuracy - baseline.accuracy >= 0.1``; numbers,
            names, arithmetic, ``min``, ``max`` and ``abs``.
    """

    claim: str
    measurements: dict[str, Measurement]
    must_hold: list[str]


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
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ZooError(f"must_hold: {text!r} cannot be read: {error.msg}") from error
    if not (
        isinstance(tree, ast.Compare) and len(tree.ops) == 1 and type(tree.ops[0]) in _RELATIONS
    ):
        signs = ", ".join(sign for sign, _ in _RELATIONS.values())
        raise ZooError(f"must_hold: {text!r} is no inequality, expected one of {signs} in it")
    left, right = (_value(side, text, measured) for side in (tree.left, tree.comparators[0]))
    sign, holds = _RELATIONS[type(tree.ops[0])]
    return Inequality(text, ast.unparse(tree.left), left, sign, right, bool(holds(left, right)))


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
