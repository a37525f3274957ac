"""Weights & Biases and MLflow beside TensorBoard, which never stop, slow down or change a run."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any

from lightning.pytorch.loggers import Logger

from onebox.callbacks.services import kill
from onebox.errors import Preempted, check, is_number, printable

log = logging.getLogger(__name__)

STOPPED_S = 10  # how long a run that was stopped waits at most, as its scheduler may kill it soon


class ServiceLogger(Logger):
    """Hands what is logged to a process of its own, which alone speaks to the service (`onebox.callbacks.services`).

    So nothing that the service or its library does reaches the run; one that fails costs a warning.

    Args:
        service: `wandb` or `mlflow`, which is also the name of its package.
        timeout_s: how long the process may take after the run's end.
        options: what else the service is told.
    """

    name, version = "service", ""

    def __init__(self, service: str, timeout_s: float, options: dict[str, Any]) -> None:
        super().__init__()
        check(find_spec(service) is not None, f'logger={service}: not installed; pip install "onebox[{service}]"')
        check(is_number(timeout_s, 0), f"logger.{service}.timeout_s must be a number >= 0, not {timeout_s}")
        self._service, self._timeout_s, self._options = service, timeout_s, options
        self._process: subprocess.Popen[bytes] | None = None  # None: not begun, or given up
        self._lines: SimpleQueue[bytes] = SimpleQueue()

    @contextmanager
    def upload(self, folder: Path, fingerprint: str, config: Any, *, is_resumed: bool) -> Iterator[None]:
        """Around a run in `folder`: what is logged is uploaded, and at last how the run ended."""
        place = folder.resolve()
        group = place.parent.name if place.name == fingerprint else config["name"]  # a sweep names the folders so
        run = {"id": fingerprint, "group": group, "folder": str(place), "config": config, "is_resumed": is_resumed}
        command = [sys.executable, "-P", "-m", "onebox.callbacks.services"]
        status, limit = "failed", self._timeout_s
        with TemporaryFile() as self._printed:
            streams: Any = {"stdin": subprocess.PIPE, "stdout": self._printed, "stderr": self._printed}
            try:  # in a session of its own, which Ctrl-C does not reach
                self._process = subprocess.Popen(command, **streams, start_new_session=True)
                Thread(target=self._feed, args=(self._process.stdin,), daemon=True).start()
            except (OSError, RuntimeError) as error:  # no more processes, or threads
                self._give_up(str(error))
            own = {"service": self._service, "timeout_s": limit, "options": self._options, "pid": os.getpid()}
            self._put(run | own)
            try:
                yield
                status = "completed"
            except (Preempted, KeyboardInterrupt):
                status, limit = "interrupted", min(limit, STOPPED_S)
                raise
            finally:
                self._put({"status": status})
                self._lines.put(b"")
                self._wait(limit)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `upload` has them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._put({"metrics": {tag: float(value) for tag, value in metrics.items()}, "step": step})

    def _put(self, line: Mapping[str, Any]) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._give_up()
        if self._process is not None:
            self._lines.put(json.dumps(line).encode() + b"\n")

    def _feed(self, pipe: IO[bytes]) -> None:
        with suppress(OSError), pipe:  # it has ended, as the next line will find
            while line := self._lines.get():
                pipe.write(line)
                pipe.flush()

    def _wait(self, limit: float) -> None:
        try:
            if self._process is not None and self._process.wait(limit):
                self._give_up()
        except subprocess.TimeoutExpired:
            self._give_up(f"has not taken everything {limit:g} s after the run's end")
        except (Preempted, KeyboardInterrupt):  # the run has ended: only the wait is cut short
            self._give_up("was stopped before it had taken everything")

    def _give_up(self, why: str = "") -> None:
        if self._process is not None:
            if self._process.poll() is None:
                kill(self._process.pid)
            self._process.wait()
        self._process = None
        self._printed.seek(0)
        printed = self._printed.read().decode(errors="replace").splitlines()
        why = why or next((line for line in reversed(printed) if line.strip()), "its process was killed")
        log.warning("logger=%s: %s; the run is not affected", self._service, printable(why))
