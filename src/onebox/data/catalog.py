"""The annotations and image files of some trees: read once, kept in a file, read again where they changed."""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np

from onebox.data.image import check_file
from onebox.data.processes import process_map
from onebox.data.table import UNCHECKED, Ints, Table, join
from onebox.data.voc import NO_ANNOTATION, VocTree, no_image, read_record
from onebox.files import alone, remove_unfinished

log = logging.getLogger(__name__)


class Catalog:
    """The tables of some trees as one, whose rows are numbered through.

    Args:
        trees: which trees, by name.
        cache_dir: folder that keeps what was read; see `read_table`.

    Attributes:
        table: the annotations of all trees.
    """

    def __init__(self, trees: Mapping[str, VocTree], cache_dir: Path) -> None:
        self._trees = list(trees.values())
        self._names = list(trees)
        self._cache_dir = cache_dir
        nothing = Table.from_records([], np.zeros((0, 3), dtype=np.int64), [])
        tables = [read_table(tree, cache_dir) for tree in self._trees] or [nothing]
        self._starts = np.cumsum([0, *map(len, tables)]).tolist()
        self._row_of = [
            {image_id: row for row, image_id in enumerate(table.ids, start)}
            for table, start in zip(tables, self._starts, strict=False)
        ]
        self._tree_of = np.repeat(np.arange(len(tables)), np.diff(self._starts))  # [N]
        self.table = tables[0] if len(tables) == 1 else join(tables)

    def rows(self, images: Iterable[tuple[str, str]]) -> Ints:
        """The rows of some images, given as (tree, id); one without an annotation gets a row that says so."""
        found = []
        missing: list[tuple[int, str]] = []
        for name, image_id in images:
            number = self._names.index(name)
            row = self._row_of[number].setdefault(image_id, len(self.table) + len(missing))
            if row == len(self.table) + len(missing):
                missing.append((number, image_id))
            found.append(row)
        if missing:
            nothing = np.full((len(missing), 3), UNCHECKED, dtype=np.int64)
            ids = [image_id for _, image_id in missing]
            self.table = join([self.table, Table.from_records(ids, nothing, [NO_ANNOTATION] * len(missing))])
            self._tree_of = np.append(self._tree_of, [number for number, _ in missing])
        return np.array(found, dtype=np.int64)

    def annotation_file(self, row: int) -> str:
        """The XML file of one row."""
        return str(self._tree(row).annotation_path(self.table.ids[row]))

    def image_file(self, row: int) -> str:
        """The image file of one row, or where it would be."""
        return self._tree(row).image_file(self.table.ids[row])

    def check_images(self, rows: Ints) -> tuple[Ints, dict[int, str]]:
        """Find images that are missing, unreadable, cut off or not of the annotated size; those that were checked
        before and did not change are not opened.

        Args:
            rows: [K] which rows.

        Returns:
            [K, 2] size in bytes and time of change in ns of each file; and for positions in `rows` what is wrong.
        """
        absent = {
            position: no_image(self.table.ids[row])
            for position, row in enumerate(rows.tolist())
            if not self._tree(row).has_image(self.table.ids[row])
        }
        there = np.delete(np.arange(len(rows)), list(absent))
        files = [self.image_file(row) for row in rows[there].tolist()]
        stamps = np.full((len(rows), 2), UNCHECKED, dtype=np.int64)
        stamps[there] = np.array([_stamp(file) for file in files], dtype=np.int64).reshape(-1, 2)
        known = self.table.image_stamps[rows[there]]
        changed = np.flatnonzero((stamps[there] != known).any(axis=1) | (known == UNCHECKED).any(axis=1)).tolist()
        if changed:
            sizes = self.table.sizes[rows[there]].tolist()
            items = [(files[position], *sizes[position]) for position in changed]
            found = list(process_map(check_file, items, description="checking images"))
            self.keep_checks(rows[there[changed]], np.array([stamp for stamp, _ in found]), [text for _, text in found])
            stamps[there[changed]] = [stamp for stamp, _ in found]
        old = self.table.image_problems
        return stamps, absent | {position: old[row] for position, row in enumerate(rows.tolist()) if row in old}

    def _tree(self, row: int) -> VocTree:
        return self._trees[int(self._tree_of[row])]

    def keep_checks(self, rows: Ints, stamps: Ints, problems: Sequence[str | None]) -> None:
        """Remember what is wrong with some image files (None: nothing), here and for the next run.

        Args:
            rows: [K] which rows.
            stamps: [K, 2] size in bytes and time of change in ns of the files.
            problems: [K] what is wrong.
        """
        self.table = self.table.with_image_checks(rows, stamps, problems)
        for number, tree in enumerate(self._trees):
            start, end = self._starts[number : number + 2]
            if ((start <= rows) & (rows < end)).any():
                _keep_image_checks(tree, self._cache_dir, self.table.take(np.arange(start, end)))


def table_path(tree: VocTree, cache_dir: Path) -> Path:
    """The file that keeps a tree's table."""
    name = hashlib.sha256(os.fsencode(tree.folder.resolve())).hexdigest()[:16]
    return cache_dir / "index" / f"{name}.npz"


def read_table(tree: VocTree, cache_dir: Path) -> Table:
    """All annotations of a tree, sorted by id. XML files are parsed when they are new or changed since the last time.

    Several processes may call this at once; one parses, the others wait. A folder that cannot be written costs a
    warning and the time to parse.
    """
    path = table_path(tree, cache_dir)
    found = sorted(tree.annotation_files())
    ids = tuple(image_id for image_id, *_ in found)
    folders = [folder for _, folder, *_ in found]
    stamps = np.array([stamp for _, _, *stamp in found], dtype=np.int64).reshape(-1, 3)
    del found
    table = Table.load(path)
    if _is_current(table, ids, stamps):
        return table
    try:
        with alone(path.with_suffix(".lock"), waiting=f"Waiting for another process that reads {tree.folder}"):
            table = Table.load(path)
            if not _is_current(table, ids, stamps):
                remove_unfinished(path)
                table = _read_changed(table, ids, folders, stamps)
                table.save(path, folder=str(tree.folder.resolve()))
    except (OSError, NotImplementedError) as error:  # filelock raises the second where a folder cannot be locked
        log.warning("%s: the index is not kept (%s); free some space or set data.cache_dir", path, error)
        if not _is_current(table, ids, stamps):
            table = _read_changed(table, ids, folders, stamps)
    return table


def _keep_image_checks(tree: VocTree, cache_dir: Path, checked: Table) -> None:
    path = table_path(tree, cache_dir)
    try:
        with alone(path.with_suffix(".lock"), waiting=f"Waiting for another process that reads {tree.folder}"):
            table = Table.load(path)
            if _is_current(table, checked.ids, checked.stamps):  # else another process knows better
                rows = np.flatnonzero((checked.image_stamps != UNCHECKED).all(axis=1))
                problems = [checked.image_problems.get(row) for row in rows.tolist()]
                table = table.with_image_checks(rows, checked.image_stamps[rows], problems)
                table.save(path, folder=str(tree.folder.resolve()))
    except (OSError, NotImplementedError):
        pass  # read_table has said so


def _is_current(table: Table | None, ids: tuple[str, ...], stamps: Ints) -> TypeGuard[Table]:
    return table is not None and table.ids == ids and np.array_equal(table.stamps, stamps)


def _read_changed(table: Table | None, ids: tuple[str, ...], folders: list[str], stamps: Ints) -> Table:
    """A table of these files, in which the rows of `table` that did not change are taken over."""
    row_of = {image_id: row for row, image_id in enumerate(table.ids)} if table is not None else {}
    old = np.array([row_of.get(image_id, -1) for image_id in ids], dtype=np.int64)
    same = old >= 0
    if table is not None:
        same[same] = (table.stamps[old[same]] == stamps[same]).all(axis=1)
    new = np.flatnonzero(~same).tolist()
    records = list(
        process_map(read_record, [f"{folders[row]}/{ids[row]}.xml" for row in new], description="reading annotations")
    )
    parsed = Table.from_records([ids[row] for row in new], stamps[new], records)
    if table is None:
        return parsed
    joined = join([table.take(old[same]), parsed])
    order = sorted(range(len(joined)), key=joined.ids.__getitem__)
    return joined.take(np.array(order, dtype=np.int64))


def _stamp(file: str) -> tuple[int, int]:
    try:
        state = os.stat(file)
    except OSError:
        return UNCHECKED, UNCHECKED
    return state.st_size, state.st_mtime_ns
