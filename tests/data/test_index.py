import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import OBJECT_XML, VOC_XML

from onebox.build import build_data
from onebox.data.listed import Listed
from onebox.data.processes import process_map
from onebox.data.table import Table, read_table
from onebox.data.tree import VocTree
from onebox.data.voc import read_record
from onebox.errors import BadInput

DOG = ("dog", (1, 1, 30, 20))
CAT = ("cat", (5, 5, 55, 35))


def same(one: Table, other: Table) -> bool:
    columns = ("ids", "stamps", "sizes", "first", "names", "difficult", "corners")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns) and (
        one.problems == other.problems
    )


def write_annotations(folder: Path, count: int) -> None:
    """A tree of XML files alone; every 13th has two objects, every 50th is broken."""
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        objects = [OBJECT_XML.format(name="dog", box=(1, 1, 30, 1 + number % 39 + 1), difficult=number % 2)]
        objects += objects * (number % 13 == 0)
        text = VOC_XML.format(name=number, width=60, height=40, objects="".join(objects))
        (folder / "Annotations" / f"{number:06}.xml").write_text("<annotation>" if number % 50 == 49 else text)


@pytest.fixture
def parsed(monkeypatch):
    """The names of the files that are parsed."""
    names = []

    def spy(path):
        names.append(Path(path).stem)
        return read_record(path)

    monkeypatch.setattr(VocTree, "read", staticmethod(spy))
    return names


def test_a_table_holds_what_the_files_say(tree, tmp_path):
    tree.add("a", DOG, CAT, difficult=[1], size=(60, 40))
    tree.add("b")
    path = tree.folder / "Annotations/a.xml"
    table = read_table(VocTree(tree.folder), tmp_path / "cache")
    assert table.ids.tolist() == ["a", "b"]
    assert table.sizes.tolist() == [[40, 60], [40, 60]]
    assert table.first.tolist() == [0, 2, 2]
    assert table.names.tolist() == ["dog", "cat"]
    assert table.corners.tolist() == [[1, 1, 30, 20], [5, 5, 55, 35]]
    assert table.difficult.tolist() == [False, True]
    assert table.stamps[0].tolist() == [path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ctime_ns]


def test_only_what_changed_is_parsed_again(tree, tmp_path, parsed):
    def read():
        parsed.clear()
        return read_table(VocTree(tree.folder), tmp_path / "cache")

    def add(name, *objects):
        tree.add(name, *objects)
        return name

    for name in "abcd":
        tree.add(name, DOG)
    first = read()
    assert parsed == ["a", "b", "c", "d"]
    assert same(read(), first)
    assert parsed == []
    add("b", CAT)
    assert read().names.tolist() == ["dog", "cat", "dog", "dog"]
    assert parsed == ["b"]
    os.utime(tree.folder / "Annotations/c.xml")
    read()
    assert parsed == ["c"]
    add("aa", CAT, DOG)
    (tree.folder / "Annotations/b.xml").unlink()
    (tree.folder / "Annotations/d.xml").write_text("broken")
    last = read()
    assert parsed == ["aa", "d"]
    assert last.ids.tolist() == ["a", "aa", "c", "d"]
    assert list(last.problems) == [3]
    assert same(read(), last)
    assert parsed == []
    assert same(last, read_table(VocTree(tree.folder), tmp_path / "elsewhere"))  # as if read for the first time


def test_a_change_that_keeps_size_and_time_of_content_is_seen(tree, tmp_path, parsed):
    tree.add("a", DOG)
    path = tree.folder / "Annotations/a.xml"
    read_table(VocTree(tree.folder), tmp_path / "cache")
    state = path.stat()
    time.sleep(0.02)  # longer than the clock of the file system ticks
    path.write_text(path.read_text().replace("dog", "cow"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert read_table(VocTree(tree.folder), tmp_path / "cache").names.tolist() == ["cow"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", None])
def test_a_damaged_index_is_made_again(tree, tmp_path, damage):
    tree.add("a", DOG)
    expected = read_table(VocTree(tree.folder), tmp_path)
    [path] = (tmp_path / "index").glob("*.npz")
    path.write_bytes(path.read_bytes()[:500] if damage is None else damage)
    assert same(read_table(VocTree(tree.folder), tmp_path), expected)
    assert same(Table.load(path), expected)


def test_processes_find_the_same_as_one(tmp_path, monkeypatch):
    write_annotations(tmp_path / "tree", 2100)
    many = read_table(VocTree(tmp_path / "tree"), tmp_path / "many")
    monkeypatch.setattr("onebox.data.processes.WORTH_IT", 10**9)
    one = read_table(VocTree(tmp_path / "tree"), tmp_path / "one")
    assert len(many) == 2100
    assert len(many.problems) == 42
    assert same(one, many)


def test_an_error_in_another_process_is_raised_in_this_one():
    with pytest.raises(TypeError, match="has no len"):
        list(process_map(len, [1] * 4000, description=""))


@pytest.mark.parametrize("python", ["false", "no-such-program"])
def test_without_other_processes_this_one_reads_alone(monkeypatch, caplog, python):
    monkeypatch.setattr(sys, "executable", python)
    assert list(process_map(str, range(4000), description="")) == [str(number) for number in range(4000)]
    assert [record.message for record in caplog.records] == [
        "worker processes cannot be used; this process reads the rest alone"
    ]


def test_a_script_without_a_main_guard_reads_once(tmp_path):
    write_annotations(tmp_path / "tree", 2100)
    script = tmp_path / "script.py"
    script.write_text(BUILD)
    command = [sys.executable, str(script), tmp_path / "tree", tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "2100 42\n"


BUILD = """
import sys
from pathlib import Path
from onebox.data.table import read_table
from onebox.data.tree import VocTree
table = read_table(VocTree(Path(sys.argv[1])), Path(sys.argv[2]))
print(len(table), len(table.problems))
"""


def build(*folders: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILD, *map(str, folders)], stdout=subprocess.PIPE, text=True)


def children(process: subprocess.Popen[str]) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_killed_while_it_reads_the_next_one_completes(tmp_path):
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    write_annotations(tree, 6000)
    process = build(tree, cache)
    wait_for(lambda: len(children(process)) >= 2 or process.poll() is not None)
    helpers = children(process)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(cache.rglob("*.npz"))
    wait_for(lambda: not any(is_running(pid) for pid in helpers))  # they end with their parent
    second = build(tree, cache)
    assert second.communicate(timeout=60)[0] == "6000 120\n"
    assert [path.suffix for path in (cache / "index").iterdir() if path.suffix != ".lock"] == [".npz"]


def test_killed_while_it_writes_the_next_one_completes(tmp_path):
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    write_annotations(tree, 100)
    stuck = "import os, signal, numpy; numpy.savez = lambda file, **_: (file.write(b'x' * 100), file.flush(), os.kill(os.getpid(), signal.SIGKILL))\n"
    done = subprocess.run([sys.executable, "-c", stuck + BUILD, str(tree), str(cache)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((cache / "index").glob(".*.tmp"))) == 1
    assert build(tree, cache).communicate(timeout=60)[0] == "100 2\n"
    assert not list((cache / "index").glob(".*.tmp"))


def test_two_at_once_give_the_same(tmp_path):
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    write_annotations(tree, 3000)
    both = [build(tree, cache), build(tree, cache)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["3000 60\n", "3000 60\n"]


def test_a_folder_that_cannot_be_written_costs_a_warning(tree, tmp_path, caplog):
    tree.add("a", DOG)
    (tmp_path / "file").write_text("")
    assert len(read_table(VocTree(tree.folder), tmp_path / "file")) == 1
    (record,) = caplog.records
    assert "the index cannot be stored" in record.message
    assert "data.cache_dir" in record.message


def test_an_open_index_takes_less_than_a_kilobyte_a_file(tmp_path):
    count = 4000
    write_annotations(tmp_path / "tree", count)
    for number in range(count):
        (tmp_path / "tree/JPEGImages" / f"{number:06}.jpg").touch()
    read_table(VocTree(tmp_path / "tree"), tmp_path / "cache")
    tracemalloc.start()
    tree = VocTree(tmp_path / "tree")
    opened = Listed({"": tree}, [("", image_id) for image_id in tree.ids("*")[0]], tmp_path / "cache")
    grown, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(opened.table) == count
    assert grown < 1000 * count
    assert peak < 2000 * count


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace("<xmin>1<", "<xmin>-inf<"), "<bndbox/xmin> is '-inf', not a number"),
        (lambda text: text.replace("<xmin>1<", "<xmin>-3<"), "box xmin=-3 .* outside"),
        (lambda text: text.replace("<xmax>30<", "<xmax>1e300<"), "box .* xmax=1e[+]300 .* outside"),
        (lambda text: text.replace("<xmin>1</xmin>", "<xmin>1</xmin>" * 2), "<bndbox/xmin> is there 2 times"),
        (lambda text: text.replace("annotation>", "notes>"), "not a readable VOC annotation"),
        (
            lambda text: text.replace("<width>60<", "<width>1e300<"),
            "<size/width> is '1e[+]300', not a number of pixels",
        ),
        (lambda text: text.replace("<name>dog</name>", ""), "<name> is empty"),
        (lambda text: "", "not a readable VOC annotation"),
        (lambda text: "<a>" * 100_000, "not a readable VOC annotation"),
        (lambda text: "<?xml version='1.0' encoding='none-such'?>" + text, "not a readable VOC annotation"),
    ],
)
def test_a_wrong_annotation_is_one_line_with_its_file(composed, tree, spoil, words):
    tree.add("a", DOG)
    path = tree.folder / "Annotations/a.xml"
    path.write_text(spoil(path.read_text()))
    data = build_data(composed("data=folder", f"data.root={tree.folder}", "data.classes=[dog]", small=False))
    with pytest.raises(BadInput, match=rf"^{path}: {words}[^\n]*$"):
        data.setup()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "iso-8859-1", "cp037"])
def test_entities_are_refused_in_every_encoding(tmp_path, encoding):
    path = tmp_path / "a.xml"
    body = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c SYSTEM "file:///etc/passwd">]><annotation>&b;&c;</annotation>'
    head = f"<?xml version='1.0' encoding='{encoding}'?>"
    # An encoding that hides the markup from a search of the bytes, behind a head that can be read.
    data = head.encode() + body.encode("cp037") if encoding == "cp037" else (head + body).encode(encoding)
    path.write_bytes(data)
    assert "not a readable VOC annotation" in read_record(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_other_encodings_are_read(tree, encoding):
    tree.add("a", ("vélo", (1.5, 1, 30.25, 20)))
    path = tree.folder / "Annotations/a.xml"
    name = "utf-8" if encoding == "utf-8-sig" else encoding
    path.write_bytes((f"<?xml version='1.0' encoding='{name}'?>" + path.read_text()).encode(encoding))
    assert read_record(str(path)) == (60, 40, [("vélo", False, 1.5, 1, 30.25, 20)])


def test_a_file_name_inside_an_annotation_or_a_list_leads_nowhere(composed, tree, tmp_path):
    tree.add("a", DOG)
    path = tree.folder / "Annotations/a.xml"
    path.write_text(path.read_text().replace("a.jpg", "../../secret.jpg").replace("VOC2007", "/etc"))
    Image.new("RGB", (60, 40)).save(tmp_path / "secret.jpg")
    (tmp_path / "secret.xml").write_text(path.read_text())
    splits = "data.splits={train:['*'],val:[],test:[]}"
    data = build_data(
        composed("data=folder", f"data.root={tree.folder}", splits, "data.holdout={val:0,test:0}", small=False)
    )
    data.setup()
    assert [str(path) for path in data.indexes["train"].image_paths] == [str(tree.folder / "JPEGImages/a.jpg")]
    tree.list("train", "../../secret")
    escaping = "data.splits={train:[train],val:[],test:[]}"
    data = build_data(composed("data=folder", f"data.root={tree.folder}", escaping, "data.classes=[dog]", small=False))
    with pytest.raises(BadInput, match="no such annotation, nor an image; take"):
        data.setup()


def test_ilsvrc_is_read(composed, tmp_path):
    root = tmp_path / "ILSVRC"
    lists = root / "ImageSets/CLS-LOC"
    lists.mkdir(parents=True)
    images = {"train": ["n01440764/n01440764_10026", "n01443537/n01443537_2"], "val": ["ILSVRC2012_val_00000001"]}
    for part, ids in images.items():
        for image_id in ids:
            picture, annotation = (
                root / kind / "CLS-LOC" / part / f"{image_id}.{suffix}"
                for kind, suffix in (("Data", "JPEG"), ("Annotations", "xml"))
            )
            picture.parent.mkdir(parents=True, exist_ok=True)
            annotation.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40)).save(picture)
            synset = image_id.partition("/")[0] if part == "train" else "n01443537"
            item = OBJECT_XML.format(name=synset, box=(1, 1, 30, 20), difficult=0)
            annotation.write_text(VOC_XML.format(name=image_id, width=60, height=40, objects=item))
    (lists / "train_loc.txt").write_text("".join(f"{image_id} {n}\n" for n, image_id in enumerate(images["train"], 1)))
    (lists / "val.txt").write_text("ILSVRC2012_val_00000001 1\n")
    data = build_data(composed("data=ilsvrc", f"data.root={root}", "data.holdout.val=0", small=False))
    data.setup()
    assert data.class_names == ["n01440764", "n01443537"]
    train, test = data.indexes["train"], data.indexes["test"]
    assert list(train.ids) == images["train"]
    assert train.labels.tolist() == [0, 1]
    assert str(train.image_paths[0]).endswith("Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG")
    assert (list(test.ids), test.labels.tolist()) == (images["val"], [1])
    assert data.dataset("train").__getitems__([(0, 0), (0, 1)]).images.shape[0] == 2
