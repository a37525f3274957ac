"""The expressions of `onebox runs --where` and `sweep.exclude`: Python's grammar, but nothing is evaluated as code."""

import ast
import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from onebox.errors import BadInput, is_number
from onebox.runs.reading.find import MISSING, Run, near_keys

Test = Callable[[Run], bool]

_TOKEN = re.compile(
    r"""\s*(?:(==|!=|<=|>=|[<>~=()\[\],]|(?:and|or|not|in)(?![^\s=!<>~()\[\],'"]))"""
    r"""|('[^']*'|"[^"]*"|[^\s=!<>~()\[\],'"]+))"""
)
_SIGNS = {"=": "==", "~": "@"}  # what everybody types once; a sign of Python that no expression has otherwise
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)
_WORDS = {"true": True, "false": False, "null": None}
_ORDERS = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}


def select(runs: Sequence[Run], where: str, option: str = "--where") -> tuple[list[Run], list[str]]:
    """The runs that meet an expression, such as `val/joint_acc > .3 and loss/loc in [l1, giou]`.

    To the left of a sign stands a key of `Run.value`, to its right a value: a number, true, false, null, a word, or a
    quoted text; after `~` a pattern with * and ?. A comparison with what a run does not have is false.

    Args:
        runs: to choose from.
        where: the expression.
        option: what messages call it.

    Returns:
        The runs, and the keys that the expression names.

    Raises:
        BadInput: it is no such expression, or no run has one of its keys.
    """
    words: list[str] = []
    keys: list[str] = []

    def python(token: re.Match[str]) -> str:
        """A sign as Python has it; a word as the name `_n`, where n is its place in `words`."""
        sign, text = token.groups()
        if sign is None:
            words.append(text)
        return f" {_SIGNS.get(sign, sign) if sign else f'_{len(words) - 1}'} "

    def word(node: ast.AST) -> str:
        if not isinstance(node, ast.Name):
            raise ValueError("a sign stands between a key and a value")
        return words[int(node.id[1:])]

    def comparison(left: ast.AST, sign: ast.AST, right: ast.AST) -> Test:
        is_list = isinstance(right, ast.List)
        if is_list != isinstance(sign, ast.In | ast.NotIn):
            raise ValueError("in takes a list in brackets, other signs take one value")
        values = [word(item) for item in (right.elts if isinstance(right, ast.List) else [right])]
        keys.append(key := word(left).strip("'\""))
        return lambda run: _holds(run.value(key), type(sign), values)

    def test(node: ast.AST) -> Test:
        match node:
            case ast.BoolOp():
                tests, joined = [test(value) for value in node.values], all if isinstance(node.op, ast.And) else any
                return lambda run: joined(one(run) for one in tests)
            case ast.UnaryOp(op=ast.Not()):
                inner = test(node.operand)
                return lambda run: not inner(run)
            case ast.Compare(ops=[sign], comparators=[right]):
                return comparison(node.left, sign, right)
            case ast.BinOp(op=ast.MatMult()):
                return comparison(node.left, node.op, node.right)
        raise ValueError("a key stands alone" if isinstance(node, ast.Name) else "")

    try:
        if rest := _TOKEN.sub("", where).strip():
            raise ValueError(f"{rest[0]} stands alone")
        meets = test(ast.parse(_TOKEN.sub(python, where).strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError) as error:
        why = f" ({error})" if type(error) is ValueError and str(error) else ""
        raise BadInput(
            f"{option} {where}: cannot be read{why}; write KEY == VALUE, != < <= > >= or ~, or KEY in [A, B], "
            "joined by and, or, not and parentheses"
        ) from error
    for key in keys:
        if runs and all(run.value(key) is MISSING for run in runs):
            raise BadInput(f"{option}: {near_keys(key, runs)}")
    return [run for run in runs if meets(run)], list(dict.fromkeys(keys))


def _holds(found: Any, sign: type[ast.AST], texts: Sequence[str]) -> bool:
    values = [text.strip("'\"") if isinstance(found, str) or sign is ast.MatMult else _value(text) for text in texts]
    if sign is ast.MatMult:
        return isinstance(found, str | int | float) and fnmatch.fnmatchcase(str(found), values[0])
    if sign in _ORDERS:
        has_order = isinstance(found, str) or (is_number(found) and is_number(values[0]))
        return has_order and _ORDERS[sign](found, values[0])
    known = None if found is MISSING else found
    is_one = any(known == value and isinstance(known, bool) == isinstance(value, bool) for value in values)
    return is_one if sign in (ast.Eq, ast.In) else not is_one and (sign is ast.NotIn or found is not MISSING)


def _value(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    return _WORDS.get(text, float(text) if _NUMBER.fullmatch(text) else text)
