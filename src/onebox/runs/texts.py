"""What TensorBoard's TEXT tab says of a run: Markdown by tag, in which every text stands as it is."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from onebox.runs.fingerprint import flatten
from onebox.runs.results import SHOWN


def tell(trainer: Any, texts: Mapping[str, str]) -> None:
    """Give texts to the callback that shows them, if there is one."""
    for callback in trainer.callbacks:
        if hasattr(callback, "show"):
            callback.show(trainer, texts)


def about(cfg: DictConfig, hydra: Any) -> dict[str, str]:
    """The resolved config and the overrides; `hydra` is Hydra's own part of the config."""
    overrides = "\n".join(hydra.overrides.task) or "none"
    return {"config": _code(OmegaConf.to_yaml(cfg, resolve=True)), "overrides": _code(overrides)}


def changed(cfg: DictConfig, hydra: Any) -> dict[str, str]:
    """In a single run what the overrides change in its experiment; that is composed for it, so not when a run starts.

    Empty in a sweep, and where Hydra has composed nothing.
    """
    from hydra.core.global_hydra import GlobalHydra

    is_single = hydra.mode is RunMode.RUN and GlobalHydra.instance().is_initialized()
    return {"changed": _changed(cfg, list(hydra.overrides.task))} if is_single else {}


def result_table(test: Mapping[str, float], floor: Mapping[str, float], per_class: Mapping[str, Any]) -> str:
    """The metrics of a test beside the floor, and those of each class."""
    if not test:
        return "not tested"
    table = _table(("metric", "test", "floor"), ((name, test[name], floor[name]) for name in SHOWN))
    rows = ((name, row["images"], *(row[column] for column in SHOWN)) for name, row in per_class.items())
    return f"{table}\n\n{_table(('class', 'images', *SHOWN), rows)}"


def _changed(cfg: DictConfig, overrides: Sequence[str]) -> str:
    from hydra import compose

    experiment = [text for text in overrides if text.startswith("experiment=")]
    parts = [compose("train", overrides=experiment), cfg]
    base, here = (dict(flatten(OmegaConf.to_container(part, resolve=True))) for part in parts)  # type: ignore[arg-type]
    keys = [key for key in {**base, **here} if base.get(key, "") != here.get(key, "") and base.get(key) != "???"]
    rows = ((key, base.get(key, ""), here.get(key, "")) for key in keys)
    return _table(("key", " ".join(experiment) or "defaults", "this run"), rows) if keys else "nothing"


def _code(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [" | ".join(map(_cell, row)) for row in (columns, *rows)]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join("---" for _ in columns), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        value = json.dumps(value)  # as YAML has it
    text = html.escape(" ".join((f"{value:.4g}" if isinstance(value, float) else str(value)).split()))
    return "".join(f"&#{ord(letter)};" if letter in "|\\`*_[]~" else letter for letter in text)
