"""run.json: what a run is, where it comes from and how it ended."""

import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from onebox.errors import BadInput, Preempted
from onebox.files import read_json, write_json
from onebox.runs.claim import claim, release
from onebox.runs.provenance import provenance

SCHEMA = 1
ATTEMPT = ("status", "started", "ended", "seconds", "error", "host", "source")  # what is kept of an earlier one


class RunRecord:
    """A run directory that this process has claimed: keeps run.json true, and releases the directory at the end.

    As a context manager it writes `running` at the start and at the end `completed`, `interrupted` (Ctrl-C, SIGTERM)
    or `failed` with the reason; the exception is raised on, after an interruption with the command that resumes the
    run. A run that was killed still says `running`.

    Args:
        folder: the run directory.
        earlier: run.json of the run that is resumed; None for a new one. What it says of its last attempt moves to
            `attempts`.
        facts: what else to record from the start.
    """

    writes = True  # whether this process leaves what the run leaves

    def __init__(self, folder: Path, earlier: Mapping[str, Any] | None = None, **facts: Any) -> None:
        self.folder = folder
        self._facts: dict[str, Any] = {"schema": SCHEMA, "status": "running", **facts}
        if earlier is not None:
            attempt = {key: earlier.get(key) for key in ATTEMPT}
            attempt["sha"] = (earlier.get("git") or {}).get("sha")
            self._facts["attempts"] = [*earlier.get("attempts", []), attempt]

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier attempt began the run."""
        return "attempts" in self._facts

    def add(self, **facts: Any) -> None:
        """Record more."""
        self._facts |= facts
        write_json(self.folder / "run.json", self._facts)

    def reread(self) -> None:
        """Take over what a `RankRecord` has added."""
        self._facts = read_json(self.folder / "run.json")

    def __enter__(self) -> Self:
        try:
            self.add(started=_text(datetime.now(UTC)), command=sys.argv, **provenance(self.folder))
        except BaseException:
            release(self.folder)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            facts: dict[str, Any] = {"status": "completed", **_ended(self._facts["started"])}
            if isinstance(error, KeyboardInterrupt | Preempted):
                message = str(error) or "stopped by hand"
                facts |= {"status": "interrupted", "error": {"type": type(error).__name__, "message": message}}
                stored = (self.folder / "checkpoints" / "last.ckpt").exists()
                then = "goes on" if stored else "begins anew, as nothing was stored yet"
                error.args = (f"{message}; onebox-train resume={self.folder} {then}",)
            elif error is not None:
                text = "".join(traceback.format_exception(kind, error, trace))
                about = {"type": type(error).__name__, "message": str(error), "traceback": text}
                facts |= {"status": "failed", "error": about}
            self.add(**facts)
        finally:
            release(self.folder)


class RankRecord:
    """The record as a rank has it when another process keeps it; only rank 0 adds to it.

    Args:
        folder: the run directory.
        number: the rank.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.writes = number == 0
        # Where torchrun or srun has started the others, rank 0 may not have written yet: they see whether there is a
        # checkpoint.
        self.is_resumed = number > 0 or "attempts" in read_json(folder / "run.json")

    def add(self, **facts: Any) -> None:
        """Record more."""
        if self.writes:
            write_json(self.folder / "run.json", read_json(self.folder / "run.json") | facts)


def record_failure(folder: Path, error: Mapping[str, Any], **facts: Any) -> None:
    """Let run.json say that a run failed whose process could not say so itself.

    What another process is running, or has completed, is left alone; so is a reason that is written already.

    Args:
        folder: the run directory.
        error: `type` and `message`.
        facts: what to record when there is no run.json at all, at least `fingerprint`.
    """
    try:
        found = claim(folder, fingerprint=facts["fingerprint"], resume="auto")
    except BadInput:
        return
    try:
        if found is None or found["status"] != "failed":
            found = found or {"schema": SCHEMA, "started": _text(datetime.now(UTC)), **facts}
            failed = {"status": "failed", **_ended(found["started"]), "error": dict(error)}
            write_json(folder / "run.json", found | failed)
    finally:
        release(folder)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _ended(started: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {"ended": _text(now), "seconds": round((now - datetime.fromisoformat(started)).total_seconds(), 1)}
