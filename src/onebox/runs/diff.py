"""What differs between runs, as one document: config, code, environment, data, metrics."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onebox.runs.changes import Change, compare, without_harmless
from onebox.runs.find import MISSING, Run
from onebox.runs.noise import SAME, Verdict, band, judge, other_seeds

SCHEMA = 1
HEADLINE = ("joint_acc", "acc", "iou", "loc_acc", "loc_l1", "loss")
RUN = ("src", "conf")  # the folders that a run is made of
WHERE_AND_WHEN = ("host", "started", "seconds", "command")
ABSENT = {"absent": True}  # how JSON says that a run has no such key

Document = dict[str, Any]


def diff(runs: Sequence[Run], outputs: Path, *, everything: bool) -> Document:
    """Compare runs, the first with each of the others.

    Args:
        runs: two or more.
        outputs: where other seeds of the same configs are looked for.
        everything: also what cannot change a result, all metrics, and where and when the runs ran.

    Returns:
        `same`: whether nothing that can change a result differs, and no metric does; and the parts.
    """
    changes = compare(runs)
    relevant, hidden = without_harmless(changes)
    code = _code(runs)
    environment = _environment(runs, everything=everything)
    data = _data(runs)
    metrics = _metrics(runs, outputs, data, everything=everything)
    same = (
        not relevant
        and code["same"]
        and all(row["what"] in WHERE_AND_WHEN for row in environment)
        and data["same"]
        and all(verdict == "same" for row in metrics for verdict in row["verdicts"])
    )
    return {
        "schema": SCHEMA,
        "same": same,
        "runs": [_run(run) for run in runs],
        "config": [_change(item) for item in (changes if everything else relevant)],
        "hidden": 0 if everything else hidden,
        "code": code,
        "environment": environment,
        "data": data,
        "metrics": metrics,
    }


def _run(run: Run) -> Document:
    facts = ("name", "fingerprint", "status", "started", "seconds", "seed")
    return {"run": str(run.path), **{name: run.record.get(name) for name in facts}}


def _change(item: Change) -> Document:
    return {
        "key": item.key,
        "kind": "choice" if item.is_choice else "value",
        "origin": item.origin,
        "values": [ABSENT if value is MISSING else value for value in item.values],
        "matters": item.matters,
        "follows": [_change(inner) for inner in item.follows],
    }


def _code(runs: Sequence[Run]) -> Document:
    """Whether the source is the same, and if not what git knows of it."""
    gits: list[Mapping[str, Any]] = [run.record.get("git") or {} for run in runs]
    sources = [run.record.get("source") for run in runs]
    found: Document = {
        "same": len(set(sources)) == 1,
        "sources": sources,
        "commits": [git.get("sha") for git in gits],
        "dirty": [bool(git.get("dirty")) for git in gits],
        "between": [],  # of the first two
        "files": [],
        "uncommitted": [],
    }
    if found["same"] or not all(found["commits"]):
        return found
    from onebox.runs.provenance import patch

    first, second = found["commits"][:2]
    if first != second:
        found["between"] = _git("log", "--oneline", "--no-decorate", f"{first}..{second}")
        found["between"] += [f"(not in the second) {line}" for line in _git("log", "--oneline", f"{second}..{first}")]
        found["files"] = [
            line.replace("\t", " ")
            for line in _git("diff", "--name-status", first, second, "--", *(f":(top){folder}" for folder in RUN))
        ]
    patches = [_patched_files(patch(run.path) or "") for run in runs[:2]]
    found["uncommitted"] = [
        name
        for name in dict.fromkeys([*patches[0], *patches[1]])
        if name.startswith(RUN) and patches[0].get(name) != patches[1].get(name)
    ]
    return found


def _patched_files(text: str) -> dict[str, str]:
    parts = re.split(r"^(?=diff --git )", text, flags=re.M)
    return {part.partition("\n")[0].rpartition(" b/")[2].strip('"'): part for part in parts if part.startswith("diff ")}


def _git(*arguments: str) -> list[str]:
    """Lines of git in `repository`; none when it does not know."""
    from onebox.runs.provenance import repository

    done = subprocess.run(
        ["git", "-C", str(repository()), *arguments], capture_output=True, text=True, errors="replace"
    )
    return done.stdout.splitlines() if done.returncode == 0 else []


def _environment(runs: Sequence[Run], *, everything: bool) -> list[Document]:
    """Python, packages, hardware and variables that differ."""
    facts: list[dict[str, Any]] = []
    for run in runs:
        record = run.record
        one = {name: record.get(name) for name in ("python", "system")}
        one |= {f"hardware.{name}": value for name, value in (record.get("hardware") or {}).items()}
        one |= {f"${name}": value for name, value in (record.get("environment") or {}).items()}
        one |= {f"{name} (package)": version for name, version in (record.get("packages") or {}).items()}
        if everything:
            one |= {name: record.get(name) for name in WHERE_AND_WHEN} | {
                "command": " ".join(record.get("command", []))
            }
        facts.append(one)
    names = dict.fromkeys(name for one in facts for name in one)
    rows = [{"what": name, "values": [one.get(name) for one in facts]} for name in names]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _data(runs: Sequence[Run]) -> Document:
    """Whether the runs saw the same samples and pixels; if not, what happened to which samples."""
    prints = [run.record.get("data_fingerprint") or {} for run in runs]
    weights = [run.record.get("weights_fingerprint") for run in runs]
    names = list(dict.fromkeys(name for one in prints for name in one))
    parts_of = [[name for name in names if one.get(name) != prints[0].get(name)] for one in prints[1:]]
    parts = [name for name in names if any(name in other for other in parts_of)]
    found: Document = {
        "same": not parts and len(set(weights)) == 1,
        "known": all(prints),
        "parts": parts,
        "parts_of": parts_of,  # each run after the first
        "images": [run.record.get("data") for run in runs],
        "weights": weights,
        "samples": [],
    }
    if {"train", "val", "test"} & set(parts):
        from onebox.runs.samples import compare_samples  # numpy

        found["samples"] = [compare_samples(runs[0].path, other.path) for other in runs[1:]]
    return found


def _metrics(runs: Sequence[Run], outputs: Path, data: Document, *, everything: bool) -> list[Document]:
    """The metrics that all runs have, with what other seeds say of their noise."""
    tags = [tag for tag in runs[0].tags if "/" in tag and all(tag in run.tags for run in runs)]
    if not everything:
        split = "test" if any(tag.startswith("test/") for tag in tags) else "val"
        split = split if any(tag.startswith(f"{split}/") for tag in tags) else "train"
        monitor = runs[0].config.get("monitor")
        tags = [tag for tag in dict.fromkeys([*(f"{split}/{name}" for name in HEADLINE), monitor]) if tag in tags]
    groups = other_seeds(runs, outputs) if tags else []
    # Runs of one group differ by their seed alone, which is what noise is.
    one_group = [{run.path.resolve() for run in group} == {run.path.resolve() for run in groups[0]} for group in groups]
    rows = []
    for tag in tags:
        values = [run.tags[tag] for run in runs]
        bands = [item for group in groups if (item := band(tag, group)) is not None]
        verdicts: list[Verdict] = [judge(tag, bands[0], item) for item in bands[1:]]
        for number, value in enumerate(values[1:]):
            if one_group[number + 1] or verdicts[number] == "same":
                verdicts[number] = "same" if abs(value - values[0]) <= SAME else "within noise"
            elif tag.partition("/")[0] in data["parts_of"][number]:
                verdicts[number] = "other images"
        rows.append(
            {
                "metric": tag,
                "values": values,
                "differences": [value - values[0] for value in values[1:]],
                "verdicts": verdicts,
                "seeds": [item.seeds for item in bands],
                "means": [item.mean for item in bands],
                "sds": [item.sd for item in bands],
                "floor": runs[0].floor(tag),
            }
        )
    return rows
