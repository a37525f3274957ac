"""From one form of annotations to another: a new folder with the same images, boxes, classes and lists."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onebox.data.annotations import Conventions
from onebox.data.coco import write_coco
from onebox.data.csv_file import write_csv
from onebox.data.index import annotation_problems, class_names
from onebox.data.layout import Labelled, Layout, Tree, open_tree
from onebox.data.listed import Listed
from onebox.data.processes import progress
from onebox.data.tree import write_voc
from onebox.data.yolo import write_yolo
from onebox.errors import BadInput, check

WRITERS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo, "csv": write_csv}
FIRST = ("train", "val", "valid", "validation", "test")  # of lists that share images the first is written
REST = "unlisted"  # the list of the images that are in no other


def convert(
    root: Path,
    out: Path,
    to: str,
    *,
    layout: Layout,
    conventions: Conventions,
    classes: Sequence[str] | None,
    skip: bool,
    cache_dir: Path,
) -> tuple[Mapping[str, Sequence[Labelled]], list[str]]:
    """Write the images and annotations of a tree to a new folder, in another form.

    Args:
        root: the tree.
        out: the new folder, which is complete when it appears.
        to: `voc`, `coco`, `yolo` or `csv`.
        layout: of the tree.
        conventions: what its annotations mean. What is written follows the conventions of its own form.
        classes: the classes in their order; None takes those that are there, sorted.
        skip: whether images that cannot be used are left out; otherwise the first is an error.
        cache_dir: folder that keeps what was read of the images.

    Returns:
        The lists that were written, and what is to be said: what was left out, and why.

    Raises:
        BadInput: `out` is not empty, or the tree or one of its images cannot be used.
    """
    is_new = not out.exists() or (out.is_dir() and not any(out.iterdir()) and not out.samefile("."))
    check(is_new, f"{out}: is there already; name a new folder")
    out = Path(os.path.abspath(out))  # `..` has a name then
    tree = open_tree(root, layout, None)
    all_ids = tree.ids("*")[0]
    listed = Listed({"": tree}, [("", image_id) for image_id in all_ids], cache_dir, conventions)
    classes = list(classes or class_names(listed))
    images, wrong = _usable(listed, classes)
    if wrong and not skip:
        raise BadInput(f"{wrong[0]}; data.on_error=skip leaves such images out")
    said = [f"left out: {text}" for text in wrong]
    said += [f"{counts.sum():,} {what}" for what, counts in listed.understood.slips.items()]
    if to == "yolo" and (difficult := int(listed.table.difficult.sum())):
        said.append(f"{difficult:,} objects are marked difficult, which YOLO has no mark for")
    members, shared = _lists(tree, all_ids)
    said += [f"left out: the list {name}, as some of its images are in another list" for name in shared]
    chosen = {name: [images[one] for one in ids if one in images] for name, ids in members.items()}
    lists = {name: some for name, some in chosen.items() if some}
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        places = temporary / ("JPEGImages" if to == "voc" else "images")
        for image_id, image in progress(images.items(), total=len(images), description="copying images"):
            (places / image.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree.images.paths[image_id], places / image.name)
        WRITERS[to](temporary, lists, classes)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return lists, said


def _lists(tree: Tree, all_ids: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The ids of lists that share none, and of the images in none of them; and the lists that share some."""
    names = sorted(tree.list_names(), key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    members: dict[str, list[str]] = {}
    shared: list[str] = []
    taken: set[str] = set()
    for name in names:
        ids = list(dict.fromkeys(tree.ids(name)[0]))
        if taken.isdisjoint(ids):
            members[name] = ids
            taken |= {*ids}
        else:
            shared.append(name)
    members.setdefault(REST, []).extend(image_id for image_id in all_ids if image_id not in taken)
    return members, shared


def _usable(listed: Listed, classes: Sequence[str]) -> tuple[dict[str, Labelled], list[str]]:
    """The images that can be used by their ids, and what is wrong with the others."""
    images: dict[str, Labelled] = {}
    wrong: list[str] = []
    table = listed.table
    problems = annotation_problems(table, label_of=dict.fromkeys(classes, 0))
    pictures = listed.pictures(range(len(listed)))
    for row, image_id in enumerate(listed.ids.tolist()):
        header = pictures[row].header if row in pictures else "there is no such image"
        if row in problems or row not in pictures:
            wrong.append(f"{listed.annotation_file(row)}: {problems.get(row, header)}")
        elif isinstance(header, str) or (problem := listed.image_problem(row, header)):
            wrong.append(f"{listed.image_file(row)}: {header if isinstance(header, str) else problem}")
        else:
            mine = slice(table.first[row], table.first[row + 1])
            columns = (column[mine].tolist() for column in (table.names, table.difficult, table.corners))
            objects = [(name, difficult, *corners) for name, difficult, corners in zip(*columns, strict=True)]
            shown, name = listed.shown(header), image_id + Path(listed.image_file(row)).suffix
            images[image_id] = Labelled(name, shown.width, shown.height, objects if listed.is_annotated[row] else None)
    check(bool(np.any(listed.is_annotated)), "no image has an annotation; see `onebox data check`")
    return images, wrong
