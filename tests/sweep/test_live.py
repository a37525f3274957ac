"""What is seen of a sweep."""

import io

import pytest
from rich.console import Console

from onebox.errors import duration
from onebox.sweep.live import View


def test_a_terminal_shows_each_running_job_and_how_many_are_done(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/acc\n0,2.5,0.25\n")
    out = io.StringIO()
    view = View(5, Console(file=out, force_terminal=True, width=100, color_system=None))
    with view.bar:
        view.end(0, "seed=0", "done", 60, "val/acc 0.5")
        view.end(1, "seed=1", "failed", 1, "killed")
        view.start(2, "seed=2", 1, tmp_path, 10)
        view.refresh()
    text = " ".join(out.getvalue().split())
    assert "#0 seed=0: done after 1:00 min, val/acc 0.5" in text
    assert "#1 seed=1: failed after 1.0 s, killed" in text
    for part in ("#2 seed=2", "1/10 epochs", "2/5 jobs"):
        assert part in text


def test_without_a_terminal_a_job_that_starts_or_ends_is_one_line(tmp_path):
    out = io.StringIO()
    view = View(3, Console(file=out, width=40))
    with view.bar:
        view.start(0, "seed=0", 1, tmp_path, 10)
        view.refresh()
        view.end(0, "seed=0", "retried", 9, "killed by SIGKILL")
        view.start(0, "seed=0", 2, tmp_path, 10)
        view.end(0, "seed=0", "done", 9, "val/acc 0.5")
    assert out.getvalue().splitlines() == [
        "#0 seed=0: started",
        "#0 seed=0: killed by SIGKILL; will be retried",
        "#0 seed=0: started (attempt 2)",
        "#0 seed=0: done after 9.0 s, val/acc 0.5 (1/3)",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "60 s"), (61, "1:01 min"), (3599.9, "1:00 h"), (7260, "2:01 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
