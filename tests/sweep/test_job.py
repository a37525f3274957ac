"""What becomes of a job whose folder is not empty."""

import pytest

from onebox.errors import BadInput
from onebox.files import read_json, write_json
from onebox.runs.record import release
from onebox.sweep.job import Done, is_stale, next_step, take

DONE = {"status": "completed", "source": "new", "data_fingerprint": {"train": "1"}, "started": "2026-11-23T10:00:00"}
FAILED = DONE | {"status": "failed", "error": {"message": "boom"}}


@pytest.mark.parametrize(
    "status, rerun, stale, step",
    [
        (None, "none", False, "new"),
        (None, "all", False, "new"),
        ("running", "none", False, "resume"),  # it died
        ("interrupted", "failed", True, "resume"),
        ("interrupted", "all", False, "resume"),
        ("completed", "failed", False, "keep"),
        ("completed", "failed", True, "keep"),
        ("completed", "stale", False, "keep"),
        ("completed", "stale", True, "again"),
        ("completed", "all", False, "again"),
        ("failed", "none", False, "keep"),
        ("failed", "failed", False, "resume"),
        ("failed", "failed", True, "resume"),
        ("failed", "stale", False, "resume"),
        ("failed", "stale", True, "again"),
        ("failed", "all", False, "again"),
    ],
)
def test_rerun_decides_what_becomes_of_a_job(status, rerun, stale, step):
    assert next_step(status and {"status": status}, rerun=rerun, stale=stale) == step


@pytest.mark.parametrize(
    "facts, data, stale",
    [
        (DONE, {"train": "1"}, False),
        (DONE, {"train": "2"}, True),
        (DONE, {"train": "1", "files": "x"}, False),  # a part that older runs do not know
        (DONE, None, False),
        (DONE | {"source": "old"}, {"train": "1"}, True),
        (DONE | {"attempts": [{"source": "old"}]}, {"train": "1"}, True),
        (DONE | {"attempts": [{}]}, {"train": "1"}, False),  # an attempt of before it was recorded
        ({"status": "failed"}, {"train": "1"}, False),
    ],
)
def test_other_code_or_data_makes_a_job_stale(facts, data, stale):
    assert is_stale(facts, "new", lambda: data) is stale


def take_here(folder, rerun="failed", data=None):
    return take(folder, rerun=rerun, source="new", data=lambda: data or {"train": "1"}, objective="val/acc")


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "abc" / "run.json", DONE)
    write_json(tmp_path / "abc" / "metrics.json", {"best": {"val/acc": 0.5, "val/iou": 0.4}})
    return tmp_path / "abc"


def test_what_is_done_returns_its_objective(folder):
    with pytest.raises(Done) as done:
        take_here(folder)
    assert done.value.value == 0.5
    with pytest.raises(Done) as done:
        take(folder, rerun="failed", source="new", data=dict, objective=["val/acc", "val/iou"])
    assert done.value.value == (0.5, 0.4)


def test_what_runs_again_is_kept(folder):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_text("weights")
    assert take_here(folder, rerun="stale", data={"train": "2"}) is None
    release(folder)
    kept = folder.parent / ".replaced" / "abc_2026-11-23T10-00-00"
    assert read_json(kept / "run.json") == DONE
    assert (kept / "checkpoints" / "best.ckpt").read_text() == "weights"
    assert {path.name for path in folder.iterdir()} == {".lock"}


def test_what_failed_goes_on_unless_told_otherwise(folder):
    write_json(folder / "run.json", FAILED)
    assert take_here(folder) == FAILED
    release(folder)
    with pytest.raises(BadInput, match=r"failed \(boom\); rerun=failed"):
        take_here(folder, rerun="none")
