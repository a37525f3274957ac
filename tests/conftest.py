"""What tests share: small data, real data where it is there, and configs composed as the command line composes them."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from PIL import Image
from tests.nursery import Nursery

import onebox.hydra_setup  # noqa: F401  # before anything is composed
from onebox.data.annotations import Conventions, understand
from onebox.data.shapes import write_shapes
from onebox.data.table import Table
from onebox.data.voc import read_record
from onebox.errors import BadInput
from onebox.lightning_setup import import_lightning

import_lightning()  # in less time than the tests' own imports of it would take

Compose = Callable[..., DictConfig]

# Ctrl-C is tested, and a shell starts what it puts into the background with Ctrl-C ignored, processes of its own too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the tests that take minutes, so that the others fill the time when some processes are through."""
    items.sort(key=lambda item: -max((mark.kwargs.get("minutes", 0) for mark in item.iter_markers("long")), default=0))


def pytest_terminal_summary(terminalreporter) -> None:
    """Says why tests were skipped: a line for each reason."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all workers have."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A new folder that the first worker that needs it fills for all; nobody may change what is in it."""
    with FileLock(f"{folder}.lock"):
        if not (folder / ".made").exists():
            folder.mkdir()
            make(folder)
            (folder / ".made").touch()
    return folder


@pytest.fixture(scope="session")
def shapes_root(shared_folder: Path) -> Path:
    """A small embedded data set."""
    sizes = {"num_train": 60, "num_val": 20, "num_test": 20}
    about = sizes | {"multi_object_fraction": 0.2, "min_side": 80, "max_side": 120, "seed": 0}
    return made_once(shared_folder / "data", lambda folder: write_shapes(folder / "shapes", **about)) / "shapes"


@pytest.fixture(scope="session")
def nursery(shared_folder: Path) -> Iterator[Nursery]:
    """Starts whole commands."""
    nursery = Nursery(shared_folder)
    yield nursery
    nursery.close()


SMALL_FIT = ["image_size=32", "data.batch_size=8", "trainer.max_epochs=2", "optimizer.lr=0.01"]


@pytest.fixture(scope="session")
def trained(nursery: Nursery, shapes_root: Path, shared_folder: Path) -> Path:
    """The directory of a small run that has completed."""

    def train(folder: Path) -> None:
        overrides = [
            f"data.root={shapes_root}",
            "data.source=null",
            f"data.cache_dir={folder / 'cache'}",
            *SMALL_FIT,
            "callbacks.pictures=null",
            f"hydra.run.dir={folder / 'run'}",
        ]
        assert nursery.run(*overrides, log=folder / "log") == 0, (folder / "log").read_text()

    return made_once(shared_folder / "trained", train) / "run"


@pytest.fixture(scope="session")
def voc_root() -> Path:
    """The folder that holds VOCdevkit."""
    if "ONEBOX_VOC_ROOT" not in os.environ:
        pytest.skip("set ONEBOX_VOC_ROOT to the folder that holds VOCdevkit; CI does")
    return Path(os.environ["ONEBOX_VOC_ROOT"]).absolute()


@pytest.fixture
def composed(tmp_path: Path, shapes_root: Path) -> Iterator[Compose]:
    """Composes a config on the small data set; its run directory is `tmp_path / "run"` unless overridden."""

    def make(*overrides: str, small: bool = True) -> DictConfig:
        data = [f"data.root={shapes_root}", "data.source=null"] if small else []
        GlobalHydra.instance().clear()
        with initialize_config_module("onebox.conf", version_base="1.3"):
            cfg = compose(
                "train",
                # Overrides of the caller come last and win.
                overrides=[
                    f"run_dir={tmp_path / 'run'}",
                    f"data.cache_dir={tmp_path / 'cache'}",
                    "trainer.accelerator=cpu",
                    *data,
                    *overrides,
                ],
                return_hydra_config=True,
            )
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    yield make
    HydraConfig.instance().cfg = None


VOC_XML = """<annotation>
  <folder>VOC2007</folder><filename>{name}.jpg</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>
  {objects}
</annotation>
"""
OBJECT_XML = """<object>
  <name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>
  <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
</object>"""


def read_annotation(path: Path, *, label_of: Mapping[str, int] | None = None, box_origin: int = 1) -> Table:
    """One XML file, judged as training judges it, with the corners of its boxes as edges in px."""
    from onebox.data.index import annotation_problems

    table = Table.from_records([path.stem], np.zeros((1, 3), np.int64), [read_record(str(path))])
    table = understand(table, Conventions(box_origin=box_origin)).table
    for problem in annotation_problems(table, label_of=label_of).values():
        raise BadInput(f"{path}: {problem}")
    return table


class Tree:
    """Writes a VOC tree, image by image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)

    def add(self, name: str, *objects: tuple[str, tuple[int, int, int, int]], size=(60, 40), difficult=()) -> None:
        """One image of (width, height) px with objects (class, VOC box); `difficult` numbers those marked so."""
        width, height = size
        items = [
            OBJECT_XML.format(name=label, box=box, difficult=int(number in difficult))
            for number, (label, box) in enumerate(objects)
        ]
        text = VOC_XML.format(name=name, width=width, height=height, objects="".join(items))
        (self.folder / "Annotations" / f"{name}.xml").write_text(text)
        pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / "JPEGImages" / f"{name}.jpg")

    def list(self, name: str, *ids: str) -> None:
        """One list of ids."""
        (self.folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty VOC tree."""
    return Tree(tmp_path / "tree")
