import signal
import time

import pytest

from onebox.errors import Preempted
from onebox.runs.signals import sigterm_raises


def wait() -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_request_to_stop_that_a_finaliser_swallows_is_made_again(number, error):
    class Last:
        def __del__(self) -> None:
            signal.raise_signal(number)

    with sigterm_raises():
        Last()  # where what is raised is lost
        with pytest.raises(error):
            wait()


def test_what_else_a_finaliser_raises_is_told_as_ever(capsys, monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)

    class Last:
        def __del__(self) -> None:
            raise ValueError

    with sigterm_raises():
        Last()
    assert [type(lost.exc_value) for lost in told] == [ValueError]
