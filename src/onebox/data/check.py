"""What is in VOC trees and what is wrong with them: all of it, where training stops at the first.

It reads with the readers of training, so what is called right here is accepted there.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import PIL.Image

from onebox.data.image import read_image
from onebox.data.processes import num_cores, progress
from onebox.data.voc import VocObject, VocTree, edges, is_inside, read_parts, wrong_box
from onebox.errors import BadInput
from onebox.errors import check as require

SPLITS = ("train", "val", "test")  # lists that must not share an image
ZERO_SHARE = 0.01  # of the boxes: when more count from 0, the tool that wrote them does; fewer are slips
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
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


@dataclass(frozen=True)
class Survey:
    """What a check found: each image once, in the order of trees and ids; lists of ids by `TREE/LIST`."""

    root: Path
    box_origin: int
    images: tuple[Checked, ...]
    lists: dict[str, tuple[Checked, ...]]
    problems: tuple[Problem, ...]

    @property
    def has_errors(self) -> bool:
        """Whether training would stop, or measure something false."""
        return any(problem.level == "error" for problem in self.problems)


def check(root: Path, *, box_origin: int, classes: Sequence[str] | None, voc_classes: Sequence[str]) -> Survey:
    """Read every image and annotation below `root`.

    Args:
        root: a tree, or a folder of trees.
        box_origin: see `onebox.data.voc.edges`.
        classes: names that objects may have; None: those of VOC in trees called VOC..., anything in others.
        voc_classes: the names of VOC.

    Raises:
        BadInput: there is no tree, or nothing in it.
    """
    lists: dict[str, tuple[VocTree, list[str]]] = {}
    problems: list[Problem] = []
    jobs = []
    trees = _find_trees(root)
    for tree in trees:
        known = classes if classes is not None or not tree.folder.resolve().name.startswith("VOC") else voc_classes
        listed, wrong = _read_lists(tree, known or voc_classes)
        problems += wrong
        for paths in tree.ambiguous.values():
            message = f"one id, several images ({', '.join(path.name for path in paths)})"
            problems.append(Problem("error", "ambiguous id", paths[0], message, "remove or rename all but one"))
        prefix = "" if tree.folder == root else f"{tree.folder.name}/"
        lists |= {prefix + name: (tree, ids) for name, ids in listed.items()}
        used = {image_id for ids in listed.values() for image_id in ids}
        job = partial(_check_image, tree, box_origin=box_origin, classes=known)
        jobs += [partial(job, name, is_listed=not listed or name in used) for name in sorted({*tree.ids("*"), *used})]
    require(bool(jobs), f"{root}: no image and no annotation; name another folder")

    pool = ThreadPoolExecutor(num_cores())  # decoding and hashing let go of the interpreter
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd EXIF data
            done = pool.map(lambda job: job(), jobs)
            images = list(progress(done, total=len(jobs), description="checking"))
    finally:
        pool.shutdown(cancel_futures=True)
    by_id = {(image.tree.folder, image.image_id): image for image in images}
    members = {name: tuple(by_id[tree.folder, i] for i in dict.fromkeys(ids)) for name, (tree, ids) in lists.items()}
    problems += [*_shared_ids(members), *_same_pixels(images, members), *_counts_from_zero(trees, images)]
    problems += [problem for image in images for problem in image.problems]
    problems.sort(key=lambda problem: (problem.level != "error", problem.kind))  # stable: else in the order of ids
    relative = (
        replace(problem, file=problem.file.relative_to(root)) if problem.file.is_relative_to(root) else problem
        for problem in problems
    )
    return Survey(root, box_origin, tuple(images), members, tuple(relative))


def _find_trees(root: Path) -> list[VocTree]:
    """The VOC trees at `root`: itself, or those in it or in its VOCdevkit."""
    require(
        root.is_dir(), f"{root}: no such folder; name one with Annotations/ and JPEGImages/, or one of such folders"
    )
    if any((root / name).is_dir() for name in ("Annotations", "JPEGImages")):
        return [VocTree(root, strict=False)]
    for folder in (root / "VOCdevkit", root):
        trees = sorted(path.parent for path in folder.glob("*/Annotations") if (path.parent / "JPEGImages").is_dir())
        if trees:
            return [VocTree(tree, strict=False) for tree in trees]
    raise BadInput(f"{root}: no Annotations/ with JPEGImages/ here, below it or in its VOCdevkit/; name another folder")


def _read_lists(tree: VocTree, classes: Sequence[str]) -> tuple[dict[str, list[str]], list[Problem]]:
    """Its lists of ids, without VOC's lists of one class each (dog_train), which are not splits."""
    order = {name: place for place, name in enumerate((*SPLITS, "trainval"))}
    paths = [path for path in tree.lists.glob("*.txt") if path.stem.rpartition("_")[0] not in classes]
    listed, problems = {}, []
    for path in sorted(paths, key=lambda path: (order.get(path.stem, len(order)), path.stem)):
        try:
            ids = listed[path.stem] = tree.ids(path.stem)
        except BadInput as error:
            problems.append(_complaint(str(error), "unreadable list", path))
            continue
        for image_id, count in Counter(ids).items():
            if count > 1:
                message, remedy = f"{image_id} is there {count} times", "remove all but one; training takes it once"
                problems.append(Problem("warning", "repeated id", path, message, remedy))
    return listed, problems


def _check_image(
    tree: VocTree, image_id: str, *, box_origin: int, classes: Sequence[str] | None, is_listed: bool
) -> Checked:
    """Read one image and its annotation.

    One that no list names (`is_listed`) is trained on only by the list `*`, so its errors are warnings.
    """
    path = tree.annotation_path(image_id)
    size, objects, zero_based, problems = read_annotation(path, box_origin)
    for name in dict.fromkeys(item.name for item in objects):
        if classes is not None and name not in classes:
            remedy = "correct the name, or add it to data.classes (here: --classes)"
            problems.append(Problem("error", "unknown class", path, f"class '{name}' is not known", remedy))
    digest = None
    path = Path(tree.image_file(image_id))
    if not tree.has_image(image_id):
        remedy = "add it, or take its id out of the list"
        problems.append(Problem("error", "missing image", path, "no such image", remedy))
    else:
        try:
            pixels = read_image(path)
            digest = hashlib.sha256(b"%d %d " % pixels.shape[:2] + pixels.tobytes()).digest()
            problems += _surprises(path, (pixels.shape[1], pixels.shape[0]), size)
        except BadInput as error:
            problems.append(_complaint(str(error), "unreadable image", path))
    if not is_listed:
        problems = [replace(item, level="warning", message=f"{item.message} (in no list)") for item in problems]
    return Checked(tree, image_id, size, tuple(objects), zero_based, digest, tuple(problems))


def read_annotation(path: Path, box_origin: int) -> tuple[tuple[int, int] | None, list[VocObject], int, list[Problem]]:
    """Size in px, right objects, how many boxes are right only from 0, and all that training would stop at."""
    width, height, raw, complaints = read_parts(str(path))
    kind = "wrong annotation" if path.exists() else "missing annotation"
    problems = [_complaint(text, kind, path) for text in complaints]
    objects, zero_based = [], 0
    size = (width, height) if width and height else None
    for name, difficult, *corners in raw if size else []:  # without a size no box can be judged
        box_px = edges(corners, box_origin)
        if is_inside(*box_px, width, height):
            objects.append(VocObject(name, box_px, difficult))
        else:
            problems.append(_complaint(wrong_box(corners, width, height), "wrong box", path))
            zero_based += bool(is_inside(*edges(corners, 0), width, height))
    return size, objects, zero_based, problems


def _complaint(text: str, kind: str, file: Path) -> Problem:
    """A reader's complaint, `<what>; <remedy>` with or without `<file>: ` before it, in its parts."""
    what, _, remedy = text.rpartition("; ")
    return Problem("error", kind, file, what.removeprefix(f"{file}: "), remedy)


def _surprises(path: Path, size: tuple[int, int], annotated: tuple[int, int] | None) -> Iterator[Problem]:
    """What a readable image has that surprises people; sizes are (width, height) in px."""
    suffix = path.suffix.lower()
    try:
        with PIL.Image.open(path) as image:
            format_, mode, turn = image.format, image.mode, image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data, of any kind: training does not look at them
        format_, mode, turn = FORMATS[suffix], "RGB", 1
    if annotated is not None and annotated != size:
        message = f"the image is {size[0]}x{size[1]} px but its annotation says {annotated[0]}x{annotated[1]}"
        kind, remedy = "size mismatch", "correct <size> (and the boxes), or take the image out of its list"
        if turn in (5, 6, 7, 8) and annotated == size[::-1]:
            message += f", which is how its EXIF data turn it (orientation {turn})"
            kind, remedy = "EXIF turn", "turn the pixels themselves (exiftran -ai, or mogrify -auto-orient)"
        yield Problem("error", kind, path, message, remedy)
    elif turn in range(2, 9):
        message = f"its EXIF data ask for a turn (orientation {turn}), which training does not do"
        remedy = "look at its boxes in --montage; if they lie wrong, turn the pixels themselves (exiftran -ai)"
        yield Problem("warning", "EXIF turn", path, message, remedy)
    if format_ not in (FORMATS[suffix], "MPO"):  # MPO: a JPEG with a second picture behind it
        message, remedy = (
            f"{format_} content under a {path.suffix} name",
            "rename or convert it; training reads it as it is",
        )
        yield Problem("warning", "other format", path, message, remedy)
    if mode in MODES:
        remedy = "nothing, if you expect it: training reads it as RGB"
        yield Problem("warning", "not RGB", path, f"{MODES[mode]} pixels", remedy)


def _split_of(list_name: str) -> str:
    """The split that a list belongs to: train for VOC2007/trainval."""
    name = list_name.rpartition("/")[2]
    return "train" if name == "trainval" else name


def _shared_ids(members: dict[str, tuple[Checked, ...]]) -> Iterator[Problem]:
    """Ids in two splits. A list trainval counts as train where there is no val that it is made of."""
    has_val = {name.removesuffix("val") + "trainval" for name in members if _split_of(name) == "val"}
    owner: dict[str, str] = {}
    for name, images in members.items():
        if _split_of(name) not in SPLITS or name in has_val:
            continue
        for image in images:
            first = owner.setdefault(image.image_id, name)
            if _split_of(first) != _split_of(name):
                message = f"{image.image_id} is in {first} and in {name}"
                file = image.tree.lists / f"{name.rpartition('/')[2]}.txt"
                yield Problem("error", "id in two splits", file, message, "take it out of one of the two lists")


def _same_pixels(images: Sequence[Checked], members: dict[str, tuple[Checked, ...]]) -> Iterator[Problem]:
    """Images that are equal to the bit; those in different splits make the measure false."""
    split: dict[tuple[VocTree, str], str] = {}
    for name, listed in members.items():
        for image in listed if _split_of(name) in SPLITS else ():
            split.setdefault((image.tree, image.image_id), _split_of(name))
    firsts: dict[bytes, Checked] = {}
    for image in images:
        if image.digest is None or (first := firsts.setdefault(image.digest, image)) is image:
            continue
        one, other = (split.get((item.tree, item.image_id), "") for item in (first, image))
        where = f" (in {other or 'no list'}; that one in {one or 'no list'})" if split else ""
        message = f"the same picture as {first.tree.image_path(first.image_id).name}{where}"
        file = image.tree.image_path(image.image_id)
        if one and other and one != other:
            remedy = "take one of the two out of its list"
            yield Problem("error", "same picture in two splits", file, message, remedy)
        else:
            remedy = "remove one of the two; a random holdout may separate them"
            yield Problem("warning", "same picture twice", file, message, remedy)


def _counts_from_zero(trees: Sequence[VocTree], images: Sequence[Checked]) -> Iterator[Problem]:
    for tree in trees:
        mine = [image for image in images if image.tree is tree]
        zero = sum(image.zero_based for image in mine)
        if zero > ZERO_SHARE * (zero + sum(len(image.objects) for image in mine)):
            message = f"{zero:,} boxes start at pixel 0, but VOC counts from 1: the tool that wrote them counts from 0"
            remedy = "train with data.box_origin=0 (here: --box-origin 0)"
            yield Problem("error", "boxes count from 0", tree.folder / "Annotations", message, remedy)
