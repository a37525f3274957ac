"""What each of the jobs that run at once may use of the machine."""

import os
import subprocess
from collections.abc import Sequence

from onebox.data.processes import num_cores
from onebox.errors import BadInput


def device_slots(n_jobs: int, gpus_per_job: float | None, devices: Sequence[str | int] | None) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each job that runs at once; as many as there are devices for, at most `n_jobs`.

    Args:
        n_jobs: how many are wanted.
        gpus_per_job: whole devices of a job; or 1/k, when k jobs share a device; None assigns none, and all jobs see
            what the sweep sees (a slot of None).
        devices: those to share out; None for what CUDA_VISIBLE_DEVICES says, or all of this machine.

    Raises:
        BadInput: there are too few devices for one job.
    """
    if gpus_per_job is None:
        return [None] * n_jobs
    if gpus_per_job == 0:
        return [""] * n_jobs
    names = [str(device) for device in (visible_devices() if devices is None else devices)]
    if gpus_per_job < 1:
        return [*(names * round(1 / gpus_per_job))[:n_jobs]] or _too_few(gpus_per_job, names)
    size = int(gpus_per_job)
    groups = [",".join(names[start : start + size]) for start in range(0, len(names) - size + 1, size)]
    return [*groups[:n_jobs]] or _too_few(gpus_per_job, names)


def _too_few(gpus_per_job: float, names: Sequence[str]) -> list[str | None]:
    raise BadInput(
        f"hydra.launcher.gpus_per_job={gpus_per_job:g} but the devices are [{', '.join(names)}]; ask for fewer, name "
        "them in hydra.launcher.devices, or set gpus_per_job=null"
    )


def visible_devices() -> list[str]:
    """The NVIDIA devices that this process may use, found without CUDA, which no process may start before it forks."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    try:
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def thread_share(n_jobs: int) -> int:
    """Threads of one of `n_jobs`, such that all together have no more than there are cores; at most OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, num_cores() // n_jobs)
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share
