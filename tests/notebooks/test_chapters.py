"""Chapters executed: untouched, solved, out of order, interrupted and after a reset."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from labapp import removal
from labapp.bench import Bench
from labapp.errors import ChapterError
from labapp.exercises import all_exercises
from labapp.feedback import QuietFeedback
from labapp.pages import execute, to_html
from labapp.state import State

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def run(
    file: Path, folder: Path, bench: Bench, *, solved: bool, checks_first: bool = False
) -> NotebookNode:
    shutil.copytree(NOTEBOOKS / "quiz", folder / "quiz", dirs_exist_ok=True)
    notebook = nbformat.read(file, as_version=4)
    if checks_first:
        opened = next(n for n, cell in enumerate(notebook.cells) if cell.id == "setup")
        first = [
            {**copy.deepcopy(cell), "id": f"first-{cell.id}"}
            for cell in notebook.cells
            if cell.id.startswith("check-") or "answer = ..." in cell.source
        ]
        notebook.cells[opened + 1 : opened + 1] = map(NotebookNode, first)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if solved and "exercise" in tags:
            id = next(tag for tag in tags if tag != "exercise")
            cell.source = all_exercises()[id].solution.strip()
    execute(notebook, folder=folder, environment=environment(bench), name=file.stem)
    return notebook


def environment(bench: Bench) -> dict[str, str]:
    return {
        **os.environ,
        "LABAPP_STATE": str(bench.state.folder),
        "DOCKER_HOST": bench.engine.host,
    }


def html_outputs(notebook: NotebookNode) -> list[str]:
    return [text for cell in notebook.cells for text in cell_html(cell)]


def cell_html(cell: NotebookNode) -> list[str]:
    texts = [output.get("data", {}).get("text/html") for output in cell.get("outputs", [])]
    return ["".join(text) for text in texts if text]


def outcomes(notebook: NotebookNode) -> list[str]:
    text = "\n".join(html_outputs(notebook))
    return re.findall(r'class="labapp-verdict" data-outcome="(\w+)"', text)


def check_page(notebook: NotebookNode, name: str) -> None:
    outputs = html_outputs(notebook)
    assert any("labapp-bars" in text for text in outputs)
    for cell in notebook.cells:
        bars = [text for text in cell_html(cell) if "labapp-bars" in text]
        states = ['data-state="done"' in text for text in bars]
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """The folder of each chapter, which a second visit finds as the first one left it."""
    made: dict[str, Path] = {}
    return lambda file: made.setdefault(file.stem, tmp_path_factory.mktemp(file.stem))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestChapter:
    def test_is_valid(self, file: Path) -> None:
        nbformat.validate(json.loads(file.read_text("utf-8")))

    def test_untouched_every_check_says_not_yet(
        self,
        file: Path,
        folders: Callable[[Path], Path],
        bench: Bench,
        emptied: Callable[[], None],
    ) -> None:
        """Also the checks that are run before everything else, by somebody in a hurry."""
        emptied()
        notebook = run(file, folders(file), bench, solved=False, checks_first=True)
        expected = [id for id in all_exercises() if id.startswith(file.name[:2])]
        assert outcomes(notebook) == ["NotYet"] * 2 * len(expected)
        check_page(notebook, file.stem)

    def test_solved_on_a_second_visit_every_check_says_correct(
        self, file: Path, folders: Callable[[Path], Path], bench: Bench
    ) -> None:
        """A new kernel, with the files, images and containers of the first visit still there."""
        notebook = run(file, folders(file), bench, solved=True)
        expected = [id for id in all_exercises() if id.startswith(file.name[:2])]
        assert outcomes(notebook) == ["Correct"] * len(expected)
        check_page(notebook, file.stem)


def chapter(number: str) -> Path:
    return next(file for file in FILES if file.name.startswith(number))


def cells(number: str, *ids: str) -> NotebookNode:
    """A chapter's notebook with only some of its cells."""
    notebook = nbformat.read(chapter(number), as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id in ids]
    assert len(notebook.cells) == len(ids)
    return notebook


def test_a_kernel_that_is_restarted_in_mid_chapter(
    tmp_path: Path, bench: Bench, emptied: Callable[[], None]
) -> None:
    emptied()
    notebook = nbformat.read(chapter("00"), as_version=4)
    notebook.cells = notebook.cells[:14]
    execute(notebook, folder=tmp_path, environment=environment(bench))
    again = run(chapter("00"), tmp_path, bench, solved=False)
    assert outcomes(again) == ["NotYet"] * 2


def test_a_step_before_its_time_is_told_in_one_line(
    tmp_path: Path, bench: Bench, emptied: Callable[[], None]
) -> None:
    emptied()
    notebook = cells("00", "setup", "push-run")
    notebook.cells[1].source = 'hello = f"{lab.address}/hello/web:1.0"\n' + notebook.cells[1].source
    with pytest.raises(ChapterError, match="Build it under that name"):
        execute(notebook, folder=tmp_path, environment=environment(bench))
    error = next(o for o in notebook.cells[1].outputs if o.output_type == "error")
    assert error.ename == "PushError"
    assert len(error.traceback) == 1, "a learner is shown the lab's stack"


def test_reset_in_mid_chapter(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, feedback: QuietFeedback
) -> None:
    monkeypatch.setenv("DOCKER_HOST", bench.engine.host)
    monkeypatch.setenv("LABAPP_MIRROR", f"http://{bench.registry.address}")
    monkeypatch.setenv("LABAPP_BASES", "mirror")
    state = State.open(tmp_path / "state")
    variables = {**os.environ, "LABAPP_STATE": str(state.folder)}
    try:
        half = cells("00", "setup", "page", "dockerfile", "build-run")
        execute(half, folder=tmp_path, environment=variables)
        removal.carry_out(removal.plan(state, feedback=feedback), feedback=feedback)
        assert removal.things(bench.engine, state) == []
        # The next visit finds nothing, and makes all of it again.
        execute(half, folder=tmp_path, environment=variables)
        rest = cells("00", "setup", "build-run", "push-run", "remove", "pull-run", "run-run")
        execute(rest, folder=tmp_path, environment=variables)
    finally:
        for _ in range(2):
            plan = removal.plan(state, everything=True, feedback=feedback)
            left = removal.carry_out(plan, feedback=feedback)
            state.folder.mkdir(exist_ok=True)
    assert left == []
