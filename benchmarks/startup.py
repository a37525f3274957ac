"""How long commands take to start: `python -m benchmarks.startup --help`, or any other arguments, or `first_step`.

Seconds of `onebox-train ARGUMENTS` over those of an empty Hydra app; with `first_step`, seconds of `onebox-train
experiment=baseline` on the cached embedded data set until the first optimiser step is done, over those of importing
torch and Lightning. Prints one line of JSON: a list of ratios.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "onebox-train")
BARE_APP = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg): pass
main()
"""


IMPORTS = [sys.executable, "-c", "import torch, lightning.pytorch"]
FIRST_STEP = ["experiment=baseline", "+callbacks.first_step={_target_: benchmarks.first_step.FirstStep}"]


def seconds_of(command: list[str], folder: str) -> float:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app.py"
        app.write_text(BARE_APP)
        mine, other = [COMMAND, *sys.argv[1:]], [sys.executable, str(app), *sys.argv[1:]]
        if sys.argv[1:] == ["first_step"]:
            mine, other = [COMMAND, *FIRST_STEP], IMPORTS
        for _ in range(5):
            ratios.append(seconds_of(mine, folder) / seconds_of(other, folder))
    print(json.dumps({"ratio": ratios[1:]}))  # the first one reads files from the disk, and writes the data


if __name__ == "__main__":
    main()
