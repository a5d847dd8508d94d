"""Each chapter is executed twice: untouched, and with the solutions in place of the starters."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from labapp.bench import Bench
from labapp.exercises import all_exercises
from labapp.pages import execute, to_html

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def run(file: Path, folder: Path, bench: Bench, *, solved: bool) -> NotebookNode:
    shutil.copytree(NOTEBOOKS / "quiz", folder / "quiz")
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if solved and "exercise" in tags:
            id = next(tag for tag in tags if tag != "exercise")
            cell.source = all_exercises()[id].solution.strip()
    environment = {
        **os.environ,
        "LABAPP_STATE": str(bench.state.folder),
        "DOCKER_HOST": bench.engine.host,
    }
    execute(notebook, folder=folder, environment=environment, name=file.stem)
    return notebook


def html_outputs(notebook: NotebookNode) -> list[str]:
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/html")
            if text:
                found.append("".join(text))
    return found


def outcomes(notebook: NotebookNode) -> list[str]:
    text = "\n".join(html_outputs(notebook))
    return re.findall(r'class="labapp-verdict" data-outcome="(\w+)"', text)


def check_page(notebook: NotebookNode, name: str) -> None:
    outputs = html_outputs(notebook)
    bars = [text for text in outputs if "labapp-bars" in text]
    assert bars
    assert all('data-state="done"' in text for text in bars if "registry is down" not in text)
    for chart in (text for text in outputs if "labapp-chart" in text):
        alt = re.search(r'alt="([^"]+)"', chart)
        assert alt and len(alt[1]) > 40
    page = to_html(notebook, name=name)
    assert (
        'pre class="mermaid"' in page or "mermaid" not in (NOTEBOOKS / f"{name}.ipynb").read_text()
    )
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    assert loaded == [], "the page loads something from the internet"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_untouched_every_check_says_not_yet(
    file: Path, tmp_path: Path, bench: Bench, emptied: Callable[[], None]
) -> None:
    emptied()
    notebook = run(file, tmp_path, bench, solved=False)
    found = outcomes(notebook)
    expected = [id for id in all_exercises() if id.startswith(file.name[:2])]
    assert found == ["NotYet"] * len(expected)
    check_page(notebook, file.stem)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_solved_every_check_says_correct(
    file: Path, tmp_path: Path, bench: Bench, emptied: Callable[[], None]
) -> None:
    emptied()
    notebook = run(file, tmp_path, bench, solved=True)
    found = outcomes(notebook)
    expected = [id for id in all_exercises() if id.startswith(file.name[:2])]
    assert found == ["Correct"] * len(expected)
    check_page(notebook, file.stem)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_chapter_can_be_run_again_in_a_new_kernel(
    file: Path, tmp_path: Path, bench: Bench
) -> None:
    """What the solved run left behind must not break the next visit."""
    notebook = run(file, tmp_path, bench, solved=False)
    assert len(outcomes(notebook)) >= 2
