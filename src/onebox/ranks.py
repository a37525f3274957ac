"""Several devices: one process for each (a rank), started and watched here, so that one that fails ends them all.

Lightning would start the other ranks itself: by the command line of its own process, which in a sweep is that of the
sweep or of a worker. Here the process that has the run directory only starts single runs and waits for them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from onebox.data.processes import num_cores
from onebox.errors import EXIT_BAD_INPUT, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_PREEMPTED, BadInput, Preempted, RankFailed

# File descriptors that a rank inherits: one that ends when this process does, and one that takes its error.
LIFELINE, REPORT = "ONEBOX_RANK_LIFELINE", "ONEBOX_RANK_REPORT"
POLL_S = 0.05
# Schedulers send these to all processes of a job, but only one is to obey.
STOP = (signal.SIGTERM, signal.SIGINT)
TIME_IS_OVER = (signal.SIGUSR1, signal.SIGUSR2)
IN_PROCESS = ("spawn", "fork", "notebook")  # strategies that start ranks by themselves


class RemoteError(Exception):
    """Stands for the error of another process; its text is the traceback there."""


def rank(trainer: DictConfig) -> int | None:
    """Which rank of its run this process is, as `run_ranks`, torchrun or srun says; None when nothing has started it
    as one.

    Args:
        trainer: the config's `trainer`; with one device there are no ranks, whatever the environment says.
    """
    if trainer.devices == 1 and trainer.num_nodes == 1:
        return None
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(os.environ["SLURM_PROCID"])
    return None


def is_served(number: int) -> bool:
    """Whether another process has the run directory of this rank."""
    return number > 0 or REPORT in os.environ


def num_ranks(trainer: DictConfig) -> int:
    """How many ranks this machine runs for a config's `trainer`: one a device.

    Raises:
        BadInput: the ranks cannot be started from here.
    """
    count = _num_devices(trainer)
    if trainer.num_nodes != 1:
        raise BadInput(
            f"trainer.num_nodes={trainer.num_nodes} but nothing has started this process as one of its ranks; "
            "start the same command on each node by srun or torchrun (see docs/cluster.md)"
        )
    if count > 1 and any(kind in str(trainer.strategy) for kind in IN_PROCESS):
        raise BadInput(f"trainer.strategy={trainer.strategy} starts its ranks in one process; set trainer.strategy=ddp")
    return count


def _num_devices(trainer: DictConfig) -> int:
    if isinstance(trainer.devices, ListConfig):
        return len(trainer.devices)
    if isinstance(trainer.devices, int) and trainer.devices >= 0:
        return trainer.devices
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    off: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    try:
        return Trainer(accelerator=trainer.accelerator, devices=trainer.devices, **off).num_devices
    except MisconfigurationException:
        return 1  # it is refused again where the trainer is made


def prepare(config: DictConfig, number: int) -> None:
    """Let Hydra write nothing for a rank that a process of its own has written, but a log for each rank.

    Args:
        config: with `hydra`, before Hydra makes use of it.
        number: the rank.
    """
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        if number > 0:
            config.hydra.job.name = f"rank{number}"
            if OmegaConf.select(config, "hydra.job_logging.handlers.file") is not None:
                config.hydra.job_logging.root.handlers = ["file"]


def run_ranks(run_dir: Path, count: int) -> None:
    """Run the experiment that Hydra has composed on several devices, to its end.

    SIGTERM and Ctrl-C, which must raise here, are passed on to rank 0. Nothing is left running, however this ends. What
    the other ranks print is in rankN.log.

    Args:
        run_dir: the run directory, which this process has.
        count: how many ranks.

    Raises:
        BadInput: what a rank raised.
        RankFailed: a rank failed or was killed.
        Preempted, KeyboardInterrupt: rank 0 was stopped.
    """
    reader, writer = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reader)
        reports = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, ranks)
        stack.callback(os.close, writer)  # ends even one whose start was interrupted
        shared = _environment(count)
        for number, report in enumerate(reports):
            own = {"RANK": str(number), "LOCAL_RANK": str(number), LIFELINE: str(reader), REPORT: str(report.fileno())}
            output = stack.enter_context((run_dir / f"rank{number}.log").open("ab")) if number > 0 else None
            with _blocked(*(STOP if number > 0 else ()), *TIME_IS_OVER):
                process = subprocess.Popen(
                    _command(run_dir),
                    env={**os.environ, **shared, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(reader, report.fileno()),
                    start_new_session=True,  # so that Ctrl-C on the terminal comes here alone
                )
            ranks.append(process)
        try:
            _wait(ranks)
        except (Preempted, KeyboardInterrupt) as stop:
            ranks[0].send_signal(signal.SIGTERM if isinstance(stop, Preempted) else signal.SIGINT)
            ranks[0].wait()
            raise
        _raise(ranks, reports, run_dir)


def _command(run_dir: Path) -> list[str]:
    """A single run of the composed config."""
    hydra = HydraConfig.get()
    folder = str(run_dir).replace("\\", "\\\\").replace("'", "\\'")
    sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [
        *(sys.executable, "-P", "-m", "onebox.train"),  # -P: no module is found in the working directory
        *(f"--config-dir={path}" for path in sources),
        f"--config-name={hydra.job.config_name}",
        *hydra.overrides.hydra,
        *hydra.overrides.task,
        f"hydra.run.dir='{folder}'",
        "hydra.mode=RUN",
    ]


def _environment(count: int) -> dict[str, str]:
    """What all ranks are told, in torchrun's words, which Lightning follows before Slurm's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cores = int(os.environ.get("OMP_NUM_THREADS") or num_cores())
    return {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": str(os.getpid()),
        "OMP_NUM_THREADS": str(max(1, cores // count)),
    }


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Processes that are started here never receive these signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended, or one has failed."""
    while None in (codes := [process.poll() for process in ranks]):
        if any(codes):
            time.sleep(POLL_S)  # another one may have failed first
            return
        time.sleep(POLL_S)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        process.kill()
    for process in ranks:
        process.wait()


def _raise(ranks: Sequence[subprocess.Popen[bytes]], reports: Sequence[IO[bytes]], run_dir: Path) -> None:
    """Raise what ended the first rank that failed, if any did: the others fail because they miss it."""
    codes = [process.poll() or 0 for process in ranks]
    if codes[0] == EXIT_PREEMPTED:
        raise Preempted("stopped by SIGTERM")
    if codes[0] == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    found: list[tuple[float, int, dict[str, Any]]] = []
    for number, (code, report) in enumerate(zip(codes, reports, strict=True)):
        if code != 0:
            report.seek(0)
            text = report.read()
            facts = json.loads(text) if text else {}
            found.append((facts.get("time", 0.0), number, facts))  # without a report it was killed
    if not found:
        return
    _, number, facts = min(found, key=lambda item: item[:2])
    if codes[number] == EXIT_BAD_INPUT and facts:
        raise BadInput(facts["message"])
    where = f" (see {run_dir / f'rank{number}.log'})" if number else ""
    if facts:
        raise RankFailed(f"rank {number}: {facts['type']}: {facts['message']}{where}") from RemoteError(
            facts["traceback"]
        )
    code = codes[number]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    raise RankFailed(f"rank {number} {how}{where}")


@contextmanager
def as_rank(number: int) -> Iterator[None]:
    """Be a rank whose run directory another process has: end when it does, and tell it of an error.

    Only rank 0 can be stopped by a signal; it decides where, and the others end without it.

    Args:
        number: the rank.
    """
    if number > 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    if REPORT not in os.environ:  # started by torchrun or srun
        yield
        return
    lifeline, report = int(os.environ[LIFELINE]), int(os.environ[REPORT])
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    try:
        yield
    except Preempted:
        _leave(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED)
    except Exception as error:  # rank 0 is to be told, whatever it is
        facts = {
            "time": time.time(),
            "type": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        os.write(report, json.dumps(facts).encode())
        if isinstance(error, BadInput):
            _leave(EXIT_BAD_INPUT)
        traceback.print_exc()
        _leave(EXIT_FAULT)


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)  # gives nothing until the other end is closed
    os.kill(os.getpid(), signal.SIGKILL)


def _leave(code: int) -> None:
    """End at once: what waits for the other ranks would wait for ever."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
