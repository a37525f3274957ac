"""A diff for people: on a terminal, or as Markdown."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]
Line = list[tuple[str, str]]  # pieces of text, each with a style of rich

MAX_VALUE = 70  # characters
MAX_NAMES = 8  # files, packages, samples; the rest is counted
COLOURS = ("red", "green", "blue", "magenta", "yellow", "cyan")
VERDICTS = {
    "better": "bold green",
    "worse": "bold red",
    "within noise": "yellow",
    "noise unknown": "dim",
    "other images": "dim",
    "same": "dim",
}
NOISE_HINT = "noise unknown: too few other seeds of these configs were found; run some to tell better from luck"


def show(document: Document, console: "Console", *, everything: bool) -> None:
    """Print to a terminal."""
    from rich.text import Text

    for line in [*_head(document), [], *_body(document, everything=everything), *_metrics(document)]:
        console.print(Text.assemble(*line), soft_wrap=True)


def markdown(document: Document, *, everything: bool) -> str:
    """The same as Markdown."""
    lines = []
    for line in [*_head(document), [], *_body(document, everything=everything)]:
        text = "".join(piece for piece, _ in line)
        indent = len(text) - len(text.lstrip())
        name, _, rest = text.strip().partition("  ")
        if indent:
            lines.append("  " * (indent // 2 - 1) + f"- `{name}` {rest.strip()}".rstrip())
        elif text:
            title, _, rest = text.partition(" ")
            lines += ["", f"**{title}** {rest.strip()}".rstrip(), ""]
    lines.append("")
    rows = _table(document)
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if rows:
        lines.insert(len(lines) - len(rows) + 1, "|" + "---|" * len(rows[0]))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip())


def _head(document: Document) -> Iterator[Line]:
    runs = document["runs"]
    width = max(len(run["run"]) for run in runs)
    for letter, colour, run in zip(ascii_uppercase, COLOURS * 5, runs, strict=False):
        seconds = f", {run['seconds']:.0f} s" if run["seconds"] is not None else ""
        facts = f"{run['fingerprint']}  {run['status']}{seconds}"
        yield [(f"{letter}  ", f"bold {colour}"), (f"{run['run']:{width}}  ", colour), (facts, "dim")]


def _config(document: Document) -> Iterator[Line]:
    changes = document["config"]
    if not changes:
        yield [("config", "bold"), ("       same after resolving", "")]
    else:
        yield [("config", "bold")]
    typed = [item for item in changes if item["kind"] == "choice" or item["origin"] != "default"]
    moved = [item for item in changes if item not in typed]
    width = max((len(item["key"]) for item in changes), default=0)
    for item in typed:
        yield from _change(item, 2, width)
    if moved:
        same_code = document["code"]["same"]
        why = (
            "from outside the command line (environment variables, other files)"
            if same_code
            else "defaults that moved with the code"
        )
        yield [(f"  {why}", "italic")]
        for item in moved:
            yield from _change(item, 4, width - 2)
    if document["hidden"]:
        keys = "1 key" if document["hidden"] == 1 else f"{document['hidden']} keys"
        yield [(f"  and {keys} that cannot change the result (--all)", "dim")]


def _change(item: Document, indent: int, width: int) -> Iterator[Line]:
    name = item["key"]
    style = "bold" if item["matters"] else "dim"
    yield [
        (" " * indent + f"{name:{width}}  ", style),
        *_values(item["values"]),
        *([] if item["matters"] else [("  (cannot change the result)", "dim")]),
    ]
    prefix = f"{name.replace('/', '.')}."
    follows = [{**inner, "key": inner["key"].removeprefix(prefix)} for inner in item["follows"]]
    inner_width = max((len(inner["key"]) for inner in follows), default=0)
    for inner in follows:
        for line in _change(inner, indent + 4, inner_width):
            yield [(text, "dim" if style == "bold" else style) for text, style in line]


def _values(values: Sequence[Any]) -> Line:
    line: Line = []
    for colour, value in zip(COLOURS * 5, values, strict=False):
        line += [(" → " if len(values) == 2 else "  |  ", "dim")] if line else []
        line.append((value_text(value), colour))
    return line


def value_text(value: Any) -> str:
    """A value as people write it; a long one is cut."""
    if isinstance(value, dict) and value.get("absent") is True:
        return "(absent)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _body(document: Document, *, everything: bool) -> Iterator[Line]:
    yield from _config(document)
    yield from _code(document["code"], everything=everything)
    rows = document["environment"]
    yield [("environment", "bold"), ("  same packages and hardware" if not rows else "", "")]
    names = [row["what"] for row in rows]
    for row in rows if everything else rows[: MAX_NAMES + 4]:
        yield [(f"  {row['what']:{max(map(len, names))}}  ", ""), *_values(row["values"])]
    if not everything and len(rows) > MAX_NAMES + 4:
        yield [(f"  and {len(rows) - MAX_NAMES - 4} more (--all)", "dim")]
    yield from _data(document["data"], everything=everything)


def _code(code: Document, *, everything: bool) -> Iterator[Line]:
    commits = " → ".join(
        f"{commit[:10]}{' + changes' if dirty else ''}" if commit else "not from git"
        for commit, dirty in zip(code["commits"], code["dirty"], strict=True)
    )
    if code["same"]:
        sha = code["commits"][0]
        one = len(set(code["commits"])) == 1 and sha and not any(code["dirty"])
        yield [("code", "bold"), (f"         same source ({sha[:10] if one else commits})", "")]
        return
    yield [("code", "bold"), (f"         {commits}", "")]
    for title, names in (("commit", code["between"]), ("file", code["files"]), ("uncommitted", code["uncommitted"])):
        shown = names if everything else names[:MAX_NAMES]
        for name in shown:
            yield [(f"  {title:11} ", "dim"), (name, "")]
        if len(names) > len(shown):
            yield [(f"  and {len(names) - len(shown)} more (--all)", "dim")]


def _data(data: Document, *, everything: bool) -> Iterator[Line]:
    if not data["known"]:
        yield [("data", "bold"), ("         not known: a run ended before its data were read", "")]
        return
    if data["same"]:
        yield [("data", "bold"), ("         same images, boxes, labels and pixels", "")]
        return
    yield [("data", "bold"), (f"         other {', '.join(data['parts']) or 'pretrained weights'}", "")]
    for number, found in enumerate(data["samples"]):
        other = f" (A and {ascii_uppercase[number + 1]})" if len(data["samples"]) > 1 else ""
        if found is None:
            yield [(f"  not known which samples{other}: a run keeps no table of them", "dim")]
            continue
        for split, changes in found.items():
            for what, ids in changes.items():
                shown = ids if everything else ids[:MAX_NAMES]
                more = f" … {len(ids) - len(shown):,} more" if len(ids) > len(shown) else ""
                count = f"{len(ids):,} " if ids != ["all"] else ""
                yield [(f"  {split:5} {count}{what}{other}: ", ""), (", ".join(shown) + more, "dim")]


def _metrics(document: Document) -> Iterator[Line]:
    rows = _table(document)
    if not rows:
        yield [("metrics", "bold"), ("      none that all of the runs have", "")]
        return
    yield [("metrics", "bold")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    for number, row in enumerate(rows):
        verdict = document["metrics"][number - 1]["verdicts"][0] if number else "same"
        cells = [
            (
                f"{text:<{width}}  " if column in (0, last) else f"{text:>{width}}  ",
                VERDICTS[verdict] if column == last else "",
            )
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield [("  ", ""), *([(text, "dim") for text, _ in cells] if number == 0 else cells)]
    if any("noise unknown" in row["verdicts"] for row in document["metrics"]):
        yield [(f"  {NOISE_HINT}", "dim")]


def _table(document: Document) -> list[list[str]]:
    """The metrics as rows of text, the header first; empty when there are none."""
    rows = document["metrics"]
    if not rows:
        return []
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
            columns[f"{letter} over seeds"] = [_over_seeds(row, number) for row in rows]
    columns["verdict"] = [
        ", ".join(
            f"{letter} {text}" if len(letters) > 2 else text
            for letter, text in zip(letters[1:], row["verdicts"], strict=True)
        )
        for row in rows
    ]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _over_seeds(row: Document, number: int) -> str:
    mean, sd, seeds = row["means"][number], row["sds"][number], row["seeds"][number]
    return "one seed" if sd is None else f"{mean:.4f} ± {sd:.4f} ({seeds})"
