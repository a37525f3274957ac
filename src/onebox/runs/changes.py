"""What differs between the configs of runs, by the choice that made it so."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from onebox.runs.find import MISSING, Run
from onebox.runs.fingerprint import Ignored, flatten, same

Origin = Literal["override", "default", "follows"]

_NAMES = re.compile(r"\$\{([\w.]+)\}")
_GLOBAL = ("debug", "sweep", "experiment")  # composed last, the first of these after the others


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        key: a dotted key (`optimizer.lr`) or a group (`loss/loc`).
        is_choice: whether it is a group.
        values: of each run; `MISSING` where the config has no such key.
        origin: `override` if it was typed for one of the runs at least; `default` if for none, so that it moved with
            the code; `follows` if another difference brought it along.
        matters: whether it can change a result.
        follows: what it brought along.
    """

    key: str
    is_choice: bool
    values: tuple[Any, ...]
    origin: Origin
    matters: bool
    follows: tuple["Change", ...] = ()


def compare(runs: Sequence[Run]) -> list[Change]:
    """All differences between the configs of some runs: groups first, then single values, each with what follows.

    Values are compared as fingerprints compare them: resolved, and 10 is 10.0.
    """
    flats = [dict(flatten(dict(run.config))) for run in runs]
    keys = _varied_keys(flats)
    choices = _varied_choices(runs)
    owners = _owners(runs, keys, choices)

    ignored = [Ignored(run.config, run.config.get("fingerprint_ignore", ())) for run in runs]
    typed = [_typed(run) for run in runs]
    children: dict[str, list[str]] = {}
    for name, owner in owners.items():
        children.setdefault(owner, []).append(name)

    def change(name: str) -> Change:
        follows = tuple(change(child) for child in children.get(name, ()))
        if name in choices:
            matters = any(item.matters for item in follows)
        else:
            path = tuple(name.split("."))
            matters = not all(rule(path) for rule, flat in zip(ignored, flats, strict=True) if name in flat)
        origin: Origin = "override" if any(_is_typed(name, given) for given in typed) else "default"
        if name in owners:
            origin = "follows"
        values = choices[name] if name in choices else keys[name]
        return Change(name, name in choices, values, origin, matters, follows)

    tops = [change(name) for name in [*choices, *keys] if name not in owners]
    # A choice that brought nothing along is the same thing under another name; a group only lists what counts in it.
    return [item for item in tops if not item.is_choice or item.follows]


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


def _varied_keys(flats: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    varied = {}
    for key in dict.fromkeys(key for flat in flats for key in flat):
        values = tuple(flat.get(key, MISSING) for flat in flats)
        known = [value for value in values if value is not MISSING]
        if len(known) < len(values) or not all(_same(key, known[0], value) for value in known):
            varied[key] = values
    # `scheduler: null` is not worth a line where the other run has a whole scheduler.
    parents = {key[:position] for key in varied for position, sign in enumerate(key) if sign == "."}
    return {key: values for key, values in varied.items() if key not in parents}


def _same(key: str, one: Any, other: Any) -> bool:
    # Most values are the same text, number or list; only the others are worth the closer look.
    alike = repr(one) == repr(other) if isinstance(one, list) else one == other
    return (type(one) is type(other) and alike) or same(key, one, other)


def _varied_choices(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    chosen = [run.record.get("choices", {}) for run in runs]
    found = {
        group: tuple(item.get(group) for item in chosen) for group in dict.fromkeys(g for item in chosen for g in item)
    }
    return {group: values for group, values in sorted(found.items()) if len(set(values)) > 1}


def _owners(
    runs: Sequence[Run], keys: Mapping[str, tuple[Any, ...]], choices: Mapping[str, tuple[Any, ...]]
) -> dict[str, str]:
    """Key or group -> the difference that it follows from; what stands for itself is not in it."""
    typed = [_typed(run) for run in runs]
    sets = [run.record.get("sets", {}) for run in runs]
    values = {**keys, **choices}

    def candidates(name: str) -> Iterator[str]:
        """What may have brought a difference along, the likeliest first."""
        what = "groups" if name in choices else "keys"
        for group in [*_GLOBAL, *choices]:
            if group in choices and any(name in item.get(group, {}).get(what, ()) for item in sets):
                yield group
        if name in keys:
            pairs = zip(runs, keys[name], strict=True)
            texts = {run.record.get("interpolated", {}).get(name) for run, value in pairs if value is not MISSING}
            if len(texts) == 1 and (text := texts.pop()):
                yield from (source for source in _NAMES.findall(text) if source in keys)
        path = name.replace("/", ".") + "."
        above = [group for group in choices if group != name and path.startswith(group.replace("/", ".") + ".")]
        yield from sorted(above, key=len, reverse=True)

    found = {}
    for name in values:
        if any(_is_typed(name, given) for given in typed):
            continue
        # What takes several values while the choice stays the same does not follow from it.
        for above in candidates(name):
            if above != name and _is_function(values[above], values[name]):
                found[name] = above
                break
    return found


def _is_function(causes: Sequence[Any], effects: Sequence[Any]) -> bool:
    seen: dict[str, str] = {}
    return all(
        seen.setdefault(repr(cause), repr(effect)) == repr(effect)
        for cause, effect in zip(causes, effects, strict=True)
    )


def _typed(run: Run) -> set[str]:
    """The keys and groups that the command line of a run names."""
    return {text.partition("=")[0].lstrip("+~").partition("@")[0] for text in run.record.get("overrides", ())}


def _is_typed(name: str, typed: set[str]) -> bool:
    if name in typed:
        return True
    # `data={limit: 5}` names data.limit; `data=voc2007` has the same key, but is a choice.
    return any(name.startswith(f"{key}.") for key in typed if "." in key)
