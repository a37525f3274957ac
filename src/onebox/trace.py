"""trace.bin: what each training step saw and did, in a few bytes a step, to find the first one that differs.

A header line of JSON and then one record of fixed size a step. Records are only ever appended; a kill can tear the
last one, which reading passes over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from onebox.errors import BadInput

SCHEMA = 1  # another one when checksums are made otherwise
COUNTERS = ("epoch", "batch")
CHECKSUM, LOSS, RATE = "<u4", "<f4", "<f8"  # types of the fields

Records = np.ndarray[Any, np.dtype[Any]]
Value = str | float | None


def checksums(values: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """A checksum of each piece of a row of integers: sum of value times a weight of its position, mod 2^64, top half.

    Args:
        values: [V] int32, the pieces one after the other.
        lengths: P lengths of the pieces, each > 0, V in all.

    Returns:
        [P] uint32.
    """
    starts, weights = _weights(tuple(lengths))
    products = values.astype(np.int64).view(np.uint64) * weights
    return (np.add.reduceat(products, starts) >> np.uint64(32)).astype(np.uint32)


@lru_cache(maxsize=4)  # a fit has two: that of the last batch of an epoch and that of the others
def _weights(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where each piece starts, and the weight of each value."""
    starts = np.cumsum([0, *lengths[:-1]])
    positions = np.concatenate([np.arange(1, length + 1, dtype=np.uint64) for length in lengths])
    # SplitMix64's mixing (Steele, Lea and Flood 2014): small differences of neighbours do not cancel out.
    mixed = positions * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return starts, (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


class TraceWriter:
    """Appends records to a trace.

    Args:
        path: the file.
        fields: name and type of each field of a record, in the order in which a step makes them.
        initial: checksum of each parameter before the first step.
        keep: so many records that are there are kept, for a run that goes on; 0 starts a new file.
    """

    def __init__(self, path: Path, fields: Sequence[tuple[str, str]], initial: Mapping[str, int], keep: int) -> None:
        self.path = path
        self.dtype = np.dtype([*((name, "<i4") for name in COUNTERS), *fields])
        header = {"schema": SCHEMA, "fields": self.dtype.descr, "initial": dict(initial)}
        if not keep or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(header, separators=(",", ":")) + "\n", encoding="utf-8")
        with path.open("r+b") as file:
            start = len(file.readline())
            file.truncate(start + keep * self.dtype.itemsize)

    def append(self, columns: Sequence[np.ndarray]) -> None:
        """Write some more records.

        Args:
            columns: counters and fields, each [S] for S records.
        """
        records = np.empty(len(columns[0]), self.dtype)
        for name, column in zip(self.dtype.names or (), columns, strict=True):
            records[name] = column
        with self.path.open("ab") as file:
            file.write(records.tobytes())


@dataclass(frozen=True)
class Trace:
    """A trace that was read.

    Attributes:
        records: one a step.
        initial: checksum of each parameter before the first step.
    """

    records: Records
    initial: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Read a file.

        Raises:
            BadInput: it is not there or not a trace.
        """
        try:
            head, _, body = path.read_bytes().partition(b"\n")
            header = json.loads(head)
            dtype = np.dtype([(name, kind) for name, kind in header["fields"]])
            if header["schema"] != SCHEMA:
                raise BadInput(
                    f"{path}: has schema {header['schema']}, this onebox reads {SCHEMA}; use the one it is of"
                )
            return cls(np.frombuffer(body, dtype, count=len(body) // dtype.itemsize), header["initial"])
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}; the run was made without callbacks.trace") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}: not a trace, or one cut off in its first line") from error

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> list[str]:
        """The fields of a record but for the counters."""
        return [name for name in self.records.dtype.names or () if name not in COUNTERS]

    @property
    def loss_names(self) -> list[str]:
        """The fields that are losses."""
        return [name for name in self.names if self.records.dtype[name] == LOSS]

    def first(self, steps: int) -> "Trace":
        """The trace of the first steps alone."""
        return Trace(self.records[:steps], self.initial)


@dataclass(frozen=True)
class Divergence:
    """Where two traces part.

    Attributes:
        step: counted from 0; None is before the first one.
        epoch: of the step, counted from 0.
        batch: of the step within the epoch, counted from 0.
        name: the first field of the step that differs.
        values: name -> what the two traces have there, for all that differ in the step, in its order. Checksums are 8
            hexadecimal digits, None is nothing.
    """

    step: int | None
    epoch: int | None
    batch: int | None
    name: str
    values: dict[str, tuple[Value, Value]]


def first_divergence(one: Trace, other: Trace) -> Divergence | None:
    """The first step in which two traces are not bit for bit the same; None when there is none."""
    if one.initial != other.initial:
        names = [name for name in one.initial | other.initial if one.initial.get(name) != other.initial.get(name)]
        pairs = {name: (one.initial.get(name), other.initial.get(name)) for name in names}
        shown = {name: (_hexadecimal(mine), _hexadecimal(theirs)) for name, (mine, theirs) in pairs.items()}
        return Divergence(None, None, None, names[0], shown)
    length = min(len(one), len(other))
    names = list(dict.fromkeys([*COUNTERS, *one.names, *other.names]))
    differs = np.stack([_differs(one.records[:length], other.records[:length], name) for name in names])  # [F, length]
    steps = np.flatnonzero(differs.any(0))
    if len(steps):
        step = int(steps[0])
        names = [name for name, is_so in zip(names, differs[:, step], strict=True) if is_so]
    elif len(one) != len(other):
        step, names = length, []
    else:
        return None
    mine, theirs = ({name: _shown(trace, step, name) for name in names} for trace in (one, other))
    longer = max(one, other, key=len).records[step]
    return Divergence(
        step,
        int(longer["epoch"]),
        int(longer["batch"]),
        names[0] if names else "end",
        {name: (mine[name], theirs[name]) for name in names},
    )


def _differs(one: Records, other: Records, name: str) -> np.ndarray:
    """[S] whether a field of each step differs in any bit."""
    columns = [records[name] for records in (one, other) if name in (records.dtype.names or ())]
    if len(columns) < 2 or columns[0].dtype != columns[1].dtype:
        return np.ones(len(one), dtype=bool)
    bits = [np.ascontiguousarray(column).view(f"<u{column.dtype.itemsize}") for column in columns]  # NaN equals NaN
    return np.not_equal(*bits)


def _shown(trace: Trace, step: int, name: str) -> Value:
    if name not in (trace.records.dtype.names or ()):
        return None
    value = trace.records[step][name]
    if trace.records.dtype[name] == LOSS:
        return float(str(value)) if np.isfinite(value) else str(value)  # the shortest number that gives these bits
    return _hexadecimal(int(value)) if trace.records.dtype[name] == CHECKSUM else value.item()


def _hexadecimal(checksum: int | None) -> Value:
    return None if checksum is None else f"{checksum:08x}"
