"""`onebox new`, and a project whose options and classes are found by whoever stands in it."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onebox.cli import new
from onebox.errors import BadInput
from onebox.project import MARK, SIGN, enter

BIN = Path(sys.executable).parent
TEMPLATE = Path(new.__file__).parent / "project"
FAST = ["experiment=mine", "debug=fast", "image_size=32", "callbacks.pictures=null", "trainer.accelerator=cpu"]


class Project:
    """A project, the home of its owner beside it, and commands in it."""

    def __init__(self, folder: Path, nursery) -> None:
        self.folder, self._nursery = folder, nursery
        self.home = folder.with_name("home")

    def run(self, *argv: str, code: int = 0, at: str = ".", program: str = "onebox-train", **env: str) -> str:
        """What a command in the folder `at` prints."""
        log, cwd = self.folder.with_name("log"), self.folder / at
        log.unlink(missing_ok=True)
        env = {"XDG_CONFIG_HOME": str(self.home)} | env
        assert self._nursery.run(*argv, log=log, cwd=cwd, program=program, **env) == code, log.read_text()
        return log.read_text()

    def train(self, *argv: str, **options) -> str:
        return self.run(*FAST, f"data.root={self.data}", "data.source=null", *argv, **options)


@pytest.fixture(scope="module")
def project(tmp_path_factory, nursery, shapes_root) -> Project:
    project = Project(tmp_path_factory.mktemp("own") / "my thesis", nursery)
    project.data = shapes_root
    project.folder.mkdir()
    told = project.run("new", ".", program="onebox")
    assert f"cd '{project.folder}'" in told and "onebox-train experiment=mine" in told
    project.train("--config-dir=conf", "hydra.run.dir=outputs/first")
    return project


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_run_uses_the_classes_of_its_project_and_they_are_part_of_its_source_and_its_patch(project):
    run = record(project.folder / "outputs/first")
    assert run["config"]["model"]["loc_head"]["_target_"] == "my_project.heads.AxesHead"
    assert run["config"]["loss"]["loc"]["criterion"]["_target_"] == "my_project.losses.Charbonnier"
    assert set(run["own_code"]) == {str(project.folder / "conf"), "my_project"}
    assert run["config_folders"] == [str(project.folder / "conf")]  # once, though it was named too
    patch = gzip.decompress((project.folder / "outputs/first/changes.patch.gz").read_bytes()).decode()
    assert "+class AxesHead(Head):" in patch and "+  - override /model/loc_head: mine" in patch


def test_help_and_completion_know_its_options_in_a_folder_of_it_too(project):
    for at in (".", "my_project"):
        assert "model/loc_head: attention_pool, cells, dense, edges, linear, mine, mlp" in project.run("--help", at=at)
        line = {"COMP_LINE": "onebox-train model/loc_head=mi", "COMP_POINT": "30"}
        assert "model/loc_head=mine" in project.run("-sc", "query=bash", at=at, **line)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["predict", "outputs/first", "{image}"], "px"),
        (["evaluate", "outputs/first"], "95 % interval"),
        (["export", "outputs/first"], "every class the same"),
        (["reproduce", "outputs/first"], "identical"),
        (["diff", "outputs/first", "outputs/reproduced/first/*"], "same source"),
        (["sweep", "outputs", "--json"], '"completed"'),
        (["lr-find", *FAST[:3], "--steps", "20", "data.root={data}", "data.source=null"], "optimizer.lr="),
        (["data", "check", "--data", "shapes", "data.root={data}"], "images"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_take_its_runs_without_a_word_of_trust(project, command, told):
    image = next(project.data.glob("JPEGImages/*"))
    command = [text.format(image=image, data=project.data) for text in command]
    command = [str(next(project.folder.glob(text), text)) if "*" in text else text for text in command]
    assert told in project.run(*command, program="onebox")


def test_load_run_trusts_the_project_that_it_stands_in_and_no_other_package(project, tmp_path):
    code = "import onebox; print(type(onebox.load_run('{}').localizer.loc_head))"
    for at, run in ((".", "outputs/first"), ("tests", "../outputs/first")):
        assert "my_project.heads.AxesHead" in project.run(code.format(run), at=at, program="python")
    run = project.folder / "outputs/first"
    assert "names my_project.heads.AxesHead" in project.run(
        code.format(run), at=str(tmp_path), program="python", code=1
    )


def test_a_sweep_in_it_is_kept_until_its_code_changes_and_a_run_resumes(project, tmp_path):
    copy = Project(tmp_path / "copy", project._nursery)
    shutil.copytree(project.folder, copy.folder, ignore=shutil.ignore_patterns("outputs"))
    copy.data, copy.home = project.data, project.home
    sweep = ["-m", "model/loc_head=mine,mlp", "name=s"]
    assert "2 jobs: 2 completed" in copy.train(*sweep)
    assert "2 jobs: 2 done" in copy.train(*sweep, "rerun=stale")
    plan = json.loads((copy.folder / "outputs/sweeps/s/sweep.json").read_text())
    for job in plan["jobs"]:
        run = record(copy.folder / "outputs/sweeps/s" / job["fingerprint"])
        assert run["source"] == job["source"] != plan["source"]
    losses = copy.folder / "my_project/losses.py"
    losses.write_text(losses.read_text() + "\n# edited\n")
    assert "2 jobs: 2 again" in copy.train(*sweep, "rerun=stale")
    copy.train(
        "trainer.max_epochs=4", "callbacks.checkpoint_last.epoch_seconds=0", "hydra.run.dir=r", code=-9, hit_at=60
    )
    assert record(copy.folder / "r")["status"] == "running"
    copy.run("resume=r")
    assert record(copy.folder / "r")["status"] == "completed"


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=hermetic", "trainer.devices=2", "trainer.strategy=ddp"],
        ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=1", "threads=1"],
        ["hydra/launcher=submitit_local", "threads=1"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "sweep.snapshot=false"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    ],
    ids=lambda launcher: launcher[0].partition("=")[2],
)
def test_each_launcher_finds_its_code(project, tmp_path, launcher):
    """Also where the sweep, and with it the copies of the code, lies outside of the project."""
    command = [BIN / "onebox-train", "-m", *FAST, f"data.root={project.data}", "data.source=null", "seed=0,1"]
    environment = os.environ | {"XDG_CONFIG_HOME": str(project.home), "OMP_NUM_THREADS": "1"}
    command += [*launcher, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [record(path.parent) for path in tmp_path.glob("sweep/*/run.json")]
    assert [(run["status"], set(run["own_code"])) for run in runs] == [
        ("completed", {str(project.folder / "conf"), "my_project"})
    ] * 2


@pytest.mark.parametrize("how", ["a clone", "made by another", "no home"])
def test_nothing_of_a_strangers_project_is_run_until_it_is_trusted(project, tmp_path, how):
    stranger = Project(tmp_path / "stranger", project._nursery)
    shutil.copytree(project.folder, stranger.folder)
    (stranger.folder / "my_project/__init__.py").write_text("open('mark', 'w')")
    if how == "a clone":
        (stranger.folder / MARK).unlink()
    home = {"XDG_CONFIG_HOME": "", "HOME": "nowhere"} if how == "no home" else {}
    told = f"onebox new --trust {stranger.folder}"
    out = stranger.run("--help", **home)
    assert told in out and "mine" not in out.partition("Groups")[2]
    assert "experiment=mine" in stranger.run("experiment=mine", code=2, **home)
    assert "names my_project" in stranger.run("predict", "outputs/first", "x.jpg", program="onebox", code=2, **home)
    line = {"COMP_LINE": "onebox-train data=sh", "COMP_POINT": "20"}
    assert stranger.run("-sc", "query=bash", **line, **home).strip() == "data=shapes"
    assert not (stranger.folder / "mark").exists()
    if how == "no home":
        assert "XDG_CONFIG_HOME" in stranger.run("new", "--trust", ".", program="onebox", code=2, **home)
    else:
        stranger.run("new", "--trust", ".", program="onebox")
        assert "mine" in stranger.run("--help").partition("Groups")[2]


def test_a_folder_with_options_and_packages_that_is_no_project_is_left_alone(project, tmp_path):
    other = Project(tmp_path / "other", project._nursery)
    shutil.copytree(TEMPLATE, other.folder)
    (other.folder / "pyproject.toml").write_text("[project]\n")
    assert "mine" not in other.run("--help").partition("Groups")[2]
    assert SIGN in other.run("new", "--trust", ".", program="onebox", code=2)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("random.py", "random.py has the same name"),
        ("torch/__init__.py", "torch/__init__.py has the same name"),
        ("onebox.py", "has the same name"),
        ("conf/loss/loc/l1.yaml", "conf/loss/loc/l1.yaml: onebox has an option of this name"),
    ],
)
def test_what_would_be_mistaken_for_something_else_is_refused(project, tmp_path, name, told):
    copy = Project(tmp_path / "copy", project._nursery)
    shutil.copytree(project.folder, copy.folder, ignore=shutil.ignore_patterns("outputs"))
    copy.home = project.home
    (copy.folder / name).parent.mkdir(exist_ok=True)
    (copy.folder / name).write_text("")
    (line,) = copy.run("experiment=mine", "--cfg", "job", code=2).splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("name", "told"),
    [("taken", "holds files"), ("taken/file", "is a file"), ("a:b", "colon"), ("taken/file/below", "Not a directory")],
)
def test_a_folder_that_cannot_be_one_is_refused_and_left_as_it_is(tmp_path, monkeypatch, name, told):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    with pytest.raises((BadInput, OSError), match=told):
        new.new(tmp_path / name)
    assert [*tmp_path.rglob("*")] == [tmp_path / "taken", tmp_path / "taken/file"]


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_it_halfway_leaves_nothing(tmp_path, monkeypatch, is_there, error):
    def fail(root):
        raise error

    monkeypatch.setattr(new, "trust_project", fail)
    folder = tmp_path / "mine"
    if is_there:
        folder.mkdir()
    with pytest.raises(type(error)):
        new.new(folder)
    assert [*tmp_path.rglob("*")] == ([folder] if is_there else [])


def test_where_the_list_of_projects_cannot_be_written_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    with pytest.raises(BadInput, match="/dev/null/onebox/projects: Not a directory; set XDG_CONFIG_HOME"):
        new.new(tmp_path / "mine")
    assert not [*tmp_path.iterdir()]


def test_a_working_directory_that_is_gone_is_no_project(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert enter() is None
