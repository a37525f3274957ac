"""An explanation for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from onebox.runs.diff_view import Line, value_text
from onebox.runs.noise import lower_is_better

Document = Mapping[str, Any]
MAX_METRICS = 4


def lines(document: Document) -> Iterator[Line]:
    """What to print, line by line, as pieces of text with styles of rich."""
    tags = document["metrics"][:MAX_METRICS]
    left = (
        f", {document['left_out']} left out (not completed, or without these metrics)" if document["left_out"] else ""
    )
    yield [(f"{document['runs']} runs", "bold"), (left, "")]
    noise = document["noise"]
    if noise:
        sds = ", ".join(f"{tag} {noise['sd'][tag]:.4f}" for tag in tags)
        yield [(f"the seed alone moves {sds} (standard deviation, {noise['runs']} runs)", "dim")]
    else:
        yield [("no two runs differ by their seed alone, so noise is not known", "dim")]
    yield []
    rows = list(_rows(document, tags))
    widths = [max(len(row[column][0]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for number, row in enumerate(rows):
        cells = [
            (f"{text:<{width}}  " if column < 2 else f"{text:>{width}}  ", "dim" if number == 0 else style)
            for column, ((text, style), width) in enumerate(zip(row, widths, strict=True))
        ]
        yield cells
    if rows:
        yield [("mean effect ± 95 % interval over pairs of runs that differ in this alone", "dim")]
    else:
        yield [("no two runs differ in exactly one key", "yellow")]
    for row in document["factors"]:
        if row["trend"]:
            yield _trend(row, tags[0])
    for item in document["never_alone"]:
        others = ", ".join(item["together_with"]) or "nothing else that is known"
        yield [("never varied alone: ", "yellow"), (item["key"], "bold"), (f" (always together with {others})", "")]
    importance = document["importance"]
    if importance["shares"] is None:
        yield [(f"no fANOVA importance: {importance['why']}", "dim")]
    else:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in importance["shares"].items())
        yield [(f"fANOVA importance for {importance['metric']}: ", ""), (shares, "bold")]


def _rows(document: Document, tags: list[str]) -> Iterator[list[tuple[str, str]]]:
    if document["factors"]:
        yield [("key", ""), ("change", ""), ("pairs", ""), *((tag, "") for tag in tags)]
    for row in document["factors"]:
        name = row["key"]
        for effect in row["effects"]:
            change = f"{value_text(effect['from'])} → {value_text(effect['to'])}"
            yield [(name, "bold"), (change, ""), (str(effect["pairs"]), ""), *(_cell(effect, tag) for tag in tags)]
            name = ""


def _cell(effect: Document, tag: str) -> tuple[str, str]:
    found = effect["metrics"][tag]
    if found["interval"] is None:
        return f"{found['mean']:+.4f} (one pair)", ""
    sure = abs(found["mean"]) > found["interval"]
    good = (found["mean"] > 0) != lower_is_better(tag)
    return f"{found['mean']:+.4f} ± {found['interval']:.4f}", ("green" if good else "red") if sure else "dim"


def _trend(row: Document, tag: str) -> Line:
    trend = row["trend"]
    found = trend["metrics"][tag]
    lines = f"{trend['lines']} line{'s' if trend['lines'] > 1 else ''} of runs"
    slope, rank = f"{found['slope']:+.4f} per {trend['per']}", f"{found['rank_correlation']:+.2f}"
    return [("trend of ", ""), (row["key"], "bold"), (f": {tag} {slope}, rank correlation {rank} over {lines}", "")]
