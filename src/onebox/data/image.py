"""An image file as pixels. Whatever lies under the name, the answer is an array of known size or a `BadInput`."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from onebox.errors import BadInput

Image = NDArray[np.uint8]  # [H, W, 3], RGB

MAX_PIXELS = 100_000_000  # 300 MB decoded; the largest photograph of VOC has 0.25 million

JPEG = b"\xff\xd8"
HEADERS: Mapping[bytes, Callable[[io.BytesIO], ImageFile]] = {
    JPEG: JpegImageFile,
    b"\x89PNG": PngImageFile,
    b"BM": BmpImageFile,
    b"RIFF": WebPImageFile,
}


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
        raise BadInput(f"{path}: cannot be read ({error.strerror}); restore the file") from None
    size = image_size(data)
    if size is None:
        what = "not a whole JPEG, PNG, WebP or BMP image" if data else "an empty file"
        raise BadInput(f"{path}: not a readable image ({what}); restore the file or take it out of its list")
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadInput(
            f"{path}: {width}x{height} px are more than the {MAX_PIXELS // 10**6} million that are read; "
            "shrink the image (and its boxes), or take it out of its list"
        )
    if data.startswith(JPEG):
        data = data.rstrip(b"\0")  # OpenCV refuses a file that is cut short, but not when zeros stand in for the rest
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise BadInput(
            f"{path}: not a readable image (cut short or corrupt); restore the file or take it out of its list"
        )
    return image.astype(np.uint8, copy=False)


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height, px, as the header of an image file gives them.

    Pillow's own classes of the formats are called, as `PIL.Image.open` has a limit of its own that is only warned of.

    Args:
        data: the content of the file; its pixels are not looked at.

    Returns:
        None if this is no JPEG, PNG, WebP or BMP, or its header is broken.
    """
    for magic, header in HEADERS.items():
        if data.startswith(magic):
            try:
                with header(io.BytesIO(data)) as image:
                    return image.size
            except Exception:  # broken headers raise anything
                return None
    return None


def wrong_size(size: tuple[int, ...], annotated: tuple[int, ...]) -> str:
    """What to say of an image that is not as large as its annotation says; (height, width) in px."""
    return (
        f"the image is {size[1]}x{size[0]} px but its annotation says {annotated[1]}x{annotated[0]}; "
        "correct the <size> of the annotation (and its boxes), or take the image out of its list"
    )
