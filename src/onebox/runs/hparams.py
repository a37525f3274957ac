"""TensorBoard's HPARAMS tab."""

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from onebox.errors import Preempted

START, END = ".hparams", ".hparams_end"  # how the names of their event files end


@contextmanager
def session(
    folder: Path | None, values: Mapping[str, bool | float | str], varied: Collection[str], metrics: Sequence[str]
) -> Iterator[None]:
    """Tell TensorBoard a run's hyper-parameters and which tags are its results, and after the block how it ended.

    TensorBoard takes each result from the last scalar of that tag, so that a run shows up while it runs. One that was
    stopped or killed has no end, and resumes as the same session. Lightning is not needed, so that a run is shown too
    that fails before there is a trainer.

    Args:
        folder: the run's folder of event files; None writes nothing.
        values: hyper-parameters, by name.
        varied: names of those that are shown first.
        metrics: tags of the results.
    """
    if folder is None:
        yield
        return
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    # TensorBoard believes the first of several ends.
    for path in [*folder.glob(f"*{START}"), *folder.glob(f"*{END}")]:
        path.unlink()
    infos = []
    start = plugin_data_pb2.SessionStartInfo()
    for name, value in values.items():
        kind = {bool: "bool", str: "string"}.get(type(value), "number")
        setattr(start.hparams[name], f"{kind}_value", value)
        data_type = getattr(api_pb2, f"DATA_TYPE_{kind.upper()}".replace("NUMBER", "FLOAT64"))
        infos.append(api_pb2.HParamInfo(name=name, type=data_type, differs=name in varied))
    names = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=names)
    facts = {metadata.EXPERIMENT_TAG: {"experiment": experiment}}
    _write(folder, START, facts | {metadata.SESSION_START_INFO_TAG: {"session_start_info": start}})
    status = api_pb2.STATUS_FAILURE
    try:
        yield
        status = api_pb2.STATUS_SUCCESS
    except (Preempted, KeyboardInterrupt):
        status = None
        raise
    finally:
        if status is not None:
            end = plugin_data_pb2.SessionEndInfo(status=status)
            _write(folder, END, {metadata.SESSION_END_INFO_TAG: {"session_end_info": end}})


def shown(
    cfg: DictConfig, facts: Mapping[str, Any], planned: Sequence[Sequence[str]]
) -> tuple[dict[str, bool | float | str], set[str]]:
    """What the HPARAMS tab shows, and what of it first.

    These are the groups and keys of `cfg.hparams`, and what was overridden by hand.

    Args:
        cfg: the composed config.
        facts: `choices` and `overrides` of the run.
        planned: in a sweep, the overrides of each job, which are shown too, as TensorBoard takes the list of keys from
            any one of them.
    """
    overrides = dict.fromkeys([*facts["overrides"], *(text for job in planned for text in job)])
    by_hand = {text: text.partition("=")[0].lstrip("+~") for text in overrides}
    varied = {key for text, key in by_hand.items() if not all(text in job for job in planned)} or {*by_hand.values()}
    values = {key: facts["choices"].get(key) or OmegaConf.select(cfg, key) for key in [*cfg.hparams, *by_hand.values()]}
    plain = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
    others = {key: "null" if values[key] is None else str(values[key]) for key in by_hand.values()}
    return others | plain, varied


def events_folder(cfg: DictConfig) -> Path | None:
    """Where the events of a run go; None without TensorBoard, and in all but the first process of several."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    for part in (cfg.logger or {}).values():
        if part and part["_target_"].endswith("TensorBoardLogger"):
            return Path(part.save_dir, part.name or "", part.version or "")
    return None


def _write(folder: Path, suffix: str, content: Mapping[str, Mapping[str, Any]]) -> None:
    """Write an event file of its own, whose name ends with `suffix`: fields of HParamsPluginData by tag."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    values = []
    for tag, fields in content.items():
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**fields))
        values.append(Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR))
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    writer.add_event(Event(wall_time=time.time(), summary=Summary(value=values)))
    writer.close()
