"""What is in data and what is wrong with them: all of it, where training stops at the first.

It decides by the functions of training, so what is called right here is accepted there.
"""

import hashlib
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

from onebox.data.annotations import BACKGROUND, Conventions, odd_classes
from onebox.data.image import MAX_BYTES, Header, read_image
from onebox.data.index import annotation_problems
from onebox.data.layout import VOC, Layout, Tree, open_tree
from onebox.data.listed import Listed
from onebox.data.processes import thread_map
from onebox.data.table import Ints
from onebox.data.tree import find_trees
from onebox.errors import BadInput
from onebox.errors import check as require
from onebox.files import opened

SPLITS = ("train", "val", "test")  # lists that must not share an image
FORMATS = {"jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF"}  # of the suffixes that are not called so
MODES = {"L": "grey", "1": "black and white", "CMYK": "CMYK", "YCCK": "CMYK"}
Level = Literal["error", "warning"]
MOST = 0.5  # of the objects: when more have a name of VOC's classes, the others are slips


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    level: Level  # `error`: training stops at it, or what it measures is false; `warning`: training does without
    kind: str  # what sort of thing it is
    file: Path  # what to look at, relative to the checked folder
    message: str  # what is wrong
    remedy: str  # what to do


@dataclass(frozen=True, eq=False)
class Survey:
    """What a check found."""

    root: Path  # the checked folder
    listed: Listed  # each image once, in the order of trees and ids
    lists: Mapping[str, Ints]  # `TREE/LIST` -> which of the images it names
    pixels: Sequence[bytes | None]  # [N] a hash of an image's pixels; None where it cannot be decoded
    problems: Sequence[Problem]  # errors first

    @property
    def has_errors(self) -> bool:
        """Whether training would stop, or its metrics would be wrong."""
        return any(problem.level == "error" for problem in self.problems)


def check(
    root: Path,
    *,
    conventions: Conventions,
    classes: Sequence[str] | None,
    voc_classes: Sequence[str],
    has_background: bool = False,
    splits: Mapping[str, Sequence[str]] | None = None,
    layout: Layout = VOC,
) -> Survey:
    """Read every image and annotation below `root`.

    Args:
        root: a tree, or a folder of trees.
        conventions: how annotations are to be understood.
        classes: names that objects may have; None: any, but of those that are not VOC's where most are, it is warned.
        voc_classes: the names of VOC.
        has_background: whether training puts a class "background" before them.
        splits: the lists of each split, as `data.splits`; None takes all lists that there are, but those of a class.
        layout: the form of the trees, and their parts where they have no usual name.

    Raises:
        BadInput: there is no tree, or nothing in it, or the conventions do not fit.
    """
    trees = _trees(root, splits, layout)
    problems: list[Problem] = []
    members: dict[str, list[tuple[str, str]]] = {}
    images: list[tuple[str, str]] = []
    for name, tree in trees.items():
        lists, wrong = _read_lists(tree, name, splits)
        problems += wrong
        members |= {f"{name}/{one}".lstrip("/"): [(name, each) for each in ids] for one, ids in lists.items()}
        used = {image_id for ids in lists.values() for image_id in ids}
        images += [(name, image_id) for image_id in sorted({*(tree.ids("*")[0] if splits is None else ()), *used})]
    why = [f"{one.file}: {one.message}; {one.remedy}" for one in problems[:1]]
    require(bool(images), why[0] if why else f"{root}: no image and no annotation; name another folder")
    row_of = {image: row for row, image in enumerate(images)}
    rows = {name: np.array([row_of[image] for image in dict.fromkeys(ids)], np.int64) for name, ids in members.items()}
    with tempfile.TemporaryDirectory() as nothing_is_kept:
        listed = Listed(trees, images, Path(nothing_is_kept), conventions)
        headers = {row: picture.header for row, picture in listed.pictures(range(len(listed))).items()}
    pixels = _decode(listed, [row for row, header in headers.items() if not isinstance(header, str)])
    in_lists = {row for some in rows.values() for row in some.tolist()}
    if has_background and BACKGROUND in (listed.table.names if classes is None else classes):
        text = f"there is a class {BACKGROUND}, which data.background_class=true puts before the others; "
        text += f"set data.background_class=false, or data.rename={{{BACKGROUND}: other}}"
        problems.append(_problem("class background", root, text))
    share = np.isin(listed.table.names, list(voc_classes)).mean() if len(listed.table.names) else 0.0
    known = voc_classes if classes is None and share > MOST else classes
    level: Level = "warning" if classes is None else "error"
    for row, problem in (*_image_problems(listed, headers, pixels), *_annotation_problems(listed, known, level)):
        if rows and row not in in_lists:  # only the list `*` trains on it
            problem = replace(problem, level="warning", message=f"{problem.message} (in no list)")
        problems.append(problem)
    hashes = [found if isinstance(found := pixels.get(row), bytes) else None for row in range(len(listed))]
    problems += [*_shared_ids(listed, rows), *_same_pixels(listed, hashes, rows), *_oddities(root, listed)]
    problems.sort(key=lambda problem: (problem.level != "error", problem.kind))  # stable: else in the order of ids
    inside = [
        replace(one, file=one.file.relative_to(root)) if one.file.is_relative_to(root) else one for one in problems
    ]
    return Survey(root, listed, rows, hashes, inside)


def _trees(root: Path, splits: Mapping[str, Sequence[str]] | None, layout: Layout) -> dict[str, Tree]:
    if splits is not None:
        places = {name: root / name for name in sorted({tree for tree, _ in _wanted(splits)})}
    elif layout != VOC:
        places = {"": root}
    else:
        places = {"" if path == root else path.name: path for path in find_trees(root)}
    return {name: open_tree(path, layout, None, strict=False) for name, path in places.items()}


def _wanted(splits: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Tree and list of each item of `data.splits`."""
    parts = [str(item).rpartition("/") for items in splits.values() for item in items]
    return [(tree, name) for tree, _, name in parts]


def _read_lists(
    tree: Tree, tree_name: str, splits: Mapping[str, Sequence[str]] | None
) -> tuple[dict[str, list[str]], list[Problem]]:
    """The lists of a tree that `splits` names, or all but those of one class each (dog_train); and what is wrong."""
    problems = []
    for paths in tree.images.ambiguous.values():
        text = f"one id, several images ({', '.join(path.name for path in paths)}); remove or rename all but one"
        problems.append(_problem("ambiguous id", paths[0], text))
    names = [name for where, name in _wanted(splits or {}) if where == tree_name]
    if splits is None:
        order = {name: place for place, name in enumerate((*SPLITS, "trainval"))}
        names = sorted(tree.list_names(), key=lambda name: order.get(name, len(order)))
    lists = {}
    for name in names:
        path = tree.list_file(name)
        try:
            ids = lists[name] = tree.ids(name)[0]
        except BadInput as error:
            problems.append(_problem("unreadable list", path, str(error).removeprefix(f"{path}: ")))
            continue
        for image_id, count in Counter(ids).items():
            if count > 1:
                text = f"{image_id} appears {count} times; remove all but one: training uses it once"
                problems.append(_problem("repeated id", path, text, "warning"))
    return lists, problems


def _decode(listed: Listed, rows: Sequence[int]) -> dict[int, bytes | str]:
    """Row -> a hash of its image's pixels; or what is wrong with it, and what to do."""

    def look(row: int) -> bytes | str:
        file = listed.image_file(row)
        try:
            pixels = read_image(file, upright=listed.conventions.exif == "apply")
        except BadInput as error:
            return str(error).removeprefix(f"{file}: ")
        return hashlib.sha256(b"%d %d " % pixels.shape[:2] + pixels.tobytes()).digest()

    return dict(zip(rows, thread_map(look, rows, description="checking"), strict=True))


def _problem(kind: str, file: Path | str, text: str, level: Level = "error") -> Problem:
    """A problem from a text as readers give it: `<what>; <remedy>`."""
    what, _, remedy = text.rpartition("; ")
    return Problem(level, kind, Path(file), what, remedy)


def _image_problems(
    listed: Listed, headers: Mapping[int, Header | str], pixels: Mapping[int, bytes | str]
) -> Iterator[tuple[int, Problem]]:
    for row in range(len(listed)):
        file = listed.image_file(row)
        header, decoded = headers.get(row), pixels.get(row)
        if header is None:
            yield row, _problem("missing image", file, "no such image; add it, or take its id out of the list")
        elif isinstance(header, str) or isinstance(decoded, str):
            yield row, _problem("unreadable image", file, header if isinstance(header, str) else str(decoded))
        elif listed.is_annotated[row] and (text := listed.image_problem(row, header)):
            yield row, _problem("EXIF turn" if "EXIF" in text else "size mismatch", file, text)
        else:
            for problem in _surprises(Path(file), header, is_turned=listed.conventions.exif == "apply"):
                yield row, problem


def _annotation_problems(listed: Listed, classes: Sequence[str] | None, level: Level) -> Iterator[tuple[int, Problem]]:
    for row in np.flatnonzero(~listed.is_annotated).tolist():
        if not listed.has_image(row):
            text = "no such file; add the annotation, or take the image out of its list"
            yield row, _problem("missing annotation", listed.annotation_file(row), text)
    boxes = dict(listed.understood.wrong)
    for row, text in listed.understood.wrong:
        yield row, _problem("wrong box", listed.annotation_file(row), text)
    for row, text in listed.table.problems.items():
        if row not in boxes:
            yield row, _problem("wrong annotation", listed.annotation_file(row), text)
    known = None if classes is None else dict.fromkeys(classes, 0)
    table = replace(listed.table, problems={})
    for row in annotation_problems(table, label_of=known):
        for name in dict.fromkeys(table.names[table.first[row] : table.first[row + 1]].tolist()):
            if known is not None and name not in known:
                ways = "correct the name, add it to data.classes (here: --classes), or map it by data.rename"
                text = f"class '{name}' is not known; {ways}"
                yield row, _problem("unknown class", listed.annotation_file(row), text, level)


def _surprises(path: Path, header: Header, *, is_turned: bool) -> Iterator[Problem]:
    """What a readable image has that surprises people."""
    suffix = path.suffix.lower().lstrip(".")
    usual = FORMATS.get(suffix, suffix.upper())
    try:
        with warnings.catch_warnings(), opened(path, MAX_BYTES) as file, PIL.Image.open(file) as image:
            warnings.simplefilter("ignore")  # Pillow's, on odd EXIF data
            format_, mode = image.format, image.mode
    except Exception:  # broken EXIF data, of any kind: training does not look at them
        format_, mode = usual, "RGB"
    if header.turn > 1 and not is_turned:
        text = f"it has an EXIF rotation (orientation {header.turn}), which training does not apply; "
        yield _problem("EXIF turn", path, f"{text}set data.exif=apply if its boxes in --montage are wrong", "warning")
    if format_ not in (usual, "MPO"):  # MPO: a JPEG with a second picture behind it
        text = f"{format_} content under a {path.suffix} name; rename it: training reads it as it is"
        yield _problem("other format", path, text, "warning")
    if header.is_deep:
        text = "more than 8 bits a channel, of which the upper 8 are read; convert it if it looks dark in --montage"
        yield _problem("deep pixels", path, text, "warning")
    elif mode in MODES:
        text = f"{MODES[mode]} pixels; nothing, if you expect it: training reads it as RGB"
        yield _problem("not RGB", path, text, "warning")


def _oddities(root: Path, listed: Listed) -> Iterator[Problem]:
    """What looks odd over all annotations, with the first file that it is so in."""
    notes = [(text, counts) for text, counts in listed.understood.notes if counts.any()]
    notes += [(f"{what}, as the conventions say; nothing", counts) for what, counts in listed.understood.slips.items()]
    if listed.without_size.any():
        notes.append(("annotations have no size; that of the image is used; nothing", listed.without_size.astype(int)))
    for text, counts in notes:
        text += "" if "; " in text else "; look at it in --montage"
        file = listed.annotation_file(int(np.flatnonzero(counts)[0]))
        yield _problem("odd annotations", file, f"{int(counts.sum()):,} {text}", "warning")
    if alike := odd_classes(listed.table.names.tolist()):
        yield _problem("odd classes", root, alike, "warning")


def _split_of(list_name: str) -> str:
    """The split that a list belongs to: train for VOC2007/trainval."""
    name = list_name.rpartition("/")[2]
    return "train" if name == "trainval" else name


def _shared_ids(listed: Listed, lists: Mapping[str, Ints]) -> Iterator[Problem]:
    """Ids in two splits. A list trainval counts as train where there is no val that it is made of."""
    has_val = {name.removesuffix("val") + "trainval" for name in lists if _split_of(name) == "val"}
    owner: dict[str, str] = {}
    for name, rows in lists.items():
        if _split_of(name) not in SPLITS or name in has_val:
            continue
        for row in rows.tolist():
            image_id = str(listed.ids[row])
            first = owner.setdefault(image_id, name)
            if _split_of(first) != _split_of(name):
                file = listed.tree(row).list_file(name.rpartition("/")[2])
                text = f"{image_id} is in {first} and in {name}; take it out of one of the two lists"
                yield _problem("id in two splits", file, text)


def _same_pixels(listed: Listed, pixels: Sequence[bytes | None], lists: Mapping[str, Ints]) -> Iterator[Problem]:
    """Images that are equal to the bit; those in different splits make the measure false."""
    split: dict[int, str] = {}
    for name, rows in lists.items():
        for row in rows.tolist() if _split_of(name) in SPLITS else ():
            split.setdefault(row, _split_of(name))
    firsts: dict[bytes, int] = {}
    for row, found in enumerate(pixels):
        if found is None or (first := firsts.setdefault(found, row)) == row:
            continue
        one, other = split.get(first, ""), split.get(row, "")
        where = f" (in {other or 'no list'}; that one in {one or 'no list'})" if split else ""
        text = f"the same picture as {Path(listed.image_file(first)).name}{where}"
        file = listed.image_file(row)
        if one and other and one != other:
            yield _problem("same picture in two splits", file, f"{text}; take one of the two out of its list")
        else:
            text += "; remove one of the two, as a random holdout may separate them"
            yield _problem("same picture twice", file, text, "warning")
