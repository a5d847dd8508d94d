"""nbgrader's own autograder, where the learner's engine is not: receipts give the points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from desk import Desk, empty
from nbformat.v4 import new_code_cell, new_notebook
from nbgrader.api import Gradebook

from labapp.bench import Bench
from labapp.course.pages import execute
from labapp.course.receipts import Receipts
from labapp.errors import ChapterError

PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
"""nbgrader looks for a program that was installed along with it."""

POINTS = {"00-tag": 2, "00-run": 3}


def assignment() -> nbformat.NotebookNode:
    """A notebook of an instructor: a step that needs the engine, and two graded checks."""
    setup = 'from labapp import open_lab\nlab = open_lab("00")'
    step = 'print(lab.digest(f"{lab.address}/hello/web:1.0"))'
    cells = [new_code_cell(setup), new_code_cell(step)]
    for id, points in POINTS.items():
        cell = new_code_cell(f'lab.check("{id}", strict=True)')
        cell.metadata["nbgrader"] = {
            "grade": True, "grade_id": id, "locked": True, "points": points, "schema_version": 3,
            "solution": False, "task": False,
        }  # fmt: skip
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def nbgrader(course: Path, *argv: str) -> None:
    """Run nbgrader as an instructor does, where no engine answers and no lab was ever opened."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LABAPP_")},
        "DOCKER_HOST": f"unix://{course}/none.sock",
        "LABAPP_STATE": str(course / "graders-state"),
        "PATH": PATH,
    }
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *argv],
        cwd=course, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_autograder_gives_the_points_that_the_receipts_show(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = tmp_path / "course"
    (course / "source" / "lab").mkdir(parents=True)
    (course / "nbgrader_config.py").write_text('c.CourseDirectory.course_id = "images"\n')
    nbformat.write(assignment(), course / "source" / "lab" / "start.ipynb")
    nbgrader(course, "generate_assignment", "lab")

    empty(bench)
    receipts = Receipts(bench.state)
    receipts.file.unlink(missing_ok=True)
    desk = Desk(replace(bench, work=tmp_path))
    for tag in ("1.0", "mine"):
        desk.copy(desk.slim, f"hello/web:{tag}")

    # The learner, who has an engine, runs the notebook: one check passes, the other doesn't.
    home = Path(shutil.copytree(course / "release" / "lab", course / "submitted" / "ada" / "lab"))
    notebook = nbformat.read(home / "start.ipynb", as_version=4)
    lab = {"LABAPP_STATE": str(bench.state.folder), "DOCKER_HOST": bench.engine.host}
    with pytest.raises(ChapterError):
        execute(notebook, folder=home, environment={**os.environ, **lab})
    assert list(receipts.read().passed) == ["00-tag"]

    nbgrader(course, "autograde", "lab")
    monkeypatch.setenv("PATH", PATH)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "images") as book:
        assert book.find_submission("lab", "ada").score == POINTS["00-tag"]
    graded = nbformat.read(course / "autograded" / "ada" / "lab" / "start.ipynb", as_version=4)
    told = json.dumps([cell.get("outputs", []) for cell in graded.cells], ensure_ascii=False)
    assert "receipts.json" in told and "lab.digest" in told and "00-run" in told
    assert not (course / "graders-state").exists(), "the grader's machine opened a lab"
