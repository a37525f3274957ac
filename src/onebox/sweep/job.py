"""What a job of a sweep does before it trains, in whatever process a launcher has put it."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from onebox.errors import BadInput, check, is_finite
from onebox.files import read_json
from onebox.runs.fingerprint import changed_parts
from onebox.runs.own_code import hashes, now, own_code_of, with_own_code
from onebox.runs.record import ENDED, release, take_directory
from onebox.trust import stored_file

log = logging.getLogger(__name__)

Step = Literal["new", "resume", "again", "keep"]
Value = float | tuple[float | None, ...] | None


def _is_objective(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(tag, str) for tag in value))


RERUN = ("none", "failed", "stale", "all")
PLAN = "sweep.json"  # the plan of a sweep, in its folder
_JOB = {
    **dict.fromkeys(("fingerprint", "fingerprint_seedless"), str),
    "overrides": [str],
    "data_fingerprint": dict,
    "config": dict,
    "varied": {"*": str},
}
_PLAN = {"jobs": [_JOB], "objective": _is_objective, "mode": {"*": str}, "config": dict}
REPLACED = ".replaced"  # folder beside the jobs that receives what is run again


PLANNED_SOURCE = "_ONEBOX_PLANNED_SOURCE"  # environment variable of the jobs of a grid: `source` of its plan


class Done(Exception):
    """The job need not run; `value` is its stored objective."""

    def __init__(self, value: Value) -> None:
        super().__init__(f"done already: {value}")
        self.value = value


def take(
    folder: Path, *, rerun: str, source: str, data: Callable[[], Mapping[str, str]], objective: str | Sequence[str]
) -> dict[str, Any] | None:
    """Take the directory of a job for this process; waits while another process has it.

    The folder's name is the job's fingerprint, so a run in it is of the same config. What is to run again, which
    `rerun` (one of `RERUN`) decides, moves to `REPLACED` first. `source` is the fingerprint of the code; `data` gives
    that of the data, and is only called when it decides.

    Returns:
        What run.json says of the run to resume; None for a new one.

    Raises:
        BadInput: it failed and is not to be tried again.
        Done: it need not run.
    """
    facts = take_directory(folder, wait=True)
    doubtful = rerun == "stale" and facts is not None and facts.get("status") in (*ENDED, "failed")
    stale = doubtful and is_stale(facts or {}, source, data)
    what = next_step(facts, rerun=rerun, stale=stale)
    if what == "keep":
        release(folder)
        if facts is not None and facts["status"] == "failed":
            reason = (facts.get("error") or {}).get("message")
            raise BadInput(f"{folder}: failed ({reason}); rerun=failed tries again")
        raise Done(stored_objective(folder, objective))
    if what == "again" and facts is not None:
        _move_away(folder, facts)
        return None
    return facts


def planned_config(plan: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config of one of a plan's jobs; empty where an older plan does not have it."""
    config: dict[str, Any] = {"": deepcopy(plan.get("config", {}))}
    for key, value in job.get("config", {}).items():
        *above, last = ["", *key.split(".")] if key else [""]
        node = config
        for name in above:
            node = node[name] if isinstance(node.get(name), dict) else node.setdefault(name, {})
        node[last] = value
    found: dict[str, Any] = config[""]
    return found


def planned_varied(plan: Mapping[str, Any], fingerprint: str) -> dict[str, str]:
    """What one of a plan's jobs varies: the value of each key."""
    jobs = (job for job in plan.get("jobs", []) if job["fingerprint"] == fingerprint)
    return {key.lstrip("+~"): str(value) for job in jobs for key, value in (job.get("varied") or {}).items()}


def check_planned(folder: Path, facts: Mapping[str, Any], source: str, plan: Mapping[str, Any]) -> None:
    """Refuse a job of a grid that is not as it was planned, as its result would stand under a planned name.

    Raises:
        BadInput: its config is not in the `plan`, or its code is not that of the sweep.
    """
    planned = os.environ.get(PLANNED_SOURCE)
    if planned is None and facts["fingerprint"] == folder.name:  # of a search, which composes a job when it starts it
        return
    again = "start the sweep again, which keeps what is done"
    jobs = plan.get("jobs", [])
    found = [job for job in jobs if job["fingerprint"] == facts["fingerprint"] == folder.name]
    if not found:
        config = json.loads(json.dumps(facts["config"]))
        before = (planned_config(plan, job) for job in jobs if job["overrides"] == facts["overrides"])
        changed = differences(next(before, config), config)
        keys = ", ".join(key for key, value in changed if folder.name not in str(value))
        raise BadInput(f"{folder}: not in the plan of its sweep, as {keys or 'its config'} has changed since; {again}")
    source = with_own_code(source, hashes(own_code_of(facts)))
    check(source == found[0].get("source", planned), f"{folder}: the code has changed since it was planned; {again}")


def differences(config: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Where another config differs: a dotted key, and all that it has there; "" where the keys themselves differ."""
    if config.keys() != other.keys() or any("." in str(key) for key in other):
        yield prefix.rstrip("."), other
        return
    for key, value in other.items():
        before = config[key]
        if isinstance(value, Mapping) and isinstance(before, Mapping) and value != before:
            yield from differences(before, value, f"{prefix}{key}.")
        elif value != before or type(value) is not type(before):  # 1 is not True, nor 1.0
            yield f"{prefix}{key}", value


def next_step(facts: Mapping[str, Any] | None, *, rerun: str, stale: bool) -> Step:
    """What becomes of a job with these `facts` of run.json (None when there is none); `rerun` is one of `RERUN`."""
    if facts is None:
        return "new"
    status = facts.get("status")
    if status not in (*ENDED, "failed"):
        return "resume"
    if rerun == "all" or (rerun == "stale" and stale):
        return "again"
    return "resume" if status == "failed" and rerun in ("failed", "stale") else "keep"


def is_stale(facts: Mapping[str, Any], source: str, data: Callable[[], Mapping[str, str] | None]) -> bool:
    """Whether a run, or an attempt at it, was made by other code or from other data than those of today.

    `source` is the fingerprint of onebox's code. `data` is only called when it decides, and gives None where the
    fingerprint of the data is not known.
    """
    source = with_own_code(source, now(facts.get("own_code") or {}))
    if any(part.get("source", source) != source for part in (facts, *facts.get("attempts", []))):
        return True
    before = facts.get("data_fingerprint")
    today = data() if before else None
    return bool(before and today and changed_parts(before, today))


def stored_objective(folder: Path, objective: str | Sequence[str]) -> Value:
    """The objective of a run that has ended, as metrics.json has it; None where the fit did not log it."""
    remedy = "rerun=all runs it again, into another folder"
    metrics = read_json(folder / "metrics.json", shape={"best": {"*": is_finite}}, remedy=remedy)
    return value_of(metrics.get("best") or {}, objective)


def value_of(best: Mapping[str, float], objective: str | Sequence[str]) -> Value:
    """The value of one tag, or the values of several, in the row of the best epoch."""
    return best.get(objective) if isinstance(objective, str) else tuple(best.get(tag) for tag in objective)


def read_plan(folder: Path) -> dict[str, Any]:
    """What `onebox.sweep.plan.write_plan` wrote; empty without. Here, as it is read where Hydra is not imported.

    Raises:
        BadInput: it cannot be read.
    """
    if not os.path.lexists(folder / PLAN):
        return {}
    remedy = "move it away: the jobs are found without it"
    plan: dict[str, Any] = read_json(stored_file(folder, PLAN), shape=_PLAN, remedy=remedy)
    known = all("fingerprint" in job and "overrides" in job for job in plan.get("jobs", []))
    check(known, f"{folder / PLAN}: a job has no fingerprint or overrides; {remedy}")
    return plan


def _move_away(folder: Path, facts: Mapping[str, Any]) -> None:
    """Move everything but the lock, run.json last, so that a kill in between leaves a run that ended."""
    started = str(facts.get("started", "")).replace(":", "-")
    target = folder.parent / REPLACED / f"{folder.name}_{started}"
    target.mkdir(parents=True, exist_ok=True)
    # Hydra has already written .hydra and the log of the coming job; they stay.
    stay = {".lock", ".hydra"}
    paths = [path for path in folder.iterdir() if path.name not in stay and path.suffix != ".log"]
    for path in sorted(paths, key=lambda path: path.name == "run.json"):
        path.rename(target / path.name)
    log.info("running again; the run of %s is kept in %s", facts.get("started"), target)
