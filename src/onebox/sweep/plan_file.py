"""Reads what is planned of a sweep, without Hydra: its import takes longer than all that `onebox sweep` does."""

from pathlib import Path
from typing import Any

from onebox.errors import BadInput
from onebox.files import read_json
from onebox.trust import stored_file

FILE = "sweep.json"


def read_plan(folder: Path) -> dict[str, Any]:
    """What `onebox.sweep.plan.write_plan` wrote; empty without.

    Raises:
        BadInput: it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        plan: dict[str, Any] = read_json(stored_file(folder, FILE))
        known = all("fingerprint" in job for job in plan.get("jobs", []))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); move it away, the jobs are found without it") from error
    if not known:
        raise BadInput(f"{path}: a job has no fingerprint; move the file away, the jobs are found without it")
    return plan
