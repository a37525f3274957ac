"""What TensorBoard's TEXT tab says of a run: Markdown by tag, in which every text stands as it is."""

import html
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
    """The resolved config, the overrides, and in a single run what they change in its experiment.

    `hydra` is Hydra's own part of the config.
    """
    overrides = list(hydra.overrides.task)
    texts = {"config": _code(OmegaConf.to_yaml(cfg, resolve=True)), "overrides": _code("\n".join(overrides) or "none")}
    changed = _changed(cfg, overrides) if hydra.mode is RunMode.RUN else None
    return texts if changed is None else texts | {"changed": changed}


def result_table(test: Mapping[str, float], floor: Mapping[str, float], per_class: Mapping[str, Any]) -> str:
    """The metrics of a test beside the floor, and those of each class."""
    if not test:
        return "not tested"
    table = _table(("metric", "test", "floor"), ((name, test[name], floor[name]) for name in SHOWN))
    rows = ((name, row["images"], *(row[column] for column in SHOWN)) for name, row in per_class.items())
    return f"{table}\n\n{_table(('class', 'images', *SHOWN), rows)}"


def _changed(cfg: DictConfig, overrides: Sequence[str]) -> str | None:
    """A table of what overrides change in their experiment; None where Hydra has composed nothing."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    if not GlobalHydra.instance().is_initialized():
        return None
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
    text = html.escape(" ".join((f"{value:.4g}" if isinstance(value, float) else str(value)).split()))
    return "".join(f"&#{ord(letter)};" if letter in "|\\`*_[]~" else letter for letter in text)
