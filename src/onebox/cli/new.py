"""`onebox new`: a project of one's own, which needs no fork of onebox."""

import shlex
import shutil
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from onebox.errors import check, printable
from onebox.project import SIGN, is_project, trust_project

# What the folder of templates cannot hold, as it would be taken for a part of onebox.
OTHERS = {
    ".gitignore": "# The mark of a trusted project (onebox new --trust makes it anew), data, runs.\n"
    ".onebox\n/data/\n/outputs/\n__pycache__/\n.pytest_cache/\n",
    "my_project/__init__.py": '"""Classes of your own, which YAML in conf/ names."""\n',
}
NEXT = """
  cd {folder}
  onebox-train experiment=mine debug=fast   # does it run? A few seconds
  onebox-train experiment=mine              # its head and its loss on the embedded data set, a minute or two
  onebox-train --help                       # all options, yours among them
"""


def new(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The new folder; an empty one will do.", show_default=False)
    ],
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="FOLDER is a project already, from elsewhere: use its conf/ and code from now on."
        ),
    ] = False,
) -> None:
    """Make a project of your own: options in conf/, a head and a loss in my_project/, a test, a README.

    Whoever stands in it, or in a folder of it, uses onebox-train and onebox as ever: its options and classes are found.

    \b
    Examples
      onebox new my_thesis
      onebox new --trust my_thesis_clone     a clone, whose code would not be run otherwise
    """
    folder = folder.expanduser().resolve()
    check(not folder.exists() or folder.is_dir(), f"{folder}: is a file; name a new folder")
    if trust:
        check(is_project(folder), f"{folder}: is no project, as {folder}/pyproject.toml has no {SIGN}")
        trust_project(folder)
        print(printable(f"{folder}: its conf/ and code are used from now on by whoever stands in it"))
        return
    is_new = not folder.exists()
    check(is_new or not any(folder.iterdir()), f"{folder}: holds files; name a new folder, or an empty one")
    check(":" not in str(folder), f"{folder}: Python finds no modules in a folder with a colon; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(folder)
        trust_project(folder)
    except BaseException:  # a full disk, Ctrl-C
        for path in [folder] if is_new else folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    print(printable(f"{folder}: conf/ holds options, my_project/ classes; README.md says how to go on. Next:"))
    print(NEXT.format(folder=shlex.quote(printable(str(folder)))))


def _write(folder: Path) -> None:
    with as_file(files("onebox.cli") / "project") as template:
        shutil.copytree(template, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for name, text in OTHERS.items():
        (folder / name).write_text(text, encoding="utf-8")
