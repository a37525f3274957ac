"""How much a metric moves when nothing but the seed changes, and what that says of a difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from onebox.runs.reading.changes import changed_data
from onebox.runs.reading.find import Run, find_runs

Verdict = Literal["same", "better", "worse", "within noise", "noise unknown", "other images"]

SAME = 1e-6  # what differs by less differs only in the rounding of float32
# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Band:
    """What one config gives over its seeds."""

    seeds: int  # how many
    mean: float  # of the metric
    sd: float | None  # standard deviation of one run; None with a single seed


def t95(degrees: float) -> float:
    """Half-width of the 95 % interval of Student's distribution; beyond 30 degrees to three digits."""
    return _T95[int(degrees) - 1] if degrees < 31 else 1.96 + 2.4 / degrees


def interval(values: Sequence[float]) -> float | None:
    """Half-width of the 95 % interval of a mean; None for a single value."""
    return t95(len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def lower_is_better(tag: str) -> bool:
    """Whether a metric is an error."""
    name = tag.rpartition("/")[2]
    return name.startswith(("loss", "loc_l1", "error"))


def other_seeds(runs: Sequence[Run], outputs: Path) -> list[list[Run]]:
    """For each run, the completed runs of the same code, config and data whatever the seed, each seed once.

    The run itself comes first.

    Looked for in `outputs` and beside each run.
    """
    found: dict[Path, Run] = {}
    for folder in dict.fromkeys([outputs, *(run.path.parent for run in runs)]):
        found |= {run.path.resolve(): run for run in find_runs(folder)}
    completed = [run for run in found.values() if run.record.get("status") == "completed"]
    groups = []
    for run in runs:
        group = {run.record.get("seed"): run}
        for other in completed if run.record.get("fingerprint_seedless") else ():
            is_same = all(other.record.get(key) == run.record.get(key) for key in ("fingerprint_seedless", "source"))
            if is_same and not changed_data(run, other):
                group.setdefault(other.record.get("seed"), other)
        groups.append(list(group.values()))
    return groups


def band(tag: str, group: Sequence[Run]) -> Band:
    """Mean and deviation of a metric over the runs of `other_seeds`, of which the first at least has it."""
    values = [run.tags[tag] for run in group if tag in run.tags]
    return Band(len(values), mean(values), stdev(values) if len(values) > 1 else None)


def judge(tag: str, one: Band, other: Band) -> Verdict:
    """Whether the difference of two means is more than what seeds do, at 95 %.

    Student's t-test with a pooled deviation: seeds are few, and noise is much the same on both sides. So one side may
    have a single seed.
    """
    difference = other.mean - one.mean
    if abs(difference) <= SAME:
        return "same"
    degrees = one.seeds + other.seeds - 2
    if not degrees:
        return "noise unknown"
    squares = sum((side.seeds - 1) * side.sd**2 for side in (one, other) if side.sd is not None)
    error = math.sqrt(squares / degrees * (1 / one.seeds + 1 / other.seeds))
    if not error:  # no seed moved it: a share of few images has few values
        return "noise unknown"
    if abs(difference) <= t95(degrees) * error:
        return "within noise"
    return "worse" if (difference > 0) == lower_is_better(tag) else "better"
