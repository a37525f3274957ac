"""What each key did to the metrics, from pairs of runs that differ in nothing else."""

import importlib.util
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from onebox.errors import BadInput, is_number
from onebox.runs.changes import Change, compare, without_harmless
from onebox.runs.diff import ABSENT, HEADLINE
from onebox.runs.find import MISSING, Run, near_keys
from onebox.runs.noise import interval

SCHEMA = 1
CODE = "code"  # the factor that a changed source is
MIN_FANOVA_RUNS = 10
MAX_COMPARED = 300  # runs, each with each, to say what changed together
DEFAULT = "default of the choice"

Document = dict[str, Any]
Setting = tuple[tuple[str, str], ...]  # all other factors of a run, but for the seed
Table = Mapping[Setting, Mapping[str, Mapping[Any, list[int]]]]  # setting -> value -> seed -> numbers of runs


@dataclass(frozen=True)
class Factor:
    """Something that was varied.

    Attributes:
        name: a key, a group, or `CODE`.
        values: of each run.
        levels: the same as a text that tells which are alike; a key that was left at the default of a varied group has
            the level `DEFAULT`, whatever that default is.
    """

    name: str
    values: tuple[Any, ...]
    levels: tuple[str, ...]


def explain(runs: Sequence[Run], metrics: Sequence[str]) -> Document:
    """The effect of each varied key on some metrics, the largest effect on the first metric first.

    Args:
        runs: of a sweep, or any.
        metrics: tags, such as `test/iou`; none means the monitored one and the usual ones of the test split.

    Raises:
        BadInput: fewer than two runs were completed, or a metric is in none of them.
    """
    done = [run for run in runs if run.record.get("status") == "completed"]
    if len(done) < 2:
        raise BadInput(
            f"{len(done)} of {len(runs)} runs completed, and it takes two to compare; name more, or their folder"
        )
    tags = _metrics(done, metrics)
    done = [run for run in done if all(tag in run.tags for tag in tags)]
    changes, _ = without_harmless(compare(done))
    factors = _factors(done, changes)
    seeds = [run.record.get("seed") for run in done]

    settings = {factor.name: _settings(factors, factor, len(done)) for factor in factors}
    rows = [_effects(factor, settings[factor.name], seeds, done, tags) for factor in factors]
    alone = [row for row in rows if row["effects"]]
    alone.sort(key=lambda row: _weight(row, tags[0]), reverse=True)
    return {
        "schema": SCHEMA,
        "runs": len(done),
        "left_out": len(runs) - len(done),
        "metrics": tags,
        "noise": _noise(factors, done, tags),
        "factors": alone,
        "never_alone": [
            {"key": factor.name, "together_with": _companions(factors, number)}
            for number, (factor, row) in enumerate(zip(factors, rows, strict=True))
            if not row["effects"]
        ],
        "importance": _importance(factors, done, tags[0]),
    }


def _metrics(runs: Sequence[Run], wanted: Sequence[str]) -> list[str]:
    for tag in wanted:
        if not any(tag in run.tags for run in runs):
            raise BadInput(near_keys(tag, runs))
    if wanted:
        return list(wanted)
    usual = [runs[0].config.get("monitor"), *(f"test/{name}" for name in HEADLINE)]
    found = [str(tag) for tag in dict.fromkeys(usual) if all(tag in run.tags for run in runs)]
    if not found:
        raise BadInput("the runs share neither the monitored metric nor one of the test split; name one with --metric")
    return found


def _factors(runs: Sequence[Run], changes: Sequence[Change]) -> list[Factor]:
    """What was varied, without the seed."""
    groups = [item.key for item in changes if item.is_choice]
    factors = []
    for item in changes:
        if item.key == "seed":
            continue
        levels = [_level(value) for value in item.values]
        owner = max((g for g in groups if f"{item.key}.".startswith(g.replace("/", ".") + ".")), key=len, default=None)
        if owner is not None and not item.is_choice:
            typed = [any(text.startswith(f"{item.key}=") for text in run.record.get("overrides", ())) for run in runs]
            choices = [run.record["choices"].get(owner) for run in runs]
            defaults = {choice: level for choice, level, given in zip(choices, levels, typed, strict=True) if not given}
            levels = [
                DEFAULT if not given or defaults.get(choice) == level else level
                for choice, level, given in zip(choices, levels, typed, strict=True)
            ]
        factors.append(Factor(item.key, item.values, tuple(levels)))
    sources = tuple(run.record.get("source") for run in runs)
    if len(set(sources)) > 1:
        factors.append(Factor(CODE, sources, tuple(map(str, sources))))
    return factors


def _level(value: Any) -> str:
    return repr(float(value)) if is_number(value) else repr(value)


def _settings(factors: Sequence[Factor], but: Factor | None, count: int) -> list[Setting]:
    """For each run, the levels of all factors but one."""
    others = [factor for factor in factors if factor is not but]
    return [tuple((factor.name, factor.levels[number]) for factor in others) for number in range(count)]


def _effects(
    factor: Factor, settings: Sequence[Setting], seeds: Sequence[Any], runs: Sequence[Run], tags: Sequence[str]
) -> Document:
    settled: dict[Setting, dict[str, dict[Any, list[int]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    shown: dict[str, Any] = {}
    for number, (setting, value) in enumerate(zip(settings, factor.values, strict=True)):
        level = _level(value)
        shown.setdefault(level, value)
        settled[setting][level][seeds[number]].append(number)
    # Only where it took several values while all else stayed the same is there anything to learn.
    table = {setting: levels for setting, levels in settled.items() if len(levels) > 1}
    counts = Counter(level for levels in table.values() for level in levels)
    order = _in_order({level: value for level, value in shown.items() if level in counts})
    if not order:
        return {"key": factor.name, "effects": [], "trend": None}
    reference = max(order, key=lambda level: (counts[level], -order.index(level)))
    pairs = {(reference, level): list(_pairs(table, reference, level)) for level in order if level != reference}
    effects: list[Document] = []
    for (one, other), found in pairs.items():
        if found:
            differences = {tag: [_mean(runs, tag, b) - _mean(runs, tag, a) for a, b in found] for tag in tags}
            by_metric = {tag: {"mean": mean(items), "interval": interval(items)} for tag, items in differences.items()}
            change = {"from": _json(shown[one]), "to": _json(shown[other])}
            effects.append({**change, "pairs": len(found), "metrics": by_metric})
    return {"key": factor.name, "effects": effects, "trend": _trend(table, shown, runs, tags)}


def _in_order(shown: Mapping[str, Any]) -> list[str]:
    """Numbers by size, others as they come."""
    if all(map(is_number, shown.values())):
        return sorted(shown, key=lambda level: float(shown[level]))
    return list(shown)


def _pairs(table: Table, one: str, other: str) -> Iterator[tuple[list[int], list[int]]]:
    """Runs that differ in one factor alone: of the same seed where there is one, else all seeds against all."""
    for levels in table.values():
        if one not in levels or other not in levels:
            continue
        shared = [seed for seed in levels[one] if seed in levels[other]]
        for seed in shared:
            yield levels[one][seed], levels[other][seed]
        if not shared:
            yield _all(levels[one]), _all(levels[other])


def _all(by_seed: Mapping[Any, list[int]]) -> list[int]:
    return [number for numbers in by_seed.values() for number in numbers]


def _mean(runs: Sequence[Run], tag: str, numbers: Sequence[int]) -> float:
    return mean(runs[number].tags[tag] for number in numbers)


def _trend(
    table: Table,
    shown: Mapping[str, Any],
    runs: Sequence[Run],
    tags: Sequence[str],
) -> Document | None:
    """Slope and rank correlation along three numbers or more, each line of runs having all else the same."""
    if len(shown) < 3 or not all(map(is_number, shown.values())):
        return None
    numbers = [float(value) for value in shown.values()]
    logarithmic = min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
    found = {}
    for tag in tags:
        products = squares = 0.0
        ranks = []
        for line in _lines(table):
            xs = [math.log10(float(shown[level])) if logarithmic else float(shown[level]) for level, _ in line]
            ys = [_mean(runs, tag, members) for _, members in line]
            middle_x, middle_y = mean(xs), mean(ys)
            products += sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True))
            squares += sum((x - middle_x) ** 2 for x in xs)
            ranks.append(_correlation(_ranks(xs), _ranks(ys)))
        if ranks:
            found[tag] = {"slope": products / squares, "rank_correlation": mean(ranks)}
    lines = len(list(_lines(table)))
    return {"per": "factor of 10" if logarithmic else "unit", "lines": lines, "metrics": found} if found else None


def _lines(table: Table) -> Iterator[list[tuple[str, list[int]]]]:
    """Runs of one setting along the values: of one seed where that has three, else the mean over seeds."""
    for levels in table.values():
        seeds = dict.fromkeys(seed for by_seed in levels.values() for seed in by_seed)
        by_seed = [[(level, found[seed]) for level, found in levels.items() if seed in found] for seed in seeds]
        long = [line for line in by_seed if len(line) > 2]
        pooled = [(level, _all(found)) for level, found in levels.items()]
        yield from long or ([pooled] if len(pooled) > 2 else [])


def _ranks(values: Sequence[float]) -> list[float]:
    """Equal values share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    middle_x, middle_y = mean(xs), mean(ys)
    above = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True))
    below = math.sqrt(sum((x - middle_x) ** 2 for x in xs) * sum((y - middle_y) ** 2 for y in ys))
    return above / below if below else 0.0


def _weight(row: Document, tag: str) -> tuple[bool, float]:
    """Whether an effect is told from zero, and how large the largest is: what rows are sorted by."""
    found = [effect["metrics"][tag] for effect in row["effects"]]
    sure = [
        abs(item["mean"]) for item in found if item["interval"] is not None and abs(item["mean"]) > item["interval"]
    ]
    return bool(sure), max(sure or [abs(item["mean"]) for item in found])


def _noise(factors: Sequence[Factor], runs: Sequence[Run], tags: Sequence[str]) -> Document | None:
    """Pooled standard deviation of a metric over runs that differ by their seed alone."""
    groups = defaultdict(list)
    for run, setting in zip(runs, _settings(factors, None, len(runs)), strict=True):
        groups[setting].append(run)
    several = [group for group in groups.values() if len({run.record.get("seed") for run in group}) > 1]
    degrees = sum(len(group) - 1 for group in several)
    if not degrees:
        return None
    sds = {
        tag: math.sqrt(sum((len(g) - 1) * stdev([run.tags[tag] for run in g]) ** 2 for g in several) / degrees)
        for tag in tags
    }
    return {"groups": len(several), "runs": degrees + len(several), "sd": sds}


def _companions(factors: Sequence[Factor], number: int) -> list[str]:
    """The fewest other factors that changed whenever this one did; among several such sets, the most frequent."""
    rows = list(dict.fromkeys(zip(*(factor.levels for factor in factors), strict=True)))[:MAX_COMPARED]
    found: Counter[tuple[str, ...]] = Counter()
    for position, one in enumerate(rows):
        for other in rows[position + 1 :]:
            if one[number] != other[number]:
                differing = (factors[k].name for k in range(len(factors)) if k != number and one[k] != other[k])
                found[tuple(differing)] += 1
    sets = sorted(found, key=lambda names: (len(names), -found[names]))
    return list(sets[0]) if sets else []


def _importance(factors: Sequence[Factor], runs: Sequence[Run], tag: str) -> Document:
    """FANOVA by optuna's evaluator: the share of the metric's variance that each factor explains in a random forest."""
    if len(runs) < MIN_FANOVA_RUNS or len(factors) < 2:
        return {"metric": tag, "shares": None, "why": f"it takes {MIN_FANOVA_RUNS} runs and two varied keys"}
    if importlib.util.find_spec("optuna") is None or importlib.util.find_spec("sklearn") is None:
        return {"metric": tag, "shares": None, "why": 'optuna is not installed: pip install "onebox[explain]"'}
    import optuna  # optional

    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study()
    levels = {factor.name: sorted(set(factor.levels)) for factor in factors}
    # All are categories: distributions of numbers are spelled differently in optuna 2 and 3.
    kinds = {name: optuna.distributions.CategoricalDistribution(found) for name, found in levels.items()}
    for number, run in enumerate(runs):
        params = {factor.name: factor.levels[number] for factor in factors}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=run.tags[tag]))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except ValueError as error:  # optuna 2 does not work with numpy 2
        return {"metric": tag, "shares": None, "why": f"optuna {optuna.__version__} failed ({error}); 3 and later work"}
    return {"metric": tag, "shares": {name: float(share) for name, share in shares.items()}, "why": None}


def _json(value: Any) -> Any:
    return ABSENT if value is MISSING else value
