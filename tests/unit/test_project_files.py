"""What the project's files promise to each other."""

from __future__ import annotations

import ast
import functools
import gzip
import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import labapp

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "labapp"
DIAGRAMS = PACKAGE / "vendor" / "mermaid.tiny.js.gz"

CONDA_NAMES = {"docker": "docker-py", "isal": "python-isal"}
"""What conda-forge calls packages that have another name there."""

STANDARD_LIBRARY_ONLY = {"__main__", "setup.bootstrap", "setup.installer"}
"""They run before anything is installed."""

COMMANDS = {"cli", "cli_images", "cli_progress", "setup.bootstrap"}
"""They import a command's modules when it runs: help comes at once, and on a bare Python."""

FLOORS = [
    "attacks.middleman "
    "labapp machine machine.waiting setup system errors feedback manifests.fields "
    "manifests.platforms system.ports "
    "system.privileges setup.installer engine.places images.build_context images.build_steps "
    "images.dockerfile contents.packages contents.secret_files contents.tools contents.os_release "
    "progress terminal private registry.container",
    "attacks.catalogue "
    "state reference manifests registry.credentials system.apt_packages engine.own_network "
    "system.processes deployments.deployment_file pages bases.wheels setup.bootstrap "
    "charts.figure charts.rows progress.chain "
    "vulnerabilities.apt_sources vulnerabilities.cache vulnerabilities.mirror contents.streams",
    "attacks.journal attacks.wheels "
    "registry.addresses vulnerabilities.debian_security vulnerabilities.fixes contents.archive "
    "charts.frames charts.pieces progress.receipts private.authority private.accounts "
    "private.tokens private.decisions",
    "registry.answers vulnerabilities.changelogs vulnerabilities.report contents.layers "
    "private.process",
    "registry.logins vulnerabilities.own_fixes vulnerabilities.snapshots contents.layer_cache "
    "contents.merge private.service",
    "registry.http contents.tables",
    "engine.own_engine engine.packages registry.reader manifests.assembly bases.layouts __main__ "
    "charts.bars charts.builds charts.cves charts.events charts.exposure charts.pulls "
    "charts.sharing charts.treemap charts.variants charts.classroom charts.journey",
    "engine registry charts bases.debian_recipes vulnerabilities.scanners contents.reading",
    "attacks.gate "
    "images.builds images.running leftovers registry.copies deployments.compose "
    "bases.debian pins jupyter vulnerabilities contents",
    "registry.storage sbom",
    "registry.server private.trust",
    "images.transfer registry.request_log removal private.server",
    "images.pushes images.pulls",
    "images.containers",
    "images",
    "bases.sources deployments private.registry",
    "bases.shelf bases.registry_image",
    "bases",
    "bench doctor inspection",
    "attacks.targets attacks.forging",
    "attacks.changes attacks.mirror attacks.exposure",
    "attacks.undoing attacks.doing",
    "attacks attacks.outcome attacks.scripts attacks.saboteur",
    "attacks.pipeline",
    "attacks.judging",
    "attacks.deliveries bundles suite workspace exercises.exercise exercises.evidence",
    "exercises.inside exercises.guarding exercises.finding",
    "exercises.chapter00 exercises.chapter01 exercises.chapter02 exercises.chapter03 "
    "exercises.chapter04 exercises.chapter05 exercises.chapter06 lab_attacks "
    "exercises.chapter07 exercises.chapter08",
    "exercises",
    "exercises.coach progress.journey progress.overview progress.grading progress.submitted",
    "lab progress.report",
    "opening listings progress.listing",
    "cli_images cli_progress",
    "cli",
]
"""The package's floors, lowest first: a module may import only from those above its own."""


@functools.cache
def modules() -> dict[str, Path]:
    """The package's modules, by their name below ``labapp``."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__") or "labapp"] = file
    return found


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """The modules of the package that a piece of code imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "labapp":
            home = (node.module or "").removeprefix("labapp").removeprefix(".")
            for alias in node.names:
                inner = f"{home}.{alias.name}".removeprefix(".")
                found.add(inner if inner in known else home)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.removeprefix("labapp.") for name in names if name.startswith("labapp.")}
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    known = set(modules())
    return {
        name: imports(ast.parse(file.read_text(encoding="utf-8")), known) - {name}
        for name, file in modules().items()
    }


def test_each_module_imports_only_from_lower_floors() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
    assert sorted(graph()) == sorted(floor), "a module without a floor, or a floor without one"
    wrong = [
        f"{name} (floor {floor[name]}) imports {other} (floor {floor[other]})"
        for name, others in graph().items()
        for other in others
        if floor[other] >= floor[name]
    ]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(set(modules()) - COMMANDS))
def test_a_module_imports_at_its_top(name: str) -> None:
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    known = set(modules())
    inside = [
        f"line {node.lineno} in {node.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and imports(node, known)
    ]
    assert inside == []


@pytest.mark.parametrize("name", sorted(STANDARD_LIBRARY_ONLY))
def test_what_runs_first_needs_nothing_installed(name: str) -> None:
    assert graph()[name] <= STANDARD_LIBRARY_ONLY


def test_the_public_names() -> None:
    assert labapp.__all__ == [
        "Engine",
        "Lab",
        "LabError",
        "Reference",
        "Registry",
        "State",
        "open_lab",
    ]
    for name in labapp.__all__:
        assert getattr(labapp, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        labapp.nonsense  # noqa: B018


def test_pyproject_and_conda_ask_for_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = YAML(typ="safe").load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    wanted = [f"python{project['requires-python']}"]
    for requirement in project["dependencies"]:
        name, constraint = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        wanted.append(CONDA_NAMES.get(name, name) + constraint)
    assert conda["dependencies"] == wanted
    assert conda["channels"] == ["conda-forge", "nodefaults"]


def test_ci_runs_the_readmes_test_command_and_nothing_else() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands == ['cd "$(dirname "$0")/.." && exec python3 -m labapp test']
    assert "python3 -m labapp test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_vendored_file_is_the_one_that_its_readme_names() -> None:
    readme = (DIAGRAMS.parent / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256(gzip.decompress(DIAGRAMS.read_bytes())).hexdigest()
    assert re.findall(r"`([0-9a-f]{64})`", readme) == [digest]


def test_no_large_file_is_tracked() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    files = [ROOT / name for name in tracked.stdout.decode().split("\0") if name]
    large = [str(file) for file in files if file.exists() and file.stat().st_size > 1_000_000]
    assert len(files) > 100
    assert large == []
