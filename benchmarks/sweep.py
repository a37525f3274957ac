"""What a sweep costs beside its trainings: `python -m benchmarks.sweep`, or with `--jobs 3 --epochs 1` to try it.

All sweeps are the installed command over seeds of one small experiment on the embedded data set. `alone` is what one
training takes in a process that has imported everything, from the first line of its run.json to the last: the median of
the jobs that Hydra's basic launcher runs, without the first. Whatever is more is the sweep's: the start of the command,
imports, composing, checking, processes.

`serial`: wall time of the hermetic launcher with one job at a time, over jobs x alone. `parallel`: jobs per hour with
two at once and one thread each, over one at a time with all threads. `extra_s`: seconds a job that hermetic takes more
than the basic launcher, which does not isolate. `isolation`: overhead of a job with submitit_local over that with
hermetic, where overhead is what a sweep takes beyond the same sweep with nothing left to do, a job, less `alone`.

Prints one line of JSON: lists of figures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

from onebox.files import read_json

COMMAND = str(Path(sys.executable).parent / "onebox-train")
EXPERIMENT = ["trainer.accelerator=cpu", "callbacks/progress=lines"]
ISOLATED_JOBS = 1  # submitit_local starts all of them at once
LEAST_S = 0.01  # of overhead, so that noise cannot make the ratio infinite


def sweep(folder: Path, name: str, jobs: int, epochs: int, *arguments: str) -> float:
    """Wall time of a sweep over so many seeds, s."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    seeds = ",".join(str(seed) for seed in range(jobs))
    command = [COMMAND, "--multirun", f"name={name}", f"seed={seeds}", f"trainer.max_epochs={epochs}"]
    start = time.perf_counter()
    subprocess.run([*command, *EXPERIMENT, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def seconds_alone(folder: Path, name: str) -> list[float]:
    """What the trainings of a sweep took, in the order in which they ran, s."""
    records = [read_json(path) for path in folder.glob(f"outputs/sweeps/{name}/*/run.json")]
    assert all(record["status"] == "completed" for record in records)
    spans = sorted((record["started"], record["ended"]) for record in records)
    return [(datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for start, end in spans]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3, help="such that a job takes about 5 s")
    jobs, epochs = vars(parser.parse_args()).values()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep(folder, "first", 1, 1)  # writes the data and fills the cache
        basic = sweep(folder, "basic", jobs, epochs, "hydra/launcher=basic")
        alone = median(seconds_alone(folder, "basic")[1:])
        one = sweep(folder, "one", jobs, epochs)
        one_again = sweep(folder, "one", jobs, epochs)
        two = sweep(folder, "two", jobs, epochs, "hydra.launcher.n_jobs=2", "hydra.launcher.threads_per_job=1")
        submitit = ["hydra/launcher=submitit_local"]
        isolated = sweep(folder, "isolated", ISOLATED_JOBS, epochs, *submitit)
        isolated_again = sweep(folder, "isolated", ISOLATED_JOBS, epochs, *submitit)
        theirs = (isolated - isolated_again) / ISOLATED_JOBS - alone
        ours = (one - one_again) / jobs - alone
    print(f"a job takes {alone:.2f} s alone; overhead of hermetic {ours:.2f} s, of submitit_local {theirs:.2f} s")
    figures = {
        "serial": one / (jobs * alone),
        "parallel": one / two,
        "extra_s": (one - basic) / jobs,
        "isolation": theirs / max(ours, LEAST_S),
    }
    print(json.dumps({figure: [value] for figure, value in figures.items()}))


if __name__ == "__main__":
    main()
