"""The notebooks as files, and the texts of their exercises: the form that readers rely on."""

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

from labapp.course import exercises
from labapp.course.exercises import all_exercises, find_exercise
from labapp.errors import ExerciseError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
NUMBERS = [f"{number:02}" for number in range(9)]
WITHOUT_QUANTITY = ("00_start_here", "06_what_can_go_wrong", "08_capstone")
"""Chapters that draw no chart of their own."""


def read(file: Path) -> Any:
    """Return a notebook by attributes; nbformat takes seconds to import, so it checks elsewhere."""
    notebook = json.loads(file.read_text("utf-8"), object_hook=lambda o: SimpleNamespace(**o))
    for cell in notebook.cells:
        cell.source = "".join(cell.source)
    return notebook


def test_the_chapters_are_there_and_every_text_has_its_check() -> None:
    assert [file.name[:2] for file in FILES] == NUMBERS
    assert sorted({id[:2] for id in all_exercises()}) == NUMBERS
    course = Path(exercises.__file__).parent
    checks = [re.findall(r"^def check_(\w+)", f.read_text(), re.M) for f in course.glob("chap*.py")]
    assert {*all_exercises()} == {name.replace("_", "-") for names in checks for name in names}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestFile:
    def test_is_clean(self, file: Path) -> None:
        notebook = read(file)
        assert set(vars(notebook.metadata)) == {"kernelspec", "language_info"}
        assert set(vars(notebook.metadata.language_info)) == {"name"}
        ids = [cell.id for cell in notebook.cells]
        assert len(set(ids)) == len(ids)
        for cell in notebook.cells:
            assert re.fullmatch(r"[a-z0-9-]{2,40}", cell.id)
            assert set(vars(cell.metadata)) <= {"tags"}, cell.id
            if cell.cell_type == "code":
                assert (cell.outputs, cell.execution_count) == ([], None), cell.id

    def test_has_the_parts_of_a_chapter_and_short_cells(self, file: Path) -> None:
        cells = read(file).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert cells[0].source.startswith("# ") and "minutes" in cells[0].source
        assert f'open_lab("{file.name[:2]}")' in cells[1].source
        assert {"quiz", "key", "clean-up", "next"} <= {cell.id for cell in cells}
        assert any("*Predict" in cell.source for cell in cells)
        assert 25 <= len(cells) <= 50
        assert code[-1].id == "clean-up" and code[-1].source.endswith("\nlab.map()")
        drawn = any("charts." in cell.source for cell in code)
        assert drawn == (file.stem not in WITHOUT_QUANTITY)
        aside = re.compile(r"```.*?```|^\|.*?$", re.DOTALL | re.MULTILINE)
        for cell in cells:
            lines = [line for line in cell.source.splitlines() if line.strip()]
            if cell in code:
                assert len(lines) <= (5 if cell is cells[1] else 10), cell.id
            elif cell.id not in ("title", "key", "wrong"):
                assert len(aside.sub("", cell.source).split()) <= 110, cell.id

    def test_every_exercise_has_a_starter_and_a_check(self, file: Path) -> None:
        cells = read(file).cells
        starters = {
            next(tag for tag in cell.metadata.tags if tag != "exercise"): cell
            for cell in cells
            if "exercise" in getattr(cell.metadata, "tags", [])
        }
        number = file.name[:2]
        expected = [id for id in all_exercises() if id.startswith(number)]
        assert list(starters) == expected and len(expected) >= 2
        for id, cell in starters.items():
            exercise = find_exercise(id)
            assert len(exercise.hints) >= 2 and exercise.why
            ast.parse(exercise.solution)
            ast.parse(cell.source)
            assert "..." in cell.source
            assert sum(f'lab.check("{id}"' in c.source for c in cells) == 1
            (task,) = (c.source for c in cells if f'lab.hint("{id}")' in c.source)
            title = re.search(r"^## (?:Exercise: )?(.+)$", task, re.MULTILINE)
            assert title and title[1].lower() == exercise.title.lower()

    def test_quiz_has_one_right_answer_and_explains_every_wrong_one(self, file: Path) -> None:
        questions = json.loads((NOTEBOOKS / "quiz" / f"{file.name[:2]}.json").read_text("utf-8"))
        assert len(questions) >= 3
        for question in questions:
            assert sum(answer["correct"] for answer in question["answers"]) == 1
            assert all(len(answer["feedback"]) > 15 for answer in question["answers"])


# ---------------------------------------------------------------- the texts of exercises

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
    for part in ("title: Two\n", "1. One", "## Solution", "```python", "## Why\n\n"):
        (texts / "00-two.md").write_text(TEXT.replace(part, "", 1).replace("2. Another.", ""))
        with pytest.raises(ExerciseError, match=r"00-two\.md"):
            find_exercise("00-two")


@pytest.mark.parametrize("id", ["03-pins", "../03-pin", "", 3])
def test_an_unknown_exercise_lists_those_that_there_are(id: str) -> None:
    with pytest.raises(ExerciseError, match="03-digest, 03-from, 03-pin"):
        find_exercise(id)


# ---------------------------------------------------------------- chapter 07, by hand

# Both programs were run, the second by an emulator. The bytes must not change without that.
DIGESTS = {
    "amd64": "sha256:ce53e84402b26be62ec90b842ceb5836a77c33bc168be0b0f0f174663ca96f83",
    "arm64": "sha256:6dd0224725a9277aa0bd13dea4f7dc3ad9ef0ec56b9d5a4afbeea3ecc0e6670b",
}


@pytest.mark.parametrize("machine", DIGESTS)
def test_the_same_bytes_give_the_same_digest_on_every_machine(machine: str) -> None:
    cells = {cell.id: cell.source for cell in read(FILES[7]).cells}
    lab = SimpleNamespace(platform=f"linux/{machine}")
    names: dict[str, Any] = {"hashlib": hashlib, "json": json, "lab": lab}
    for id in ("machine", "program-run", "layer-pack", "layer-run", "config-run", "manifest-run"):
        exec(cells[id], names)
    assert names["digest"](names["manifest"]) == DIGESTS[machine]
    assert f"| {machine} | `{DIGESTS[machine]}` |" in cells["same"]
    # The program is a whole ELF file, with any text.
    file = names["program"](b"Some other text.\n")
    assert file.startswith(b"\x7fELF\2\1\1") and file.endswith(b"\x11\0\0\0Some other text.\n")
    in_file, in_memory = (int.from_bytes(file[at : at + 8], "little") for at in (96, 104))
    assert in_file == in_memory == len(file)


def test_nothing_but_the_standard_library_and_requests_does_the_work() -> None:
    sources = [cell.source for cell in read(FILES[7]).cells if cell.cell_type == "code"]
    imported = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    others = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert others == {"labapp", "jupyterquiz", "requests"}
    used = set(re.findall(r"\blab\.(\w+)", "\n".join(sources)))
    engine = {"pull", "run_once", "remove"}
    facts = {"address", "id", "platform", "work"}
    assert used == engine | facts | {"show", "check", "clean_up", "map"}
