"""`logger=wandb` and `logger=mlflow`: what is uploaded, and that no service can stop, change or outlive a run.

The packages are real: Weights & Biases without network, MLflow with its local data base. Both are read back.
"""

import json
import signal
import socket
import struct
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from wandb.proto.wandb_internal_pb2 import Record

from onebox.callbacks.service_logger import ServiceLogger
from onebox.errors import BadInput

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")

SMALL = ["data.source=null", "image_size=32", "data.batch_size=8", "trainer.max_epochs=2", "optimizer.lr=0.01"]


@pytest.fixture
def start(nursery, trained, shapes_root, tmp_path, monkeypatch):
    """Starts the run of `trained` with other arguments, waits for it, and gives its exit code and what it printed.

    Of what it has started nothing is left.
    """
    monkeypatch.chdir(tmp_path)
    cache = trained.parent / "cache"

    def run(name: str, *arguments: str, hit_at: int | None = None, hit_by: int = signal.SIGKILL, **env: str):
        mark, log = uuid.uuid4().hex, tmp_path / f"{name}.log"
        env |= {"WANDB_MODE": env.get("WANDB_MODE", "offline"), "MARK": mark}
        data = [f"data.root={shapes_root}", f"data.cache_dir={cache}", f"hydra.run.dir={tmp_path / name}"]
        # The nursery's own directory is another.
        env.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        command = [*SMALL, "callbacks.pictures=null", *data, *arguments]
        code = nursery.run(*command, log=log, hit_at=hit_at, hit_by=hit_by, **env)
        # A sweep's server ends when it sees that the sweep has; what was killed could not wait for its own.
        wait_until(lambda: not left(mark))
        return code, log.read_text()

    return run


def wait_until(holds, limit_s=60):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def left(mark: str) -> list[str]:
    """The processes that have been started with `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def records(folder: Path):
    """What wandb has kept of its runs in a run directory, oldest first, by kind; its files are those of LevelDB."""
    for path in sorted(folder.glob("wandb/*run-*/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # all of a record, or its last part
                record, whole = Record.FromString(whole), b""
                yield record.WhichOneof("record_type"), getattr(record, record.WhichOneof("record_type"))


def history(folder: Path) -> list[dict]:
    rows = [part for kind, part in records(folder) if kind == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows]


def facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def assert_unchanged(folder: Path, trained: Path):
    """The run has the bits of the one without the service."""
    for key in ("status", "fingerprint", "final_weights"):
        assert facts(folder)[key] == facts(trained)[key]
    for name in ("metrics.json", "metrics.csv", "trace.csv", "predictions.csv"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes(), name


def epochs_of(folder: Path) -> dict[str, list[float]]:
    return pd.read_csv(folder / "metrics.csv").drop(columns="epoch").to_dict("list")


def test_wandb_has_the_run_under_its_fingerprint_with_config_scalars_table_and_report(start, trained, tmp_path):
    code, text = start("run", "logger=wandb", "name=mine")
    folder = tmp_path / "run"
    assert code == 0 and "logger=" not in text
    assert_unchanged(folder, trained)
    kinds = dict(records(folder))
    about = kinds["run"]
    assert (about.run_id, about.run_group, about.project) == (facts(folder)["fingerprint"], "mine", "onebox")
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert config["optimizer"]["lr"] == 0.01 and config["model"]["num_classes"] == 9
    rows = history(folder)
    for tag, values in epochs_of(folder).items():
        assert [row[tag] for row in rows if tag in row] == pytest.approx(values), tag
    test = json.loads((folder / "metrics.json").read_text())["test"]
    assert [row["test/iou"] for row in rows if "test/iou" in row] == [pytest.approx(test["iou"])]
    assert [row["trainer/global_step"] for row in rows if "val/iou" in row] == [5, 11]
    assert kinds["exit"].exit_code == 0
    (files,) = folder.glob("wandb/*run-*/files")
    assert (files / "report.html").samefile(folder / "report.html")
    table = json.loads(next(files.glob("media/table/*.json")).read_text())
    assert table["columns"] == ["metric", "test", "floor"]
    assert dict(row[:2] for row in table["data"])["iou"] == pytest.approx(test["iou"])


def runs_of(tmp_path: Path, experiment: str):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    place = client.get_experiment_by_name(experiment)
    return client, client.search_runs([place.experiment_id]) if place else []


def test_mlflow_has_one_run_also_of_one_that_was_killed_and_resumed(start, trained, tmp_path):
    """Killed once the first epoch is stored, so that the second attempt logs part of it again."""
    arguments = ["logger=mlflow", "name=mine", "callbacks.checkpoint_last.epoch_seconds=0"]
    code, _ = start("run", *arguments, hit_at=40)
    assert code == -signal.SIGKILL
    client, (run,) = runs_of(tmp_path, "mine")
    assert run.info.status == "KILLED"
    earlier = client.get_metric_history(run.info.run_id, "step/loss")
    assert earlier
    code, text = start("run", *arguments)
    folder = tmp_path / "run"
    assert code == 0 and "logger=" not in text
    assert_unchanged(folder, trained)
    client, (run,) = runs_of(tmp_path, "mine")
    assert (run.info.status, run.info.run_name) == ("FINISHED", facts(folder)["fingerprint"])
    assert run.data.tags["fingerprint"] == facts(folder)["fingerprint"]
    assert run.data.params["optimizer.lr"] == "0.01"
    for tag, values in epochs_of(folder).items():
        points = client.get_metric_history(run.info.run_id, tag)
        assert [point.value for point in points] == pytest.approx(values), tag
        assert [point.step for point in points] == [5, 11]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"report.html", "results.json"}


@pytest.fixture
def silent():
    """The address of a server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing():
    """The address of a server that refuses whoever asks."""

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors": ["not logged in"]}')

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def at(address: str, key: str = "a" * 40) -> dict[str, str]:
    """The environment in which that server is the service."""
    return {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": key, "MLFLOW_TRACKING_URI": address}


def assert_one_warning(code: int, text: str, service: str, why: str):
    assert code == 0, text
    (line,) = [line for line in text.splitlines() if "logger=" in line]
    assert line.startswith(f"logger={service}: ") and why in line and line.endswith("the run is not affected")


def test_a_service_that_never_answers_ends_with_the_run_and_leaves_its_bits(start, silent, trained, tmp_path):
    done = start("run", "logger=wandb", "logger.wandb.timeout_s=1", **at(silent))
    assert_one_warning(*done, "wandb", "has not taken everything 1 s after the run's end")
    assert_unchanged(tmp_path / "run", trained)


@pytest.mark.long
@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_service_that_fails_costs_one_warning(start, silent, refusing, trained, tmp_path, service):
    limit = [f"logger={service}", f"logger.{service}.timeout_s"]
    refused = {"wandb": "error 401", "mlflow": "not logged in"}[service]
    assert_one_warning(*start("refused", limit[0], **at(refusing)), service, refused)
    late = "has not taken everything 1 s after the run's end"
    assert_one_warning(*start("silent", limit[0], f"{limit[1]}=1", **at(silent)), service, late)
    assert_one_warning(*start("closed", limit[0], f"{limit[1]}=1", **at("http://127.0.0.1:9")), service, late)
    if service == "wandb":
        nobody = at(silent, key="") | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
        assert_one_warning(*start("nobody", limit[0], **nobody), service, "No API key configured")
    else:
        assert_one_warning(*start("nowhere", limit[0], MLFLOW_TRACKING_URI="what://x"), service, "what://x")
    for folder in tmp_path.glob("*/run.json"):
        assert_unchanged(folder.parent, trained)


def test_a_run_that_was_stopped_or_failed_says_so_and_a_resumed_one_stays_one(start, trained, tmp_path):
    early = ["logger=wandb", "callbacks.checkpoint_last.epoch_seconds=0"]
    code, _ = start("run", *early, hit_at=40, hit_by=signal.SIGTERM)
    assert code == 75
    assert dict(records(tmp_path / "run"))["exit"].exit_code == 255
    assert start("run", *early)[0] == 0
    assert_unchanged(tmp_path / "run", trained)
    parts = list(records(tmp_path / "run"))
    assert {part.run_id for kind, part in parts if kind == "run"} == {facts(trained)["fingerprint"]}
    assert [part.exit_code for kind, part in parts if kind == "exit"] == [255, 0]


@pytest.mark.long
def test_mlflow_calls_a_run_failed_or_killed_and_a_new_one_of_the_same_config_is_another(start, tmp_path):
    assert start("run", "logger=mlflow", "name=mine", "optimizer.lr=1e30")[0] == 2
    assert start("other", "logger=mlflow", "name=mine", hit_at=40, hit_by=signal.SIGINT)[0] == 130
    assert start("third", "logger=mlflow", "name=mine")[0] == 0
    _, runs = runs_of(tmp_path, "mine")
    assert {run.data.tags["folder"]: run.info.status for run in runs} == {
        "run": "FAILED",
        "other": "KILLED",
        "third": "FINISHED",
    }


def test_a_sweep_is_a_group_and_jobs_that_are_done_are_not_uploaded_again(start, tmp_path):
    arguments = ["-m", "seed=0,1", "trainer.max_epochs=1", "logger=wandb", f"hydra.sweep.dir={tmp_path / 'mine'}"]
    for _ in range(2):
        assert start("sweep", *arguments)[0] == 0
    folders = [path for path in (tmp_path / "mine").iterdir() if (path / "run.json").exists()]
    found = [part for folder in folders for kind, part in records(folder) if kind == "run"]
    assert len(found) == 2
    assert {part.run_id for part in found} == {folder.name for folder in folders}
    assert {part.run_group for part in found} == {"mine"}


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("onebox.callbacks.service_logger.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r'pip install "onebox\[mlflow\]"'):
        ServiceLogger("mlflow", 1, {})
