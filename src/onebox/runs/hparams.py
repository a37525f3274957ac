"""TensorBoard's HPARAMS tab, and the names of runs in it."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from onebox.errors import Preempted
from onebox.runs.record import read_record

MAX_NAME = 120  # characters
START, END = ".hparams", ".hparams_end"  # how the names of their event files end


@contextmanager
def session(
    cfg: DictConfig, facts: Mapping[str, Any], planned: Sequence[Sequence[str]], metrics: Sequence[str]
) -> Iterator[None]:
    """Tell TensorBoard a run's hyper-parameters and which tags are its results, and after the block how it ended.

    A run shows up while it runs, and also when it fails before there is a trainer. One that was stopped or killed has
    no end, and resumes as the same session; one that was pruned ends with the status `unknown`, neither a success nor
    a failure. Without TensorBoard among `cfg.logger` nothing happens.

    Args:
        cfg: the composed config.
        facts: `choices` and `overrides` of the run.
        planned: in a sweep, the overrides of each job.
        metrics: tags of the results; TensorBoard takes the last scalar of each.
    """
    folder = _events_folder(cfg)
    if folder is None:
        yield
        return
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    for path in [
        *folder.glob(f"events.out.tfevents.*{START}"),
        *folder.glob(f"events.out.tfevents.*{END}"),
    ]:  # TensorBoard believes the first of several
        path.unlink()
    values, varied = _shown(cfg, facts, planned)
    experiment, start = api_pb2.Experiment(), plugin_data_pb2.SessionStartInfo()
    for tag in metrics:
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag))
    for name, value in values.items():
        field, kind = {bool: ("bool", "BOOL"), str: ("string", "STRING")}.get(type(value), ("number", "FLOAT64"))
        setattr(start.hparams[name], f"{field}_value", value)
        experiment.hparam_infos.add(name=name, type=getattr(api_pb2, f"DATA_TYPE_{kind}"), differs=name in varied)
    _write(folder, START, experiment=experiment, session_start_info=start)
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


def _shown(
    cfg: DictConfig, facts: Mapping[str, Any], planned: Sequence[Sequence[str]]
) -> tuple[dict[str, bool | float | str], set[str]]:
    """The values that the tab shows, and the names of those that come first.

    These are the groups and keys of `cfg.hparams`, and what was overridden by hand, in any job of a sweep: TensorBoard
    takes the list of keys from any one of them.
    """
    overrides = dict.fromkeys([*facts["overrides"], *(text for job in planned for text in job)])
    by_hand = {text: text.partition("=")[0].lstrip("+~") for text in overrides if not text.startswith("like.run=")}
    varied = {key for text, key in by_hand.items() if not all(text in job for job in planned)} or {*by_hand.values()}
    values = {key: facts["choices"].get(key) or OmegaConf.select(cfg, key) for key in [*cfg.hparams, *by_hand.values()]}
    plain = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
    others = {key: "null" if values[key] is None else str(values[key]) for key in by_hand.values()}
    return others | plain, varied


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
