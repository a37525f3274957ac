"""What is wrong with one image and its annotation: all of it, where the readers of training stop at the first."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import PIL.Image

from onebox.data.image import read_image
from onebox.data.voc import VocObject, VocTree, edges, is_inside, read_parts, wrong_box
from onebox.errors import BadInput

SUFFIX_KIND = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
MODES = {"L": "grey", "1": "black and white", "CMYK": "CMYK", "YCCK": "CMYK"}
ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        level: `error`: training stops at it, or what it measures is false; `warning`: training does without.
        kind: what sort of thing it is.
        file: what to look at, relative to the checked folder.
        message: what is wrong.
        remedy: what to do.
    """

    level: Literal["error", "warning"]
    kind: str
    file: Path
    message: str
    remedy: str


@dataclass(frozen=True)
class Checked:
    """One image of a tree; `size` (width, height) in px and `digest` of the pixels are None where unreadable."""

    tree: VocTree
    image_id: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    zero_based: int  # boxes that are right only when counted from 0
    digest: bytes | None
    problems: tuple[Problem, ...]


def check_image(
    tree: VocTree, image_id: str, *, box_origin: int, classes: Sequence[str] | None, listed: bool
) -> Checked:
    """Read one image and its annotation with the readers of training.

    Args:
        tree: where it is.
        image_id: its name there.
        box_origin: see `onebox.data.voc.edges`.
        classes: names that objects may have; None: any.
        listed: whether a list names it; if not, training comes to it only by the list `*`, and errors are warnings.
    """
    path = tree.annotation_path(image_id)
    size, objects, zero_based, complaints = _read_all(path, box_origin)
    kind = "wrong annotation" if os.path.exists(path) else "missing annotation"
    problems = [as_problem(text, "wrong box" if text.startswith("box ") else kind, path) for text in complaints]
    for name in dict.fromkeys(item.name for item in objects):
        if classes is not None and name not in classes:
            remedy = "correct the name, or add it to data.classes (here: --classes)"
            problems.append(Problem("error", "unknown class", path, f"class '{name}' is not known", remedy))
    digest = None
    try:
        path = tree.image_path(image_id)
    except BadInput:
        path = Path(tree.image_file(image_id))
        remedy = "add it, or take its id out of the list"
        problems.append(Problem("error", "missing image", path, "no such image", remedy))
    else:
        try:
            pixels = read_image(path)
            digest = hashlib.sha256(b"%d %d " % pixels.shape[:2] + pixels.tobytes()).digest()
            problems += _look_at(path, (pixels.shape[1], pixels.shape[0]), size)
        except BadInput as error:
            problems.append(as_problem(str(error), "unreadable image", path))
    if not listed:
        problems = [
            replace(problem, level="warning", message=f"{problem.message} (in no list)") for problem in problems
        ]
    return Checked(tree, image_id, size, tuple(objects), zero_based, digest, tuple(problems))


def _read_all(path: Path, box_origin: int) -> tuple[tuple[int, int] | None, list[VocObject], int, list[str]]:
    """Size, objects, how many boxes are right only from 0, and each complaint that the reader has."""
    width, height, raw, problems = read_parts(str(path))
    objects, zero_based = [], 0
    if not width or not height:  # no box can be judged
        raw = []
    for name, difficult, *corners in raw:
        box_px = edges(corners, box_origin)
        if is_inside(*box_px, width, height):
            objects.append(VocObject(name, box_px, difficult))
        else:
            problems.append(wrong_box(corners, width, height))
            zero_based += bool(is_inside(*edges(corners, 0), width, height))
    return (width, height) if width and height else None, objects, zero_based, problems


def _look_at(path: Path, size: tuple[int, int], annotated: tuple[int, int] | None) -> Iterator[Problem]:
    """What a readable image has that surprises people; sizes are (width, height) in px."""
    try:
        with PIL.Image.open(path) as image:
            kind, mode, turn = image.format or "", image.mode, image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data, of any kind: training does not look at them
        kind, mode, turn = SUFFIX_KIND[path.suffix.lower()], "RGB", 1
    if annotated is not None and annotated != size:
        says = f"the image is {size[0]}x{size[1]} px but its annotation says {annotated[0]}x{annotated[1]}"
        if turn in (5, 6, 7, 8) and annotated == size[::-1]:
            says += f", which is how its EXIF data turn it (orientation {turn})"
            remedy = "turn the pixels themselves (exiftran -ai, or mogrify -auto-orient)"
            yield Problem("error", "EXIF turn", path, says, remedy)
        else:
            remedy = "correct <size> (and the boxes), or take the image out of its list"
            yield Problem("error", "size mismatch", path, says, remedy)
    elif turn in range(2, 9):
        says = f"its EXIF data ask for a turn (orientation {turn}), which training does not do"
        remedy = "look at its boxes in --montage; if they lie wrong, turn the pixels themselves (exiftran -ai)"
        yield Problem("warning", "EXIF turn", path, says, remedy)
    if kind not in (SUFFIX_KIND[path.suffix.lower()], "MPO"):  # MPO: a JPEG with a second picture behind it
        says = f"{kind} content under a {path.suffix} name"
        yield Problem("warning", "other format", path, says, "rename or convert it; training reads it as it is")
    if mode in MODES:
        says = f"{MODES[mode]} pixels"
        yield Problem("warning", "not RGB", path, says, "nothing, if you expect it: training reads it as RGB")


def as_problem(complaint: str, kind: str, file: Path) -> Problem:
    """A reader's complaint, `<what>; <remedy>` with or without `<file>: ` before it, in its parts."""
    what, _, remedy = complaint.rpartition("; ")
    return Problem("error", kind, file, what.removeprefix(f"{file}: "), remedy)
