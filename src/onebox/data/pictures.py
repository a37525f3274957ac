"""What image files are: their content's hash and what their headers say, remembered until a file changes."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onebox.data.image import Header, read_header
from onebox.data.processes import num_cores, progress
from onebox.files import alone, replacing

log = logging.getLogger(__name__)

DIGEST_BYTES = 16
FACT = np.dtype([("file", f"V{DIGEST_BYTES}"), ("digest", f"V{DIGEST_BYTES}"), ("length", "<i8"), ("header", "<i4", 4)])


class Picture(NamedTuple):
    """An image file: hash of its content, 16 bytes, and its length; what its header says, or what is wrong with it."""

    digest: bytes
    length: int
    header: Header | str


def read_pictures(files: Sequence[str], path: Path) -> list[Picture]:
    """Look at image files; those that `path` remembers, and that have not changed since, are not opened.

    A folder that cannot be written costs a warning and the time to look again.
    """
    keys = list(map(_key, files))
    known = _load(path)
    new = [number for number, key in enumerate(keys) if key not in known]
    looked: dict[int, Picture] = {}
    if new:
        pool = ThreadPoolExecutor(num_cores())  # reading and hashing let go of the interpreter
        try:
            pictures = pool.map(_look, [files[number] for number in new])
            looked = dict(zip(new, progress(pictures, total=len(new), description="looking at images"), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C is not to wait for all the others
        sound = {keys[number]: picture for number, picture in looked.items() if not isinstance(picture.header, str)}
        _save(path, known | sound)
    return [looked[number] if number in looked else known[key] for number, key in enumerate(keys)]


def _key(file: str) -> bytes:
    """A hash of the file's path, size, times and inode: with another content at least one of them is another."""
    try:
        state = os.stat(file)
    except OSError:
        return b""  # is said when it is read
    stamp = (file, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)
    return hashlib.blake2b(repr(stamp).encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).digest()


def _look(file: str) -> Picture:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        return Picture(b"", 0, f"cannot be read ({error.strerror}); restore the file")
    return Picture(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest(), len(data), read_header(data))


def _load(path: Path) -> dict[bytes, Picture]:
    try:
        facts = np.fromfile(path, FACT)
    except OSError:  # not there yet
        return {}
    columns = (facts[name].tolist() for name in ("file", "digest", "length", "header"))
    return {
        key: Picture(digest, length, Header(width, height, turn, bool(deep)))
        for key, digest, length, (width, height, turn, deep) in zip(*columns, strict=True)
    }


def _save(path: Path, known: Mapping[bytes, Picture]) -> None:
    facts = np.array([(key, *picture) for key, picture in known.items() if key], FACT)
    try:
        with (
            alone(path.with_suffix(".lock"), waiting=f"Waiting for another process that writes {path}"),
            replacing(path) as temporary,
        ):
            facts.tofile(temporary)
    except (OSError, NotImplementedError) as error:  # filelock raises the second where a folder cannot be locked
        log.warning("%s: cannot be kept (%s); free some space or set data.cache_dir", path, error)
