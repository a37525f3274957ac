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
    """The runs that meet an expression, such as `best/joint_acc > .3 and loss/loc in [l1, giou]`.

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
    try:
        expression = _Expression(where)
    except (SyntaxError, ValueError, RecursionError) as error:
        why = f" ({error})" if type(error) is ValueError and str(error) else ""
        raise BadInput(
            f"{option} {where}: cannot be read{why}; write KEY == VALUE, != < <= > >= or ~, or KEY in [A, B], "
            "joined by and, or, not and parentheses"
        ) from error
    for key in expression.keys:
        if runs and all(run.value(key) is MISSING for run in runs):
            raise BadInput(f"{option}: {near_keys(key, runs)}")
    return [run for run in runs if expression.test(run)], expression.keys


class _Expression:
    """An expression as a `test` of runs, and the `keys` that it names.

    Python parses it with the name `_n` in place of its word number n, so no word of it can mean anything to Python.
    """

    def __init__(self, text: str) -> None:
        if rest := _TOKEN.sub("", text).strip():
            raise ValueError(f"{rest[0]} stands alone")
        self._words: list[str] = []
        self.keys: list[str] = []
        source = _TOKEN.sub(self._to_python, text).strip()
        self.test = self._test(ast.parse(source, mode="eval").body)

    def _to_python(self, token: re.Match[str]) -> str:
        sign, word = token.groups()
        if sign:
            return f" {_SIGNS.get(sign, sign)} "
        self._words.append(word)
        return f" _{len(self._words) - 1} "

    def _test(self, node: ast.AST) -> Test:
        match node:
            case ast.BoolOp(op=sign, values=nodes):
                tests, combine = [self._test(value) for value in nodes], all if isinstance(sign, ast.And) else any
                return lambda run: combine(test(run) for test in tests)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                negated = self._test(operand)
                return lambda run: not negated(run)
            case (
                ast.Compare(left=left, ops=[sign], comparators=[right])
                | ast.BinOp(left=left, op=ast.MatMult() as sign, right=right)
            ):
                return self._comparison(left, sign, right)
        raise ValueError("a key without an operator and a value" if isinstance(node, ast.Name) else "")

    def _comparison(self, left: ast.AST, sign: ast.AST, right: ast.AST) -> Test:
        if isinstance(right, ast.List) != isinstance(sign, ast.In | ast.NotIn):
            raise ValueError("'in' takes a list in brackets, other operators take one value")
        values = [self._word(item) for item in (right.elts if isinstance(right, ast.List) else [right])]
        key = self._word(left).strip("'\"")
        if key not in self.keys:
            self.keys.append(key)
        return lambda run: _holds(run.value(key), type(sign), values)

    def _word(self, node: ast.AST) -> str:
        if not isinstance(node, ast.Name):
            raise ValueError("an operator stands between a key and a value")
        return self._words[int(node.id[1:])]


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
