"""What a sweep has planned is what runs, whatever happens to files meanwhile."""

import functools
import json
import os
import shutil
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

SOURCE = Path(onebox.__file__).parents[1]
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
        pytest.param(["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=1", "threads=1"], marks=pytest.mark.long),
        pytest.param(["hydra/launcher=submitit_local", "threads=1"], marks=pytest.mark.long),
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.long),
    ],
    ids=lambda launcher: launcher[0].partition("=")[2],
)
def test_an_edit_of_configs_and_code_changes_no_job(tmp_path, launcher):
    """Of a copy of the package and of a folder of one's own options, while the first job runs."""
    code = tmp_path / "code"
    shutil.copytree(SOURCE, code, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(SOURCE.parent / "conf", code / "onebox" / "conf", dirs_exist_ok=True)
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\noptimizer: {lr: 0.002}\n")
    arguments = [
        f"--config-dir={mine.parents[1]}",
        "experiment=mine",
        f"data_dir={tmp_path / 'data'}",
        *QUICK,
        *launcher,
    ]
    command = [sys.executable, "-P", "-m", "onebox.train", "-m", *arguments, "seed=0,1,2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    start = functools.partial(
        subprocess.Popen, command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    sweep, folder = start(), tmp_path / "outputs" / "sweeps" / "default"
    while not [*folder.glob("*/run.json")]:
        assert sweep.poll() is None, sweep.stdout.read().decode()
        time.sleep(0.05)
    mine.write_text("# @package _global_\noptimizer: {lr: 0.5}\n")
    losses = code / "onebox" / "losses.py"
    losses.write_text("raise ImportError('edited')\n" + losses.read_text())
    out = sweep.communicate()[0].decode()
    assert sweep.returncode == 0, out
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    assert [record["status"] for record in records] == ["completed"] * 3
    assert {record["config"]["optimizer"]["lr"] for record in records} == {0.002}
    plan = json.loads((folder / "sweep.json").read_text())
    assert {record["source"] for record in records} == {plan["source"]}
    assert {job["fingerprint"] for job in plan["jobs"]} == {record["fingerprint"] for record in records}


def test_a_dry_run_lists_the_jobs_and_leaves_nothing(tmp_path):
    command = [str(Path(sys.executable).parent / "onebox-train"), "--dry-run"]
    for arguments, code, told in (
        (["sweep=lr", "seed=0,1"], 0, "10 jobs: 10 new"),
        (["optimizer.lr=0.1"], 2, "sweep.plan=only lists the jobs of a sweep, and this is one run"),
    ):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert told in done.stdout + done.stderr
        assert (done.stdout.count("to run") == 10) == (code == 0)
        assert not [*tmp_path.iterdir()]
