"""How the jobs of a sweep are run, and what each of those that run at once may use of the machine."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onebox.data.processes import num_cores
from onebox.errors import BadInput, check, is_integer, is_number


@dataclass(frozen=True)
class LaunchOptions:
    """How jobs are run.

    Raises:
        BadInput: one of them cannot be used.
    """

    n_jobs: int  # how many jobs run at once
    threads_per_job: int | None  # CPU threads of each job; None for its share of the cores
    gpus_per_job: float | None  # devices of each job; 1/k when k jobs share one; None assigns none
    devices: Sequence[str | int] | None  # the devices to share out; None for all that are visible
    timeout_s: float | None  # an attempt that takes longer is stopped and has failed, s; None for no limit
    grace_s: float  # from the request to stop until the process is killed, s
    on_error: Literal["continue", "stop"]  # `continue` with the other jobs, or `stop` them
    max_retries: int  # how often a job that failed is tried again; not for bad input, which stays bad

    def __post_init__(self) -> None:
        gpus = self.gpus_per_job
        is_whole = is_number(gpus, 0) and (float(gpus or 0).is_integer() or float(1 / (gpus or 1)).is_integer())
        threads_fit = self.threads_per_job is None or is_integer(self.threads_per_job, 1)
        for name, fits, wanted in (
            ("n_jobs", is_integer(self.n_jobs, 1), "a number >= 1"),
            ("threads_per_job", threads_fit, "null or a number >= 1"),
            ("gpus_per_job", gpus is None or is_whole, "null, a whole number or 1/k such as 0.5"),
            ("timeout_s", self.timeout_s is None or is_number(self.timeout_s, 1e-9), "null or a number > 0"),
            ("grace_s", is_number(self.grace_s, 0), "a number >= 0"),
            ("on_error", self.on_error in ("continue", "stop"), "continue or stop"),
            ("max_retries", is_integer(self.max_retries, 0), "a number >= 0"),
        ):
            check(fits, f"hydra.launcher.{name} must be {wanted}, not {getattr(self, name)}")


def device_slots(n_jobs: int, gpus_per_job: float | None, devices: Sequence[str | int] | None) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each job that runs at once: at most `n_jobs`, and as many as there are devices for.

    With `gpus_per_job` None every job sees what the sweep sees (a slot of None). Without `devices` all that are visible
    are shared out.

    Raises:
        BadInput: there are too few devices for one job.
    """
    if gpus_per_job is None:
        return [None] * n_jobs
    if gpus_per_job == 0:
        return [""] * n_jobs
    names = [str(device) for device in (visible_devices() if devices is None else devices)]
    size = max(1, int(gpus_per_job))
    groups = [",".join(names[start : start + size]) for start in range(0, len(names) - size + 1, size)]
    sharing = round(1 / gpus_per_job) if gpus_per_job < 1 else 1
    if not groups:
        raise BadInput(
            f"hydra.launcher.gpus_per_job={gpus_per_job:g} but the devices are [{', '.join(names)}]; ask for fewer, "
            "name them in hydra.launcher.devices, or set gpus_per_job=null"
        )
    return [*(groups * sharing)[:n_jobs]]


def visible_devices() -> list[str]:
    """The NVIDIA devices that this process may use, found without CUDA, which no process may start before it forks."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
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
