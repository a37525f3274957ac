"""SIGTERM: how schedulers, container runtimes and shutting-down machines ask a process to end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from onebox.errors import Preempted


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Preempted` at the first SIGTERM. Later ones change nothing, so that the ending is not disturbed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    received = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:
            received = True
            raise Preempted("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def submitit_requeues() -> Iterator[None]:
    """In a job of submitit: let its signal stop the job as SIGTERM does, and only then let it queue the job again.

    submitit sends the signal some time before the job's time is over, and its own handler ends the process at once,
    with whatever was not stored.
    """
    number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
    requeue = signal.getsignal(number)
    if "SUBMITIT_EXECUTOR" not in os.environ or not callable(requeue):
        yield
        return
    received = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.raise_signal(signal.SIGTERM)

    signal.signal(number, stop)
    try:
        with sigterm_raises():
            yield
    except Preempted:
        if received:
            requeue(number, None)  # ends the process
        raise
    finally:
        signal.signal(number, requeue)
