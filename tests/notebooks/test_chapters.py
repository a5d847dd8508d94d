"""Chapters executed: in a hurry, untouched and solved in one kernel, again, and after a reset."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from desk import empty
from nbformat import NotebookNode

from labapp import reset
from labapp.bench import Bench
from labapp.course.exercises import all_exercises
from labapp.course.pages import execute, to_html
from labapp.errors import ChapterError
from labapp.feedback import QuietFeedback
from labapp.state import State

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
AGAIN = ("00", "03")
"""The chapters that are visited a second time."""


def ids(number: str) -> list[str]:
    return [id for id in all_exercises() if id.startswith(number)]


def is_check(cell: NotebookNode) -> bool:
    return str(cell.id).startswith("check-")


def copied(cell: NotebookNode, prefix: str, source: str = "") -> NotebookNode:
    return NotebookNode({**cell, "id": f"{prefix}-{cell.id}", "source": source or cell.source})


def in_a_hurry(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Run the checks before everything else, as somebody in a hurry does."""
    starters = [cell for cell in cells if is_check(cell) or "answer = ..." in cell.source]
    opened = next(number for number, cell in enumerate(cells) if cell.id == "setup")
    early = [copied(cell, "first") for cell in starters]
    return [*cells[: opened + 1], *early, *cells[opened + 1 :]]


def then_solved(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Below each check of the untouched exercise, solve it and check again."""
    grown: list[NotebookNode] = []
    starter = None
    for cell in cells:
        grown.append(cell)
        if "exercise" in cell.metadata.get("tags", []):
            starter = cell
        if is_check(cell) and starter is not None:
            id = next(tag for tag in starter.metadata.tags if tag != "exercise")
            solution = all_exercises()[id].solution
            grown += [copied(starter, "solved", solution), copied(cell, "solved")]
    return grown


def read(file: Path, *ids: str) -> NotebookNode:
    """Return a chapter's notebook, or only some of its cells."""
    notebook = nbformat.read(file, as_version=4)
    if ids:
        notebook.cells = [cell for cell in notebook.cells if cell.id in ids]
        assert len(notebook.cells) == len(ids)
    return notebook


def run(notebook: NotebookNode, folder: Path, bench: Bench, state: Path | None = None) -> None:
    shutil.copytree(NOTEBOOKS / "quiz", folder / "quiz", dirs_exist_ok=True)
    variables = {"LABAPP_STATE": str(state or bench.state.folder), "DOCKER_HOST": bench.engine.host}
    execute(notebook, folder=folder, environment={**os.environ, **variables})


def cell_html(cell: NotebookNode) -> list[str]:
    texts = [output.get("data", {}).get("text/html") for output in cell.get("outputs", [])]
    return ["".join(text) for text in texts if text]


def outcomes(notebook: NotebookNode) -> list[str]:
    text = "\n".join(text for cell in notebook.cells for text in cell_html(cell))
    return re.findall(r'class="labapp-verdict" data-outcome="(\w+)"', text)


def check_page(notebook: NotebookNode, name: str) -> None:
    outputs = [text for cell in notebook.cells for text in cell_html(cell)]
    assert any("labapp-bars" in text for text in outputs)
    for cell in notebook.cells:
        states = ['data-state="done"' in text for text in cell_html(cell) if "labapp-bars" in text]
        # A cell that shows what fails may have one bar that was stopped; no other may.
        assert states.count(False) <= ("except LabError" in cell.source), cell.id
    for chart in (text for text in outputs if "labapp-chart" in text):
        alt = re.search(r'alt="([^"]+)"', chart)
        assert alt and len(alt[1]) > 40
    page = to_html(notebook, name=name)
    drawn = any("```mermaid" in cell.source for cell in notebook.cells)
    assert drawn == ('<pre class="mermaid">' in page)
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    assert loaded == [], "the page loads something from the internet"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_check_says_not_yet_and_after_the_solution_correct(
    file: Path, tmp_path: Path, bench: Bench
) -> None:
    empty(bench)
    nbformat.validate(json.loads(file.read_text("utf-8")))
    number = file.name[:2]
    notebook = read(file)
    notebook.cells = in_a_hurry(then_solved(notebook.cells))
    run(notebook, tmp_path, bench)
    early = ["NotYet"] * len(ids(number))
    assert outcomes(notebook) == early + ["NotYet", "Correct"] * len(ids(number))
    check_page(notebook, file.stem)
    if number in AGAIN:
        # A new kernel, with the files, images and containers of the first visit still there.
        again = read(file)
        again.cells = then_solved(again.cells)
        run(again, tmp_path, bench)
        assert outcomes(again)[1::2] == ["Correct"] * len(ids(number))
        check_page(again, file.stem)


def test_a_step_before_its_time_is_told_in_one_line(tmp_path: Path, bench: Bench) -> None:
    empty(bench)
    notebook = read(FILES[0], "setup", "push-run")
    notebook.cells[1].source = 'hello = f"{lab.address}/hello/web:1.0"\n' + notebook.cells[1].source
    with pytest.raises(ChapterError):
        run(notebook, tmp_path, bench)
    error = next(o for o in notebook.cells[1].outputs if o.output_type == "error")
    assert error.ename == "PushError" and "hello/web:1.0" in error.evalue
    assert len(error.traceback) == 1, "a learner is shown the lab's stack"


def test_reset_in_mid_chapter(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, feedback: QuietFeedback
) -> None:
    monkeypatch.setenv("DOCKER_HOST", bench.engine.host)
    monkeypatch.setenv("LABAPP_MIRROR", f"http://{bench.registry.address}")
    monkeypatch.setenv("LABAPP_BASES", "mirror")
    state = State.open(tmp_path / "state")
    try:
        half = read(FILES[0], "setup", "page", "dockerfile", "build-run")
        run(half, tmp_path, bench, state.folder)
        reset.carry_out(reset.plan(state))
        assert reset.things(bench.engine, state) == []
        # The next visit finds nothing, and makes all of it again.
        run(half, tmp_path, bench, state.folder)
        rest = read(FILES[0], "setup", "build-run", "push-run", "remove", "pull-run", "run-run")
        run(rest, tmp_path, bench, state.folder)
    finally:
        for _ in range(2):
            plan = reset.plan(state, everything=True)
            left = reset.carry_out(plan)
            state.folder.mkdir(exist_ok=True)
    assert left == []
