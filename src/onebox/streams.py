"""What a command prints: lost where nobody can receive it, which ends no run."""

import errno
import io
import logging
import os
import resource
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from onebox.errors import EXIT_FAULT, BadInput, check, printable

MAX_TEMPDIR = 64  # bytes
GONE = (errno.EPIPE, errno.EIO)  # a reader that has had enough, a terminal that was closed


ERASE = "\r\x1b[2K"  # what stands on the terminal's last line


class _Stream(io.FileIO):
    """Standard output or standard error. What cannot be written is dropped; `error` is the reason of the last time."""

    error: OSError | None = None
    has_bar = False  # of the class: whether there is one, which whatever is printed takes the place of

    def write(self, data) -> int:  # type: ignore[no-untyped-def]  # typeshed's buffers are not there when it runs
        try:
            if _Stream.has_bar and self.isatty():
                _Stream.has_bar = False
                super().write(ERASE.encode())
            return super().write(data)
        except OSError as error:
            self.error = error
            return len(data)


class _Record(logging.LogRecord):
    """What onebox logs: file names, class names and messages of other people are in it."""

    def getMessage(self) -> str:
        message = super().getMessage()
        return printable(message) if self.name.startswith("onebox") else message


def open_streams(*, line_buffering: bool | None = None) -> list[_Stream]:
    """Let standard output and error of this process drop what they cannot write, and print any character somehow.

    By default lines are buffered as before. What is logged does not steer the terminal either.
    """
    logging.setLogRecordFactory(_Record)
    # What was closed by `>&-` would be the number of the next file to be opened, which would receive what is printed.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    streams = []
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):
            continue  # somebody's who looks at what is printed
        if old is not None:
            old.flush()
        raw = _Stream(number, "w", closefd=False)
        unbuffered = getattr(old, "write_through", False)  # PYTHONUNBUFFERED
        stream = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),
            encoding=getattr(old, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=getattr(old, "line_buffering", False) if line_buffering is None else line_buffering,
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        streams.append(raw)
    return streams


def draw_bar(text: str) -> None:
    """Let a text stand on the terminal's last line until anything is printed or drawn; an empty one erases it."""
    print(ERASE + text, end="", flush=True)
    _Stream.has_bar = bool(text)


def check_limits(num_workers: int = 0) -> None:
    """Refuse limits of this process with which nothing can be trained: some libraries abort or wait for ever there.

    Raises:
        OSError: of the number that `onebox.errors.REMEDIES` knows.
    """
    files = 64 + 32 * num_workers  # each worker takes some for each batch on its way
    for name, least, number in (("RLIMIT_NOFILE", files, errno.EMFILE), ("RLIMIT_AS", 4 << 30, errno.ENOMEM)):
        soft, hard = resource.getrlimit(getattr(resource, name))
        if 0 <= soft < least:  # -1: none
            if 0 <= hard < least:
                raise OSError(number, os.strerror(number))
            resource.setrlimit(getattr(resource, name), (least, hard))


def _leave_to_main_thread(args: threading.ExceptHookArgs) -> None:
    """What TensorBoard's thread cannot write is raised where the next value is logged, so it is not printed here."""
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


def _use_short_tempdir() -> None:
    """Let TMPDIR be a folder in which processes can talk: a socket's path has at most 104 bytes, 32 of them theirs.

    Python passes over a folder that is missing, read-only or full; other libraries would not.
    """
    try:
        found = tempfile.gettempdir()
        if len(os.fsencode(found)) > MAX_TEMPDIR:
            os.environ["TMPDIR"] = ""
            tempfile.tempdir = None
            found = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise BadInput("no folder for temporary files can be written; set TMPDIR to one") from error
    too_long = f"{found}: too long a path for sockets; set TMPDIR to a folder of at most {MAX_TEMPDIR} letters"
    check(len(os.fsencode(found)) <= MAX_TEMPDIR, too_long)
    os.environ["TMPDIR"] = found


@contextmanager
def command_line(program: str) -> Iterator[None]:
    """Around a console command; leaves with an error when what was printed has filled a disk.

    Raises:
        BadInput: the working directory is gone.
    """
    streams = open_streams()
    threading.excepthook = _leave_to_main_thread
    _use_short_tempdir()
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise BadInput("the working directory has been deleted; change to one that exists") from error
    try:
        yield
    finally:
        sys.stdout.flush()
        for lost in (stream.error for stream in streams):
            if lost is not None and lost.errno not in GONE:
                print(f"{program}: what it prints cannot be written: {lost.strerror}", file=sys.stderr)
                sys.exit(EXIT_FAULT)
