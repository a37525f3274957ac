"""VOC from a real HTTP server on this machine, which truncates, stalls, lies and refuses as told."""

import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from onebox.build import build_data
from onebox.data import download
from onebox.data.download import Archive, VocDownload
from onebox.errors import BadInput

NAMES = {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"}
CUT = 100_000  # bytes; archives have about 300,000
SETTINGS = {"timeout_s": 5.0, "rounds": 2, "pause_s": 0.0, "keep_archives": False}


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: bytes | None = None  # in place of the file
    cut: int | None = None  # close the connection after so many bytes
    stall: int | None = None  # send nothing more after so many bytes


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
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: reply.cut if reply.stall is None else reply.stall])
        if reply.stall is not None:
            self.wfile.flush()
            mirror.stalled.set()
            mirror.end.wait(20)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def mirror():
    server = Mirror()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.end.set()
    server.shutdown()
    server.server_close()


spare = mirror  # a second one


def pack(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"VOCdevkit/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def part_of_voc(split: str, first: int) -> dict[str, bytes]:
    """Files of one archive, by path below VOCdevkit."""
    rng, ids = np.random.default_rng(first), [f"{first + i:06}" for i in range(10)]
    files = {f"VOC2007/Annotations/{image_id}.xml": b"<annotation/>" for image_id in ids}
    files |= {f"VOC2007/JPEGImages/{image_id}.jpg": rng.bytes(29_000) for image_id in ids}
    files[f"VOC2007/ImageSets/Main/{split}.txt"] = "\n".join(ids).encode()
    files[f"VOC2007/ImageSets/Main/zebra_{split}.txt"] = b""  # sorts after the list that proves the archive
    return files


FILES = {"trainval": part_of_voc("trainval", 1), "test": part_of_voc("test", 101)}
BOTH = FILES["trainval"] | FILES["test"]
TARS = {split: pack(files) for split, files in FILES.items()}


def archive(split: str, *mirrors: Mirror, tar: bytes | None = None, **changes) -> dict:
    """Arguments of one Archive; the mirrors serve it."""
    tar, name = TARS[split] if tar is None else tar, NAMES[split]
    for mirror in mirrors:
        mirror.files[name] = tar
    return {
        "name": name,
        "urls": [mirror.url(name) for mirror in mirrors],
        "checksum": f"md5:{hashlib.md5(tar).hexdigest()}",
        "size": len(tar),
        "unpacks_to": f"VOC2007/ImageSets/Main/{split}.txt",
    } | changes


def both(*mirrors: Mirror) -> list[dict]:
    return [archive(split, *mirrors) for split in NAMES]


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


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def beside(root: Path) -> set[str]:
    """What lies about besides VOCdevkit and the lock."""
    return {path.name for path in root.parent.iterdir()} - {"VOCdevkit", ".voc-download.lock"}


def write(root: Path, content: dict[str, bytes]) -> dict[Path, int]:
    for path, data in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return times(root)


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def put(root: Path, split: str, content: bytes | None = None) -> Path:
    """An archive that the user brought."""
    root.parent.mkdir(parents=True, exist_ok=True)
    path = root.parent / NAMES[split]
    path.write_bytes(TARS[split] if content is None else content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "VOCdevkit"


@pytest.mark.parametrize("keep", [False, True])
def test_two_archives_become_one_tree_and_stay_only_when_asked_to(root, mirror, keep):
    fetch(root, *both(mirror), keep_archives=keep)
    assert files(root) == BOTH
    assert beside(root) == (set(NAMES.values()) if keep else set())
    assert mirror.asked == list(NAMES.values())


# --- what the user brought


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("there", [BOTH | {"VOC2007/mine.txt": b"mine"}, {"JPEGImages/1.jpg": b""}])
def test_a_complete_tree_is_neither_touched_nor_asked_for(root, mirror, download, there):
    before = write(root, there)
    fetch(root, *both(mirror), download=download)
    assert times(root) == before
    assert mirror.asked == [] and beside(root) == set()


def test_half_a_tree_gets_the_other_half_keeps_its_own_files_and_shows_the_list_last(root, mirror, monkeypatch):
    edited = {"VOC2007/Annotations/000101.xml": b"corrected by hand"}  # the archive brings this file too
    write(root, FILES["trainval"] | edited)
    replace, moves = Path.replace, count()

    def stop(path, target):
        if "VOC2007" in str(target) and next(moves) == 10:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(root, *both(mirror))
    assert len(files(root)) == len(FILES["trainval"]) + 1 + 10
    assert not (root / "VOC2007/ImageSets/Main/test.txt").exists()
    fetch(root, *both(mirror))
    assert files(root) == BOTH | edited
    assert mirror.asked == [NAMES["test"]]  # the archive was still there


@pytest.mark.parametrize("download", [True, False])
def test_archives_are_unpacked_without_a_network_and_stay(root, mirror, download):
    paths = [put(root, split) for split in NAMES]
    fetch(root, *both(mirror), download=download)
    assert files(root) == BOTH
    assert mirror.asked == []
    assert all(path.exists() for path in paths)


def test_a_wrong_archive_is_left_alone_without_download_and_replaced_with_it(root, mirror):
    path = put(root, "trainval", b"truncated")
    with pytest.raises(BadInput, match=re.escape(f"{path} has md5:")):
        fetch(root, archive("trainval", mirror), download=False)
    assert path.read_bytes() == b"truncated" and not any(root.iterdir())
    fetch(root, archive("trainval", mirror))
    assert files(root) == FILES["trainval"]
    assert beside(root) == {f"{path.name}.wrong"}


def test_a_message_without_download_says_what_to_do(root, mirror):
    (root / "VOC2007").mkdir(parents=True)  # an empty folder is no tree
    with pytest.raises(BadInput) as error:
        fetch(root, *both(mirror), download=False)
    assert str(error.value) == (
        f"{root}/VOC2007: no such tree; set data.download=true, or put {NAMES['trainval']} and {NAMES['test']} by "
        f"hand into {root.parent}, or set ONEBOX_VOC_ROOT to the folder that holds VOCdevkit"
    )
    assert mirror.asked == []


# --- what goes wrong with a transfer


@pytest.mark.parametrize(
    "reply",
    [Reply(404), Reply(500), Reply(body=b"<html>blocked</html>"), Reply(body=b""), Reply(cut=CUT), Reply(stall=CUT)],
    ids=["404", "500", "page", "none", "cut", "stall"],
)
def test_the_next_mirror_takes_over(root, mirror, spare, reply):
    mirror.always = reply
    fetch(root, archive("trainval", mirror, spare), rounds=1, timeout_s=0.3)
    assert files(root) == FILES["trainval"] and beside(root) == set()
    assert len(spare.asked) == 1


def test_a_server_that_recovers_is_asked_again_after_a_pause(root, mirror, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    mirror.plan = [Reply(500), Reply(503)]
    fetch(root, archive("trainval", mirror), rounds=3, pause_s=1.5)
    assert files(root) == FILES["trainval"]
    assert pauses == [1.5, 1.5]


def test_a_server_that_says_nothing_is_given_up(root, mirror):
    mirror.always = Reply(stall=0)
    with pytest.raises(BadInput, match=r"[Tt]imed out"):
        fetch(root, archive("trainval", mirror), rounds=2, timeout_s=0.2)
    assert len(mirror.asked) == 2


def test_wrong_bytes_everywhere_leave_nothing(root, mirror):
    right = hashlib.sha256(TARS["trainval"]).hexdigest()
    with pytest.raises(BadInput, match="wrong checksum"):
        fetch(root, archive("trainval", mirror, checksum=f"sha256:{'0' * 64}"))
    assert not any(root.iterdir()) and beside(root) == set()
    fetch(root, archive("trainval", mirror, checksum=f"sha256:{right}"))
    assert files(root) == FILES["trainval"]


@pytest.mark.parametrize("checksum", ["", "md5:", "sha1:" + "0" * 40, "md5:" + "0" * 64])
def test_another_checksum_is_refused_before_anything_is_fetched(mirror, checksum):
    with pytest.raises(BadInput, match="neither md5"):
        Archive(**archive("trainval", mirror, checksum=checksum))


def test_no_network_is_said_in_one_line_with_all_files_to_bring(root):
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{closed.getsockname()[1]}/x.tar"]
        with pytest.raises(BadInput) as error:
            fetch(root, archive("trainval", urls=urls), archive("test", urls=urls))
    assert re.sub(r"\[Errno \d+\] ", "", str(error.value)) == (
        f"{NAMES['trainval']} cannot be fetched ({urls[0]}: Connection refused); try again later, "
        f"or put {NAMES['trainval']} and {NAMES['test']} by hand into {root.parent}"
    )


# --- archives whose checksum is right and whose content is not


@pytest.mark.parametrize("kind", ["absolute", "dots", "hard link", "through link", "device"])
def test_nothing_gets_out_of_an_archive_and_nothing_stays(root, mirror, tmp_path, kind):
    def member(name, **attributes):
        info = tarfile.TarInfo(name)
        vars_of = {"size": 0 if attributes else 1} | attributes
        for key, value in vars_of.items():
            setattr(info, key, value)
        return info

    outside = tmp_path / "outside"
    write(outside, {"file": b"precious"})
    up = "../" * 5
    link = member("VOCdevkit/VOC2007/link", type=tarfile.SYMTYPE, linkname=str(outside))
    members = {
        "absolute": [member(f"{outside}/new")],
        "dots": [member("VOCdevkit/VOC2007/../../../../../outside/new")],
        "hard link": [member("VOCdevkit/l", type=tarfile.LNKTYPE, linkname=f"{up}outside/file")],
        "through link": [link, member("VOCdevkit/VOC2007/link/new")],
        "device": [member("VOCdevkit/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    }[kind]
    with pytest.raises(BadInput, match=f"^[^\n]*{NAMES['trainval']}: not safe to unpack[^\n]*$"):
        fetch(root, archive("trainval", mirror, tar=pack(FILES["trainval"], *members)))
    assert files(outside) == {"file": b"precious"}
    assert not any(root.iterdir())
    assert beside(root) == {NAMES["trainval"]}


@pytest.mark.parametrize("tar", [b"no tar at all", TARS["trainval"][:CUT], pack({"VOC2007/other": b""})])
def test_what_is_no_whole_archive_is_refused(root, mirror, tar):
    with pytest.raises(BadInput, match=f"{NAMES['trainval']}: "):
        fetch(root, archive("trainval", mirror, tar=tar))
    assert not any(root.iterdir())


# --- room and rights


@pytest.mark.parametrize(("free", "fits"), [(-1, False), (1, True)])
def test_it_does_not_start_what_would_fill_the_disk(root, mirror, monkeypatch, free, fits):
    put(root, "trainval")  # only unpacked files are to come from it
    free += 1.05 * len(TARS["trainval"]) + 2.05 * len(TARS["test"])
    usage = shutil.disk_usage("/")._replace(free=int(free))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    if fits:
        fetch(root, *both(mirror))
        assert files(root) == BOTH
    else:
        with pytest.raises(BadInput, match=rf"^{root.parent}: .* GB of disk, 0\.00 GB are free; make room"):
            fetch(root, *both(mirror))
        assert mirror.asked == []


def test_a_full_disk_and_a_place_that_cannot_be_written_are_said(root, mirror, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", full)
        with pytest.raises(BadInput, match="No space left on device"):
            fetch(root, archive("trainval", mirror))
    assert not any(root.iterdir())
    root.rmdir()
    root.write_text("a file where a folder should be")
    with pytest.raises(BadInput, match=rf"^{root}: VOC cannot be written there"):
        fetch(root, archive("trainval", mirror))


# --- several processes, and killed ones


def test_two_at_once_download_once(root, mirror):
    mirror.plan = [Reply(stall=CUT)]  # the first holds the lock for as long as the test wants
    first = start(root, *both(mirror))
    assert mirror.stalled.wait(20)
    second = start(root, *both(mirror))
    assert "aiting for another process" in second.stdout.readline()
    mirror.end.set()
    for process in (first, second):
        assert process.wait(20) == 0, process.stdout.read()
        process.stdout.close()
    assert files(root) == BOTH
    assert mirror.asked == [NAMES["trainval"], NAMES["trainval"], NAMES["test"]]  # the first was cut off


def test_killed_while_downloading_or_unpacking_it_begins_again(root, mirror):
    mirror.plan = [Reply(stall=CUT)]
    process = start(root, *both(mirror))
    assert mirror.stalled.wait(60)
    kill(process)
    assert not any(root.iterdir())

    slow = (
        "import tarfile, time\nplain = tarfile.TarFile.makefile\n"
        "def slow(tar, member, path):\n    if member.name.endswith('000105.jpg'):\n        time.sleep(60)\n"
        "    return plain(tar, member, path)\ntarfile.TarFile.makefile = slow"
    )
    process = start(root, *both(mirror), before=slow)
    end = time.monotonic() + 20
    while not list(root.glob("*/VOCdevkit/VOC2007/JPEGImages/000104.jpg")):
        assert time.monotonic() < end
        time.sleep(0.01)
    kill(process)
    assert not (root / "VOC2007").exists()
    asked = len(mirror.asked)
    fetch(root, *both(mirror))
    assert files(root) == BOTH
    assert len(mirror.asked) == asked


# --- the config


@pytest.mark.parametrize(
    ("switch", "message", "asked"),
    [
        ([], "no such tree; set data.download=true, or put VOCtrainval_11-May-2012.tar by hand into ", False),
        (["data.download=true"], "cannot be fetched (http://127.0.0.1:", True),
    ],
)
def test_training_asks_the_network_only_with_data_download(composed, root, mirror, switch, message, asked):
    mirror.always = Reply(404)
    urls = f"data.source.archives.voc2012_trainval.urls=[{mirror.url('x.tar')}]"
    data = build_data(composed("data=voc2012", f"data.root={root}", urls, "data.source.rounds=1", *switch, small=False))
    with pytest.raises(BadInput, match=re.escape(message)):
        data.prepare_data()
    assert bool(mirror.asked) == asked


@pytest.mark.parametrize(
    ("option", "editions"),
    [("voc2007", ["2007", "2007-test"]), ("voc2012", ["2012"]), ("voc0712", ["2007", "2007-test", "2012"])],
)
def test_the_config_names_the_official_archives(option, editions):
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    with initialize_config_module("onebox.conf", version_base="1.3"):
        archives = compose("train", overrides=[f"data={option}"]).data.source.archives.values()
    for item, official in zip(archives, [DATASET_YEAR_DICT[edition] for edition in editions], strict=True):
        assert (item.name, item.checksum) == (official["filename"], f"md5:{official['md5']}")
        assert item.urls[0] == official["url"] and len(set(item.urls)) >= 2
        assert all(url.startswith("https://") and url.endswith(f"/{item.name}") for url in item.urls)
        assert item.size % 512 == 0  # a tar file is made of blocks
        assert item.unpacks_to.startswith(official["base_dir"].removeprefix("VOCdevkit/"))
