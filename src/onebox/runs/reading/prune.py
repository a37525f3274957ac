"""Which runs may lose their checkpoints, by rules that a user gives."""

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from onebox.errors import check
from onebox.runs.reading.find import Run, best_tag
from onebox.runs.reading.noise import lower_is_better
from onebox.runs.record import stored_checkpoints

UNITS_S = {"h": 3600, "d": 86_400, "w": 604_800}


def read_rules(keep: str | None, older: str | None) -> tuple[int | None, float | None]:
    """How many of the best runs keep their checkpoints, and from which age on others lose them, s.

    Raises:
        BadInput: one is not as the command takes it, or there is none.
    """
    check(bool(keep or older), "give a rule: --keep best:5, --older 30d, or both")
    best = re.fullmatch(r"best:(\d{1,9})", keep or "best:0")
    age = re.fullmatch(r"(\d{1,9})([hdw])", older or "0h")
    check(best is not None, f"--keep {keep}: takes best:N, such as best:5")
    check(age is not None, f"--older {older}: takes hours, days or weeks, such as 12h, 30d or 4w")
    assert best is not None
    assert age is not None
    return int(best[1]) if keep else None, float(age[1]) * UNITS_S[age[2]] if older else None


def kept(runs: Sequence[Run], best: int | None, older_s: float | None) -> dict[Run, str]:
    """Each run that has checkpoints -> why it keeps them, or an empty text.

    A run that is running keeps them. Of `best` are the best of each folder, by its objective; without `older_s` one
    keeps them too that can be resumed or has no such value. A search is done with what it has pruned.
    """
    groups: dict[Any, list[tuple[float, Run]]] = defaultdict(list)
    for run in runs:
        objective = run.config.get("objective") or run.config.get("monitor")
        tag = str(objective[0] if isinstance(objective, list) and objective else objective)
        is_min = run.config.get("monitor_mode") == "min" if tag == run.config.get("monitor") else lower_is_better(tag)
        if run.record.get("status") == "completed" and best_tag(tag) in run.tags:
            groups[run.path.parent, tag].append((run.tags[best_tag(tag)] * (1 if is_min else -1), run))
    ranked = {run: place for group in groups.values() for place, (_, run) in enumerate(sorted(group, key=_value))}
    reasons = {}
    for run in runs:
        if not (files := stored_checkpoints(run.path)):
            continue
        age_s = time.time() - _ended(run, max(state.st_mtime for state in files.values()))
        reasons[run] = ""
        if run.record.get("status") == "running":
            reasons[run] = "running"
        elif older_s is not None and age_s < older_s:
            reasons[run] = "not as old"
        elif best is not None and ranked.get(run, best) < best:
            reasons[run] = "among the best"
        elif older_s is None and run not in ranked and run.record.get("status") != "pruned":
            reasons[run] = "without a result"
    return reasons


def num_bytes(run: Run) -> int:
    """How much room the checkpoints of a run take; the best and the last may be one file."""
    states = stored_checkpoints(run.path).values()
    return sum({(state.st_dev, state.st_ino): state.st_size for state in states}.values())


def _value(item: tuple[float, Run]) -> tuple[float, str]:
    return item[0], str(item[1].path)


def _ended(run: Run, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(str(run.record.get("ended"))).timestamp()
    except ValueError:
        return otherwise
