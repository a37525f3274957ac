"""A diff for people: on a terminal, or as Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from onebox.errors import Line, printable

Document = Mapping[str, Any]

MAX_VALUE = 70  # characters
MAX_ROWS = 10  # files, packages, samples; the rest is counted
COLOURS = ("red", "green", "blue", "magenta", "yellow", "cyan")
VERDICTS = {"better": "bold green", "worse": "bold red", "within noise": "yellow"}
NOISE_HINT = "noise unknown: too few other seeds of these configs were found; run more to tell an improvement from luck"


def markdown(document: Document, *, everything: bool) -> str:
    """A diff as a block of text in Markdown."""
    texts = ("".join(text for text, _ in line).rstrip() for line in lines(document, everything=everything))
    return "\n".join(["```text", *map(printable, texts), "```"])


def value_text(value: Any) -> str:
    """A value as people write it; a long one is cut."""
    if isinstance(value, dict) and value.get("absent") is True:
        return "(absent)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def lines(document: Document, *, everything: bool) -> Iterator[Line]:
    """A diff for people, line by line."""
    most = None if everything else MAX_ROWS
    width = max(len(run["run"]) for run in document["runs"])
    for letter, colour, run in zip(ascii_uppercase, COLOURS * 5, document["runs"], strict=False):
        seconds = f", {run['seconds']:.0f} s" if run["seconds"] is not None else ""
        facts = f"{run['fingerprint']}  {run['status']}{seconds}"
        yield [(f"{letter}  ", f"bold {colour}"), (f"{run['run']:{width}}  ", colour), (facts, "dim")]
        for what, style in (("parent", "dim"), ("nonfinite", "red")):
            if run[what]:
                yield [(f"   {run[what]}", style)]
    yield []
    yield from _config(document)
    yield from _code(document["code"], most)
    rows = document["environment"]
    yield _title("environment", "" if rows else "same packages and hardware")
    width = max((len(row["what"]) for row in rows), default=0)
    yield from _cut([[(f"  {row['what']:{width}}  ", ""), *_values(row["values"])] for row in rows], most)
    yield from _data(document["data"], most)
    yield from _metrics(document)


def _title(name: str, text: str = "") -> Line:
    return [(name, "bold"), (f"{'':{13 - len(name)}}{text}" if text else "", "")]


def _cut(lines: Sequence[Line], most: int | None) -> list[Line]:
    hidden = len(lines) - len(lines[:most])
    return [*lines[:most], *([[(f"  and {hidden} more (--all)", "dim")]] if hidden else [])]


def _config(document: Document) -> Iterator[Line]:
    changes = document["config"]
    yield _title("config", "" if changes else "same after resolving")
    typed = [item for item in changes if item["kind"] == "choice" or item["origin"] != "default"]
    moved = [item for item in changes if item not in typed]
    width = max((len(item["key"]) for item in changes), default=0)
    for item in typed:
        yield from _change(item, 2, width)
    if moved:
        is_outside = document["code"]["same"]
        outside = "from outside the command line (environment variables, other files)"
        yield [(f"  {outside if is_outside else 'defaults that changed with the code'}", "italic")]
        for item in moved:
            yield from _change(item, 4, width - 2)
    if document["hidden"]:
        keys = "1 key" if document["hidden"] == 1 else f"{document['hidden']} keys"
        yield [(f"  and {keys} that cannot change the result (--all)", "dim")]


def _change(item: Document, indent: int, width: int, style: str = "bold") -> Iterator[Line]:
    style = style if item["matters"] else "dim"
    harmless = [] if item["matters"] else [("  (cannot change the result)", "dim")]
    yield [(f"{'':{indent}}{item['key']:{width}}  ", style), *_values(item["values"]), *harmless]
    prefix = f"{item['key'].replace('/', '.')}."
    follows = [{**inner, "key": inner["key"].removeprefix(prefix)} for inner in item["follows"]]
    inner_width = max((len(inner["key"]) for inner in follows), default=0)
    for inner in follows:
        yield from _change(inner, indent + 4, inner_width, "dim")


def _values(values: Sequence[Any]) -> Line:
    line: Line = []
    for colour, value in zip(COLOURS * 5, values, strict=False):
        line += [(" → " if len(values) == 2 else "  |  ", "dim")] if line else []
        line.append((value_text(value), colour))
    return line


def _code(code: Document, most: int | None) -> Iterator[Line]:
    texts = [
        f"{commit[:10]}{' + changes' * dirty}" if commit else "not from git"
        for commit, dirty in zip(code["commits"], code["dirty"], strict=True)
    ]
    commits = texts[0] if len(set(code["commits"])) == 1 and not any(code["dirty"]) else " → ".join(texts)
    yield _title("code", f"same source ({commits})" if code["same"] else commits)
    for title, key in (("commit", "between"), ("file", "files"), ("uncommitted", "uncommitted")):
        yield from _cut([[(f"  {title:11} ", "dim"), (name, "")] for name in code[key]], most)


def _data(data: Document, most: int | None) -> Iterator[Line]:
    text = f"other {', '.join(data['parts']) or 'pretrained weights'}"
    if not data["known"]:
        text = "not known: a run ended before its data were read"
    elif data["same"]:
        text = "same images, boxes, labels and pixels"
    yield _title("data", text)
    for letter, found in zip(ascii_uppercase[1:], data["samples"] if data["known"] else [], strict=False):
        other = f" (A and {letter})" if len(data["samples"]) > 1 else ""
        if found is None:
            yield [(f"  not known which samples{other}: a run keeps no table of them", "dim")]
        for split, changes in (found or {}).items():
            for what, ids in changes.items():
                hidden = len(ids) - len(ids[:most])
                count = f"{len(ids):,} " if ids != ["all"] else ""
                more = f" … {hidden:,} more" if hidden else ""
                yield [(f"  {split:5} {count}{what}{other}: ", ""), (", ".join(ids[:most]) + more, "dim")]


def _metrics(document: Document) -> Iterator[Line]:
    metrics = document["metrics"]
    yield _title("metrics", "" if metrics else "none that all runs have")
    rows = _table(document) if metrics else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        first, *middle, last = zip(row, widths, strict=True)
        cells = [f"  {first[0]:<{first[1]}}", *(f"{text:>{width}}" for text, width in middle), ""]
        style = VERDICTS.get(metrics[number - 1]["verdicts"][0], "dim") if number else "dim"
        yield [("  ".join(cells), "" if number else "dim"), (last[0], style)]
    if any("noise unknown" in row["verdicts"] for row in metrics):
        yield [(f"  {NOISE_HINT}", "dim")]


def _table(document: Document) -> list[list[str]]:
    """The metrics as rows of text, the header first."""
    rows = document["metrics"]
    letters = ascii_uppercase[: len(document["runs"])]
    columns: dict[str, list[str]] = {"": [row["metric"] for row in rows]}
    if any(row["floor"] is not None for row in rows):
        columns["floor"] = ["" if row["floor"] is None else f"{row['floor']:.3f}" for row in rows]
    for number, letter in enumerate(letters):
        columns[letter] = [f"{row['values'][number]:.4f}" for row in rows]
    if len(letters) == 2:
        columns["B - A"] = [f"{row['differences'][0]:+.4f}" for row in rows]
    for number, letter in enumerate(letters):
        if any(row["seeds"][number] > 1 for row in rows):
            columns[f"{letter} over seeds"] = [
                "one seed"
                if row["sds"][number] is None
                else f"{row['means'][number]:.4f} ± {row['sds'][number]:.4f} ({row['seeds'][number]})"
                for row in rows
            ]
    verdicts = [zip(letters[1:], row["verdicts"], strict=True) for row in rows]
    columns["verdict"] = [", ".join(f"{letter} {text}" for letter, text in row) for row in verdicts]
    if len(letters) == 2:
        columns["verdict"] = [row["verdicts"][0] for row in rows]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]
