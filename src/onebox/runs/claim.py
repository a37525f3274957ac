"""Whose a run directory is: one process at a time, one config for good."""

import errno
import fcntl
import json
import logging
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any, TextIO

from onebox.errors import BadInput, check
from onebox.files import read_json

log = logging.getLogger(__name__)

_held: dict[Path, TextIO] = {}
_FLOCK = "hhqqi4x"  # struct flock of Linux: type, whence, start, length, process


def claim(folder: Path, *, fingerprint: str, resume: str) -> dict[str, Any] | None:
    """Take a run directory for this process, until `release` or its end.

    Args:
        folder: the run directory; need not exist.
        fingerprint: of the config that is to run there.
        resume: `auto` accepts a run of the same fingerprint that did not complete; `never` accepts no run.

    Returns:
        What run.json says of the run that is to be resumed; None when there is none yet.

    Raises:
        BadInput: the directory cannot be taken; nothing in it was changed.
    """
    facts = _facts(folder)
    if facts is not None:
        status, theirs = facts.get("status"), facts.get("fingerprint")
        holds, instead = f"{folder}: holds a run already", "choose another hydra.run.dir or remove the folder"
        check(status != "completed" and resume != "never", f"{holds} ({status}); {instead}")
        other = f"of another config (fingerprint {theirs}, not {fingerprint})"
        check(theirs == fingerprint, f"{holds}, {other}; {instead}")
    return _take(folder, wait=False)


def claim_after_others(folder: Path) -> dict[str, Any] | None:
    """Take a run directory for this process, whatever is in it; waits while another process has it.

    Returns:
        What run.json says; None when there is none.
    """
    try:
        return _take(folder, wait=False)
    except BadInput:
        log.info("%s: another process is running it; waiting", folder)
        return _take(folder, wait=True)


def release(folder: Path) -> None:
    """Let other processes have the directory."""
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


def _facts(folder: Path) -> dict[str, Any] | None:
    path = folder / "run.json"
    try:
        facts: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path}: not valid JSON ({error}); remove the folder or choose another hydra.run.dir"
        ) from error
    return facts


def _take(folder: Path, *, wait: bool) -> dict[str, Any] | None:
    if folder.absolute() not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
        try:
            # lockf, as a lock by flock would live on in loader workers, seconds after their parent was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise BadInput(
                    f"{folder}: another process is running it; wait, or choose another hydra.run.dir"
                ) from error
            log.warning("%s: cannot be locked (%s); do not start a second process on it", folder, error)
        _held[folder.absolute()] = file
    for unfinished in folder.rglob(".*.tmp"):  # of a process that was killed
        unfinished.unlink()
    return _facts(folder)  # another process may have written until now
