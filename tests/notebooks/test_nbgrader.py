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
    steps = ('lab = open_lab("00")', 'print(lab.digest(f"{lab.address}/hello/web:1.0"))')
    cells = [new_code_cell("from labapp import open_lab")]
    cells += [new_code_cell(step) for step in steps]
    for id, points in POINTS.items():
        cell = new_code_cell(f'lab.check("{id}", strict=True)')
        cell.metadata["nbgrader"] = {
            "grade": True, "grade_id": id, "locked": True, "points": points, "schema_version": 3,
            "solution": False, "task": False,
        }  # fmt: skip
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def nbgrader(course: Path, *argv: str) -> str:
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
    return done.stdout + done.stderr


def hand_in(course: Path, learner: str, *files: Path) -> Path:
    folder = course / "submitted" / learner / "lab"
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """An instructor's course, with its assignment released."""
    course = tmp_path / "course"
    (course / "source" / "lab").mkdir(parents=True)
    (course / "nbgrader_config.py").write_text('c.CourseDirectory.course_id = "images"\n')
    nbformat.write(assignment(), course / "source" / "lab" / "start.ipynb")
    nbgrader(course, "generate_assignment", "lab")
    return course


def test_the_autograder_gives_the_points_that_the_receipts_show(
    course: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(bench)
    receipts = Receipts(bench.state)
    receipts.file.unlink(missing_ok=True)
    desk = Desk(replace(bench, work=tmp_path))
    for tag in ("1.0", "mine"):
        desk.copy(desk.slim, f"hello/web:{tag}")

    # The learner, who has an engine, runs the notebook: one check passes, the other doesn't.
    released = course / "release" / "lab" / "start.ipynb"
    home = tmp_path / "home"
    home.mkdir()
    notebook = nbformat.read(released, as_version=4)
    variables = {
        **os.environ, "LABAPP_STATE": str(bench.state.folder), "DOCKER_HOST": bench.engine.host,
    }  # fmt: skip
    with pytest.raises(ChapterError):
        execute(notebook, folder=home, environment=variables)
    assert list(receipts.read().passed) == ["00-tag"]

    copy = home / "receipts.json"
    hand_in(course, "ada", released, copy)
    hand_in(course, "cleo", released)
    forged = json.loads(copy.read_text("utf-8"))
    forged["receipts"].append({**forged["receipts"][0], "number": 2, "exercise": "00-run"})
    folder = hand_in(course, "bob", released)
    (folder / "receipts.json").write_text(json.dumps(forged), "utf-8")

    nbgrader(course, "autograde", "lab")
    monkeypatch.setenv("PATH", PATH)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "images") as book:
        scores = {name: book.find_submission("lab", name).score for name in ("ada", "bob", "cleo")}
    assert scores == {"ada": 2, "bob": 0, "cleo": 0}
    graded = nbformat.read(course / "autograded" / "ada" / "lab" / "start.ipynb", as_version=4)
    told = json.dumps([cell.get("outputs", []) for cell in graded.cells], ensure_ascii=False)
    assert "receipts.json" in told and "lab.digest" in told and "00-run" in told
    assert not (course / "graders-state").exists(), "the grader's machine opened a lab"
