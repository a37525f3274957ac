"""Whether an image file is whole, without decoding it."""

import os
from typing import IO

from PIL import Image

# What a whole file ends with; image data has no such bytes, so a cut file does not end so. MPO is several JPEGs.
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

UNREADABLE = "not a readable image; restore the file or take it out of its list"


def check_image(item: tuple[str, int, int]) -> tuple[tuple[int, int], str | None]:
    """Look at the head and the end of an image file; decode it only when the end is not as it should be.

    Args:
        item: the file, and the height and width in px that it should have.

    Returns:
        The file's size in bytes and time of change in ns (-1 when it could not be opened); what is wrong with it, or
        None.
    """
    path, height, width = item
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            stamp = (state.st_size, state.st_mtime_ns)
            return stamp, _problem(file, height, width)
    except OSError as error:
        return (-1, -1), f"cannot be read ({error.strerror}); restore the file"


def wrong_size(height: int, width: int, annotated_height: int, annotated_width: int) -> str:
    """What to say of an image that is not as large as its annotation says; px."""
    return (
        f"the image is {width}x{height} px but its annotation says {annotated_width}x{annotated_height}; "
        "correct the <size> of the annotation (and its boxes), or take the image out of its list"
    )


def _problem(file: IO[bytes], height: int, width: int) -> str | None:
    try:
        image = Image.open(file, formats=FORMATS)
    except Exception:  # Pillow raises anything on a broken head
        return UNREADABLE
    if image.size != (width, height):
        return wrong_size(image.height, image.width, height, width)
    end = ENDS.get(image.format or "")
    if end is not None:
        file.seek(-len(end), os.SEEK_END)
        if file.read() == end:
            return None
        file.seek(0)
    try:
        image.load()  # bytes may follow the end; what is cut off raises
    except Exception as error:
        return f"the image is cut off or damaged ({error}); restore the file or take it out of its list"
    return None
