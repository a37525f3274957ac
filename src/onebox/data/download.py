"""PASCAL VOC from its mirrors: verified, unpacked where nothing can escape, and put in place in one step."""

import itertools
import logging
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests

from onebox.errors import BadInput, check
from onebox.files import alone

log = logging.getLogger(__name__)

INSIDE = "VOCdevkit"  # the folder that every official archive holds its tree in
SPARE = 1.05  # unpacked files take up whole blocks


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One official tar file."""

    name: str  # file name
    urls: Sequence[str]  # mirrors, the best first
    checksum: str  # `md5:...` or `sha256:...` of the file
    size: int  # bytes of the file
    unpacks_to: str  # `TREE/PATH` of a file that the archive brings; once it is there, the archive is not needed

    def __post_init__(self) -> None:
        check(
            re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", self.checksum) is not None,
            f"{self.name}: checksum '{self.checksum}' is neither md5:<32 digits> nor sha256:<64 digits>",
        )

    @property
    def tree(self) -> str:
        """The folder below VOCdevkit that the archive is a part of."""
        return self.unpacks_to.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class VocDownload:
    """Fetches VOC trees that are missing: the `source` of a data module.

    Archives lie beside VOCdevkit; one that was put there by hand is taken without asking the network. A tree
    appears under its name only when it is complete, whenever the process is killed, and files that are there are never
    changed. Several processes may call this at once; one fetches, the others wait.
    """

    archives: Mapping[str, Archive]  # by any name; several may make up one tree
    timeout_s: float  # a connection that gives no byte for this long is given up, seconds
    rounds: int  # how often all mirrors are tried in turn
    pause_s: float  # between two rounds, seconds
    keep_archives: bool  # whether the archives that were fetched stay after they are unpacked

    def __call__(self, root: str, *, download: bool) -> None:
        """Have every tree below `root`.

        Args:
            root: the VOCdevkit folder. A folder that is a tree itself was brought by hand and is left alone.
            download: whether the network may be asked. If not, a tree that is there counts as whole.

        Raises:
            BadInput: a tree is missing and cannot be had; the message says which file to put where by hand.
        """
        devkit = Path(root).resolve()
        missing = self._missing(devkit, download)
        if not missing:
            return
        if not download and (by_hand := _by_hand(missing, devkit.parent)):
            raise BadInput(
                f"{devkit / missing[0].tree}: no such tree; set data.download=true, or {by_hand}, "
                "or set ONEBOX_VOC_ROOT to the folder that holds VOCdevkit"
            )
        try:
            devkit.mkdir(parents=True, exist_ok=True)
            with alone(devkit.parent / ".voc-download.lock", waiting="Waiting for another process that fetches VOC"):
                missing = self._missing(devkit, download)  # less, if another process was at it
                _check_disk(missing, devkit)
                for _, parts in itertools.groupby(sorted(missing, key=lambda item: item.tree), lambda item: item.tree):
                    archives = list(parts)
                    fetched = [item for item in archives if self._provide(item, devkit.parent, download)]
                    _unpack(archives, devkit)
                    for archive in [] if self.keep_archives else fetched:
                        (devkit.parent / archive.name).unlink()
        except _NoMirror as error:
            raise BadInput(f"{error}; try again later, or {_by_hand(missing, devkit.parent)}") from error
        except OSError as error:
            raise BadInput(f"{devkit}: VOC cannot be written there ({error}); free or change the folder") from error

    def _missing(self, devkit: Path, download: bool) -> list[Archive]:
        """Archives to unpack, those of half a tree only when the network may be asked."""
        if (devkit / "JPEGImages").is_dir():
            return []
        found = {archive.tree: _is_filled(devkit / archive.tree) for archive in self.archives.values()}
        return [
            archive
            for archive in self.archives.values()
            if not found[archive.tree] or (download and not (devkit / archive.unpacks_to).exists())
        ]

    def _provide(self, archive: Archive, folder: Path, download: bool) -> bool:
        """Have a verified archive in `folder`; whether it had to be fetched."""
        path = folder / archive.name
        if path.is_file():
            kind = archive.checksum.partition(":")[0]
            found = f"{kind}:{pooch.file_hash(str(path), alg=kind)}"
            if found == archive.checksum:
                return False
            wrong = f"{path} has {found} instead of {archive.checksum}"
            check(download, f"{wrong}: replace the file, or set data.download=true")
            log.warning("%s: now %s.wrong, fetching another", wrong, path.name)
            path.replace(folder / f"{path.name}.wrong")
        self._fetch(archive, folder)
        return True

    def _fetch(self, archive: Archive, folder: Path) -> None:
        """Put an archive into `folder`, from the first mirror that gives it whole."""
        problem = "no mirror is given"
        pooch.get_logger().setLevel(logging.WARNING)
        fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=self.timeout_s)
        for number in range(self.rounds):
            if number:
                time.sleep(self.pause_s)
            for url in archive.urls:
                log.info("%s: %.0f MB from %s", archive.name, archive.size / 1e6, url)
                try:
                    pooch.retrieve(url, archive.checksum, fname=archive.name, path=folder, downloader=fetch)
                except (requests.RequestException, ValueError) as error:  # ValueError: another checksum
                    problem = f"{url}: {_reason(error)}"
                    log.info("%s", problem)
                else:
                    return
        raise _NoMirror(f"{archive.name} cannot be fetched ({problem})")


class _NoMirror(Exception):
    """All mirrors failed."""


def _by_hand(archives: Sequence[Archive], folder: Path) -> str:
    """What to put where when there is no network; empty when all is there."""
    names = [archive.name for archive in archives if not (folder / archive.name).is_file()]
    return f"put {' and '.join(names)} by hand into {folder}" if names else ""


def _check_disk(archives: Sequence[Archive], devkit: Path) -> None:
    """Refuse to start what would fill the disk."""
    here = sum(archive.size for archive in archives if (devkit.parent / archive.name).is_file())
    needed = sum(archive.size * (1 + SPARE) for archive in archives) - here
    free = shutil.disk_usage(devkit.parent).free
    check(
        free >= needed,
        f"{devkit.parent}: {' and '.join(archive.name for archive in archives)} needs {needed / 1e9:.2f} GB of disk, "
        f"{free / 1e9:.2f} GB are free; make room, or set ONEBOX_VOC_ROOT to a folder on a larger disk",
    )


def _unpack(archives: Sequence[Archive], devkit: Path) -> None:
    """Unpack the archives of one tree into a folder aside, then move it into place."""
    tree = devkit / archives[0].tree
    partial = devkit / f".{tree.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: nobody else holds the lock
    whole = partial / INSIDE / tree.name
    last = [partial / INSIDE / archive.unpacks_to for archive in archives]
    try:
        for archive, wanted in zip(archives, last, strict=True):
            path = devkit.parent / archive.name
            log.info("Unpacking %s", path)
            try:
                with tarfile.open(path) as tar:
                    tar.extractall(partial, filter=_inside)
            except (tarfile.TarError, EOFError) as error:
                raise BadInput(f"{path}: not safe to unpack, or damaged ({error}); get it from elsewhere") from None
            if not wanted.is_file():
                raise BadInput(f"{path}: holds no {INSIDE}/{archive.unpacks_to}; get the archive from elsewhere")
        if not _is_filled(tree):
            whole.replace(tree)
            return
        # Half a tree is there: add files and change none, and show last what says that a part is there.
        files = [path for path in whole.rglob("*") if not path.is_dir()]
        for path in sorted(files, key=lambda path: path in last):
            target = tree / path.relative_to(whole)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Tarfile's filter for data, which refuses links and places outside and devices; stricter with names."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise tarfile.TarError(f"{member.name!r} points outside")
    return tarfile.data_filter(member, folder)


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _reason(error: Exception) -> str:
    """What went wrong, without the layers of urllib3 around it."""
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, ValueError) and not isinstance(error, requests.RequestException):
        return "wrong checksum: the file is cut off or another one"
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", cause)).rpartition(": ")[2]
