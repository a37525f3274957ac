"""Whether the jobs of a sweep can run: each is built once, in a process beside those that run already."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from onebox.errors import SweepFailed, check, own_complaint
from onebox.sweep.plan import Job
from onebox.sweep.process import start
from onebox.sweep.snapshot import use_copies

log = logging.getLogger(__name__)

Fingerprint = dict[str, str]
# From a config and what was read for earlier jobs: builds everything, gives the data's fingerprint.
Build = Callable[[dict[str, Any], dict[str, Any]], Fingerprint]


class Checks:
    """Builds the data, network, loss, optimizer and trainer of each job, and says at once which cannot be built.

    As a context manager it ends its process when the block ends.

    Args:
        jobs: those that differ in nothing but the seed are built once; the first of each set of choices come first, as
            a wrong combination of parts is the likeliest mistake.
        build: builds one.

    Attributes:
        problems: what is wrong -> the first job that it is wrong with.
        data_fingerprints: by the job's fingerprint, of those built so far.
        died_at: the job that the process died at, if it did.
    """

    def __init__(self, jobs: Sequence[Job], build: Build) -> None:
        alike: dict[str, list[Job]] = {}
        for job in jobs:
            alike.setdefault(job.fingerprint_seedless, []).append(job)
        firsts = {repr(group[0].choices): group[0].fingerprint_seedless for group in reversed(alike.values())}
        self._groups = sorted(alike.values(), key=lambda group: group[0].fingerprint_seedless not in firsts.values())
        self.problems: dict[str, Job] = {}
        self.data_fingerprints: dict[str, Fingerprint] = {}
        self.died_at: Job | None = None
        self._answers, sending = Pipe(duplex=False)
        configs = [dict(job.config) for job, *_ in self._groups]
        self._process = start(_build_all, (sending, build, configs, dict(os.environ)))
        sending.close()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the process, whatever it is building."""
        self._process.terminate()
        self._process.join()
        self._thread.join()

    def is_running(self) -> bool:
        """Whether some are still to be built; takes a moment."""
        self._thread.join(0.05)
        return self._thread.is_alive()

    def wait(self) -> None:
        """Until all are built.

        Raises:
            SweepFailed: the process died.
        """
        self._thread.join()
        if self.died_at is not None:
            raise SweepFailed(f"the process that checks the jobs died at: {self.died_at}")

    def refuse_problems(self) -> None:
        """Wait, and raise BadInput that names every job that cannot be built."""
        self.wait()
        lines = [f"{job}: {what}" for what, job in self.problems.items()]
        check(not lines, "; ".join(lines) + "; no job was started")

    def _listen(self) -> None:
        for group in self._groups:
            try:
                answer = self._answers.recv()
            except (EOFError, OSError):
                self.died_at = group[0]
                return
            if isinstance(answer, dict):
                self.data_fingerprints |= {job.fingerprint: answer for job in group}
            elif self.problems.setdefault(answer, group[0]) is group[0]:
                log.error("%s: %s; this job will fail", group[0], answer)


def _build_all(
    sending: Connection, build: Build, configs: Sequence[dict[str, Any]], environment: Mapping[str, str]
) -> None:
    os.environ.update(environment)
    use_copies()
    known: dict[str, Any] = {}
    for config in configs:
        try:
            answer: Fingerprint | str = build(config, known)
        except Exception as error:  # whatever is wrong with a job is the answer about this job, and the next is built
            answer = " ".join(str(own_complaint(error)).split()) or type(error).__name__
        sending.send(answer)
