"""TensorBoard's HPARAMS tab."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onebox.errors import Preempted

START, END = ".hparams", ".hparams_end"  # how the names of their event files end


@contextmanager
def session(
    folder: Path | None, values: Mapping[str, bool | float | str], varied: Collection[str], metrics: Sequence[str]
) -> Iterator[None]:
    """Tell TensorBoard a run's hyper-parameters and which tags are its results, and after the block how it ended.

    TensorBoard takes each result from the last scalar of that tag, so that a run shows up while it runs. One that was
    stopped or killed has no end, and goes on as the same session. Lightning is not needed, so that a run is shown too
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
    kinds = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    infos = [
        api_pb2.HParamInfo(name=name, type=kinds.get(type(value), api_pb2.DATA_TYPE_FLOAT64), differs=name in varied)
        for name, value in values.items()
    ]
    names = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
    start = plugin_data_pb2.SessionStartInfo()
    for name, value in values.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[name], kind, value)
    _write(
        folder,
        START,
        {
            metadata.EXPERIMENT_TAG: {"experiment": api_pb2.Experiment(hparam_infos=infos, metric_infos=names)},
            metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
        },
    )

    def end(status: Any) -> None:
        info = plugin_data_pb2.SessionEndInfo(status=status)
        _write(folder, END, {metadata.SESSION_END_INFO_TAG: {"session_end_info": info}})

    try:
        yield
    except (Preempted, KeyboardInterrupt):
        raise
    except BaseException:  # raised again
        end(api_pb2.STATUS_FAILURE)
        raise
    end(api_pb2.STATUS_SUCCESS)


def _write(folder: Path, suffix: str, content: Mapping[str, Mapping[str, Any]]) -> None:
    """Write an event file of its own.

    Args:
        folder: receives it.
        suffix: how its name ends.
        content: tag -> fields of HParamsPluginData.
    """
    import time

    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    values = [
        Summary.Value(
            tag=tag,
            metadata=metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**fields)),
            tensor=metadata.NULL_TENSOR,
        )
        for tag, fields in content.items()
    ]
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    writer.add_event(Event(wall_time=time.time(), summary=Summary(value=values)))
    writer.close()
