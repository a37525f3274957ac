"""The installed command `onebox`, as a user starts it."""

import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

COMMAND = Path(sys.executable).parent / "onebox"
KEY = "data.source.archives.voc2012_trainval"


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("ONEBOX_")}
    return subprocess.Popen(
        [str(COMMAND), *arguments],
        cwd=folder,
        env=plain | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def tar() -> bytes:
    """A VOC 2012 of one list and one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("ImageSets/Main/trainval.txt", "JPEGImages/1.jpg"):
            member = tarfile.TarInfo(f"VOCdevkit/VOC2012/{name}")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"1\n"))
    return buffer.getvalue()


@pytest.fixture
def server(tar: bytes) -> Iterator[ThreadingHTTPServer]:
    """Serves the archive at /voc.tar; at /slow.tar it stops in the middle and sets `stalled`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(tar)))
            self.end_headers()
            slow = self.path == "/slow.tar"
            self.wfile.write(tar[:100] if slow else tar)
            if slow:
                self.wfile.flush()
                self.server.stalled.set()
                self.server.end.wait(20)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stalled, server.end = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.end.set()
    server.shutdown()
    server.server_close()


def serve(server: ThreadingHTTPServer, tar: bytes, path: str = "voc.tar") -> list[str]:
    """Overrides that put the server in place of the mirrors."""
    return [
        f"{KEY}.urls=[http://127.0.0.1:{server.server_port}/{path}]",
        f"{KEY}.checksum='md5:{hashlib.md5(tar).hexdigest()}'",
        f"{KEY}.size={len(tar)}",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "  runs  "),
        (["data"], "  download  "),
        (["data", "download"], "\n    onebox data download voc0712 --root /data/pascal\n"),
        (["data", "check"], "1 there are errors"),
        (["runs"], "\n    onebox runs --where 'name ~ base* and not seed == 0' "),
    ],
)
def test_help_says_what_there_is(tmp_path, arguments, expected):
    code, out, err = run(tmp_path, *arguments, "--help")
    assert (code, err) == (0, "")
    assert expected in out or expected in " ".join(out.split())


def test_check_of_good_data_prints_tables_and_writes_the_montage(tmp_path, shapes_root):
    code, out, err = run(tmp_path, "data", "check", str(shapes_root), "--montage", "sub/picture.png")
    assert (code, err) == (0, "")
    assert out.endswith("0 errors, 0 warnings: training accepts this\n")
    assert "hexagon" in out
    with Image.open(tmp_path / "sub" / "picture.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


@pytest.mark.parametrize(
    ("classes", "code"),
    [("circle,square,triangle,star,ring,cross,crescent,hexagon", 0), ("names.txt", 0), ("circle", 1), ("voc", 1)],
)
def test_check_knows_the_classes_that_it_is_given(tmp_path, shapes_root, classes, code):
    (tmp_path / "names.txt").write_text("circle\nsquare\ntriangle\nstar\nring\ncross\ncrescent\nhexagon\n")
    got, out, err = run(tmp_path, "data", "check", str(shapes_root), "--json", "--classes", classes)
    assert (got, err) == (code, "")
    document = json.loads(out)
    assert document["schema"] == 1
    assert {problem["kind"] for problem in document["problems"]} == ({"unknown class"} if code else set())


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], [".", "--classes", "no/such.txt"], [".", "--classes", ","]])
def test_check_of_an_unusable_folder_is_one_line(tmp_path, arguments):
    code, out, err = run(tmp_path, "data", "check", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("onebox: ") and err.count("\n") == 1


def test_check_shows_progress_only_on_a_terminal(tmp_path, shapes_root):
    terminal, end = pty.openpty()
    process = subprocess.Popen([COMMAND, "data", "check", shapes_root], stdout=subprocess.DEVNULL, stderr=end)
    assert process.wait(60) == 0
    os.close(end)
    assert b"checking" in os.read(terminal, 10_000)
    os.close(terminal)


@pytest.mark.parametrize("what", ["download", "cache", "check"])
def test_nothing_heavy_is_imported(tmp_path, tar, server, shapes_root, what):
    arguments = {
        "download": ["data", "download", "voc2012", *serve(server, tar)],
        "cache": ["data", "cache"],
        "check": ["data", "check", str(shapes_root), "--montage", "a.png"],
    }
    code = (
        "import atexit, sys; from onebox.cli import main\n"
        "heavy = {'torch', 'lightning', 'torchvision', 'albumentations', 'matplotlib', 'pandas'}\n"
        "atexit.register(lambda: print('HEAVY', heavy & set(sys.modules)))\n"
        f"sys.argv = ['onebox', *{arguments[what]!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY set()"


@pytest.mark.parametrize(
    ("options", "environment", "folder"),
    [
        ([], {}, "data"),
        ([], {"ONEBOX_DATA_DIR": "elsewhere"}, "elsewhere"),
        ([], {"ONEBOX_DATA_DIR": "elsewhere", "ONEBOX_VOC_ROOT": "voc"}, "voc"),
        (["--root", "my folder, {so} = called"], {"ONEBOX_VOC_ROOT": "voc"}, "my folder, {so} = called"),
    ],
)
def test_a_download_ends_where_it_says(tmp_path, tar, server, options, environment, folder):
    code, out, err = run(tmp_path, "data", "download", "voc2012", *options, *serve(server, tar), **environment)
    assert (code, err) == (0, "")
    devkit = tmp_path / folder / "VOCdevkit"
    assert (devkit / "VOC2012/JPEGImages/1.jpg").read_bytes() == b"1\n"
    assert out.splitlines()[-1] == f"voc2012 is in {devkit}"


@pytest.mark.parametrize(
    ("command", "override", "told"),
    [
        ("download voc2012", "data.source.timeout=3", "did you mean data.source.timeout_s"),
        ("download voc2012", f"{KEY}.checksum='crc:0'", "neither md5"),
        ("download voc2012", "data=nonsense", "nonsense"),
        ("download voc2012", "data.source.rounds=[", "not understood"),
        ("cache", "data.cachedir=here", "data.cachedir"),
    ],
)
def test_a_mistake_in_an_override_is_one_line(tmp_path, command, override, told):
    code, out, err = run(tmp_path, "data", *command.split(), override)
    assert (code, out) == (2, "")
    assert err.startswith("onebox: ") and told in err and err.count("\n") == 1


def test_a_traceback_is_shown_when_asked_for(tmp_path):
    code, _, err = run(tmp_path, "data", "download", "voc2012", f"{KEY}.urls=[]", ONEBOX_DEBUG="1")
    assert code == 1
    assert "Traceback" in err
    assert "BadInput" in err


def test_stopped_by_hand_it_leaves_with_130_and_keeps_what_it_has(tmp_path, tar, server):
    process = start(tmp_path, "data", "download", "voc2012", *serve(server, tar, "slow.tar"))
    assert server.stalled.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "stopped by Ctrl-C\n"


def test_caches_are_shown_and_cleared(tmp_path, tree):
    from onebox.data.cache import stored_pixels
    from onebox.data.table import read_table
    from onebox.data.tree import VocTree

    folder = tmp_path / "my data" / "cache"
    plain = {"ONEBOX_DATA_DIR": "my data"}
    assert run(tmp_path, "data", "cache", **plain) == (0, f"{folder} has no cache\n", "")
    tree.add("a", ("dog", (1, 1, 30, 20)))
    read_table(VocTree(tree.folder), folder)
    keys = [bytes([number // 256, number % 256] * 8) for number in range(1200)]
    about = {"data": "/voc"}
    stored_pixels(folder / "pixels/0123456789abcdef.pixels", keys, 20, decode=lambda numbers, pixels: {}, about=about)
    code, out, err = run(tmp_path, "data", "cache", **plain)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {"what", "pixels", "index", "1.4"}
    assert lines["pixels"].split()[1:5] == ["1.4", "MB", "1,200", "20x20"]
    assert lines["pixels"].endswith("  /voc")
    assert lines["index"].endswith(f"  {tree.folder}")
    code, out, err = run(tmp_path, "data", "cache", "--clear", f"data.cache_dir='{folder}'")
    assert (code, out, err) == (0, f"{folder}: 1.5 MB freed\n", "")
    assert run(tmp_path, "data", "cache", **plain)[1] == f"{folder} has no cache\n"
