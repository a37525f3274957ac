"""Everything goes wrong at once, and the sweep still ends with what there is to have."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onebox.data.shapes import write_shapes
from onebox.runs.reading.find import read_run
from onebox.runs.record import is_held

BIN = Path(sys.executable).parent
ARGUMENTS = [
    "-m",
    "name=chaos",
    "data.source=null",
    "data.batch_size=8",
    "image_size=24",
    "callbacks/progress=lines",
    "callbacks.pictures=null",
    "callbacks.checkpoint_last.epoch_seconds=0",
    "trainer.max_epochs=3",
    "hydra.launcher.n_jobs=2",
    "hydra.launcher.threads_per_job=1",
    "hydra.launcher.grace_s=3",
]
MISHAPS = [
    "+callbacks.mishap._target_=mishaps.Mishap",
    "+callbacks.mishap.seed=${seed}",
    "+callbacks.mishap.plan={0: hang, 1: raise, 2: kill}",
    "+callbacks.mishap.pause_s=0.1",
]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with (folder / "out.log").open("a") as log:
        return subprocess.Popen(
            [BIN / "onebox-train", *ARGUMENTS, f"data.root={folder / 'shapes'}", f"data.cache_dir={folder / 'cache'}",
             *arguments],
            cwd=folder, env=environment, stdout=log, stderr=log, text=True,
        )  # fmt: skip


def table(folder: Path) -> dict[int, dict]:
    """What `onebox sweep` says of each seed."""
    command = [BIN / "onebox", "sweep", "outputs/sweeps/chaos", "--seeds", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return {job["seed"]: job for job in json.loads(done.stdout)["rows"]}


def statuses(folder: Path) -> Counter[str]:
    return Counter(job["status"] for job in table(folder).values())


def runs(folder: Path) -> list:
    return [run for path in (folder / "outputs/sweeps/chaos").glob("*/") if (run := read_run(path)) is not None]


def wait_until(condition, *, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def make_data(folder: Path) -> None:
    sizes = {"num_train": 24, "num_val": 8, "num_test": 8, "min_side": 32, "max_side": 40}
    write_shapes(folder / "shapes", **sizes, multi_object_fraction=0.0, seed=0)


def test_a_job_is_forked_from_another_server_where_one_is_killed_meanwhile():
    code = """
import os, signal, threading, time
from multiprocessing.forkserver import _forkserver as server
from onebox.sweep import process

def kill():
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)

process._context.set_forkserver_preload([])
server.ensure_running()
pid = server._forkserver_pid
os.kill(pid, signal.SIGSTOP)  # so that it cannot answer before it is killed
threading.Thread(target=kill).start()
job = process.start(os._exit, (7,))
job.join()
assert server._forkserver_pid != pid
print(job.exitcode)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")


@pytest.mark.long
def test_a_sweep_whose_jobs_and_itself_are_killed_ends_with_all_that_can_be_had(tmp_path):
    make_data(tmp_path)
    arguments = ["seed=range(0,8)", *MISHAPS, f"+callbacks.mishap.folder={tmp_path}"]
    sweep = start(tmp_path, *arguments)

    def is_half_way():
        ended = [run.record["status"] for run in runs(tmp_path)]
        return (ended.count("completed") >= 2 and ended.count("failed") == 2) or sweep.poll() is not None

    wait_until(is_half_way, timeout_s=240)
    sweep.send_signal(signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL, (tmp_path / "out.log").read_text()

    # Its jobs do not live on; the one that hangs is past stopping by itself.
    wait_until(lambda: not any(is_held(run.path, unknown=True) for run in runs(tmp_path)), timeout_s=30)
    told = table(tmp_path)
    assert told[0]["status"] == "died"
    assert told[1]["status"] == told[2]["status"] == "failed"
    assert "seed 1 always fails" in told[1]["note"]
    assert "SIGKILL" in told[2]["note"]
    completed = {seed for seed, job in told.items() if job["status"] == "completed"}
    assert len(completed) >= 2
    assert len(told) == 8  # what never began is told as well

    again = start(tmp_path, *arguments)
    assert again.wait(timeout=240) == 1, (tmp_path / "out.log").read_text()
    assert statuses(tmp_path) == {"completed": 7, "failed": 1}
    assert table(tmp_path)[1]["status"] == "failed"
    ended = Counter((tmp_path / "ended").read_text().split())
    assert ended == dict.fromkeys("0234567", 1)  # nothing was done twice
    for run in runs(tmp_path):
        assert (run.path / "metrics.json").exists() == (run.record["status"] == "completed")
        assert not list(run.path.rglob("*.tmp"))
    resumed = [run for run in runs(tmp_path) if run.record["seed"] in (0, 2)]
    assert all(run.record["attempts"] for run in resumed)
    assert (
        "always fails" in (next(run for run in runs(tmp_path) if run.record["seed"] == 1).path / "job.log").read_text()
    )


def processes_of_jobs(folder: Path) -> list[int]:
    """Those that hold the lock of a run."""
    files = {str(path.stat().st_ino) for path in (folder / "outputs/sweeps/chaos").glob("*/.lock")}
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sorted(int(lock[4]) for lock in locks if lock[1] == "POSIX" and lock[5].rpartition(":")[2] in files)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) of each tag."""
    (place,) = (folder / "tensorboard").iterdir()  # named after what the job varies
    events = EventAccumulator(str(place), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.long(minutes=3)
def test_of_a_hundred_jobs_and_twenty_kills_nothing_is_lost_and_nothing_done_twice(tmp_path):
    """Kills of jobs, of the sweep, and of the process that jobs are forked from, at any moment."""
    make_data(tmp_path)
    chance = random.Random(0)
    kinds = ["job"] * 12 + ["sweep"] * 6 + ["server"] * 2
    chance.shuffle(kinds)
    arguments = ["seed=range(0,100)", "trainer.max_epochs=2", "hydra.launcher.max_retries=9"]
    sweep, done = start(tmp_path, *arguments), {}

    def completed() -> dict[int, dict]:
        return {run.record["seed"]: run.record for run in runs(tmp_path) if run.record["status"] == "completed"}

    def may_kill(num_ended: int) -> bool:
        """Whether a job runs, and as many have ended that the kills lie all over the sweep."""
        ended = len(list((tmp_path / "outputs/sweeps/chaos").glob("*/metrics.json")))
        return sweep.poll() is not None or (ended >= num_ended and bool(processes_of_jobs(tmp_path)))

    for number, kind in enumerate(kinds):
        wait_until(lambda number=number: may_kill(4 * number), timeout_s=300)
        assert sweep.poll() is None, (tmp_path / "out.log").read_text()
        time.sleep(2 * chance.random())  # a job takes about as long
        jobs = processes_of_jobs(tmp_path)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if kind == "job" and jobs:
                os.kill(chance.choice(jobs), signal.SIGKILL)
            elif kind == "server" and jobs:
                os.kill(int(Path(f"/proc/{jobs[0]}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
        if kind == "sweep" or not jobs:
            sweep.kill()
            sweep.wait()
            done |= completed()
            sweep = start(tmp_path, *arguments)
    assert sweep.wait(timeout=900) == 0, (tmp_path / "out.log").read_text()
    assert statuses(tmp_path) == {"completed": 100}
    records = completed()
    assert {seed: records[seed] for seed in done} == done  # what was complete was not run again
    for run in runs(tmp_path):
        epochs = [line.partition(",")[0] for line in (run.path / "metrics.csv").read_text().splitlines()[1:]]
        assert epochs == ["0", "1"]
        assert (run.path / "metrics.json").exists() and not list(run.path.rglob("*.tmp"))
    cut_off = sorted(seed for seed, record in records.items() if record.get("attempts"))
    assert len(cut_off) >= 5  # of the kills that hit a fit; others hit a start, an end or the sweep

    # A job that was killed has the bits of one that was not.
    straight = tmp_path / "straight"
    make_data(straight)
    some = cut_off[:10]
    seeds = f"seed={','.join(map(str, some))}"
    assert start(straight, seeds, *arguments[1:]).wait(timeout=300) == 0, (straight / "out.log").read_text()
    killed = {run.record["seed"]: run for run in runs(tmp_path)}
    for run in runs(straight):
        other = killed[run.record["seed"]]
        assert run.record["final_weights"] == other.record["final_weights"]
        for name in ("metrics.csv", "metrics.json"):
            assert (run.path / name).read_bytes() == (other.path / name).read_bytes()
        assert [scalars(run.path)] == [scalars(other.path)]
