"""`onebox reproduce`: what is the same is called identical, and what differs is named where it differs first."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict
from typer.testing import CliRunner

import onebox
from onebox.cli import app
from onebox.data.dataset import EpochSampler
from onebox.errors import BadInput
from onebox.replay import replay
from onebox.runs.checkout import checkout
from onebox.runs.provenance import git_state
from onebox.runs.reproduce import differences

BATCH_SIZE = 8


def train(folder: Path, *overrides: str) -> Path:
    """A finished run of two epochs; its schedule would change if the fit were shortened."""
    GlobalHydra.instance().clear()
    with initialize_config_module("onebox.conf", version_base="1.3"):
        common = [
            f"run_dir={folder}",
            f"data.cache_dir={folder.parent / 'cache'}",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=2",
            "scheduler=one_cycle",
            "callbacks/progress=lines",
            "callbacks.pictures=null",
            f"data.batch_size={BATCH_SIZE}",
        ]
        cfg = compose("train", overrides=[*common, *overrides])
    with open_dict(cfg):
        cfg.model.num_classes = None
    replay(
        {
            "config": OmegaConf.to_container(cfg, resolve=True),
            "choices": {},
            "overrides": [],
            "threads": torch.get_num_threads(),
        }
    )
    return folder


@pytest.fixture(scope="module")
def shapes_run(shapes_root, tmp_path_factory) -> Path:
    return train(
        tmp_path_factory.mktemp("shapes") / "run", f"data.root={shapes_root}", "data.source=null", "data.limit=32"
    )


@pytest.fixture(scope="module")
def voc_run(voc_root, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("voc") / "run", "data=voc2007", f"voc_root={voc_root}", "data.limit=32")


def reproduce(run: Path, out: Path, *arguments: str) -> tuple[int, dict]:
    """Exit code and the JSON."""
    result = CliRunner().invoke(app, ["reproduce", str(run), "--out", str(out), "--json", *arguments])
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code in (0, 1), (result.output, result.exception)
    return result.exit_code, json.loads(result.stdout)


def moved_tree(root: Path, folder: Path, run: Path, lists: str) -> int:
    """Copy a tree, with the box of one training image a pixel wider; returns the step of epoch 0 that it is in."""
    shutil.copytree(root / "Annotations", folder / "Annotations")
    shutil.copytree(root / "ImageSets", folder / "ImageSets")
    (folder / "JPEGImages").symlink_to(root / "JPEGImages")
    from onebox.build import build_data

    config = OmegaConf.load(run / "config.yaml")
    data = build_data(config)
    data.setup()
    ids = data.indexes["train"].ids
    order = [row for _, row in EpochSampler(len(ids), shuffle=True, seed=0)]
    step = 2
    row = order[step * BATCH_SIZE + 3]
    path = folder / "Annotations" / f"{ids[row]}.xml"
    before = path.read_text()
    number = before.partition("<bndbox>")[2].partition("<xmin>")[2].partition("</xmin>")[0]
    path.write_text(before.replace(f"<xmin>{number}</xmin>", f"<xmin>{int(number) + 1}</xmin>"))
    assert path.read_text() != before
    return step


def test_a_finished_run_on_shapes_comes_out_identical(shapes_run, tmp_path):
    exit_code, told = reproduce(shapes_run, tmp_path / "again")
    assert (exit_code, told["verdict"], told["divergence"], told["metrics"]) == (0, "identical", None, [])
    assert told["steps"] == 8
    assert told["final_weights"][0] == told["final_weights"][1] is not None
    assert (shapes_run / "trace.bin").read_bytes() == (tmp_path / "again/trace.bin").read_bytes()
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (shapes_run, tmp_path / "again"))
    assert one["fingerprint"] == other["fingerprint"]


def test_a_finished_run_on_voc_comes_out_identical(voc_run, tmp_path):
    exit_code, told = reproduce(voc_run, tmp_path / "again")
    assert (exit_code, told["verdict"], told["steps"]) == (0, "identical", 8)


def test_a_few_steps_prove_it_without_checkpoints_or_test(shapes_run, tmp_path):
    exit_code, told = reproduce(shapes_run, tmp_path / "again", "--steps", "5")
    assert (exit_code, told["verdict"], told["steps"], told["metrics"]) == (0, "identical", 5, None)
    written = {path.name for path in (tmp_path / "again").iterdir()} - {"changes.patch.gz"}  # there when source changed
    assert written == {
        ".lock",
        "run.json",
        "config.yaml",
        "samples.npz",
        "trace.bin",
    }


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("model.backbone.dropout=0.1", "pred loc"),
        ("scheduler.max_lr=0.010000001", "lr"),
        ("loss.weights.loc=10.000001", "loss_loc_weighted"),
        ("seed=1", "localizer.backbone.blocks.0.weight"),
    ],
)
def test_one_changed_value_is_named_at_its_first_step(shapes_run, tmp_path, override, name):
    override = "optimizer.lr=0.0010000001" if name == "lr" else override
    exit_code, told = reproduce(shapes_run, tmp_path / "again", "--steps", "3", override)
    assert (exit_code, told["verdict"]) == (1, "diverges")
    assert told["divergence"]["name"] == name
    assert told["divergence"]["step"] == (None if override == "seed=1" else 0)
    recorded, again = told["divergence"]["values"][name]
    assert recorded != again


@pytest.mark.parametrize("data", ["shapes", "voc"])
def test_a_box_moved_by_a_pixel_is_refused_and_when_forced_named_in_its_step(data, request, tmp_path):
    run = request.getfixturevalue(f"{data}_run")
    root = request.getfixturevalue(f"{data}_root")
    root = root / "VOCdevkit" / "VOC2007" if data == "voc" else root
    folder = tmp_path / "moved" / ("VOC2007" if data == "voc" else "shapes")
    step = moved_tree(root, folder, run, data)
    where = f"data.root={folder.parent if data == 'voc' else folder}"
    with pytest.raises(BadInput, match=r"data_fingerprint \(train is .*--force"):
        reproduce(run, tmp_path / "refused", where)
    exit_code, told = reproduce(run, tmp_path / "again", where, "data.source=null", "--force", "--steps", "6")
    assert exit_code == 1
    assert (told["divergence"]["step"], told["divergence"]["name"]) == (step, "batch boxes")
    assert [item["what"] for item in told["differences"] if not item["what"].startswith("config ")] == ["data train"]


def test_a_tolerance_accepts_what_deviates_less_and_says_how_far(shapes_run, tmp_path):
    arguments = ["--steps", "4", "optimizer.lr=0.00101"]
    exit_code, told = reproduce(shapes_run, tmp_path / "near", *arguments, "--tolerance", "1e-2")
    assert (exit_code, told["verdict"]) == (0, "within tolerance")
    assert 0 < told["largest_deviation"]["relative"] < 1e-2
    assert told["largest_deviation"]["where"].startswith("step ")
    exit_code, told = reproduce(shapes_run, tmp_path / "far", *arguments, "--tolerance", "1e-12")
    assert (exit_code, told["verdict"]) == (1, "diverges")


def test_without_a_trace_metrics_and_weights_are_compared(shapes_run, tmp_path):
    run = shutil.copytree(shapes_run, tmp_path / "run")
    (run / "trace.bin").unlink()
    with pytest.raises(BadInput, match=r"has no trace.bin"):
        reproduce(run, tmp_path / "steps", "--steps", "2")
    exit_code, told = reproduce(run, tmp_path / "again", "optimizer.lr=0.002")
    assert (exit_code, told["verdict"], told["steps"]) == (1, "diverges", 0)
    assert told["final_weights"][0] != told["final_weights"][1]
    assert "final/train/loss" in {metric["where"] for metric in told["metrics"]}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["optimizer.learning_rate=1"], "optimizer.learning_rate=1: the run's config.yaml has no such key"),
        (["optimizer"], "write KEY=VALUE"),
        (["optimizer.lr=[1"], "optimizer.lr="),
    ],
)
def test_a_bad_override_is_refused(shapes_run, tmp_path, arguments, told):
    with pytest.raises(BadInput) as error:
        reproduce(shapes_run, tmp_path / "again", *arguments)
    assert told in str(error.value)
    assert not (tmp_path / "again").exists()


def test_what_is_no_finished_run_is_refused(shapes_run, tmp_path):
    with pytest.raises(BadInput, match="no such run"):
        reproduce(tmp_path / "nowhere", tmp_path / "again")
    run = shutil.copytree(shapes_run, tmp_path / "run")
    (run / "run.json").write_text((run / "run.json").read_text().replace('"completed"', '"interrupted"'))
    with pytest.raises(BadInput, match="interrupted after 8 steps; --steps 8 compares those"):
        reproduce(run, tmp_path / "again")
    (run / "run.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        reproduce(run, tmp_path / "again")
    with pytest.raises(BadInput, match="holds a run already"):
        reproduce(shapes_run, shapes_run)


def test_code_packages_and_machine_that_differ_are_named():
    recorded = {
        "git": {"sha": "a" * 40, "patch": None},
        "python": "3.11.1",
        "packages": {"numpy": "2.0", "old-one": "1"},
        "hardware": {"cpu": "A", "threads": 2, "gpus": []},
    }
    now = {
        "git": {"sha": "a" * 40, "patch": "b" * 12},
        "python": "3.11.1",
        "packages": {"numpy": "2.1"},
        "hardware": {"cpu": "A", "threads": 8, "gpus": ["G"]},
        "environment": {"OMP_NUM_THREADS": "1"},  # unknown of the recorded run
    }
    told = [str(item) for item in differences(recorded, now)]
    assert told == [
        "code: aaaaaaaaa → aaaaaaaaa with changes bbbbbbbbbbbb",
        "package numpy: 2.0 → 2.1",
        "package old-one: 1 → none",
        "hardware threads: 2 → 8",
        "hardware gpus: none → G",
    ]


def test_the_code_of_a_run_is_its_commit_with_its_changes(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    code = repository / "src" / "onebox" / "__init__.py"
    code.parent.mkdir(parents=True)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    code.write_text("committed = 1\n")
    git("add", "-A")
    git("commit", "--quiet", "-m", "one")
    code.write_text("committed = 1\nchanged = 2\n")
    monkeypatch.setattr(onebox, "__file__", str(code))
    record = {"git": git_state(tmp_path)}
    code.write_text("something = 'else'\n")
    with checkout(record, tmp_path) as folder:
        assert (folder / "src/onebox/__init__.py").read_text() == "committed = 1\nchanged = 2\n"
    assert not folder.exists()
    assert len(git("worktree", "list").splitlines()) == 1
    assert code.read_text() == "something = 'else'\n"
    with pytest.raises(BadInput, match="fetch commit 000000000"), checkout({"git": {"sha": "0" * 40}}, tmp_path):
        pass
    with pytest.raises(BadInput, match="not made from a git checkout"), checkout({"git": None}, tmp_path):
        pass


def test_the_installed_command_says_so_in_one_word(shapes_run, tmp_path):
    command = [str(Path(sys.executable).parent / "onebox"), "reproduce", str(shapes_run), "--steps", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "identical"
    assert "code, packages and machine are those of the run" in done.stdout
    (trace,) = tmp_path.glob("outputs/reproduced/run/*/trace.bin")
    assert trace.stat().st_size > 0
