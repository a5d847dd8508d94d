"""What the project's files promise to each other."""

from __future__ import annotations

import ast
import gzip
import hashlib
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "labapp"
DIAGRAMS = PACKAGE / "vendor" / "mermaid.tiny.js.gz"

CONDA_NAMES = {"docker": "docker-py", "isal": "python-isal"}
"""What conda-forge calls packages that have another name there."""

NOT_IN_CONDA = {"detect-secrets", "jupyterquiz"}

ORDER = [
    {"labapp", "errors", "state", "feedback", "reference"},
    {"charts"},
    {"machine"},
    {"registry"},
    {"inside", "journey"},
    {"private"},
    {"bench"},
    {"attacks"},
    {"course"},
    {"lab"},
    {"bundle", "doctor", "reset", "tidy"},
    {"room"},
    {"cli"},
]
"""The rooms of the house: a module imports from its own room, and from those before it."""


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """The modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "labapp":
            home = (node.module or "").removeprefix("labapp").removeprefix(".")
            for alias in node.names:
                inner = f"{home}.{alias.name}".removeprefix(".")
                found.add(inner if inner in known else home or "labapp")
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("labapp.") for a in node.names if "labapp." in a.name}
    return found


def test_the_order_of_imports() -> None:
    trees = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or "labapp"
        trees[name] = ast.parse(file.read_text(encoding="utf-8"))
    del trees["__main__"]  # it hands over to the command line, once all is installed
    rank = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
    graph = {name: imports(tree, set(trees)) - {name} for name, tree in trees.items()}
    wrong = []
    for name, others in graph.items():
        room = name.split(".")[0]
        for other in {other.split(".")[0] for other in others} - {room}:
            if rank[other] >= rank[room] > 0 or rank[other] > rank[room]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []
    list(TopologicalSorter(graph).static_order())  # CycleError: there is a way round


def test_no_code_stands_in_an_init_file() -> None:
    for file in PACKAGE.glob("*/__init__.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        kinds = {type(node) for node in body[1:]}
        assert kinds <= {ast.ImportFrom, ast.Assign}, file


LACKING = {
    *("fcntl", "grp", "pty", "pwd", "resource", "termios"),
    *("chown", "fork", "getegid", "geteuid", "getgid", "getuid", "killpg", "setsid", "uname"),
    *("SIGHUP", "SIGKILL", "is_socket", "symlink_to"),
}
"""Modules and names that Python on Windows lacks; only ``machine`` may have them, in functions."""

SLIPS = """
import fcntl
os.killpg(1, signal.SIGKILL)
path.read_text()
path.open("w")
subprocess.run(command, text=True)
"""


def slips(tree: ast.Module, *, machine: bool) -> Iterator[str]:
    """Yield what Windows lacks, and what reads or writes text in the code page of a country."""
    for node in tree.body if machine else ast.walk(tree):
        names = {alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)}
        yield from LACKING & {*names, getattr(node, "attr", ""), getattr(node, "module", "")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", "")
            words = {each.arg for each in node.keywords}
            mode = getattr(node.args[0], "value", "") if node.args else ""
            text = called in {"read_text", "write_text"} or (called == "run" and "text" in words)
            text |= called == "open" and re.fullmatch("[rwax][+t]*", str(mode)) is not None
            if text and "encoding" not in words:
                yield f"{called}, line {node.lineno}"


def test_the_package_needs_nothing_that_a_system_lacks() -> None:
    found = []
    for file in PACKAGE.rglob("*.py"):
        tree, machine = ast.parse(file.read_text(encoding="utf-8")), file.parent.name == "machine"
        found += [f"{file.name}: {slip}" for slip in slips(tree, machine=machine)]
    assert found == []
    assert len([*slips(ast.parse(SLIPS), machine=False)]) == 6


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 10)])
def test_an_old_python_reads_what_it_runs_and_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    for name in ("__init__.py", "__main__.py"):
        ast.parse((PACKAGE / name).read_text(encoding="utf-8"), feature_version=(3, 4))
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(PACKAGE / "__main__.py"), run_name="__main__")
    message = str(caught.value.code)
    assert f"{version[0]}.{version[1]}" in message and "3.11" in message


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache"],
        ["ruff", "format", "--check", "--no-cache"],
        ["mypy", "--cache-dir=.mypy_cache"],
    ],
    ids=" ".join,
)
def test_the_code_is_clean(command: list[str]) -> None:
    said = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True)
    assert said.returncode == 0, (said.stdout + said.stderr).decode()[-2000:]


def test_pyproject_and_conda_ask_for_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = YAML(typ="safe").load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    wanted, by_pip = [f"python{project['requires-python']}"], []
    for requirement in project["dependencies"]:
        name, _, version = requirement.partition(">=")
        where = by_pip if name in NOT_IN_CONDA else wanted
        where.append(f"{CONDA_NAMES.get(name, name)}>={version}")
    assert conda["dependencies"] == [*wanted, {"pip": by_pip}]
    assert conda["channels"] == ["conda-forge", "nodefaults"]


def test_the_vendored_file_is_the_one_that_its_readme_names() -> None:
    readme = (DIAGRAMS.parent / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256(gzip.decompress(DIAGRAMS.read_bytes())).hexdigest()
    assert re.findall(r"`([0-9a-f]{64})`", readme) == [digest]
