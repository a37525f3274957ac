"""`onebox reproduce`: what is the same is called identical, and what differs is named where it differs first."""

import functools
import gzip
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.runs.fingerprint import set_hydra_config
from onebox.runs.reading.reproduce import differences

BATCH_SIZE = 8


def train(folder: Path, *overrides: str) -> Path:
    """A finished run of two epochs; its schedule would change if the fit were shortened."""
    from onebox.train import train

    GlobalHydra.instance().clear()
    with initialize_config_module("onebox.conf", version_base="1.3"):
        common = [
            f"run_dir={folder}",
            f"data.cache_dir={folder.parent / 'cache'}",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=2",
            "scheduler=one_cycle",
            "callbacks/progress=lines",
            f"data.batch_size={BATCH_SIZE}",
        ]
        cfg = compose("train", overrides=[*common, *overrides])
    with open_dict(cfg):
        cfg.model.num_classes = None
    set_hydra_config({}, [])
    train(cfg)
    HydraConfig.instance().cfg = None
    return folder


@pytest.fixture(scope="module")
def shapes_run(shapes_root, tmp_path_factory) -> Path:
    return train(
        tmp_path_factory.mktemp("shapes") / "run", f"data.root={shapes_root}", "data.source=null", "data.limit=32"
    )


def reproduce(run: Path, out: Path, *arguments: str) -> tuple[int, dict]:
    """Exit code and the JSON."""
    result = CliRunner(env={"ONEBOX_DATA_DIR": str(out.parent / "data")}).invoke(
        app, ["reproduce", str(run), "--out", str(out), "--json", *arguments]
    )
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code in (0, 1), (result.output, result.exception)
    return result.exit_code, json.loads(result.stdout)


def test_a_finished_run_comes_out_identical_and_nothing_is_written_but_the_new_run(shapes_run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in shapes_run.rglob("*")}
    exit_code, told = reproduce(shapes_run, tmp_path / "again")
    assert (exit_code, told["verdict"], told["divergence"], told["metrics"]) == (0, "identical", None, [])
    assert (told["steps"], told["differences"]) == (8, [])
    assert told["final_weights"][0] == told["final_weights"][1] is not None
    assert (shapes_run / "trace.csv").read_bytes() == (tmp_path / "again/trace.csv").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in shapes_run.rglob("*")} == before
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (shapes_run, tmp_path / "again"))
    assert one["fingerprint"] == other["fingerprint"]


def test_a_few_steps_prove_it_without_checkpoints_or_test(shapes_run, tmp_path):
    exit_code, told = reproduce(shapes_run, tmp_path / "again", "--steps", "5")
    assert (exit_code, told["verdict"], told["steps"], told["metrics"]) == (0, "identical", 5, None)
    written = {path.name for path in (tmp_path / "again").iterdir()} - {"changes.patch.gz"}  # there when source changed
    assert written == {".lock", "run.json", "config.yaml", "samples.npz", "trace.csv"}


@pytest.mark.parametrize(
    ("override", "step"),
    [("model.backbone.dropout=0.1", 0), ("optimizer.lr=0.00101", 1), ("loss.weights.loc=10.00001", 0)],
)
def test_one_changed_value_is_named_at_its_first_step(shapes_run, tmp_path, override, step):
    exit_code, told = reproduce(shapes_run, tmp_path / "again", "--steps", "3", override)
    assert (exit_code, told["verdict"]) == (1, "diverges")
    assert (told["divergence"]["step"], next(iter(told["divergence"]["values"]))) == (step, "loss")
    recorded, again = told["divergence"]["values"]["loss"]
    assert recorded != again


def test_other_data_are_refused_and_when_forced_named_in_their_step(shapes_run, shapes_root, tmp_path):
    from onebox.build import build_data
    from onebox.data.loading import EpochSampler

    folder = tmp_path / "moved"
    shutil.copytree(shapes_root, folder)
    data = build_data(OmegaConf.load(shapes_run / "config.yaml"))
    data.setup()
    ids = data.indexes["train"].ids
    order = [row for _, row in EpochSampler(len(ids), shuffle=True, seed=0)]
    path = folder / "Annotations" / f"{ids[order[2 * BATCH_SIZE + 3]]}.xml"  # in step 2
    text = path.read_text()
    number = text.partition("<bndbox>")[2].partition("<xmin>")[2].partition("</xmin>")[0]
    path.write_text(text.replace(f"<xmin>{number}</xmin>", f"<xmin>{int(number) + 1}</xmin>"))
    with pytest.raises(BadInput, match=r"data_fingerprint \(train is .*--force"):
        reproduce(shapes_run, tmp_path / "refused", f"data.root={folder}")
    exit_code, told = reproduce(shapes_run, tmp_path / "again", f"data.root={folder}", "--force", "--steps", "6")
    assert (exit_code, told["divergence"]["step"], list(told["divergence"]["values"])[1]) == (1, 2, "loss_loc")
    assert [item["what"] for item in told["differences"]] == ["data train"]


def test_a_tolerance_accepts_what_deviates_less_and_says_how_far(shapes_run, tmp_path):
    arguments = ["--steps", "4", "optimizer.lr=0.00101"]
    exit_code, told = reproduce(shapes_run, tmp_path / "near", *arguments, "--tolerance", "1e-2")
    assert (exit_code, told["verdict"]) == (0, "within tolerance")
    assert 0 < told["largest_deviation"]["relative"] < 1e-2
    assert told["largest_deviation"]["where"].startswith("step ")
    exit_code, told = reproduce(shapes_run, tmp_path / "far", *arguments, "--tolerance", "1e-12")
    assert (exit_code, told["verdict"]) == (1, "diverges")


def test_of_a_run_of_an_older_version_metrics_and_weights_are_compared(shapes_run, tmp_path):
    run = shutil.copytree(shapes_run, tmp_path / "run")
    (run / "trace.csv").rename(run / "trace.bin")
    config = run / "config.yaml"
    text = config.read_text().replace("trace.csv", "trace.bin").replace("    stop_after: null\n", "")
    older = yaml.safe_load(text)
    older["callbacks"]["progress"] = {"_target_": "onebox.callbacks.epoch_bar.EpochBar", "refresh_rate": 5, "leave": False}  # fmt: skip
    config.write_text(yaml.safe_dump(older))
    with pytest.raises(BadInput, match=r"has no trace.csv .*an older version"):
        reproduce(run, tmp_path / "steps", "--steps", "2")
    exit_code, told = reproduce(run, tmp_path / "again")
    assert (exit_code, told["verdict"], told["steps"]) == (0, "identical", 0)
    exit_code, told = reproduce(run, tmp_path / "other", "optimizer.lr=0.002")
    assert (exit_code, told["verdict"], told["steps"]) == (1, "diverges", 0)
    assert told["final_weights"][0] != told["final_weights"][1]
    assert "final/train/loss" in {metric["where"] for metric in told["metrics"]}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate=1: the run's config.yaml has no such key"),
        ("optimizer", "write KEY=VALUE"),
        ("optimizer.lr=[1", r"optimizer.lr=\[1: "),
    ],
)
def test_a_bad_override_is_refused(shapes_run, tmp_path, override, told):
    with pytest.raises(BadInput, match=told):
        reproduce(shapes_run, tmp_path / "again", override)
    assert not (tmp_path / "again").exists()


def test_what_is_no_finished_run_is_refused(shapes_run, tmp_path):
    with pytest.raises(BadInput, match="no such run"):
        reproduce(tmp_path / "nowhere", tmp_path / "again")
    with pytest.raises(BadInput, match="already holds a run"):
        reproduce(shapes_run, shapes_run)
    run = shutil.copytree(shapes_run, tmp_path / "run")
    (run / "run.json").write_text((run / "run.json").read_text().replace('"completed"', '"interrupted"'))
    with pytest.raises(BadInput, match="interrupted after 8 steps; --steps 8 compares those"):
        reproduce(run, tmp_path / "again")
    (run / "run.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        reproduce(run, tmp_path / "again")


PICTURES = {"_target_": "onebox.callbacks.pictures.BoxPictures"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("callbacks.trace.path", "/taken/file"),
        ("callbacks.pictures.path", "/taken/file"),
        ("logger.csv.path", "/taken/file"),
        ("trainer.default_root_dir", "/taken"),
        ("callbacks.checkpoint_best.filename", "../../taken/file"),
        ("data.cache_dir", "/taken"),
        ("data.source", {"_target_": "onebox.data.shapes.ShapesSource", "num_train": 1}),
        ("callbacks.more", {**PICTURES, "path": "taken/file"}),
        ("callbacks.more", {**PICTURES, "path": "/taken/file"}),
        ("name", "${oc.env:HOME}"),
    ],
)
def test_no_path_of_a_run_directory_is_written_to(shapes_run, tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(shapes_run, tmp_path / "run")
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    *parents, last = key.split(".")
    functools.reduce(dict.__getitem__, parents, config)[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config).replace("/taken", str(tmp_path / "taken")))
    if key in ("callbacks.more", "callbacks.checkpoint_best.filename", "trainer.default_root_dir", "name"):
        with pytest.raises(BadInput, match=r"outside of|holds the interpolation"):
            reproduce(run, tmp_path / "again")
    else:
        assert reproduce(run, tmp_path / "again")[0] == 0
    assert not (tmp_path / "taken").exists()


def test_code_packages_and_machine_that_differ_are_named():
    recorded = {"git": {"sha": "a" * 40, "patch": None}, "packages": {"numpy": "2.0", "old-one": "1"}}
    now = {
        "git": {"sha": "a" * 40, "patch": "b" * 12},
        "packages": {"numpy": "2.1"},
        "data_fingerprint": {"train": "c"},  # not known of the recorded run
    }
    assert [tuple(item.values()) for item in differences(recorded, now)] == [
        ("code", "aaaaaaaaa", "aaaaaaaaa with changes bbbbbbbbbbbb"),
        ("numpy (package)", "2.0", "2.1"),
        ("old-one (package)", "1", None),
    ]


def test_the_code_of_a_run_is_had_by_the_commands_that_checkout_prints(shapes_run, tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    (repository / "code.py").write_text("committed = 1\n")
    git("add", "-A")
    git("commit", "--quiet", "-m", "one")
    (repository / "code.py").write_text("changed = 2\n")
    run = shutil.copytree(shapes_run, tmp_path / "a run")
    (run / "changes.patch.gz").write_bytes(gzip.compress(git("diff").encode()))
    record = json.loads((run / "run.json").read_text())

    def checkout(facts: dict | None) -> str:
        (run / "run.json").write_text(json.dumps({**record, "git": facts}))
        return CliRunner().invoke(app, ["reproduce", str(run), "--checkout"], catch_exceptions=False).stdout

    *commands, last = checkout({"sha": git("rev-parse", "HEAD").strip(), "patch": "x"}).splitlines()
    subprocess.run(["sh", "-ec", "\n".join(commands)], cwd=repository, check=True, capture_output=True)
    assert [path.read_text() for path in repository.glob("onebox-*/code.py")] == ["changed = 2\n"]
    assert last.endswith(f"onebox reproduce {shlex.quote(str(run))}")
    for bad in (None, {"sha": "--output=/tmp/x"}, {"sha": "HEAD"}):
        with pytest.raises(BadInput, match="not made from a git checkout"):
            checkout(bad)


def test_without_json_the_last_line_is_the_verdict(shapes_run, tmp_path):
    def lines(*arguments: str) -> list[str]:
        return CliRunner().invoke(app, ["reproduce", str(shapes_run), *arguments]).stdout.splitlines()

    *_, weights, last = lines("--out", str(tmp_path / "again"))
    assert weights.split()[:2] == ["final", "weights"] and last == "identical"
    assert lines("--out", str(tmp_path / "few"), "--steps", "3")[-1] == "identical in the first 3 steps"
    other = lines("--out", str(tmp_path / "other"), "--steps", "3", "optimizer.lr=0.01")
    assert other[-1].startswith("diverges at step 1 (epoch 0), first in loss; largest deviation ")
