"""A sweep on other engines gives the bits that its jobs give alone.

Each engine runs as a user starts it, with real workers: Ray's cluster, submitit's processes, joblib's workers. What they
are compared with are forks of the nursery, fresh for each run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onebox.data.shapes import write_shapes

COMMAND = Path(sys.executable).parent / "onebox-train"
RATES = ("0.001", "0.002", "0.003", "0.004")
COMMON = [
    "data.source=null",
    "data.batch_size=8",
    "image_size=24",
    "augment=flip",
    "model.backbone.dropout=0.3",
    "monitor=val/iou",
    "callbacks/progress=lines",
    "callbacks.pictures=null",
    "callbacks.checkpoint_last.epoch_seconds=0",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=10",
    "threads=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Arguments that all trainings here have."""
    root = tmp_path_factory.mktemp("engines")
    sizes = {"num_train": 40, "num_val": 12, "num_test": 8}
    write_shapes(root / "shapes", **sizes, multi_object_fraction=0.0, min_side=32, max_side=40, seed=0)
    return [f"data.root={root / 'shapes'}", f"data.cache_dir={root / 'cache'}", *COMMON]


@pytest.fixture(scope="module")
def alone(nursery, data, tmp_path_factory):
    """The run of each learning rate."""
    root = tmp_path_factory.mktemp("alone")
    for rate in RATES:
        log = root / f"{rate}.log"
        assert nursery.run(*data, f"optimizer.lr={rate}", f"hydra.run.dir={root / rate}", log=log) == 0, log.read_text()
    return {rate: root / rate for rate in RATES}


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def start(arguments, folder):
    return subprocess.Popen(
        [str(COMMAND), "-m", *arguments, "name=engine"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_same(sweep, alone, rates):
    for rate in rates:
        run = sweep / facts(alone[rate])["fingerprint"]
        assert facts(run)["status"] == "completed"
        assert facts(run)["final_weights"] == facts(alone[rate])["final_weights"]
        for name in ("metrics.json", "metrics.csv", "trace.csv"):
            assert (run / name).read_bytes() == (alone[rate] / name).read_bytes(), (rate, name)


@pytest.mark.parametrize(
    "launcher, rates",
    [
        # Two jobs a worker.
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], RATES, marks=pytest.mark.long),
        pytest.param(["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"], RATES[:2], marks=pytest.mark.long),
    ],
    ids=["joblib", "ray"],
)
def test_a_sweep_gives_the_bits_of_its_jobs_alone(data, alone, tmp_path, launcher, rates):
    process = start([*data, *launcher, f"optimizer.lr={','.join(rates)}"], tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "ConfigStore schema" not in out
    assert_same(tmp_path / "outputs/sweeps/engine", alone, rates)


@pytest.mark.long
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(data, alone, tmp_path):
    """As on Slurm, where submitit sends the same signal to the same handler."""
    process = start([*data, "hydra/launcher=submitit_local", f"optimizer.lr={RATES[0]}"], tmp_path)
    sweep = tmp_path / "outputs/sweeps/engine"
    run = sweep / facts(alone[RATES[0]])["fingerprint"]
    while not (run / "checkpoints/last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.kill(owner(run / ".lock"), signal.SIGUSR2)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert_same(sweep, alone, RATES[:1])
    (attempt,) = facts(run)["attempts"]
    assert (attempt["status"], attempt["error"]["message"]) == ("interrupted", "stopped by SIGTERM")


def owner(lock):
    """The process that has a lock file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(lock):
                return int(link.parts[2])
        except OSError:
            continue  # ended meanwhile
    raise AssertionError(f"nobody has {lock}")


def test_an_engine_that_is_not_installed_is_one_line_with_the_command_that_installs_it(tmp_path):
    gone = "hydra.launcher._target_=hydra_plugins.hydra_ray_launcher.ray_launcher.NotThere"
    process = start(["seed=0,1", "hydra/launcher=ray", gone], tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 2
    assert out == 'onebox-train: hydra_ray_launcher is not installed: pip install "onebox[ray]"\n'
