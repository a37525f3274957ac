"""What is seen of a sweep."""

import io

import pytest
from rich.console import Console

from onebox.sweep.live import Progress, RunningJob, View, read_progress
from onebox.text import duration


def test_progress_is_what_metrics_csv_says(tmp_path):
    assert read_progress(tmp_path, "val/acc") == Progress(0, None, None)
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/acc\n0,2.5,0.25\n1,2.0,\n")
    assert read_progress(tmp_path, "val/acc") == Progress(2, "2.0", "0.25")  # validated every second epoch


def test_a_terminal_shows_each_running_job_and_the_counts(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/acc\n0,2.5,0.25\n")
    out = io.StringIO()
    with View(Console(file=out, force_terminal=True, width=100, color_system=None), total=5) as view:
        view.ended(0, "seed=0", "done", 60, "val/acc 0.5")
        view.ended(1, "seed=1", "failed", 1, "killed")
        view.refresh([RunningJob(2, "seed=2", tmp_path, 10, "val/acc", 20)])
    text = out.getvalue()
    assert "#0 seed=0: done after 1:00 min, val/acc 0.5" in text and "#1 seed=1: failed after 1.0 s, killed" in text
    for part in ("#2  seed=2", "epoch 1/10", "loss 2.500", "val/acc 0.250", "20 s"):
        assert part in text
    assert "1 done, 1 failed, 1 running, 2 pending" in text


def test_without_a_terminal_a_job_that_starts_or_ends_is_one_line(tmp_path):
    out = io.StringIO()
    with View(Console(file=out, width=40), total=3) as view:
        view.started(0, "seed=0", 1)
        view.refresh([RunningJob(0, "seed=0", tmp_path, 10, "val/acc", 20)])
        view.ended(0, "seed=0", "done", 9, "val/acc 0.5")
    assert out.getvalue().splitlines() == [
        "#0 seed=0: started",
        "#0 seed=0: done after 9.0 s, val/acc 0.5 (1/3)",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "60 s"), (61, "1:01 min"), (3599.9, "1:00 h"), (7260, "2:01 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
