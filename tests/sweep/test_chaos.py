"""Everything goes wrong at once, and the sweep still ends with what there is to have."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from onebox.data.shapes import write_shapes
from onebox.runs.reading.find import read_run
from onebox.runs.record import is_held

BIN = Path(sys.executable).parent
ARGUMENTS = [
    "-m",
    "seed=range(0,8)",
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
             f"+callbacks.mishap.folder={folder}", *arguments],
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


def test_a_sweep_whose_jobs_and_itself_are_killed_ends_with_all_that_can_be_had(tmp_path):
    write_shapes(tmp_path / "shapes", num_train=24, num_val=8, num_test=8, multi_object_fraction=0.0, min_side=32, max_side=40, seed=0)  # fmt: skip
    sweep = start(tmp_path)

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

    again = start(tmp_path)
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
