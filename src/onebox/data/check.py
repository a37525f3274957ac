"""What is in VOC trees and what is wrong with them: all of it, where training stops at the first.

It reads with the readers of training, so what is called right here is accepted there.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onebox.data.check_image import Checked, Problem, as_problem, check_image
from onebox.data.processes import num_cores
from onebox.data.progress import progress
from onebox.data.voc import VocTree
from onebox.errors import BadInput

SPLITS = ("train", "val", "test")  # lists that must not share an image
ZERO_SHARE = 0.01  # of the boxes: so many that count from 0 are a habit of the tool, not slips


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


def find_trees(root: Path) -> list[VocTree]:
    """The VOC trees at `root`: itself, or those in it or in its VOCdevkit.

    Raises:
        BadInput: there is none.
    """
    if not root.is_dir():
        raise BadInput(
            f"{root}: no such folder; name a folder with Annotations/ and JPEGImages/, or one of such folders"
        )
    if any((root / name).is_dir() for name in ("Annotations", "JPEGImages")):
        return [VocTree(root, strict=False)]
    for folder in (root / "VOCdevkit", root):
        trees = sorted(path.parent for path in folder.glob("*/Annotations") if (path.parent / "JPEGImages").is_dir())
        if trees:
            return [VocTree(tree, strict=False) for tree in trees]
    raise BadInput(f"{root}: no Annotations/ with JPEGImages/ here, below it or in its VOCdevkit/; name another folder")


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
    trees = find_trees(root)
    lists: dict[str, tuple[VocTree, list[str]]] = {}
    problems: list[Problem] = []
    jobs: list[Callable[[], Checked]] = []
    for tree in trees:
        known = classes if classes is not None or not tree.folder.resolve().name.startswith("VOC") else voc_classes
        prefix = "" if tree.folder == root else f"{tree.folder.name}/"
        listed = {}
        for path in _list_files(tree, known or voc_classes):
            try:
                listed[path.stem] = tree.ids(path.stem)
            except BadInput as error:
                problems.append(as_problem(str(error), "unreadable list", path))
                continue
            problems += _repeated(path, listed[path.stem])
        lists |= {prefix + name: (tree, ids) for name, ids in listed.items()}
        used = {image_id for ids in listed.values() for image_id in ids}
        ids = sorted({*tree.ids("*"), *used})
        problems += _ambiguous(tree)
        job = partial(check_image, tree, box_origin=box_origin, classes=known)
        jobs += [partial(job, image_id, listed=not listed or image_id in used) for image_id in ids]
    if not jobs:
        raise BadInput(f"{root}: no image and no annotation; name another folder")

    images = list(_run(jobs))
    found = {(image.tree.folder, image.image_id): image for image in images}
    members = {name: tuple(found[tree.folder, i] for i in dict.fromkeys(ids)) for name, (tree, ids) in lists.items()}
    problems += _shared_ids(members)
    problems += _same_pixels(images, members)
    problems += _counts_from_zero(trees, images)
    problems += [problem for image in images for problem in image.problems]
    problems.sort(key=lambda problem: (problem.level != "error", problem.kind))  # stable: else in the order of ids
    relative = [
        replace(problem, file=problem.file.relative_to(root)) if problem.file.is_relative_to(root) else problem
        for problem in problems
    ]
    return Survey(root, box_origin, tuple(images), members, tuple(relative))


def _run(jobs: Sequence[Callable[[], Checked]]) -> Iterator[Checked]:
    """All answers, in the order of the jobs."""
    pool = ThreadPoolExecutor(num_cores())  # decoding and hashing let go of the interpreter
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd EXIF data
            done = pool.map(lambda job: job(), jobs)
            yield from progress(done, total=len(jobs), description="checking")
    finally:
        pool.shutdown(cancel_futures=True)


def _list_files(tree: VocTree, classes: Sequence[str]) -> list[Path]:
    """Its lists of ids, without VOC's lists of one class each (dog_train), which are not splits."""
    paths = tree.lists.glob("*.txt")
    order = {name: place for place, name in enumerate((*SPLITS, "trainval"))}
    plain = [path for path in paths if path.stem.rpartition("_")[0] not in classes]
    return sorted(plain, key=lambda path: (order.get(path.stem, len(order)), path.stem))


def _repeated(path: Path, ids: Sequence[str]) -> Iterator[Problem]:
    for image_id, count in Counter(ids).items():
        if count > 1:
            says = f"{image_id} is there {count} times"
            yield Problem("warning", "repeated id", path, says, "remove all but one; training takes it once")


def _ambiguous(tree: VocTree) -> Iterator[Problem]:
    for paths in tree.ambiguous.values():
        says = f"one id, several images ({', '.join(path.name for path in paths)})"
        yield Problem("error", "ambiguous id", paths[0], says, "remove or rename all but one")


def _bare(list_name: str) -> str:
    """The split that a list belongs to: train for VOC2007/trainval."""
    name = list_name.rpartition("/")[2]
    return "train" if name == "trainval" else name


def _shared_ids(members: dict[str, tuple[Checked, ...]]) -> Iterator[Problem]:
    """Ids in two splits. A list trainval counts as train where there is no val that it is made of."""
    has_val = {name.removesuffix("val") + "trainval" for name in members if _bare(name) == "val"}
    owner: dict[str, str] = {}
    for name, images in members.items():
        if _bare(name) not in SPLITS or name in has_val:
            continue
        for image in images:
            first = owner.setdefault(image.image_id, name)
            if _bare(first) != _bare(name):
                says = f"{image.image_id} is in {first} and in {name}"
                file = image.tree.lists / f"{name.rpartition('/')[2]}.txt"
                yield Problem("error", "id in two splits", file, says, "take it out of one of the two lists")


def _same_pixels(images: Sequence[Checked], members: dict[str, tuple[Checked, ...]]) -> Iterator[Problem]:
    """Images that are equal to the bit; those in different splits make the measure false."""
    split_of: dict[tuple[Path, str], str] = {}
    for name, listed in members.items():
        if _bare(name) in SPLITS:
            for image in listed:
                split_of.setdefault((image.tree.folder, image.image_id), _bare(name))
    firsts: dict[bytes, Checked] = {}
    for image in images:
        if image.digest is None or (first := firsts.setdefault(image.digest, image)) is image:
            continue
        one, other = (split_of.get((item.tree.folder, item.image_id), "") for item in (first, image))
        where = f" (in {other or 'no list'}; that one in {one or 'no list'})" if split_of else ""
        says = f"the same picture as {first.tree.image_path(first.image_id).name}{where}"
        file = image.tree.image_path(image.image_id)
        if one and other and one != other:
            yield Problem("error", "same picture in two splits", file, says, "take one of the two out of its list")
        else:
            remedy = "remove one of the two; a random holdout may separate them"
            yield Problem("warning", "same picture twice", file, says, remedy)


def _counts_from_zero(trees: Sequence[VocTree], images: Sequence[Checked]) -> Iterator[Problem]:
    for tree in trees:
        mine = [image for image in images if image.tree is tree]
        zero = sum(image.zero_based for image in mine)
        if zero > ZERO_SHARE * (zero + sum(len(image.objects) for image in mine)):
            says = f"{zero:,} boxes start at pixel 0, but VOC counts from 1: the tool that wrote them counts from 0"
            remedy = "train with data.box_origin=0 (here: --box-origin 0)"
            yield Problem("error", "boxes count from 0", tree.folder / "Annotations", says, remedy)
