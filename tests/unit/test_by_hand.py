"""Chapter 07: the same bytes give the same digest on every machine, and the page knows it."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "notebooks" / "07_by_hand.ipynb"

# Both programs were run, the second by an emulator. The bytes must not change without that.
DIGESTS = {
    "amd64": "sha256:ce53e84402b26be62ec90b842ceb5836a77c33bc168be0b0f0f174663ca96f83",
    "arm64": "sha256:6dd0224725a9277aa0bd13dea4f7dc3ad9ef0ec56b9d5a4afbeea3ecc0e6670b",
}


def cells() -> dict[str, str]:
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}


def code() -> list[str]:
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def made(machine: str) -> dict[str, Any]:
    """What the cells define that make the image, on one kind of processor."""
    lab = SimpleNamespace(platform=f"linux/{machine}")
    names: dict[str, Any] = {"hashlib": hashlib, "json": json, "lab": lab}
    for id in ("machine", "program-run", "layer-pack", "layer-run", "config-run", "manifest-run"):
        exec(cells()[id], names)
    return names


@pytest.mark.parametrize("machine", DIGESTS)
def test_the_digest_is_the_same_everywhere(machine: str) -> None:
    names = made(machine)
    assert names["digest"](names["manifest"]) == DIGESTS[machine]
    assert f"| {machine} | `{DIGESTS[machine]}` |" in cells()["same"]


@pytest.mark.parametrize("machine", DIGESTS)
def test_the_program_is_a_whole_elf_file(machine: str) -> None:
    file = made(machine)["program"](b"Some other text.\n")
    assert file.startswith(b"\x7fELF\2\1\1") and file.endswith(b"\x11\0\0\0Some other text.\n")
    in_file, in_memory = (int.from_bytes(file[at : at + 8], "little") for at in (96, 104))
    assert in_file == in_memory == len(file)


def test_nothing_but_the_standard_library_and_requests_does_the_work() -> None:
    trees = [ast.parse(source) for source in code()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert others == {"labapp", "jupyterquiz", "requests"}
    used = set(re.findall(r"\blab\.(\w+)", "\n".join(code())))
    engine = {"pull", "run_once", "remove"}
    facts = {"address", "id", "platform", "work"}
    assert used == engine | facts | {"show", "check", "clean_up", "map"}
