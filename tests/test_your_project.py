"""docs/your-project.md: what it shows is written into a project, and run."""

import re
import shlex
from pathlib import Path

import pytest
from tests.test_project import Project

TEXT = (Path(__file__).parent.parent / "docs/your-project.md").read_text()
PARTS = {part.partition("\n")[0].strip(): part for part in TEXT.split("\n## ")[1:]}
FILES = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)```", re.M | re.S)
COMMANDS = re.compile(r"^```shell\n(.*?)```", re.M | re.S)
QUICK = ["image_size=32", "data.batch_size=4", "data.limit=8", "callbacks.pictures=null", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def own(tmp_path_factory, nursery) -> Project:
    project = Project(tmp_path_factory.mktemp("guide") / "my_thesis", nursery)
    project.folder.mkdir()
    project.run("new", ".", program="onebox")
    return project


def test_it_shows_a_head_a_loss_a_backbone_and_data_in_less_than_forty_lines_each():
    assert [*PARTS] == ["A new head", "A new loss", "A new backbone", "A data set of two classes"]
    for title, part in PARTS.items():
        lines = [line for block in (*FILES.findall(part), *COMMANDS.findall(part)) for line in block[-1].splitlines()]
        assert len(FILES.findall(part)) == 2 and len(lines) < 40, title


@pytest.mark.parametrize("title", PARTS)
def test_each_part_runs_as_it_stands(own, shapes_root, title):
    for name, text in FILES.findall(PARTS[title]):
        (own.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (own.folder / name).write_text(text)
    own_data = "coins" in PARTS[title]
    for line in COMMANDS.search(PARTS[title])[1].splitlines():
        program, *words = shlex.split(line)
        if program == "onebox-train":
            words += [*QUICK, *([] if own_data else [f"data.root={shapes_root}", "data.source=null"])]
        if program == "python":
            words = [(own.folder / words[0]).read_text()]
        out = own.run(*words, program=program)
    runs = [path.parent for path in own.folder.glob("outputs/**/run.json")]
    newest = max(runs, key=lambda folder: (folder / "run.json").stat().st_mtime)
    (module,) = [name for name, _ in FILES.findall(PARTS[title]) if name.endswith(".py")]
    used = (newest / "config.yaml").read_text()
    assert module.removesuffix(".py").replace("/", ".") in used or "classes:\n  - coin\n  - note" in used
    assert not own_data or re.search(r"coins/000.png: (coin|note) ", out)
