"""Requests to stop: of a scheduler, of a closed terminal, of submitit."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from onebox.errors import Preempted


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Preempted` at the first SIGTERM; later ones change nothing, so that the ending is not disturbed.

    SIGHUP, of a terminal that was closed, does the same unless it is ignored (nohup). In a job of submitit its own
    signal, sent some time before the job's time is over, does so too. Its handler, which queues the job again and ends
    the process at once, is called when all is stored.

    What is raised while Python finalises an object, as the garbage collector does at any moment, is lost, a Ctrl-C too:
    it is asked for again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    received: list[int] = []
    hung_up: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise Preempted(f"stopped by {'SIGHUP' if hung_up else 'SIGTERM'}")

    def hang_up(number: int, frame: FrameType | None) -> None:
        hung_up.append(number)
        signal.raise_signal(signal.SIGTERM)  # whose handler may wait for a checkpoint

    def ask_again(lost: Any) -> None:
        if not isinstance(lost.exc_value, Preempted | KeyboardInterrupt):
            return hook(lost)
        number = received[0] if isinstance(lost.exc_value, Preempted) and received else signal.SIGINT
        received.clear()
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    handlers: dict[int, Any] = {signal.SIGTERM: stop}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = hang_up
    if "SUBMITIT_EXECUTOR" in os.environ:
        handlers[getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))] = stop
    before: dict[int, Any] = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook, sys.unraisablehook = sys.unraisablehook, ask_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        if received and received[0] != signal.SIGTERM and callable(handler := before[received[0]]):
            handler(received[0], None)
