"""Where a run's numbers come from: code, packages, machine."""

import fnmatch
import functools
import gzip
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any

import onebox
from onebox.files import read_file, read_json, replacing, write_json
from onebox.runs.own_code import files_of, hashes, with_own_code
from onebox.trust import stored_file

PATCH_FILE = "changes.patch.gz"
GIT_FILE = "git.json"
OWN = ".own"  # folder in a patch that stands for repositories of one's own code
MAX_PATCH_BYTES = 2_000_000
MAX_LEFT_OUT = 100  # names
MAX_UNTRACKED_BYTES = 200_000  # of one file; a longer one is data
# Untracked files that are source. Nothing else is kept: what is not known could be anything.
SOURCE = (".py", ".pyi", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".md", ".html", ".sh", ".c", ".cpp", ".cu", ".h")
SECRET = (
    *(".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *(".netrc", ".pypirc", ".npmrc", ".htpasswd", "*secret*", "*credential*", "*password*", "*apikey*"),
    *("*.token", "token.*", "*[_-]token.*"),
)
_PRIVATE_KEY = re.compile(rb"-----(BEGIN|END) [A-Z ]*PRIVATE KEY-----")
READING = ("cli", "reading")  # folders of what only looks at runs, and has no part in training

_remembered: dict[str, Any] = {}

# What can change numbers, or say which job it was. Values of other variables are nobody's business.
VARIABLES = re.compile(
    r"(ONEBOX_\w+|(OMP|MKL|OPENBLAS)_NUM_THREADS|KMP_\w+|CUDA_VISIBLE_DEVICES|CUDA_LAUNCH_BLOCKING|"
    r"CUBLAS_WORKSPACE_CONFIG|PYTHONHASHSEED|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|"
    r"PYTORCH_CUDA_ALLOC_CONF|ATEN_CPU_CAPABILITY|ONEDNN_\w+|"
    r"SLURM_(JOB_ID|JOB_NAME|ARRAY_JOB_ID|ARRAY_TASK_ID|NTASKS|PROCID|NODELIST))"
)


def provenance(run_dir: Path, own: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Everything that is known before torch is imported; uncommitted changes go to `PATCH_FILE` in `run_dir`.

    `own` is the `own_code` of the run.
    """
    own_hashes = hashes(own or {})
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "environment": environment(),
        "source": with_own_code(source_fingerprint(), own_hashes),
        **({"own_code": own_hashes} if own else {}),
        **git_state(run_dir, own),
        "packages": packages(),
    }


def remember() -> None:
    """Take source and git's state now, as modules have been imported; processes that are forked from here report these.

    Otherwise a file that is edited while a sweep runs would be taken for the code of the jobs that begin afterwards.
    """
    _remembered.update(source=source_fingerprint(), git=git_and_patch())


def repository() -> Path:
    """A folder of the checkout that onebox runs from, or else the current one."""
    source = Path(onebox.__file__).parent
    return Path.cwd() if "site-packages" in source.parts else source


def git_state(run_dir: Path, own: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """`git`: commit, branch and uncommitted changes of `repository`, None outside git; `own_git`: likewise of `own`.

    The changes of tracked and untracked source, but nothing that git ignores or that looks like a secret, are written
    to `PATCH_FILE` in `run_dir`; `changed` names their files, `left_out` those that are not in it. In the patch one's
    own code stands below the folder `OWN`, by its name. Code in no repository is all change.
    """
    state, changed = git_and_patch()
    states: dict[str, Any] = {}
    for name, place in (own or {}).items():
        found, changes = own_git(place)
        known = [state, *states.values()]
        if found is not None and found["folder"] not in [other["folder"] for other in known if other]:
            states[name] = found
            changed += changes
    if changed:
        with replacing(run_dir / PATCH_FILE) as temporary:
            temporary.write_bytes(gzip.compress(changed, mtime=0))
    return {"git": state} | ({"own_git": states} if states else {})


def git_and_patch() -> tuple[dict[str, Any] | None, bytes]:
    """What `git_state` gives, and the patch, of onebox."""
    return _remembered.get("git") or _git_now(repository(), Path(onebox.__file__).parents[1])


@functools.cache
def own_git(place: Path) -> tuple[dict[str, Any] | None, bytes]:
    """State and patch of the repository that one's own code lies in, taken once in a process."""
    folder = place if place.is_dir() else place.parent
    found, changed = _git_now(folder, place.parent, prefix=f"{OWN}/{place.stem}/")
    if found is None:
        with tempfile.TemporaryDirectory() as empty, suppress(OSError, subprocess.SubprocessError):
            _git(folder, "init", "--quiet", empty)
            names = [str(path.relative_to(folder)) for path in files_of(place)]
            kept = [name for name in names if _is_kept(folder / name, name, new=True)]
            where = {"GIT_DIR": f"{empty}/.git", "GIT_WORK_TREE": str(folder)}
            changed = _patch(folder, kept, kept, f"{OWN}/{place.stem}/", **where) if kept else b""
            found = {"folder": str(folder), "sha": None, "changed": kept}
    return found, changed


def write_git_state(folder: Path, state: Mapping[str, Any] | None, changed: bytes) -> None:
    """Leave in a copy of code, below `folder`, what `git_state` is to say of it."""
    (folder / PATCH_FILE).write_bytes(gzip.compress(changed, mtime=0))
    write_json(folder / GIT_FILE, state)


def _git_now(folder: Path, copy: Path, prefix: str = "") -> tuple[dict[str, Any] | None, bytes]:
    """What `git_state` says of a repository, and the patch; empty where there is none, or one that is too large.

    Where `copy` is one, which a sweep has made, it says what the repository was then.
    """
    if (copy / GIT_FILE).is_file():
        return read_json(copy / GIT_FILE), (patch(copy) or "").encode("utf-8", "surrogateescape")
    try:
        head = _git(folder, "rev-parse", "--show-toplevel", "HEAD", "--abbrev-ref", "HEAD").decode().splitlines()
        top = Path(head[0])
        status = _git(top, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
        changes = {os.fsdecode(line[3:]): line[:2] for line in status.split(b"\0") if line}
        kept = sorted(name for name, kind in changes.items() if _is_kept(top / name, name, new=kind == b"??"))
        new = [name for name in kept if changes[name][:1] in b"?A" and (top / name).exists()]
        changed = _patch(top, kept, new, prefix) if kept else b""
    except (OSError, subprocess.SubprocessError, IndexError):
        return None, b""
    too_large = len(changed) > MAX_PATCH_BYTES  # one that is cut could not be applied
    state = {
        "folder": head[0],
        "sha": head[1],
        "branch": head[2],
        "dirty": bool(changes),
        "changed": [_printable(name) for name in kept],
        "left_out": [_printable(name) for name in sorted({*changes} - {*kept})[:MAX_LEFT_OUT]],
        "patch": hashlib.sha256(changed).hexdigest()[:12] if changed else None,
        "patch_too_large": len(changed) if too_large else None,
    }
    return state, b"" if too_large else changed


def patch(run_dir: Path) -> str | None:
    """The uncommitted changes of a run, as `git apply` takes them; None without any.

    Its text is UTF-8 with surrogates for other bytes: write it with `errors="surrogateescape"`.
    """
    if not os.path.lexists(run_dir / PATCH_FILE):
        return None

    def unpacked(file: IO[bytes]) -> str:
        with gzip.open(file) as text:
            return text.read(MAX_PATCH_BYTES).decode("utf-8", "surrogateescape")  # of one that unpacks to more, a part

    return read_file(stored_file(run_dir, PATCH_FILE), unpacked, remedy="remove it")


def source_fingerprint() -> str:
    """Hash of onebox's own code and configs as they are run, in a checkout or from a wheel, whatever git says.

    Without the folders of `READING`: a better table of runs does not make older runs another thing.
    """
    if _remembered:
        return str(_remembered["source"])
    found = [*_source_files(files("onebox"), "onebox"), *_source_files(files("onebox.conf"), "onebox/conf")]
    digest = hashlib.sha256()
    for name, content in sorted(dict(found).items()):  # in a wheel, conf lies in onebox
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def packages() -> dict[str, str]:
    """Version of each installed distribution, from the names of folders: to read their files takes 50 times as long."""
    found = {}
    for folder in reversed(sys.path):  # the first on the path is imported
        for path in Path(folder).glob("*.*-info"):
            package, _, version = path.stem.partition("-")
            found[re.sub(r"[-_.]+", "-", package).lower()] = version
    return dict(sorted(found.items()))


def environment() -> dict[str, str]:
    """The environment variables that `VARIABLES` names, but no secret among them."""
    names = (name for name in sorted(os.environ) if VARIABLES.fullmatch(name))
    return {name: os.environ[name] for name in names if not re.search("TOKEN|SECRET|PASSWORD|KEY", name, re.I)}


def hardware() -> dict[str, Any]:
    """Processor, threads and GPUs that the run sees; the number of threads can change the last bits of a sum."""
    import torch

    return {
        "cpu": _search("/proc/cpuinfo", r"^model name\s*: *(.*)") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "driver": _search("/proc/driver/nvidia/version", r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)"),
    }


def _git(folder: Path, *arguments: str, **variables: str) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1", **variables}
    return subprocess.run(command, check=True, capture_output=True, timeout=20, env=variables).stdout


def _patch(top: Path, names: list[str], new: list[str], prefix: str, **variables: str) -> bytes:
    """`git diff HEAD` of some files, `new` ones among them, without parts that show a private key."""
    options = "--binary --no-ext-diff --no-textconv --no-color --no-renames"
    places = [f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}"]
    with tempfile.TemporaryDirectory() as folder:
        # Untracked files take part in a diff once they are in an index, which is not to be the user's.
        variables["GIT_INDEX_FILE"] = str(Path(folder) / "index")
        head = [] if "GIT_DIR" in variables else ["HEAD"]  # a repository that was just made has none
        if head:
            _git(top, "read-tree", "HEAD", **variables)
        if new:
            _git(top, "add", "--intent-to-add", "--", *new, **variables)
        found = _git(top, "diff", *head, *options.split(), *places, "--", *names, **variables)
    parts = re.split(rb"^(?=diff --git )", found, flags=re.M)
    return b"".join(part for part in parts if not _PRIVATE_KEY.search(part))


def _is_kept(path: Path, name: str, *, new: bool) -> bool:
    """Whether the changes of a file may go into a patch: it is no secret, and if git does not track it, source."""
    if any(fnmatch.fnmatch(part.lower(), pattern) for part in Path(name).parts for pattern in SECRET):
        return False
    is_file = path.is_file() and not path.is_symlink()
    is_source = path.suffix in SOURCE or path.name in ("Makefile", "Dockerfile")
    if new and not (is_source and is_file and path.stat().st_size <= MAX_UNTRACKED_BYTES):
        return False
    return not is_file or not _PRIVATE_KEY.search(path.read_bytes())


def _source_files(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        if item.is_dir() and item.name not in READING:
            yield from _source_files(item, f"{name}/{item.name}")
        elif item.name.endswith((".py", ".yaml")):
            yield f"{name}/{item.name}", item.read_bytes()


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _search(path: str, pattern: str) -> str | None:
    """What a group of a pattern matches in a file, if there is one."""
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"), re.M)
    except OSError:
        return None
    return found[1].strip() if found else None
