"""The notebooks as files, and the texts of their exercises: the form that readers rely on."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labapp.course import exercises
from labapp.course.exercises import all_exercises, find_exercise
from labapp.errors import ExerciseError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
WITHOUT_QUANTITY = ("00_start_here", "06_what_can_go_wrong", "08_capstone")
"""Chapters that draw no chart of their own."""


def read(file: Path) -> Any:
    """Return a notebook by attributes; nbformat takes seconds to import, so it checks elsewhere."""
    notebook = json.loads(file.read_text("utf-8"), object_hook=lambda o: SimpleNamespace(**o))
    for cell in notebook.cells:
        cell.source = "".join(cell.source)
    return notebook


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_chapters_are_there() -> None:
    numbers = [f"{number:02}" for number in range(9)]
    assert [file.name[:2] for file in FILES] == numbers
    assert sorted({id[:2] for id in all_exercises()}) == numbers


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestFile:
    def test_has_no_outputs_or_editor_metadata(self, file: Path) -> None:
        notebook = read(file)
        assert set(vars(notebook.metadata)) == {"kernelspec", "language_info"}
        assert set(vars(notebook.metadata.language_info)) == {"name"}
        for cell in notebook.cells:
            assert set(vars(cell.metadata)) <= {"tags"}, cell.id
            if cell.cell_type == "code":
                assert (cell.outputs, cell.execution_count) == ([], None), cell.id

    def test_has_readable_ids(self, file: Path) -> None:
        ids = [cell.id for cell in read(file).cells]
        assert len(set(ids)) == len(ids)
        assert [id for id in ids if not re.fullmatch(r"[a-z0-9-]{2,40}", id)] == []

    def test_has_the_parts_of_a_chapter(self, file: Path) -> None:
        cells = read(file).cells
        assert cells[0].source.startswith("# ") and "minutes" in cells[0].source
        assert f'open_lab("{file.name[:2]}")' in cells[1].source
        assert len([line for line in cells[1].source.splitlines() if line.strip()]) <= 5
        assert {"quiz", "key", "clean-up", "next"} <= {cell.id for cell in cells}
        assert any("*Predict" in cell.source for cell in cells)
        assert 25 <= len(cells) <= 50
        last = code(read(file))[-1]
        assert last.id == "clean-up" and last.source.endswith("\nlab.map()")

    def test_code_and_prose_are_short(self, file: Path) -> None:
        for cell in read(file).cells:
            if cell.cell_type == "code":
                lines = [line for line in cell.source.splitlines() if line.strip()]
                assert len(lines) <= 10, cell.id
            elif cell.id not in ("title", "key", "wrong"):
                aside = re.compile(r"```.*?```|^\|.*?$", re.DOTALL | re.MULTILINE)
                assert len(aside.sub("", cell.source).split()) <= 110, cell.id

    def test_every_exercise_has_a_starter_and_a_check(self, file: Path) -> None:
        cells = read(file).cells
        starters = {
            next(tag for tag in cell.metadata.tags if tag != "exercise"): cell
            for cell in cells
            if "exercise" in getattr(cell.metadata, "tags", [])
        }
        expected = [id for id in all_exercises() if id.startswith(file.name[:2])]
        assert list(starters) == expected and len(expected) >= 2
        for id, cell in starters.items():
            ast.parse(cell.source)
            assert "..." in cell.source
            assert sum(f'lab.check("{id}"' in c.source for c in cells) == 1
            (task,) = (c.source for c in cells if f'lab.hint("{id}")' in c.source)
            title = re.search(r"^## (?:Exercise: )?(.+)$", task, re.MULTILINE)
            assert title and title[1].lower() == find_exercise(id).title.lower()

    def test_charts_where_there_is_a_quantity(self, file: Path) -> None:
        drawn = any("charts." in cell.source for cell in code(read(file)))
        assert drawn == (file.stem not in WITHOUT_QUANTITY)

    def test_quiz_has_one_right_answer_and_explains_every_wrong_one(self, file: Path) -> None:
        questions = json.loads((NOTEBOOKS / "quiz" / f"{file.name[:2]}.json").read_text("utf-8"))
        assert len(questions) >= 3
        for question in questions:
            assert sum(answer["correct"] for answer in question["answers"]) == 1
            assert all(len(answer["feedback"]) > 15 for answer in question["answers"])


@pytest.mark.parametrize("id", list(all_exercises()))
def test_exercises_have_hints_and_a_solution_that_is_python(id: str) -> None:
    exercise = find_exercise(id)
    assert len(exercise.hints) >= 2 and exercise.why
    ast.parse(exercise.solution)


@pytest.mark.parametrize("number", sorted({id[:2] for id in all_exercises()}))
def test_every_text_has_its_check_and_every_check_its_text(number: str) -> None:
    module = importlib.import_module(f"labapp.course.chapter{number}")
    checks = {name for name in vars(module) if name.startswith("check_")}
    ids = {id for id in all_exercises() if id.startswith(number)}
    assert checks == {f"check_{id.replace('-', '_')}" for id in ids}


TEXT = """---
title: Two
number: 2
step: push
---

## Hints

1. One line,
   and its end.
2. Another.

## Solution

```python
print("## Why")

lab.tag(a, b)
```

## Why

Because
it is.
"""


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(exercises, "TEXTS", tmp_path)
    (tmp_path / "00-two.md").write_text(TEXT)
    (tmp_path / "00-one.md").write_text(TEXT.replace("number: 2", "number: 1"))
    return tmp_path


def test_a_text_is_all_that_an_exercise_needs_to_be_found(texts: Path) -> None:
    assert list(all_exercises()) == ["00-one", "00-two"]
    found = find_exercise("00-two")
    assert (found.title, found.step) == ("Two", "push")
    assert found.hints == ("One line, and its end.", "Another.")
    assert found.solution == 'print("## Why")\n\nlab.tag(a, b)' and found.why == "Because it is."


@pytest.mark.parametrize(
    "part", ["title: Two\n", "1. One", "## Solution", "```python", "## Why\n\n"]
)
def test_a_text_that_lacks_a_part_is_named(texts: Path, part: str) -> None:
    (texts / "00-two.md").write_text(TEXT.replace(part, "", 1).replace("2. Another.", ""))
    with pytest.raises(ExerciseError, match=r"00-two\.md"):
        find_exercise("00-two")


@pytest.mark.parametrize("id", ["03-pins", "../03-pin", "", 3])
def test_an_unknown_exercise_lists_those_that_there_are(id: str) -> None:
    with pytest.raises(ExerciseError, match="03-digest, 03-pin, 03-from"):
        find_exercise(id)
