"""Where Hydra accepts plugins from, and the only place that knows both them and how a run is built."""

from typing import Any

from onebox.sweep import sweeper


def _build(*args: Any) -> dict[str, str]:
    from onebox.train import build_job

    return build_job(*args)


class GridSweeper(sweeper.GridSweeper):
    """See `onebox.sweep.sweeper`."""

    build = staticmethod(_build)
