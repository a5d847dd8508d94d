"""Chapters executed: in a hurry, untouched and solved in one kernel, again, and after a reset."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from desk import empty
from nbformat import NotebookNode

from labapp import cli, reset
from labapp.attacks.journal import Change, Journal
from labapp.bench import Bench
from labapp.course.exercises import all_exercises
from labapp.course.pages import execute, to_html
from labapp.course.receipts import Attempt, Receipts
from labapp.errors import ChapterError
from labapp.journey.bases import SLIM
from labapp.reference import Reference
from labapp.state import State

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))

VISITED = "03"
"""The chapter that is run a second time, as on a second visit: it finds most of what it made."""

MODERN = ("00", "01", "02", "03", "06", "08")
"""The chapters that test_modern_engine runs; the lab's own engine then has the others.

The browser and the room's learners run 00, too.
"""


def copied(cell: NotebookNode, prefix: str, source: str = "") -> NotebookNode:
    return NotebookNode({**cell, "id": f"{prefix}-{cell.id}", "source": source or cell.source})


def in_a_hurry(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Run the checks before everything else, as somebody in a hurry does."""
    checks = [c for c in cells if c.id.startswith("check-") or "answer = ..." in c.source]
    opened = next(number for number, cell in enumerate(cells, 1) if cell.id == "setup")
    return [*cells[:opened], *(copied(cell, "first") for cell in checks), *cells[opened:]]


def then_solved(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Below each check of the untouched exercise, solve it and check again."""
    grown = []
    for cell in cells:
        grown.append(cell)
        if "exercise" in (tags := cell.metadata.get("tags", [])):
            id = next(tag for tag in tags if tag != "exercise")
            solved = copied(cell, "solved", all_exercises()[id].solution)
        if cell.id.startswith("check-"):
            grown += [solved, copied(cell, "solved")]
    return grown


def read(file: Path, *ids: str) -> NotebookNode:
    """Return a chapter's notebook, or only some of its cells."""
    notebook = nbformat.read(file, as_version=4)
    if ids:
        cells = {cell.id: cell for cell in notebook.cells}
        notebook.cells = [cells[id] for id in ids]
    return notebook


def run(notebook: NotebookNode, folder: Path, bench: Bench, state: Path | None = None) -> None:
    shutil.copytree(NOTEBOOKS / "quiz", folder / "quiz", dirs_exist_ok=True)
    variables = {"LABAPP_STATE": str(state or bench.state.folder), "DOCKER_HOST": bench.engine.host}
    execute(notebook, folder=folder, environment={**os.environ, **variables})


def shown(cells: list[NotebookNode], kind: str) -> list[str]:
    """Return what cells show as HTML, of one kind."""
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    texts = ["".join(output.get("text/html", "")) for output in outputs]
    return [text for text in texts if kind in text]


def outcomes(notebook: NotebookNode) -> list[str]:
    text = "\n".join(shown(notebook.cells, "labapp-verdict"))
    return re.findall(r'class="labapp-verdict" data-outcome="(\w+)"', text)


SAID = {
    "down-deploy": "nothing answers",
    "debug-sh": "sh",
    "loses-run": "gcc",
    "base-again": "second",
    "deploy-file": r":226\b",
    "colleague-run": r":226\b",
    "restart-run": r":22610\b",
    "pinned-chart": r":226\b",
    "secret-open": "DEPLOY_PASSWORD",
    "base-attack": "BACKDOOR",
    "push-refused": "unknown authority|took any certificate|nobody is logged in",
    "rest-pull": "has been altered",
    "transit-attack": "BACKDOOR",
    "byte-pull": "put together wrongly",
}
"""What cells print that fail, are attacked or deployed: the words that the prose goes on from."""


def check_page(notebook: NotebookNode, name: str) -> None:
    for cell in notebook.cells:
        printed = "".join(output.get("text", "") for output in cell.get("outputs", []))
        assert re.search(SAID.get(cell.id, ""), printed), cell.id
    assert shown(notebook.cells, "labapp-bars")
    for cell in notebook.cells:
        stopped = [b for b in shown([cell], "labapp-bars") if 'data-state="done"' not in b]
        # A cell that shows what fails may have one bar that was stopped; no other may.
        assert len(stopped) <= ("except LabError" in cell.source), cell.id
    for chart in shown(notebook.cells, "labapp-chart"):
        assert re.search(r'alt="[^"]{40}', chart)
    page = to_html(notebook, name=name)
    drawn = any("```mermaid" in cell.source for cell in notebook.cells)
    assert drawn == ('<pre class="mermaid">' in page)
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    assert loaded == [], "the page loads something from the internet"


def chapters() -> Iterator[Any]:
    for file in FILES:
        there = file.name[:2] in MODERN
        yield pytest.param(file, id=file.stem, marks=[pytest.mark.on_modern_engine] * there)


@pytest.mark.parametrize("file", list(chapters()))
def test_every_check_says_not_yet_and_after_the_solution_correct(
    file: Path, tmp_path: Path, bench: Bench
) -> None:
    empty(bench)
    nbformat.validate(json.loads(file.read_text("utf-8")))
    number = file.name[:2]
    notebook = read(file)
    notebook.cells = in_a_hurry(then_solved(notebook.cells))
    run(notebook, tmp_path, bench)
    count = sum(id.startswith(number) for id in all_exercises())
    assert outcomes(notebook) == ["NotYet"] * count + ["NotYet", "Correct"] * count
    check_page(notebook, file.stem)
    if number == VISITED:
        # A second visit: a new kernel, with the first one's files, images and containers there.
        again = read(file)
        again.cells = then_solved(again.cells)
        run(again, tmp_path, bench)
        assert outcomes(again)[1::2] == ["Correct"] * count
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


DESK = [
    ("for id in ('00-tag', '00-run'):\n    lab.check(id)\nverdict = lab.check('00-tag')", 3, ""),
    ("lab.check('00-tag')", 1, ""),
    ("verdict", 1, ""),
    ("for _ in range(3):\n    lab.hint('00-tag')", 0, "lab.solution"),
    (
        "pd.DataFrame({'step': [7]})",
        0,
        "<th>step</th>\\s*</tr>\\s*</thead>\\s*<tbody>\\s*<tr>\\s*<td>",
    ),
    ("pd.DataFrame({'step': ['x' * 80]}, index=['mine'])", 0, "<th>mine</th>\\s*<td>x{80}</td>"),
    ("pd.DataFrame({'digest': ['sha256:' + 'a' * 64]})", 0, "<td>sha256:a{12}…</td>"),
]
"""What a learner writes into a cell, how many verdicts it shows, and what else."""


def test_what_a_cell_shows(tmp_path: Path, bench: Bench) -> None:
    empty(bench)
    notebook = read(FILES[0], "setup", *["build-run"] * len(DESK))
    setup, *cells = notebook.cells = [copied(c, str(n)) for n, c in enumerate(notebook.cells)]
    setup.source = f"import pandas as pd\n{setup.source}"
    for cell, (source, _, _) in zip(cells, DESK, strict=True):
        cell.source = source
    Journal(bench.state).note(Change("base", "file", str(tmp_path / "none" / "x"), {"after": ""}))
    run(notebook, tmp_path, bench)
    assert "another session" in json.dumps(setup.outputs)
    for cell, (source, count, text) in zip(cells, DESK, strict=True):
        assert len(shown([cell], "labapp-verdict")) == count, source
        said = [o.data for o in cell.outputs if "data" in o]
        every = "".join(str(value) for data in said for value in data.values())
        assert re.search(text, every), source


def test_run_leaves_the_learners_lab_alone(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DOCKER_HOST", "LABAPP_MIRROR"):  # so that they are put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(cli, "REPOSITORY", tmp_path)
    chapter = read(FILES[0], "setup", "page", "dockerfile", "build-run", "push-run")
    chapter.cells[-1].source = "lab.push(hello)\nprint(lab.id)"
    shutil.copytree(NOTEBOOKS / "quiz", tmp_path / "notebooks" / "quiz")
    nbformat.write(chapter, tmp_path / "notebooks" / FILES[0].name)
    mine, registry = Reference.parse(f"{bench.registry.address}/hello/web:1.0"), bench.registry
    registry.copy(registry, registry.image(bench.base(SLIM)), to=mine)
    before = registry.digest(mine)
    assert cli.main(["run", "00", "--out", str(tmp_path)]) == 0
    last = read(tmp_path / FILES[0].name).cells[-1].outputs[-1].text.split()[-1]
    assert re.fullmatch("[0-9a-f]{8}", last) and last != bench.state.lab_id
    assert registry.digest(mine) == before
    assert reset.things(bench.engine, State(tmp_path, last)) == []
    assert not cli.apart("run").exists()


def test_reset_in_mid_chapter(
    tmp_path: Path,
    bench: Bench,
    another_lab: Callable[[], State],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABAPP_MIRROR", f"http://{bench.registry.address}")
    monkeypatch.setenv("LABAPP_BASES", "mirror")
    state, half = another_lab(), ("setup", "page", "dockerfile", "build-run")
    run(read(FILES[0], *half), tmp_path, bench, state.folder)
    Receipts(state).note("00-tag", Attempt(tries=1), {})
    reset.carry_out(reset.plan(state))
    assert reset.things(bench.engine, state) == []
    assert list(Receipts(state).read().passed) == ["00-tag"]
    # The next visit finds nothing, and makes all of it again.
    again = read(FILES[0], *half, "push-run", "remove", "pull-run", "run-run")
    run(again, tmp_path, bench, state.folder)
