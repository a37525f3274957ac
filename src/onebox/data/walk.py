"""The files below a folder, by id.

An id is the path of a file below its folder, without the suffix: `000028`, `n01440764/n01440764_10026`. It is only
ever looked up among the files that are there, so a list cannot point outside of them.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from onebox.errors import BadInput

# In any case. The last ones are not read, but a picture that is there is not to be called missing.
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "heic", "avif"})


class Files:
    """The files of certain suffixes below some folders, by id. Names that begin with a dot are no data.

    Args:
        folders: where to look; one that does not exist holds none.
        suffixes: without the dot, in lower case, an empty one for files without; a file's may be in any case.
        short: whether an id is only the last part of the path, where no other file has the same.

    Attributes:
        paths: id (in Unicode's NFC) -> file.
        ambiguous: id -> the files of that id, sorted, where there are several; the first is in `paths`.

    Raises:
        BadInput: a folder cannot be read.
    """

    def __init__(self, folders: Sequence[Path], suffixes: Collection[str], *, short: bool = False) -> None:
        self.folders = folders
        self.suffixes = frozenset(suffixes)
        self.paths: dict[str, str] = {}
        several: dict[str, set[str]] = {}
        for folder in folders:
            for name, path in walk(folder, suffixes):
                first = self.paths.setdefault(name, path)
                if first != path:
                    several.setdefault(name, {first}).add(path)
        self.ambiguous = {name: sorted(map(Path, several[name])) for name in sorted(several)}
        self.paths |= {name: str(files[0]) for name, files in self.ambiguous.items()}
        self._short: dict[str, str] = {}  # path below the folder -> id, where they differ
        if short:
            self._short = {name: stem for stem, name in self.by_stem.items()}
            self.paths = {self._short.get(name, name): path for name, path in self.paths.items()}
            del self.by_stem  # it is of the ids

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """Last part of the ids -> id, where only one has it."""
        stems = Counter(name.rpartition("/")[2] for name in self.paths)
        return {stem: name for name in self.paths if stems[stem := name.rpartition("/")[2]] == 1}

    def __contains__(self, name: str) -> bool:
        return name in self.paths

    def file(self, name: str) -> str:
        """The file of an id, or where it would be; as a string, which is quicker than a path."""
        suffix = "jpg" if "jpg" in self.suffixes else min(self.suffixes)
        return self.paths.get(name) or f"{self.folders[0]}/{name}.{suffix}"

    def check_unique(self) -> None:
        """Refuse files of one id.

        Raises:
            BadInput: there are some; the message names two.
        """
        for one, other, *_ in self.ambiguous.values():
            raise BadInput(f"{other}: {one.name} has the same id; keep one of the two")

    def find(self, text: str) -> str | None:
        """The id that a text means: an id, a file's name, the end of a path, or a name that only one folder has."""
        if text in self.paths:
            return text
        text = unicodedata.normalize("NFC", text.replace("\\", "/"))
        stem = without_suffix(text)
        for name in dict.fromkeys([text, stem]):
            parts = name.split("/")
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                if (found := self._short.get(end, end)) in self.paths:
                    return found
        return self.by_stem.get(stem.rpartition("/")[2])


def without_suffix(name: str) -> str:
    """A file's name without the suffix of an image or an annotation; other dots stay."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and (suffix.lower() in IMAGE_SUFFIXES or suffix.lower() == "xml") else name


def walk(folder: Path, suffixes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Id and path of all files below a folder that end so; each folder once, wherever links lead."""
    pending, seen = [""], set()
    while pending:
        below = pending.pop()
        try:
            place = os.path.join(folder, below)
            state = os.stat(place)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    stem, _, suffix = entry.name.rpartition(".")
                    if entry.name.startswith("."):
                        continue
                    name, suffix = (stem, suffix.lower()) if stem else (entry.name, "")
                    if suffix in suffixes and entry.is_file():
                        yield unicodedata.normalize("NFC", below + name), entry.path
                    elif entry.is_dir():
                        pending.append(f"{below}{entry.name}/")
        except FileNotFoundError:
            continue  # of ILSVRC's folders one may be missing
        except OSError as error:
            raise BadInput(f"{folder / below}: cannot be read ({error.strerror}); make it readable") from error
