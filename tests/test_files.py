"""Files that others may have made are read in one way: nothing hangs, nothing fills the memory, a fault is one line."""

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from onebox.callbacks.trace import StepTrace
from onebox.data.image import read_image, read_pictures
from onebox.data.table import Table
from onebox.data.tree import VocTree
from onebox.data.voc import read_record as read_annotation
from onebox.errors import BadInput, is_finite
from onebox.files import misfit, npz_columns, opened, read_file, read_json, read_yaml
from onebox.runs.checkpoint import read_checkpoint
from onebox.runs.provenance import patch
from onebox.runs.reading.find import read_run
from onebox.runs.reading.reproduce import Recorded
from onebox.runs.record import claim, read_record
from onebox.runs.results import read_samples
from onebox.sweep.job import read_plan, stored_objective


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def giant(path):
    with path.open("wb") as file:
        file.truncate(50 * 10**9)


def folder(path):
    path.mkdir()


READERS = {  # of each kind of file: its name, what reads it, and what a fault becomes
    "json": ("run.json", lambda path: read_json(path)),
    "yaml": ("config.yaml", lambda path: read_yaml(path, remedy="x")),
    "record": ("run.json", lambda path: read_record(path.parent)),
    "plan": ("sweep.json", lambda path: read_plan(path.parent)),
    "objective": ("metrics.json", lambda path: stored_objective(path.parent, "val/acc")),
    "samples": ("samples.npz", lambda path: read_samples(path.parent)),
    "patch": ("changes.patch.gz", lambda path: patch(path.parent)),
    "checkpoint": ("last.ckpt", lambda path: read_checkpoint(path)),
    "image": ("a.jpg", lambda path: read_image(path)),
}


@pytest.mark.parametrize("make", [pipe, device, giant, folder])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_or_too_large_is_one_line_at_once(tmp_path, reader, make):
    name, read = READERS[reader]
    make(tmp_path / name)
    with pytest.raises(BadInput, match=re.escape(name)) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [pipe, device, giant])
def test_trees_and_caches_hold_what_is_no_file_or_too_large(tmp_path, caplog, make):
    for name in ("Annotations", "JPEGImages", "cache"):
        (tmp_path / name).mkdir()
    for place in ("Annotations/a.xml", "train.txt", "cache/a.npz", "cache/a.pictures"):
        make(tmp_path / place)
    make(tmp_path / "JPEGImages/a.jpg")
    tree = VocTree(tmp_path)
    with pytest.raises(BadInput, match=r"train\.txt: (not a regular file|50,000,000,000 bytes)"):
        tree.ids("train")
    assert "cannot be read" in read_annotation(str(tmp_path / "Annotations/a.xml"))
    assert Table.load(tmp_path / "cache/a.npz") is None
    (picture,) = read_pictures([str(tmp_path / "JPEGImages/a.jpg")], tmp_path / "cache/a.pictures")
    assert "cannot be read" in str(picture.header)
    assert "a.npz: cannot be read" in caplog.text and "a.pictures: cannot be read" in caplog.text


def test_the_lock_of_a_run_directory_may_be_a_pipe(tmp_path):
    pipe(tmp_path / ".lock")
    with pytest.raises((BadInput, OSError)):
        claim(tmp_path, fingerprint="x", resume="auto")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Expecting value"),
        ("[" * 100 + "]" * 100, "nested more than 50 deep"),
        ("[" * 10**5, "recursion"),
        ("[" + "9" * 5000 + "]", "integer string conversion"),
        ("\x00", "Expecting value"),
        ('{"a": {"b": [1, "x"]}}', r"a\.b\.1 is not what onebox writes"),
        ('{"a": []}', "a is not what onebox writes"),
        ("[]", "it is not what onebox writes"),
        ("3", "it is not what onebox writes"),
    ],
)
def test_odd_json_is_one_line_that_says_where(tmp_path, text, told):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput, match=told):
        read_json(tmp_path / "a.json", shape={"a": {"b": [int]}})


def test_sound_json_is_what_it_says(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"a": NaN, "b": -Infinity, "c": {"x": null, "y": 1}, "a": 2}')
    assert read_json(tmp_path / "a.json", shape={"c": {"*": int}}) == {"a": 2, "b": None, "c": {"x": None, "y": 1}}
    assert misfit({"a": 1}, {"a": int | None}) is None


ALIKE = {"seed": is_finite, "config": {"keys": [str], "more": dict}, "names": {"*": str}}


def outcome(path, **how):
    try:
        return read_json(path, shape=ALIKE, **how)
    except BadInput as error:
        return str(error)


def test_json_read_in_parts_is_what_it_is_when_read_as_a_whole(tmp_path):
    """A file that is much like others is put together from their parts; whatever is in it, it reads the same."""
    record = {
        "seed": 1,
        "note": "a, b",
        "config": {"keys": ["x"], "more": {"a": [1, {"b": 2}]}, "left": None, "lr": 1e-3},
        "names": {"a": "x", "b": None},
        "config2": {"keys": 3},
        "status": None,
    }
    sound, path = json.dumps(record, indent=2), tmp_path / "a.json"
    pieces = [',\n  "', ',\n    "', "\n  ", "\n    ", "{", "}", "[", "]", '"', ",", ": ", "null", "NaN", "[" * 60, "\\"]
    pieces += ['seed": ', 'keys": ', 'config": {\n    "', 'seed": null,\n  "', "\x85", "\ufeff", "9" * 5000, ""]
    draw, known, seen = random.Random(0), {}, []
    for _ in range(1000):
        text = sound
        for _ in range(draw.choice((0, 1, 1, 2))):
            begin = draw.randrange(len(text) + 1)
            text = text[:begin] + draw.choice(pieces) + text[begin + draw.choice((0, 0, 1, 5, 20)) :]
        path.write_bytes(text.encode() if draw.random() < 0.95 else text.encode()[:-1] + b"\xff}")
        seen.append(outcome(path))
        again = outcome(path, known=known)
        assert again == seen[-1] and list(again) == list(seen[-1]), text
    assert sum(isinstance(found, dict) for found in seen) > 200 and sum(isinstance(found, str) for found in seen) > 200


def test_equal_parts_of_json_files_are_one_object(tmp_path):
    known = {}
    for number in (1, 2):
        record = {"seed": number, "config": {"lr": number, "more": {"a": [1]}}, "hardware": {"cores": 2}}
        (tmp_path / f"{number}.json").write_text(json.dumps(record, indent=2))
    one, other = (read_json(tmp_path / f"{number}.json", shape=ALIKE, known=known) for number in (1, 2))
    assert one["hardware"] is other["hardware"] and one["config"]["more"] is other["config"]["more"]
    assert (one["seed"], one["config"]["lr"]) == (1, 1) and (other["seed"], other["config"]["lr"]) == (2, 2)
    one["seed"] = one["config"]["lr"] = 9  # of the runs each its own
    assert read_json(tmp_path / "1.json", shape=ALIKE, known=known)["config"]["lr"] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &x [1]\nb: [*x, *x]", "aliases"),
        ("[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("a: [", "while parsing"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_yaml_that_no_run_writes_is_one_line(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadInput, match=told):
        read_yaml(tmp_path / "a.yaml", remedy="remove it")


def test_every_damaged_byte_of_packed_arrays_is_seen(tmp_path):
    """NumPy reads a flipped shape or type without looking at the check sums."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(50), b=np.array(["x", "yz"]))
    sound, content = read_file(path, npz_columns, remedy="x"), path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, 8 * len(content), 900).tolist():
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_file(path, npz_columns, remedy="x")
        except BadInput:
            continue
        assert found.keys() == sound.keys() and all(np.array_equal(found[key], sound[key]) for key in sound)


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_not_read(tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
        packed.writestr("archive/data/1", bytes(10**8))
    with pytest.raises(BadInput, match="damaged"):
        read_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    "content", [b"text", gzip.compress(b"diff --git", mtime=0)[:-4], gzip.compress(b"x", mtime=0) + b"junk"]
)
def test_a_damaged_patch_is_one_line(tmp_path, content):
    (tmp_path / "changes.patch.gz").write_bytes(content)
    with pytest.raises(BadInput, match=r"changes\.patch\.gz: cannot be read"):
        patch(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "step,epoch,loss\n0,0,x\n", "step,epoch\n0,0\n0,0\n", "\x00\xff\n1\n"]
)
def test_a_damaged_trace_is_one_line(tmp_path, text):
    (tmp_path / "trace.csv").write_text(text)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("{run_dir: x, callbacks: {}, data: {}}")
    with pytest.raises(BadInput, match=r"trace\.csv: cannot be read"):
        Recorded.read(tmp_path)


def test_a_damaged_trace_is_told_when_the_run_resumes(tmp_path):
    (tmp_path / "trace.csv").write_text("step,epoch,loss\nx,0,1\n1,0,1\n")
    trainer = type("Trainer", (), {"is_global_zero": True})
    with pytest.raises(BadInput, match=r"trace\.csv: cannot be read .* move it away"):
        StepTrace(str(tmp_path / "trace.csv"), None).on_train_start(trainer, None)


def test_a_record_that_ends_as_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text(json.dumps({"name": "secret"}))
    (tmp_path / "run/run.json").symlink_to(tmp_path / "secret")
    assert read_run(tmp_path / "run") is None
    shutil.copy(tmp_path / "secret", tmp_path / "run/copy")
    with opened(tmp_path / "run/copy") as file:
        assert b"secret" in file.read()


def test_text_of_others_neither_steers_the_terminal_nor_is_markup():
    code = (
        "import logging, sys\n"
        "from onebox.errors import print_json, say\n"
        "from onebox.streams import open_streams\n"
        "open_streams()\n"
        "logging.basicConfig(format='%(message)s', stream=sys.stdout)\n"
        "text = '[red]a\\x1b[31m\\x9b2J\\u202e\\nb'\n"
        "logging.getLogger('onebox.x').warning('%s', text)\n"
        "print_json({text: text})\n"
        "say(text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = "[red]a\ufffd[31m\ufffd2J\ufffd b\n"
    assert done.stderr == line and done.stdout.startswith(line)
    assert json.loads(done.stdout.removeprefix(line)) == {
        "[red]a\x1b[31m\x9b2J\u202e\nb": "[red]a\x1b[31m\x9b2J\u202e\nb"
    }
    assert not set("\x1b\x9b\u202e") & set(done.stdout)


@pytest.mark.parametrize("name", ["x" * 105, "missing", "file"])
def test_processes_can_talk_whatever_tmpdir_is(tmp_path, name):
    (tmp_path / "file").touch()
    if name.startswith("x"):
        (tmp_path / name).mkdir()
    code = (
        "import os, tempfile\n"
        "from multiprocessing.connection import Listener\n"
        "from onebox.streams import command_line\n"
        "with command_line('x'):\n"
        "    Listener(family='AF_UNIX').close()\n"
        "    print(os.environ['TMPDIR'] == tempfile.gettempdir())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / name)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
