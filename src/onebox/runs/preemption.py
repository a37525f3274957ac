"""SIGTERM: how schedulers, container runtimes and shutting-down machines ask a process to end."""

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
