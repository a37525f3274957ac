"""The annotations of a tree as columns. N = number of annotations, M = number of their objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebox.data.voc import Record
from onebox.files import replacing

SCHEMA = 2  # of the file; another number is as good as no file
UNCHECKED = -1

Ints = NDArray[np.int64]
COLUMNS = ("stamps", "sizes", "first", "names", "difficult", "corners", "image_stamps")


@dataclass(frozen=True, eq=False)
class Table:
    """One row an annotation file, whatever it says; nothing is judged here.

    Attributes:
        ids: [N] names of the images in their tree.
        stamps: [N, 3] of each XML file: size in bytes, and when content and state (rights, links) changed, in ns.
        sizes: [N, 2] height and width in px as annotated; 0 where `problems` has the row.
        first: [N + 1] the objects of row i are first[i] to first[i + 1].
        names: [M] int32, the object's class as a row of `class_names`.
        difficult: [M] bool, whether the object is marked so.
        corners: [M, 4] float64, xmin ymin xmax ymax as the file has them.
        image_stamps: [N, 2] of each image file when it was last checked: size in bytes, and when its content changed,
            in ns; -1 when it never was.
        class_names: the classes that occur, sorted.
        problems: row -> what is wrong with the XML file.
        image_problems: row -> what was wrong with the image file when it was checked.
    """

    ids: tuple[str, ...]
    stamps: Ints
    sizes: Ints
    first: Ints
    names: NDArray[np.int32]
    difficult: NDArray[np.bool_]
    corners: NDArray[np.float64]
    image_stamps: Ints
    class_names: tuple[str, ...]
    problems: Mapping[int, str]
    image_problems: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def owners(self) -> Ints:
        """[M] the row that each object belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    @classmethod
    def from_records(cls, ids: Sequence[str], stamps: Ints, records: Sequence[Record | str]) -> "Table":
        """What was read, as a table.

        Args:
            ids: [N] names of the images.
            stamps: [N, 3] of their XML files.
            records: [N] from `onebox.data.voc.read_record`.
        """
        good: list[Record] = [(0, 0, []) if isinstance(record, str) else record for record in records]
        objects = [item for *_, found in good for item in found]
        class_names = tuple(sorted({item[0] for item in objects}))
        number = {name: position for position, name in enumerate(class_names)}
        return cls(
            ids=tuple(ids),
            stamps=stamps.reshape(-1, 3),
            sizes=np.array([(height, width) for width, height, _ in good], dtype=np.int64).reshape(-1, 2),
            first=np.cumsum([0, *(len(found) for *_, found in good)], dtype=np.int64),
            names=np.array([number[item[0]] for item in objects], dtype=np.int32),
            difficult=np.array([item[1] for item in objects], dtype=bool),
            corners=np.array([item[2:] for item in objects], dtype=np.float64).reshape(-1, 4),
            image_stamps=np.full((len(good), 2), UNCHECKED, dtype=np.int64),
            class_names=class_names,
            problems={row: record for row, record in enumerate(records) if isinstance(record, str)},
            image_problems={},
        )

    def take(self, rows: Ints) -> "Table":
        """Some of the rows, in the order given; each at most once."""
        counts = np.diff(self.first)[rows]
        first = np.concatenate([[0], np.cumsum(counts)])
        objects = np.arange(first[-1]) + np.repeat(self.first[rows] - first[:-1], counts)
        used, names = np.unique(self.names[objects], return_inverse=True)
        position = {row: number for number, row in enumerate(rows.tolist())}
        return Table(
            ids=tuple(map(self.ids.__getitem__, rows.tolist())),
            stamps=self.stamps[rows],
            sizes=self.sizes[rows],
            first=first,
            names=names.astype(np.int32),
            difficult=self.difficult[objects],
            corners=self.corners[objects],
            image_stamps=self.image_stamps[rows],
            class_names=tuple(self.class_names[name] for name in used.tolist()),
            problems={position[row]: text for row, text in self.problems.items() if row in position},
            image_problems={position[row]: text for row, text in self.image_problems.items() if row in position},
        )

    def with_image_checks(self, rows: Ints, stamps: Ints, problems: Sequence[str | None]) -> "Table":
        """The same table, with what a check of some images found.

        Args:
            rows: [K] which rows.
            stamps: [K, 2] of the image files.
            problems: [K] what is wrong; None for nothing.
        """
        image_stamps = self.image_stamps.copy()
        image_stamps[rows] = stamps
        checked = dict(zip(rows.tolist(), problems, strict=True))
        merged = {**self.image_problems, **checked}
        return replace(
            self, image_stamps=image_stamps, image_problems={row: text for row, text in merged.items() if text}
        )

    def save(self, path: Path, *, folder: str) -> None:
        """Write the table, whole or not at all; `folder` is for people who look at what there is."""
        words = {
            "schema": SCHEMA,
            "folder": folder,
            "class_names": self.class_names,
            "problems": list(self.problems.items()),
            "image_problems": list(self.image_problems.items()),
        }
        columns = {name: getattr(self, name) for name in COLUMNS}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, words=to_bytes(json.dumps(words)), ids=to_bytes("\0".join(self.ids)), **columns)

    @classmethod
    def load(cls, path: Path) -> "Table | None":
        """The table in a file; None when there is none that can be used."""
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                words = read_words(file)
                if words["schema"] != SCHEMA:
                    return None
                table = cls(
                    ids=to_ids(file["ids"]),
                    class_names=tuple(words["class_names"]),
                    problems=dict(words["problems"]),
                    image_problems=dict(words["image_problems"]),
                    **{name: file[name] for name in COLUMNS},
                )
        except FileNotFoundError:
            return None
        except Exception:  # a damaged zip file raises anything; the table is made again
            return None
        lengths = {len(table), len(table.stamps), len(table.sizes), len(table.first) - 1, len(table.image_stamps)}
        return table if len(lengths) == 1 else None


def read_words(file: Mapping[str, Any]) -> dict[str, Any]:
    """What a table's file says besides its columns."""
    words: dict[str, Any] = json.loads(bytes(file["words"]))
    return words


def to_ids(column: NDArray[np.uint8]) -> tuple[str, ...]:
    """The ids that `to_bytes` was given."""
    text = bytes(column).decode("utf-8", "surrogateescape")
    return tuple(text.split("\0")) if text else ()


def join(tables: Sequence[Table]) -> Table:
    """The rows of several tables, one after the other."""
    class_names = tuple(sorted(set().union(*(table.class_names for table in tables))))
    number = {name: position for position, name in enumerate(class_names)}
    starts = np.cumsum([0, *(len(table) for table in tables)]).tolist()
    objects = np.cumsum([0, *(len(table.names) for table in tables)])
    firsts = [table.first[:-1] + start for table, start in zip(tables, objects[:-1], strict=True)]
    renumber = [np.array([number[name] for name in table.class_names], dtype=np.int32) for table in tables]
    return Table(
        ids=tuple(image_id for table in tables for image_id in table.ids),
        stamps=np.concatenate([table.stamps for table in tables]),
        sizes=np.concatenate([table.sizes for table in tables]),
        first=np.concatenate([*firsts, objects[-1:]]).astype(np.int64),
        names=np.concatenate([codes[table.names] for codes, table in zip(renumber, tables, strict=True)]),
        difficult=np.concatenate([table.difficult for table in tables]),
        corners=np.concatenate([table.corners for table in tables]),
        image_stamps=np.concatenate([table.image_stamps for table in tables]),
        class_names=class_names,
        problems=_shift([table.problems for table in tables], starts),
        image_problems=_shift([table.image_problems for table in tables], starts),
    )


def _shift(problems: Sequence[Mapping[int, str]], starts: Sequence[int]) -> dict[int, str]:
    return {row + start: text for part, start in zip(problems, starts, strict=False) for row, text in part.items()}


def to_bytes(text: str) -> NDArray[np.uint8]:
    """A text as a column of a file; ids are joined by NUL."""
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)
