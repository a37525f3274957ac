"""The expressions of `onebox runs --where`, parsed by hand: nothing is ever evaluated as code.

    any  = all {"or" all}
    all  = one {"and" one}
    one  = "not" one | "(" any ")" | KEY OPERATOR VALUE | KEY ["not"] "in" "[" VALUE {"," VALUE} "]"

OPERATOR is == != < <= > >= or ~ (the value is a pattern with * and ?). VALUE is a number, true, false, null, a word or
a quoted text.
"""

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onebox.errors import BadInput, is_number
from onebox.runs.find import MISSING, Run

Test = Callable[[Run], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>==|!=|<=|>=|[<>~=()\[\],])|(?P<text>'[^']*'|"[^"]*")|(?P<word>[^\s=!<>~()\[\],'"]+))"""
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)
_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_WORDS = {"true": True, "false": False, "null": None}
_RESERVED = {"and", "or", "not", "in"}


@dataclass(frozen=True)
class Where:
    """A parsed expression.

    Attributes:
        test: whether a run meets it.
        keys: the keys that it names.
    """

    test: Test
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Value:
    text: str
    value: Any  # what it means where it is not compared with a text


def parse(text: str) -> Where:
    """Parse an expression.

    Raises:
        BadInput: it is not one; the message says where.
    """
    parser = _Parser(text)
    test = parser.any()
    if parser.tokens[parser.position][1]:
        parser.fail("and, or, or the end")
    return Where(test, tuple(dict.fromkeys(parser.keys)))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.keys: list[str] = []
        self.tokens: list[tuple[str, str]] = []  # kind, text
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                raise BadInput(f"--where {text}: cannot read {text[at:].strip()!r} (a quote that is not closed?)")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
        self.tokens.append(("end", ""))

    def any(self) -> Test:
        tests = [self.all()]
        while self.take("or"):
            tests.append(self.all())
        return tests[0] if len(tests) == 1 else lambda run: any(test(run) for test in tests)

    def all(self) -> Test:
        tests = [self.one()]
        while self.take("and"):
            tests.append(self.one())
        return tests[0] if len(tests) == 1 else lambda run: all(test(run) for test in tests)

    def one(self) -> Test:
        if self.take("not"):
            inner = self.one()
            return lambda run: not inner(run)
        if self.take("("):
            inner = self.any()
            if not self.take(")"):
                self.fail(")")
            return inner
        kind, key = self.tokens[self.position]
        if kind not in ("word", "text") or key in _RESERVED:
            self.fail("a key, such as val/joint_acc or optimizer.lr")
        self.position += 1
        key = key.strip("'\"")
        self.keys.append(key)
        return self.comparison(key)

    def comparison(self, key: str) -> Test:
        negated = self.take("not")
        if self.take("in"):
            values = self.list()
            return lambda run: any(_equal(run.value(key), value) for value in values) is not negated
        sign = "" if negated else self.tokens[self.position][1]
        if sign == "=":  # what everybody types once
            sign = "=="
        if sign not in ("==", "!=", "~", *_ORDERS):
            self.fail("== != < <= > >= ~ or in")
        self.position += 1
        value = self.value()
        if sign == "==":
            return lambda run: _equal(run.value(key), value)
        if sign == "!=":
            return lambda run: (
                not _equal(run.value(key), value) and (run.value(key) is not MISSING or value.value is None)
            )
        if sign == "~":
            return lambda run: _is_text(run.value(key)) and fnmatch.fnmatchcase(str(run.value(key)), value.text)
        return lambda run: _ordered(_ORDERS[sign], run.value(key), value)

    def list(self) -> Sequence[_Value]:
        if not self.take("["):
            self.fail("[ and a list of values")
        values = [self.value()]
        while self.take(","):
            values.append(self.value())
        if not self.take("]"):
            self.fail("] or ,")
        return values

    def value(self) -> _Value:
        kind, text = self.tokens[self.position]
        if kind == "text":
            value: Any = text[1:-1]
        elif kind == "word" and text not in _RESERVED:
            value = _WORDS.get(text, float(text) if _NUMBER.fullmatch(text) else text)
        else:
            self.fail("a value (a number, a word, or a quoted text)")
        self.position += 1
        return _Value(text.strip("'\""), value)

    def take(self, token: str) -> bool:
        """Whether the next token is this one; if so it is passed."""
        kind, text = self.tokens[self.position]
        if text != token or kind == "text":
            return False
        self.position += 1
        return True

    def fail(self, expected: str) -> Any:
        found = self.tokens[self.position][1] or "the end"
        raise BadInput(f"--where {self.text}: expected {expected}, found {found}")


def _equal(found: Any, value: _Value) -> bool:
    if isinstance(found, str):
        return found == value.text
    if found is MISSING or found is None:
        return value.value is None
    if isinstance(found, bool) or isinstance(value.value, bool):
        return found is value.value
    return bool(found == value.value)


def _ordered(compare: Callable[[Any, Any], bool], found: Any, value: _Value) -> bool:
    """False for what has no order: a text and a number, a run without the key."""
    if isinstance(found, str):
        return compare(found, value.text)
    return is_number(found) and is_number(value.value) and compare(found, value.value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float)
