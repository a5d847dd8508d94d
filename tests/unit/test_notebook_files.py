"""The notebooks as files: no outputs, stable ids, the form that readers rely on."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labapp.exercises import all_exercises

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def read(file: Path) -> Any:
    """Return a notebook by attributes; nbformat takes seconds to import, so it checks elsewhere."""
    notebook = json.loads(file.read_text("utf-8"), object_hook=lambda o: SimpleNamespace(**o))
    for cell in notebook.cells:
        cell.source = "".join(cell.source)
    return notebook


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_chapters_are_there() -> None:
    assert [file.name[:2] for file in FILES] == [f"{n:02}" for n in range(len(FILES))]
    assert len(FILES) >= 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestFile:
    def test_has_no_outputs_or_editor_metadata(self, file: Path) -> None:
        notebook = read(file)
        assert set(vars(notebook.metadata)) == {"kernelspec", "language_info"}
        assert set(vars(notebook.metadata.language_info)) == {"name"}
        for cell in notebook.cells:
            assert set(vars(cell.metadata)) <= {"tags"}, cell.id
            if cell.cell_type == "code":
                assert cell.outputs == [], cell.id
                assert cell.execution_count is None, cell.id

    def test_has_readable_ids(self, file: Path) -> None:
        ids = [cell.id for cell in read(file).cells]
        assert len(set(ids)) == len(ids)
        assert [id for id in ids if not re.fullmatch(r"[a-z0-9-]{2,40}", id)] == []

    def test_has_the_parts_of_a_chapter(self, file: Path) -> None:
        cells = read(file).cells
        assert cells[0].source.startswith("# ")
        assert "minutes" in cells[0].source
        assert f'open_lab("{file.name[:2]}")' in cells[1].source
        assert len([line for line in cells[1].source.splitlines() if line.strip()]) <= 5
        ids = [cell.id for cell in cells]
        for part in ("quiz", "key", "clean-up", "next"):
            assert part in ids
        assert any("*Predict" in cell.source for cell in cells)
        assert 25 <= len(cells) <= 50

    def test_code_is_short(self, file: Path) -> None:
        for cell in code(read(file)):
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 10, cell.id

    def test_prose_is_short(self, file: Path) -> None:
        for cell in read(file).cells:
            if cell.cell_type == "markdown" and cell.id not in ("title", "key", "wrong"):
                prose = re.sub(
                    r"```.*?```|^\|.*?$", "", cell.source, flags=re.DOTALL | re.MULTILINE
                )
                assert len(prose.split()) <= 110, cell.id

    def test_every_exercise_has_a_starter_and_a_check(self, file: Path) -> None:
        notebook = read(file)
        starters = {
            next(tag for tag in cell.metadata.tags if tag != "exercise"): cell
            for cell in code(notebook)
            if "exercise" in getattr(cell.metadata, "tags", [])
        }
        expected = [id for id in all_exercises() if id.startswith(file.name[:2])]
        assert len(expected) >= 2
        assert sorted(starters) == sorted(expected)
        for id, cell in starters.items():
            assert "..." in cell.source
            ast.parse(cell.source)
            checks = [c for c in code(notebook) if f'lab.check("{id}"' in c.source]
            assert len(checks) == 1
            hints = [c for c in notebook.cells if f'lab.hint("{id}")' in c.source]
            assert hints, id

    def test_charts_where_there_is_a_quantity(self, file: Path) -> None:
        charts = [
            cell for cell in code(read(file)) if re.search(r"charts\.|lab\.map\(", cell.source)
        ]
        assert charts or file.name.startswith("00")

    def test_ends_with_the_journey_so_far(self, file: Path) -> None:
        last = code(read(file))[-1]
        assert last.id == "clean-up"
        assert last.source.endswith("\nlab.map()")

    def test_quiz_has_one_right_answer_and_explains_every_wrong_one(self, file: Path) -> None:
        questions = json.loads((NOTEBOOKS / "quiz" / f"{file.name[:2]}.json").read_text("utf-8"))
        assert len(questions) >= 3
        for question in questions:
            assert sum(answer["correct"] for answer in question["answers"]) == 1
            assert all(len(answer["feedback"]) > 15 for answer in question["answers"])


@pytest.mark.parametrize("id", list(all_exercises()))
def test_exercises_have_hints_and_a_solution_that_is_python(id: str) -> None:
    exercise = all_exercises()[id]
    assert len(exercise.hints) >= 2
    ast.parse(exercise.solution)
    assert exercise.why
