"""Submit and leave: `hydra.launcher.wait=false`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onebox.errors import BadInput
from onebox.sweep import queue
from onebox.sweep.queue import note_submitted, queued, read_submitted

TOOLS = Path(sys.executable).parent


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands on the PATH; the folder of its state."""
    state, tools = tmp_path / "slurm", tmp_path / "bin"
    state.mkdir(), tools.mkdir()
    code = Path(__file__).with_name("slurm_stand_in.py").read_text()
    for name in ("sbatch", "squeue", "scancel", "srun"):
        (tools / name).write_text(f"#!{sys.executable}\n{code}")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("SLURM_STAND_IN", str(state))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    yield state
    for path in state.glob("[0-9]*"):
        path.unlink()  # what still waits ends
    (state / "go").touch()


def run(*command, cwd):
    done = subprocess.run([TOOLS / command[0], *command[1:]], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("engine", ["slurm", "local"])
def test_the_same_command_submits_each_job_once_and_continues_later(engine, slurm, data, tmp_path):
    given = [text for text in data if not text.startswith(("hydra/launcher", "trainer.max_epochs"))]
    engines = [f"hydra/launcher=submitit_{engine}", "hydra.launcher.wait=false"]
    sweep = ["onebox-train", "-m", "name=left", "optimizer.lr=0.1,0.01,0.001", "threads=1", *given, *engines]
    sweep += ["trainer.max_epochs=2"]

    def statuses():
        return json.loads(run("onebox", "sweep", "left", "--json", cwd=tmp_path))["totals"]

    assert "3 jobs submitted; onebox sweep " in run(*sweep, cwd=tmp_path)
    if engine == "slurm":  # where none has begun yet
        assert statuses() == {"submitted": 3}
        assert "0 jobs submitted, 3 queued or running already" in run(*sweep, cwd=tmp_path)
        subprocess.run(["scancel", "100_1"], check=True)
        assert statuses() == {"submitted": 2, "pending": 1}
        assert "1 job submitted, 2 queued or running already" in run(*sweep, cwd=tmp_path)
        assert (slurm / "submissions").read_text() == "100_0 100_1 100_2\n101\n"
        (slurm / "go").touch()
    document = json.loads(run("onebox", "sweep", "left", "--follow", "--json", cwd=tmp_path))
    assert document["totals"] == {"completed": 3}
    before = read_submitted(tmp_path / "outputs/sweeps/left")
    assert "3 jobs: 3 done" in run(*sweep, cwd=tmp_path)
    assert read_submitted(tmp_path / "outputs/sweeps/left") == before


@contextmanager
def ray_cluster(cwd: Path) -> Iterator[None]:
    """One that only this test finds, and that ends without `ray stop`, which would end those of other tests."""
    command = [TOOLS / "ray", "start", "--head", "--block", "--num-cpus=2", "--port=0", "--include-dashboard=false"]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:  # of a short name
        patch.setenv("RAY_TMPDIR", folder)
        with (cwd / "ray.log").open("w") as log, subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log) as cluster:
            try:
                while "Ray runtime started" not in (cwd / "ray.log").read_text():
                    assert cluster.poll() is None, (cwd / "ray.log").read_text()
                    time.sleep(0.1)
                yield
            finally:
                cluster.terminate()


@pytest.mark.long
def test_jobs_left_on_a_ray_cluster_end_without_the_command(data, tmp_path):
    given = [text for text in data if not text.startswith(("hydra/launcher", "trainer.max_epochs"))]
    sweep = ["onebox-train", "-m", "name=left", "optimizer.lr=0.1,0.01", "threads=1", "trainer.max_epochs=2", *given]
    sweep += ["hydra/launcher=ray", "hydra.launcher.wait=false", "hydra.launcher.ray.init.address=auto"]
    with ray_cluster(tmp_path):
        assert "2 jobs submitted; onebox sweep " in run(*sweep, cwd=tmp_path)
        assert "0 jobs submitted" in run(*sweep, cwd=tmp_path)
        document = json.loads(run("onebox", "sweep", "left", "--follow", "--json", cwd=tmp_path))
        assert document["totals"] == {"completed": 2}
        own = [*sweep[:2], "name=own", "optimizer.lr=0.1", *sweep[4:-2], "hydra.launcher.ray.init.num_cpus=1"]
        assert "1 completed" in run(*own, cwd=tmp_path)  # on a cluster of its own, beside the other


def test_what_a_scheduler_still_has(slurm, tmp_path, monkeypatch):
    note_submitted(tmp_path, "slurm", {"a": "7_0", "b": "7_1", "c": "7_2"})
    (slurm / "7_0").touch(), (slurm / "7_2").touch()
    failed = {"status": "failed", "ended": "2999-01-01T00:00:00.000+00:00"}  # after it was submitted
    assert queued(tmp_path, {"c": failed}) == {"a"}
    assert queued(tmp_path, {"c": failed | {"ended": "2026-01-01T00:00:00.000+00:00"}}) == {"a", "c"}
    monkeypatch.setenv("PATH", "")
    assert queued(tmp_path, {}) == {"a", "b", "c"}  # nobody can be asked: rather not submit twice
    note_submitted(tmp_path, "local", {"a": str(os.getpid()), "b": "x"})
    note_submitted(tmp_path, "ray", {"c": "sweep-1", "d": "sweep-2"})
    assert queued(tmp_path, {}, in_ray={"sweep-2"}) == {"d"}
    assert queued(tmp_path, {"c": {"status": "died"}}) == {"d"}
    monkeypatch.setattr(queue.socket, "gethostname", lambda: "elsewhere")
    assert queued(tmp_path, {}) == {"a", "b", "c", "d"}
    (tmp_path / queue.SUBMITTED).write_text("[]")
    with pytest.raises(BadInput, match=r"\.submitted\.json: cannot be read"):
        queued(tmp_path, {})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hydra/launcher=ray", "hydra.launcher.wait=false"], "a Ray cluster of this sweep would end with the command"),
        (["hydra/launcher=submitit_local", "hydra.launcher.wait=later"], "wait=later: must be true or false"),
        (["hydra/sweeper=tpe", "hydra/launcher=submitit_local", "hydra.launcher.wait=false"], "a search needs the result"),
    ],
)  # fmt: skip
def test_what_cannot_be_left_is_refused_in_one_line(sweeper, arguments, told):
    def sweep():
        found = sweeper("optimizer.lr=0.1,0.01", *arguments)
        found.sweep(found.arguments)

    with pytest.raises(BadInput, match=told):
        sweep()
