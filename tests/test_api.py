"""The Python door: what a researcher tries in a notebook."""

import copy
import inspect
import logging
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image

import onebox
from onebox.api import _command
from onebox.errors import BadInput, JobFailed
from onebox.files import read_json
from onebox.runs.record import is_held


@pytest.fixture
def small(trained, tmp_path, monkeypatch):
    """What composes the run `trained`, but for its learning rate; its process had one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    overrides = read_json(trained / "run.json")["overrides"]
    return [text for text in overrides if not text.startswith("optimizer.lr=")]


def state():
    """What a training might leave changed in its process."""
    return {
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "precision": (torch.get_float32_matmul_precision(), torch.get_default_dtype()),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "logging": (logging.root.level, list(logging.root.handlers), logging.getLogRecordFactory()),
        "streams": (sys.stdout, sys.stderr, os.getcwd(), sys.argv, dict(os.environ)),
        "hydra": (GlobalHydra.instance().is_initialized(), HydraConfig.initialized()),
    }


def test_a_training_has_the_bits_of_the_command_and_leaves_the_process_as_it_was(
    small, trained, tmp_path, monkeypatch, capfd
):
    cfg = onebox.compose(small)
    cfg.optimizer.lr = 0.01
    before = state()
    with ThreadPoolExecutor(1) as pool:  # as beside the event loop of a notebook
        run = pool.submit(onebox.train, cfg).result()
    assert state() == before
    monkeypatch.chdir("/")

    assert run.path.parent == tmp_path / "outputs/default"
    assert "2/2" in (said := capfd.readouterr().out) and "\x1b" not in said
    reference = read_json(trained / "run.json")
    for key in ("fingerprint", "final_weights", "status", "choices", "data_fingerprint", "source"):
        assert run.record[key] == reference[key], key
    assert sorted(run.record["overrides"]) == sorted(reference["overrides"])
    assert {**run.metrics, "schema": 1} == read_json(trained / "metrics.json")
    assert (run.path / "trace.csv").read_bytes() == (trained / "trace.csv").read_bytes()
    assert {path.name for path in run.path.iterdir()} >= {path.name for path in trained.iterdir()} - {"train.log"}

    picture = run.show(run.predictions.nsmallest(3, "iou"), columns=2)
    assert isinstance(picture, Image.Image)
    picture.save(tmp_path / "worst.png")
    named = onebox.load_run(run.record["fingerprint"][:6], outputs=tmp_path / "outputs")
    assert named.path == run.path and named.metrics == run.metrics
    for images in ("worst.png", tmp_path / "worst.png", np.asarray(picture), [np.asarray(picture)]):
        monkeypatch.chdir(tmp_path)
        (found,) = run.predict(images)
        assert found.label in named.class_names and found.box_px.shape == (4,)
    for wrong in (3, picture, [[1, 2]], np.zeros((4, 4), np.uint8)):
        with pytest.raises(BadInput, match="uint8"):
            named.predict(wrong)
    with pytest.raises(BadInput, match="no rows"):
        run.show(run.predictions.iloc[:0])
    assert onebox.runs(tmp_path / "outputs").index.tolist() == [str(run.path)]
    assert len(repr(run)) < 300 and len(repr(named)) < 300


def test_an_interrupted_training_resumes_to_the_same_bits(small, trained, tmp_path, monkeypatch):
    def interrupt(line, **options):
        if "1/2" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr("onebox.api.print", interrupt, raising=False)
    overrides = [*small, "optimizer.lr=0.01", "callbacks/progress=lines", "hydra.run.dir=outputs/stopped"]
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped by Ctrl-C; onebox-train resume=outputs/stopped (resumes it|starts it ag)"
    ):
        onebox.train(overrides)
    assert read_json("outputs/stopped/run.json")["status"] == "interrupted"
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    run = onebox.train(["resume=outputs/stopped"])
    assert run.path == tmp_path / "outputs/stopped" and run.record["status"] == "completed"
    assert run.record["final_weights"] == read_json(trained / "run.json")["final_weights"]


@pytest.mark.long
def test_a_training_stops_at_a_checkpoint_when_its_kernel_is_killed(small, tmp_path):
    # Validation is stopped at once: each epoch is saved, as nothing of a run this young would be.
    saved = "callbacks.checkpoint_last.epoch_seconds=0"
    overrides = [*small, "callbacks/progress=lines", "trainer.max_epochs=5000", saved, "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-c", f"import onebox; onebox.train({overrides!r})"], stdout=subprocess.PIPE, text=True
    )
    assert any("2/5000" in line for line in process.stdout)
    process.kill()
    process.communicate()
    for _ in range(1200):
        if not is_held(tmp_path / "run", unknown=True):
            break
        time.sleep(0.1)
    assert read_json(tmp_path / "run/run.json")["status"] == "interrupted"
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.long
def test_what_a_training_fails_with_is_raised(small, tmp_path, capfd):
    with pytest.raises(BadInput, match=r"no Annotations/.*point data.root") as raised:
        onebox.train([*small, "data=folder", f"data.root={tmp_path}"])
    assert "\n" not in str(raised.value)
    assert "onebox-train:" not in capfd.readouterr().out
    with pytest.raises(BadInput, match=r"loss\.loc\.criterion\._target_=__main__\.Mine: .*move it into a module"):
        onebox.train([*small, "loss.loc.criterion._target_=__main__.Mine"])
    (tmp_path / "faulty.py").write_text(
        "def fail(*codes): raise RuntimeError('my own fault')\ndef criterion(**options): return fail\n"
    )
    sys.path.append(str(tmp_path))  # as in a notebook, whose modules the training finds
    try:
        with pytest.raises(JobFailed, match=r"my own fault.*outputs/default"):
            onebox.train([*small, "loss.loc.criterion._target_=faulty.criterion"])
    finally:
        sys.path.remove(str(tmp_path))


def overrides_of(cfg):
    return [text for text in _command(cfg)[0] if not text.startswith("hydra.run.dir=")]


def test_values_that_are_set_become_overrides_also_in_copies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = onebox.compose(["experiment=baseline", "seed=1"])
    assert overrides_of(cfg) == ["experiment=baseline", "seed=1"]
    cfg.image_size = 64
    cfg.optimizer.lr = 3e-3  # as it was
    cfg.seed = 2
    cfg.name = "it's mine"
    cfg.data.root = tmp_path / "Data"
    cfg.callbacks.pictures = None
    cfg.hparams = ["seed"]
    expected = {
        "experiment=baseline",
        "image_size=64",
        "seed=2",
        r"name='it\'s mine'",
        f"data.root='{tmp_path / 'Data'}'",
    }
    expected |= {"callbacks.pictures=null", "hparams=[seed]"}
    for same in (cfg, copy.deepcopy(cfg), cfg.copy(), OmegaConf.merge(cfg, {})):
        assert {*overrides_of(same)} == expected
    assert "${" not in OmegaConf.to_yaml(cfg, resolve=True)
    first, second = (_command(cfg)[1] for _ in range(2))
    assert first != second and first.parent == tmp_path / "outputs/it's mine"
    cfg.run_dir = "here"
    assert _command(cfg)[1] == tmp_path / "here"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cfg: OmegaConf.update(cfg, "trainer.max_epochs", 0), "trainer.max_epochs must be a number >= 1, not 0"),
        (lambda cfg: OmegaConf.update(cfg, "scheduler", None, merge=False), "scheduler cannot be null"),
        (lambda cfg: OmegaConf.update(cfg, "mine", 1, force_add=True), "other keys at its top"),
        (lambda cfg: OmegaConf.update(cfg, "data.splits", {"train": ["a"]}, merge=False), "data.splits: cannot be set"),
    ],
)
def test_what_cannot_be_set_is_said(change, said):
    cfg = onebox.compose(["experiment=baseline"])
    change(cfg)
    with pytest.raises(BadInput, match=said):
        _command(cfg)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["experiment=basline"], "did you mean baseline"),
        (["trainer.max_epochs=0", "seed=-1"], "max_epochs must be a number >= 1"),
        ("seed=1", "give a list of texts"),
        ([3], "give a list of texts"),
        (["seed"], "is no KEY=VALUE"),
        (["sweep=lr"], "loop over onebox.train"),
        (["seed=1,2"], "lists several values"),
        (["-m", "seed=1"], "an option of the command line"),
        (["--cfg", "job"], "an option of the command line"),
        (["name=../x"], "runs lie in outputs/<name>/"),
        (["resume=nowhere"], "no such file"),
        (["like=nothing"], "no such run"),
        ({"seed": 1}, "is no KEY=VALUE"),
    ],
)
def test_what_cannot_be_composed_is_one_line(overrides, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="(?s)" + said.replace("?", r"\?")) as raised:
        onebox.train(overrides)
    assert "\n" not in str(raised.value)
    assert not [*tmp_path.iterdir()]


def test_a_config_from_elsewhere_is_refused():
    with pytest.raises(BadInput, match=r"not one of onebox\.compose"):
        onebox.train(OmegaConf.create({"seed": 1}))


def test_composing_leaves_hydra_as_it_was(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onebox.compose(["experiment=baseline"])
    assert not GlobalHydra.instance().is_initialized() and not HydraConfig.initialized()
    with hydra.initialize_config_module("onebox.conf", version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        for overrides in ([f"like={trained}"], [f"resume={trained}"], ["optimizer.lrr=1"]):
            try:
                assert onebox.compose(overrides).optimizer.lr == 0.01
            except BadInput:
                assert overrides == ["optimizer.lrr=1"]
            assert GlobalHydra.instance().hydra is mine
    cfg = onebox.compose([f"resume={trained}"])
    assert Path(cfg.run_dir) == trained and overrides_of(cfg) == [f"resume={trained}"]


def test_the_door_is_light_and_documented(tmp_path):
    script = (
        "import sys, onebox; assert not {'torch', 'hydra', 'pandas', 'numpy'} & {*sys.modules}; import onebox.train\n"
        "import onebox.runs.record; assert callable(onebox.train) and callable(onebox.runs); onebox.train.main\n"
        "print([*onebox.__all__]); assert {*onebox.__all__} <= {*dir(onebox)}; from onebox import *"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=300)
    for name in {*onebox.__all__} - {"BadInput", "Run"}:
        found = getattr(onebox, name)
        assert all(part in found.__doc__ for part in ("Returns:", "Example:")), name
        assert all(item.annotation is not item.empty for item in inspect.signature(found).parameters.values()), name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = onebox.trian


@pytest.mark.long
def test_the_notebook_runs_without_a_warning(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(Path(__file__).parent.parent / "docs/notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    strict = "import warnings; warnings.simplefilter('error', append=True)"  # behind those that the kernel has itself
    notebook.cells.insert(0, nbformat.v4.new_code_cell(strict))
    NotebookClient(notebook, kernel_name="python3", timeout=600).execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    texts = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "did you mean optimizer.lr?" in texts and "'loss.weights.loc'" in texts
    said = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert [text for text in said if "IOStream.flush timed out" not in text] == []  # a kernel's own, on a busy machine
