"""The process that a `ServiceLogger` starts, which alone speaks to Weights & Biases or MLflow.

Lines of JSON come on standard input: what the run is, what it logs, and at last how it ended.
"""

import fcntl
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

FILES = ("report.html", "metrics.json", "predictions.csv")
STEP = "trainer/global_step"  # as Lightning calls it in Weights & Biases

Rows = Iterator[tuple[dict[str, float], int]]  # metrics and their step; when they end, `run["status"]` is there


def wandb(run: dict[str, Any], rows: Rows) -> None:
    """Upload a run under its fingerprint, or, where another has that id, with the time added."""
    import wandb

    earlier = sorted(Path(run["folder"]).glob("wandb/*run-*-*"), key=os.path.getmtime) if run["is_resumed"] else []
    name = re.sub(r".*run-\w+-", "", earlier[-1].name) if earlier else run["id"]
    about = {"name": run["id"], "group": run["group"], "dir": run["folder"], "config": run["config"], **run["options"]}
    about["settings"] = wandb.Settings(console="off", silent=True, x_stats_pid=run["pid"])
    try:
        to = wandb.init(id=name, resume="allow" if run["is_resumed"] else "never", **about)
    except wandb.Error as error:
        if "already exists" not in str(error):
            raise
        to = wandb.init(id=f"{name}-{time.time():.0f}", **about)
    # A link that leads out of the run directory, with which it could not be resumed.
    Path(to.settings.log_internal).with_name("debug-core.log").unlink(missing_ok=True)
    to.define_metric("*", step_metric=STEP)
    for metrics, step in rows:
        to.log({**metrics, STEP: step})
    for path in (files := _files(run)):
        to.save(path, base_path=path.parent, policy="now")
    if files:
        to.log({"results": wandb.Table(dataframe=_table(run))})
    to.finish(exit_code={"failed": 1, "interrupted": 255}.get(run["status"], 0))  # 255 is what it calls killed


def mlflow(run: dict[str, Any], rows: Rows) -> None:
    """Upload a run that is called by its fingerprint, and found again by it and the name of its folder."""
    import mlflow
    import pandas as pd

    if run["options"]["tracking_uri"]:
        mlflow.set_tracking_uri(run["options"]["tracking_uri"])
    mlflow.set_experiment(run["options"]["experiment"] or run["group"])
    tags = {"fingerprint": run["id"], "folder": Path(run["folder"]).name}
    same = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    found: Any = mlflow.search_runs(filter_string=same, output_format="list") if run["is_resumed"] else []
    to = mlflow.start_run(found[0].info.run_id if found else None, run_name=run["id"], tags=tags).info.run_id
    if not found:
        params: dict[Any, Any] = pd.json_normalize(run["config"]).to_dict("records")[0]
        mlflow.log_params({re.sub(r"[^\w/. :-]", "_", key): value for key, value in params.items()})
    logged: dict[str, set[int]] = {}  # tag -> steps that an earlier attempt has logged
    for metrics, step in rows:
        for tag in metrics.keys() - logged if found else ():
            logged[tag] = {point.step for point in mlflow.MlflowClient().get_metric_history(to, tag)}
        mlflow.log_metrics({tag: value for tag, value in metrics.items() if step not in logged.get(tag, ())}, step)
    for path in (files := _files(run)):
        mlflow.log_artifact(str(path))
    if files:
        mlflow.log_table(_table(run), "results.json")
    mlflow.end_run({"failed": "FAILED", "interrupted": "KILLED"}.get(run["status"], "FINISHED"))


def main() -> None:
    """Upload what comes; where that fails, the last printed line says why."""
    lines: SimpleQueue[dict[str, Any]] = SimpleQueue()
    Thread(target=_read, args=(lines,), daemon=True).start()
    run = lines.get()

    def rows() -> Rows:
        while "status" not in (line := lines.get()):
            yield line["metrics"], line["step"]
        run.update(line)

    try:
        with Path(run["folder"], f".{run['service']}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # an earlier attempt that was killed may still be uploaded
            {"wandb": wandb, "mlflow": mlflow}[run["service"]](run, rows())
    except Exception as error:  # whatever a library raises
        print(f"{type(error).__name__}: {' '.join(str(error).split()):.300}", file=sys.stderr, flush=True)
        kill(os.getpid())


def kill(pid: int) -> None:
    """Kill a process with those that it has started, such as the one that is called wandb-core."""
    with suppress(OSError):
        started = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        for number in (*(int(text) for part in started for text in part), pid):
            os.kill(number, signal.SIGKILL)


def _read(lines: SimpleQueue[dict[str, Any]]) -> None:
    """Read standard input to its end, and some time after that end the process, whatever it hangs in."""
    timeout_s = 0
    for text in sys.stdin.buffer:
        lines.put(line := json.loads(text))
        timeout_s = line.get("timeout_s", timeout_s)
    lines.put({"status": "interrupted"})  # where nothing came before it, the run was killed
    time.sleep(timeout_s + 1)
    kill(os.getpid())


def _files(run: dict[str, Any]) -> list[Path]:
    return [path for name in FILES if run["status"] == "completed" and (path := Path(run["folder"], name)).is_file()]


def _table(run: dict[str, Any]) -> Any:
    """The test metrics beside the floor."""
    import pandas as pd

    metrics = json.loads(Path(run["folder"], "metrics.json").read_text(encoding="utf-8"))
    return pd.DataFrame({part: metrics[part] for part in ("test", "floor")}).rename_axis("metric").reset_index()


if __name__ == "__main__":
    main()
