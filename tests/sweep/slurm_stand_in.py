"""Slurm's commands as far as submitit and onebox use them, with real processes; linked as sbatch, squeue, scancel, srun.

In the folder $SLURM_STAND_IN lies a file for each task that is queued or runs. Tasks begin when there is a file `go`.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["SLURM_STAND_IN"])


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    submissions = HERE / "submissions"
    number = len(submissions.read_text().splitlines()) + 100 if submissions.exists() else 100
    array = re.search(r"^#SBATCH --array=0-(\d+)", text, re.M)
    tasks = [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [str(number)]
    with submissions.open("a") as file:
        file.write(f"{' '.join(tasks)}\n")
    copy = HERE / f"script-{number}.sh"  # as Slurm keeps one
    copy.write_text(text)
    for task in tasks:
        (HERE / task).touch()
        subprocess.Popen(
            [sys.executable, __file__, "run", task, str(copy)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    print(f"Submitted batch job {number}")


def run(task: str, script: str) -> None:
    while not (HERE / "go").exists():
        time.sleep(0.05)
    if not (HERE / task).exists():
        return  # cancelled
    job, _, index = task.partition("_")
    about = {"SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "node1"}
    if index:
        about |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index}
    subprocess.run(["bash", script], env={**os.environ, **about})
    (HERE / task).unlink(missing_ok=True)


def srun(*arguments: str) -> None:
    given = list(arguments)
    while given[0].startswith("-"):
        if given.pop(0) in ("--output", "--error"):
            given.pop(0)
    os.execvpe(given[0], given, {**os.environ, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})


def squeue(*_: str) -> None:
    print("\n".join(path.name for path in HERE.glob("[0-9]*")))


def scancel(task: str) -> None:
    (HERE / task).unlink()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(*sys.argv[2:])
    else:
        {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "srun": srun}[Path(sys.argv[0]).name](*sys.argv[1:])
