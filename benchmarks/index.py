"""Speed of the index on synthetic VOC XML: `python -m benchmarks.index 100000`.

Prints one line of JSON: files per second of reading a new tree, the same as a ratio to plain ElementTree in one thread
over the same files in the same run, the seconds of opening the index again, and the memory that an open index takes for
each file.
"""

import argparse
import json
import os
import random
import tempfile
import time
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

from onebox.data.listed import Listed
from onebox.data.tree import VocTree

OBJECT = """	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>{x1}</xmin>
			<ymin>{y1}</ymin>
			<xmax>{x2}</xmax>
			<ymax>{y2}</ymax>
		</bndbox>
	</object>
"""
FILE = """<annotation>
	<folder>synthetic</folder>
	<filename>{name}.JPEG</filename>
	<source>
		<database>synthetic</database>
	</source>
	<size>
		<width>500</width>
		<height>375</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
{objects}</annotation>
"""


def write_tree(folder: Path, num_files: int) -> None:
    """ILSVRC's layout with up to 1,000 classes, one to three objects a file, and no pixels."""
    draw = random.Random(0)
    annotations = folder / "Annotations" / "CLS-LOC" / "train"
    (folder / "Data" / "CLS-LOC" / "train").mkdir(parents=True)
    num_classes = min(1000, num_files)
    for label in range(num_classes):
        (annotations / f"n{label:08}").mkdir(parents=True)
    for number in range(num_files):
        synset = f"n{number % num_classes:08}"
        objects = "".join(
            OBJECT.format(
                name=synset, x1=draw.randint(1, 200), y1=draw.randint(1, 150), x2=draw.randint(250, 500), y2=300
            )
            for _ in range(draw.choice([1, 1, 1, 2, 3]))
        )
        (annotations / synset / f"{synset}_{number}.xml").write_text(FILE.format(name=number, objects=objects))


def seconds_of_plain_parsing(folder: Path) -> float:
    """Find all files and parse them, one after the other, with nothing checked and nothing kept."""
    start = time.perf_counter()
    for top, _, names in os.walk(folder / "Annotations"):
        for name in names:
            ElementTree.parse(os.path.join(top, name))
    return time.perf_counter() - start


def seconds_of_opening(folder: Path, cache_dir: Path) -> tuple[float, Listed]:
    """What a run does before it selects."""
    start = time.perf_counter()
    tree = VocTree(folder, cache_dir=cache_dir)
    listed = Listed({"": tree}, [("", image_id) for image_id in tree.ids("*")[0]], cache_dir)
    return time.perf_counter() - start, listed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index")
    parser.add_argument("num_files", type=int)
    num_files: int = parser.parse_args().num_files
    with tempfile.TemporaryDirectory() as temporary:
        tree, cache_dir = Path(temporary, "tree"), Path(temporary, "cache")
        write_tree(tree, num_files)
        seconds_of_plain_parsing(tree)  # all files are in memory for both
        build, listed = seconds_of_opening(tree, cache_dir)
        plain = seconds_of_plain_parsing(tree)
        del listed
        reopen, listed = seconds_of_opening(tree, cache_dir)
        tracemalloc.start()
        _kept = seconds_of_opening(tree, cache_dir)
        grown, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(listed.table) == num_files
        assert not listed.table.problems
    figures = {
        "files_per_s": num_files / build,
        "plain_files_per_s": num_files / plain,
        "ratio": plain / build,
        "reopen_s": reopen,
        "bytes": grown / num_files,
        "bytes_while_opening": peak / num_files,
    }
    print(json.dumps({name: [value] for name, value in figures.items()}))


if __name__ == "__main__":
    main()
