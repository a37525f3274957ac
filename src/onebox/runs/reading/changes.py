"""What differs between the configs of runs, by the choice that made it so."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from onebox.runs.fingerprint import Ignored, changed_parts, flatten, key_of, same
from onebox.runs.reading.find import MISSING, Run

Origin = Literal["override", "default", "follows"]
Values = tuple[Any, ...]  # of each run

_NAMES = re.compile(r"\$\{([\w.]+)\}")
# Of the config of data, what has no say in which images, boxes and labels there are.
_LOADING = {"seed", "views", "views_seed", "features", "features_memory_mb", "cache", "cache_dir", "download"}
_LOADING |= {"batch_size", "eval_batch_size", "num_workers", "drop_last", "background_class"}
_LOADING = {f"data.{key}" for key in _LOADING}
_GLOBAL = ("debug", "sweep", "experiment")  # composed last, the first of these after the others


@dataclass(frozen=True)
class Change:
    """One difference."""

    key: str  # a dotted key (`optimizer.lr`) or a group (`loss/loc`)
    is_choice: bool  # whether it is a group
    values: Values  # of each run; `MISSING` where the config has no such key
    # `override` if it was typed for at least one of the runs; `default` if for none, so that it moved with the code;
    # `follows` if another difference brought it along
    origin: Origin
    matters: bool  # whether it can change a result
    follows: tuple["Change", ...] = ()  # what it brought along


def compare(runs: Sequence[Run]) -> list[Change]:
    """All differences between the configs of some runs: groups first, then single values, each with what follows.

    Values are compared as fingerprints compare them: resolved, and 10 is 10.0.
    """
    configs = [run.config for run in runs]
    first = configs[0] if runs else {}
    # Sections that all runs of `find_runs` share are one object: nothing differs in them.
    alike = {name for name, section in first.items() if all(config.get(name) is section for config in configs)}
    flats = [dict(flatten({k: v for k, v in config.items() if k not in alike})) for config in configs]
    keys, choices = _varied_keys(flats), _varied_choices(runs)
    given = {key_of(text) for run in runs for text in run.record.get("overrides", ())}
    typed = {name for name in [*keys, *choices] if _is_typed(name, given)}
    owners = {name: _owner(name, keys, choices, runs) for name in [*keys, *choices] if name not in typed}
    ignored = [Ignored(config, config.get("fingerprint_ignore", ())) for config in configs]

    def change(name: str) -> Change:
        follows = tuple(change(child) for child, owner in owners.items() if owner == name)
        if name in choices:
            matters = any(item.matters for item in follows)
        else:
            path = tuple(name.split("."))
            matters = not all(rule(path) for rule, flat in zip(ignored, flats, strict=True) if name in flat)
        origin: Origin = "follows" if owners.get(name) else "override" if name in typed else "default"
        return Change(name, name in choices, {**keys, **choices}[name], origin, matters, follows)

    tops = [change(name) for name in [*choices, *keys] if not owners.get(name)]
    # A choice that brought nothing along is the same thing under another name; a group only lists what counts in it.
    return [item for item in tops if not item.is_choice or item.follows]


def changed_data(run: Run, newer: Run) -> list[str]:
    """The parts of its data that have changed since a run; none where a newer one has other options of data."""
    return _changed_parts(run, newer) if _data_options(run) == _data_options(newer) else []


def old_data(runs: Sequence[Run]) -> list[str]:
    """For each run the parts of its data that changed until the newest run with the same options; empty for none."""
    if all(run.record.get("data_fingerprint") == runs[0].record.get("data_fingerprint") for run in runs):
        return [""] * len(runs)
    options = [_data_options(run) for run in runs]
    by_age = sorted(zip(options, runs, strict=True), key=lambda item: str(item[1].record.get("started")))
    newest = {option: run for option, run in by_age if run.record.get("data_fingerprint")}
    return [", ".join(_changed_parts(run, newest.get(option, run))) for option, run in zip(options, runs, strict=True)]


def _changed_parts(run: Run, newer: Run) -> list[str]:
    before, now = (item.record.get("data_fingerprint") or {} for item in (run, newer))
    return [part for part in changed_parts(before, now) if part != "pixels"]  # these follow from image_size too


def _data_options(run: Run) -> str:
    flat = flatten({"data": run.config.get("data")})  # may be anything, if a stranger's
    options = {key: value for key, value in flat if key not in _LOADING}
    return json.dumps([options, run.value("augment.min_area")], sort_keys=True, default=str)


def without_harmless(changes: Sequence[Change]) -> tuple[list[Change], int]:
    """The changes that can change a result, each with such followers only; and how many keys that leaves out."""
    kept, hidden = [], 0
    for item in changes:
        follows, inner = without_harmless(item.follows)
        hidden += inner
        if item.matters:
            kept.append(replace(item, follows=tuple(follows)))
        else:
            hidden += not item.is_choice
    return kept, hidden


def _varied_keys(flats: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    varied = {}
    for key in dict.fromkeys(key for flat in flats for key in flat):
        values = tuple(flat.get(key, MISSING) for flat in flats)
        if len(set(map(repr, values))) > 1 and (
            MISSING in values or not all(same(key, values[0], value) for value in values)
        ):
            varied[key] = values
    # `scheduler: null` is not worth a line where the other run has a whole scheduler.
    parents = {key[:position] for key in varied for position, sign in enumerate(key) if sign == "."}
    return {key: values for key, values in varied.items() if key not in parents}


def _varied_choices(runs: Sequence[Run]) -> dict[str, Values]:
    chosen = [run.record.get("choices", {}) for run in runs]
    found = {
        group: tuple(item.get(group) for item in chosen) for group in sorted({name for one in chosen for name in one})
    }
    return {group: values for group, values in found.items() if len(set(values)) > 1}


def _owner(name: str, keys: Mapping[str, Values], choices: Mapping[str, Values], runs: Sequence[Run]) -> str | None:
    """The difference that a key or group follows from; None for what stands for itself."""
    values = {**keys, **choices}
    # What takes several values while the choice stays the same does not follow from it.
    found = (above for above in _candidates(name, keys, choices, runs) if _is_function(values[above], values[name]))
    return next(found, None)


def _candidates(
    name: str, keys: Mapping[str, Values], choices: Mapping[str, Values], runs: Sequence[Run]
) -> Iterator[str]:
    """What may have brought a difference along, the likeliest first."""
    what = "groups" if name in choices else "keys"
    sets = [run.record.get("sets", {}) for run in runs]
    for group in [*_GLOBAL, *choices]:
        if group != name and group in choices and any(name in item.get(group, {}).get(what, ()) for item in sets):
            yield group
    if name in keys:
        pairs = zip(runs, keys[name], strict=True)
        texts = {run.record.get("interpolated", {}).get(name) for run, value in pairs if value is not MISSING}
        text = texts.pop() if len(texts) == 1 else None
        yield from (source for source in _NAMES.findall(text or "") if source in keys and source != name)
    path = name.replace("/", ".") + "."
    above = [group for group in choices if group != name and path.startswith(group.replace("/", ".") + ".")]
    yield from sorted(above, key=len, reverse=True)


def _is_function(causes: Values, effects: Values) -> bool:
    seen: dict[str, str] = {}
    pairs = zip(map(repr, causes), map(repr, effects), strict=True)
    return all(seen.setdefault(cause, effect) == effect for cause, effect in pairs)


def _is_typed(name: str, given: set[str]) -> bool:
    # `data={limit: 5}` names data.limit; `data=voc2007` has the same key, but is a choice.
    return name in given or any(name.startswith(f"{key}.") for key in given if "." in key)
