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

    Attributes:
        n_jobs: how many jobs run at once.
        threads_per_job: CPU threads of each job; None for its share of the cores.
        gpus_per_job: devices of each job; 1/k when k jobs share one; None assigns none.
        devices: the devices to share out; None for all that are visible.
        timeout_s: an attempt that takes longer is stopped and has failed, s; None for no limit.
        grace_s: from the request to stop until the process is killed, s.
        on_error: `continue` with the other jobs, or `stop` them.
        max_retries: how often a job that failed is tried again; not for bad input, which stays bad.

    Raises:
        BadInput: one of them cannot be used.
    """

    n_jobs: int
    threads_per_job: int | None
    gpus_per_job: float | None
    devices: Sequence[str | int] | None
    timeout_s: float | None
    grace_s: float
    on_error: Literal["continue", "stop"]
    max_retries: int

    def __post_init__(self) -> None:
        threads, gpus, timeout = self.threads_per_job, self.gpus_per_job, self.timeout_s
        whole = is_number(gpus, 0) and (float(gpus or 0).is_integer() or float(1 / (gpus or 1)).is_integer())
        for condition, text in (
            (is_integer(self.n_jobs, 1), f"n_jobs must be a number >= 1, not {self.n_jobs}"),
            (
                threads is None or is_integer(threads, 1),
                f"threads_per_job must be null or a number >= 1, not {threads}",
            ),
            (gpus is None or whole, f"gpus_per_job must be null, a whole number or 1/k such as 0.5, not {gpus}"),
            (timeout is None or is_number(timeout, 1e-9), f"timeout_s must be null or a number > 0, not {timeout}"),
            (is_number(self.grace_s, 0), f"grace_s must be a number >= 0, not {self.grace_s}"),
            (self.on_error in ("continue", "stop"), f"on_error must be continue or stop, not {self.on_error}"),
            (is_integer(self.max_retries, 0), f"max_retries must be a number >= 0, not {self.max_retries}"),
        ):
            check(condition, f"hydra.launcher.{text}")


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
