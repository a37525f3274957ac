"""The fingerprints of all experiments and of all jobs of all sweeps, which `fingerprints.json` beside it holds.

A sweep finds its finished jobs by them. Run as a program, it records them: for who changes one on purpose.
"""

import itertools
import json
import re
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from onebox.runs.fingerprint import fingerprints

CONF = Path(__file__).parents[2] / "conf"
FILE = Path(__file__).with_name("fingerprints.json")


def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_module("onebox.conf", version_base="1.3"):
        return compose("train", overrides=[*overrides, "run_dir=x"], return_hydra_config=True)


def fingerprint_of(*overrides):
    cfg = composed(*overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    return fingerprints(cfg)["fingerprint"]


def jobs(sweep):
    """The overrides of each job of a sweep as its file says to start it, also of those that it excludes."""
    text = (CONF / f"sweep/{sweep}.yaml").read_text()
    given = re.search(r"^# Run: +onebox-train sweep=\w+(.*)$", text, re.MULTILINE)[1].split()
    cfg = composed(f"sweep={sweep}", *given)
    params = OmegaConf.to_container(OmegaConf.create(cfg.hydra.sweeper.params or {}))
    axes = []
    for override in OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()]):
        if override.is_discrete_sweep():  # what is drawn from a range has no jobs before it runs
            axes.append([f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()])
    listed = [[f"{key}={value}" for key, value in job.items()] for job in cfg.sweep.jobs or [{}]]
    return [(f"sweep={sweep}", *given, *grid, *job) for grid in itertools.product(*axes) for job in listed]


def current():
    """What there is now, by what is asked for."""
    experiments, sweeps = (
        sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("experiment", "sweep")
    )
    asked = [(), *((f"experiment={name}",) for name in experiments), *(job for name in sweeps for job in jobs(name))]
    return {" ".join(overrides): fingerprint_of(*overrides) for overrides in asked}


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=1) + "\n")
