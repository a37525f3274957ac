"""Run directories: found below a folder, named by path, time or fingerprint."""

import difflib
import gc
import json
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onebox.errors import BadInput
from onebox.runs.fingerprint import flatten
from onebox.text import printable

log = logging.getLogger(__name__)

MISSING = object()
MAX_CANDIDATES = 5
MAX_BYTES = 64 * 2**20  # of run.json or metrics.json
REPRODUCED = "reproduced"  # folder of the runs that `onebox reproduce` makes; only found when it is named
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "status", "started", "fingerprint", "fingerprint_seedless"), str),
    **dict.fromkeys(("config", "choices", "sets", "interpolated", "error", "data_fingerprint"), dict),
    **dict.fromkeys(("overrides", "attempts"), list),
    "seconds": (int, float),
}
_ITEMS: dict[str, Any] = {"overrides": str, "attempts": dict, "choices": str | None}  # of those lists and that dict
_BACK = re.compile(r"(.+)~(\d+)")
_HEXADECIMAL = re.compile(r"[0-9a-f]{3,12}")


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory.

    Attributes:
        path: the directory.
        record: what run.json holds, but for null in place of what `_TYPES` lists. Where it says `running` and no
            process holds the directory, `status` is `died`.
    """

    path: Path
    record: Mapping[str, Any]

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The sections of metrics.json; empty when the run did not get that far."""
        found = _read(self.path / "metrics.json") or {}
        return {name: section for name, section in found.items() if isinstance(section, dict)}

    @cached_property
    def tags(self) -> Mapping[str, float]:
        """`val/...` and `train/...` of the best epoch (of the last, when none was best), and `test/...`."""
        metrics = self.metrics
        test = {f"test/{name}": value for name, value in metrics.get("test", {}).items()}
        found = {**(metrics.get("best") or metrics.get("final") or {}), **test}
        return {tag: value for tag, value in found.items() if isinstance(value, int | float)}

    @property
    def floors(self) -> Mapping[str, float]:
        """`floor/NAME`: what a prediction that ignores the image has for the metric `test/NAME`."""
        found = self.metrics.get("floor", {}).items()
        return {f"floor/{name}": value for name, value in found if isinstance(value, int | float)}

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config."""
        config: Mapping[str, Any] = self.record.get("config", {})
        return config

    @property
    def started(self) -> str:
        """ISO 8601, UTC."""
        return str(self.record.get("started", ""))

    def value(self, key: str) -> Any:
        """What a key means in `onebox runs`: a metric, a fact of run.json, a value of the config, a group's choice.

        `MISSING` when the run has no such key.
        """
        found = _at(self.record, key)
        if found is MISSING or isinstance(found, Mapping | list):
            found = _at(self.config, key)
        if found is MISSING or isinstance(found, Mapping):
            found = self.record.get("choices", {}).get(key.replace(".", "/"), MISSING)
        if found is MISSING:
            found = self.tags.get(key, MISSING)
        return found

    def known_keys(self) -> Iterator[str]:
        """All keys that `value` knows, but for the less interesting facts."""
        yield from self.tags
        yield from (key for key, value in self.record.items() if isinstance(value, str | int | float))
        yield from self.record.get("choices", {})
        yield from (key for key, _ in flatten(dict(self.config)))


def read_run(path: Path) -> Run | None:
    """The run in a directory; None when it holds none."""
    record = _record(path)
    return None if record is None else Run(path, record)


def find_runs(folder: Path) -> list[Run]:
    """All runs in or below a folder, the newest first, but for those below it in a folder `reproduced` or a hidden one.

    A run.json that cannot be read, or holds something else than a run writes, is logged and left out.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # thousands of records are read, none is dropped: looking for garbage takes a quarter of the time
    try:
        found = ((path, _record(path)) for path in _directories(folder))
        runs = [Run(Path(path), record) for path, record in found if record is not None]
    finally:
        if was_enabled:
            gc.enable()
    return sorted(runs, key=lambda run: (run.started, str(run.path)), reverse=True)


def find_run(name: str, outputs: Path) -> Run:
    """The run that a user means.

    Args:
        name: a run directory (also relative to `outputs`), `latest`, a fingerprint or the first digits of one that no
            other run has; with `~N` the one that was started N runs before it among those of that name.
        outputs: where runs are looked for.

    Raises:
        BadInput: there is no such run, or more than one; the message names candidates.
    """
    for folder in (Path(name), outputs / name):
        # ~ is allowed in the name of a directory.
        run = read_run(folder.parent if folder.name == "run.json" else folder)
        if run is not None:
            return run
    back = _BACK.fullmatch(name)
    base = back[1] if back else name
    runs = find_runs(outputs)
    if base == "latest":
        found = runs
    elif _HEXADECIMAL.fullmatch(base):
        found = [run for run in runs if str(run.record.get("fingerprint", "")).startswith(base)]
    else:
        found = []
    if back or base == "latest":
        number = int(back[2]) if back else 0
        if number < len(found):
            return found[number]
        raise BadInput(f"{name}: there are {len(found)} such runs in {outputs}{_candidates(name, runs, outputs)}")
    if len(found) == 1:
        return found[0]
    if found:
        fingerprints = len({run.record["fingerprint"] for run in found})
        advice = "give more digits" if fingerprints > 1 else f"give a directory, or {base}~0 for the newest of them"
        raise BadInput(f"{name}: {len(found)} runs have it: {_names(found)}; {advice}")
    if Path(name).is_dir():
        raise BadInput(f"{name}: holds no run.json, so it is no run directory{_candidates(name, runs, outputs)}")
    raise BadInput(
        f"{name}: no such run in {outputs}; give a run directory, latest, latest~1, or the first digits of a "
        f"fingerprint (onebox runs lists them){_candidates(name, runs, outputs)}"
    )


def find_all(names: Sequence[str], outputs: Path) -> list[Run]:
    """The runs that several names mean, each once; a folder that is no run means all runs below it.

    Raises:
        BadInput: see `find_run`.
    """
    found: dict[Path, Run] = {}
    for name in names:
        folder = next((path for path in (Path(name), outputs / name) if path.is_dir()), None)
        inside = find_runs(folder) if folder is not None else []
        for run in inside or [find_run(name, outputs)]:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def near_keys(key: str, runs: Sequence[Run]) -> str:
    """What to say of a key that no run has: the nearest ones."""
    known = sorted({name for run in runs for name in run.known_keys()})
    last = key.rpartition("/")[2].rpartition(".")[2]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.75) or [name for name in known if last in name][:3]
    return f"no run has a key {key}" + (f", did you mean {' or '.join(near)}?" if near else "")


def _candidates(name: str, runs: Sequence[Run], outputs: Path) -> str:
    if not runs:
        return "; there are no runs yet (--outputs FOLDER looks elsewhere)"
    paths = {os.path.relpath(run.path, outputs): run for run in runs}
    close = difflib.get_close_matches(name, paths, n=3, cutoff=0.6)
    return f"; {'close to it' if close else 'the newest'}: {_names([paths[path] for path in close] or runs[:3])}"


def _names(runs: Sequence[Run]) -> str:
    shown = ", ".join(f"{run.path} ({run.record.get('fingerprint', '?')})" for run in runs[:MAX_CANDIDATES])
    return shown + (f" and {len(runs) - MAX_CANDIDATES} more" if len(runs) > MAX_CANDIDATES else "")


def _directories(folder: Path | str) -> Iterator[Path | str]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    if any(entry.name == "run.json" for entry in found):
        yield folder  # no run lies in another
        return
    for entry in found:
        hidden = entry.name == REPRODUCED or entry.name.startswith(".")
        if entry.is_dir(follow_symlinks=False) and not hidden:
            yield from _directories(entry.path)


def _record(folder: Path | str) -> Any:
    path = os.path.join(folder, "run.json")
    record = _read(path)
    if record is None or not _is_sound(path, record):
        return None
    if record.get("status") == "running":
        from onebox.runs.claim import is_held

        if not is_held(folder, unknown=True):
            again = _read(path)  # it may have ended in between
            record = again if again is not None and _is_sound(path, again) else record
            if record.get("status") == "running":
                record["status"] = "died"
    return record


def _is_sound(path: str, record: dict[str, Any]) -> bool:
    """Remove null entries of `_TYPES`; false when another one is of the wrong type."""
    for key, kind in _TYPES.items():
        if record.get(key) is None:
            record.pop(key, None)
            continue
        value = record[key]
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or (key in _ITEMS and not all(isinstance(item, _ITEMS[key]) for item in items)):
            log.warning("%s: %s is not what a run writes (%.40r); left out", printable(path), key, value)
            return False
    return True


def _read(path: Path | str) -> Any:
    try:
        facts = os.lstat(path)  # a link may lead out of the directory, a pipe would never end
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_BYTES:
            raise OSError("no file that a run writes")
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s: cannot be read (%s); left out", printable(str(path)), printable(str(error)))
        return None
    return content if isinstance(content, dict) else None


def _at(node: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return MISSING
        node = node[name]
    return node
