"""Text as people read it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Line = list[tuple[str, str]]  # pieces of text, each with a style of rich


def print_lines(lines: Iterable[Line], console: "Console | None" = None) -> None:
    """Print styled lines, which a terminal breaks where it has to."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    for line in lines:
        console.print(Text.assemble(*((printable(text), style) for text, style in line)), soft_wrap=True)


def printable(text: str) -> str:
    """`text` on one line, without characters that would steer a terminal: each becomes U+FFFD, a line break a space."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char in "\t\n\r" else "\ufffd" for char in text)


def duration(seconds: float) -> str:
    """A duration, as short as it makes sense: `2.5 s`, `48 s`, `1:05 min`, `2:01 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
