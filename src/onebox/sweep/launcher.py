"""The hermetic launcher: which job of a sweep runs when, and what is said of it when it ends."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from onebox.errors import BadInput, JobFailed, Preempted, Stopped
from onebox.runs.claim import is_held
from onebox.runs.composition import run_facts, without_hydra
from onebox.runs.record import record_failure
from onebox.sweep.live import RunningJob, View
from onebox.sweep.process import LOG, JobProcess, Order, failed
from onebox.sweep.slots import LaunchOptions, device_slots, thread_share

TICK_S = 0.2  # how soon a signal and the time are noticed
LOOK_AGAIN_S = 1.0  # for jobs that another sweep is running


class Job:
    """A job of a sweep, composed when it is first asked for its config.

    Args:
        context: Hydra's.
        task_function: what it calls.
        sweep_config: the sweep's config.
        overrides: of the job.
        number: of the job.
        label: what it varies.

    Attributes:
        attempts: that were made at it by this launch.
        result: None until it has ended for good.
    """

    def __init__(
        self,
        context: HydraContext,
        task_function: TaskFunction,
        sweep_config: DictConfig,
        overrides: Sequence[str],
        number: int,
        label: str,
    ) -> None:
        self.context, self.task_function, self.number = context, task_function, number
        self._sweep_config, self._overrides = sweep_config, list(overrides)
        self.label = label
        self.attempts = 0
        self.result: JobReturn | None = None

    @cached_property
    def config(self) -> DictConfig:
        """Its config, with `hydra`."""
        config = self.context.config_loader.load_sweep_config(self._sweep_config, self._overrides)
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{self.number}"
            config.hydra.job.num = self.number
        return config

    @cached_property
    def folder(self) -> Path:
        """Its run directory."""
        hydra = HydraConfig.instance()
        before, hydra.cfg = hydra.cfg, None
        try:
            hydra.set_config(self.config)  # as Hydra has it when it asks for these
            return Path(self.config.hydra.sweep.dir, self.config.hydra.sweep.subdir)
        finally:
            hydra.cfg = before

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What run.json says of it from the start."""
        return run_facts(without_hydra(self.config, run_dir=str(self.folder.absolute())), self.config.hydra)


@dataclass
class _Running:
    job: Job
    process: JobProcess
    slot: str | None
    started: float
    reason: Literal["timeout", "stop"] | None = None  # why it was asked to stop
    killed_at: float = float("inf")  # when its patience is over

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class Launch:
    """Runs jobs, each in a process of its own, and comes back when all have ended.

    Args:
        options: how.
        jobs: which.
    """

    def __init__(self, options: LaunchOptions, jobs: Sequence[Job]) -> None:
        self._options, self._jobs = options, jobs
        self._slots = device_slots(options.n_jobs, options.gpus_per_job, options.devices)  # that are free
        self._threads = options.threads_per_job or thread_share(len(self._slots))
        self._view = View(Console(), len(jobs))
        self._pending = deque(jobs)
        self._running: list[_Running] = []
        self._look_again = 0.0
        self._signals: list[int] = []
        self._is_stopping = False

    def run(self) -> list[JobReturn]:
        """The results, in the order of the jobs.

        Raises:
            KeyboardInterrupt: Ctrl-C; what ran has stopped at a checkpoint.
            Preempted: SIGTERM; likewise.
        """
        with self._signals_noted(), self._view:
            try:
                while self._pending or self._running:
                    self._obey_signals()
                    self._start()
                    self._wait()
                    self._collect()
            finally:
                for running in self._running:  # none, but for a fault of ours
                    running.process.kill()
                    running.process.close()
        if self._signals:
            raise self._stopped()
        return [job.result or failed(Stopped("not started")) for job in self._jobs]

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            if not self._running:
                raise self._stopped()  # nothing to end; the server may still be importing

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stopped(self) -> BaseException:
        done = sum(job.result is not None and job.result.status is JobStatus.COMPLETED for job in self._jobs)
        how, kind = ("by SIGTERM", Preempted) if self._signals[0] == signal.SIGTERM else ("by hand", KeyboardInterrupt)
        return kind(f"sweep stopped {how}, {done} of {len(self._jobs)} jobs done; the same command goes on")

    def _obey_signals(self) -> None:
        if self._signals and not self._is_stopping:
            self._stop("the sweep is stopped")
        if len(self._signals) > 1:
            for running in self._running:
                running.process.kill()

    def _stop(self, why: str) -> None:
        """Let running jobs stop at a checkpoint, and start no other."""
        self._is_stopping = True
        number = len(self._running)
        if number:
            self._view.note(
                f"{why}; {number} running {'job stops' if number == 1 else 'jobs stop'} at a checkpoint, "
                f"{len(self._pending)} will not be started (Ctrl-C once more: now)",
                "yellow",
            )
        for running in self._running:
            self._ask_to_stop(running, "stop")
        for job in self._pending:
            job.result = failed(Stopped(f"not started, as {why}"))
        self._pending.clear()

    def _ask_to_stop(self, running: _Running, reason: Literal["timeout", "stop"]) -> None:
        if running.reason is None:
            running.process.ask_to_stop(dump=reason == "timeout")
            running.reason = reason
            running.killed_at = time.monotonic() + self._options.grace_s

    def _start(self) -> None:
        """Start jobs while there are slots, and get one more ready."""
        while self._slots and (job := self._next()) is not None:
            slot = self._slots.pop(0)
            try:
                process = JobProcess(self._order(job, slot))
            except Exception as error:  # its config cannot be composed or sent
                self._slots.append(slot)
                self._end(job, failed(error), 0.0)
                continue
            self._running.append(_Running(job, process, slot, time.monotonic()))
            self._view.started(job.number, job.label, job.attempts)
        if self._pending and not self._slots:
            self._is_free(self._pending[0])  # composes it, while others run

    def _next(self) -> Job | None:
        """The first that no other process is running; those are looked at again later."""
        if time.monotonic() < self._look_again:
            return None
        for job in self._pending:
            if self._is_free(job):
                self._pending.remove(job)
                return job
        self._look_again = time.monotonic() + LOOK_AGAIN_S
        return None

    def _is_free(self, job: Job) -> bool:
        try:
            return not is_held(job.folder, unknown=False)
        except Exception:  # it cannot be composed, which is found again when it is started
            return True

    def _order(self, job: Job, slot: str | None) -> Order:
        job.attempts += 1
        config = job.config
        if job.attempts > 1:  # whatever `rerun` says of runs that failed earlier, this one is to go on
            config = config.copy()
            with open_dict(config):
                config.rerun = "failed"
        devices = {} if slot is None else {"CUDA_VISIBLE_DEVICES": slot}
        return Order(
            config=config,
            folder=job.folder,
            context=job.context,
            task_function=job.task_function,
            task_name=JobRuntime.instance().get("name"),
            attempt=job.attempts,
            threads=self._threads,
            environment={**os.environ, **devices},
            grace_s=self._options.grace_s,
        )

    def _wait(self) -> None:
        self._view.refresh([self._shown(running) for running in self._running])
        if self._running:
            connection.wait([item for running in self._running for item in running.process.waited_for], TICK_S)
        elif self._pending:
            time.sleep(TICK_S)

    def _shown(self, running: _Running) -> RunningJob:
        job = running.job
        max_epochs = OmegaConf.select(job.config, "trainer.max_epochs")
        return RunningJob(job.number, job.label, job.folder, max_epochs, job.config.monitor, running.seconds)

    def _collect(self) -> None:
        for running in list(self._running):
            if running.process.exit_code() is not None:
                self._running.remove(running)
                self._conclude(running)
            elif time.monotonic() > running.killed_at:
                running.process.kill()
            elif self._options.timeout_s is not None and running.seconds > self._options.timeout_s:
                self._ask_to_stop(running, "timeout")
            elif running.process.answer is not None and running.killed_at == float("inf"):
                running.killed_at = time.monotonic() + self._options.grace_s  # it has nothing more to do

    def _conclude(self, running: _Running) -> None:
        job, process = running.job, running.process
        code, answer = process.exit_code(), process.answer
        process.close()
        self._slots.append(running.slot)
        self._look_again = 0.0
        if answer is None or answer.status is not JobStatus.COMPLETED:
            if running.reason == "timeout":
                limit = f"timeout_s={self._options.timeout_s:g}"
                answer = failed(JobFailed(f"took longer than {limit}; {LOG} shows what it was doing"))
            elif answer is None and running.reason == "stop":
                answer = failed(Stopped("killed before it stopped by itself"))
            elif answer is None:
                assert code is not None
                answer = failed(JobFailed(self._how_it_died(code)))
        self._end(job, answer, running.seconds)

    def _how_it_died(self, code: int) -> str:
        if code >= 0:
            return f"its process ended with exit code {code} and no answer"
        name = signal.Signals(-code).name
        if code != -signal.SIGKILL:
            return f"killed by {name}"
        return "killed by SIGKILL, perhaps out of memory"

    def _end(self, job: Job, answer: JobReturn, seconds: float) -> None:
        """An attempt is over: the job is done, has failed, or will be tried again."""
        if answer.status is JobStatus.COMPLETED:
            job.result = answer
            value = answer.return_value
            values = value if isinstance(value, tuple) else (value,)
            objective = job.config.objective
            tags = [objective] if isinstance(objective, str) else list(objective)
            shown = [
                f"{tag} {item:.4g}"
                for tag, item in zip(tags, values, strict=False)
                if isinstance(item, int | float)  # the fit may not have logged it
            ]
            self._view.ended(job.number, job.label, "done", seconds, " ".join(shown))
            return
        error = answer._return_value
        text = str(error) or type(error).__name__
        if isinstance(error, Stopped):
            job.result = answer
            self._view.ended(job.number, job.label, "stopped", seconds, "")
            return
        if "folder" in vars(job):  # otherwise it was never composed
            record_failure(job.folder, {"type": type(error).__name__, "message": text}, **job.facts)
        if job.attempts <= self._options.max_retries and not isinstance(error, BadInput) and not self._is_stopping:
            self._view.retried(job.number, job.label, text)
            self._pending.append(job)
            return
        job.result = answer
        told = f"{' '.join(text.split())} ({job.folder / LOG})" if "folder" in vars(job) else text
        self._view.ended(job.number, job.label, "failed", seconds, told)
        if self._options.on_error == "stop" and not self._is_stopping:
            self._stop(f"job #{job.number} failed")


def launch(
    options: LaunchOptions,
    context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> list[JobReturn]:
    """What Hydra asks a launcher for; see `hydra.plugins.launcher.Launcher.launch`."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    # One by one, as Optuna's sweeper has it, jobs have nothing to differ from but the sweep.
    common = set(config.hydra.overrides.task) if len(job_overrides) < 2 else set.intersection(*map(set, job_overrides))
    jobs = [
        Job(context, task_function, config, overrides, initial_job_idx + number, _label(overrides, common))
        for number, overrides in enumerate(job_overrides)
    ]
    return Launch(options, jobs).run()


def _label(overrides: Sequence[str], common: Collection[str]) -> str:
    varied = [text for text in overrides if text not in common and not text.lstrip("+~").startswith("hydra")]
    return " ".join(varied) or "one job"
