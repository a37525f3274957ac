"""Arrays in files that processes share: what is in them is whole, and opened in a millisecond.

A cache folder holds `index/` (see `onebox.data.table`), `pixels/` (decoded images, see `stored_pixels`) and `features/`
(see `onebox.frozen_features`). Beside an array a `.json` file says what it is; its time of change is the last use.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from onebox.files import (
    alone,
    npz_columns,
    opened,
    read_cached,
    read_json,
    remove_unfinished,
    replacing,
    write_json,
    write_npz,
)

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # [N, H, W, 3], RGB
# A cache folder may be anywhere, as in a home folder: nothing else there is shown or removed.
OURS = re.compile(r"\.?[0-9a-f]{16,24}(-\d+)?\.(npz|pictures|pixels|rows|npy|json|lock)(\.\d+\.tmp)?")
ABOUT = {"data": str, **dict.fromkeys(("size", "images", "image_size"), int)}
KEY_BYTES = 16  # of the hash that stands for an image file's content
KINDS = {"index": "npz", "pixels": "pixels", "features": "npy"}  # folder -> suffix of the files that people care for


def stored_pixels(
    path: Path,
    keys: Sequence[bytes],
    side: int,
    *,
    decode: Callable[[Sequence[int], Pixels], Mapping[int, str]],
    about: Mapping[str, Any],
) -> tuple[Pixels, NDArray[np.int64], Mapping[int, str]]:
    """Decoded images in a file that all runs on a folder of images share; those that are not there yet are added.

    Rows are only ever appended, under a lock, so other processes read on. `<stem>.rows` has the key of each row and is
    written, whole, when the rows are: what a killed process leaves beyond it is overwritten by the next one.

    Args:
        path: the `.pixels` file; its name stands for the folder and how its images are decoded.
        keys: [N] hashes of the content of the files that are wanted.
        side: of the square images, px.
        decode: writes some of the images (numbers below N) into an array; returns what is wrong with those that it
            cannot.
        about: what people want to know of the file; `data` is where the images come from.

    Returns:
        The images in the file, mapped into memory, where writing to them changes no file; [N] which of them are the
        wanted ones, and what is wrong with those that are not there, by number.

    Raises:
        OSError: the folder cannot be written, or there is not enough space.
    """
    shape = (side, side, 3)
    size = side * side * 3
    bad: Mapping[int, str] = {}
    row_of = _stored_rows(path, size)
    if not row_of.keys() >= set(keys):
        with alone(path.with_suffix(".lock"), waiting=f"Waiting for another process that decodes {about['data']}"):
            row_of = _stored_rows(path, size)
            missing = {key: number for number, key in enumerate(keys) if key not in row_of}  # equal files but once
            if missing:
                remove_unfinished(path.with_suffix(".rows"))
                bad_keys = _append(path, shape, row_of, missing, decode)
                bad = {number: bad_keys[key] for number, key in enumerate(keys) if key in bad_keys}
            write_json(path.with_suffix(".json"), {**about, "size": side})
    with suppress(OSError):  # another user's cache
        os.utime(path.with_suffix(".json"))
    # c: pages are shared until written to, and PyTorch takes no read-only arrays.
    pixels = (
        np.memmap(path, np.uint8, "c", shape=(len(row_of), *shape)).view(np.ndarray)
        if row_of
        else np.empty((0, *shape), np.uint8)
    )
    return pixels, np.array([row_of.get(key, -1) for key in keys], dtype=np.int64), bad


def _stored_rows(path: Path, size: int) -> dict[bytes, int]:
    """Row of each key; `size` is that of an image in bytes."""
    keys = read_cached(path.with_suffix(".rows"), lambda file: npz_columns(file)["keys"].tolist())
    try:
        count = path.stat().st_size // size
    except FileNotFoundError:
        return {}
    return {key: row for row, key in enumerate((keys or [])[:count])}


def _append(
    path: Path,
    shape: tuple[int, int, int],
    row_of: dict[bytes, int],
    missing: Mapping[bytes, int],
    decode: Callable[[Sequence[int], Pixels], Mapping[int, str]],
) -> Mapping[bytes, str]:
    """Decode the missing images (key -> number) behind the last row, and enter those that can be decoded into `row_of`.

    Returns what is wrong with the others.
    """
    start = len(row_of)
    size = int(np.prod(shape))
    if not start:
        path.unlink(missing_ok=True)  # damaged, or no file of ours; processes that have it open keep it
    with path.open("r+b" if path.exists() else "w+b") as file:
        try:
            file.truncate(start * size)
            _reserve(file, start * size, (start + len(missing)) * size)
            new = np.memmap(path, np.uint8, "r+", offset=start * size, shape=(len(missing), *shape))
            bad = decode(list(missing.values()), new)
            good = [(place, key) for place, (key, number) in enumerate(missing.items()) if number not in bad]
            for row, (place, key) in enumerate(good):
                if row < place:
                    new[row] = new[place]
                row_of[key] = start + row
            new.flush()
        finally:
            file.truncate(len(row_of) * size)
    write_npz(path.with_suffix(".rows"), keys=np.array(list(row_of), f"V{KEY_BYTES}"))
    return {key: bad[number] for key, number in missing.items() if number in bad}


def open_array(
    path: Path,
    *,
    shape: tuple[int, ...],
    dtype: Callable[[], np.dtype[Any]],
    fill: Callable[[NDArray[Any]], None],
    about: dict[str, Any],
    doing: str | None,
) -> NDArray[Any]:
    """An array in a file, mapped into memory: processes share it, and writing to it changes no file.

    Several processes may call this at once; one makes the array, the others wait. One that is killed leaves nothing
    that another would take for complete.

    Args:
        path: the `.npy` file; its name stands for all that its content follows from.
        shape: of the array.
        dtype: gives that of its items; asked when there is no file yet.
        fill: writes the items.
        about: what people want to know of the file; `data` is where it comes from.
        doing: what `fill` does with that, for who waits; None not to wait.

    Raises:
        OSError: the folder cannot be written, or there is not enough space.
        Timeout: another process is making it, and `doing` is None.
    """
    array = _map(path, shape)
    if array is None:
        waiting = doing and f"Waiting for another process that {doing} {about['data']}"
        with alone(path.with_suffix(".lock"), waiting=waiting):
            array = _map(path, shape)
            if array is None:
                if os.path.lexists(path):
                    log.warning("%s is damaged; it is made again", path)
                remove_unfinished(path)
                with replacing(path) as temporary:
                    array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype(), shape=shape)
                    with temporary.open("r+b") as file:
                        _reserve(file, array.offset, temporary.stat().st_size)
                    fill(array)
                    array.flush()
                    write_json(path.with_suffix(".json"), {**about, "header": _header(temporary, array)})
                    del array
                array = _map(path, shape)
    if array is None:
        raise OSError(f"{path} vanished while it was opened")
    with suppress(OSError):  # another user's cache, or one without a description
        os.utime(path.with_suffix(".json"))
    return array


def _map(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        with opened(path, None):
            array = np.load(path, mmap_mode="c")
        # A header with a flipped bit may still be one, of other numbers.
        is_whole = read_json(path.with_suffix(".json"))["header"] == _header(path, array)
    except Exception:  # there is none, or a damaged one, which raises anything
        return None
    return array.view(np.ndarray) if is_whole and array.shape == shape else None


def _header(path: Path, array: Any) -> str:
    """A hash of what stands before the items of a mapped array."""
    with opened(path, None) as file:
        return hashlib.sha256(file.read(array.offset)).hexdigest()


def _reserve(file: IO[bytes], start: int, end: int) -> None:
    """Give bytes of a file, zeros, their space on the disk: a process whose mapped file outgrows the disk is killed."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, end - start)
    else:
        file.seek(start)
        for _ in range(start, end, 1 << 20):
            file.write(bytes(1 << 20))
        file.truncate(end)


@dataclass(frozen=True)
class Entry:
    """One file of a cache folder."""

    path: Path  # the file
    kind: str  # `index`, `pixels` or `features`
    data: str  # folder of the images or the tree, and of features what made them
    images: int  # how many
    size: tuple[int, ...]  # height and width of the images, px; empty for an index
    num_bytes: int  # size of the file
    last_use: datetime  # when it was last opened (an index: written)


def entries(cache_dir: Path) -> list[Entry]:
    """What a cache folder holds, the last used first."""
    found = []
    for kind, suffix in KINDS.items():
        for path in (cache_dir / kind).glob(f"[!.]*.{suffix}"):
            if OURS.fullmatch(path.name) and path.is_file():
                used = path.with_suffix(".json") if path.with_suffix(".json").exists() else path
                last_use = datetime.fromtimestamp(used.stat().st_mtime, UTC)
                found.append(Entry(path, kind, *_describe(path), num_bytes=path.stat().st_size, last_use=last_use))
    return sorted(found, key=lambda entry: entry.last_use, reverse=True)


def _describe(path: Path) -> tuple[str, int, tuple[int, ...]]:
    """Where it comes from, number of images and their height and width."""
    try:
        if path.suffix == ".npz":
            with opened(path, None) as file:
                index = npz_columns(file)
            return str(json.loads(bytes(index["words"]))["folder"]), len(index["stamps"]), ()
        about = read_json(path.with_suffix(".json"), shape=ABOUT)
        if path.suffix == ".pixels":
            side = about["size"]
            return str(about["data"]), len(_stored_rows(path, side * side * 3)), (side, side)
        data = f"{about['data']}: {about['split']}, view {about['view']}, {about['backbone']}"
        return data, about["images"], (about["image_size"],) * 2
    except Exception:  # damaged files are to be seen as well, and to be cleared
        return "unknown", 0, ()


def clear(cache_dir: Path) -> tuple[int, int]:
    """Remove what a cache folder holds, but for what is being made at the moment.

    Returns:
        How many bytes were freed, and how many files another process was busy with.
    """
    freed = busy = 0
    for kind in KINDS:
        files = [path for path in (cache_dir / kind).glob("*") if OURS.fullmatch(path.name) and path.is_file()]
        for stem in sorted({path.name.lstrip(".").partition(".")[0] for path in files}):
            lock = FileLock(cache_dir / kind / f"{stem}.lock")
            try:
                # The empty file of the lock stays: another process may be about to take this very one.
                with lock.acquire(timeout=0):
                    for path in files:
                        if path.name.lstrip(".").startswith(f"{stem}.") and path.suffix != ".lock":
                            freed += path.stat().st_size
                            path.unlink()
            except Timeout:
                busy += 1
    return freed, busy
