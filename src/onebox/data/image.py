"""Image files: their pixels, and what is known of them without decoding, remembered until a file changes.

Whatever lies under a name, the pixels are an array of known size or a `BadInput`.
"""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from onebox.data.processes import thread_map
from onebox.errors import BadInput
from onebox.files import alone, npz_columns, read_bytes, read_cached, write_npz

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]  # [H, W, 3], RGB

MAX_PIXELS = 100_000_000  # 300 MB decoded; the largest photograph of VOC has 0.25 million
MAX_BYTES = 1 << 30  # of a file: as many pixels of 16 bits in four channels, not compressed
ORIENTATION = 0x0112  # the EXIF tag
DEEP = ("I", "F")  # how Pillow's modes of more than 8 bits a channel begin
FORMATS = "JPEG, PNG, WebP, BMP or TIFF"
DIGEST_BYTES = 16
FACT = np.dtype([("file", f"V{DIGEST_BYTES}"), ("digest", f"V{DIGEST_BYTES}"), ("length", "<i8"), ("header", "<i4", 4)])

JPEG = b"\xff\xd8"
HEADERS: Mapping[bytes, Callable[[io.BytesIO], ImageFile]] = {
    JPEG: JpegImageFile,
    b"\x89PNG": PngImageFile,
    b"BM": BmpImageFile,
    b"RIFF": WebPImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
}


class Header(NamedTuple):
    """What the header of an image file says: size in px as stored, EXIF orientation from 1 (as it is) to 8, and whether
    it has more than 8 bits a channel.
    """

    width: int
    height: int
    turn: int = 1
    is_deep: bool = False

    @property
    def upright(self) -> "Header":
        """As the EXIF data want it to be looked at."""
        return Header(self.height, self.width, 1, self.is_deep) if self.turn >= 5 else self._replace(turn=1)


def read_image(path: str | Path, *, upright: bool = False) -> Image:
    """Decode an image file.

    The size in the header is looked at first, as a file of a few hundred bytes can ask for gigabytes.

    Args:
        path: a JPEG, PNG, WebP, BMP or TIFF file, whatever its suffix.
        upright: whether to turn it as its EXIF data ask; VOC's boxes are given in the pixels as they are stored.

    Returns:
        [H, W, 3] uint8, RGB; grey and CMYK are converted, of more than 8 bits the upper ones are kept.

    Raises:
        BadInput: the file cannot be read, is no such image, is cut short, or has more than `MAX_PIXELS`.
    """
    try:
        data = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); restore the file") from None
    header = read_header(data)
    if isinstance(header, str):
        raise BadInput(f"{path}: {header}")
    if data.startswith(JPEG):
        data = data.rstrip(b"\0")  # OpenCV refuses a file that is cut short, but not when zeros stand in for the rest
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    shown = header.upright if upright else header
    # OpenCV may follow another of several sizes in a file than Pillow does; it refuses more than ours, too.
    if image is None or image.shape[:2] != (shown.height, shown.width):
        raise BadInput(
            f"{path}: not a readable image (cut short or corrupt); restore the file or take it out of its list"
        )
    return image.astype(np.uint8, copy=False)


def read_header(data: bytes) -> Header | str:
    """What the header of an image file says, or what is wrong with it and what to do.

    Pillow's own classes of the formats are called, as `PIL.Image.open` has a limit of its own that is only warned of.
    """
    header = next((header for magic, header in HEADERS.items() if data.startswith(magic)), None)
    what = "an empty file" if not data else f"not a whole {FORMATS} image"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        what = "a GIF, which may be many pictures"
    found = None
    if header is not None:
        try:
            with header(io.BytesIO(data)) as image:
                # A TIFF's own orientation is part of the format: every decoder turns it, and Pillow gives that size.
                turn = image.getexif().get(ORIENTATION, 1) if "exif" in image.info and image.format != "TIFF" else 1
                found = Header(*image.size, turn if turn in range(1, 9) else 1, image.mode.startswith(DEEP))
        except Exception:  # broken headers raise anything
            found = None
    if found is None:
        instead = "restore or convert the file, take it out of its list, or set data.on_error=skip"
        return f"not a readable image ({what}); {instead}"
    if found.width * found.height > MAX_PIXELS:
        return (
            f"{found.width}x{found.height} px are more than the limit of {MAX_PIXELS // 10**6} million; "
            "shrink the image (and its boxes), or take it out of its list"
        )
    return found


class Picture(NamedTuple):
    """An image file: hash of its content, 16 bytes, and its length; what its header says, or what is wrong with it."""

    digest: bytes
    length: int
    header: Header | str


def read_pictures(files: Sequence[str], path: Path) -> list[Picture]:
    """Look at image files; those that `path` remembers, and that have not changed since, are not opened.

    A folder that cannot be written costs a warning and the time to look again.
    """
    keys = list(map(_key, files))
    facts = _load(path)
    row_of = {key: row for row, key in enumerate(facts["file"].tolist())}
    new = [number for number, key in enumerate(keys) if key not in row_of]
    looked: dict[int, Picture] = {}
    if new:
        pictures = thread_map(_look, [files[number] for number in new], description="looking at images")
        looked = dict(zip(new, pictures, strict=True))
        sound = {keys[number]: picture for number, picture in looked.items() if not isinstance(picture.header, str)}
        added = [(key, *picture) for key, picture in sound.items() if key]
        _save(path, np.concatenate([facts, np.array(added, FACT)]))
    digests, lengths, headers = (facts[name].tolist() for name in ("digest", "length", "header"))

    def known(row: int) -> Picture:
        width, height, turn, deep = headers[row]
        return Picture(digests[row], lengths[row], Header(width, height, turn, bool(deep)))

    return [looked[number] if number in looked else known(row_of[key]) for number, key in enumerate(keys)]


def _key(file: str) -> bytes:
    """A hash of the file's path, size, times and inode: with another content at least one of them is another."""
    try:
        state = os.stat(file)
    except OSError:
        return b""  # is said when it is read
    stamp = (file, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)
    return hashlib.blake2b(repr(stamp).encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).digest()


def _look(file: str) -> Picture:
    try:
        data = read_bytes(file, MAX_BYTES)
    except OSError as error:
        return Picture(b"", 0, f"cannot be read ({error.strerror}); restore the file")
    return Picture(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest(), len(data), read_header(data))


def _load(path: Path) -> NDArray[np.void]:
    def parse(file: IO[bytes]) -> NDArray[np.void]:
        facts = npz_columns(file)["pictures"]
        if facts.dtype != FACT:
            raise ValueError("it is of another version")
        return facts

    facts = read_cached(path, parse)
    return np.zeros(0, FACT) if facts is None else facts


def _save(path: Path, facts: NDArray[np.void]) -> None:
    try:
        with alone(path.with_suffix(".lock"), waiting=f"Waiting for another process that writes {path}"):
            write_npz(path, pictures=facts)
    except (OSError, NotImplementedError) as error:  # filelock raises the second where a folder cannot be locked
        log.warning("%s: cannot be kept (%s); free some space or set data.cache_dir", path, error)
