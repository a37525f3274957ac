"""Values as people read them."""


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
