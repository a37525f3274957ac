"""Two settings on the same seeds and test images: whether one is better, and how many seeds it takes to tell."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special  # type: ignore[import-untyped]  # SciPy has no types

from onebox.errors import Line, check
from onebox.runs.predictions import per_image
from onebox.runs.reading.changes import changed_data, compare, without_harmless
from onebox.runs.reading.diff import ABSENT
from onebox.runs.reading.diff import HEADLINE as USUAL
from onebox.runs.reading.diff_view import value_text
from onebox.runs.reading.explain import CODE, aligned
from onebox.runs.reading.find import MISSING, Run, find_all, find_runs, near_keys, split_of
from onebox.runs.reading.noise import SAME, interval, lower_is_better, other_seeds
from onebox.runs.reading.where import select

SCHEMA = 1
HEADLINE = "test/joint_acc"  # which decides
ALPHA, POWER = 0.05, 0.8
MAX_SEEDS = 1000
TRUTH = ["id", "true_label", "true_x1", "true_y1", "true_x2", "true_y2"]  # of predictions.csv
STYLES = {"better": "green", "worse": "red", "same": "dim", "cannot tell": "dim"}

Settings = dict[str, dict[int, Run]]  # what the user called them, and the completed runs of one config and code by seed


def find_settings(names: Sequence[str], outputs: Path) -> Settings | None:
    """The two settings that names mean; None where they mean other things, such as the folder of a sweep.

    Args:
        names: two folders of runs, or two runs, each of which stands for all seeds of its setting; or two selections
            such as `loss/loc=giou`, and any folders in which the runs are looked for.
        outputs: where runs are looked for else.

    Raises:
        BadInput: a selection gives no run, or several settings; or both settings are one.
    """
    chosen = [name for name in names if "=" in name and not (os.path.exists(name) or os.path.exists(outputs / name))]
    if not chosen and len(names) != 2:
        return None
    if not chosen:
        chosen, groups = list(names), [_completed(find_all([name], outputs)) for name in names]
        if any(len(set(map(_setting, group))) != 1 for group in groups):
            return None
        groups = [other_seeds(group, outputs)[0] if len(group) == 1 else group for group in groups]
    else:
        two = "a comparison takes two selections, such as loss/loc=l1 loss/loc=giou"
        check(len(chosen) == 2, f"{' '.join(chosen)}: {two}")
        folders = [name for name in names if name not in chosen]
        runs = _completed(find_all(folders, outputs) if folders else find_runs(outputs))
        groups = [select(runs, text, option="selection")[0] for text in chosen]
        for name, group in zip(chosen, groups, strict=True):
            check(bool(group), f"{name}: none of {len(runs)} completed runs has it")
            varied = ", ".join(change.key for change in _changes(group)) or "their code"
            add = f"these runs differ in {varied}; say which, as in '{name} and KEY=VALUE'"
            check(len(set(map(_setting, group))) == 1, f"{name}: {add}")
    one = "are one setting; name two that differ in more than the seed"
    check(_setting(groups[0][0]) != _setting(groups[1][0]), f"{' and '.join(chosen)} {one}")
    # Of several runs with one seed the newest, which comes first.
    seeds = [{int(run.record.get("seed", 0)): run for run in reversed(group)} for group in groups]
    return dict(zip(chosen, seeds, strict=True))


def compare_settings(settings: Settings, metrics: Sequence[str]) -> dict[str, Any]:
    """Whether the second setting is better, by pairs of runs with the same seed and by the images of the test split.

    Over seeds: Student's interval of the mean difference. Over images: McNemar's exact test; with several seeds an
    image counts for the setting that is right on it in more of them.

    Args:
        settings: two of them.
        metrics: tags beside the headline, in place of the usual ones.

    Raises:
        BadInput: they share no seed, or a pair has other test images, no predictions or not the same metrics.
    """
    a, b = settings.values()
    texts = [f"{name} has {', '.join(map(str, sorted(runs)))}" for name, runs in settings.items()]
    seeds = sorted(a.keys() & b.keys())
    check(bool(seeds), f"no seed in common: {' and '.join(texts)}; train both with the same ones, as in seed=0,1,2")
    pairs = [(a[seed], b[seed]) for seed in seeds]
    runs = [run for pair in pairs for run in pair]
    # Losses are not compared unasked, as two settings may have two of them.
    usual = [tag for tag in (f"test/{name}" for name in USUAL[:-1]) if all(tag in run.tags for run in runs)]
    tags = list(dict.fromkeys([HEADLINE, *(metrics or usual)]))
    for run in runs:
        missing = [tag for tag in tags if tag not in run.tags]
        check(not missing, f"{run.path}: {run.nonfinite or near_keys(''.join(missing[:1]), [run])}")
    for split in {*map(split_of, tags)} & {"val", "test"}:
        for pair in pairs:
            prints = {run.record.get("data_fingerprint", {}).get(split) for run in pair}
            check(len(prints) == 1, f"{pair[0].path} and {pair[1].path} have other {split} images (see onebox diff)")
    for one, other in pairs:
        changed = ", ".join(changed_data(one, other))
        check(not changed, f"{one.path} and {other.path}: the data have changed between them ({changed})")
    right = _right(runs)
    found = {tag: _over_seeds(tag, [(one.tags[tag], other.tags[tag]) for one, other in pairs]) for tag in tags}
    images = {name: _over_images(*counts) for name, counts in right.items()}
    changes = [(change.key, change.values) for change in _changes(pairs[0])]
    if len(sources := {str(run.record.get("source")): None for run in pairs[0]}) > 1:
        changes.append((CODE, tuple(sources)))
    verdict, why = _verdict(found[HEADLINE], images["joint_acc"], len(seeds))
    return {
        "schema": SCHEMA,
        "settings": [{"name": name, "runs": [str(of[seed].path) for seed in seeds]} for name, of in settings.items()],
        "changes": [
            {"key": key, "values": [ABSENT if value is MISSING else value for value in values]}
            for key, values in changes
        ],
        "seeds": seeds,
        "images": right["acc"].shape[1],
        "metrics": found,
        "over_images": images,
        "verdict": verdict,
        "why": why,
    }


def lines(document: dict[str, Any]) -> Iterator[Line]:
    """A comparison for people, line by line."""
    for letter, item in zip("AB", document["settings"], strict=True):
        yield [(f"{letter}  ", "bold"), (item["name"], "")]
    for change in document["changes"]:
        yield [(f"   {change['key']}  ", "bold"), (" → ".join(map(value_text, change["values"])), "")]
    yield [(f"seeds {', '.join(map(str, document['seeds']))}; {document['images']:,} test images", "")]
    yield []
    rows = [["over seeds", "A", "B", "B - A", "B is", f"seeds for a power of {POWER}"]]
    for tag, item in document["metrics"].items():
        spread = "" if item["interval"] is None else f" ± {item['interval']:.4f}"
        needed = f"> {MAX_SEEDS:,}" if item["seeds_needed"] is None else str(item["seeds_needed"])
        values = (f"{item['a']:.4f}", f"{item['b']:.4f}", f"{item['difference']:+.4f}{spread}")
        rows.append([tag, *values, item["verdict"], needed if spread else ""])
    yield from _table(rows)
    yield []
    rows = [["over images", "only A right", "only B right", "p", "B is"]]
    for name, item in document["over_images"].items():
        rows.append([name, str(item["only_a"]), str(item["only_b"]), f"{item['p']:.2g}", item["verdict"]])
    yield from _table(rows)
    yield []
    yield [(document["verdict"], f"bold {STYLES.get(document['verdict'].split()[-1], '')}"), (document["why"], "")]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[Line]:
    return aligned([[(text, STYLES.get(text, "") if row is not rows[0] else "dim") for text in row] for row in rows])


def sign_test(one: int, other: int) -> float:
    """Two-sided p of so many counts for each side where both are equally likely; of one run each it is McNemar's."""
    return min(1.0, 2 * float(special.bdtr(min(one, other), one + other, 0.5)))


def seeds_needed(difference: float, sd: float) -> int | None:
    """How many pairs a t-test at 5 % takes to find a mean difference in 80 % of cases, where pairs deviate by `sd`.

    None for more than `MAX_SEEDS`.
    """
    n = np.arange(2, MAX_SEEDS + 1)
    critical, shift = special.stdtrit(n - 1, 1 - ALPHA / 2), abs(difference) / sd * np.sqrt(n)
    power = 1 - special.nctdtr(n - 1, shift, critical) + special.nctdtr(n - 1, shift, -critical)
    enough = n[~(power < POWER)]  # not a number for huge shifts
    return int(enough[0]) if len(enough) else None


def _completed(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.record.get("status") == "completed"]


def _setting(run: Run) -> tuple[str, str]:
    return str(run.record.get("fingerprint_seedless") or run.path), str(run.record.get("source"))


def _changes(runs: Sequence[Run]) -> list[Any]:
    return [change for change in without_harmless(compare(runs))[0] if change.key != "seed"]


def _right(runs: Sequence[Run]) -> dict[str, NDArray[np.float64]]:
    """[2, images] in how many runs, which are of the two settings in turn, class and box, class, or box are right."""
    tables = [run.predictions.sort_values("id", kind="stable", ignore_index=True) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        same = table[TRUTH].equals(tables[0][TRUTH])
        check(same, f"{runs[0].path} and {run.path} were tested on other images, or with other labels or boxes of them")
    right = {name: np.array([per_image(table)[name] for table in tables]) for name in ("joint_acc", "acc", "loc_acc")}
    return {name: np.stack([rows[::2].sum(0), rows[1::2].sum(0)]) for name, rows in right.items()}


def _over_seeds(tag: str, values: Sequence[tuple[float, float]]) -> dict[str, Any]:
    differences = [other - one for one, other in values]
    difference, half = mean(differences), interval(differences)
    is_told, verdict, needed = False, "cannot tell", None
    if max(map(abs, differences)) <= SAME:
        verdict = "same"
    elif half is not None and half > SAME:  # where no seed moves it, as a share of few images, noise is not known
        is_told, needed = abs(difference) > half, seeds_needed(difference, stdev(differences))
    if is_told:
        verdict = "worse" if (difference > 0) == lower_is_better(tag) else "better"
    one, other = (mean(side) for side in zip(*values, strict=True))
    facts = {"a": one, "b": other, "difference": difference, "interval": half}
    return {**facts, "verdict": verdict, "seeds_needed": needed}


def _over_images(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> dict[str, Any]:
    only_a, only_b = int((ours > theirs).sum()), int((theirs > ours).sum())
    p = sign_test(only_a, only_b)
    verdict = "cannot tell" if p >= ALPHA else "better" if only_b > only_a else "worse"
    return {"only_a": only_a, "only_b": only_b, "p": p, "verdict": verdict}


def _verdict(seeds: Mapping[str, Any], images: Mapping[str, Any], count: int) -> tuple[str, str]:
    """Plainly, by the headline metric: a difference has to be more than what seeds do, and what images do."""
    if seeds["verdict"] == images["verdict"] != "cannot tell":
        return f"B is {seeds['verdict']}", f" than A in {HEADLINE}, over seeds and over images"
    needed, half = seeds["seeds_needed"], seeds["interval"]
    if half is None:
        why = "one common seed says nothing of others; train both with more, as in seed=0,1,2"
    elif half <= SAME:
        why = "the difference is the same with every seed, so what seeds do is not known"
    elif seeds["verdict"] != "cannot tell":
        why = f"B is {seeds['verdict']} on these images, but might not be on others; test on more"
    elif needed is None:
        why = f"more than {MAX_SEEDS:,} seeds would be needed for a difference of this size"
    else:
        why = f"about {needed} seeds would be needed for a difference of this size, and there are {count}"
    return "cannot tell", f": {why} ({HEADLINE})"
