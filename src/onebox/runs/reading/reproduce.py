"""A run once more: its config for another folder, and how the second run compares with the first."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # PyYAML has no types

from onebox.errors import BadInput, check, is_finite
from onebox.files import MAX_LONG, misfit, read_file, read_json
from onebox.runs.fingerprint import with_new_names
from onebox.runs.reading.diff import ENVIRONMENT, differing_facts
from onebox.runs.record import read_record
from onebox.trust import check_paths, stored_file, stored_yaml

TRACE = "trace.csv"
RENAMED = {  # classes of callbacks that older runs know by another name
    "onebox.callbacks.epoch_bar.EpochBar": "onebox.callbacks.progress.EpochBar",
    "onebox.callbacks.epoch_lines.EpochLines": "onebox.callbacks.progress.EpochLines",
    "lightning.pytorch.callbacks.EarlyStopping": "onebox.callbacks.early_stopping.EarlyStopping",
}


@dataclass(frozen=True)
class Recorded:
    """What a run directory says of its run."""

    folder: Path  # the run directory
    record: dict[str, Any]  # run.json
    config: dict[str, Any]  # config.yaml, as plain data
    metrics: dict[str, Any] | None  # metrics.json; None when the run did not get that far
    trace: pd.DataFrame | None  # trace.csv, indexed by step; None without one, as in a run of an older version

    @classmethod
    def read(cls, folder: Path) -> "Recorded":
        """Read a run directory; nothing that its config names is built or resolved.

        Raises:
            BadInput: there is no run, or its files cannot be read.
        """
        record = read_record(folder)
        config = stored_yaml(folder, "config.yaml", "it is not that of a run")
        metrics = trace = None
        if os.path.lexists(folder / "metrics.json"):
            metrics = read_json(stored_file(folder, "metrics.json"), shape=dict)
        if os.path.lexists(folder / TRACE):
            remedy = "remove it to compare metrics and weights alone"
            trace = read_file(stored_file(folder, TRACE), _trace, remedy=remedy, max_bytes=MAX_LONG)
        parts = {"run_dir": str, "callbacks": dict, "data": dict}
        if record is None or misfit(config, parts) is not None or not parts.keys() <= config.keys():
            raise BadInput(f"{folder}: run.json and config.yaml are not those of a run")
        for old, new in RENAMED.items():
            config = _moved(config, old, new)
        return cls(folder, record, with_new_names(config), metrics, trace)


def _trace(file: IO[bytes]) -> pd.DataFrame:
    text = file.read()
    whole = io.BytesIO(text[: text.rfind(b"\n") + 1])  # a kill may tear the last row
    trace: pd.DataFrame = pd.read_csv(whole, index_col="step").astype(float)
    if not (pd.api.types.is_integer_dtype(trace.index) and trace.index.is_unique and "epoch" in trace):
        raise ValueError("it needs an epoch and a number of its own for each step")
    return trace


def parts(recorded: Recorded) -> list[Recorded]:
    """What is trained one after the other to run a run again: before it those that it extends, where that matters.

    Raises:
        BadInput: one of them is gone.
    """
    extend = recorded.config.get("extend") or {}
    if not extend.get("fingerprint"):  # all epochs at once give the same
        return [recorded]
    folder = Path(extend["run"])
    is_there = (read_record(folder) or {}).get("fingerprint") == extend["fingerprint"]
    missing = (
        f"{recorded.folder}: extends the run {extend['fingerprint']}, which is not at {folder} any more; put it back"
    )
    check(is_there, missing)
    return [*parts(Recorded.read(folder)), recorded]


def config_again(
    recorded: Recorded,
    folder: Path,
    *,
    steps: int | None,
    force: bool,
    overrides: Sequence[str],
    after: Path | None = None,
    is_part: bool = False,
) -> dict[str, Any]:
    """The config that runs again in `folder` what ran in `recorded`, and refuses other data.

    A run directory may be somebody else's, so no path in it is written to: pictures, logs and `last.ckpt` are left out,
    data are made or decoded below ONEBOX_DATA_DIR alone, and all else goes to `folder`. `overrides` come last.

    Args:
        recorded: the first run.
        folder: where the second one goes; absolute.
        steps: stop after this many and write no checkpoint; None runs to the end.
        force: accept other data.
        overrides: `KEY=VALUE` for keys that are there. What was interpolated from a key does not follow it.
        after: the run directory that is extended; None trains from the first epoch on.
        is_part: whether it is one of several `parts`, which need their last checkpoint.

    Raises:
        BadInput: an override names no key, or a callback would write elsewhere.
    """
    data_dir = os.environ.get("ONEBOX_DATA_DIR", "data")
    config: dict[str, Any] = _moved(recorded.config, str(recorded.config["run_dir"]), str(folder))
    config = _moved(config, str(recorded.config.get("data_dir")), data_dir)
    config |= {"run_dir": str(folder), "resume": "never", "logger": {}}
    config["data_fingerprint"] = None if force else recorded.record.get("data_fingerprint")
    data = config["data"]
    data["cache_dir"] = os.path.join(data_dir, "cache")
    if not Path(os.path.abspath(data.get("root") or "")).is_relative_to(os.path.abspath(data_dir)):
        data["source"] = None
    trace = {"_target_": "onebox.callbacks.trace.StepTrace", "path": str(folder / TRACE), "stop_after": steps}
    if "refresh_rate" in (config["callbacks"].get("progress") or {}):  # of a version that had another bar
        how = {"monitor": config["monitor"], "mode": config["monitor_mode"], "every_n_epochs": 1}
        config["callbacks"]["progress"] = {"_target_": config["callbacks"]["progress"]["_target_"], **how}
    config["callbacks"] |= {"trace": trace, "pictures": None}
    if not is_part:
        config["callbacks"]["checkpoint_last"] = None
    if after is not None:
        config["extend"] |= {"run": str(after), "fingerprint": (read_record(after) or {}).get("fingerprint")}
    elif "extend" in config:
        config["extend"] = dict.fromkeys(config["extend"])
    if steps is not None:
        config["callbacks"]["checkpoint_best"] = None
    check_paths(config, folder, recorded.folder / "config.yaml")
    return _overridden(config, overrides)


def _overridden(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    given = OmegaConf.create(config)
    for override in overrides:
        key, equals, _ = override.partition("=")
        try:
            known = equals and OmegaConf.select(given, key, default=given) is not given
            check(bool(known), f"{override}: the run's config.yaml has no such key; write KEY=VALUE")
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
    is_inside = isinstance(value, str) and (value + os.sep).startswith(old + os.sep)
    return new + value.removeprefix(old) if is_inside else value


def differences(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What run.json says differently of code, environment, machine and data; only what both know of is compared.

    Returns:
        For each fact that differs: `what`, `recorded` and `again`.
    """
    records = [{**record, "code": _code(record)} for record in (recorded, again)]
    parts = {"code": "{}", **ENVIRONMENT, "data_fingerprint": "data {}"}
    del parts["environment"]  # the second run has variables of its own, such as those that Lightning sets
    rows = differing_facts(records, parts)
    return [{"what": row["what"], "recorded": row["values"][0], "again": row["values"][1]} for row in rows]


def _code(record: Mapping[str, Any]) -> str | None:
    """The commit, and the hash of what was changed since."""
    git = record.get("git")
    return git["sha"][:9] + (f" with changes {git['patch']}" if git.get("patch") else "") if git else None


def compare(recorded: Recorded, again: Recorded, *, steps: int | None, tolerance: float | None) -> dict[str, Any]:
    """Compare step by step, and unless `steps` is given also metrics and final weights.

    Args:
        recorded: the first run; where it has no trace, as in older versions, its steps are not compared.
        again: the second run.
        steps: only this many steps were made again.
        tolerance: how far losses and metrics may deviate, as a share of the larger; None wants the same bits.

    Returns:
        `verdict`: identical, within tolerance, or diverges. `steps`: how many were compared; `divergence`: the first
        that differs. `final_weights`: the two hashes. `metrics`: those that differ; and the `largest_deviation` of
        losses and metrics. What was not compared is None.
    """
    traces = [run.trace for run in (recorded, again) if run.trace is not None]
    one, other = [trace[:steps] for trace in traces] if len(traces) == 2 else [pd.DataFrame({"epoch": []})] * 2
    divergence = _first_divergence(one, other)
    losses = _deviations(*(trace.drop(columns="epoch").stack() for trace in (one, other)))
    losses.index = pd.Index([f"step {step} {name}" for step, name in losses.index])
    found: dict[str, Any] = {"final_weights": None, "metrics": None}
    counted = losses
    if steps is None:
        metrics = _deviations(*(_numbers(run.metrics or {}) for run in (recorded, again)))
        found["final_weights"] = [run.record.get("final_weights") for run in (recorded, again)]
        found["metrics"] = _rows(metrics[metrics["relative"] > 0])
        # A best epoch or a number of images is no measurement; classes of few images jump.
        measured = metrics.index.str.startswith(("final/", "best/", "test/")) & (metrics.index != "best/epoch")
        counted = pd.concat([losses, metrics[measured]])
    largest = counted.nlargest(1, "relative")
    verdict = "diverges"
    if divergence is None and not found["metrics"] and len(set(found["final_weights"] or [])) < 2:
        verdict = "identical"
    elif tolerance is not None and len(one) == len(other) and not (largest["relative"] > tolerance).any():
        verdict = "within tolerance"
    return {
        "verdict": verdict,
        "steps": min(len(one), len(other)),
        "divergence": divergence,
        **found,
        "largest_deviation": next(iter(_rows(largest)), None),
    }


def _first_divergence(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any] | None:
    """The first step that is not the same, None when there is none.

    Returns:
        `step` and `epoch`, from 0, and `values`: name -> [recorded, again] of what differs in it, in the order in which
        a step makes it. No values: only one of the runs has made the step.
    """
    mine, theirs = one.align(other, join="outer")
    differs = mine.ne(theirs) & ~(mine.isna() & theirs.isna())
    if not differs.to_numpy().any():
        return None
    step = differs.index[differs.any(axis=1)][0]
    is_in_both = step in one.index and step in other.index
    names = [name for name in one.columns if is_in_both and differs.loc[step, name]]
    values = {name: [float(frame.loc[step, name]) for frame in (mine, theirs)] for name in names}
    return {"step": int(step), "epoch": int(max(one, other, key=len).loc[step, "epoch"]), "values": values}


def _deviations(recorded: Any, again: Any) -> pd.DataFrame:
    """`recorded`, `again` and `relative` of each name: |a - b| / max(|a|, |b|), infinite where one is not finite."""
    found: Any = pd.DataFrame({"recorded": recorded, "again": again}, dtype=float)
    one, other = found["recorded"], found["again"]
    share = (one - other).abs() / np.maximum(one.abs(), other.abs())
    is_same = one.eq(other) | ~(np.isfinite(one) | np.isfinite(other))
    deviations: pd.DataFrame = found.assign(relative=share.fillna(np.inf).mask(is_same, 0.0))
    return deviations


def _rows(deviations: pd.DataFrame) -> list[dict[str, Any]]:
    """For JSON: `where` and the numbers, None for what is not finite."""
    columns = deviations.astype(object).where(np.isfinite(deviations), None).to_dict("list")
    names = ["where", *map(str, columns)]
    return [dict(zip(names, row, strict=True)) for row in zip(deviations.index, *columns.values(), strict=True)]


def _numbers(metrics: dict[str, Any]) -> "pd.Series[float]":
    """The numbers in metrics.json, with their keys joined by /."""
    found = pd.json_normalize(metrics, sep="/").to_dict("records")[0] if metrics else {}
    return pd.Series({key: value for key, value in found.items() if value is None or is_finite(value)}, dtype=float)
