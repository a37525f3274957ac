"""The annotations of a tree as columns, kept in a file. N = number of annotations, M = number of their objects."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebox.data.processes import process_map
from onebox.data.voc import Record
from onebox.files import alone, npz_columns, read_cached, remove_unfinished, write_npz

if TYPE_CHECKING:
    from onebox.data.layout import Tree

log = logging.getLogger(__name__)

SCHEMA = 4  # of the file; another number is as good as no file
OF_ROWS, OF_OBJECTS = ("ids", "stamps", "sizes"), ("names", "difficult", "corners")  # columns

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """One row an annotation file, whatever it says; nothing is judged here."""

    ids: NDArray[np.str_]  # [N] str, of the XML files in their tree
    stamps: Ints  # [N, 3] of each XML file: size in bytes, and when content and state (rights, links) changed, in ns
    sizes: Ints  # [N, 2] height and width in px as annotated; 0 where the file does not say, or `problems` has the row
    first: Ints  # [N + 1] the objects of row i are first[i] to first[i + 1]
    names: NDArray[np.str_]  # [M] str, the object's class
    difficult: NDArray[np.bool_]  # [M] bool, whether the object is marked so
    # [M, 4] float64, xmin ymin xmax ymax as the file has them; NaN for an object without numbers
    corners: NDArray[np.float64]
    problems: Mapping[int, str]  # row -> what is wrong with the XML file

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def owners(self) -> Ints:
        """[M] the row that each object belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    @classmethod
    def from_records(cls, ids: Sequence[str], stamps: Ints, records: Sequence[Record | str]) -> Table:
        """What was read, as a table.

        Args:
            ids: [N] names of the images.
            stamps: [N, 3] of their XML files.
            records: [N] from `onebox.data.voc.read_record`.
        """
        good: list[Record] = [(0, 0, []) if isinstance(record, str) else record for record in records]
        objects = [item for *_, found in good for item in found]
        return cls(
            ids=np.array(ids, dtype=np.str_),
            stamps=stamps.reshape(-1, 3),
            sizes=np.array([(height, width) for width, height, _ in good], dtype=np.int64).reshape(-1, 2),
            first=np.cumsum([0, *(len(found) for *_, found in good)], dtype=np.int64),
            names=np.array([item[0] for item in objects], dtype=np.str_),
            difficult=np.array([item[1] for item in objects], dtype=bool),
            corners=np.array([item[2:] for item in objects], dtype=np.float64).reshape(-1, 4),
            problems={row: record for row, record in enumerate(records) if isinstance(record, str)},
        )

    def take(self, rows: Ints) -> Table:
        """Some of the rows, in the order given."""
        counts = np.diff(self.first)[rows]
        first = np.concatenate([[0], np.cumsum(counts)])
        objects = np.arange(first[-1]) + np.repeat(self.first[rows] - first[:-1], counts)
        return Table(
            **{name: getattr(self, name)[rows] for name in OF_ROWS},
            **{name: getattr(self, name)[objects] for name in OF_OBJECTS},
            first=first,
            problems={new: self.problems[old] for new, old in enumerate(rows.tolist()) if old in self.problems},
        )

    def save(self, path: Path, *, folder: str) -> None:
        """Write the table, whole or not at all; `folder` is for people who look at what there is."""
        words = json.dumps({"schema": SCHEMA, "folder": folder, "problems": list(self.problems.items())})
        columns = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "problems"}
        write_npz(path, words=np.frombuffer(words.encode(), np.uint8), **columns)

    @classmethod
    def load(cls, path: Path) -> Table | None:
        """The table in a file; None when there is none that can be used."""

        def parse(file: IO[bytes]) -> Table | None:
            columns = npz_columns(file)
            words = json.loads(bytes(columns.pop("words")))
            return cls(**columns, problems=dict(words["problems"])) if words["schema"] == SCHEMA else None

        return read_cached(path, parse)


def join(tables: Sequence[Table]) -> Table:
    """The rows of several tables, one after the other."""
    starts = np.cumsum([0, *map(len, tables)]).tolist()
    objects = np.cumsum([0, *(len(table.names) for table in tables)])
    firsts = [table.first[:-1] + start for table, start in zip(tables, objects[:-1], strict=True)]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(table, name) for table in tables]) for name in OF_ROWS + OF_OBJECTS
    }
    return Table(
        **columns,
        first=np.concatenate([*firsts, objects[-1:]]).astype(np.int64),
        problems={
            start + row: text
            for start, part in zip(starts[:-1], tables, strict=True)
            for row, text in part.problems.items()
        },
    )


def _path_in(cache_dir: Path, source: Path, read: Callable[[Any], object]) -> Path:
    options = getattr(read, "keywords", "")  # of a partial
    key = os.fsencode(source.resolve()) + str(options).encode()
    return cache_dir / "index" / f"{hashlib.sha256(key).hexdigest()[:16]}.npz"


def read_table(tree: Tree, cache_dir: Path | None) -> Table:
    """All annotations of a tree, sorted by id. Files are parsed when they are new or changed since the last time.

    Several processes may call this at once; one parses, the others wait. A folder that cannot be written costs a
    warning and the time to parse. None keeps nothing.
    """
    ids = sorted(tree.annotations.paths)
    files = [tree.annotations.paths[name] for name in ids]
    stamps = np.array([_stamp(file) for file in files], dtype=np.int64).reshape(-1, 3)
    return _kept(
        cache_dir and _path_in(cache_dir, tree.folder, tree.read),
        tree.folder,
        lambda table: table.ids.tolist() == ids and np.array_equal(table.stamps, stamps),
        lambda table: _read_changed(table, ids, files, stamps, tree.read),
    )


def kept_table(
    path: Path, read: Callable[[Path], tuple[list[str], list[Record | str]]], cache_dir: Path | None
) -> Table:
    """What one file says of many images, in its order. It is read when it changed.

    Args:
        path: the file.
        read: names of images, and what the file says of each or what is wrong.
        cache_dir: folder that keeps the table; None keeps nothing.
    """
    stamp = np.array(_stamp(str(path)), dtype=np.int64)

    def make(_: Table) -> Table:
        names, records = read(path)
        return Table.from_records(names, np.tile(stamp, (len(names), 1)), records)

    def is_current(table: Table) -> bool:
        return len(table) > 0 and bool((table.stamps == stamp).all())

    return _kept(cache_dir and _path_in(cache_dir, path, read), path, is_current, make)


def _kept(
    path: Path | None, source: Path, is_current: Callable[[Table], bool], make: Callable[[Table], Table]
) -> Table:
    """The table in a file, or a new one made from what is in it, which takes its place; without a path nothing does."""
    empty = Table.from_records([], np.zeros(0, np.int64), [])
    if path is None:
        return make(empty)
    table = Table.load(path) or empty
    if is_current(table):
        return table
    try:
        with alone(path.with_suffix(".lock"), waiting=f"Waiting for another process that reads {source}"):
            table = Table.load(path) or empty
            if not is_current(table):
                remove_unfinished(path)
                table = make(table)
                table.save(path, folder=str(source.resolve()))
    except (OSError, NotImplementedError) as error:  # filelock raises the second where a folder cannot be locked
        log.warning("%s: the index cannot be stored (%s); free some space or set data.cache_dir", path, error)
        if not is_current(table):
            table = make(table)
    return table


def _stamp(file: str) -> tuple[int, int, int]:
    try:
        state = os.stat(file)
    except OSError:  # is said when it is read
        return -1, -1, -1
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _read_changed(
    table: Table, ids: list[str], files: list[str], stamps: Ints, read: Callable[[str], Record | str]
) -> Table:
    """A table of these files, in which the rows of `table` that did not change are taken over."""
    known = {key: row for row, key in enumerate(zip(table.ids.tolist(), map(bytes, table.stamps), strict=True))}
    old = np.array([known.get(key, -1) for key in zip(ids, map(bytes, stamps), strict=True)], dtype=np.int64)
    new = np.flatnonzero(old < 0)
    names = [files[row] for row in new.tolist()]
    records = list(process_map(read, names, description="reading annotations"))
    parsed = Table.from_records([ids[row] for row in new.tolist()], stamps[new], records)
    old[new] = len(table) + np.arange(len(new))
    return join([table, parsed]).take(old)
