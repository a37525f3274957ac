"""Images and their annotations on disk: VOC's layout, ILSVRC's, and the layouts that people make of them.

An id is the path of an image below its folder, without the suffix: `000028`, `n01440764/n01440764_10026`. It is only
ever looked up among the files that are there, so a list cannot point outside the tree.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onebox.errors import BadInput, check

# In any case. The last ones are not read, but a picture that is there is not to be called missing.
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "heic", "avif"})
ANNOTATION_FOLDERS = ("annotations", "annotation", "annots", "xmls", "xml", "labels", "label", "bboxes")  # in any case
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pictures", "photos", "jpgs")
MAX_LOOKED_AT = 20_000  # files, when a tree has none of these layouts


class Files:
    """The files of certain suffixes below some folders, by id. Names that begin with a dot are no data.

    Attributes:
        paths: id (in Unicode's NFC) -> file.
        ambiguous: id -> the files of that id, sorted, where there are several; the first is in `paths`.

    Raises:
        BadInput: a folder cannot be read.
    """

    def __init__(self, folders: Sequence[Path], suffixes: Collection[str]) -> None:
        self.folders = folders
        self.paths: dict[str, str] = {}
        several: dict[str, set[str]] = {}
        for folder in folders:
            for name, path in _walk(folder, suffixes):
                first = self.paths.setdefault(name, path)
                if first != path:
                    several.setdefault(name, {first}).add(path)
        self.ambiguous = {name: sorted(map(Path, several[name])) for name in sorted(several)}
        self.paths |= {name: str(files[0]) for name, files in self.ambiguous.items()}

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """Last part of the ids -> id, where only one has it."""
        stems = Counter(name.rpartition("/")[2] for name in self.paths)
        return {stem: name for name in self.paths if stems[stem := name.rpartition("/")[2]] == 1}

    def find(self, text: str) -> str | None:
        """The id that a text means: an id, a file's name, the end of a path, or a name that only one folder has."""
        if text in self.paths:
            return text
        text = unicodedata.normalize("NFC", text.replace("\\", "/"))
        stem = without_suffix(text)
        for name in dict.fromkeys([text, stem]):
            parts = name.split("/")
            for start in range(len(parts)):
                if (end := "/".join(parts[start:])) in self.paths:
                    return end
        return self.by_stem.get(stem.rpartition("/")[2])


def without_suffix(name: str) -> str:
    """A file's name without the suffix of an image or an annotation; other dots stay."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and (suffix.lower() in IMAGE_SUFFIXES or suffix.lower() == "xml") else name


@dataclass(frozen=True)
class Folders:
    """Folders below a tree's: of its images, and of its annotations; None looks for one of the usual names."""

    images: str | None = None
    annotations: str | None = None


class VocTree:
    """A folder with `Annotations/`, `JPEGImages/` and perhaps `ImageSets/Main/`; ILSVRC's folder, with
    `Annotations/CLS-LOC/{train,val}/`, `Data/CLS-LOC/{train,val,test}/` and `ImageSets/CLS-LOC/`; folders of other
    usual names; or one folder for both, each image beside its XML.

    Args:
        folder: where it is.
        folders: its folders of images and annotations, where they have no usual name.
        strict: whether two images of one id are refused; otherwise the first by name is taken.

    Attributes:
        images: the image files by id.
        annotations: the XML files by id; an image's has the same id, or the same last part where only one has it.
        lists: the folder of its lists.

    Raises:
        BadInput: there are no such folders, one cannot be read, or two images have one id.
    """

    def __init__(self, folder: Path, folders: Folders = Folders(), *, strict: bool = True) -> None:
        self.folder = folder
        image_folders, annotation_folders = _find_folders(folder, folders)
        self.images = Files(image_folders, IMAGE_SUFFIXES)
        self.annotations = Files(annotation_folders, {"xml"})
        for one, other, *_ in self.images.ambiguous.values() if strict else ():
            raise BadInput(f"{other}: {one.name} has the same id; keep one of the two")
        places = [folder / "ImageSets" / "CLS-LOC", folder / "ImageSets" / "Main", folder / "ImageSets"]
        self.lists = next((place for place in places if place.is_dir()), folder)

    @property
    def folders_of_splits(self) -> dict[str, str]:
        """Split -> the folder at the top of the ids that is called like it, where train and another are there."""
        tops = {name.partition("/")[0] for name in self.images.paths if "/" in name}
        usual = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
        found = {usual[top]: top for top in sorted(tops) if top in usual}
        return found if "train" in found and len(found) > 1 else {}

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
        path = self.lists / f"{list_name}.txt"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
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
        """The id of an image's XML file; None when it has none."""
        if image_id in self.annotations.paths:
            return image_id
        stem = image_id.rpartition("/")[2]
        is_known = image_id not in self.images.paths or self.images.by_stem.get(stem) == image_id
        return self.annotations.by_stem.get(stem) if is_known else None

    def annotation_file(self, image_id: str) -> str:
        """The XML file of an image, or where it would be."""
        name = self.annotation_id(image_id)
        return self.annotations.paths[name] if name else f"{self.annotations.folders[0]}/{image_id}.xml"

    def has_image(self, image_id: str) -> bool:
        """Whether there are pixels for this id."""
        return image_id in self.images.paths

    def image_file(self, image_id: str) -> str:
        """Where the pixels of one image are, or would be; as a string, which is quicker than a path."""
        return self.images.paths.get(image_id) or f"{self.images.folders[0]}/{image_id}.jpg"


def find_trees(root: Path) -> list[Path]:
    """The folders of the trees at `root`: itself, or those in its VOCdevkit or directly in it.

    Raises:
        BadInput: there is none.
    """
    check(root.is_dir(), f"{root}: no such folder; name one with annotations and images, or one of such folders")
    found = [root] if _layout(root, Folders()) is not None else _trees_below(root)
    if not found:
        raise BadInput(_nothing_fits(root))
    return found


def _trees_below(root: Path) -> list[Path]:
    for folder in (root / "VOCdevkit", root):
        below = sorted(path for path in folder.glob("[!.]*") if path.is_dir()) if folder.is_dir() else []
        if trees := [path for path in below if _layout(path, Folders()) is not None]:
            return trees
    return []


def _find_folders(folder: Path, folders: Folders) -> tuple[list[Path], list[Path]]:
    check(
        folder.is_dir(),
        f"{folder}: no such folder; point data.root (or ONEBOX_VOC_ROOT, the folder that holds VOCdevkit) at a tree "
        "with Annotations/ and JPEGImages/",
    )
    found = _layout(folder, folders)
    if found is None:
        raise BadInput(_nothing_fits(folder))
    for key, place in (("images", folders.images), ("annotations", folders.annotations)):
        check(place is None or (folder / place).is_dir(), f"{folder / str(place)}: no such folder; correct data.{key}")
    return found


def _layout(folder: Path, folders: Folders) -> tuple[list[Path], list[Path]] | None:
    """The folders of images and of annotations; None where they are of no usual layout."""
    if (folder / "Annotations" / "CLS-LOC").is_dir() and folders == Folders():
        parts = ("train", "val", "test")
        image_folders = [folder / "Data" / "CLS-LOC" / part for part in parts]
        return image_folders, [folder / "Annotations" / "CLS-LOC" / part for part in parts]
    below = {path.name.casefold(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()}
    found = []
    for place, usual in ((folders.images, IMAGE_FOLDERS), (folders.annotations, ANNOTATION_FOLDERS)):
        named = folder / place if place else next((below[name] for name in usual if name in below), None)
        found.append(named)
    if found[0] and found[1]:
        return [found[0]], [found[1]]
    # One folder for both: nearly each XML file lies beside its image.
    both = found[0] or found[1] or folder
    names = {name for name, _ in _walk(both, {"xml"})}
    if names and len(names & {name for name, _ in _walk(both, IMAGE_SUFFIXES)}) >= 0.8 * len(names):
        return [both], [both]
    return None


def _nothing_fits(folder: Path) -> str:
    """What to say of a folder without annotations and images where they usually lie: where there are some."""
    if trees := _trees_below(folder):
        others = f" (or {', '.join(map(str, trees[1:4]))})" if len(trees) > 1 else ""
        return f"{folder}: has no annotations and images itself; set data.root={trees[0]}{others}"
    counts: dict[str, Counter[str]] = {"annotations": Counter(), "images": Counter()}
    for number, (name, path) in enumerate(_walk(folder, IMAGE_SUFFIXES | {"xml"})):
        if number > MAX_LOOKED_AT:
            break
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


def _walk(folder: Path, suffixes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Id and path of all files below a folder that end so; each folder once, wherever links lead."""
    pending, seen = [""], set()
    while pending:
        below = pending.pop()
        try:
            state = os.stat(folder / below)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    stem, _, suffix = entry.name.rpartition(".")
                    if entry.name.startswith("."):
                        continue
                    if stem and suffix.lower() in suffixes and entry.is_file():
                        yield unicodedata.normalize("NFC", below + stem), entry.path
                    elif entry.is_dir():
                        pending.append(f"{below}{entry.name}/")
        except FileNotFoundError:
            continue  # of ILSVRC's folders one may be missing
        except OSError as error:
            raise BadInput(f"{folder / below}: cannot be read ({error.strerror}); make it readable") from error
