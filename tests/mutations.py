"""Small changes to a module's arithmetic, as changed syntax trees.

:func:`mutants` finds the places. What no test of a formula could notice is left out from the start:
docstrings, type hints, errors and their conditions' bounds, strings that name nothing known, rates
of dropout, initial values, and what matters to speed or memory alone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Name -> what stands in its place, as a function, a method or a module.
EXCHANGES = {
    **{"relu": "sigmoid", "gelu": "silu", "silu": "gelu", "sigmoid": "tanh", "tanh": "sigmoid"},
    **{"ReLU": "LeakyReLU", "GELU": "SiLU", "SiLU": "GELU", "Sigmoid": "Tanh", "Tanh": "Sigmoid"},
    **{"LeakyReLU": "ReLU", "leaky_relu": "relu", "ELU": "ReLU", "elu": "relu", "PReLU": "ReLU"},
    **{
        "softplus": "relu",
        "softmax": "log_softmax",
        "log_softmax": "softmax",
        "Softmax": "Softmin",
    },
    **{"logsigmoid": "sigmoid", "exp": "sinh", "log": "log1p", "log1p": "log", "expm1": "exp"},
    **{"sum": "mean", "mean": "sum", "amax": "amin", "amin": "amax", "argmax": "argmin"},
    **{"max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum", "argmin": "argmax"},
    **{"cumsum": "cumprod", "logsumexp": "sum", "any": "all", "all": "any", "floor": "ceil"},
    **{"ceil": "floor", "std": "var", "var": "std", "sin": "cos", "cos": "sin", "triu": "tril"},
    **{"tril": "triu", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like"},
    **{"ones_like": "zeros_like", "new_zeros": "new_ones", "new_ones": "new_zeros"},
    **{"max_pool2d": "avg_pool2d", "avg_pool2d": "max_pool2d", "MaxPool2d": "AvgPool2d"},
    **{"AvgPool2d": "MaxPool2d", "LayerNorm": "RMSNorm", "RMSNorm": "LayerNorm"},
    **{"adaptive_avg_pool2d": "adaptive_max_pool2d", "AdaptiveAvgPool2d": "AdaptiveMaxPool2d"},
    **{"square": "abs", "sqrt": "square", "rsqrt": "sqrt", "l1_loss": "mse_loss"},
    **{"mse_loss": "l1_loss", "smooth_l1_loss": "mse_loss", "isfinite": "isnan"},
}
#: Builtins of the same names compare sizes; a set or a number has no ``mean``.
BUILTIN_EXCHANGES = {"max": "min", "min": "max", "any": "all", "all": "any"}
STRINGS = {
    **{"bilinear": "nearest", "bicubic": "bilinear", "nearest": "bicubic", "trilinear": "nearest"},
    **{"replicate": "constant", "reflect": "constant", "mean": "sum", "sum": "mean"},
    **{"silu": "gelu", "gelu": "silu", "relu": "gelu"},
}
#: Methods that can be left out of a chain, ``x.flip(1)`` -> ``x``.
DROPPED = {
    *("flip", "roll", "transpose", "permute", "abs", "exp", "log", "sqrt", "square", "neg", "mT"),
    *("clamp", "clamp_", "relu", "relu_", "sigmoid", "tanh", "softmax", "log_softmax", "detach"),
    *(
        "masked_fill",
        "cumsum",
        "tril",
        "triu",
        "unsqueeze",
        "squeeze",
        "add",
        "mul",
        "div",
        "floor",
    ),
    *("round", "argsort", "reciprocal", "logical_not", "swapaxes", "T"),
}
#: Functions of one value that can be left out, ``f(x)`` -> ``x``.
DROPPED_FUNCTIONS = {"reversed", "abs", "exp", "flip", "roll", "relu", "silu", "softplus", "sqrt"}
#: Functions that do not mind the order of their first two arguments, or have no sense in another.
UNORDERED = {
    *("min", "max", "maximum", "minimum", "isinstance", "getattr", "hasattr", "setattr", "zip"),
    *("register_parameter", "add_module", "register_buffer", "add", "mul", "super", "partial"),
    *("promote_types", "fromkeys", "sub", "replace"),
}
#: Keywords without influence on the result.
IDLE_KEYWORDS = {
    *("strict", "inplace", "use_reentrant", "stable", "persistent", "non_blocking", "copy"),
    *("device", "dtype", "source", "requires_grad", "chunk_size", "std", "gain", "maxsize"),
}
#: Functions whose bodies are about something else than the result.
IDLE_FUNCTIONS = {"extra_repr", "__repr__", "__getattr__", "__dir__"}
#: Calls, and functions, that set initial values.
INITIAL = ("init", "reset_parameters", "trunc_normal_", "uniform_", "normal_", "kaiming", "xavier")


@dataclass
class Mutant:
    """One change: at ``place`` of the tree stands ``new`` instead of ``old``.

    Attributes:
        lines: numbers of the source lines whose execution the change needs; empty if it is executed
            with the import.
        text: the first of the source lines it stands in.
        change: before and after, in words.
    """

    place: tuple[ast.AST, str, int | None]
    new: ast.AST
    lines: range
    line: int
    text: str
    change: str

    def apply(self) -> None:
        """Change the tree in place."""
        parent, name, index = self.place
        if index is None:
            setattr(parent, name, self.new)
        else:
            getattr(parent, name)[index] = self.new


@dataclass
class _Context:
    """Where the walk is."""

    statement: ast.stmt | None = None
    function: ast.AST | None = None
    keyword: str = ""
    guard: bool = False  # in the condition of an if that only raises
    parent: ast.AST | None = field(default=None, repr=False)


def mutants(tree: ast.Module, source: str) -> list[Mutant]:
    """All changes to a module; each applies to the tree as it is."""
    lines = source.splitlines()
    return list(_walk(tree, _Context(), lines))


def _walk(node: ast.AST, where: _Context, lines: list[str]) -> Iterator[Mutant]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases", "ops"):
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if not isinstance(child, ast.AST) or _is_idle(child, node, name):
                continue
            context = copy.copy(where)
            context.parent = node
            if isinstance(child, ast.stmt):
                context.statement, context.keyword, context.guard = child, "", False
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                context.function = node if name == "body" else where.function
            if isinstance(node, ast.arguments):
                context.keyword = _argument_of_default(node, name, index)
            if isinstance(child, ast.keyword):
                context.keyword = child.arg or ""
            if isinstance(node, ast.Dict) and name == "values":
                key = node.keys[index]
                context.keyword = str(key.value) if isinstance(key, ast.Constant) else ""
            if isinstance(node, ast.If) and name == "test":
                context.guard = all(isinstance(s, ast.Raise) for s in node.body)
            if _is_idle_keyword(context.keyword):
                continue
            place = (node, name, index if isinstance(value, list) else None)
            for new in _changes(child, context):
                yield _mutant(place, child, new, context, lines)
            yield from _walk(child, context, lines)


def _is_idle(node: ast.AST, parent: ast.AST, name: str) -> bool:
    """Whether nothing in this part can change a result."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return True
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return (
            node.name in IDLE_FUNCTIONS
            or any(part in node.name for part in INITIAL[1:])
            or (node.name.lstrip("_").startswith("init_"))
        )
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    call = node.value if isinstance(node, ast.Expr) else node
    return isinstance(call, ast.Call) and any(
        part in ast.unparse(call.func).replace("__init__", "") for part in INITIAL
    )


def _is_idle_keyword(keyword: str) -> bool:
    return keyword in IDLE_KEYWORDS or "drop" in keyword or keyword.startswith("dt_init")


def _argument_of_default(arguments: ast.arguments, name: str, index: int) -> str:
    """Name of the argument whose default is walked."""
    if name == "defaults":
        named = [*arguments.posonlyargs, *arguments.args]
        return named[len(named) - len(arguments.defaults) + index].arg
    return arguments.kwonlyargs[index].arg if name == "kw_defaults" else ""


def _mutant(place: Any, old: ast.AST, new: ast.AST, where: _Context, lines: list[str]) -> Mutant:
    statement = where.statement
    first, last = getattr(old, "lineno", 1), getattr(old, "end_lineno", 1)
    if statement is not None and not hasattr(statement, "body"):
        first, last = statement.lineno, statement.end_lineno or statement.lineno
    ast.copy_location(new, old)
    ast.fix_missing_locations(new)
    line = getattr(old, "lineno", first)
    after = "nothing" if isinstance(new, ast.Pass) else ast.unparse(new)
    return Mutant(
        place,
        new,
        range(first, last + 1) if where.function is not None else range(0),
        line,
        lines[line - 1].strip(),
        f"{ast.unparse(old)} -> {after}",
    )


# One kind of change after the other


def _changes(node: ast.AST, where: _Context) -> Iterator[ast.AST]:
    """What can stand in the place of a node."""
    if isinstance(node, ast.Constant):
        yield from _constants(node, where)
    elif isinstance(node, ast.BinOp):
        yield from _operations(node)
    elif isinstance(node, ast.UnaryOp):
        if isinstance(node.op, (ast.USub, ast.Not)) and not isinstance(node.operand, ast.Constant):
            yield node.operand
    elif isinstance(node, ast.Compare):
        yield from _comparisons(node, where)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield ast.BoolOp(other, node.values)
    elif isinstance(node, (ast.Attribute, ast.Name)):
        yield from _names(node, where)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Slice):
        yield from _slices(node)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield from _conditions(node)
    elif isinstance(node, ast.stmt):
        yield from _statements(node)


def _constants(node: ast.Constant, where: _Context) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int) and not where.guard:
        if where.keyword in ("dim", "axis") or _is_dim(where.parent, node):
            yield ast.Constant({0: 1, 1: 0}.get(value, value - 1))
        elif isinstance(where.parent, ast.UnaryOp) or not _is_power(where.parent, node):
            yield ast.Constant(value + 1)
    elif isinstance(value, float) and value and abs(value) < 1e9:
        yield ast.Constant(value * 1.5)
    elif isinstance(value, str) and value in STRINGS:
        yield ast.Constant(STRINGS[value])


def _is_dim(parent: ast.AST | None, node: ast.AST) -> bool:
    """Whether a constant is the dimension of a method such as ``x.flip(1)``."""
    methods = {"flip", "chunk", "softmax", "sum", "mean", "cat", "stack", "amax", "unsqueeze"}
    return (
        isinstance(parent, ast.Call)
        and isinstance(parent.func, ast.Attribute)
        and parent.func.attr in methods
        and node in parent.args
        and not (parent.func.attr == "chunk" and node is parent.args[0])
    )


def _is_power(parent: ast.AST | None, node: ast.AST) -> bool:
    return isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Pow) and node is parent.left


def _operations(node: ast.BinOp) -> Iterator[ast.AST]:
    left, right = node.left, node.right
    if any(isinstance(side, (ast.JoinedStr, ast.List, ast.Tuple)) for side in (left, right)) or any(
        isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (left, right)
    ):
        return
    swapped = ast.BinOp(right, node.op, left)
    if isinstance(node.op, ast.Add):
        yield ast.BinOp(left, ast.Sub(), right)
        yield left
        yield right
    elif isinstance(node.op, ast.Sub):
        yield ast.BinOp(left, ast.Add(), right)
        yield swapped
        yield left
    elif isinstance(node.op, ast.Mult):
        yield left
        yield right
    elif isinstance(node.op, ast.Div):
        yield ast.BinOp(left, ast.Mult(), right)
        yield left
    elif isinstance(node.op, ast.FloorDiv):
        yield left
        yield ast.BinOp(node, ast.Add(), ast.Constant(1))
    elif isinstance(node.op, (ast.MatMult, ast.Mod)):
        yield swapped
    elif isinstance(node.op, ast.Pow):
        yield ast.BinOp(left, ast.Mult(), right)
    elif isinstance(node.op, (ast.BitAnd, ast.BitOr)):
        yield ast.BinOp(
            left, ast.BitOr() if isinstance(node.op, ast.BitAnd) else ast.BitAnd(), right
        )


def _comparisons(node: ast.Compare, where: _Context) -> Iterator[ast.AST]:
    exchange = {
        ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
        ast.In: ast.NotIn, ast.NotIn: ast.In,
        ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt,
    }  # fmt: skip
    bounds = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
    for table in (exchange, {} if where.guard else bounds):
        for i, op in enumerate(node.ops):
            if type(op) in table:
                ops = [*node.ops[:i], table[type(op)](), *node.ops[i + 1 :]]
                yield ast.Compare(node.left, ops, node.comparators)


def _names(node: ast.Attribute | ast.Name, where: _Context) -> Iterator[ast.AST]:
    """Another activation, reduction, norm or pooling."""
    if not isinstance(node.ctx, ast.Load):
        return
    called = isinstance(where.parent, ast.Call) and where.parent.func is node
    if isinstance(node, ast.Attribute):
        if node.attr in EXCHANGES and (called or node.attr[0].isupper()):
            yield ast.Attribute(node.value, EXCHANGES[node.attr], node.ctx)
        elif node.attr in ("mT", "T"):
            yield node.value
    elif called and node.id in BUILTIN_EXCHANGES:
        yield ast.Name(BUILTIN_EXCHANGES[node.id], node.ctx)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    """Left out, or with its first two arguments exchanged."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    is_method = isinstance(node.func, ast.Attribute) and not _is_module(node.func.value)
    if is_method and name in DROPPED:
        yield node.func.value
    elif not is_method and name in DROPPED_FUNCTIONS and node.args:
        yield node.args[0]
    if is_method and name in ("chunk", "split", "unbind", "tensor_split"):
        return  # the exchange of what they give to names is a change of its own
    arguments = node.args
    if len(arguments) == 1 and isinstance(arguments[0], (ast.List, ast.Tuple)) and name != "super":
        parts = arguments[0].elts
        if len(parts) > 1 and not any(isinstance(part, ast.Constant) for part in parts[:2]):
            swapped = type(arguments[0])([parts[1], parts[0], *parts[2:]], ast.Load())
            yield ast.Call(node.func, [swapped], node.keywords)
    plain = (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.BinOp)
    if name in UNORDERED or len(arguments) < 2:
        return
    first, second = arguments[:2]
    if (
        isinstance(first, plain)
        and isinstance(second, plain)
        and ast.dump(first) != ast.dump(second)
    ):
        yield ast.Call(node.func, [second, first, *arguments[2:]], node.keywords)


def _is_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in (
        "torch",
        "F",
        "nn",
        "math",
        "np",
        "ops",
        "linalg",
    )


def _slices(node: ast.Slice) -> Iterator[ast.AST]:
    """Bounds that are no constants off by one."""
    if node.lower is not None and not _is_constant(node.lower):
        yield ast.Slice(ast.BinOp(node.lower, ast.Add(), ast.Constant(1)), node.upper, node.step)
    if node.upper is not None and not _is_constant(node.upper):
        yield ast.Slice(node.lower, ast.BinOp(node.upper, ast.Sub(), ast.Constant(1)), node.step)


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
    )


def _conditions(node: ast.If | ast.IfExp | ast.While) -> Iterator[ast.AST]:
    """The other way round, where no comparison in it is exchanged already."""
    if isinstance(node.test, (ast.Compare, ast.BoolOp)):
        return
    if isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not):
        return
    if ast.unparse(node.test).endswith("is_scripting()"):
        return
    changed = copy.copy(node)
    changed.test = ast.UnaryOp(ast.Not(), node.test)
    yield changed


def _statements(node: ast.stmt) -> Iterator[ast.AST]:
    """Left out, or with its first two targets exchanged."""
    if isinstance(node, ast.AugAssign):
        yield ast.Pass()
        opposite = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
        if type(node.op) in opposite:
            yield ast.AugAssign(node.target, opposite[type(node.op)](), node.value)
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Name) and _mentions(node.value, target.id):
            yield ast.Pass()
        unpacks = isinstance(target, ast.Tuple) and len(target.elts) > 1
        if (
            unpacks
            and not isinstance(node.value, ast.Tuple)
            and not any(isinstance(part, ast.Starred) for part in target.elts[:2])
        ):
            parts = [target.elts[1], target.elts[0], *target.elts[2:]]
            yield ast.Assign([ast.Tuple(parts, ast.Store())], node.value)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        if "super()" not in ast.unparse(node.value.func):
            yield ast.Pass()
    elif isinstance(node, ast.For) and isinstance(node.target, ast.Tuple):
        return


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))
