"""Seconds of `onebox-train ARGUMENTS` over those of an empty Hydra app: `python -m benchmarks.startup --help`.

Prints one line of JSON: a list of ratios.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE_APP = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg): pass
main()
"""


def seconds_of(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app.py"
        app.write_text(BARE_APP)
        for _ in range(5):
            mine = seconds_of([str(Path(sys.executable).parent / "onebox-train"), *sys.argv[1:]], folder)
            ratios.append(mine / seconds_of([sys.executable, str(app), *sys.argv[1:]], folder))
    print(json.dumps({"ratio": ratios[1:]}))  # the first one reads files from the disk


if __name__ == "__main__":
    main()
