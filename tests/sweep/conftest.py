"""Sweeps without a command line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

from onebox.data.shapes import write_shapes
from onebox.hydra_setup import register_plugins
from onebox.train import task

Sweep = Callable[..., Any]


@pytest.fixture
def sweeper(tmp_path: Path, shapes_root: Path) -> Iterator[Sweep]:
    """Makes the sweeper of a command line, on the small data set; its folder is `tmp_path / "sweep"`."""
    register_plugins()

    def make(*overrides: str) -> Any:
        GlobalHydra.instance().clear()
        given = [
            f"hydra.sweep.dir={tmp_path / 'sweep'}",
            f"data.root={shapes_root}",
            "data.source=null",
            f"data.cache_dir={tmp_path / 'cache'}",
            "trainer.accelerator=cpu",
            *overrides,
        ]
        with initialize_config_module("onebox.conf", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            config = hydra.compose_config("train", given, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        found = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=task)
        found.arguments = list(config.hydra.overrides.task)
        return found

    yield make
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of commands whose runs take a second."""
    root = tmp_path_factory.mktemp("search")
    sizes = {"num_train": 40, "num_val": 16, "num_test": 8}
    write_shapes(root / "shapes", **sizes, multi_object_fraction=0.0, min_side=32, max_side=40, seed=0)
    given = ["data.source=null", f"data.root={root / 'shapes'}", f"data.cache_dir={root / 'cache'}", "image_size=32"]
    # The hermetic launcher would import everything once more; its own tests show that it runs what it is given.
    quiet = ["hydra/launcher=basic", "callbacks/progress=lines", "callbacks.pictures=null", "trainer.accelerator=cpu"]
    return [*given, *quiet, "trainer.max_epochs=8", "data.batch_size=8"]
