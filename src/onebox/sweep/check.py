"""Whether the jobs of a sweep can run, tried before the first of them starts."""

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from onebox.errors import BadInput, SweepFailed, own_complaint
from onebox.sweep.plan import Job

Fingerprint = dict[str, str]
# From (config, choices, overrides, what was read for earlier jobs): builds everything, gives the data's fingerprint.
Build = Callable[[dict[str, Any], Mapping[str, str | None], Sequence[str], dict[str, Any]], Fingerprint]


def check_jobs(
    jobs: Sequence[Job], build: Build, start: Callable[..., Any], done: Callable[[], None]
) -> dict[str, Fingerprint]:
    """Build the data, network, loss, optimizer and trainer of each, in a process of its own.

    Args:
        jobs: those that differ in nothing but the seed are tried once.
        build: builds one.
        start: starts a process from (function, arguments) and returns it.
        done: called after each.

    Returns:
        The fingerprint of the data, by the job's fingerprint.

    Raises:
        BadInput: names every job that cannot run.
        SweepFailed: the process died.
    """
    from multiprocessing import Pipe

    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(job.fingerprint_seedless, []).append(job)
    firsts = [group[0] for group in alike.values()]
    receiving, sending = Pipe(duplex=False)
    process = start(_check, (sending, build, [(dict(job.config), dict(job.choices), job.overrides) for job in firsts]))
    sending.close()
    answers: list[Fingerprint | str] = []
    try:
        for group in alike.values():
            answers.append(receiving.recv())
            for _ in group:
                done()
    except EOFError:
        raise SweepFailed(f"the process that checks the jobs died at: {firsts[len(answers)]}") from None
    finally:
        process.join()
    problems: dict[str, str] = {}
    for job, answer in zip(firsts, answers, strict=True):
        if isinstance(answer, str):
            problems.setdefault(answer, str(job))
    if problems:
        raise BadInput("; ".join(f"{where}: {what}" for what, where in problems.items()) + "; no job was started")
    return {
        job.fingerprint: answer
        for group, answer in zip(alike.values(), answers, strict=True)
        for job in group
        if isinstance(answer, dict)
    }


def _check(
    sending: Connection, build: Build, jobs: Sequence[tuple[dict[str, Any], Mapping[str, str | None], Sequence[str]]]
) -> None:
    known: dict[str, Any] = {}
    for config, choices, overrides in jobs:
        try:
            answer: Fingerprint | str = build(config, choices, overrides, known)
        except Exception as error:  # whatever is wrong with a job is the answer about this job, and the next is checked
            answer = " ".join(str(own_complaint(error)).split()) or type(error).__name__
        sending.send(answer)
