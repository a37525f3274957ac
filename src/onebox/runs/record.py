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
    """Keeps run.json true from the first second to the last.

    As a context manager it writes `running` at the start and at the end `completed`, `interrupted` (Ctrl-C, SIGTERM)
    or `failed` with the reason; the exception goes on its way. A run that was killed still says `running`.

    Args:
        folder: the run directory.
        earlier: run.json of the run that goes on; None for a new one. What it says of its last attempt moves to
            `attempts`.
        facts: what else to record from the start.
    """

    writes = True  # whether this process leaves what the run leaves

    def __init__(self, folder: Path, earlier: Mapping[str, Any] | None = None, **facts: Any) -> None:
        self._path = folder / "run.json"
        self._facts: dict[str, Any] = {"schema": SCHEMA, "status": "running", **facts}
        if earlier is not None:
            attempt = {key: earlier.get(key) for key in ATTEMPT}
            attempt["sha"] = (earlier.get("git") or {}).get("sha")
            self._facts["attempts"] = [*earlier.get("attempts", []), attempt]

    @property
    def goes_on(self) -> bool:
        """Whether an earlier attempt began the run."""
        return "attempts" in self._facts

    def add(self, **facts: Any) -> None:
        """Record more."""
        self._facts |= facts
        write_json(self._path, self._facts)

    def reread(self) -> None:
        """Take over what a `RankRecord` has added."""
        self._facts = read_json(self._path)

    def __enter__(self) -> Self:
        self._started = datetime.now(UTC)
        self.add(
            started=self._started.isoformat(timespec="milliseconds"),
            command=sys.argv,
            **provenance(self._path.parent),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = datetime.now(UTC)
        facts: dict[str, Any] = {
            "status": "completed",
            "ended": ended.isoformat(timespec="milliseconds"),
            "seconds": round((ended - self._started).total_seconds(), 1),
        }
        if isinstance(error, KeyboardInterrupt | Preempted):
            message = str(error) or "stopped by hand"
            facts |= {"status": "interrupted", "error": {"type": type(error).__name__, "message": message}}
        elif error is not None:
            text = "".join(traceback.format_exception(kind, error, trace))
            facts |= {
                "status": "failed",
                "error": {"type": type(error).__name__, "message": str(error), "traceback": text},
            }
        self.add(**facts)


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
            now = datetime.now(UTC)
            found = found or {"schema": SCHEMA, "started": now.isoformat(timespec="milliseconds"), **facts}
            seconds = (now - datetime.fromisoformat(found["started"])).total_seconds()
            ended = {"ended": now.isoformat(timespec="milliseconds"), "seconds": round(seconds, 1)}
            write_json(folder / "run.json", {**found, "status": "failed", **ended, "error": dict(error)})
    finally:
        release(folder)


class RankRecord:
    """The record as a rank has it when another process keeps it; only rank 0 adds to it.

    Args:
        folder: the run directory.
        number: the rank.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / "run.json"
        self.writes = number == 0
        # Where torchrun or srun has started the others, rank 0 may not have written yet: they see whether there is a
        # checkpoint.
        self.goes_on = number > 0 or "attempts" in read_json(self._path)

    def add(self, **facts: Any) -> None:
        """Record more."""
        if self.writes:
            write_json(self._path, read_json(self._path) | facts)
