"""Files that are written whole or not at all, and the one way in which files that others may have made are read."""

import errno
import hashlib
import json
import logging
import math
import os
import stat
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from onebox.errors import REMEDIES, BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_BYTES = 64 << 20  # of a file, where its reader knows no other limit
MAX_LONG = 4 << 30  # of what grows with the steps of a run or the images of a tree
MAX_YAML = 4 << 20  # its parser takes ten seconds for it
MAX_DEPTH = 50  # of lists and dicts in each other
_NODES = (dict, list)  # much quicker than the same types joined by |
_NODE_TYPES = frozenset(_NODES)
_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # we write null for what is no finite number


@contextmanager
def opened(path: str | Path, max_bytes: int | None = MAX_BYTES) -> Iterator[BufferedReader]:
    """Open a regular file for reading: a pipe is not waited for, a device is not read, nor a file that is too large.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if max_bytes is not None and state.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"{state.st_size:,} bytes are more than the limit of {max_bytes:,}", str(path))
        yield file


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file, see `opened`."""
    with opened(path, max_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # no more, as some files of /proc never end


def read_file(
    path: str | Path, parse: Callable[[IO[bytes]], T], *, remedy: str, max_bytes: int | None = MAX_BYTES
) -> T:
    """What `parse` makes of a file.

    Raises:
        FileNotFoundError: there is none.
        BadInput: it cannot be read, or `parse` raises anything; `remedy` says what to do.
    """
    try:
        with opened(path, max_bytes) as file:
            return parse(file)
    except (FileNotFoundError, BadInput):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except Exception as error:  # parsers raise anything on a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = textwrap.shorten(reason, 200, placeholder=" ...")
        raise BadInput(f"{path}: cannot be read ({reason}); {remedy}") from error


def read_cached(path: Path, parse: Callable[[IO[bytes]], T]) -> T | None:
    """What `parse` makes of a file of a cache; None if there is none, or, with a warning, if it cannot be used."""
    try:
        return read_file(path, parse, remedy="it is made again", max_bytes=None)
    except FileNotFoundError:
        pass
    except BadInput as error:
        log.warning("%s", error)
    return None


def read_json(
    path: str | Path,
    *,
    shape: Any = object,
    remedy: str = "restore the file or remove it",
    known: dict[tuple[str, bytes], Any] | None = None,
) -> Any:
    """What a JSON file holds, which must be of a `shape`, see `misfit`; NaN and infinite numbers become None.

    A null in the place of something that has a shape counts as absent. `known` keeps what is read of files of one
    shape that are much alike, such as those of a sweep: equal parts are parsed once, and become the same object.

    Raises:
        FileNotFoundError, BadInput: see `read_file`.
    """

    def parse(file: IO[bytes]) -> Any:
        data = file.read()
        if known is not None:
            with suppress(ValueError, RecursionError):  # what is wrong, if anything, the whole says better
                return _from_members(data, shape, known)
        text = data.decode("utf-8-sig")
        value = _JSON.decode(text)
        if text.count("{") + text.count("[") > MAX_DEPTH and _is_deep(value):  # else too few to be so deep
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if (key := misfit(value, shape)) is not None:
            raise ValueError(f"{key or 'it'} is not what onebox writes")
        return _without_nulls(value, shape)

    return read_file(path, parse, remedy=remedy)


def _from_members(data: bytes, shape: Mapping[str, Any], known: dict[tuple[str, bytes], Any], key: str = "") -> Any:
    """The object in JSON that is indented as `write_json` does, put together from its members; `key` is its own.

    Where each piece between two of the commas is by itself one member or more, the whole is the object of all of them.
    Elsewhere, as within a deeper object, no piece is: a text in JSON has no line break, and brackets come in pairs.

    Raises:
        ValueError: it is not indented so, or anything else.
    """
    outer, inner = (b"\n  ", b"\n    ") if key else (b"\n", b"\n  ")
    begin, end, data = b"{" + inner + b'"', outer + b"}", data.rstrip(b" \t\r\n")
    if not (data.startswith(begin) and data.endswith(end)):
        raise ValueError
    found: dict[str, Any] = {}
    for piece in data[len(begin) : -len(end)].split(b"," + inner + b'"'):
        part = known.get((key, piece))
        if part is None:
            name, _, text = piece.partition(b'": ')
            below = shape.get(section := name.decode("ascii", "replace"))
            if not key and isinstance(below, dict) and "*" not in below and text.startswith(b"{\n"):
                part = {section: _from_members(text, below, known, section)}  # which is like others in its parts only
            else:
                part = _JSON.decode('{"' + piece.decode() + "}")
                is_deep = piece.count(b"{") + piece.count(b"[") > MAX_DEPTH - 2 and _is_deep({key: part})
                if is_deep or misfit(part, shape) is not None:
                    raise ValueError
                part = known[key, piece] = {
                    name: item if item is None else _without_nulls(item, shape.get(name)) for name, item in part.items()
                }
        found |= part
    return {name: item for name, item in found.items() if item is not None or name not in shape}


def misfit(value: Any, shape: Any) -> str | None:
    """The dotted key of what in plain data is not of a shape; None when all is.

    A shape is a type, a function that says whether a value is right, a list with the shape of all items, or a dict with
    the shapes of values: by their key, or of all by `*`. A value in a dict may be None, whatever its shape.
    """
    if isinstance(shape, type | UnionType):
        return None if isinstance(value, shape) else ""
    if callable(shape):
        return None if shape(value) else ""
    if not isinstance(value, type(shape)):
        return ""
    if isinstance(shape, list):
        parts = [(str(number), item, shape[0]) for number, item in enumerate(value)]
    else:
        shapes = dict.fromkeys(value, shape["*"]) if "*" in shape else shape
        parts = [(key, value[key], part) for key, part in shapes.items() if value.get(key) is not None]
    for key, item, part in parts:
        is_right = isinstance(part, type) and isinstance(item, part)  # nearly all are, and a call takes longer
        if not is_right and (found := misfit(item, part)) is not None:
            return f"{key}.{found}".rstrip(".")
    return None


def _without_nulls(value: Any, shape: Any) -> Any:
    if isinstance(shape, list):
        return [_without_nulls(item, shape[0]) for item in value]
    if not isinstance(shape, dict):
        return value
    every = shape.get("*")
    is_kept = every is None or not isinstance(every, dict | list)  # the choice of no option is one
    kept = {key: item for key, item in value.items() if item is not None or (key not in shape and is_kept)}
    inner = kept if not is_kept else [key for key in shape if key in kept]  # of the rest nothing is left out
    return kept | {key: _without_nulls(kept[key], shape.get(key, every)) for key in inner}


def _is_deep(value: Any) -> bool:
    level, depth = [value] if isinstance(value, _NODES) else [], 0
    while level and depth <= MAX_DEPTH:  # level by level, as thousands of records are read at once
        inner = [node.values() if isinstance(node, dict) else node for node in level]
        # Most hold only texts and numbers, which a set of types says without a look at each.
        inner = [items for items in inner if not _NODE_TYPES.isdisjoint(map(type, items))]
        level, depth = [item for item in chain.from_iterable(inner) if isinstance(item, _NODES)], depth + 1
    return depth > MAX_DEPTH


def read_text(path: str | Path, *, remedy: str, max_bytes: int = MAX_BYTES) -> str:
    """A text in UTF-8.

    Raises:
        FileNotFoundError, BadInput: see `read_file`.
    """

    def parse(file: IO[bytes]) -> str:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("not a text in UTF-8") from None

    return read_file(path, parse, remedy=remedy, max_bytes=max_bytes)


def read_yaml(path: str | Path, *, remedy: str, load: Callable[[str], Any] | None = None) -> Any:
    """What a YAML file holds, as plain data, by `load` or else as YAML 1.1 has it.

    Raises:
        FileNotFoundError, BadInput: see `read_file`.
    """
    import yaml  # type: ignore[import-untyped]  # PyYAML has no types

    def parse(file: IO[bytes]) -> Any:
        text, depth = file.read().decode("utf-8-sig"), 0
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases, of which a short file makes a huge one")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        return (load or yaml.safe_load)(text)

    return read_file(path, parse, remedy=remedy, max_bytes=MAX_YAML)


def npz_columns(file: IO[bytes], max_bytes: int = MAX_LONG) -> "dict[str, NDArray[Any]]":
    """The arrays of an `.npz` file, whose check sums NumPy compares only where it happens to read to the end."""
    import numpy as np

    with zipfile.ZipFile(file) as packed:
        if (size := sum(item.file_size for item in packed.infolist())) > max_bytes:
            raise ValueError(f"it unpacks to {size:,} bytes, more than the limit of {max_bytes:,}")
        if damaged := packed.testzip():
            raise ValueError(f"{damaged} in it is damaged")
    file.seek(0)
    with np.load(file, allow_pickle=False) as columns:
        return dict(columns.items())


def write_npz(path: Path, **columns: "NDArray[Any]") -> None:
    """Write arrays to an `.npz` file, whole or not at all."""
    import numpy as np

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]  # its stub takes the columns for allow_pickle


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it over `path` when the block ends without an error.

    Synced to disk before the rename, so that after a crash `path` holds either the old content or the new.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in REMEDIES and error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # people do not know the temporary one
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; what is not a finite number becomes null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Plain data with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def alone(lock: Path, *, waiting: str | None) -> Iterator[None]:
    """Hold a lock that ends with the process that holds it; log `waiting` when another process has it.

    Raises:
        Timeout: another process has it, and `waiting` is None.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise
        log.info("%s (%s)", waiting, lock)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `path`; only for the one process that writes it."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """Hash of what a file holds, as 16 hexadecimal digits."""
    with opened(path, None) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
