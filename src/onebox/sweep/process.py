"""One job in a process of its own, forked from a server that has imported everything."""

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from onebox.errors import (
    EXIT_FAULT,
    EXIT_PREEMPTED,
    JobFailed,
    Preempted,
    Stopped,
    SweepFailed,
    own_complaint,
    printable,
    say,
)
from onebox.streams import open_streams
from onebox.sweep.snapshot import use_copies

LOG = "job.log"  # what a job prints, in its run directory
SERVER_GONE_S = 0.5  # from when a process closes its pipes until the system says that it has ended
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

_context = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Let the server import what jobs need, beside this process; does nothing when there is one."""
    gc.enable()  # the configs of many jobs are garbage in time
    _context.set_forkserver_preload(["onebox.sweep.preload"])
    forkserver.ensure_running()


def importing() -> threading.Thread:
    """A thread that lives until the server has imported everything, or is dead."""

    def wait() -> None:
        with contextlib.suppress(SweepFailed):  # which the first job says
            start(gc.collect, ()).join()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def start(function: Callable[..., object], args: tuple[Any, ...]) -> Any:
    """Call a function in a fork of the server; returns the process."""
    process = _context.Process(target=function, args=args)
    _fork(process)
    return process


def _fork(process: Any) -> None:
    """Fork the server, or another one where it is killed meanwhile.

    Raises:
        SweepFailed: that one died as well.
    """
    for seconds in (SERVER_GONE_S, None):
        try:
            return process.start()
        except (EOFError, ConnectionError) as error:
            if seconds is None:
                told = "the process that jobs are forked from died twice: out of memory, or killed; try again"
                raise SweepFailed(told) from error
            time.sleep(seconds)


@dataclass(frozen=True)
class Order:
    """All that a job's process is told."""

    config: DictConfig  # with `hydra`
    folder: Path
    context: HydraContext  # for its callbacks
    task_function: TaskFunction
    task_name: str  # Hydra's name of the program
    attempt: int  # counted from 1
    threads: int
    environment: Mapping[str, str]  # all variables


class JobProcess:
    """A job's process, seen from the sweep: forked ahead, so that its job need not wait for that.

    Waits for the server when that has not imported everything yet.

    Args:
        grace_s: from the end of this process until that of the job is killed, s.

    Attributes:
        answer: what the job came to; None until it says so.
    """

    def __init__(self, grace_s: float) -> None:
        orders, self._orders = _context.Pipe(duplex=False)
        self._answers, answers = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_work, args=(orders, answers, grace_s))
        _fork(self._process)
        orders.close()
        answers.close()
        self.answer: JobReturn | None = None

    def begin(self, order: Order) -> bool:
        """Let it do its job; False if it has died while it waited."""
        try:
            self._orders.send(order)
        except ConnectionError:
            return False
        return True

    @property
    def pid(self) -> int:
        """Process id, which is also that of its group."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def waited_for(self) -> list[Any]:
        """What `multiprocessing.connection.wait` takes: ready when there is news of the job."""
        return [self._process.sentinel, *([] if self.answer else [self._answers])]

    def exit_code(self) -> int | None:
        """None while the process lives, minus the signal that ended it, or its exit code; takes in the answer."""
        code = self._process.exitcode  # before the answer, which may come between the two
        if self.answer is None and self._answers.poll():
            # A process that is killed while it answers has not answered.
            with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
                self.answer = self._answers.recv()
        return code

    def ask_to_stop(self, *, dump: bool) -> None:
        """SIGTERM, on which a run stops at a checkpoint; with `dump` the log first gets what each thread is doing."""
        with contextlib.suppress(ProcessLookupError):
            if dump:
                os.kill(self.pid, signal.SIGUSR1)
            os.kill(self.pid, signal.SIGTERM)  # not to its loader workers, without which it cannot stop cleanly

    def kill(self) -> None:
        """SIGKILL to the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._kill_group()

    def close(self) -> None:
        """Give everything back once it has ended; what it left running ends as well."""
        self._kill_group()
        self._orders.close()
        self._answers.close()
        self._process.join()
        self._process.close()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _work(orders: Connection, answers: Connection, grace_s: float) -> None:
    """What the job's process does."""
    os.setsid()  # Ctrl-C is for the sweep, which decides what becomes of its jobs
    threading.Thread(target=_end_with_parent, args=[grace_s], daemon=True).start()
    try:
        order: Order = orders.recv()
    except EOFError:  # there is no other job
        return
    _redirect(order.folder / LOG)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    os.environ.clear()
    os.environ.update(order.environment)
    use_copies()
    multiprocessing.set_start_method(None, force=True)  # loader workers are forks, as in a run alone
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(order.threads)))
    override = " ".join(order.config.hydra.overrides.task)
    print(printable(f"--- attempt {order.attempt}, {datetime.now():%Y-%m-%d %H:%M:%S}: {override}"), flush=True)

    import torch

    torch.set_num_interop_threads(order.threads)
    with open_dict(order.config):
        order.config.threads = order.threads  # train() sets everything else by it
    setup_globals()
    JobRuntime.instance().set("name", order.task_name)
    code = 0
    try:
        HydraConfig.instance().set_config(order.config)
        answer = run_job(
            hydra_context=order.context,
            config=order.config,
            task_function=order.task_function,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if answer.status is JobStatus.FAILED:
            traceback.print_exception(answer._return_value)
            answer.return_value = portable(answer._return_value)
    except (Preempted, KeyboardInterrupt) as error:
        say(error)
        answer, code = failed(Stopped(str(error))), EXIT_PREEMPTED
    except BaseException as error:  # the launcher waits for an answer, even from a job that leaves by sys.exit
        traceback.print_exc()
        text = f"exit code {error.code}" if isinstance(error, SystemExit) else ""
        answer, code = failed(JobFailed(text) if text else portable(error)), EXIT_FAULT
    sys.stdout.flush()
    sys.stderr.flush()
    answer.cfg = answer.hydra_cfg = None  # megabytes, which the sweep would keep
    answers.send(answer)
    sys.exit(code)


def failed(error: Exception) -> JobReturn:
    """What a job comes to that has no result."""
    answer = JobReturn(status=JobStatus.FAILED)
    answer.return_value = error
    return answer


def portable(error: BaseException) -> Exception:
    """The error itself if it survives the way to another process, otherwise its text."""
    error = own_complaint(error)
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # anything can be wrong with how an exception is pickled
        copy = None
    if isinstance(copy, Exception) and isinstance(error, Exception):
        return error
    return JobFailed(f"{type(error).__name__}: {error}")


def _redirect(log: Path) -> None:
    """Send what this process and its children print to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    open_streams(line_buffering=True)


def _end_with_parent(grace_s: float) -> None:
    """A job must not live on when its sweep has been killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)
