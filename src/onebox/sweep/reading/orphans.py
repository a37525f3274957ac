"""What lies in a sweep's folder that its plan no longer has."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onebox.errors import Line, check
from onebox.runs.reading.find import Run, find_runs
from onebox.runs.reading.table import PLACES, Listing
from onebox.sweep.job import PLAN, read_plan


def superseded(plan: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprint of a job -> the one that a later start gave to the same overrides, as configs or code had changed."""
    jobs = {str(job["fingerprint"]): tuple(sorted(job["overrides"])) for job in plan.get("jobs", [])}
    planned = {str(job["fingerprint"]): str(job.get("planned", "")) for job in plan.get("jobs", [])}
    newest = {jobs[name]: name for name in sorted(jobs, key=planned.__getitem__)}
    return {name: newest[overrides] for name, overrides in jobs.items() if newest[overrides] != name}


def list_orphans(folder: Path) -> Listing:
    """The run directories in a sweep's folder that are none of its plan, with how they ended and their size.

    Raises:
        BadInput: there is no plan.
    """
    plan = read_plan(folder)
    check(bool(plan), f"{folder}: has no {PLAN} (a search has none), so nothing says which folders are orphans")
    known, old = {str(job["fingerprint"]) for job in plan["jobs"]}, superseded(plan)
    runs = {run.path: run for run in find_runs(folder)}
    for path in sorted(folder.iterdir()):  # begun by a process that was killed before it wrote run.json
        if path.is_dir() and not path.is_symlink() and re.fullmatch("[0-9a-f]{12}", path.name):
            runs.setdefault(path, Run(path, {"status": "no run.json"}))
    names = {path: str(run.record.get("fingerprint") or path.name) for path, run in runs.items()}
    found = [run for path, run in runs.items() if names[path] not in known or names[path] in old]
    sizes = [_num_bytes(run.path) / 1e6 for run in found]
    new = [old.get(names[run.path]) for run in found]
    typed = [[text for text in run.record.get("overrides", []) if not text.startswith(PLACES)] for run in found]
    columns: dict[str, list[Any]] = {
        "folder": [str(run.path) for run in found],
        "status": [str(run.record.get("status")) for run in found],
        "size_mb": [round(size, 2) for size in sizes],
        "started": [str(run.record.get("started", "")) for run in found],
        "why": [f"planned now as {name}" if name else "not planned" for name in new],
        "overrides": [" ".join(texts) for texts in typed],
    }
    total: Line = [
        (f"{len(found):,} folder{'s'[: len(found) != 1]} that the plan does not have, {sum(sizes):,.1f} MB", "")
    ]
    return Listing(columns, shown=list(columns), metrics=[], notes=[total], facts={"sweep": str(folder)})


def _num_bytes(folder: Path) -> int:
    """Of all files below a folder; no link is followed."""
    return sum(os.lstat(Path(place, name)).st_size for place, _, names in os.walk(folder) for name in names)
