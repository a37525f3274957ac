"""TensorBoard's HPARAMS tab, and the names of runs in it."""

import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from onebox.errors import Preempted
from onebox.runs.fingerprint import key_of
from onebox.runs.record import read_record

MAX_NAME = 120  # characters
START, END = ".hparams", ".hparams_end"  # how the names of their event files end


@contextmanager
def session(cfg: DictConfig, facts: Mapping[str, Any], varied: Collection[str]) -> Iterator[None]:
    """Tell TensorBoard a run's hyper-parameters, and after the block how it ended.

    TensorBoard unites the hyper-parameters of all runs that it shows, those that differ first, and offers their scalars
    as metrics. It would not if one of the runs told it the list, which would then be that of all.

    A run shows up while it runs, and also when it fails before there is a trainer. One that was stopped or killed has
    no end, and resumes as the same session; one that was pruned ends with the status `unknown`, neither a success nor
    a failure. Without TensorBoard among `cfg.logger` nothing happens.

    Args:
        cfg: the composed config.
        facts: `choices` and `overrides` of the run.
        varied: in a sweep, the keys that its jobs override.
    """
    folder = _events_folder(cfg)
    if folder is None:
        yield
        return
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    for path in folder.glob(f"events.out.tfevents.*{START}*"):  # TensorBoard believes the first of several
        path.unlink()
    _write_start(folder, _shown(cfg, facts, varied))
    status = api_pb2.STATUS_FAILURE
    try:
        yield
        is_pruned = "pruned" in (read_record(cfg.run_dir) or {})
        status = api_pb2.STATUS_UNKNOWN if is_pruned else api_pb2.STATUS_SUCCESS
    except (Preempted, KeyboardInterrupt):
        status = None
        raise
    finally:
        if status is not None:
            _write(folder, END, session_end_info=plugin_data_pb2.SessionEndInfo(status=status))


def name_events(cfg: DictConfig, varied: Mapping[str, str]) -> None:
    """Name the folder of a job's events after what the job varies: TensorBoard calls a run by the path of its events.

    What has begun keeps its name, also in the other processes of a run.

    Args:
        cfg: its config, in which the logger's `version` is set.
        varied: key or group -> value of what differs between the jobs of its sweep.
    """
    part = _logger(cfg)
    if part is None or part.name or part.version:
        return
    events = [path.parent for path in sorted(Path(part.save_dir).glob("**/events.out.tfevents.*"))]
    if events:
        part.version = str(events[0].relative_to(part.save_dir)).removeprefix(".")
        return
    names = {key: re.split(r"[./]", key)[-1] for key in varied}
    are_clear = len({*names.values()}) == len(names)
    text = ",".join(f"{names[key] if are_clear else key.replace('/', '.')}={value}" for key, value in varied.items())
    part.version = re.sub(r"[^\w.=,+-]", "_", text)[:MAX_NAME]


def complete(job: Path, config: Mapping[str, Any], facts: Mapping[str, Any], varied: Collection[str]) -> None:
    """Add the keys that its sweep has begun to vary since to the hyper-parameters of a job that is done.

    `config` is its resolved config; `facts` are as for `session`.
    """
    for path in job.rglob(f"events.out.tfevents.*{START}"):
        content = path.read_bytes()
        if not all(f"\n{chr(len(key))}{key}".encode() in content for key in varied):  # as protobuf writes a key
            _write_start(path.parent, _shown(OmegaConf.create(dict(config)), facts, varied))
            path.unlink()


def overridden(jobs: Iterable[Sequence[str]]) -> list[str]:
    """The keys that some jobs override by hand."""
    return list(dict.fromkeys(key_of(text) for job in jobs for text in job if not text.startswith("like.run=")))


def _shown(cfg: DictConfig, facts: Mapping[str, Any], varied: Collection[str]) -> dict[str, bool | float | str]:
    """The values that the tab shows: the groups and keys of `cfg.hparams`, and what was overridden by hand."""
    by_hand = [*overridden([facts["overrides"]]), *varied]
    values = {key: facts["choices"].get(key) or OmegaConf.select(cfg, key) for key in [*cfg.hparams, *by_hand]}
    plain = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
    return {key: "null" if values[key] is None else str(values[key]) for key in by_hand} | plain


def _write_start(folder: Path, values: Mapping[str, bool | float | str]) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo()
    for name, value in values.items():
        field = {bool: "bool", str: "string"}.get(type(value), "number")
        setattr(start.hparams[name], f"{field}_value", value)
    _write(folder, START, session_start_info=start)


def _events_folder(cfg: DictConfig) -> Path | None:
    part = _logger(cfg)
    if part is None or os.environ.get("LOCAL_RANK", "0") != "0":  # the first of several processes does it
        return None
    return Path(part.save_dir, part.name or "", part.version or "")


def _logger(cfg: DictConfig) -> Any:
    parts = (cfg.logger or {}).values()
    return next((part for part in parts if part and part["_target_"].endswith("TensorBoardLogger")), None)


def _write(folder: Path, suffix: str, **fields: Any) -> None:
    """Write an event file of its own, whose name ends with `suffix`, with some fields of HParamsPluginData."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    summary = Summary()
    for name, value in fields.items():
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**{name: value}))
        summary.value.add(tag=f"_hparams_/{name}", metadata=about, tensor=metadata.NULL_TENSOR)
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    writer.add_event(Event(wall_time=time.time(), summary=summary))
    writer.close()
