"""Trains a config that is complete, without composing it; as a script, with the code that PYTHONPATH names."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypedDict


class Replay(TypedDict):
    """What is to be run.

    Attributes:
        config: resolved; plain data.
        choices: the option that was chosen in each group.
        overrides: those of the command line.
        threads: of torch; their number changes the last bits of sums.
    """

    config: dict[str, Any]
    choices: dict[str, str | None]
    overrides: list[str]
    threads: int


def replay(what: Replay) -> None:
    """Run it in this process."""
    import torch
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from onebox.runs.composition import set_hydra_config
    from onebox.spelling import told_as_bad_input
    from onebox.train import train

    set_hydra_config(what["choices"], what["overrides"])
    threads = torch.get_num_threads()
    torch.set_num_threads(what["threads"])
    cfg = OmegaConf.create(what["config"])
    OmegaConf.set_struct(cfg, True)
    try:
        with told_as_bad_input():
            train(cfg)
    finally:
        torch.set_num_threads(threads)
        HydraConfig.instance().cfg = None


def replay_with(code: Path, what: Replay) -> int:
    """Run it in a new process with the code of another checkout; returns its exit code."""
    path = os.pathsep.join(filter(None, [str(code / "src"), os.environ.get("PYTHONPATH")]))
    # -P: the folder of this file holds modules, such as data, that are nobody's top level.
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(code)],
        input=json.dumps(what),
        stdout=sys.stderr if sys.stdout is not sys.__stdout__ else None,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        check=False,
    )
    return done.returncode


def _main() -> None:
    import logging

    conf = Path(sys.argv[1], "conf")
    spec = spec_from_file_location("onebox.conf", conf / "__init__.py", submodule_search_locations=[str(conf)])
    assert spec is not None
    sys.modules["onebox.conf"] = module_from_spec(spec)  # or the one of the installed checkout is found
    from onebox.errors import BadInput

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        replay(json.load(sys.stdin))
    except BadInput as error:
        print(f"onebox: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _main()
