"""Jobs that a sweep has handed to a scheduler and left, `hydra.launcher.wait=false`: which of them it still has."""

import os
import socket
import subprocess
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onebox.files import read_json, write_json
from onebox.trust import stored_file

SUBMITTED = ".submitted.json"  # in the sweep's folder
_ENTRY = dict.fromkeys(("engine", "id", "host", "submitted"), str)


def read_submitted(folder: Path) -> dict[str, dict[str, str]]:
    """Fingerprint of each job that was ever submitted -> `engine` (slurm, local or ray), `id`, `host`, `submitted`."""
    if not os.path.lexists(folder / SUBMITTED):
        return {}
    found = read_json(stored_file(folder, SUBMITTED), shape={"jobs": {"*": _ENTRY}}, remedy="move it away")
    jobs: dict[str, dict[str, str]] = found.get("jobs") or {}
    return {name: job for name, job in jobs.items() if job.keys() >= _ENTRY.keys()}


def note_submitted(folder: Path, engine: str, ids: Mapping[str, str]) -> None:
    """Add jobs, fingerprint -> id, that have just been submitted."""
    about = {"engine": engine, "host": socket.gethostname(), "submitted": datetime.now(UTC).isoformat()}
    jobs = read_submitted(folder) | {name: {**about, "id": number} for name, number in ids.items()}
    write_json(folder / SUBMITTED, {"schema": 1, "jobs": jobs})


def queued(folder: Path, records: Mapping[str, Mapping[str, Any]], in_ray: Collection[str] | None = None) -> set[str]:
    """The submitted jobs that have not begun, or will begin again, as far as can be told from this machine.

    Args:
        folder: of the sweep.
        records: fingerprint -> run.json of the jobs that have one.
        in_ray: what Ray still has; None where it was not asked.
    """
    submitted = read_submitted(folder)
    in_slurm = _slurm_jobs() if any(entry["engine"] == "slurm" for entry in submitted.values()) else None
    waiting = set()
    for name, entry in submitted.items():
        record = records.get(name, {})
        if record.get("status") in ("completed", "failed") and str(record.get("ended")) > entry["submitted"]:
            continue
        if entry["engine"] == "slurm":
            is_there = in_slurm is None or entry["id"] in in_slurm
        elif entry["engine"] == "ray":
            is_there = not record if in_ray is None else entry["id"] in in_ray
        else:
            is_there = entry["host"] != socket.gethostname() or _is_submitit(entry["id"])
        if is_there:
            waiting.add(name)
    return waiting


def _slurm_jobs() -> set[str] | None:
    """The ids of all jobs in Slurm's queue, of an array of each task; None where it cannot be asked."""
    try:
        command = ["squeue", "--noheader", "--array", "--format=%i"]
        return set(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split())
    except (OSError, subprocess.SubprocessError):
        return None


def _is_submitit(pid: str) -> bool:
    """Whether a process of this machine is one that submitit_local has started."""
    try:
        return pid.isdecimal() and b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
