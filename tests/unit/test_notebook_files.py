"""The notebooks as files, and the texts of their exercises: the form that readers rely on."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labapp.attacks.attacks import ATTACKS
from labapp.course import exercises
from labapp.course.exercises import all_exercises, find_exercise
from labapp.errors import ExerciseError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
NUMBERS = [f"{number:02}" for number in range(len(FILES))]
WITHOUT_QUANTITY = ("00",)
"""Chapters that draw no chart of their own."""


def read(file: Path) -> Any:
    """Return a notebook by attributes; nbformat takes seconds to import, so it checks elsewhere."""
    notebook = json.loads(file.read_text("utf-8"), object_hook=lambda o: SimpleNamespace(**o))
    notebook.number = file.name[:2]
    for cell in notebook.cells:
        cell.source = "".join(cell.source)
    return notebook


def test_the_chapters_are_there_and_every_text_has_its_check() -> None:
    assert [file.name[:2] for file in FILES] == NUMBERS
    assert sorted({id[:2] for id in all_exercises()}) == NUMBERS
    course = Path(exercises.__file__).parent
    checks = [re.findall(r"^def check_(\w+)", f.read_text(), re.M) for f in course.glob("chap*.py")]
    assert {*all_exercises()} == {name.replace("_", "-") for names in checks for name in names}


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def notebook(request: pytest.FixtureRequest) -> Any:
    return read(request.param)


def test_a_notebook_is_clean(notebook: Any) -> None:
    assert set(vars(notebook.metadata)) == {"kernelspec", "language_info"}
    assert set(vars(notebook.metadata.language_info)) == {"name"}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z0-9-]{2,40}", cell.id)
        assert set(vars(cell.metadata)) <= {"tags"}, cell.id
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


def test_a_notebook_has_the_parts_of_a_chapter_and_short_cells(notebook: Any) -> None:
    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[0].source.startswith("# ") and "minutes" in cells[0].source
    assert f'open_lab("{notebook.number}")' in cells[1].source
    assert {"quiz", "key", "clean-up", "next"} <= {cell.id for cell in cells}
    assert any("*Predict" in cell.source for cell in cells)
    assert 25 <= len(cells) <= 50
    assert code[-1].id == "clean-up" and code[-1].source.endswith("\nlab.map()")
    drawn = any("charts." in cell.source for cell in code)
    assert drawn == (notebook.number not in WITHOUT_QUANTITY)
    aside = re.compile(r"```.*?```|^\|.*?$", re.DOTALL | re.MULTILINE)
    for cell in cells:
        if cell in code:
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= (5 if cell is cells[1] else 10), cell.id
        elif cell.id not in ("title", "key", "wrong"):
            assert len(aside.sub("", cell.source).split()) <= 110, cell.id


def test_every_exercise_has_a_starter_and_a_check(notebook: Any) -> None:
    cells, starters = notebook.cells, {}
    for cell in cells:
        if "exercise" in (tags := getattr(cell.metadata, "tags", [])):
            starters[next(tag for tag in tags if tag != "exercise")] = cell.source
    known = all_exercises()
    assert list(starters) == [id for id in known if id.startswith(notebook.number)]
    assert len(starters) >= 2
    for id, starter in starters.items():
        exercise = known[id]
        assert len(exercise.hints) >= 2 and exercise.why and "..." in starter
        assert exercise.step in {*ATTACKS, "all"}
        ast.parse(f"{exercise.solution}\n{starter}")
        assert sum(f'lab.check("{id}"' in cell.source for cell in cells) == 1
        (task,) = (cell.source for cell in cells if f'lab.hint("{id}")' in cell.source)
        title = re.search(r"^## (?:Exercise: )?(.+)$", task, re.MULTILINE)
        assert title and title[1].lower() == exercise.title.lower()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_quiz_has_one_right_answer_and_explains_every_wrong_one(number: str) -> None:
    questions = json.loads((NOTEBOOKS / "quiz" / f"{number}.json").read_text("utf-8"))
    assert len(questions) >= 3
    for question in questions:
        assert sum(answer["correct"] for answer in question["answers"]) == 1
        assert all(len(answer["feedback"]) > 15 for answer in question["answers"])


# ---------------------------------------------------------------- what differs by machine

QUANTITY = re.compile(
    r"\b(?:\d[\d,.]*|two|three|four|five|six|seven|eight|nine|ten|twelve|some hundred)[ -]?"
    r"(?:(?:seconds?|minutes?|m?s|[kMG]B|[kmg]\w*bytes|bytes|layers|steps|packages|CVEs|percent)\b"
    r"|%)"
)
"""How much, or how long: on the next machine, engine or visit it is another number."""

HELD = {
    "00 key": "four steps",  # the journey's
    "01 context": "20 MB",  # a cell makes the file
    "03 deploy": "19 %",  # the shop's source says it
    "07 compressed": "two digests some 200 bytes",
    "07 exercise-upload": "two layers",  # the task
    "08 script": "five steps",
    "08 trail-read": "five steps",
    "08 look": "five steps",  # the script's own
}
"""Numbers that something in the lab holds; all others, a cell computes."""


def test_prose_names_no_number_that_the_next_machine_contradicts(notebook: Any) -> None:
    prose = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}
    del prose["title"]  # its minutes are the chapter's own
    for id, each in all_exercises().items():
        if id.startswith(notebook.number):
            prose[id] = " ".join([*each.hints, each.why])
    for id, text in prose.items():
        held = HELD.get(f"{notebook.number} {id}", "")
        assert [said for said in QUANTITY.findall(text) if said not in held] == [], id


def test_paths_hold_from_the_folder_where_a_terminal_opens(notebook: Any) -> None:
    text = "\n".join(cell.source for cell in notebook.cells)
    paths = re.findall(r"(\S*)\bwork/(\d\d)?", text)
    assert {number for _, number in paths} <= {notebook.number, ""}
    assert [before for before, _ in paths if before.endswith("/")] == []


# ---------------------------------------------------------------- the texts of exercises


def test_a_text_is_all_that_an_exercise_needs_to_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (exercises.TEXTS / "02-promote.md").read_text("utf-8")
    monkeypatch.setattr(exercises, "TEXTS", tmp_path)
    file = tmp_path / "09-new.md"
    file.write_text(text)
    found = find_exercise("09-new")
    assert (found.title, found.step, len(found.hints)) == ("Promote", "push", 2)
    assert found.solution.startswith("live = ") and found.solution.endswith("lab.push(live)")
    assert found.why.endswith("so production runs what was tested.")  # two lines there
    for part in ("title: Promote\n", "## Hints", "## Solution", "```python", "## Why\n\n"):
        file.write_text(text.replace(part, "", 1))
        with pytest.raises(ExerciseError, match=r"09-new\.md"):
            find_exercise("09-new")


@pytest.mark.parametrize("id", ["03-pins", "../03-pin", "", 3])
def test_an_unknown_exercise_lists_those_that_there_are(id: str) -> None:
    there = ", ".join(sorted(each for each in all_exercises() if each.startswith("03")))
    with pytest.raises(ExerciseError, match=there):
        find_exercise(id)


# ---------------------------------------------------------------- chapter 07, by hand

# Both programs were run, the second by an emulator. The bytes must not change without that.
DIGESTS = {
    "amd64": "sha256:4679630d6c83445da077947969b20374c10b53399ff85037bd74f0bd47d18bc1",
    "arm64": "sha256:6cb14d9f44782dcd0dc3b29575614e6f683e82a61423c5c5667c59d58f3961e6",
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
    # Then its twin, for the other kind of processor.
    names |= {"upload": bool, "ask": lambda *_, **__: None, "KIND": {}}
    exec(cells["both-make"], names)
    assert names["digest"](names["twin_manifest"]) == DIGESTS[names["other"]]
    assert names["other"] != machine
