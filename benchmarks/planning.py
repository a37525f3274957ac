"""What it takes to plan a sweep of 1,000 jobs: `python -m benchmarks.planning`, or with another number of them.

All jobs are combinations of four heads, ten learning rates and seeds, on the embedded data set. `cpu_s` and `mb`: CPU
time and peak memory of `onebox-train --dry-run`, which composes all of them. `first_job_s`: wall time until the first
job of the sweep has its run.json, less that of importing what jobs need in a process of its own.

Prints one line of JSON: lists of figures.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "onebox-train")
HEADS, RATES = ("linear", "mlp", "spatial", "edges"), [f"{number}e-4" for number in range(1, 11)]
QUICK = ["data.source.num_train=64", "data.source.num_val=16", "data.source.num_test=16", "trainer.accelerator=cpu"]


def start(folder: Path, jobs: int, *arguments: str) -> subprocess.Popen[bytes]:
    seeds = f"seed=range({jobs // len(HEADS) // len(RATES)})"
    axes = [f"model/loc_head={','.join(HEADS)}", f"optimizer.lr={','.join(RATES)}", seeds]
    command = [COMMAND, "-m", *axes, *QUICK, "callbacks/progress=lines", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def main() -> None:
    jobs = int(sys.argv[1]) if sys.argv[1:] else 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planning = start(folder, jobs, "--dry-run")
        _, status, used = os.wait4(planning.pid, 0)
        assert status == 0

        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import onebox.sweep.preload"], check=True)
        imports = time.perf_counter() - begin
        begin = time.perf_counter()
        sweep = start(folder, jobs)
        while not any(folder.glob("outputs/sweeps/default/*/run.json")):
            assert sweep.poll() is None
            time.sleep(0.02)
        first = time.perf_counter() - begin
        sweep.terminate()  # what a shell puts into the background ignores Ctrl-C
        sweep.wait()
    figures = {"cpu_s": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1024, "first_job_s": first - imports}
    print(json.dumps({figure: [value] for figure, value in figures.items()}))


if __name__ == "__main__":
    main()
