"""`eval(...)` in recipes of SparseML, without evaluating any code: + - * / ** and brackets over numbers and the recipe's variables.

SparseML hands these strings to Python's own evaluator. Here they are parsed, and only arithmetic is computed, with limits
on length, depth and size of numbers; a call, an attribute, an index or a name that is no variable is refused.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from tailcut.errors import InputError

MAX_LENGTH: Final = 200
MAX_LEVELS: Final = 16  # variables that are defined by variables
_LARGEST: Final = 1e15
_BINARY: Final[Mapping[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # floats only: no integers of a million digits
}
_HEAD, _TAIL = "eval(", ")"


def resolve(value: Any, variables: Mapping[str, Any], source: str, level: int = 0) -> Any:  # noqa: ANN401  (plain data)
    """Plain data with every `eval(...)` string replaced by its number; InputError for anything that is not arithmetic."""
    if isinstance(value, dict):
        return {key: resolve(item, variables, source, level) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, variables, source, level) for item in value]
    if not isinstance(value, str):
        return value
    text = value.strip()
    if "{{" in text or "{%" in text:
        raise InputError(f"{source}: {_shown(text)} is a template; fill it in before it is read here")
    if _HEAD not in text:
        return value
    if not (text.startswith(_HEAD) and text.endswith(_TAIL)):
        raise InputError(f"{source}: {_shown(text)} mixes text with eval(); write the value")
    return _number(text[len(_HEAD) : -len(_TAIL)], variables, source, level)


def _number(text: str, variables: Mapping[str, Any], source: str, level: int) -> float:
    if len(text) > MAX_LENGTH:
        raise InputError(
            f"{source}: an eval() of {len(text)} characters, at most {MAX_LENGTH} are read; write the value"
        )
    if level >= MAX_LEVELS:
        raise InputError(
            f"{source}: eval({_shown(text)}) leads from variable to variable {MAX_LEVELS} times; write the value"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval")
        found = _value(tree.body, variables, source, level)
    except (SyntaxError, ValueError, OverflowError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{source}: eval({_shown(text)}) has no value ({type(error).__name__}); write the value"
        ) from error
    if not math.isfinite(found) or abs(found) > _LARGEST:
        raise InputError(f"{source}: eval({_shown(text)}) is {found}, which no setting is; write the value")
    return found


def _value(node: ast.expr, variables: Mapping[str, Any], source: str, level: int) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = (_value(side, variables, source, level) for side in (node.left, node.right))
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand, variables, source, level)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Name):
        return _variable(node.id, variables, source, level)
    kind = type(node).__name__.lower()
    raise InputError(
        f"{source}: eval() holds a {kind}; only + - * / ** over numbers and variables is read, no code is run"
    )


def _variable(name: str, variables: Mapping[str, Any], source: str, level: int) -> float:
    if name not in variables:
        raise InputError(f"{source}: eval() names {name[:40]!r}, which is no variable of the recipe; write the value")
    found = resolve(variables[name], variables, source, level + 1)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"{source}: eval() computes with {name}, which is not a number")
    return float(found)


def _shown(text: str) -> str:
    return repr(text[:60])
