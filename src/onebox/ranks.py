"""Several devices: one process for each (a rank), started, watched and ended by torch's elastic launcher.

Lightning would start the other ranks itself: by the command line of its own process, which in a sweep is that of the
sweep or of a worker. Here the process that has the run directory only starts single runs and waits for them.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from onebox.data.processes import num_cores
from onebox.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    BadInput,
    Preempted,
    RankFailed,
    check,
    own_complaint,
)

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

RUN_ID = "onebox-"  # how the launcher's run id begins; then comes the id of the process that has the run directory
# Schedulers send these to all processes of a job, but only one is to obey.
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TIME_IS_OVER = (signal.SIGUSR1, signal.SIGUSR2)
IN_PROCESS = ("spawn", "fork", "notebook")  # strategies that start ranks by themselves
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def _rank(trainer: DictConfig) -> int | None:
    """Which rank of its run `run_ranks`, torchrun or srun has started this process as; None without several devices."""
    if trainer.devices == 1 and trainer.num_nodes == 1:
        return None
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else None


def served_rank(trainer: DictConfig) -> int | None:
    """The rank that this process is, where another process has the run directory; else None."""
    number = _rank(trainer)
    return number if number or os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(RUN_ID) else None


def num_ranks(trainer: DictConfig) -> int:
    """How many ranks this process is to start for a config's `trainer`: one a device, unless it was started as one.

    Raises:
        BadInput: the ranks cannot be started from here.
    """
    if _rank(trainer) is not None:
        return 1
    check(
        trainer.num_nodes == 1,
        f"trainer.num_nodes={trainer.num_nodes} but nothing has started this process as one of its ranks; "
        "start the same command on each node by srun or torchrun (see docs/cluster.md)",
    )
    count = _num_devices(trainer)
    is_ours = count == 1 or not any(kind in str(trainer.strategy) for kind in IN_PROCESS)
    check(is_ours, f"trainer.strategy={trainer.strategy} starts its ranks in one process; set trainer.strategy=ddp")
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
        return 1  # refused again where the trainer is made


def prepare(config: DictConfig, number: int) -> None:
    """Before Hydra uses `config`: let it write nothing for a rank but the log of that rank."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        if number > 0:
            config.hydra.job.name = f"rank{number}"
            if OmegaConf.select(config, "hydra.job_logging.handlers.file") is not None:
                config.hydra.job_logging.root.handlers = ["file"]


def run_ranks(run_dir: Path, count: int) -> None:
    """Run the experiment that Hydra has composed on `count` devices, to its end.

    On SIGTERM and Ctrl-C, which must raise here, rank 0 stores a checkpoint. Nothing is left running, however this
    ends. What the other ranks print is in rankN.log of `run_dir`, which this process has.

    Raises:
        BadInput: what a rank raised.
        RankFailed: a rank failed or was killed.
        Preempted, KeyboardInterrupt: rank 0 was stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said here in one line
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(os.environ.get("OMP_NUM_THREADS") or num_cores()) // count))
    with tempfile.TemporaryDirectory(prefix="onebox_ranks_") as reports:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=f"{RUN_ID}{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            signals_to_handle="SIGQUIT",  # the others are handled around this
            logs_specs=DefaultLogsSpecs(log_dir=reports),
        )
        try:
            elastic_launch(config, sys.executable)(*_command(run_dir))
        except ChildFailedError as error:
            number, failure = min(error.failures.items(), key=lambda item: _moment(item[1]))
            where = f" (see {run_dir / f'rank{number}.log'})" if number else ""
            raise _error_of(failure, f"rank {number}", where) from None


def _command(run_dir: Path) -> list[str]:
    """A single run of the composed config."""
    hydra = HydraConfig.get()
    folder = str(run_dir).replace("\\", "\\\\").replace("'", "\\'")
    sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [
        *("-P", "-m", "onebox.train"),  # -P: no module is found in the working directory
        *(f"--config-dir={path}" for path in sources),
        f"--config-name={hydra.job.config_name}",
        *hydra.overrides.hydra,
        *hydra.overrides.task,
        f"hydra.run.dir='{folder}'",
        "hydra.mode=RUN",
    ]


def _moment(failure: "ProcessFailure") -> float:
    """When a rank failed: the others only fail because they miss the first one."""
    if failure.exitcode == -signal.SIGTERM:
        return float("inf")  # by the launcher, as another had failed
    # Without a report it was killed, and found dead in this second.
    return float(failure.error_file_data.get("time", failure.timestamp - 1))


def _error_of(failure: "ProcessFailure", who: str, where: str) -> BaseException:
    """What is to be raised here for the end of a rank."""
    code, report = failure.exitcode, failure.error_file_data
    if code == EXIT_PREEMPTED:
        return Preempted(report["message"])
    if code == EXIT_INTERRUPTED:
        return KeyboardInterrupt()
    if "time" in report:
        is_bad_input = code == EXIT_BAD_INPUT
        return BadInput(report["message"]) if is_bad_input else RankFailed(f"{who}: {report['error']}{where}")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return RankFailed(f"{who} {how}{where}")


@contextmanager
def as_rank(number: int, run_dir: Path) -> Iterator[None]:
    """Be a rank whose run directory another process has: end when it does, and report an error to it.

    Only rank 0 can be stopped by a signal; it decides where, and the others end without it. What they print goes into
    `run_dir`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*TIME_IS_OVER, *(STOP if number > 0 else ())})
    launcher = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if not launcher.startswith(RUN_ID):  # started by torchrun or srun
        yield
        return
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher.removeprefix(RUN_ID)):
        os._exit(EXIT_FAULT)  # the parent ended before
    if number > 0:
        with (run_dir / f"rank{number}.log").open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    try:
        yield
    except BaseException as error:  # whatever it is, the launcher must know
        codes = {Preempted: EXIT_PREEMPTED, KeyboardInterrupt: EXIT_INTERRUPTED, BadInput: EXIT_BAD_INPUT}
        cause = own_complaint(error)
        code = codes.get(type(cause), EXIT_FAULT)
        # The launcher reads `timestamp` and `message`.
        report: dict[str, Any] = {"time": time.time(), "timestamp": int(time.time()), "message": str(cause)}
        report["error"] = f"{type(cause).__name__}: {cause}"
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(report), encoding="utf-8")
        if code == EXIT_FAULT:
            traceback.print_exc()
        for output in (sys.stdout, sys.stderr):
            with suppress(OSError):
                output.flush()
        # At once: what waits for the other ranks would never end.
        os._exit(code)
