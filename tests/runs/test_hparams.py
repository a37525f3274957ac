"""What TensorBoard's HPARAMS tab shows."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import plugin_data_pb2

from onebox.runs.hparams import complete, name_events, session


def post(port: int, what: str, content: dict) -> dict:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/data/plugin/hparams/{what}",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@pytest.mark.long
def test_tensorboard_shows_all_jobs_what_they_vary_and_how_they_ended(tmp_path, shapes_root):
    """A real sweep, beside it a session that fails, and a real TensorBoard on their folder."""
    tools = Path(sys.executable).parent
    varied = ["loss/loc=l1,giou", "model.loc_head.dropout=0.5,0", "sweep.exclude='loss/loc==l1 and model.loc_head.dropout>0'"]  # fmt: skip
    rest = ["name=small", "hydra/launcher=basic", "debug=fast", "trainer.max_epochs=1", "callbacks.pictures=null"]
    data = [f"data.root={shapes_root}", "data.source=null", "callbacks/progress=lines"]
    sweep = [tools / "onebox-train", "-m", *varied, *rest, *data]
    done = subprocess.run(sweep, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "small"
    events = {"_target_": "lightning.TensorBoardLogger", "save_dir": str(folder / "x"), "name": "", "version": ""}
    cfg = OmegaConf.create({"logger": {"tensorboard": events}, "hparams": ["loss/loc"], "run_dir": str(folder)})
    facts: dict = {"choices": {"loss/loc": "ciou"}, "overrides": ["loss/loc=ciou"]}
    for fails in (True, False, True):  # one that failed is resumed, and only its last end counts
        with contextlib.suppress(ValueError), session(cfg, facts, []):
            if fails:
                raise ValueError

    def is_read(group):
        tags = {value["name"]["tag"] for value in group.get("metricValues", [])}
        return group["sessions"][0]["status"] == "STATUS_SUCCESS" and "best/joint_acc" in tags

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [tools / "tensorboard", "--logdir", folder, "--port", str(port), "--host", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        groups, experiment = [], {}
        deadline = time.monotonic() + 240
        # TensorBoard reads one file after the other: groups are there before their ends and metrics.
        while not (len(groups) == 4 and sum(is_read(group) for group in groups) == 3) and time.monotonic() < deadline:
            time.sleep(0.3)
            with contextlib.suppress(OSError):
                every = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
                wanted = {"startIndex": 0, "sliceSize": 100, "allowedStatuses": every, "colParams": []}
                groups = post(port, "session_groups", wanted).get("sessionGroups", [])
                experiment = post(port, "experiment", {})
    finally:
        server.terminate()
        server.wait()
    # The list of runs says what a job varies.
    names = {group["name"].partition("/")[2] for group in groups}
    assert names == {"", "tensorboard/loc=l1,dropout=0", "tensorboard/loc=giou,dropout=0", "tensorboard/loc=giou,dropout=0.5"}  # fmt: skip
    found = {
        group["name"].partition("/")[0]: (group["hparams"]["loss/loc"], group["sessions"][0]["status"])
        for group in groups
    }
    assert sorted(found.values()) == [
        ("ciou", "STATUS_FAILURE"), ("giou", "STATUS_SUCCESS"), ("giou", "STATUS_SUCCESS"), ("l1", "STATUS_SUCCESS")
    ]  # fmt: skip
    assert {group["hparams"].get("model.loc_head.dropout") for group in groups} == {0.0, 0.5, None}
    for group in groups:
        if group["name"] != "x":
            assert any(value["name"]["tag"] == "best/joint_acc" for value in group["metricValues"])
    assert experiment["hparamInfos"][0]["name"] == "loss/loc"  # what is varied comes first


@pytest.mark.parametrize(
    ("varied", "there", "name"),
    [
        ({"optimizer.lr": "0.01", "model/backbone": "tiny_cnn"}, (), "lr=0.01,backbone=tiny_cnn"),
        ({"loss/loc": "l1", "loss.weights.loc": "3"}, (), "loss.loc=l1,loss.weights.loc=3"),
        ({"data.ids": "['a/b', \\x]", "seed": "1"}, (), "ids=__a_b_,__x_,seed=1"),
        ({"name": "x" * 500}, (), "name=" + "x" * 115),
        ({}, (), ""),
        ({"seed": "1"}, ("events.out.tfevents.1",), ""),  # of a run that began when names were not given
        ({"seed": "1"}, ("lr=0.01/events.out.tfevents.1",), "lr=0.01"),  # the sweep has got another axis since
    ],
)
def test_events_lie_in_a_folder_that_says_what_a_job_varies(tmp_path, varied, there, name):
    for path in there:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    events = {"_target_": "lightning.TensorBoardLogger", "save_dir": str(tmp_path), "name": "", "version": ""}
    cfg = OmegaConf.create({"logger": {"tensorboard": events}})
    name_events(cfg, varied)
    assert cfg.logger.tensorboard.version == name


def hparams(folder: Path) -> dict:
    (path,) = folder.glob("*.hparams")
    contents = [
        value.metadata.plugin_data.content
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == "_hparams_/session_start_info"
    ]
    return dict(plugin_data_pb2.HParamsPluginData.FromString(contents[0]).session_start_info.hparams)


def test_a_job_that_is_done_has_a_value_for_what_its_sweep_varies_later(tmp_path):
    events = {"_target_": "lightning.TensorBoardLogger", "save_dir": str(tmp_path), "name": "", "version": ""}
    config = {"logger": {"tensorboard": events}, "hparams": ["seed"], "run_dir": str(tmp_path), "seed": 3}
    config |= {"optimizer": {"lr": 0.1}, "model": {"dropout": 0.5}}
    facts: dict = {"choices": {}, "overrides": ["optimizer.lr=0.1"]}
    with session(OmegaConf.create(config), facts, ["optimizer.lr"]):
        pass
    assert hparams(tmp_path).keys() == {"seed", "optimizer.lr"}
    complete(tmp_path, config, facts, ["optimizer.lr", "model.dropout"])
    found = hparams(tmp_path)
    assert (found["model.dropout"].number_value, found["seed"].number_value) == (0.5, 3)
    (path,) = tmp_path.glob("*.hparams")
    complete(tmp_path, config, facts, ["model.dropout"])
    assert path.exists()  # nothing was missing
