import errno
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from onebox.build import build_data
from onebox.data import cache
from onebox.data.dataset import EpochSampler
from onebox.data.features import Frozen
from onebox.errors import BadInput

RANDOM = "augment=batched_strong"


@pytest.fixture
def make(composed):
    """Data whose features are a pooled map and the mean colour; `computed` has how many images went through at once."""
    computed = []

    def compute(images):
        computed.append(len(images))
        maps = torch.nn.functional.avg_pool2d(images.float(), 8)
        return maps.contiguous(memory_format=torch.channels_last), images.float().mean((2, 3))

    def go(*overrides, compute=compute, weights="1", store=True):
        cfg = composed(RANDOM, "data.views=3", "image_size=32", "data.batch_size=10", *overrides)
        data = build_data(cfg)
        data.setup()
        if store:
            frozen = dict.fromkeys(("train", "val"), Frozen("pooled", {"weights": weights}, compute))
            data.store_features(frozen, OmegaConf.to_container(cfg.augment, resolve=True))
        return data

    go.compute, go.computed = compute, computed
    return go


def batches(data, epoch, split="train"):
    loader = getattr(data, f"{split}_dataloader")()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_every_image_comes_in_each_view_once_in_as_many_epochs_and_batches_mix_views():
    sampler = EpochSampler(50, shuffle=True, seed=3, views=4)
    for cycle in (0, 5):
        seen = {}
        for epoch in range(4 * cycle, 4 * cycle + 4):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert len({view for view, _ in keys[:16]}) > 1
            for view, row in keys:
                seen.setdefault(row, set()).add(view)
        assert all(views == {0, 1, 2, 3} for views in seen.values())
        assert len(seen) == 50


@pytest.mark.parametrize("augment", ["batched_strong", "strong"])
def test_a_view_is_the_draw_of_the_epoch_of_its_number(make, augment):
    fresh = make(f"augment={augment}", "data.views=null", store=False).dataset("train")
    views = make(f"augment={augment}", store=False)
    for batch in batches(views, 7):
        for number, image_id in enumerate(batch.ids):
            row = fresh.index.ids.index(image_id)
            draws = [fresh.__getitems__([(view, row)]) for view in range(3)]
            same = [torch.equal(batch.images[number], draw.images[0]) for draw in draws]
            assert sum(same) == 1
            torch.testing.assert_close(batch.boxes[number], draws[same.index(True)].boxes[0], rtol=0, atol=0)


def test_stored_batches_are_those_of_the_images_rounded_to_float16(make):
    stored, images = make(), make(store=False)
    for split, epoch in (("train", 0), ("train", 4), ("val", 4)):
        for mine, theirs in zip(batches(stored, epoch, split), batches(images, epoch, split), strict=True):
            assert mine.images is None
            assert mine.ids == theirs.ids
            assert mine.shares == theirs.shares
            assert torch.equal(mine.boxes, theirs.boxes)
            assert torch.equal(mine.labels, theirs.labels)
            for part, exact in zip(mine.state, make.compute(theirs.images), strict=True):
                assert torch.equal(part, exact.half())
                assert part.stride() == exact.stride()  # as the network's own convolutions leave it
    assert batches(stored, 0, "test")[0].images is not None


def test_features_are_computed_once_and_read_with_the_same_bits(make):
    first = batches(make(), 1)
    computed = sum(make.computed)
    again = batches(make("data.batch_size=10", "data.num_workers=1"), 1)
    assert sum(make.computed) == computed > 0
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))


@pytest.mark.parametrize(
    ("overrides", "weights", "splits"),
    [
        ([], "2", {"train", "val"}),
        (["image_size=40"], "1", {"train", "val"}),
        (["interpolation=nearest"], "1", {"train", "val"}),
        (["augment.flip=0.1"], "1", {"train"}),
        (["data.views=5"], "1", {"train"}),
        (["data.views=2"], "1", set()),
        (["data.limit=7"], "1", {"train", "val"}),
        (["seed=1"], "1", {"train"}),
        (["seed=1", "data.views_seed=0"], "1", set()),
        (["data.batch_size=3", "data.cache=none", "data.drop_last=true"], "1", set()),
    ],
)
def test_what_features_follow_from_makes_another_store(make, tmp_path, overrides, weights, splits):
    make()
    before = set((tmp_path / "cache/features").glob("*.json"))
    make(*overrides, weights=weights)
    new = set((tmp_path / "cache/features").glob("*.json")) - before
    assert {"train" if '"split": "train"' in path.read_text() else "val" for path in new} == splits


def test_more_views_are_added_to_those_that_are_there(make):
    make("data.views=2")
    make.computed.clear()
    more = make("data.views=3")
    num_images = len(more.dataset("train"))
    assert sum(make.computed) == num_images + 1  # one image tells the sizes
    others = make("data.views=3", store=False)
    for mine, theirs in zip(batches(more, 1), batches(others, 1), strict=True):
        assert torch.equal(mine.state[0], make.compute(theirs.images)[0].half())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child uses one
def test_two_processes_share_the_views_that_are_missing(make, tmp_path):
    """Each waits in its first view until the other is in another one."""
    begun = tmp_path / "begun"
    begun.mkdir()

    def compute(images):
        if len(images) > 1:
            (begun / str(os.getpid())).touch()
            while len(list(begun.iterdir())) < 2:
                time.sleep(0.01)
        return make.compute(images)

    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # other threads are not forked
            make(compute=compute)
            os._exit(0)
        finally:
            os._exit(1)
    mine = make(compute=compute)
    num_images = len(mine.dataset("train"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert 0 < sum(size for size in make.computed if size > 1) < 3 * num_images
    assert len(list((tmp_path / "cache/features").glob("*.npy"))) == 4


def test_who_is_stopped_while_computing_leaves_nothing(make, tmp_path):
    def stop(images):
        if len(images) > 1:
            raise KeyboardInterrupt
        return make.compute(images)

    with pytest.raises(KeyboardInterrupt):
        make(compute=stop)
    folder = tmp_path / "cache/features"
    assert {path.suffix for path in folder.iterdir()} == {".lock"}
    left = folder / f".{next(folder.glob('*.lock')).stem}.npy.1.tmp"
    left.write_bytes(b"of a process that was killed")
    assert len(batches(make(), 0)) > 1
    assert not left.exists()


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_store_is_made_again(make, tmp_path, caplog, damage):
    before = batches(make(), 0)
    for path in (tmp_path / "cache/features").glob("*.npy"):
        if damage == "cut":
            os.truncate(path, path.stat().st_size - 1)
        else:
            np.save(path, np.zeros((2, 2), np.float16))
    after = batches(make(), 0)
    assert caplog.text.count("is damaged, and is made again") == 4  # three views of train, one of val
    assert all(torch.equal(a.state[0], b.state[0]) for a, b in zip(before, after, strict=True))


def test_a_disk_without_room_is_refused_before_anything_is_computed(make, tmp_path, monkeypatch):
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=1000))
    with pytest.raises(BadInput, match=r"MB of features, but 0 MB are free; lower data.views"):
        make()
    assert make.computed == [1]
    monkeypatch.undo()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"No space left on device; lower data\.views"):
        make("data.cache=none")
    assert not list((tmp_path / "cache/features").glob("*npy*"))


def test_features_that_exceed_float16_are_refused(make):
    with pytest.raises(BadInput, match=r"exceed float16; set data\.features=off"):
        make(compute=lambda images: [images.float().mean((2, 3)) * 1e4])


def test_the_cache_lists_and_clears_features(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make()
    assert "train features of" in caplog.text
    assert "computed once, 0." in caplog.text
    found = {
        entry.data.partition(": ")[2]: entry for entry in cache.entries(tmp_path / "cache") if entry.kind == "features"
    }
    entry = found["train, view 2, pooled"]
    assert "val, view 0, pooled" in found
    assert entry.size == (32, 32)
    assert entry.images > 0
    assert entry.num_bytes == entry.path.stat().st_size
    assert Path(entry.data.partition(": ")[0]).is_dir()
    cache.clear(tmp_path / "cache")
    assert not [entry for entry in cache.entries(tmp_path / "cache") if entry.kind == "features"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child uses one
def test_who_is_killed_while_computing_leaves_nothing_that_is_taken_for_features(make, tmp_path):
    done = []

    def die(images):
        done.append(len(images))
        if len(done) == 3:  # one image tells the sizes, and one chunk is written
            os.kill(os.getpid(), signal.SIGKILL)
        return make.compute(images)

    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # other threads are not forked
            make(compute=die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    folder = tmp_path / "cache/features"
    assert {path.suffix for path in folder.iterdir()} == {".lock", ".tmp"}
    assert not [entry for entry in cache.entries(tmp_path / "cache") if entry.kind == "features"]
    after = make()
    assert {path.suffix for path in folder.iterdir()} == {".lock", ".npy", ".json"}
    undisturbed = make(f"data.cache_dir={tmp_path / 'other'}")
    for split in ("train", "val"):
        for one, other in zip(batches(after, 2, split), batches(undisturbed, 2, split), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))
            assert torch.equal(one.boxes, other.boxes)
