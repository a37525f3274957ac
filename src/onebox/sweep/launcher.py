"""The hermetic launcher: each job of a sweep in a process of its own; which runs when, and what is said of it."""

import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from types import FrameType
from typing import Literal

from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from onebox.errors import BadInput, JobFailed, Preempted, Stopped
from onebox.runs.record import is_held, read_record
from onebox.sweep.compose import Composer
from onebox.sweep.live import View
from onebox.sweep.plan import Job
from onebox.sweep.process import LOG, JobProcess, Order, failed
from onebox.sweep.slots import LaunchOptions, device_slots, thread_share
from onebox.sweep.task import Task

TICK_S = 0.2  # how soon a signal and the time are noticed
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_AGAIN_S = 1.0  # for jobs that another sweep is running


@dataclass
class _Running:
    task: Task
    process: JobProcess
    slot: str | None
    started: float
    reason: Literal["timeout", "stop"] | None = None  # why it was asked to stop
    killed_at: float = float("inf")  # when its time to stop by itself is over

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class Launch:
    """Runs tasks, each in a process of its own, and returns when all have ended.

    `source` gives more of them while others run, or None where it has none yet; with it they are `at_most` so many.
    """

    def __init__(
        self,
        options: LaunchOptions,
        context: HydraContext,
        task_function: TaskFunction,
        tasks: Iterable[Task] = (),
        source: Iterator[Task | None] | None = None,
        at_most: int = 0,
    ) -> None:
        self._options, self._context, self._task_function = options, context, task_function
        self._tasks, self._source = list(tasks), source
        self._slots = device_slots(options.n_jobs, options.gpus_per_job, options.devices)  # that are free
        self._threads = options.threads_per_job or thread_share(len(self._slots))
        self._view = View(at_most or len(self._tasks))
        self._pending = deque(self._tasks)
        self._running: list[_Running] = []
        self._ending: list[_Running] = []  # which have answered; the system takes back their memory
        self._spare: JobProcess | None = None  # waits for the next job
        self._look_again = 0.0
        self._signals: list[int] = []
        self._is_stopping = False

    def run(self) -> list[JobReturn]:
        """The results, in the order of the tasks.

        Raises:
            KeyboardInterrupt: Ctrl-C; what ran has stopped at a checkpoint.
            Preempted: SIGTERM or SIGHUP; likewise.
        """
        with self._signals_noted(), self._view.bar:
            try:
                while self._pending or self._running or self._ending or self._source is not None:
                    self._obey_signals()
                    self._take_in()
                    self._start()
                    self._wait()
                    self._collect()
            finally:
                rest = [running.process for running in self._running + self._ending]  # none, but for a fault of ours
                for process in [*rest, *([self._spare] if self._spare else [])]:
                    process.kill()
                    process.close()
        if self._signals:
            raise self._stopped()
        return [task.result or failed(Stopped("not started")) for task in self._tasks]

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            if not self._running:
                raise self._stopped()  # nothing to end; the server may still be importing

        numbers = [number for number in STOP if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stopped(self) -> BaseException:
        done = sum(task.result is not None and task.result.status is JobStatus.COMPLETED for task in self._tasks)
        name = signal.Signals(self._signals[0]).name
        how, kind = ("Ctrl-C", KeyboardInterrupt) if name == "SIGINT" else (name, Preempted)
        return kind(f"sweep stopped by {how}, {done} of {self._view.total} jobs done; the same command resumes it")

    def _obey_signals(self) -> None:
        if self._signals and not self._is_stopping:
            self._stop("the sweep is stopped")
        # Whatever else ends a session also closes its terminal.
        if len([number for number in self._signals if number != signal.SIGHUP]) > 1:
            for running in self._running:
                running.process.kill()

    def _stop(self, why: str) -> None:
        """Let running jobs stop at a checkpoint, and start no other."""
        self._is_stopping = True
        if number := len(self._running):
            self._view.say(
                f"{why}; {number} running {'job stops' if number == 1 else 'jobs stop'} at a checkpoint, "
                f"{len(self._pending)} will not be started (Ctrl-C again kills)",
                "yellow",
            )
        for running in self._running:
            self._ask_to_stop(running, "stop")
        for task in self._pending:
            task.result = failed(Stopped(f"not started, as {why}"))
        self._pending.clear()
        self._source = None

    def _ask_to_stop(self, running: _Running, reason: Literal["timeout", "stop"]) -> None:
        if running.reason is None:
            running.process.ask_to_stop(dump=reason == "timeout")
            running.reason = reason
            running.killed_at = time.monotonic() + self._options.grace_s

    def _take_in(self) -> None:
        """Let one more task come, which may take as long as it takes to compose a job."""
        if self._source is None:
            return
        try:
            task = next(self._source)
        except StopIteration:
            self._source, self._view.total = None, len(self._tasks)
            return
        if task is not None:
            self._tasks.append(task)
            self._pending.append(task)

    def _start(self) -> None:
        """Start jobs while there are slots."""
        while self._slots and (task := self._next()) is not None:
            slot = self._slots.pop(0)
            try:
                process = self._begin(self._order(task, slot))
            except Exception as error:  # whatever is wrong with its config: the other jobs still run
                self._slots.append(slot)
                self._end(task, failed(error), 0.0)
                continue
            self._running.append(_Running(task, process, slot, time.monotonic()))
            max_epochs = OmegaConf.select(task.config, "trainer.max_epochs")
            self._view.start(task.number, task.label, task.attempts, task.job.folder, max_epochs)
        if self._pending and not self._slots:
            self._is_free(self._pending[0])  # composes it, while others run
            self._spare = self._spare or JobProcess(self._options.grace_s)

    def _begin(self, order: Order) -> JobProcess:
        """A process that does a job: the one that waits for it, if it still lives."""
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.begin(order):
                return spare
            spare.close()
        process = JobProcess(self._options.grace_s)
        process.begin(order)  # where it is dead already, its exit code says so
        return process

    def _next(self) -> Task | None:
        """The first that no other process is running; those are looked at again later."""
        if time.monotonic() < self._look_again:
            return None
        for task in self._pending:
            if self._is_free(task):
                self._pending.remove(task)
                return task
        self._look_again = time.monotonic() + LOOK_AGAIN_S
        return None

    def _is_free(self, task: Task) -> bool:
        try:
            return bool(task.config) and not is_held(task.job.folder, unknown=False)
        except Exception:  # it cannot be composed, which is found again when it is started
            return True

    def _order(self, task: Task, slot: str | None) -> Order:
        task.attempts += 1
        config = task.config.copy()
        with open_dict(config):
            config.hydra.sweep.subdir = task.job.folder.name  # which the job compares with its own fingerprint
            if task.attempts > 1:  # it is resumed, whatever `rerun` says of runs that failed earlier
                config.rerun = "failed"
        return Order(
            config=config,
            folder=task.job.folder,
            context=self._context,
            task_function=self._task_function,
            task_name=JobRuntime.instance().get("name"),
            attempt=task.attempts,
            threads=self._threads,
            environment=os.environ | ({} if slot is None else {"CUDA_VISIBLE_DEVICES": slot}),
        )

    def _wait(self) -> None:
        self._view.refresh()
        seconds = TICK_S if self._source is None else 0
        if processes := [running.process for running in self._running + self._ending]:
            connection.wait([item for process in processes for item in process.waited_for], seconds)
        elif self._pending and self._source is None:
            time.sleep(TICK_S)

    def _collect(self) -> None:
        for running in list(self._running):
            is_over = running.process.exit_code() is not None
            if is_over or running.process.answer is not None:
                self._running.remove(running)
                self._ending.append(running)
                running.killed_at = min(running.killed_at, time.monotonic() + self._options.grace_s)
                self._conclude(running)
            elif time.monotonic() > running.killed_at:
                running.process.kill()
            elif self._options.timeout_s is not None and running.seconds > self._options.timeout_s:
                self._ask_to_stop(running, "timeout")
        for running in list(self._ending):
            if running.process.exit_code() is not None:
                self._ending.remove(running)
                running.process.close()
                if running.slot is not None:
                    self._slots.append(running.slot)
            elif time.monotonic() > running.killed_at:
                running.process.kill()

    def _conclude(self, running: _Running) -> None:
        """The job is over, though its process may not be: a GPU is free once that is gone."""
        code, answer = running.process.exit_code(), running.process.answer
        if running.slot is None:
            self._slots.append(None)
        self._look_again = 0.0
        if running.reason == "timeout" and (answer is None or answer.status is not JobStatus.COMPLETED):
            limit = f"timeout_s={self._options.timeout_s:g}"
            answer = failed(JobFailed(f"took longer than {limit}; {LOG} shows what it was doing"))
        elif answer is None and running.reason == "stop":
            answer = failed(Stopped("killed, as it did not stop by itself"))
        elif answer is None:
            answer = failed(JobFailed(how_it_died(code or 0)))
        self._end(running.task, answer, running.seconds)

    def _end(self, task: Task, answer: JobReturn, seconds: float) -> None:
        """An attempt is over: the job is done, has failed, or will be retried."""
        if answer.status is JobStatus.COMPLETED:
            task.result = answer
            is_pruned = (read_record(task.job.folder) or {}).get("status") == "pruned"
            how = "pruned" if is_pruned else "done"
            self._view.end(task.number, task.label, how, seconds, _objectives(task.config, answer))
            return task.forget()
        error = answer._return_value  # the property raises it
        if isinstance(error, Stopped):
            task.result = answer
            return self._view.end(task.number, task.label, "stopped", seconds)
        text = " ".join(str(error).split()) or type(error).__name__
        if task.is_composed:
            task.record_failure(error, text)
        if task.attempts <= self._options.max_retries and not isinstance(error, BadInput) and not self._is_stopping:
            self._view.end(task.number, task.label, "retried", seconds, text)
            self._pending.append(task)
            return None
        task.result = answer
        where = f" ({task.job.folder / LOG})" if task.is_composed else ""
        self._view.end(task.number, task.label, "failed", seconds, text + where)
        if self._options.on_error == "stop" and not self._is_stopping:
            self._stop(f"job #{task.number} failed")
        return None


def how_it_died(code: int) -> str:
    """What the exit code of a process says, or minus the signal that ended it."""
    if code >= 0:
        return f"its process ended with exit code {code} and no answer"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")


def _objectives(config: DictConfig, answer: JobReturn) -> str:
    """What was reached, of the best epoch, by the names that tables use."""
    from onebox.runs.reading.find import best_tag

    value = answer.return_value
    values = value if isinstance(value, tuple) else (value,)
    tags = [config.objective] if isinstance(config.objective, str) else config.objective
    pairs = zip(tags, values, strict=False)  # the fit may not have logged them
    return " ".join(f"{best_tag(tag)} {item:.4g}" for tag, item in pairs if isinstance(item, int | float))


def launch(
    options: LaunchOptions,
    context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int = 0,
    jobs: Iterable[Job | None] | None = None,
    compose: Composer | None = None,
) -> list[JobReturn]:
    """What Hydra asks a launcher for; see `hydra.plugins.launcher.Launcher.launch`.

    With `jobs`, those of `job_overrides` that are to be run come one by one, while others run; None where one takes
    longer, and `compose` is what composes them.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    compose, numbers = compose or Composer(context.config_loader, config), itertools.count(initial_job_idx)
    # One by one, as a search has it, jobs have nothing to differ from but the sweep.
    common = set(config.hydra.overrides.task) if len(job_overrides) < 2 else set.intersection(*map(set, job_overrides))

    def task(overrides: Sequence[str], job: Job | None = None) -> Task:
        varied = [text for text in overrides if text not in common and not text.lstrip("+~").startswith("hydra")]
        return Task(compose, overrides, next(numbers), " ".join(varied), job)

    if jobs is None:
        return Launch(options, context, task_function, [*map(task, job_overrides)]).run()
    source = (None if job is None else task(job.overrides, job) for job in jobs)
    return Launch(options, context, task_function, source=source, at_most=len(job_overrides)).run()
