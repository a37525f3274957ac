"""What a sweep has planned is what runs, whatever happens to files meanwhile."""

import functools
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

import onebox
from onebox.runs.fingerprint import fingerprints, without_hydra
from onebox.sweep.compose import Composer

BIN = Path(sys.executable).parent
SOURCE = Path(onebox.__file__).parents[1]
LOSS = """from beside import torch


class Doubled(torch.nn.Module):
    weight = 2.0

    def forward(self, preds, targets):
        return self.weight * (preds - targets).abs().mean()
"""
LOC = """_target_: onebox.losses.LocLoss
criterion: {_target_: mylab.losses.Doubled}
space: codes
"""
QUICK = [
    "data.source.num_train=8",
    "data.source.num_val=4",
    "data.source.num_test=4",
    "data.batch_size=4",
    "image_size=24",
    "callbacks/progress=lines",
    "callbacks.pictures=null",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=0.01", "seed=1", "name=mine"],
        ["optimizer=sgd", "optimizer.momentum=0.5", "seed=2"],
        ["model/loc_head=spatial", "loss.weights={loc: 3, cls: 2}", "+model.backbone.activation=x"],
        ["experiment=transfer", "image_size=64", "~callbacks.pictures"],
        ["data=voc2007", "data.classes=[a,b]", "hydra.job.name=x"],
    ],
)
def test_a_job_is_composed_as_hydra_does_it(overrides):
    with initialize_config_module("onebox.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        sweep = loader.load_configuration("train", overrides=[], run_mode=RunMode.MULTIRUN)
        try:
            expected = loader.load_sweep_config(sweep, overrides)
        except Exception as error:
            with pytest.raises(type(error)):
                Composer(loader, sweep)(overrides)
            return
        composer = Composer(loader, sweep)
        composer([overrides[0]])  # what is composed for one job leaves no trace in the next
        job = composer(overrides)
        plain = without_hydra(expected, run_dir="")
        assert fingerprints(plain) == {
            "fingerprint": job.fingerprint,
            "fingerprint_seedless": job.fingerprint_seedless,
        }
        plain.run_dir = str(job.folder)
        assert job.config == OmegaConf.to_container(plain, resolve=True)
        assert job.folder == Path(expected.hydra.sweep.dir, job.fingerprint)
        run = composer.with_hydra(overrides, 3)
        expected.hydra.job.id, expected.hydra.job.num = f"{expected.hydra.job.name}_3", 3
        assert OmegaConf.to_container(run, resolve=False) == OmegaConf.to_container(expected, resolve=False)
        assert job.choices["optimizer"] == expected.hydra.runtime.choices["optimizer"]


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=hermetic"],
        pytest.param(
            ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=1", "threads=1"],
            marks=pytest.mark.long(minutes=3),
        ),
        pytest.param(["hydra/launcher=submitit_local", "threads=1"], marks=pytest.mark.long),
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.long),
    ],
    ids=lambda launcher: launcher[0].partition("=")[2],
)
def test_an_edit_of_configs_and_code_changes_no_job(tmp_path, launcher):
    """Of a copy of the package, of a folder of one's own options and of a package of one's own, while a job runs."""
    code = tmp_path / "code"
    shutil.copytree(SOURCE, code, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(SOURCE.parent / "conf", code / "onebox" / "conf", dirs_exist_ok=True)
    project = own_project(tmp_path / "project")
    mine, loss = project / "conf/experiment/mine.yaml", project / "src/mylab/losses.py"
    arguments = [
        f"--config-dir={project / 'conf'}",
        "experiment=mine",
        f"data_dir={tmp_path / 'data'}",
        *QUICK,
        *launcher,
    ]
    command = [sys.executable, "-P", "-m", "onebox.train", "-m", *arguments, "seed=0,1,2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{code}{os.pathsep}{project / 'src'}"}
    start = functools.partial(
        subprocess.Popen, command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    sweep, folder = start(), tmp_path / "outputs" / "sweeps" / "default"
    while not [*folder.glob("*/run.json")]:
        assert sweep.poll() is None, sweep.stdout.read().decode()
        time.sleep(0.05)
    mine.write_text(mine.read_text().replace("0.002", "0.5"))
    for path in (code / "onebox" / "losses.py", loss, loss.parents[1] / "beside.py"):
        path.write_text("raise ImportError('edited')\n" + path.read_text())
    out = sweep.communicate()[0].decode()
    assert sweep.returncode == 0, out
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    assert [record["status"] for record in records] == ["completed"] * 3
    assert {record["config"]["optimizer"]["lr"] for record in records} == {0.002}
    plan = json.loads((folder / "sweep.json").read_text())
    assert {record["source"] for record in records} == {job["source"] for job in plan["jobs"]} != {plan["source"]}
    assert {job["fingerprint"] for job in plan["jobs"]} == {record["fingerprint"] for record in records}
    for path in folder.glob("*/changes.patch.gz"):
        text = gzip.decompress(path.read_bytes()).decode()
        assert "+    weight = 2.0" in text and "optimizer: {lr: 0.002}" in text and "edited" not in text
    table = [sys.executable, "-P", "-c", "from onebox.cli import main; main()", "sweep", str(folder), "--json"]
    done = subprocess.run(table, env=environment, capture_output=True, text=True, check=True)
    assert [row["status"] for row in json.loads(done.stdout)["rows"]] == ["stale"]


@pytest.mark.long
def test_a_run_of_ones_own_names_a_command_that_resumes_it(tmp_path):
    project = own_project(tmp_path / "my project")
    arguments = [*QUICK, "trainer.max_epochs=60", "callbacks.checkpoint_last.epoch_seconds=0", "hydra.run.dir=out put"]
    command = [str(BIN / "onebox-train"), "--config-dir", "conf", "experiment=mine", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project / "src")}
    run = subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
    while not (project / "out put/checkpoints/last.ckpt").exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    told = run.communicate()[1].splitlines()[-1]
    assert "trust=[mylab]" in told
    again = told.partition("; ")[2].removesuffix(" resumes it")
    again = again.replace("onebox-train", str(BIN / "onebox-train"), 1)
    done = subprocess.run(again, shell=True, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((project / "out put/run.json").read_text())
    assert (record["status"], len(record["attempts"])) == ("completed", 1)


def own_project(folder):
    """A repository with options and a loss of one's own, which is not committed and imports a module beside it."""
    for name, text in {
        "conf/experiment/mine.yaml": "# @package _global_\ndefaults: [{override /loss/loc: mine}]\noptimizer: {lr: 0.002}\n",
        "conf/loss/loc/mine.yaml": LOC,
        "src/mylab/__init__.py": "",
        "src/mylab/losses.py": LOSS,
        "src/beside.py": "import torch\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    return folder


def test_a_dry_run_lists_the_jobs_and_leaves_nothing(tmp_path):
    command = [str(BIN / "onebox-train"), "--dry-run"]
    for arguments, code, told in (
        (["sweep=lr", "seed=0,1"], 0, "10 jobs: 10 new"),
        (["optimizer.lr=0.1"], 2, "sweep.plan=only lists the jobs of a sweep, and this is one run"),
    ):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert told in done.stdout + done.stderr
        assert (done.stdout.count("to run") == 10) == (code == 0)
        assert not [*tmp_path.iterdir()]
