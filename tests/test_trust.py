"""A run directory that someone else made is data: no reader runs, writes or reads anything outside of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import onebox
from onebox.cli import app
from onebox.errors import BadInput
from onebox.sweep.job import read_plan
from onebox.trust import check_config, check_paths, check_stored, is_allowed, stored_file, stored_overrides


@pytest.mark.parametrize(
    "target",
    [
        "os.mkdir",
        "builtins.eval",
        "hydra.utils.get_method",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "onebox.data.resize.torch.load",
        "torch.nn.parallel.distributed.os.mkdir",
        "onebox.files.write_text",
        "albumentations.load",
        "albumentations.core.serialization.open",
        "lightning.pytorch.utilities.cloud_io.get_filesystem",
        "torch.nn.Module.load_state_dict",
        "torch.nn.modules.module.torch.load",
        "onebox.train.main",
        "onebox.no_such.thing",
        "onebox",
    ],
)
def test_what_is_not_on_the_list_is_refused_whatever_its_name_begins_with(target):
    with pytest.raises(BadInput, match=re.escape(target)):
        check_config({"model": {"backbone": [{"_target_": target}]}}, "config.yaml")


def test_a_target_is_found_wherever_it_stands_and_whatever_it_is():
    for value in ("os.system", ["os.system"], {"_target_": "os.system"}, None, 3):
        for config in (
            {"a": [[{"b": {"_target_": value, "_partial_": True, "_recursive_": False}}]]},
            {"a": {"_args_": [{"_target_": value}]}},
            {"_target_": "torch.nn.Dropout", "p": {"_target_": value}},
        ):
            with pytest.raises(BadInput, match="built only with your consent"):
                check_config(config, "config.yaml")
    for text in ("${oc.env:HOME}", "x${a}", "${oc.create:${oc.env:X}}"):
        with pytest.raises(BadInput, match="interpolation"):
            check_config({"a": [{"b": text}], text: 1}, "config.yaml")


def test_a_log_that_has_another_name_elsewhere_is_not_written_to(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("")
    os.link(tmp_path / "mine", tmp_path / "run/train.log")
    with pytest.raises(BadInput, match=r"train\.log: has another name elsewhere"):
        stored_overrides(tmp_path / "run", [])


def test_what_the_shipped_configs_and_their_kind_name_is_allowed():
    for target in (
        "onebox.model.localizer.Localizer",
        "torch.nn.CrossEntropyLoss",
        "torch.nn.Dropout",
        "torch.optim.RMSprop",
        "torch.optim.lr_scheduler.StepLR",
        "albumentations.GaussianBlur",
        "torchvision.ops.complete_box_iou_loss",
        "lightning.pytorch.Trainer",
    ):
        assert is_allowed(target), target
    for target in ("lightning.pytorch.loggers.TensorBoardLogger", "lightning.pytorch.callbacks.EarlyStopping"):
        assert is_allowed(target), target  # older runs name them
    assert not is_allowed("json.JSONDecoder")
    assert is_allowed("json.JSONDecoder", ("json",))


def test_an_interpolation_cannot_become_a_target_later():
    with pytest.raises(BadInput, match="interpolation"):
        check_config({"a": "${oc.create:{_target_: os.mkdir}}"}, "config.yaml")


def test_a_stored_config_writes_into_its_own_folder_only(tmp_path):
    inside = {"logger": {"tensorboard": {"save_dir": str(tmp_path / "tensorboard")}}, "data": {"root": "/data"}}
    check_paths(inside, tmp_path, "config.yaml")
    for path in ("/etc/passwd", "../victim", "a/../../victim", "~/victim"):
        with pytest.raises(BadInput, match="outside of"):
            check_paths({"callbacks": {"pictures": {"path": path}}}, tmp_path, "config.yaml")
    (tmp_path / "VOCdevkit/VOC2007/Annotations").mkdir(parents=True)
    for root in ("VOCdevkit", "VOCdevkit/VOC2007"):
        check_stored({"data": {"root": str(tmp_path / root), "source": {}}}, tmp_path, tmp_path)
    with pytest.raises(BadInput, match="neither generates nor downloads"):
        check_stored({"data": {"root": str(tmp_path / "none"), "source": {}}}, tmp_path, tmp_path)


def test_stored_overrides_hold_no_options_of_hydra_and_nothing_that_is_called(tmp_path):
    options = ["hydra.run.dir=/x", "+hydra/launcher=joblib", "--config-dir=/x", "-m"]
    # Nor the address of a service that a logger would upload to.
    options += ["logger.mlflow.options.tracking_uri=http://x", "+logger={x: {a: b}}", "++logger.csv._target_=a.B"]
    for text in (*options, "name=${oc.env:HOME}", "data={cache_dir: /x}", 3):
        with pytest.raises(BadInput, match=r"overrides\.yaml"):
            stored_overrides(tmp_path, [text])
    mine = ["logger=wandb", "logger.csv=null", "seed=1"]
    assert stored_overrides(tmp_path, [*mine, "data.cache_dir=/x", "data_dir=/x", "loss.weights.loc=${seed}"]) == [
        *mine,
        "loss.weights.loc=${seed}",
    ]


def test_a_run_directory_from_which_links_lead_is_not_resumed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name, make in {"checkpoints": lambda path: path.symlink_to(tmp_path / "elsewhere"), ".lock": os.mkfifo}.items():
        make(tmp_path / "run" / name)
        with pytest.raises(BadInput, match=f"{name}: is a link that leads out"):
            stored_overrides(tmp_path / "run", [])
        (tmp_path / "run" / name).unlink()


def test_commands_read_no_record_through_a_link_nor_wait_for_a_pipe(tmp_path):
    record = json.dumps({"schema": 1, "status": "running", "name": "secret"})
    for name in ("link", "pipe", "locked"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "secret.json").write_text(record)
    (tmp_path / "runs/link/run.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(tmp_path / "runs/pipe/run.json")
    (tmp_path / "runs/locked/run.json").write_text(record.replace("secret", "shown"))
    os.mkfifo(tmp_path / "runs/locked/.lock")
    os.mkfifo(tmp_path / "runs/sweep.json")
    done = CliRunner().invoke(app, ["runs", "--outputs", str(tmp_path / "runs"), "--json"])
    assert done.exit_code == 0 and "shown" in done.stdout and "secret" not in done.stdout
    with pytest.raises(BadInput, match=r"sweep\.json"):
        read_plan(tmp_path / "runs")


def test_links_out_of_the_folder_and_pipes_are_no_files_of_a_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "config.yaml").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "run.json")
    for name, told in (("config.yaml", "link"), ("run.json", "no such file"), ("samples.npz", "no such file")):
        with pytest.raises(BadInput, match=told):
            stored_file(folder, name)


@pytest.fixture
def hostile(tmp_path):
    """A run directory that tries to make a folder `victim` by each of its files."""
    folder, victim = tmp_path / "outputs" / "run", tmp_path / "victim"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    attack = {"_target_": "onebox.data.resize.torch.os.mkdir", "path": str(victim)}
    config = {
        "model": {"_target_": "onebox.model.localizer.Localizer", "backbone": attack},
        "augment": {"_target_": "onebox.data.augment.AlbumentationsTransform", "transforms": [attack]},
        "data": attack,
        "callbacks": {"x": attack, "pictures": {"path": str(victim)}},
        "fingerprint_ignore": ["name"],
        "monitor": "val/joint_acc",
        "run_dir": str(victim),
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / ".hydra" / "overrides.yaml").write_text(
        json.dumps([f"+callbacks.x={{_target_: os.mkdir, path: {victim}}}"])
    )
    record = {
        "schema": 1,
        "status": "completed",
        "name": "[red]x\x1b[31m",
        "seed": 0,
        "fingerprint": "0123456789ab",
        "fingerprint_seedless": "0123456789ab",
        "started": "2026-11-23T15:37:56+00:00",
        "choices": {"../../victim": "x"},
        "overrides": ["seed=0"],
        "config": config,
        "git": {"sha": f"--output={victim}", "branch": "main", "dirty": True},
        "packages": {},
        "hardware": {"threads": 1},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text(json.dumps({"schema": 1, "best": {"val/joint_acc": 0.5}, "test": {}}))
    torch.save(Attack(victim), folder / "checkpoints" / "last.ckpt")
    return folder, victim


class Attack:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.fixture
def crowded(hostile, tmp_path):
    """A hostile run whose files are links to outside, among two others of which one cannot be told from it."""
    folder, victim = hostile
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("metrics.csv", "trace.csv", "samples.npz", "changes.patch.gz", "report.html", "events.out.tfevents.1"):
        (secret / name).write_text("s3cret,step,epoch\n1,1,1\n")
        (folder / name).symlink_to(secret / name)
    os.link(secret / "metrics.csv", folder / "train.log")
    for name in ("tensorboard", "Annotations", "JPEGImages", "index"):
        (folder / name).symlink_to(secret)
    (folder / "checkpoints/best.ckpt").symlink_to(secret / "samples.npz")
    for place in (folder, folder / ".hydra"):
        os.mkfifo(place / "pipe")
    record = json.loads((folder / "run.json").read_text())
    for name, changes in {"other": {"seed": 1, "git": {"sha": "-h", "branch": "x"}}, "plain": {"seed": 2}}.items():
        (folder.parent / name).mkdir()
        (folder.parent / name / "run.json").write_text(json.dumps(record | changes))
        (folder.parent / name / "metrics.json").write_text(json.dumps({"best": {"val/joint_acc": 0.1 * len(name)}}))
    return folder, victim


COMMANDS = {
    "runs": ["", "--json", "--markdown", "--csv -", "--where git.sha~*out* --sort name"],
    "sweep": ["{outputs}", "{outputs} --seeds --markdown"],
    "diff": ["{run} {other}", "{other} {run} --all", "{run} {other} --json", "{run} {other} --markdown"],
    "explain": ["{outputs}", "{outputs} --json", "{run} {other}", "{outputs} seed=0 seed=1"],
    "evaluate": ["{run}", "{run} --split val --json", "{other}"],
    "reproduce": ["{run}", "{run} --steps 1", "{run} --checkout", "{other}", "{run} --trust os"],
    "check": ["{run}", "{run} --json", "{run} --data coco"],
    "show": ["{run}", "{run} --html {out}.html", "folder data.root={run} --json", "folder resume={run}"],
    "cache": ["data.cache_dir={run}", "data.cache_dir={run} --clear"],
    "convert": ["{run} {out} --to csv"],
    "download": [],  # reads no folder of others
    "lr-find": [],
    "predict": ["{run} {run}", "{other} {run} --format csv"],
    "export": ["{run} --out {out}.onnx", "{run} --to torch"],
    "new": ["{run}", "--trust {run}"],
    "prune": ["{outputs} --keep best:1 --dry-run", "{outputs} --older 1d --dry-run"],
}


def test_the_walk_leaves_out_no_command():
    found = [
        *app.registered_commands,
        *(one for group in app.registered_groups for one in group.typer_instance.registered_commands),
    ]
    assert {one.name or one.callback.__name__.replace("_", "-") for one in found} == COMMANDS.keys()


@pytest.mark.parametrize(("command", "options"), [(name, text) for name, texts in COMMANDS.items() for text in texts])
def test_no_command_does_what_a_hostile_run_directory_asks_for(crowded, tmp_path, monkeypatch, command, options):
    folder, victim = crowded
    monkeypatch.chdir(tmp_path)
    names = {"run": folder, "other": folder.parent / "other", "outputs": folder.parent, "out": tmp_path / "out"}
    group = ["data"] if command in ("check", "show", "cache", "convert") else []

    def state():
        paths = [path for path in tmp_path.rglob("*") if "outputs/reproduced" not in str(path)]
        return {path: path.read_bytes() if path.is_file() else b"" for path in paths}

    before = state()
    done = CliRunner().invoke(app, [*group, command, *(part.format(**names) for part in options.split())])
    assert isinstance(done.exception, SystemExit | BadInput | None), done.exception
    assert not victim.exists() and state() == before
    told = done.output + str(done.exception)
    assert "No such command" not in told
    assert "s3cret" not in told and "\x1b" not in done.output, told


def test_load_run_and_resume_build_nothing_that_is_not_allowed(hostile, tmp_path, shapes_root):
    folder, victim = hostile
    with pytest.raises(BadInput, match=r"names onebox\.data\.resize\.torch\.os\.mkdir"):
        onebox.load_run(folder)
    command = [sys.executable, "-m", "onebox.train", f"resume={folder}", f"data.root={shapes_root}", "data.source=null"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "names os.mkdir" in done.stderr, done.stderr
    assert not victim.exists()


def test_data_show_builds_nothing_of_a_resumed_run_that_is_not_allowed(hostile, tmp_path, monkeypatch, shapes_root):
    folder, victim = hostile
    attack = f"+augment.x={{_target_: onebox.data.resize.torch.os.mkdir, path: {victim}}}"
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([attack]))
    monkeypatch.chdir(tmp_path)
    shown = ["data", "show", "shapes", f"resume={folder}", f"data.root={shapes_root}", "data.source=null"]
    done = CliRunner().invoke(app, shown)
    assert not victim.exists()
    assert isinstance(done.exception, BadInput) and "names onebox.data.resize.torch.os.mkdir" in str(done.exception)


@pytest.mark.long
def test_no_process_imports_a_module_from_the_working_directory(tmp_path, shapes_root):
    """Servers and helpers start as `python -c`, which looks there first."""
    for name in ("onebox", "pickle", "multiprocessing", "torch", "tempfile"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'mark')!r}, 'a').write(__name__)\nraise SystemExit(9)"
        )
    command = [
        Path(sys.executable).parent / "onebox-train",
        "-m",
        "seed=0,1",
        f"data.root={shapes_root}",
        "data.source=null",
    ]
    options = ["debug=fast", "data.num_workers=1", "callbacks/progress=lines", "callbacks.pictures=null"]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    plain["TMPDIR"] = str(tmp_path / ("x" * 105))  # too long for the sockets by which workers and servers talk
    Path(plain["TMPDIR"]).mkdir()
    done = subprocess.run([*command, *options], cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert (done.returncode, (tmp_path / "mark").exists()) == (0, False), done.stderr
