"""A run directory belongs to one process at a time and to one config for good; run.json says how its run ended."""

import fcntl
import logging
import os
import stat
import struct
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from onebox.errors import BadInput, Preempted, check, is_finite
from onebox.files import read_json, remove_unfinished, write_json

log = logging.getLogger(__name__)

SCHEMA = 1
RESERVED = 1 << 17  # bytes; run.json is a fifth of that
_ATTEMPT: dict[str, Any] = {
    **dict.fromkeys(("status", "source", "host", "started"), str),
    "seconds": is_finite,
    "error": dict,
    "data_fingerprint": {"*": str},
    "checkpoints_removed": str,
}
RECORD: dict[str, Any] = {  # the shape of run.json, see `onebox.files.misfit`
    **_ATTEMPT,
    **dict.fromkeys(("name", "fingerprint", "fingerprint_seedless", "weights_fingerprint", "pruned"), str),
    **dict.fromkeys(("parent", "parent_how", "parent_fingerprint"), str),
    "attempts": [_ATTEMPT],
    "config": {"fingerprint_ignore": [str], "fingerprint_neutral": dict},
    "choices": {"*": str},
    "interpolated": {"*": str},
    "overrides": [str],
    "sets": {"*": {"keys": [str], "groups": [str]}},
    "own_code": {"*": str},
    "git": {"sha": str, "branch": str, "patch": str, "changed": [str], "left_out": [str]},
    "hardware": dict,
    "seed": is_finite,
}
# What is kept of an earlier one.
ATTEMPT = ("status", "started", "ended", "seconds", "error", "host", "source", "checkpoints_removed")
ENDED = ("completed", "pruned")  # statuses that no attempt changes any more
WRITTEN = (  # what a run writes beside run.json
    *("config.yaml", "metrics.json", "metrics.csv", "trace.csv", "samples.npz", "predictions.csv", "predictions.jpg"),
    *("report.html", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/previous.ckpt"),
)
CHECKPOINTS = ("last.ckpt", "best.ckpt", "previous.ckpt", "new.ckpt")  # that a run writes to its `checkpoints`
_held: dict[Path, TextIO] = {}
_FLOCK = "hhqqi4x"  # struct flock of Linux: type, whence, start, length, process


def claim(folder: Path, *, fingerprint: str, resume: str) -> dict[str, Any] | None:
    """Take a run directory for this process, until `release` or its end; again, where it has it already.

    `resume` is `auto`, which accepts a run of the same fingerprint that has not `ENDED`, or `never`, which accepts no
    run. Returns what run.json says of the run to resume; None when there is none.

    Raises:
        BadInput: the directory cannot be taken; nothing in it was changed.
    """
    facts = read_record(folder)
    if facts is None and folder.absolute() not in _held:
        others = [name for name in WRITTEN if os.path.lexists(folder / name)]
        check(
            not others, f"{folder}: holds {', '.join(others)} of no run; choose another hydra.run.dir or move that away"
        )
    if facts is not None:
        status, theirs = facts.get("status"), facts.get("fingerprint")
        holds, instead = f"{folder}: already holds a run", "choose another hydra.run.dir or remove the folder"
        check(status not in ENDED and resume != "never", f"{holds} ({status}); {instead}")
        other = f"of another config (fingerprint {theirs}, not {fingerprint})"
        check(theirs == fingerprint, f"{holds}, {other}; {instead}")
    return take_directory(folder, wait=False)


def release(folder: Path) -> None:
    """Let other processes claim the directory."""
    if folder.absolute() in _held:
        _held.pop(folder.absolute()).close()


def is_held(folder: Path | str, *, unknown: bool) -> bool:
    """Whether a process has the directory, this one included. Disturbs none; `unknown` where it cannot be told."""
    path = os.path.join(folder, ".lock")
    try:
        lock = os.stat(path)
        if any(os.path.samestat(lock, os.fstat(file.fileno())) for file in _held.values()):
            return True  # to open and close the file would end the lock
        if sys.platform != "linux" or not stat.S_ISREG(lock.st_mode):
            return unknown  # struct flock has another layout there; and a pipe would never open
        with open(path, "rb") as file:
            wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            found = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wanted))
    except FileNotFoundError:
        return False
    except OSError:  # a file system without locks
        return unknown
    return bool(found[0] != fcntl.F_UNLCK)


def read_record(folder: Path | str, known: dict[tuple[str, bytes], Any] | None = None) -> dict[str, Any] | None:
    """What run.json says; None when there is none. `known` keeps what is alike in many, see `onebox.files.read_json`.

    Raises:
        BadInput: it cannot be read, is a link, which may lead anywhere, or not what a run writes.
    """
    path = os.path.join(folder, "run.json")
    check(not os.path.islink(path), f"{path}: is a link; remove it")
    try:
        remedy = "remove the folder or choose another"
        facts: dict[str, Any] = read_json(path, shape=RECORD, remedy=remedy, known=known)
    except FileNotFoundError:
        return None
    return facts


def stored_checkpoints(folder: Path) -> dict[Path, os.stat_result]:
    """The checkpoints that a run has written; no link is followed, and what else lies beside them is not looked at."""
    found = {}
    for path in (folder / "checkpoints" / name for name in CHECKPOINTS):
        with suppress(OSError):
            if not path.parent.is_symlink() and stat.S_ISREG((state := path.lstat()).st_mode):
                found[path] = state
    return found


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that has ended; run.json says so from then on.

    Raises:
        BadInput: another process is running it, or it is no run.
    """
    check(take_directory(folder, wait=False) is not None, f"{folder}: is no run any more")
    try:
        # First, so that a kill in between leaves no run of which nothing says where its checkpoints are.
        removed = {"checkpoints_removed": _text(datetime.now(UTC))}
        write_json(folder / "run.json", read_json(folder / "run.json") | removed)
        for path in stored_checkpoints(folder):
            path.unlink()
    finally:
        release(folder)


def why_no_checkpoint(facts: Mapping[str, Any]) -> str:
    """When `remove_checkpoints` removed those of a run, for people; empty if it did not."""
    when = str(facts.get("checkpoints_removed") or "")
    return when and f"its checkpoints were removed by onebox prune on {when[:10]}"


def take_directory(folder: Path, *, wait: bool) -> dict[str, Any] | None:
    """Take a run directory whatever is in it; `wait` while another process has it. Returns what run.json says."""
    if folder.absolute() not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        # A pipe, which would wait for its reader, fails at once.
        descriptor = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
        file = os.fdopen(descriptor, "a")
        try:
            _lock(file, folder, wait=wait)
        except OSError as error:
            log.warning("%s: cannot be locked (%s); do not start a second process on it", folder, error)
        _held[folder.absolute()] = file
    remove_unfinished(folder / "run.json")
    try:
        facts = read_record(folder)  # another process may have written until now
    except BadInput:
        release(folder)
        raise
    # Of a process that was killed. In a folder without run.json nothing is ours, nor is anything deeper down.
    for place in (folder, folder / "checkpoints") if facts is not None else ():
        for unfinished in place.glob(".*.[0-9]*.tmp"):
            unfinished.unlink()
    return facts


def _lock(file: TextIO, folder: Path, *, wait: bool) -> None:
    # lockf, as a lock by flock would live on in loader workers, seconds after their parent was killed.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # EAGAIN, EACCES
        if not wait:
            file.close()
            taken = f"{folder}: another process is running it; wait, or choose another hydra.run.dir"
            raise BadInput(taken) from error
        log.info("%s: another process is running it; waiting", folder)
        fcntl.lockf(file, fcntl.LOCK_EX)


class RunRecord:
    """A run directory that this process has claimed: keeps run.json true, and releases the directory at the end.

    As a context manager it writes `running` at the start and at the end `completed`, `pruned` (by the search that it
    is a job of), `interrupted` (Ctrl-C, SIGTERM) or `failed` with the reason, and names the command that resumes an
    interrupted run. A killed run still says `running`.

    The last attempt of a run that is resumed, whose run.json is `earlier`, moves to `attempts`. `facts` are recorded
    from the start.
    """

    def __init__(self, folder: Path, earlier: Mapping[str, Any] | None = None, **facts: Any) -> None:
        self.folder = folder
        self.writes = True  # whether this process writes the results
        self._facts: dict[str, Any] = {"schema": SCHEMA, "status": "running", **facts}
        if earlier is not None:
            attempt = {key: earlier.get(key) for key in ATTEMPT} | {"sha": (earlier.get("git") or {}).get("sha")}
            self._facts["attempts"] = [*earlier.get("attempts", []), attempt]

    @classmethod
    def of_rank(cls, folder: Path, number: int) -> Self:
        """The record as rank `number` has it when another process keeps it; only rank 0 adds to it."""
        record = cls(folder)
        record.writes = number == 0
        # Where torchrun or srun has started the others, rank 0 may not have written yet: they see whether there is a
        # checkpoint.
        record._facts = read_json(folder / "run.json") if record.writes else {"attempts": []}
        return record

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier attempt began the run."""
        return "attempts" in self._facts

    @property
    def is_pruned(self) -> bool:
        """Whether its search has ended it."""
        return "pruned" in self._facts

    def add(self, **facts: Any) -> None:
        self._facts |= facts
        if self.writes:
            write_json(self.folder / "run.json", self._facts)

    def reread(self) -> None:
        """Take over what rank 0 has added."""
        self._facts = read_json(self.folder / "run.json")

    def __enter__(self) -> Self:
        from onebox.runs.own_code import own_code_of
        from onebox.runs.provenance import provenance  # of no use to what only reads runs

        try:
            self._reserve(RESERVED)
            about = provenance(self.folder, own_code_of(self._facts))
            self.add(started=_text(datetime.now(UTC)), command=sys.argv, **about)
        except BaseException:  # whatever it is, the directory must not stay claimed
            release(self.folder)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from onebox.runs.own_code import resume_command

        about: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
        facts: dict[str, Any] = {"status": "failed", "error": about, **_ended(self._facts["started"])}
        if error is None:
            facts["status"] = "pruned" if self.is_pruned else "completed"
            del facts["error"]
        elif isinstance(error, KeyboardInterrupt | Preempted):
            facts["status"] = "interrupted"
            about["message"] = str(error) or "stopped by Ctrl-C"
            is_stored = (self.folder / "checkpoints" / "last.ckpt").exists()
            then = "resumes it" if is_stored else "starts it again, as nothing was stored yet"
            error.args = (f"{about['message']}; {resume_command(self.folder, self._facts)} {then}",)
        else:
            about["traceback"] = "".join(traceback.format_exception(error))
        try:
            self._reserve(0)
            self.add(**facts)
        finally:
            release(self.folder)

    def _reserve(self, size: int) -> None:
        """Let the lock's file take up `size` bytes: where a full disk ends the run, run.json can still say so."""
        file = _held.get(self.folder.absolute())
        if file is not None and hasattr(os, "posix_fallocate"):
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.ftruncate(file.fileno(), 0)


def record_failure(folder: Path, error: Mapping[str, Any], **facts: Any) -> None:
    """Let run.json say that a run failed, with `type` and `message`, whose process could not say so itself.

    What another process is running, or has completed, is left alone; so is a reason that is written already. `facts`,
    at least `fingerprint`, are recorded when there is no run.json at all.
    """
    try:
        found = claim(folder, fingerprint=facts["fingerprint"], resume="auto")
    except BadInput:
        return
    try:
        if found is None or found.get("status") != "failed":
            found = found or {"schema": SCHEMA, "started": _text(datetime.now(UTC)), **facts}
            failed = {"status": "failed", **_ended(found.get("started")), "error": dict(error)}
            write_json(folder / "run.json", found | failed)
    finally:
        release(folder)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _ended(started: str | None) -> dict[str, Any]:
    now = datetime.now(UTC)
    facts: dict[str, Any] = {"ended": _text(now)}
    with suppress(TypeError, ValueError):  # of a record that somebody else wrote
        facts["seconds"] = round((now - datetime.fromisoformat(started or "")).total_seconds(), 1)
    return facts
