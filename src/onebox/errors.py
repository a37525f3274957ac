"""Errors that a user can put right, and text as people read it."""

import errno
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell gives it

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room; a run then resumes with resume=FOLDER"),
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or lower data.num_workers",
    errno.EAGAIN: "raise the limit of processes (ulimit -u) or lower data.num_workers",
    errno.ENOMEM: "lower data.batch_size, data.num_workers or image_size, or raise the limit (ulimit -v)",
}
# How libraries say it in words.
_LIMITS_IN_WORDS = {
    "allocate memory|failed to map segment|out of memory|bad_alloc|returned NULL without": errno.ENOMEM,
    "Too many open files|ancdata": errno.EMFILE,
    "File too large": errno.EFBIG,
    "No space left": errno.ENOSPC,
    "start new thread": errno.EAGAIN,
}
_WORKER_ENDED = "a loader process ended: it was killed, or could not hand over a batch; set data.num_workers=0"

NO_CHDIR = (
    "hydra.job.chdir=true: all that a run writes goes to its directory anyway, and relative paths would mean other "
    "places; leave it false"
)

Line = list[tuple[str, str]]  # pieces of text, each with a style of rich


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


def exit_with(error: Exception, text: str, program: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print `text` as one line and leave with an exit code; with ONEBOX_DEBUG=1 show the traceback."""
    if os.environ.get("ONEBOX_DEBUG") == "1":
        raise error
    say(f"{program}: {' '.join(text.split())}")
    sys.exit(code)


def exit_with_os_error(error: OSError, program: str, *, elsewhere: str) -> NoReturn:
    """Say in one line what the system refused; an error that names neither a file nor a limit is raised again."""
    is_limit = error.errno in REMEDIES
    if error.filename is None and not is_limit:
        raise error
    where = "" if error.filename is None else f"{error.filename}: "
    remedy = REMEDIES.get(error.errno or 0, f"permit it, or choose {elsewhere}")
    exit_with(error, f"{where}{error.strerror}; {remedy}", program, EXIT_FAULT if is_limit else EXIT_BAD_INPUT)


def limit_of_system(error: BaseException) -> str | None:
    """One line on the limit of the system that an error, or one that it followed on, is about; None if on none."""
    found: BaseException | None = error
    while found is not None:
        number = found.errno if isinstance(found, OSError) else errno.ENOMEM if isinstance(found, MemoryError) else None
        if isinstance(found, RuntimeError | ImportError | SystemError):
            number = next((value for words, value in _LIMITS_IN_WORDS.items() if re.search(words, str(found))), None)
        if number in REMEDIES:
            return f"{os.strerror(number)}; {REMEDIES[number]}"
        if re.match(r"DataLoader worker \(pid.* (exited unexpectedly|killed by signal)", str(found)):
            return _WORKER_ENDED
        found = found.__cause__ or found.__context__
    return None


def say(text: object) -> None:
    """Print one line for people to standard error, see `printable`."""
    print(printable(str(text)), file=sys.stderr)


def print_json(value: object) -> None:
    """Print one JSON document; what would steer a terminal is escaped in it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)

    def escaped(match: re.Match[str]) -> str:
        return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]

    print(re.sub(r"[^\x20-\x7e\n]", escaped, text))


def check(condition: bool, message: str) -> None:
    """Raise `BadInput(message)` unless `condition` holds."""
    if not condition:
        raise BadInput(message)


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a number, not a truth value nor NaN, in [low, high]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_finite(value: object) -> bool:
    """Whether `value` is a number that can be computed with; an integer in JSON may have thousands of digits."""
    return is_number(value, -1e300, 1e300)


def is_integer(value: object, low: int, high: float = math.inf) -> bool:
    """Whether `value` is a whole number, not a truth value, in [low, high]."""
    return isinstance(value, int) and is_number(value, low, high)


def print_lines(lines: Iterable[Line], console: "Console | None" = None) -> None:
    """Print styled lines, which a terminal breaks where it has to."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    for line in lines:
        console.print(Text.assemble(*((printable(text), style) for text, style in line)), soft_wrap=True)


def printable(text: str) -> str:
    """`text` on one line, without characters that would steer a terminal: each becomes U+FFFD, a line break a space."""
    return "".join(char if char.isprintable() else " " if char in "\t\n\r" else "\ufffd" for char in text)


def duration(seconds: float) -> str:
    """A duration, as short as it makes sense: `2.5 s`, `48 s`, `1:05 min`, `2:01 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
