"""An image file as pixels. Whatever lies under the name, the answer is an array of known size or a `BadInput`."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from onebox.errors import BadInput

Image = NDArray[np.uint8]  # [H, W, 3], RGB

MAX_PIXELS = 100_000_000  # 300 MB decoded; the largest photograph of VOC has 0.25 million

# Start-of-frame markers of JPEG (ITU-T T.81, table B.1): C0 to CF without DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers that no length follows
_END, _SCAN = 0xD9, 0xDA
_JPEG = b"\xff\xd8"
# First bytes of a file, and what it ends with when it is whole: image data has no such bytes.
_ENDS = {_JPEG: b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
_HEAD = 4096  # bytes; most headers are shorter


def read_image(path: str | Path) -> Image:
    """Decode an image file, without the turn that its EXIF data may ask for: VOC boxes are given in the pixels as they
    are stored.

    The size in the header is looked at first, as a file of a few hundred bytes can ask for gigabytes.

    Args:
        path: a JPEG, PNG, WebP or BMP file, whatever its suffix.

    Returns:
        [H, W, 3] uint8, RGB; grey and CMYK are converted.

    Raises:
        BadInput: the file cannot be read, is no such image, is cut short, or has more than `MAX_PIXELS`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {_no_access(error)}") from None
    image = _decode(data)
    if isinstance(image, str):
        raise BadInput(f"{path}: {image}")
    return image


def check_file(item: tuple[str, int, int]) -> tuple[tuple[int, int], str | None]:
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
            return (state.st_size, state.st_mtime_ns), _file_problem(file, height, width)
    except OSError as error:
        return (-1, -1), _no_access(error)


def wrong_size(height: int, width: int, annotated_height: int, annotated_width: int) -> str:
    """What to say of an image that is not as large as its annotation says; px."""
    return (
        f"the image is {width}x{height} px but its annotation says {annotated_width}x{annotated_height}; "
        "correct the <size> of the annotation (and its boxes), or take the image out of its list"
    )


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height, px, as the header of an image file gives them.

    Args:
        data: the content of the file; its pixels are not looked at.

    Returns:
        None if this is no JPEG, PNG, WebP or BMP, or its header is broken.
    """
    if data.startswith(_JPEG):
        return _jpeg_size(data)
    if len(data) < 30:
        return None
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        return _pair(">II", data, 16)
    if data.startswith(b"BM"):
        width, height = _pair("<HH" if data[14] == 12 else "<ii", data, 18)
        return abs(width), abs(height)  # a negative height: rows run downwards
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def _file_problem(file: BinaryIO, height: int, width: int) -> str | None:
    data = file.read(_HEAD)
    size = image_size(data)
    if size is None:
        data += file.read()
        size = image_size(data)
    problem = _header_problem(data, size)
    if problem is not None:
        return problem
    if size != (width, height) and size is not None:
        return wrong_size(size[1], size[0], height, width)
    end = _ENDS.get(data[:2])
    if end is not None:
        file.seek(-len(end), os.SEEK_END)
        if file.read() == end:
            return None
    file.seek(0)
    image = _decode(file.read())  # bytes may follow the end
    return image if isinstance(image, str) else None


def _decode(data: bytes) -> Image | str:
    """The pixels in a file's content, or what is wrong with it."""
    problem = _header_problem(data, image_size(data))
    if problem is not None:
        return problem
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = None if _is_cut_short(data) else cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        return "not a readable image (cut short or corrupt); restore the file or take it out of its list"
    return image.astype(np.uint8, copy=False)


def _header_problem(data: bytes, size: tuple[int, int] | None) -> str | None:
    if size is None:
        what = "not a JPEG, PNG, WebP or BMP image" if data else "an empty file"
        return f"not a readable image ({what}); restore the file or take it out of its list"
    width, height = size
    if width * height > MAX_PIXELS:
        return (
            f"{width}x{height} px are more than the {MAX_PIXELS // 10**6} million that are read; "
            "shrink the image (and its boxes), or take it out of its list"
        )
    return None


def _no_access(error: OSError) -> str:
    return f"cannot be read ({error.strerror}); restore the file"


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker up to the first pixels, and where it is; what lies between two is skipped, as by libjpeg."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 8:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0 or marker in _BARE:
            at += 2
        else:
            yield marker, at
            if marker in (_END, _SCAN):
                return
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    for marker, at in _jpeg_markers(data):
        if marker in _FRAMES:
            height, width = _pair(">HH", data, at + 5)
            return width, height
    return None


def _is_cut_short(data: bytes) -> bool:
    """Whether a JPEG has no end: OpenCV refuses that, but not when zeros stand in for what is missing."""
    if not data.startswith(_JPEG) or data.endswith(b"\xff\xd9"):
        return False
    return not any(marker == _SCAN and b"\xff\xd9" in data[at:] for marker, at in _jpeg_markers(data))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The three kinds of RFC 9649, sections 2.5 to 2.7."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = _pair("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF  # the upper bits ask for scaling
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    return None


def _pair(layout: str, data: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, data, at)
    return first, second
