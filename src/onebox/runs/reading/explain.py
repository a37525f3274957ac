"""What each key did to the metrics, from pairs of runs that differ in nothing else."""

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import pandas as pd

from onebox.errors import BadInput, Line, is_finite
from onebox.runs.reading.changes import Change, compare, old_data, without_harmless
from onebox.runs.reading.diff import ABSENT, HEADLINE
from onebox.runs.reading.diff_view import value_text
from onebox.runs.reading.find import MISSING, Run, best_tag, near_keys
from onebox.runs.reading.noise import interval, lower_is_better

SCHEMA = 2
CODE, DATA = "code", "data files"  # the keys that stand for a changed source, and for data that changed in place
MAX_METRICS = 4  # that fit beside each other on a terminal


def explain(runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, Any]:
    """The mean effect of each change of one key, what is told from zero first, the largest first.

    Runs are paired when they have the same seed and differ in one key, or in one choice with what it brings along.

    Args:
        runs: of a sweep, or any.
        metrics: tags, such as `test/iou`; none means the monitored one and the usual ones of the test split.

    Raises:
        BadInput: fewer than two runs were completed, or a metric is in none of them.
    """
    done = [run for run in runs if run.record.get("status") == "completed"]
    if len(done) < 2:
        raise BadInput(
            f"{len(done)} of {len(runs)} runs completed, and a comparison takes two; name more runs, or their folder"
        )
    tags = list(metrics) or _usual_metrics(done)
    for tag in tags:
        if not any(tag in run.tags for run in done):
            raise BadInput(near_keys(tag, done))
    done = [run for run in done if all(tag in run.tags for tag in tags)]
    changes = [change for change in without_harmless(compare(done))[0] if change.key != "seed"]
    values = {change.key: change.values for change in changes}
    levels = {change.key: _levels(change, changes, done) for change in changes}
    sources = [str(run.record.get("source")) for run in done]
    if len(set(sources)) > 1:
        values[CODE], levels[CODE] = tuple(sources), sources
    if any(changed := old_data(done)):
        levels[DATA] = [f"older {parts}" if parts else "newest" for parts in changed]
        values[DATA] = tuple(levels[DATA])
    frame = pd.DataFrame({**levels, "seed": [run.record.get("seed") for run in done]}).astype(str)
    frame = frame.join(pd.DataFrame([{tag: run.tags[tag] for tag in tags} for run in done]))
    effects = [effect for key in values for effect in _effects(key, values[key], frame, list(levels), tags)]
    effects.sort(key=lambda effect: _weight(effect["metrics"][tags[0]]), reverse=True)
    return {
        "schema": SCHEMA,
        "runs": len(done),
        "left_out": len(runs) - len(done),
        "metrics": tags,
        "effects": effects,
        "never_alone": [key for key in values if not any(effect["key"] == key for effect in effects)],
    }


def lines(document: dict[str, Any]) -> Iterator[Line]:
    """An explanation for people, line by line, as pieces of text with styles of rich."""
    tags, left_out = document["metrics"][:MAX_METRICS], document["left_out"]
    yield [
        (f"{document['runs']} runs", "bold"),
        (f", {left_out} left out (not completed, or without these metrics)" if left_out else "", ""),
    ]
    rows = [[("key", "dim"), ("change", "dim"), ("pairs", "dim"), *((tag, "dim") for tag in tags)]]
    for effect in document["effects"]:
        change = f"{value_text(effect['from'])} → {value_text(effect['to'])}"
        cells = [_cell(effect["metrics"][tag], tag) for tag in tags]
        rows.append([(effect["key"], "bold"), (change, ""), (str(effect["pairs"]), ""), *cells])
    yield from aligned(rows) if document["effects"] else ()
    found = "mean effect ± 95 % interval over pairs of runs that differ in this alone"
    yield [(found, "dim") if document["effects"] else ("no two runs differ in exactly one key", "yellow")]
    if document["never_alone"]:
        yield [("never varied alone: ", "yellow"), (", ".join(document["never_alone"]), "bold")]


def aligned(rows: Sequence[Line]) -> Iterator[Line]:
    """Rows of a table, each with its cells as wide as those of the others."""
    widths = [max(len(text) for text, _ in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield [(f"{text:<{width}}  ", style) for (text, style), width in zip(row, widths, strict=True)]


def _usual_metrics(runs: Sequence[Run]) -> list[str]:
    usual = [best_tag(str(runs[0].config.get("monitor"))), *(f"test/{name}" for name in HEADLINE)]
    found = [tag for tag in dict.fromkeys(usual) if all(tag in run.tags for run in runs)]
    if not found:
        raise BadInput("the runs share neither the monitored metric nor one of the test split; name one with --metric")
    return found


def _levels(change: Change, changes: Sequence[Change], runs: Sequence[Run]) -> list[str]:
    """The value of each run as a text; empty where it is what a varied choice brings along, typed or not."""
    levels = [repr(float(value)) if is_finite(value) else repr(value) for value in change.values]
    groups = [item.key for item in changes if item.is_choice]
    owners = [group for group in groups if change.key.startswith(f"{group.replace('/', '.')}.")]
    if change.is_choice or not owners:
        return levels
    choices = [run.record["choices"].get(max(owners, key=len)) for run in runs]
    typed = [any(text.startswith(f"{change.key}=") for text in run.record.get("overrides", ())) for run in runs]
    brought = {choice: level for choice, level, given in zip(choices, levels, typed, strict=True) if not given}
    return ["" if brought.get(choice) == level else level for choice, level in zip(choices, levels, strict=True)]


def _effects(
    key: str, values: Sequence[Any], frame: pd.DataFrame, keys: Sequence[str], tags: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Each change from the most frequent value of a key to another, over all pairs that differ in it alone."""
    shown = dict(zip(frame[key], values, strict=True))
    same = [*(other for other in keys if other != key), "seed"]
    by_level = {level: rows.groupby(same)[list(tags)].mean() for level, rows in frame.groupby(key, sort=False)}
    order = sorted(by_level, key=lambda level: shown[level]) if all(map(is_finite, values)) else list(by_level)
    reference = max(order, key=lambda level: len(by_level[level]))
    for level in order:
        differences = (by_level[level] - by_level[reference]).dropna()
        if level != reference and len(differences):
            found = {tag: differences[tag].tolist() for tag in tags}
            yield {
                "key": key,
                "from": ABSENT if shown[reference] is MISSING else shown[reference],
                "to": ABSENT if shown[level] is MISSING else shown[level],
                "pairs": len(differences),
                "metrics": {tag: {"mean": mean(items), "interval": interval(items)} for tag, items in found.items()},
            }


def _weight(effect: dict[str, Any]) -> tuple[bool, float]:
    """Whether an effect is told from zero, and how large it is."""
    size = abs(effect["mean"])
    return effect["interval"] is not None and size > effect["interval"], size


def _cell(effect: dict[str, Any], tag: str) -> tuple[str, str]:
    if effect["interval"] is None:
        return f"{effect['mean']:+.4f} (one pair)", ""
    is_good = (effect["mean"] > 0) != lower_is_better(tag)
    style = ("green" if is_good else "red") if _weight(effect)[0] else "dim"
    return f"{effect['mean']:+.4f} ± {effect['interval']:.4f}", style
