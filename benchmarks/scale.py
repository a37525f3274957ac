"""A sweep of 10,000 jobs whose fits do nothing: `python -m benchmarks.scale`, or with another number of them.

The jobs are those of `benchmarks.planning`; the planner, its plan on disk, the table and the page are the real ones,
and only the launcher is one that writes a run directory at once, with records as large as real ones. CPU time (user and
system) and peak memory of processes of their own:

`sweep_s`, `sweep_mb`: the whole sweep. `fits_s`: of that, writing the run directories, which real fits do elsewhere.
`again_s`: the same command once more, which finds all jobs done. `table_s`, `table_mb`: `onebox sweep`, beyond
`onebox --help`. `plan_mb`, `files`: size of sweep.json, and how many files the sweep's folder holds.

Prints one line of JSON: lists of figures.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.planning import HEADS, QUICK, RATES
from benchmarks.runs import TAGS

INSIDE = "ONEBOX_BENCHMARK_SECONDS"  # where the sweep's process writes how long the fits took


def no_fit(job: Any, facts: dict[str, Any], number: int) -> float:
    """Writes what a run of a job leaves behind; returns the value of its objective."""
    from onebox.files import write_json

    value = (number * 7919 % 10007) / 10007
    names = ("name", "seed")
    shared = {"fingerprint": job.fingerprint, "fingerprint_seedless": job.fingerprint_seedless, "config": job.config}
    record = facts | shared | {name: job.config[name] for name in names}
    record |= {"choices": dict(job.choices), "overrides": list(job.overrides)}
    best = {f"{split}/{tag}": value for split in ("train", "val") for tag in TAGS} | {"epoch": 3}
    test = dict.fromkeys(TAGS, value)
    classes = {f"class{c}": {"images": 9, **test} for c in range(20)}
    job.folder.mkdir(parents=True)
    write_json(job.folder / "run.json", record)
    metrics = {"schema": 1, "final": best, "best": best, "test": test, "floor": test, "per_class": classes}
    write_json(job.folder / "metrics.json", metrics)
    return value


def run_sweep() -> None:
    """`onebox-train` with a launcher whose jobs do not train."""
    from hydra.core.utils import JobReturn, JobStatus

    import onebox.sweep.launcher
    from onebox.runs.provenance import provenance
    from onebox.train import main

    def launch(*launcher: Any, jobs: Iterator[Any], compose: Any) -> Sequence[JobReturn]:
        now = "2026-11-28T00:00:00.000+00:00"
        facts: dict[str, Any] = {"schema": 1, "status": "completed", "started": now, "ended": now, "seconds": 1.0}
        facts |= provenance(Path())
        returns, seconds = [], 0.0
        for number, job in enumerate(job for job in jobs if job is not None):
            start = time.process_time()
            value = no_fit(job, facts, number)
            returns.append(JobReturn(list(job.overrides), status=JobStatus.COMPLETED, _return_value=value))
            seconds += time.process_time() - start
        Path(os.environ[INSIDE]).write_text(str(seconds))
        return returns

    onebox.sweep.launcher.launch = launch  # type: ignore[assignment]
    main()


def measured(command: list[str], folder: Path, **environment: str) -> tuple[float, float]:
    """CPU time of a command and of the processes that it waited for, s; and its peak memory, MB."""
    process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, command
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    jobs = int(sys.argv[1]) if sys.argv[1:] else 10_000
    seeds = f"seed=range({jobs // len(HEADS) // len(RATES)})"
    axes = [f"model/loc_head={','.join(HEADS)}", f"optimizer.lr={','.join(RATES)}", seeds]
    sweep = [sys.executable, "-m", "benchmarks.scale", "sweep", "-m", *axes, *QUICK]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inside = {"PYTHONPATH": str(Path(__file__).parent.parent), INSIDE: str(folder / "seconds")}
        sweep_s, sweep_mb = measured(sweep, folder, **inside)
        fits_s = float((folder / "seconds").read_text())
        again_s, _ = measured(sweep, folder, **inside)
        onebox, place = str(Path(sys.executable).parent / "onebox"), folder / "outputs/sweeps/default"
        (help_s, _), (table_s, table_mb) = (
            measured([onebox, *arguments], folder) for arguments in (["--help"], ["sweep", str(place)])
        )
        plan_mb = (place / "sweep.json").stat().st_size / 1e6
        files = sum(path.is_file() for path in place.rglob("*"))
        assert len(list(place.glob("*/run.json"))) == len(HEADS) * len(RATES) * (jobs // len(HEADS) // len(RATES))
    figures = {"sweep_s": sweep_s, "sweep_mb": sweep_mb, "fits_s": fits_s, "again_s": again_s}
    figures |= {"table_s": table_s - help_s, "table_mb": table_mb, "plan_mb": plan_mb, "files": files}
    print(json.dumps({figure: [value] for figure, value in figures.items()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["sweep"]:
        del sys.argv[1]
        run_sweep()
    else:
        main()
