"""The jobs of a sweep: which combinations there are, each composed, and what is known of them before they run."""

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from onebox.errors import BadInput, check
from onebox.files import alone, write_json
from onebox.overrides import as_meant
from onebox.runs.own_code import hashes, with_own_code
from onebox.runs.reading.find import Run
from onebox.runs.reading.where import select
from onebox.sweep.job import PLAN, differences, read_plan
from onebox.validation import explain

SCHEMA = 1
_NAME = re.compile(r"(?!(null|true|false|nan|inf|infinity)$)[a-z_][\w./-]*", re.I | re.ASCII)  # it needs no quotes


@dataclass(frozen=True)
class Job:
    """One combination, composed."""

    overrides: tuple[str, ...]  # what Hydra composes it from
    config: Mapping[str, Any]  # resolved; plain data
    choices: Mapping[str, str | None]  # the option of each group
    fingerprint: str  # see `onebox.runs.fingerprint`
    fingerprint_seedless: str  # the same for all seeds
    folder: Path  # its run directory
    own_code: Mapping[str, Path] = field(default_factory=dict)  # see `onebox.runs.own_code`

    def __str__(self) -> str:
        return " ".join(self.overrides)


def combinations(overrides: Iterable[Override], jobs: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, ...]]:
    """All combinations of the values that overrides list, each with each of the explicit `jobs`; later keys win.

    Raises:
        BadInput: one lists values that are not countable, or `jobs` is no list of sets.
    """
    overrides = list(overrides)
    for override in overrides:
        check(
            not override.is_sweep_override() or override.is_discrete_sweep(),
            f"{override.input_line}: a grid needs single values, such as {override.get_key_element()}=1,2; "
            "hydra/sweeper=tpe takes ranges",
        )
    is_list = jobs is None or (bool(jobs) and all(isinstance(job, Mapping) for job in jobs))
    check(is_list, f"sweep.jobs takes a list of sets such as [{{optimizer.lr: 1e-3}}], not {jobs}")
    (grid,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    explicit = [[f"{key}={as_override(value)}" for key, value in job.items()] for job in jobs or [{}]]
    pairs = (
        {text.partition("=")[0]: text for text in [*one, *other]} for one, other in itertools.product(grid, explicit)
    )
    return [tuple(pair.values()) for pair in pairs]


def as_override(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_override, value)) + "]"
    if isinstance(value, str):
        return value if _NAME.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value).lower()


class Jobs:
    """The jobs of some combinations, composed one after the other, without those that are the same as an earlier one.

    Attributes:
        combined: the combinations.
        composed: the jobs so far.
        problems: what is wrong -> the first combination that it is wrong with.
    """

    def __init__(self, combined: Sequence[tuple[str, ...]], compose: Callable[[Sequence[str]], Job]) -> None:
        self.combined, self._compose = combined, compose
        self.composed: list[Job] = []
        self.problems: dict[str, str] = {}
        self._names: set[str] = set()
        self._looked_at: dict[tuple[str, ...], Job | None] = {}
        self._left = iter(combined)

    def look_ahead(self, is_new_kind: Callable[[str, set[str]], bool]) -> None:
        """Compose one job for each key and each unknown option, so that all typos are among the `problems`."""
        seen: set[str] = set()
        for overrides in self.combined:
            try:
                is_new = [is_new_kind(text, seen) for text in overrides]  # of all, so that all are seen
            except HydraException:
                is_new = [True]
            if any(is_new):
                self._looked_at[overrides] = self._one(overrides)

    def advance(self) -> bool:
        """Compose the next one; False when there is none."""
        for overrides in self._left:
            job = self._looked_at.pop(overrides) if overrides in self._looked_at else self._one(overrides)
            if job is not None and job.fingerprint not in self._names:
                self._names.add(job.fingerprint)
                self.composed.append(job)
            return True
        return False

    def refuse_problems(self, consequence: str) -> None:
        """Raise BadInput that names what is wrong, if anything is."""
        lines = [what if what.startswith(where) else f"{where}: {what}" for what, where in self.problems.items()]
        check(not lines, f"{'; '.join(lines)}; {consequence}")

    def _one(self, overrides: tuple[str, ...]) -> Job | None:
        try:
            for text in overrides:
                as_meant(text)  # a list of values may hold what no option is
            return self._compose(overrides)
        except (BadInput, HydraException, OmegaConfBaseException) as error:
            what = " ".join(explain(error, overrides).split())
            if what not in self.problems:
                self.problems[what] = " ".join(overrides)
            return None


def compose_jobs(combined: Iterable[tuple[str, ...]], compose: Callable[[Sequence[str]], Job]) -> list[Job]:
    """Compose all jobs of some combinations.

    Raises:
        BadInput: names every combination that cannot be composed.
    """
    jobs = Jobs(list(combined), compose)
    while jobs.advance():
        pass
    jobs.refuse_problems("no job was started")
    return jobs.composed


def without_excluded(jobs: Sequence[Job], expression: str | None) -> list[Job]:
    """Leave out the jobs that meet an expression of `onebox.runs.reading.where`.

    Raises:
        BadInput: it cannot be parsed, no job has a key of it, or no job is left.
    """
    if expression is None:
        return list(jobs)
    runs = [Run(job.folder, {"config": job.config, "choices": job.choices}) for job in jobs]
    left_out = {run.path for run in select(runs, expression, "sweep.exclude")[0]}
    kept = [job for job in jobs if job.folder not in left_out]
    check(bool(kept), f"sweep.exclude='{expression}' leaves no job")
    return kept


def varied(combined: Sequence[tuple[str, ...]]) -> list[dict[str, str]]:
    """For each combination the overrides that not all have."""
    pairs = [dict(text.split("=", 1) for text in overrides) for overrides in combined]
    keys = dict.fromkeys(key for pair in pairs for key in pair)
    shown = [key for key in keys if len({pair.get(key) for pair in pairs}) > 1]
    return [{key: pair[key] for key in shown if key in pair} for pair in pairs]


def write_plan(
    folder: Path,
    jobs: Sequence[Job],
    *,
    combined: Sequence[tuple[str, ...]] = (),
    objective: Mapping[str, str],
    source: str,
    data_fingerprints: Mapping[str, Mapping[str, str]],
) -> None:
    """Write what is planned to `sweep.json` in the sweep's folder; what earlier starts planned stays in it.

    `objective` maps tags to max or min, `data_fingerprints` the fingerprints of jobs to those of their data, as far as
    they are known; `source` is the fingerprint of onebox's code; `combined` are all combinations, where `jobs` are not
    all of them yet.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with alone(folder / ".sweep.lock", waiting="another process is planning this sweep; waiting"):
        before = read_plan(folder)
        known = {job["fingerprint"]: job for job in before.get("jobs", [])}
        first = before.get("config") or jobs[0].config
        combined = combined or [job.overrides for job in jobs]
        shown = dict(zip(combined, varied(combined), strict=True))
        for job in jobs:
            known[job.fingerprint] = {
                "fingerprint": job.fingerprint,
                "fingerprint_seedless": job.fingerprint_seedless,
                "seed": job.config["seed"],
                "overrides": list(job.overrides),
                "varied": shown[job.overrides],
                "data_fingerprint": data_fingerprints.get(job.fingerprint),
                "source": with_own_code(source, hashes(job.own_code)),
                "config": dict(differences(first, job.config)),
                "planned": now,
            }
        plan = {
            "schema": SCHEMA,
            "name": jobs[0].config["name"],
            "started": now,
            "command": sys.argv,
            "objective": list(objective),
            "mode": dict(objective),
            "source": source,
            "config": first,  # resolved; jobs say where theirs differ
            "jobs": [{"number": number, **job} for number, job in enumerate(known.values())],
        }
        write_json(folder / PLAN, plan)
