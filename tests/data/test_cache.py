import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import Tree

from onebox.build import build_data
from onebox.data import cache, dataset, image, table
from onebox.errors import BadInput

DOG = ("dog", (1, 1, 30, 20))
ALL = ["data.splits={train:['*'],val:[],test:[]}", "data.holdout={val:0,test:0}"]


@pytest.fixture
def folder_data(composed, tree):
    """Builds and sets up `data=folder` on the test's own tree, all of it for training."""

    def make(*overrides: str):
        data = build_data(composed("data=folder", f"data.root={tree.folder}", *ALL, *overrides, small=False))
        data.setup()
        return data

    return make


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that are decoded."""
    names = []
    read_image = dataset.read_image

    def spy(path, **options):
        names.append(Path(path).stem)
        return read_image(path, **options)

    monkeypatch.setattr(dataset, "read_image", spy)
    return names


def images(data) -> torch.Tensor:
    part = data.dataset("train")
    return part.__getitems__([(0, row) for row in range(len(part))]).images


def test_images_are_decoded_once_for_all_runs(folder_data, tree, decoded):
    for name in "abc":
        tree.add(name, DOG)
    first = images(folder_data())
    assert sorted(set(decoded)) == ["a", "b", "c"]
    decoded.clear()
    assert torch.equal(images(folder_data()), first)
    assert decoded == []
    assert torch.equal(images(folder_data("data.cache=none")), first)


@pytest.mark.parametrize("override", ["image_size=64", "interpolation=nearest"])
def test_another_size_is_another_cache(folder_data, tree, decoded, override):
    for name in "abc":
        tree.add(name, DOG)
    images(folder_data())
    decoded.clear()
    mine = images(folder_data(override))
    assert decoded
    assert torch.equal(mine, images(folder_data(override, "data.cache=none")))


def test_seeds_and_selections_share_one_file_that_holds_each_image_once(folder_data, tree, tmp_path, decoded):
    for name in "abcde":
        tree.add(name, DOG)
    first = images(folder_data("data.ids=[b,d]"))
    for override in ("data.limit=3", "seed=1", "seed=2", "data.holdout={val:0.4}", "data.ids=[d]"):
        data = folder_data(override)
        data.decode()
        assert torch.equal(images(data), images(folder_data(override, "data.cache=none")))
    assert torch.equal(images(folder_data("data.ids=[b,d]")), first)
    (file,) = (tmp_path / "cache/pixels").glob("*.pixels")
    assert file.stat().st_size == 5 * 100 * 100 * 3


def test_trees_of_equal_names_sizes_and_times_share_no_pixels(composed, tmp_path):
    trees = {colour: Tree(tmp_path / colour) for colour in ("black", "white")}
    for colour, made in trees.items():
        made.add("a", DOG)
        (made.folder / "JPEGImages/a.jpg").unlink()
        Image.new("RGB", (60, 40), colour).save(made.folder / "JPEGImages/a.bmp")
        os.utime(made.folder / "JPEGImages/a.bmp", ns=(10**18, 10**18))

    def first_pixel(folder):
        data = build_data(composed("data=folder", f"data.root={folder}", *ALL, small=False))
        data.setup()
        return images(data)[0, 0, 0, 0].item()

    assert [first_pixel(made.folder) for made in trees.values()] == [0, 255]
    (tmp_path / "black").rename(tmp_path / "old")
    (tmp_path / "white").rename(tmp_path / "black")
    assert first_pixel(tmp_path / "black") == 255


def test_a_changed_image_is_decoded_again(folder_data, tree):
    tree.add("a", DOG)
    before = images(folder_data())
    state = (tree.folder / "JPEGImages/a.jpg").stat()
    Image.new("RGB", (60, 40), "white").save(tree.folder / "JPEGImages/a.jpg")
    os.utime(tree.folder / "JPEGImages/a.jpg", ns=(state.st_atime_ns, state.st_mtime_ns))
    after = images(folder_data())
    assert not torch.equal(before, after)
    assert (after > 250).all()


def test_a_corrected_size_of_an_annotation_is_held_against_pixels_that_are_there(folder_data, tree):
    tree.add("a", DOG)
    images(folder_data())
    path = tree.folder / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<height>40<", "<height>41<"))
    with pytest.raises(BadInput, match=r"a\.jpg: the image is 60x40 px but its annotation says 60x41"):
        folder_data().decode()


@pytest.mark.parametrize("kind", ["rows", "npz", "pictures", "npy"])
def test_a_flipped_bit_in_what_describes_a_cache_gives_nothing_wrong(folder_data, tree, tmp_path, caplog, kind):
    """900 flips of each; what was not noticed gives the same, and what was is made again with a warning."""
    for name in "abc":
        tree.add(name, DOG)
    expected = images(folder_data())
    columns = np.dtype([("state 0", np.float16, (2,)), ("boxes", np.float32, (4,))])
    options = {"shape": (5,), "dtype": lambda: columns, "fill": lambda array: array.fill(1), "about": {"data": "x"}}
    features = tmp_path / "cache" / "features" / "x.npy"
    cache.open_array(features, **options, doing=None)
    (path,) = (tmp_path / "cache").glob(f"*/*.{kind}")
    sound, size = path.read_bytes(), min(path.stat().st_size, 1024 if kind != "npy" else np.load(path, "r").offset)
    for place in np.random.default_rng(0).integers(0, 8 * size, 900).tolist():
        damaged = bytearray(sound)
        damaged[place // 8] ^= 1 << place % 8
        path.unlink()
        path.write_bytes(damaged)
        if kind == "npy":
            array = cache._map(path, (5,))
            assert array is None or np.array_equal(array, np.ones(5, columns)), place
        elif kind == "rows":
            rows = cache._stored_rows(path.with_suffix(".pixels"), 100 * 100 * 3)
            assert not rows or sorted(rows.values()) == [0, 1, 2], place
        elif kind == "pictures":
            assert len(image._load(path)) in (0, 3), place
        else:
            assert (found := table.Table.load(path)) is None or found.ids.tolist() == ["a", "b", "c"], place
    path.write_bytes(b"x" + sound[1:])
    caplog.clear()
    assert torch.equal(images(folder_data()), expected)
    again = cache.open_array(features, **options, doing=None)
    assert np.array_equal(again, np.ones(5, columns))
    assert f"{path}" in caplog.text and "it is made again" in caplog.text
    caplog.clear()
    assert torch.equal(images(folder_data()), expected) and "made again" not in caplog.text


@pytest.mark.parametrize("file", ["pixels", "rows"])
def test_pixels_that_are_cut_off_or_were_never_entered_are_decoded_again(folder_data, tree, tmp_path, file):
    for name in "abc":
        tree.add(name, DOG)
    expected = images(folder_data())
    (path,) = (tmp_path / "cache/pixels").glob(f"*.{file}")
    path.write_bytes(path.read_bytes()[:-20])
    assert torch.equal(images(folder_data()), expected)


def test_who_is_killed_while_decoding_leaves_nothing_that_is_taken_for_pixels(folder_data, tree, tmp_path, monkeypatch):
    for name in "abc":
        tree.add(name, DOG)
    expected = images(folder_data("data.cache=none"))
    images(folder_data("data.ids=[b]"))
    child = os.fork()
    if not child:
        kills = iter([None, lambda: os.kill(os.getpid(), signal.SIGKILL)])
        monkeypatch.setattr(
            dataset, "read_image", lambda path, upright: (next(kills) or (lambda: np.zeros((40, 60, 3), np.uint8)))()
        )
        images(folder_data())
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert torch.equal(images(folder_data()), expected)


def test_writing_to_a_batch_or_the_mapped_images_changes_no_file(folder_data, tree):
    tree.add("a", DOG)
    data = folder_data()
    images(data).zero_()
    data.dataset("train")._images.fill(0)
    assert images(folder_data()).any()


def open_small(folder: Path, fill):
    return cache.open_array(
        folder / "pixels/0123456789abcdef.npy",
        shape=(5, 2, 2, 3),
        dtype=lambda: np.dtype(np.uint8),
        fill=fill,
        about={"data": "here"},
        doing="decodes",
    )


def test_an_error_while_it_is_filled_leaves_nothing(tmp_path):
    def fail(pixels):
        raise BadInput("no")

    with pytest.raises(BadInput):
        open_small(tmp_path, fail)
    assert not [path for path in (tmp_path / "pixels").iterdir() if path.suffix != ".lock"]
    assert (open_small(tmp_path, lambda pixels: pixels.fill(7)) == 7).all()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x02\x00", "cut"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    open_small(tmp_path, lambda pixels: pixels.fill(7))
    path = tmp_path / "pixels/0123456789abcdef.npy"
    path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else damage)
    assert (open_small(tmp_path, lambda pixels: pixels.fill(8)) == 8).all()


BUILD = """
import sys, time
from pathlib import Path
import numpy as np
from onebox.data.cache import open_array

def fill(pixels):
    with open(sys.argv[1] + "/log", "a") as log:
        log.write("fill\\n")
    for row in range(len(pixels)):
        pixels[row] = row + 1
        pixels.flush()
        time.sleep(float(sys.argv[2]))

pixels = open_array(
    Path(sys.argv[1], "pixels/0123456789abcdef.npy"),
    shape=(20, 64, 64, 3),
    dtype=lambda: np.dtype(np.uint8),
    fill=fill,
    about={"data": "here"},
    doing="decodes",
)
print(pixels[:, 0, 0, 0].tolist() == list(range(1, 21)), pixels.shape)
"""


def build(folder: Path, pause_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(folder), str(pause_s)], stdout=subprocess.PIPE, text=True)


def test_killed_while_it_decodes_the_next_one_completes(tmp_path):
    process = build(tmp_path, 0.2)
    end = time.monotonic() + 30
    while not (tmp_path / "log").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list((tmp_path / "pixels").glob(".*.tmp"))) == 1
    assert cache.entries(tmp_path) == []
    assert build(tmp_path, 0).communicate(timeout=30)[0] == "True (20, 64, 64, 3)\n"
    assert sorted(path.name for path in (tmp_path / "pixels").iterdir()) == [
        f"0123456789abcdef.{end}" for end in ("json", "lock", "npy")
    ]


def test_two_at_once_decode_once(tmp_path):
    both = [build(tmp_path, 0.05), build(tmp_path, 0.05)]
    assert [process.communicate(timeout=30)[0] for process in both] == ["True (20, 64, 64, 3)\n"] * 2
    assert (tmp_path / "log").read_text() == "fill\n"


def test_a_full_disk_costs_one_warning_and_no_run(composed, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    data = build_data(composed())
    data.setup()
    for split in ("train", "val", "test"):
        data.dataset(split)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "No space left on device" in record.message
    assert "data.cache=none" in record.message
    plain = build_data(composed("data.cache=none"))
    plain.setup()
    assert torch.equal(images(data), images(plain))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_a_disk_that_is_really_full_costs_one_warning(composed, tmp_path, caplog):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        data = build_data(composed(f"data.cache_dir={small}"))
        data.setup()
        assert len(images(data)) == len(data.indexes["train"])
        assert not list(small.rglob("*.tmp"))
        assert [record.levelname for record in caplog.records].count("WARNING") == 1
    finally:
        subprocess.run(["umount", small], check=True)


def test_entries_and_clear(folder_data, tree, tmp_path):
    tree.add("a", DOG)
    tree.add("b", DOG)
    images(folder_data())
    folder = tmp_path / "cache"
    (folder / "mine.txt").write_text("not of the cache")
    for name in ("index/mine.npz", "pixels/holiday.pixels", "pixels/holiday.json", "features/2024.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("nor is this, where cache_dir is a home folder")
    mine = sorted(path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:2] in (b"no",))
    assert len(mine) == 5
    by_kind = {entry.kind: entry for entry in cache.entries(folder)}
    pixels, index = by_kind["pixels"], by_kind["index"]
    assert (pixels.images, pixels.size, pixels.data) == (2, (100, 100), str(tree.folder))
    assert pixels.num_bytes >= 2 * 100 * 100 * 3
    assert (index.images, index.data) == (2, str(tree.folder))
    freed, busy = cache.clear(folder)
    assert freed >= pixels.num_bytes + index.num_bytes
    assert busy == 0
    assert sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock") == mine
    assert len(images(folder_data())) == 2


def test_clear_leaves_what_another_process_is_making(tmp_path):
    process = build(tmp_path, 0.1)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    assert cache.clear(tmp_path) == (0, 1)
    assert process.communicate(timeout=30)[0] == "True (20, 64, 64, 3)\n"


# What data.on_error does.


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


@pytest.fixture
def bad_tree(tree):
    """One good image, and one for each way to be bad."""
    names = ["good", "no_image", "no_jpeg", "cut", "wrong_box", "unknown_class", "wrong_size"]
    for name in names:
        tree.add(name, DOG)
    images = tree.folder / "JPEGImages"
    (images / "no_image.jpg").unlink()
    (images / "no_jpeg.jpg").write_bytes(b"nothing")
    cut(images / "cut.jpg")
    tree.add("wrong_box", ("dog", (1, 1, 99, 20)))
    tree.add("unknown_class", ("unicorn", (1, 1, 9, 20)))
    Image.new("RGB", (40, 60)).save(images / "wrong_size.jpg")
    return tree


REASONS = {
    "no_image": ("no_image.jpg", "no such image"),
    "no_jpeg": ("no_jpeg.jpg", "not a readable image"),
    "cut": ("cut.jpg", "not a readable image (cut short or corrupt)"),
    "wrong_box": ("wrong_box.xml", "outside the image"),
    "unknown_class": ("unknown_class.xml", "class 'unicorn' is not in data.classes"),
    "wrong_size": ("wrong_size.jpg", "the image is 40x60 px but its annotation says 60x40"),
}


@pytest.mark.parametrize("kind", ["disk", "ram", "none"])
def test_skip_leaves_bad_samples_out_and_lists_them(folder_data, bad_tree, caplog, kind):
    for _ in range(2):  # what was checked before is not forgotten
        caplog.clear()
        data = folder_data("data.on_error=skip", "data.classes=[dog]", f"data.cache={kind}")
        assert data.indexes["train"].ids == ("good",)
        assert images(data).shape == (1, 3, 100, 100)
        assert {item["id"] for item in data.skipped} == set(REASONS)
        for item in data.skipped:
            file, reason = REASONS[item["id"]]
            assert (item["split"], Path(item["file"]).name) == ("train", file)
            assert reason in item["reason"]
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "train 6 bad samples skipped" in record.getMessage()


@pytest.mark.parametrize("name", REASONS)
def test_raise_stops_at_each_of_them(folder_data, bad_tree, name):
    file, reason = REASONS[name]
    with pytest.raises(BadInput, match=rf"^[^\n]*{file}: [^\n]*{re.escape(reason)}[^\n]*$"):
        folder_data("data.on_error=raise", "data.classes=[dog]", f"data.ids=[{name}]").decode()


def test_a_repaired_image_is_taken_again(folder_data, tree):
    tree.add("a", DOG)
    tree.add("b", DOG)
    path = tree.folder / "JPEGImages/b.jpg"
    whole = path.read_bytes()
    cut(path)
    assert folder_data("data.on_error=skip").indexes["train"].ids == ("a",)
    path.write_bytes(whole)
    data = folder_data("data.on_error=skip")
    assert data.indexes["train"].ids == ("a", "b")
    assert data.skipped == []


def test_a_bad_image_makes_room_below_the_limit_and_what_is_not_looked_at_is_not_bad(folder_data, tree):
    for name in "abcd":
        tree.add(name, DOG)
    for name in "ad":
        cut(tree.folder / f"JPEGImages/{name}.jpg")
    index = folder_data("data.on_error=skip", "data.limit=2").indexes["train"]
    assert index.ids == ("b", "c")
    assert [item.id for item in index.skipped] == ["a"]
    assert index.dropped["over data.limit"] == 1


def break_the_middle(path: Path) -> None:
    """Take away the tables of quantisation; head and end stay as they are."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\xff\xdb", b"\xff\xfe"))


@pytest.mark.parametrize("kind", ["disk", "ram", "none"])
def test_skip_leaves_out_what_only_decoding_finds(folder_data, tree, kind):
    for name in "abcd":
        tree.add(name, DOG)
    for name in "ac":
        break_the_middle(tree.folder / f"JPEGImages/{name}.jpg")
    overrides = ["data.on_error=skip", f"data.cache={kind}", "data.limit=2"]
    for _ in range(2):  # the second time it is known before
        data = folder_data(*overrides)
        data.decode()
        assert data.indexes["train"].ids == ("b", "d")
        assert [Path(item["file"]).name for item in data.skipped] == ["a.jpg", "c.jpg"]
        assert "cut short or corrupt" in data.skipped[0]["reason"]
        assert images(data).shape == (2, 3, 100, 100)
    assert len(folder_data(*overrides).indexes["train"]) == 2


def test_raise_names_what_only_decoding_finds(folder_data, tree):
    for name in "abc":
        tree.add(name, DOG)
    for name in "ac":
        break_the_middle(tree.folder / f"JPEGImages/{name}.jpg")
    with pytest.raises(BadInput, match=r"a\.jpg: not a readable image.*1 other images; data.on_error=skip") as error:
        folder_data().decode()
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # of a job, whose sweep shows it


def test_bytes_after_the_end_of_an_image_are_no_damage(folder_data, tree):
    tree.add("a", DOG)
    with (tree.folder / "JPEGImages/a.jpg").open("ab") as file:
        file.write(b"\0" * 100)
    assert len(folder_data().indexes["train"]) == 1


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_other_formats_are_checked_too(folder_data, tree, suffix):
    tree.add("a", DOG)
    tree.add("b", DOG)
    for name in "ab":
        path = tree.folder / f"JPEGImages/{name}.jpg"
        Image.open(path).save(path.with_suffix(f".{suffix}"))
        path.unlink()
    cut(tree.folder / f"JPEGImages/b.{suffix}")
    assert folder_data("data.on_error=skip").indexes["train"].ids == ("a",)
