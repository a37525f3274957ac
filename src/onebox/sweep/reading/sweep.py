"""A sweep that has been read, and how its jobs are named and chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from onebox.errors import check
from onebox.runs.reading.find import Run
from onebox.runs.reading.table import cell, ranges
from onebox.runs.reading.where import select

WAITED_FOR = ("pending", "submitted", "running")  # statuses of jobs that have not ended


@dataclass(frozen=True, eq=False)
class Sweep:
    """All jobs of a sweep."""

    folder: Path  # where they lie
    mode: Mapping[str, str]  # each tag that it optimises -> `max` or `min`; the first one sorts the table
    varied: Sequence[str]  # keys and groups that differ between the jobs, without the seed
    # those of them that have a column of their own, as most jobs set them; the others are in `what`
    alike: Sequence[str]
    every: Sequence[Run]  # all jobs as runs, those without a run directory too
    # a row for each, in the order of the plan, then by start. `status` is that of run.json, `stale` for a run that
    # completed under other code or data, `pending` for one that is only planned, `submitted` for one that a scheduler
    # has; `note` says why it failed or is stale; `group` is equal for jobs that differ by the seed alone; `seconds` are
    # of all attempts. The others are `fingerprint`, `seed`, `run`, each varied key, `what` where there are unlike jobs,
    # each metric and `floor/NAME` of what has a result. The index is a job's number, which selecting jobs does not
    # change
    jobs: pd.DataFrame
    orphans: Sequence[int]  # numbers of those that the plan no longer has

    @property
    def runs(self) -> list[Run]:
        """Those that have a result."""
        return [self.every[number] for number in self.jobs.index[self.jobs["status"].isin(["completed", "stale"])]]

    @property
    def columns(self) -> list[str]:
        """What says for people what a job varies."""
        return [*self.alike, *(["what"] if len(self.alike) < len(self.varied) else [])]

    @cached_property
    def _has_seeds(self) -> bool:
        return bool(self.jobs["seed"].nunique() > 1)

    def where(self, expression: str) -> "Sweep":
        """Only the jobs that meet an expression of `onebox.runs.reading.where`."""
        kept = {id(run) for run in select([self.every[number] for number in self.jobs.index], expression)[0]}
        return replace(self, jobs=self.jobs[[id(self.every[number]) in kept for number in self.jobs.index]])

    def job(self, handle: str) -> Run:
        """The job that a number, or the first digits of a fingerprint, means.

        Raises:
            BadInput: it means none, or several.
        """
        known = self.jobs["fingerprint"]
        found = known.index[known.str.startswith(handle)].tolist()
        if handle.isdecimal() and int(handle) in known.index:
            found = [int(handle)]
        several = f"{len(found)} jobs have a fingerprint that begins so: #{ranges(found)}"
        check(len(found) < 2, f"{handle}: {several}")
        there = f"the numbers are {ranges(known.index)}; or give the first digits of a fingerprint"
        check(bool(found), f"{handle}: no such job; {there}")
        return self.every[found[0]]

    def name(self, number: int, *, seed: bool = True) -> str:
        """What a job varies, for people."""
        job = {name: self.jobs.at[number, name] for name in (*self.columns, "seed")}  # a whole row takes longer
        seeds = ["seed"] if seed and self._has_seeds else []
        parts = [f"{key}={cell(job[key])}" for key in [*self.alike, *seeds] if cell(job[key]) != "-"]
        return " ".join([str(job.get("what") or ""), *parts]).strip()
