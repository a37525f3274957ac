"""Where Hydra accepts plugins from, and the only place that knows both them and how a run is built."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from onebox.project import config_folder


def _build(config: dict[str, Any], known: dict[str, Any]) -> dict[str, str]:
    from onebox.build import build_job

    return build_job(config, known)


class ProjectConfigs(SearchPathPlugin):
    """Lets Hydra find the conf/ of a project of one's own, behind that of onebox."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if (folder := config_folder()) is not None:
            search_path.append("project", f"file://{folder}")


class GridSweeper(Sweeper):
    """See `onebox.sweep.sweeper`, which is imported when a sweep begins."""

    def __init__(self, **settings: Any) -> None:
        from onebox.sweep.sweeper import GridSweeper

        self._sweeper: Any = GridSweeper(build=_build, **settings)

    def setup(self, **context: Any) -> None:
        self._sweeper.setup(**context)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        return self._sweeper.sweep(arguments)


class HermeticLauncher(Launcher):
    """`hydra/launcher=hermetic`, see `onebox.sweep.launcher.LaunchOptions` for its arguments."""

    def __init__(self, **options: Any) -> None:
        from onebox.sweep.slots import LaunchOptions

        self._options = LaunchOptions(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from onebox.sweep.process import start_server

        self._context, self._task_function, self._config = hydra_context, task_function, config
        start_server()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from onebox.sweep.launcher import launch

        return launch(self._options, self._context, self._task_function, self._config, job_overrides, initial_job_idx)

    def launch_composed(self, job_overrides: Sequence[Any], **composed: Any) -> Sequence[JobReturn]:
        """Run jobs of the combinations as they are composed, and wait for them."""
        from onebox.sweep.launcher import launch

        return launch(self._options, self._context, self._task_function, self._config, job_overrides, **composed)


class OptunaSweeper(GridSweeper):
    """See `onebox.sweep.search`, which is imported when a search begins, as it takes Optuna with it."""

    def __init__(self, **settings: Any) -> None:
        from onebox.sweep.search import Search

        self._sweeper: Any = Search(build=_build, **settings)
