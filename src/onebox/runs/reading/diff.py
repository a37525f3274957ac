"""What differs between runs, as one document: config, code, environment, data, metrics."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onebox.runs.fingerprint import changed_parts
from onebox.runs.reading.changes import Change, changed_data, compare, without_harmless
from onebox.runs.reading.find import MISSING, Run, best_tag, split_of
from onebox.runs.reading.noise import SAME, band, judge, other_seeds

SCHEMA = 1
HEADLINE = ("joint_acc", "acc", "iou", "loc_acc", "loc_l1", "loss")
FOLDERS = ("src", "conf")  # what a run is made of
ENVIRONMENT = {
    "python": "{}",
    "system": "{}",
    "hardware": "hardware.{}",
    "environment": "${}",
    "packages": "{} (package)",
}
WHERE_AND_WHEN = {"host": "{}", "started": "{}", "seconds": "{}", "command": "{}"}
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
    code, data = _code(runs), _data(runs)
    environment = differing_facts([run.record for run in runs])
    metrics = _metrics(runs, outputs, data, everything=everything)
    is_same_config = not relevant and not environment and code["same"] and data["same"]
    facts = ("name", "fingerprint", "status", "started", "seconds", "seed")
    return {
        "schema": SCHEMA,
        "same": is_same_config and all(verdict == "same" for row in metrics for verdict in row["verdicts"]),
        "runs": [
            {"run": str(run.path), **{name: run.record.get(name) for name in facts}}
            | {"parent": run.parent or None, "nonfinite": run.nonfinite or None}
            for run in runs
        ],
        "config": [_change(item) for item in (changes if everything else relevant)],
        "hidden": 0 if everything else hidden,
        "code": code,
        "environment": environment
        + (differing_facts([run.record for run in runs], WHERE_AND_WHEN) if everything else []),
        "data": data,
        "metrics": metrics,
    }


def differing_facts(
    records: Sequence[Mapping[str, Any]],
    parts: Mapping[str, str] = ENVIRONMENT,
) -> list[Document]:
    """Facts of run.json that differ, by default those of the environment; a part that some run lacks is left out.

    Args:
        records: what run.json holds.
        parts: key of run.json -> how its facts are called: `{}` stands for the key itself, or where the key holds
            several facts, for the name of each.

    Returns:
        For each fact that differs: `what`, and `values`, one a run.
    """
    known = {part: name for part, name in parts.items() if all(record.get(part) is not None for record in records)}
    facts: list[Document] = [{} for _ in records]
    for found, record in zip(facts, records, strict=True):
        for part, name in known.items():
            held = record[part] if isinstance(record[part], Mapping) else {part: record[part]}
            found |= {name.format(key): value for key, value in held.items()}
    names = dict.fromkeys(name for found in facts for name in found)
    rows = [{"what": name, "values": [found.get(name) for found in facts]} for name in names]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


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
    """Whether the source is the same, and if not, what git knows of the first two."""
    gits: list[Mapping[str, Any]] = [run.record.get("git") or {} for run in runs]
    commits = [git.get("sha") for git in gits]
    sources = [run.record.get("source") for run in runs]
    found: Document = {
        "same": len(set(sources)) == 1,
        "sources": sources,
        "commits": commits,
        "dirty": [bool(git.get("dirty")) for git in gits],
        "between": [],
        "files": [],
        "uncommitted": [],
    }
    # A record may be somebody else's, and git takes options where it expects a commit.
    if found["same"] or not all(re.fullmatch("[0-9a-f]{7,64}", str(commit)) for commit in commits):
        return found
    from onebox.runs.provenance import patch

    first, second = map(str, commits[:2])
    if first != second:
        log = _git("log", "--oneline", "--no-decorate", "--left-right", "--end-of-options", f"{first}...{second}", "--")
        missing = "(not in the second) "
        found["between"] = [line[2:] for line in log if line[0] == ">"]
        found["between"] += [missing + line[2:] for line in log if line[0] == "<"]
        folders = [f":(top){folder}" for folder in FOLDERS]
        files = _git("diff", "--name-status", "--end-of-options", first, second, "--", *folders)
        found["files"] = [line.replace("\t", " ") for line in files]
    one, other = (_patched_files(patch(run.path) or "") for run in runs[:2])
    names = dict.fromkeys([*one, *other])
    found["uncommitted"] = [
        name for name in names if name.startswith((*FOLDERS, ".own/")) and one.get(name) != other.get(name)
    ]
    return found


def _patched_files(text: str) -> dict[str, str]:
    parts = re.split(r"^(?=diff --git )", text, flags=re.M)
    return {part.partition("\n")[0].rpartition(" b/")[2].strip('"'): part for part in parts if part.startswith("diff ")}


def _git(*arguments: str) -> list[str]:
    """Lines of git in the checkout of onebox; none when it does not know."""
    from onebox.runs.provenance import repository

    command = ["git", "-C", str(repository()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return done.stdout.splitlines() if done.returncode == 0 else []


def _data(runs: Sequence[Run]) -> Document:
    """Whether the runs saw the same samples and pixels; if not, what happened to which samples."""
    prints = [run.record.get("data_fingerprint") or {} for run in runs]
    weights = [run.record.get("weights_fingerprint") for run in runs]
    names = list(dict.fromkeys(name for one in prints for name in one))
    parts_of = [changed_parts(prints[0], one) for one in prints[1:]]  # runs of before know fewer parts
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
        from onebox.runs.results import compare_samples  # numpy

        found["samples"] = [compare_samples(runs[0].path, other.path) for other in runs[1:]]
    return found


def _metrics(runs: Sequence[Run], outputs: Path, data: Document, *, everything: bool) -> list[Document]:
    """The metrics that all runs have, with what other seeds say of their noise."""
    tags = [tag for tag in runs[0].tags if "/" in tag and all(tag in run.tags for run in runs)]
    if not everything:
        splits = {tag.partition("/")[0] for tag in tags}
        split = next((name for name in ("test", "best") if name in splits), "train")
        wanted = [*(f"{split}/{name}" for name in HEADLINE), best_tag(str(runs[0].config.get("monitor")))]
        tags = [tag for tag in dict.fromkeys(wanted) if tag in tags]
    groups = other_seeds(runs, outputs) if tags else []
    rows = []
    for tag in tags:
        values = [run.tags[tag] for run in runs]
        bands = [band(tag, group) for group in groups]
        verdicts: list[str] = [judge(tag, bands[0], other) for other in bands[1:]]
        for number, other in enumerate(runs[1:]):
            if verdicts[number] == "same" or _differ_by_seed(runs[0], other):
                verdicts[number] = "same" if abs(values[number + 1] - values[0]) <= SAME else "within noise"
            elif split_of(tag) in data["parts_of"][number]:
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
                "floor": runs[0].floors.get(tag.replace("test/", "floor/")),
            }
        )
    return rows


def _differ_by_seed(one: Run, other: Run) -> bool:
    """Whether two completed runs differ by nothing else than their seed, which is what noise is."""
    is_one_seed = one.record.get("seed") == other.record.get("seed")
    if is_one_seed or one.record.get("fingerprint_seedless") is None or changed_data(one, other):
        return False
    facts = [[run.record.get(key) for key in ("fingerprint_seedless", "source")] for run in (one, other)]
    return facts[0] == facts[1] and all(run.record.get("status") == "completed" for run in (one, other))
