"""ListOps by its published rules (Nangia and Bowman 2018, with the lengths of Long Range Arena)."""

from __future__ import annotations

import random

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
#: How often a place below the deepest level is a digit, not another list.
DIGIT_SHARE = 0.75


def list_ops(
    random: random.Random,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
) -> tuple[str, int]:
    """A nested list of digits with an operation each, and what it comes to.

    Args:
        random: draws it.
        min_length, max_length: tokens, both excluded: operators, digits and closing brackets.
        max_depth: levels; a digit alone is one.
        max_args: most members of a list, of which each has two at least.

    Returns:
        the expression as the files hold it, a parenthesis around each pair, and 0..9.
    """
    while True:
        text, value, length = _tree(random, 1, max_depth, max_args)
        if min_length < length < max_length:
            return text, value


def _tree(random: random.Random, depth: int, max_depth: int, max_args: int) -> tuple[str, int, int]:
    """Text, value and number of tokens of an expression whose root is at a depth."""
    if depth >= max_depth or (depth > 1 and random.random() < DIGIT_SHARE):
        digit = random.randrange(10)
        return str(digit), digit, 1
    members = [
        _tree(random, depth + 1, max_depth, max_args) for _ in range(random.randint(2, max_args))
    ]
    operator = random.choice(OPERATORS)
    text = operator
    for member, _, _ in members:
        text = f"( {text} {member} )"
    value = evaluate(operator, [value for _, value, _ in members])
    return f"( {text} {END} )", value, 2 + sum(length for _, _, length in members)


def evaluate(operator: str, digits: list[int]) -> int:
    """Smallest, largest, median (rounded down) or sum modulo 10 of digits."""
    if operator == "[MIN":
        return min(digits)
    if operator == "[MAX":
        return max(digits)
    if operator == "[MED":
        ordered, half = sorted(digits), len(digits) // 2
        return ordered[half] if len(digits) % 2 else (ordered[half - 1] + ordered[half]) // 2
    return sum(digits) % 10
