"""VOC from a real HTTP server on this machine, which truncates, stalls, lies and refuses as told."""

import hashlib
import io
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from onebox.data import download
from onebox.data.download import Archive, VocDownload
from onebox.errors import BadInput

NAMES = {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"}
CUT = 100_000  # bytes; archives have about 300,000


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: bytes | None = None  # in place of the file
    cut: int | None = None  # close the connection after so many bytes
    stall: int | None = None  # send nothing more after so many bytes
    length: bool = True  # whether Content-Length is sent


class Mirror(ThreadingHTTPServer):
    """Serves `files`; the first requests get the replies of `plan`, all later ones `always`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.plan: list[Reply] = []
        self.always = Reply()
        self.asked: list[str] = []  # names
        self.stalled = threading.Event()  # set when a connection stands still
        self.end = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address) -> None:
        pass  # a client that hangs up is part of the tests


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        mirror, name = self.server, self.path.lstrip("/")
        mirror.asked.append(name)
        reply = mirror.plan.pop(0) if mirror.plan else mirror.always
        if reply.status != 200:
            self.send_error(reply.status)
            return
        body = mirror.files[name] if reply.body is None else reply.body
        self.send_response(200)
        if reply.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        ends = [end for end in (reply.cut, reply.stall) if end is not None]
        body = body[: min(ends)] if ends else body
        self.wfile.write(body)
        if reply.stall is not None:
            self.wfile.flush()
            mirror.stalled.set()
            mirror.end.wait(20)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def make_mirror() -> Iterator:
    mirrors = []

    def make() -> Mirror:
        mirror = Mirror()
        threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        mirrors.append(mirror)
        return mirror

    yield make
    for mirror in mirrors:
        mirror.end.set()
        mirror.shutdown()
        mirror.server_close()


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def part_of_voc(year: int, split: str, first: int, count: int = 10, size: int = 29_000) -> dict[str, bytes]:
    """Files of one archive, by path below VOCdevkit."""
    tree, rng, ids = f"VOC{year}", np.random.default_rng(first), [f"{first + i:06}" for i in range(count)]
    files = {}
    for image_id in ids:
        files[f"{tree}/Annotations/{image_id}.xml"] = b"<annotation/>"
        files[f"{tree}/JPEGImages/{image_id}.jpg"] = rng.bytes(size)
    files[f"{tree}/ImageSets/Main/{split}.txt"] = "\n".join(ids).encode()
    files[f"{tree}/ImageSets/Main/zebra_{split}.txt"] = b""  # sorts after the list that proves the archive
    return files


FILES = {"trainval": part_of_voc(2007, "trainval", 1), "test": part_of_voc(2007, "test", 101)}
TARS = {split: pack({f"VOCdevkit/{path}": content for path, content in FILES[split].items()}) for split in FILES}


def archive(split: str, *mirrors: Mirror, tar: bytes | None = None, name: str | None = None, **changes) -> dict:
    """Arguments of one Archive; the mirrors serve it."""
    tar = TARS[split] if tar is None else tar
    name = name or NAMES[split]
    for mirror in mirrors:
        mirror.files[name] = tar
    return {
        "name": name,
        "urls": [mirror.url(name) for mirror in mirrors],
        "checksum": f"md5:{hashlib.md5(tar).hexdigest()}",
        "size": len(tar),
        "unpacks_to": f"VOC2007/ImageSets/Main/{split}.txt",
    } | changes


SETTINGS = {"timeout_s": 5.0, "rounds": 2, "pause_s": 0.0, "keep_archives": False}


def fetch(root: Path, *archives: dict, download: bool = True, **settings) -> None:
    named = {item["name"]: Archive(**item) for item in archives}
    VocDownload(archives=named, **SETTINGS | settings)(str(root), download=download)


def start(root: Path, *archives: dict, before: str = "") -> subprocess.Popen[str]:
    """The same in a process of its own."""
    code = (
        "import json, sys, logging\nfrom onebox.data import download\n"
        "logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        f"archives, settings = json.loads({json.dumps([archives, SETTINGS])!r})\n{before}\n"
        "named = {item['name']: download.Archive(**item) for item in archives}\n"
        f"download.VocDownload(archives=named, **settings)({str(root)!r}, download=True)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def hidden(folder: Path) -> set[str]:
    """What lies about besides VOCdevkit and the lock."""
    return {path.name for path in folder.iterdir()} - {"VOCdevkit", ".voc-download.lock"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "VOCdevkit"


@pytest.fixture
def mirror(make_mirror) -> Mirror:
    return make_mirror()


@pytest.fixture
def spare(make_mirror) -> Mirror:
    """A second mirror."""
    return make_mirror()


def test_two_archives_become_one_tree_and_nothing_else_stays(root, mirror):
    fetch(root, archive("trainval", mirror), archive("test", mirror))
    assert files(root) == FILES["trainval"] | FILES["test"]
    assert hidden(root.parent) == set()
    assert mirror.asked == [NAMES["trainval"], NAMES["test"]]


def test_fetched_archives_stay_when_asked_to(root, mirror):
    fetch(root, archive("trainval", mirror), keep_archives=True)
    assert files(root.parent) == {NAMES["trainval"]: TARS["trainval"], ".voc-download.lock": b""} | {
        f"VOCdevkit/{path}": content for path, content in FILES["trainval"].items()
    }


def test_a_second_tree_that_fails_leaves_the_first_in_place(root, mirror):
    other = archive("test", mirror, name="other.tar", unpacks_to="VOC2012/x", urls=[mirror.url("other.tar")])
    mirror.plan = [Reply(), Reply(404), Reply(404)]
    with pytest.raises(BadInput, match="HTTP 404"):
        fetch(root, archive("trainval", mirror), other)
    assert files(root) == FILES["trainval"]


class TestWhatIsThere:
    """Trees that the user brought."""

    def write(self, root: Path, content: dict[str, bytes]) -> dict[str, int]:
        for path, data in content.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        return self.times(root)

    def times(self, root: Path) -> dict[str, int]:
        return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}

    @pytest.mark.parametrize("download", [True, False])
    def test_a_complete_tree_is_neither_touched_nor_asked_for(self, root, mirror, download):
        times = self.write(root, FILES["trainval"] | FILES["test"] | {"VOC2007/mine.txt": b"mine"})
        fetch(root, archive("trainval", mirror), archive("test", mirror), download=download)
        assert self.times(root) == times
        assert mirror.asked == []
        assert hidden(root.parent) == set()

    @pytest.mark.parametrize("download", [True, False])
    def test_a_root_that_is_a_tree_itself_is_left_alone(self, root, mirror, download):
        times = self.write(root, {"JPEGImages/1.jpg": b""})
        fetch(root, archive("trainval", mirror), download=download)
        assert self.times(root) == times

    def test_half_a_tree_gets_the_other_half_and_keeps_its_own_files(self, root, mirror):
        edited = {"VOC2007/Annotations/000101.xml": b"corrected by hand"}  # the archive brings this file too
        self.write(root, FILES["trainval"] | edited)
        fetch(root, archive("trainval", mirror), archive("test", mirror))
        assert files(root) == FILES["trainval"] | FILES["test"] | edited
        assert mirror.asked == [NAMES["test"]]

    @pytest.mark.parametrize("moves", [1, 10, 21])
    def test_half_a_tree_that_is_being_completed_shows_the_list_last(self, root, mirror, monkeypatch, moves):
        self.write(root, FILES["trainval"])
        replace, count = Path.replace, itertools.count()

        def stop(path, target):
            if "VOC2007" in str(target) and next(count) == moves:
                raise KeyboardInterrupt
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                fetch(root, archive("test", mirror))
        assert len(files(root)) == len(FILES["trainval"]) + moves
        assert not (root / "VOC2007/ImageSets/Main/test.txt").exists()
        fetch(root, archive("test", mirror))
        assert files(root) == FILES["trainval"] | FILES["test"]
        assert len(mirror.asked) == 1  # the archive was still there

    def test_an_empty_folder_is_no_tree(self, root, mirror):
        (root / "VOC2007").mkdir(parents=True)
        with pytest.raises(BadInput, match="no such tree"):
            fetch(root, archive("trainval", mirror), download=False)
        fetch(root, archive("trainval", mirror))
        assert files(root) == FILES["trainval"]


class TestByHand:
    """Archives that the user put beside VOCdevkit."""

    def put(self, root: Path, split: str, content: bytes | None = None) -> Path:
        root.parent.mkdir(parents=True, exist_ok=True)
        path = root.parent / NAMES[split]
        path.write_bytes(TARS[split] if content is None else content)
        return path

    @pytest.mark.parametrize("download", [True, False])
    def test_they_are_unpacked_without_a_network_and_stay(self, root, mirror, download):
        paths = [self.put(root, split) for split in NAMES]
        fetch(root, archive("trainval", mirror), archive("test", mirror), download=download)
        assert files(root) == FILES["trainval"] | FILES["test"]
        assert mirror.asked == []
        assert all(path.exists() for path in paths)

    def test_a_wrong_one_is_said_and_left_alone_without_download(self, root, mirror):
        path = self.put(root, "trainval", TARS["trainval"][:-1])
        with pytest.raises(BadInput, match=re.escape(f"{path} has md5:")):
            fetch(root, archive("trainval", mirror), download=False)
        assert path.read_bytes() == TARS["trainval"][:-1]
        assert not any(root.iterdir())

    def test_a_wrong_one_is_replaced_with_download(self, root, mirror):
        path = self.put(root, "trainval", b"truncated")
        fetch(root, archive("trainval", mirror))
        assert files(root) == FILES["trainval"]
        assert hidden(root.parent) == {f"{path.name}.wrong"}

    def test_a_message_without_download_says_what_to_do(self, root, mirror):
        with pytest.raises(BadInput) as error:
            fetch(root, archive("trainval", mirror), archive("test", mirror), download=False)
        assert str(error.value) == (
            f"{root}/VOC2007: no such tree; set data.download=true, or put {NAMES['trainval']} and {NAMES['test']} by "
            f"hand into {root.parent}, or set ONEBOX_VOC_ROOT to the folder that holds VOCdevkit"
        )
        assert mirror.asked == []
        assert not root.parent.exists()


class TestBrokenMirrors:
    """Every way in which a transfer goes wrong."""

    def whole(self, root: Path) -> bool:
        return files(root) == FILES["trainval"] and hidden(root.parent) == set()

    def test_a_server_that_says_nothing_is_given_up(self, root, mirror):
        mirror.always = Reply(stall=0)
        began = time.monotonic()
        with pytest.raises(BadInput, match=r"[Tt]imed out"):
            fetch(root, archive("trainval", mirror), rounds=2, timeout_s=0.2)
        assert 0.4 < time.monotonic() - began < 5
        assert len(mirror.asked) == 2

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(404),
            Reply(500),
            Reply(body=b"<html>This page is blocked</html>"),
            Reply(body=bytes(len(TARS["trainval"]))),
            Reply(body=b"", length=False),
            Reply(cut=CUT),
            Reply(cut=CUT, length=False),
            Reply(stall=CUT),
        ],
        ids=["404", "500", "page", "wrong bytes", "none", "cut", "cut without length", "stall"],
    )
    def test_the_next_mirror_takes_over(self, root, mirror, spare, reply):
        mirror.always = reply
        fetch(root, archive("trainval", mirror, spare), rounds=1, timeout_s=0.3)
        assert self.whole(root)
        assert len(spare.asked) == 1

    def test_a_server_that_recovers_is_asked_again(self, root, mirror):
        mirror.plan = [Reply(500), Reply(503)]
        fetch(root, archive("trainval", mirror), rounds=3)
        assert self.whole(root)

    def test_wrong_bytes_everywhere_leave_nothing(self, root, mirror, spare):
        mirror.always = spare.always = Reply(body=bytes(len(TARS["trainval"])))
        with pytest.raises(BadInput, match="its checksum is another one"):
            fetch(root, archive("trainval", mirror, spare))
        assert not any(root.iterdir())
        assert hidden(root.parent) == set()

    def test_sha256_is_checked_as_well(self, root, mirror):
        right = hashlib.sha256(TARS["trainval"]).hexdigest()
        with pytest.raises(BadInput, match="its checksum is another one"):
            fetch(root, archive("trainval", mirror, checksum=f"sha256:{'0' * 64}"))
        fetch(root, archive("trainval", mirror, checksum=f"sha256:{right}"))
        assert self.whole(root)

    @pytest.mark.parametrize("checksum", ["", "md5:", "sha1:" + "0" * 40, "md5:" + "0" * 64])
    def test_another_checksum_is_refused_before_anything_is_fetched(self, mirror, checksum):
        with pytest.raises(BadInput, match="neither md5"):
            Archive(**archive("trainval", mirror, checksum=checksum))

    def test_no_network_is_said_in_one_line_with_all_files_to_bring(self, root):
        with socket.socket() as closed:  # bound, but nobody listens
            closed.bind(("127.0.0.1", 0))
            urls = [f"http://127.0.0.1:{closed.getsockname()[1]}/x.tar"]
            with pytest.raises(BadInput) as error:
                fetch(root, archive("trainval", urls=urls), archive("test", urls=urls))
        assert re.sub(r"\[Errno \d+\] ", "", str(error.value)) == (
            f"{NAMES['trainval']} cannot be fetched ({urls[0]}: Connection refused); try again later, "
            f"or put {NAMES['trainval']} and {NAMES['test']} by hand into {root.parent}"
        )

    def test_all_mirrors_are_waited_for_between_rounds(self, root, mirror, spare, monkeypatch):
        pauses: list[float] = []
        monkeypatch.setattr(download.time, "sleep", pauses.append)
        mirror.always = spare.always = Reply(404)
        with pytest.raises(BadInput):
            fetch(root, archive("trainval", mirror, spare), rounds=3, pause_s=1.5)
        assert pauses == [1.5, 1.5]


class TestHostileArchives:
    """The checksum is right and the content is not."""

    def hostile(self, *members: tarfile.TarInfo) -> bytes:
        buffer = io.BytesIO(TARS["trainval"])
        with tarfile.open(fileobj=buffer, mode="a") as tar:
            for member in members:
                tar.addfile(member, io.BytesIO(b"x" * member.size))
        return buffer.getvalue()

    def member(self, name: str, **attributes) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        for key, value in attributes.items():
            setattr(member, key, value)
        return member

    @pytest.fixture
    def outside(self, tmp_path) -> Path:
        folder = tmp_path / "outside"
        folder.mkdir()
        (folder / "file").write_text("precious")
        return folder

    @pytest.mark.parametrize(
        "kind",
        ["absolute", "dots", "inner dots", "symlink", "symlink up", "hard link", "through link", "device", "pipe"],
    )
    def test_nothing_gets_out_and_nothing_stays(self, root, mirror, outside, kind):
        up = "../" * 5
        link = self.member("VOCdevkit/VOC2007/link", type=tarfile.SYMTYPE, linkname=str(outside))
        members = {
            "absolute": [self.member(f"{outside}/new", size=1)],
            "dots": [self.member(f"{up}outside/new", size=1)],
            "inner dots": [self.member("VOCdevkit/VOC2007/../../../../../outside/new", size=1)],
            "symlink": [link],
            "symlink up": [self.member("VOCdevkit/l", type=tarfile.SYMTYPE, linkname=f"{up}outside")],
            "hard link": [self.member("VOCdevkit/l", type=tarfile.LNKTYPE, linkname=f"{up}outside/file")],
            "through link": [link, self.member("VOCdevkit/VOC2007/link/new", size=1)],
            "device": [self.member("VOCdevkit/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
            "pipe": [self.member("VOCdevkit/p", type=tarfile.FIFOTYPE)],
        }[kind]
        with pytest.raises(BadInput, match=f"^[^\n]*{NAMES['trainval']}: not safe to unpack[^\n]*$"):
            fetch(root, archive("trainval", mirror, tar=self.hostile(*members)))
        assert files(outside) == {"file": b"precious"}
        assert not any(root.iterdir())
        assert hidden(root.parent) == {NAMES["trainval"]}

    @pytest.mark.parametrize("tar", [b"no tar at all", TARS["trainval"][:CUT], pack({"VOC2007/other": b""})])
    def test_what_is_no_whole_archive_is_refused(self, root, mirror, tar):
        with pytest.raises(BadInput, match=f"{NAMES['trainval']}: "):
            fetch(root, archive("trainval", mirror, tar=tar))
        assert not any(root.iterdir())


class TestDisk:
    """Room and rights."""

    def free(self, monkeypatch, count: float) -> None:
        usage = shutil.disk_usage("/")._replace(free=int(count))
        monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)

    def test_it_does_not_start_what_would_fill_the_disk(self, root, mirror, monkeypatch):
        self.free(monkeypatch, 0.5e9)
        with pytest.raises(BadInput, match=rf"^{root.parent}: .* needs 4\.10 GB of disk, 0\.50 GB are free; make room"):
            fetch(root, archive("trainval", mirror, size=2_000_000_000))
        assert mirror.asked == []

    @pytest.mark.parametrize(("missing_bytes", "fits"), [(1, False), (-1, True)])
    def test_it_counts_the_archive_and_the_unpacked_files(self, root, mirror, monkeypatch, missing_bytes, fits):
        self.free(monkeypatch, len(TARS["trainval"]) * 2.05 - missing_bytes)
        if fits:
            fetch(root, archive("trainval", mirror))
        else:
            with pytest.raises(BadInput, match="free"):
                fetch(root, archive("trainval", mirror))

    def test_it_does_not_count_what_is_there_already(self, root, mirror, monkeypatch):
        root.parent.mkdir()
        (root.parent / NAMES["trainval"]).write_bytes(TARS["trainval"])
        self.free(monkeypatch, (len(TARS["trainval"]) + len(TARS["test"])) * 1.05 + len(TARS["test"]) + 1)
        fetch(root, archive("trainval", mirror), archive("test", mirror))
        assert files(root) == FILES["trainval"] | FILES["test"]

    def test_a_place_that_cannot_be_written_is_said(self, root, mirror):
        root.parent.write_text("a file where a folder should be")
        with pytest.raises(BadInput, match=rf"^{root}: VOC cannot be written there"):
            fetch(root, archive("trainval", mirror))

    def test_a_full_disk_while_unpacking_is_said_and_leaves_nothing(self, root, mirror, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tarfile.TarFile, "makefile", full)
        with pytest.raises(BadInput, match="No space left on device"):
            fetch(root, archive("trainval", mirror))
        assert not any(root.iterdir())


class TestProcesses:
    """Several at once, and killed ones."""

    def test_two_at_once_download_once(self, root, mirror):
        mirror.plan = [Reply(stall=CUT)]  # the first holds the lock for as long as the test wants
        archives = [archive("trainval", mirror), archive("test", mirror)]
        first = start(root, *archives)
        assert mirror.stalled.wait(20)
        second = start(root, *archives)
        assert "Waiting for another process" in second.stdout.readline()
        mirror.end.set()
        for process in (first, second):
            assert process.wait(20) == 0, process.stdout.read()
            process.stdout.close()
        assert files(root) == FILES["trainval"] | FILES["test"]
        assert mirror.asked == [NAMES["trainval"], NAMES["trainval"], NAMES["test"]]  # the first was cut off

    def test_killed_while_downloading_it_begins_again(self, root, mirror):
        mirror.plan = [Reply(stall=CUT)]
        process = start(root, archive("trainval", mirror))
        assert mirror.stalled.wait(60)
        kill(process)
        assert not any(root.iterdir())
        fetch(root, archive("trainval", mirror))
        assert files(root) == FILES["trainval"]

    def test_killed_while_unpacking_it_begins_the_tree_again(self, root, mirror):
        slow = (
            "import itertools, time\ncount = itertools.count()\nplain = download._inside\n"
            "def slow(*arguments):\n    if next(count) == 25:\n        time.sleep(60)\n    return plain(*arguments)\n"
            "download._inside = slow"
        )
        process = start(root, archive("trainval", mirror), archive("test", mirror), before=slow)
        wait_for(lambda: (root / ".VOC2007.partial/VOCdevkit/VOC2007/JPEGImages/000101.jpg").exists())
        kill(process)
        assert [path.name for path in root.iterdir()] == [".VOC2007.partial"]
        asked = len(mirror.asked)
        fetch(root, archive("trainval", mirror), archive("test", mirror))
        assert files(root) == FILES["trainval"] | FILES["test"]
        assert len(mirror.asked) == asked


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    process.stdout.close()


@pytest.mark.parametrize(
    ("switch", "message", "asked"),
    [
        ([], "no such tree; set data.download=true, or put VOCtrainval_11-May-2012.tar by hand into ", False),
        (["data.download=true"], "cannot be fetched (http://127.0.0.1:", True),
    ],
)
def test_training_asks_the_network_only_with_data_download(composed, root, mirror, switch, message, asked):
    from onebox.build import build_data

    mirror.always = Reply(404)
    urls = f"data.source.archives.voc2012_trainval.urls=[{mirror.url('x.tar')}]"
    data = build_data(composed("data=voc2012", f"data.root={root}", urls, "data.source.rounds=1", *switch, small=False))
    with pytest.raises(BadInput, match=re.escape(message)):
        data.prepare_data()
    assert bool(mirror.asked) == asked


@pytest.mark.parametrize("switch", ["true", "false"])
def test_shapes_are_drawn_with_and_without_data_download(composed, tmp_path, switch):
    from onebox.build import build_data

    sizes = [f"data.source.num_{split}=2" for split in ("train", "val", "test")]
    build_data(composed(f"data_dir={tmp_path}", f"data.download={switch}", *sizes, small=False)).prepare_data()
    assert len(list((tmp_path / "shapes/JPEGImages").iterdir())) == 6


@pytest.mark.parametrize(
    ("option", "editions"),
    [("voc2007", ["2007", "2007-test"]), ("voc2012", ["2012"]), ("voc0712", ["2007", "2007-test", "2012"])],
)
def test_the_config_names_the_official_archives(option, editions):
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    with initialize_config_module("onebox.conf", version_base="1.3"):
        source = compose("train", overrides=[f"data={option}"]).data.source
    official = [DATASET_YEAR_DICT[edition] for edition in editions]
    assert [item.name for item in source.archives.values()] == [item["filename"] for item in official]
    assert [item.checksum for item in source.archives.values()] == [f"md5:{item['md5']}" for item in official]
    for item, known in zip(source.archives.values(), official, strict=True):
        assert item.urls[0] == known["url"]
        assert len(set(item.urls)) >= 2
        assert all(url.startswith("https://") and url.endswith(f"/{item.name}") for url in item.urls)
        assert item.size % 512 == 0  # a tar file is made of blocks
        assert item.unpacks_to.startswith(known["base_dir"].removeprefix("VOCdevkit/"))
