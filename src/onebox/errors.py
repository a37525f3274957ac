"""Errors that a user can put right."""

import math
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell gives it


class BadInput(Exception):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where, and what to do. The entry points print it without
    a traceback and exit with code 2.
    """


class Preempted(BaseException):
    """A scheduler asks the process to end (SIGTERM). No `Exception`, as nothing between is to handle it."""


class JobFailed(Exception):
    """A job of a sweep failed without an exception that could be handed on; the message says how."""


class Stopped(Exception):
    """A job of a sweep was stopped before its end, or not started; the message says why."""


class SweepFailed(Exception):
    """Jobs of a sweep failed; the message is one line that says how many."""


class RankFailed(Exception):
    """One of a run's processes failed or was killed; the message is one line that says which, and how."""


def own_complaint(error: BaseException) -> BaseException:
    """The `BadInput` that a constructor raised and Hydra wrapped, which says more than Hydra does, or `error`."""
    return error.__cause__ if isinstance(error.__cause__, BadInput) else error


def exit_with(error: Exception, text: str, program: str) -> NoReturn:
    """Print `text` as one line and leave with the exit code of bad input; with ONEBOX_DEBUG=1 show the traceback."""
    if os.environ.get("ONEBOX_DEBUG") == "1":
        raise error
    print(f"{program}: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def check(condition: bool, message: str) -> None:
    """Raise `BadInput(message)` unless `condition` holds."""
    if not condition:
        raise BadInput(message)


def refuse(problems: Mapping[str, bool]) -> None:
    """Raise one `BadInput` that names all problems which are so.

    Args:
        problems: what is wrong and what to do -> whether it is so.
    """
    found = [text for text, is_so in problems.items() if is_so]
    if found:
        raise BadInput("; ".join(found))


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a number, not a truth value nor NaN, in [low, high]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_integer(value: object, low: int, high: float = math.inf) -> bool:
    """Whether `value` is a whole number, not a truth value, in [low, high]."""
    return isinstance(value, int) and is_number(value, low, high)
