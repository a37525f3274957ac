"""Images and their VOC annotations on disk: VOC's layout, ILSVRC's, and the layouts that people make of them."""

import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from onebox.data.layout import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    VOC,
    Files,
    Labelled,
    Layout,
    Lists,
    Tree,
    called_like_splits,
    decimal,
    put,
    usual_folder,
    walk,
    without_suffix,
)
from onebox.data.voc import read_record
from onebox.errors import BadInput, check
from onebox.files import MAX_LONG, read_bytes

ANNOTATION_FOLDERS = ("annotations", "annotation", "annots", "xmls", "xml", "labels", "label", "bboxes")  # in any case
MAX_LOOKED_AT = 20_000  # files, when a tree has none of these layouts


class VocTree(Tree):
    """A folder with `Annotations/`, `JPEGImages/` and perhaps `ImageSets/Main/`; ILSVRC's folder, with
    `Annotations/CLS-LOC/{train,val}/`, `Data/CLS-LOC/{train,val,test}/` and `ImageSets/CLS-LOC/`; folders of other
    usual names; or one folder for both, each image beside its XML. An image's annotation has the same id, or the same
    last part where only one has it.
    """

    has_sizes = True
    read = staticmethod(read_record)

    def _open(self, layout: Layout) -> None:
        folder = self.folder
        image_folders, annotation_folders = _find_folders(folder, layout)
        self.images = Files(image_folders, IMAGE_SUFFIXES)
        self.annotations = Files(annotation_folders, {"xml"})
        if not self.annotations.paths:  # those of Stanford Dogs have no suffix
            bare = Files(annotation_folders, {""})
            if bare.by_stem.keys() & self.images.by_stem.keys():
                self.annotations = bare
        if not self.annotations.paths and (other := _other_form(folder)):
            raise BadInput(f"{folder}: no XML file in {annotation_folders[0].name}/; {other}")
        places = [folder / "ImageSets" / "CLS-LOC", folder / "ImageSets" / "Main", folder / "ImageSets"]
        self._lists = next((place for place in places if place.is_dir()), folder)
        tops = {name.partition("/")[0] for name in self.images.paths if "/" in name}
        self.remarks = called_like_splits({top: f"{top}/*" for top in tops})

    def list_names(self) -> list[str]:
        """The lists that there are, but those of one class each (dog_train)."""
        names = sorted(path.stem for path in self._lists.glob("[!.]*.txt"))
        classes = set(self.table().names.tolist()) if any("_" in name for name in names) else set()
        return [name for name in names if name.rpartition("_")[0] not in classes]

    def list_file(self, name: str) -> Path:
        return self._lists / f"{name}.txt"

    def ids(self, list_name: str) -> tuple[list[str], int]:
        """Ids that the list `<list_name>.txt` names, in its order; for `*` those of all images and annotations here.

        A line is an id, perhaps with a suffix or a path before it, and perhaps a number behind it, as in VOC's lists of
        one class each. Lines whose number is -1 (the class is not in the image) are left out, and counted.

        Raises:
            BadInput: there is no such list, or a line can be read in two ways.
        """
        if list_name == "*":
            used = {self.annotation_id(name) for name in self.images.paths}
            return sorted({*self.images.paths, *(name for name in self.annotations.paths if name not in used)}), 0
        path = self.list_file(list_name)
        try:
            lines = read_bytes(path, MAX_LONG).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise BadInput(f"{path}: not a list of ids in UTF-8; rewrite it with one id per line") from None
        except OSError as error:
            there = sorted(item.stem for item in path.parent.glob("*.txt")) or ["none"]
            what = "no such list" if isinstance(error, FileNotFoundError) else error.strerror
            raise BadInput(f"{path}: {what} (there are: {', '.join(there)}); name another one in data.splits") from None
        entries = [self._entry(line, path) for line in map(str.strip, lines) if line]
        ids = [name for name, number in entries if number != "-1"]
        return ids, len(entries) - len(ids)

    def _entry(self, line: str, path: Path) -> tuple[str, str]:
        """The id and the number of a line."""
        whole = self._find(line)
        words = line.rsplit(maxsplit=1)
        if len(words) < 2:
            return whole or without_suffix(line), ""
        is_numbered = re.fullmatch(r"[+-]?\d+", words[1]) is not None
        before = self._find(words[0]) if is_numbered else None
        if whole and before:
            raise BadInput(
                f"{path}: '{line}' is the image {whole}, or {before} with the number {words[1]}; rename one of the two"
            )
        if whole:
            return whole, ""
        if is_numbered:
            return before or without_suffix(words[0]), words[1]
        return self._find(line.split()[0]) or without_suffix(line), ""

    def _find(self, text: str) -> str | None:
        return self.images.find(text) or self.annotations.find(text)

    def annotation_id(self, image_id: str) -> str | None:
        if image_id in self.annotations.paths:
            return image_id
        stem = image_id.rpartition("/")[2]
        is_known = image_id not in self.images.paths or self.images.by_stem.get(stem) == image_id
        return self.annotations.by_stem.get(stem) if is_known else None


def find_trees(root: Path) -> list[Path]:
    """The folders of the trees at `root`: itself, or those in its VOCdevkit or directly in it.

    Raises:
        BadInput: there is none.
    """
    check(root.is_dir(), f"{root}: no such folder; name one with annotations and images, or one of such folders")
    found = [root] if _folders(root, VOC) is not None else _trees_below(root)
    if not found:
        raise BadInput(_nothing_fits(root))
    return found


def _trees_below(root: Path) -> list[Path]:
    for folder in (root / "VOCdevkit", root):
        below = sorted(path for path in folder.glob("[!.]*") if path.is_dir()) if folder.is_dir() else []
        if trees := [path for path in below if _folders(path, VOC) is not None]:
            return trees
    return []


def _find_folders(folder: Path, layout: Layout) -> tuple[list[Path], list[Path]]:
    check(
        folder.is_dir(),
        f"{folder}: no such folder; point data.root (or ONEBOX_VOC_ROOT, the folder that holds VOCdevkit) at a tree "
        "with Annotations/ and JPEGImages/",
    )
    found = _folders(folder, layout)
    if found is None:
        raise BadInput(_nothing_fits(folder))
    for key, place in (("images", layout.images), ("annotations", layout.annotations)):
        check(place is None or (folder / place).is_dir(), f"{folder / str(place)}: no such folder; correct data.{key}")
    return found


def _folders(folder: Path, layout: Layout) -> tuple[list[Path], list[Path]] | None:
    """The folders of images and of annotations; None where they are of no usual layout."""
    if (folder / "Annotations" / "CLS-LOC").is_dir() and layout == VOC:
        parts = ("train", "val", "test")
        image_folders = [folder / "Data" / "CLS-LOC" / part for part in parts]
        return image_folders, [folder / "Annotations" / "CLS-LOC" / part for part in parts]
    images = folder / layout.images if layout.images else usual_folder(folder, IMAGE_FOLDERS)
    annotations = folder / layout.annotations if layout.annotations else usual_folder(folder, ANNOTATION_FOLDERS)
    if images and annotations:
        return [images], [annotations]
    # One folder for both: nearly each XML file lies beside its image.
    both = images or annotations or folder
    names = {name for name, _ in walk(both, {"xml"})}
    if names and len(names & {name for name, _ in walk(both, IMAGE_SUFFIXES)}) >= 0.8 * len(names):
        return [both], [both]
    return None


def _nothing_fits(folder: Path) -> str:
    """What to say of a folder without annotations and images where they usually lie: where there are some."""
    if trees := _trees_below(folder):
        others = f" (or {', '.join(map(str, trees[1:4]))})" if len(trees) > 1 else ""
        return f"{folder}: has no annotations and images itself; set data.root={trees[0]}{others}"
    if other := _other_form(folder):
        return f"{folder}: {other}"
    counts: dict[str, Counter[str]] = {"annotations": Counter(), "images": Counter()}
    for name, path in islice(walk(folder, IMAGE_SUFFIXES | {"xml"}), MAX_LOOKED_AT):
        kind = "annotations" if path.lower().endswith(".xml") else "images"
        counts[kind][name.rpartition("/")[0] or "."] += 1
    where = [f"{n:,} {kind} in {place}/" for kind, found in counts.items() for place, n in found.most_common(3)]
    keys = " and ".join(
        f"data.{kind}={next(iter(found.most_common(1)), ('FOLDER',))[0]}" for kind, found in counts.items()
    )
    return (
        f"{folder}: no Annotations/ with JPEGImages/, nor folders of other usual names; there are "
        f"{', '.join(where) or 'neither XML files nor images'}; set {keys}, or point data.root at another folder"
    )


def _other_form(folder: Path) -> str | None:
    """What to say of a folder whose annotations have another form than VOC's; None if it does not look so."""
    names: dict[str, set[str]] = defaultdict(set)
    for name, path in islice(walk(folder, IMAGE_SUFFIXES | {"txt", "json", "csv"}), MAX_LOOKED_AT):
        suffix = path.rpartition(".")[2].lower()
        names["image" if suffix in IMAGE_SUFFIXES else suffix].add(name.rpartition("/")[2])
    forms = {"yolo": names["txt"] & names["image"], "coco": names["json"], "csv": names["csv"]}
    found = [form for form, there in forms.items() if there and names["image"]]
    if not found:
        return None
    words = " or ".join(form.upper() for form in found)
    return f"there are files as of {words}; set data={found[0]} (in `onebox data`: --data {found[0]})"


def write_voc(folder: Path, lists: Lists, classes: Sequence[str]) -> None:
    """Write `Annotations/ID.xml` and `ImageSets/Main/LIST.txt`; the images are in `JPEGImages/`."""
    for list_name, images in lists.items():
        put(folder / "ImageSets" / "Main" / f"{list_name}.txt", "".join(f"{image.id}\n" for image in images))
        for image in images:
            if image.objects is not None:
                put(folder / "Annotations" / f"{image.id}.xml", _xml(image))


def _xml(image: Labelled) -> str:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = image.name
    size = ET.SubElement(root, "size")
    for tag, side in (("width", image.width), ("height", image.height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(side)
    for name, difficult, x1, y1, x2, y2 in image.objects or ():
        item = ET.SubElement(root, "object")
        ET.SubElement(item, "name").text = name
        ET.SubElement(item, "difficult").text = str(int(difficult))
        box = ET.SubElement(item, "bndbox")
        # VOC's pixels count from 1, and the last one is inside.
        for tag, edge in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ET.SubElement(box, tag).text = decimal(edge)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
