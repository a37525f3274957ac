import pickle
import shutil
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from onebox.build import build_data
from onebox.errors import BadInput

DOG = ("dog", (1, 1, 30, 20))
CAT = ("cat", (5, 5, 55, 35))


@pytest.fixture
def folder_data(composed, tree):
    """Builds and sets up `data=folder` on the test's own tree."""

    def make(*overrides: str):
        data = build_data(composed("data=folder", f"data.root={tree.folder}", *overrides, small=False))
        data.setup()
        return data

    return make


@pytest.fixture
def shapes_data(composed):
    def make(*overrides: str):
        data = build_data(composed(*overrides))
        data.setup()
        return data

    return make


def batches(data, epoch=0, loader="train_dataloader"):
    loader = getattr(data, loader)()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_a_plain_folder_gives_its_own_classes_and_a_seeded_split(folder_data, tree):
    for number in range(20):
        tree.add(f"image{number:02}", DOG if number % 2 else CAT)
    first, again, other = folder_data(), folder_data("seed=1"), folder_data("data.split_seed=1")
    assert first.class_names == ["background", "cat", "dog"]
    assert {split: len(index) for split, index in first.indexes.items()} == {"train": 16, "val": 2, "test": 2}
    held_out, same, others = (
        [index.ids for split, index in data.indexes.items() if split != "train"] for data in (first, again, other)
    )
    assert len({name for index in first.indexes.values() for name in index.ids}) == 20
    assert held_out == same != others  # seeds of training are compared on the same images
    assert held_out == [("image04", "image19"), ("image02", "image06")]


def test_folds_test_each_usable_image_once_with_all_classes_and_equal_images_together(folder_data, tree):
    for number in range(20):
        tree.add(f"image{number:02}", DOG if number % 4 else CAT)
    tree.add("two", DOG, CAT)  # cannot be used
    for number in (20, 21):  # the same content as that of another image
        tree.add(f"image{number}", DOG)
        copy = tree.folder / "JPEGImages" / "image01.jpg"
        (tree.folder / "JPEGImages" / f"image{number}.jpg").write_bytes(copy.read_bytes())
    tree.list("train", *(f"image{number:02}" for number in range(12)), "two")
    tree.list("test", *(f"image{number:02}" for number in range(12, 22)))
    lists = "data.splits={train:[train],val:[],test:[test]}"
    folds = [folder_data(lists, f"data.fold={fold}") for fold in range(5)]
    tests = [data.indexes["test"].ids for data in folds]
    assert sorted(name for test in tests for name in test) == [f"image{number:02}" for number in range(22)]
    assert all(3 <= len(test) <= 7 for test in tests)
    cats = [(data.indexes["test"].labels == data.class_names.index("cat")).sum().item() for data in folds]
    assert cats == [1] * 5
    assert [{"image01", "image20", "image21"} <= {*test} for test in tests].count(True) == 1
    for data in folds:
        ids = {split: {*index.ids} for split, index in data.indexes.items()}
        assert len(ids["train"]) + len(ids["val"]) + len(ids["test"]) == 22 == len(set().union(*ids.values()))
        assert len(ids["val"]) >= 2 and data.indexes["train"].dropped["several objects"] == 1
    again, other = folder_data(lists, "data.fold=0", "seed=1"), folder_data(lists, "data.fold=0", "data.split_seed=1")
    assert again.indexes["test"].ids == tests[0] != other.indexes["test"].ids
    halves = [folder_data(lists, f"data.fold={fold}", "data.folds=2", "data.holdout.val=0") for fold in (0, 1)]
    assert [len(data.indexes["val"]) for data in halves] == [0, 0]
    assert halves[0].indexes["test"].ids == halves[1].indexes["train"].ids


def test_a_limit_may_be_of_one_split(folder_data, tree):
    for number in range(20):
        tree.add(f"image{number:02}", DOG if number % 2 else CAT)
    sizes = [
        {split: len(index) for split, index in folder_data(limit).indexes.items()}
        for limit in ("data.limit=1", "data.limit={train:5}", "data.limit={train:5,test:1}")
    ]
    assert sizes[0] == {"train": 1, "val": 1, "test": 1}
    assert sizes[1:] == [{"train": 5, "val": 2, "test": 2}, {"train": 5, "val": 2, "test": 1}]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.limit={train:0}"], "data.limit must be a number >= 1, null, or of splits such as {train: 100}"),
        (["data.limit={training:5}"], "data.limit must be"),
        (["data.fold=5"], "data.fold must be null or one of 0 to 4"),
        (["data.fold=true"], "data.fold must be"),
        (["data.folds=1"], "data.folds must be a number >= 2"),
        (["data.fold=0", "data.only_train=true"], "data.only_train leaves no test"),
        (["data.fold=0"], "only 3 images can be used"),
    ],
)
def test_a_limit_or_fold_that_cannot_be_made_is_refused(folder_data, tree, overrides, told):
    for number in range(3):
        tree.add(f"image{number}", DOG)
    with pytest.raises((BadInput, InstantiationException)) as error:
        folder_data(*overrides)
    assert told in f"{error.value} {error.value.__cause__}"


def test_selection_keeps_what_it_says(folder_data, tree):
    tree.add("one", DOG)
    tree.add("two", DOG, CAT)
    tree.add("none")
    tree.add("hard", CAT, DOG, difficult=[0])
    splits = "data.splits={train:['*'],val:[],test:[]}"
    none = "data.holdout={val:0.0,test:0.0}"
    single = folder_data(splits, none).indexes["train"]
    assert single.ids == ("one",)
    assert single.dropped["several objects"] == 2
    assert single.dropped["no object"] == 1
    assert str(single) == "1 of 4 images, 1 dropped (no object), 2 dropped (several objects)"
    largest = folder_data(splits, none, "data.select=largest")
    assert dict(zip(largest.indexes["train"].ids, largest.indexes["train"].labels.tolist(), strict=True)) == {
        "hard": 1,
        "one": 2,
        "two": 1,
    }
    easy = folder_data(splits, none, "data.include_difficult=false").indexes["train"]
    assert easy.ids == ("hard", "one")
    assert folder_data(splits, none, "data.select=largest", "data.ids=[two,one]").indexes["train"].ids == ("one", "two")
    assert folder_data(splits, none, "data.select=largest", "data.limit=2").indexes["train"].ids == ("hard", "one")


@pytest.mark.parametrize("draw", ["data.fold=1", "data.holdout={val:0.2,test:0.2}"])
def test_images_with_several_objects_can_be_for_training_alone(folder_data, tree, draw):
    for number in range(20):
        tree.add(f"single{number}", DOG)
    for number in range(5):
        tree.add(f"several{number}", DOG, CAT)
    drawn = ["data.splits={train:['*'],val:[],test:[]}", "data.folds=4", draw]
    plain = folder_data(*drawn).indexes
    more = folder_data(*drawn, "data.select={train:largest}").indexes
    assert {*more["train"].ids} == {*plain["train"].ids} | {f"several{number}" for number in range(5)}
    for split in ("val", "test"):
        assert more[split].ids == plain[split].ids and len(plain[split])
    with pytest.raises(BadInput, match="val and test are drawn from the same images"):
        folder_data(*drawn, "data.select={val:largest}")


def test_a_copy_of_a_measured_image_is_not_trained_on_for_its_other_annotations(folder_data, tree):
    """Another tree may have the same photograph with more objects."""
    for number in range(8):
        tree.add(f"single{number}", DOG)
        tree.add(f"copy{number}", DOG, CAT)
        images = tree.folder / "JPEGImages"
        shutil.copy(images / f"single{number}.jpg", images / f"copy{number}.jpg")
    drawn = ["data.splits={train:['*'],val:[],test:[]}", "data.folds=4", "data.fold=0", "data.select={train:largest}"]
    indexes = folder_data(*drawn).indexes
    measured = {*indexes["val"].digests, *indexes["test"].digests}
    assert len(measured) > 1 and not measured & {*indexes["train"].digests}
    assert any(name.startswith("copy") for name in indexes["train"].ids)


def test_the_background_class_shifts_the_labels(folder_data, tree):
    for number in range(4):
        tree.add(f"{number}", DOG)
    assert folder_data().indexes["train"].labels.unique().tolist() == [1]
    without = folder_data("data.background_class=false")
    assert without.class_names == ["dog"]
    assert without.indexes["train"].labels.unique().tolist() == [0]


def test_boxes_are_normalised_xyxy(folder_data, tree):
    tree.add("a", ("dog", (1, 1, 30, 20)))
    index = folder_data("data.holdout={val:0,test:0}").indexes["train"]
    torch.testing.assert_close(index.boxes, torch.tensor([[0.0, 0.0, 0.5, 0.5]]))


def test_an_image_in_two_splits_is_refused(folder_data, tree):
    tree.add("a", DOG)
    tree.add("b", DOG)
    tree.list("train", "a", "b")
    tree.list("val", "b")
    with pytest.raises(BadInput, match="image b is in both train and val"):
        folder_data("data.splits={train:[train],val:[val],test:[]}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tree: (tree.folder / "JPEGImages/a.jpg").unlink(), r"a\.jpg: no such image; add it"),
        (lambda tree: tree.add("a", ("dog", (1, 1, 61, 20))), r"a\.xml: box .* outside the image of 60x40"),
        (lambda tree: tree.add("a", ("unicorn", (1, 1, 6, 20))), r"a\.xml: class 'unicorn' is not in data\.classes"),
    ],
)
def test_bad_data_is_refused_before_training_with_file_and_remedy(folder_data, tree, spoil, message):
    tree.add("a", DOG)
    spoil(tree)
    with pytest.raises(BadInput, match=message):
        folder_data("data.classes=[dog]")


def test_no_image_left_says_what_dropped_them(folder_data, tree):
    tree.add("a", DOG, CAT)
    told = r"no training image is left \(0 of 1 images, 1 dropped \(several objects\)\); set data\.select=largest"
    with pytest.raises(BadInput, match=told):
        folder_data()
    with pytest.raises(InstantiationException, match=r"data\.splits\.train must be a list, such as \[all\], not all"):
        folder_data("data.splits={train:all}")


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_an_unreadable_image_is_named(folder_data, tree, content):
    tree.add("a", DOG)
    (tree.folder / "JPEGImages/a.jpg").write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.jpg: not a readable image"):
        folder_data().dataset("train")


def test_an_image_of_another_size_than_annotated_is_named(folder_data, tree):
    tree.add("a", DOG)
    Image.new("RGB", (40, 60)).save(tree.folder / "JPEGImages/a.jpg")
    with pytest.raises(BadInput, match=r"a\.jpg: the image is 40x60 px but its annotation says 60x40"):
        folder_data().dataset("train")


def test_an_exif_turn_is_not_applied(folder_data, tree):
    tree.add("a", DOG)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    Image.new("RGB", (60, 40)).save(tree.folder / "JPEGImages/a.jpg", exif=exif)
    assert len(folder_data("data.holdout={val:0,test:0}").dataset("train")) == 1


@pytest.mark.parametrize("augment", ["none", "strong", "batched_strong"])
def test_batches_do_not_depend_on_workers_or_cache(shapes_data, augment):
    variants = [
        shapes_data("data.batch_size=16", f"augment={augment}", *overrides)
        for overrides in (
            ["data.cache=disk"],
            ["data.num_workers=1"],
            ["data.num_workers=2"],
            ["data.cache=ram"],
            ["data.cache=none"],
        )
    ]
    for epoch in (0, 3):
        expected, *others = [batches(data, epoch) for data in variants]
        for other in others:
            assert [batch.ids for batch in other] == [batch.ids for batch in expected]
            for mine, theirs in zip(other, expected, strict=True):
                assert torch.equal(mine.images, theirs.images)
                assert torch.equal(mine.boxes, theirs.boxes)
                assert torch.equal(mine.labels, theirs.labels)


def test_a_worker_that_is_no_fork_gives_the_same_batches(shapes_data):
    """As on macOS; torch moves the tensors of what it sends to such a process to other memory."""
    data = shapes_data()
    dataset = data.dataset("train")
    keys = [(0, row) for row in range(len(dataset))]
    expected = dataset.__getitems__(keys)
    sent = bytes(ForkingPickler.dumps(dataset))
    for other in (dataset, pickle.loads(sent)):
        batch = other.__getitems__(keys)
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.boxes, expected.boxes)
        assert torch.equal(batch.labels, expected.labels)


def test_each_epoch_has_all_images_in_an_order_of_its_own(shapes_data):
    data = shapes_data("data.batch_size=7")
    orders = [[name for batch in batches(data, epoch) for name in batch.ids] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(data.indexes["train"].ids)
    assert orders[0] != orders[1]
    assert [name for batch in batches(data, 5, "val_dataloader") for name in batch.ids] == list(data.indexes["val"].ids)


def test_a_batch_is_uint8_channels_last(shapes_data):
    batch = batches(shapes_data())[0]
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.boxes.dtype == torch.float32
    assert batch.labels.dtype == torch.int64


def test_only_train_pools_all_lists(shapes_data):
    data = shapes_data("data.only_train=true", "data.select=largest")
    assert len(data.indexes["train"]) == 100
    assert len(data.indexes["val"]) == len(data.indexes["test"]) == 0


def test_replicas_share_the_images_evenly():
    from onebox.data.loading import EpochSampler

    parts = [list(EpochSampler(7, shuffle=True, seed=0, rank=rank, num_replicas=2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [4, 4]
    assert {row for part in parts for _, row in part} == set(range(7))


def test_real_voc_gives_the_known_numbers(composed, voc_root):
    cfg = composed("data=voc2007", f"data.root={voc_root / 'VOCdevkit'}", small=False)
    data = build_data(cfg)
    data.setup()
    assert {split: len(index) for split, index in data.indexes.items()} == {"train": 1169, "val": 167, "test": 183}
    assert data.num_classes == 21
    assert data.class_names[15] == "person"
    assert instantiate(cfg.data.classes) == data.class_names[1:]
