"""Arrays in files that processes share: made once, whole or not at all, opened in a millisecond.

A cache folder holds `index/` (see `onebox.data.catalog`), `pixels/` (decoded images) and `features/` (see
`onebox.frozen_features`): for each set of images one `.npy` file, which is mapped into memory, and beside it a `.json`
file that says what it is and whose time of change is its last use.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from onebox.data.table import Ints, read_words
from onebox.files import alone, read_json, remove_unfinished, replacing, write_json

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # [N, H, W, 3], RGB
KINDS = {"index": ".npz", "pixels": ".npy", "features": ".npy"}


def pixels_key(ids: Sequence[str], stamps: Ints, resizing: str) -> str:
    """Name of the cache for these images.

    Args:
        ids: N names.
        stamps: [N, 2] size in bytes and time of change in ns of the image files.
        resizing: how images are decoded and brought to the model's size.
    """
    digest = hashlib.sha256("\0".join([resizing, *ids]).encode("utf-8", "surrogateescape"))
    digest.update(stamps.astype("<i8").tobytes())
    return digest.hexdigest()[:24]


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
                if path.exists():
                    log.warning("%s is damaged, and is made again", path)
                remove_unfinished(path)
                with replacing(path) as temporary:
                    _reserve(temporary, shape, dtype())
                    array = np.lib.format.open_memmap(temporary, mode="r+")
                    fill(array)
                    array.flush()
                    del array
                write_json(path.with_suffix(".json"), about)
                array = _map(path, shape)
    if array is None:
        raise OSError(f"{path} vanished while it was opened")
    with suppress(OSError):  # another user's cache, or one without a description
        os.utime(path.with_suffix(".json"))
    return array


def _map(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        # c: pages are shared until written to, and PyTorch takes no read-only arrays.
        array = np.load(path, mmap_mode="c").view(np.ndarray)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return array if array.shape == shape else None


def _reserve(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write an .npy file of zeros that has its space on the disk: a mapped file that outgrows the disk is killed."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        file.flush()
        size = file.tell() + math.prod(shape) * dtype.itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for _ in range(file.tell(), size, 1 << 20):
                file.write(bytes(1 << 20))
        file.truncate(size)


@dataclass(frozen=True)
class Entry:
    """One file of a cache folder.

    Attributes:
        path: the file.
        kind: `index`, `pixels` or `features`.
        data: folder of the images or the tree, and of features what made them.
        images: how many.
        size: height and width of the images, px; empty for an index.
        num_bytes: size of the file.
        last_use: when it was last opened (an index: written).
    """

    path: Path
    kind: str
    data: str
    images: int
    size: tuple[int, ...]
    num_bytes: int
    last_use: datetime


def entries(cache_dir: Path) -> list[Entry]:
    """What a cache folder holds, the last used first."""
    found = []
    for kind, suffix in KINDS.items():
        for path in (cache_dir / kind).glob(f"[!.]*{suffix}"):
            about = _describe(path)
            used = path.with_suffix(".json") if path.with_suffix(".json").exists() else path
            last_use = datetime.fromtimestamp(used.stat().st_mtime, UTC)
            found.append(Entry(path, kind, **about, num_bytes=path.stat().st_size, last_use=last_use))
    return sorted(found, key=lambda entry: entry.last_use, reverse=True)


def clear(cache_dir: Path) -> tuple[int, int]:
    """Remove what a cache folder holds, but for what is being made at the moment. Other files stay.

    Returns:
        How many bytes were freed, and how many files another process was busy with.
    """
    freed = busy = 0
    for kind, suffix in KINDS.items():
        folder = cache_dir / kind
        stems = {path.name.removesuffix(suffix) for path in folder.glob(f"[!.]*{suffix}")}
        stems |= {path.stem for path in folder.glob("[!.]*.lock")}
        for stem in sorted(stems):
            lock = FileLock(folder / f"{stem}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                busy += 1
                continue
            try:
                path = folder / f"{stem}{suffix}"
                freed += _remove([path, path.with_suffix(".json"), *folder.glob(f".{stem}*.tmp")])
            finally:
                lock.release()  # the empty file stays: another process may be about to take this very lock
    return freed, busy


def _describe(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npy":
            about = read_json(path.with_suffix(".json"))
            if path.parent.name == "features":
                data = f"{about['data']}: {about['split']}, view {about['view']}, {about['backbone']}"
                return {"data": data, "images": about["images"], "size": (about["image_size"],) * 2}
            images, *size, _ = np.load(path, mmap_mode="r").shape
            return {"data": str(about["data"]), "images": images, "size": tuple(size)}
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {"data": str(read_words(file)["folder"]), "images": len(file["stamps"]), "size": ()}
    except Exception:  # damaged files are to be seen as well, and to be cleared
        return {"data": "unknown", "images": 0, "size": ()}


def _remove(paths: Iterable[Path]) -> int:
    freed = 0
    for path in paths:
        if path.exists():
            freed += path.stat().st_size
            path.unlink()
    return freed
