"""run.json: what a run is, where it comes from and how it ended."""

import platform
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from onebox.errors import BadInput
from onebox.files import write_json
from onebox.runs.provenance import git_state, packages

SCHEMA = 1


class RunRecord:
    """Keeps run.json true from the first second to the last.

    As a context manager it writes `running` at the start and at the end `completed`, `interrupted` (Ctrl-C) or
    `failed` with the reason; the exception goes on its way.

    Args:
        folder: the run directory.
        facts: what else to record from the start.
    """

    def __init__(self, folder: Path, **facts: Any) -> None:
        self._path = folder / "run.json"
        self._facts: dict[str, Any] = {"schema": SCHEMA, "status": "running", **facts}

    def add(self, **facts: Any) -> None:
        """Record more."""
        self._facts |= facts
        write_json(self._path, self._facts)

    def __enter__(self) -> Self:
        if self._path.exists():
            raise BadInput(
                f"{self._path.parent}: holds a run already; choose another hydra.run.dir or remove the folder"
            )
        self._started = datetime.now(UTC)
        self.add(
            started=self._started.isoformat(timespec="seconds"),
            command=sys.argv,
            host=platform.node(),
            system=platform.platform(),
            python=platform.python_version(),
            git=git_state(),
            packages=packages(),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = datetime.now(UTC)
        facts: dict[str, Any] = {
            "status": "completed",
            "ended": ended.isoformat(timespec="seconds"),
            "seconds": round((ended - self._started).total_seconds(), 1),
        }
        if isinstance(error, KeyboardInterrupt):
            facts |= {"status": "interrupted", "error": {"type": "KeyboardInterrupt", "message": "stopped by hand"}}
        elif error is not None:
            text = "".join(traceback.format_exception(kind, error, trace))
            facts |= {
                "status": "failed",
                "error": {"type": type(error).__name__, "message": str(error), "traceback": text},
            }
        self.add(**facts)
