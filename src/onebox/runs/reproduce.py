"""A finished run once more: its config for another directory, and how the second one compares with the first."""

import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # PyYAML has no types

from onebox.errors import BadInput
from onebox.files import read_json
from onebox.runs.provenance import git_state, hardware, packages
from onebox.trace import Divergence, Trace, first_divergence

Verdict = Literal["identical", "within tolerance", "diverges"]


@dataclass(frozen=True)
class Recorded:
    """What a run directory says of its run.

    Attributes:
        folder: the run directory.
        record: run.json.
        config: config.yaml.
        metrics: metrics.json; None when the run did not come so far.
        trace: trace.bin; None when the run was made without.
    """

    folder: Path
    record: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, Any] | None
    trace: Trace | None

    @classmethod
    def read(cls, folder: Path) -> "Recorded":
        """Read a run directory.

        Raises:
            BadInput: there is no run, or its files cannot be read.
        """
        try:
            record = read_json(folder / "run.json")
            config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
            path = folder / "metrics.json"
            metrics = read_json(path) if path.exists() else None
        except FileNotFoundError as error:
            raise BadInput(
                f"{error.filename}: no such file; name the directory of a run that began to train"
            ) from error
        except (OSError, ValueError, YAMLError) as error:
            raise BadInput(f"{folder}: cannot be read ({error})".replace("\n", " ")) from error
        if not isinstance(record, dict) or not isinstance(config, dict):
            raise BadInput(f"{folder}: run.json and config.yaml are not those of a run")
        trace = Trace.read(folder / "trace.bin") if (folder / "trace.bin").exists() else None
        return cls(folder, record, config, metrics, trace)


@dataclass(frozen=True)
class Difference:
    """One fact that is not as it was."""

    what: str
    recorded: str | None
    now: str | None

    def __str__(self) -> str:
        return f"{self.what}: {self.recorded or 'none'} → {self.now or 'none'}"


@dataclass(frozen=True)
class Deviation:
    """How far a number is off: |a - b| / max(|a|, |b|)."""

    where: str
    recorded: float | None
    again: float | None

    @property
    def relative(self) -> float:
        """The share; 0 for two values that are not numbers, infinite for one."""
        one, other = self.recorded, self.again
        known = [value is not None and math.isfinite(value) for value in (one, other)]
        if one is None or other is None or not all(known):
            return math.inf if any(known) else 0.0
        return abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0


@dataclass(frozen=True)
class Comparison:
    """How the second run compares with the first.

    Attributes:
        verdict: the answer.
        steps: how many were compared.
        divergence: the first step that is not bit for bit the same.
        weights: hash of the final weights of the two; None when they were not compared.
        metrics: those that differ; None when they were not compared.
        largest: the largest deviation of losses and metrics.
    """

    verdict: Verdict
    steps: int
    divergence: Divergence | None
    weights: tuple[str | None, str | None] | None
    metrics: list[Deviation] | None
    largest: Deviation | None


def config_again(
    recorded: Recorded, folder: Path, *, steps: int | None, force: bool, overrides: Sequence[str]
) -> dict[str, Any]:
    """The config that runs again in `folder` what ran in `recorded`, and refuses other data.

    Args:
        recorded: the first run.
        folder: where the second one goes.
        steps: stop after so many and write neither checkpoints nor pictures; None runs to the end.
        force: accept other data.
        overrides: `KEY=VALUE` for keys that are there. What was interpolated from a key does not follow it.

    Raises:
        BadInput: an override names no key.
    """
    config: dict[str, Any] = _moved(recorded.config, str(recorded.config["run_dir"]), str(folder))
    config["run_dir"] = str(folder)
    config["data_fingerprint"] = None if force else recorded.record.get("data_fingerprint")
    if "resume" in config:
        config["resume"] = "never"
    if steps is not None:
        config["logger"] = {}
        config["callbacks"] |= {"checkpoint_best": None, "checkpoint_last": None, "pictures": None}
        config["callbacks"]["stop"] = {"_target_": "onebox.callbacks.trace.StopAfter", "steps": steps}
    given = OmegaConf.create(config)
    for override in overrides:
        key, equals, _ = override.partition("=")
        missing = object()
        try:
            if not equals or OmegaConf.select(given, key, default=missing) is missing:
                raise BadInput(f"{override}: the run's config.yaml has no such key; write KEY=VALUE")
            OmegaConf.update(given, key, OmegaConf.select(OmegaConf.from_dotlist([override]), key), merge=False)
        except (OmegaConfBaseException, YAMLError) as error:
            raise BadInput(f"{override}: {error}") from error
    again: Any = OmegaConf.to_container(given)
    return dict(again)


def _moved(value: Any, old: str, new: str) -> Any:
    """The same with each path in `old` turned into one in `new`."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    inside = isinstance(value, str) and (value.startswith(old + os.sep) or (value == old and os.path.isabs(old)))
    return new + value.removeprefix(old) if inside else value


def facts_now() -> dict[str, Any]:
    """What run.json would say of code, environment and machine. Imports torch."""
    return {
        "git": git_state(None),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages(),
        "hardware": hardware(),
    }


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What run.json says differently of code, environment, machine and data; only what both know of is compared."""
    before, after = ({what: value for what, value in _facts(record)} for record in (recorded, now))
    groups = {what.partition(" ")[0] for what in before} & {what.partition(" ")[0] for what in after}
    names = [what for what in dict.fromkeys([*before, *after]) if what.partition(" ")[0] in groups]
    return [
        Difference(what, before.get(what), after.get(what)) for what in names if before.get(what) != after.get(what)
    ]


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    git = record.get("git")
    if git:
        yield "code", git["sha"][:9] + (f" with changes {git['patch']}" if git.get("patch") else "")
    for key in ("python", "system"):
        if key in record:
            yield key, str(record[key])
    for name, version in record.get("packages", {}).items():
        yield f"package {name}", str(version)
    for part in ("environment", "hardware"):
        for name, value in record.get(part, {}).items():
            yield f"{part} {name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    for split, fingerprint in (record.get("data_fingerprint") or {}).items():
        yield f"data {split}", str(fingerprint)


def compare(recorded: Recorded, again: Recorded, *, steps: int | None, tolerance: float | None) -> Comparison:
    """Compare step by step, and unless `steps` is given also metrics and final weights.

    Args:
        recorded: the first run.
        again: the second run.
        steps: only so many steps were made again.
        tolerance: how far losses and metrics may deviate, as a share of the larger; None wants the same bits.
    """
    traces = None
    if recorded.trace is not None and again.trace is not None:
        traces = [trace if steps is None else trace.first(steps) for trace in (recorded.trace, again.trace)]
    divergence = None if traces is None else first_divergence(*traces)
    deviations = [] if traces is None else list(_loss_deviations(*traces))
    weights: tuple[str | None, str | None] | None = None
    metrics: list[Deviation] | None = None
    if steps is None:
        weights = recorded.record.get("final_weights"), again.record.get("final_weights")
        before, after = (dict(_numbers(run.metrics or {}, "")) for run in (recorded, again))
        everything = [Deviation(name, before.get(name), after.get(name)) for name in before | after]
        metrics = [deviation for deviation in everything if deviation.relative > 0]
        # A best epoch or a number of images is no measurement; classes of few images jump.
        counted = ("final/", "best/", "test/")
        deviations += [item for item in everything if item.where.startswith(counted) and item.where != "best/epoch"]
    largest = max(deviations, key=lambda deviation: deviation.relative, default=None)
    same_weights = weights is None or weights[0] == weights[1]
    verdict: Verdict = "diverges"
    if divergence is None and not metrics and same_weights:
        verdict = "identical"
    elif tolerance is not None:
        same_length = traces is None or len(traces[0]) == len(traces[1])
        if same_length and (largest is None or largest.relative <= tolerance):
            verdict = "within tolerance"
    num_steps = 0 if traces is None else min(map(len, traces))
    return Comparison(verdict, num_steps, divergence, weights, metrics, largest)


def _loss_deviations(one: Trace, other: Trace) -> Iterator[Deviation]:
    """The largest one of each loss."""
    length = min(len(one), len(other))
    for name in one.loss_names:
        if name in other.loss_names and length:
            columns = [trace.records[name][:length].astype(float).tolist() for trace in (one, other)]
            steps = [Deviation(f"step {step} {name}", *pair) for step, pair in enumerate(zip(*columns, strict=True))]
            yield max(steps, key=lambda deviation: deviation.relative)


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float | None]]:
    """The numbers in nested dicts, with their keys joined by /."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}/{key}" if name else str(key))
    elif value is None or isinstance(value, int | float):
        yield name, value
