"""Receipts: noted, chained, damaged, edited and graded by; progress, and the journey map."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labapp import cli
from labapp.course.exercises import Coach, Submission, all_exercises, submission
from labapp.course.progress import chapter_of, journey_map, overview
from labapp.course.receipts import Attempt, Receipts, read
from labapp.errors import StateError
from labapp.state import State

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
THREE = ("00-tag", "00-run", "01-cache")
IMAGE = "localhost:5000/hello/web@sha256:" + "a" * 64

LAST = "sha256:4d2b8376ab1c0857e3fddbbcdf09dc6394afb8be56a58007370c7e1db7ed4df8"

Document = dict[str, Any]


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Receipts of a learner who passed three exercises, the second one with some trouble."""
    receipts = Receipts(State.open(tmp_path_factory.mktemp("state")))
    receipts.rename("ada")
    receipts.note("00-tag", Attempt(tries=1), {"image": IMAGE})
    receipts.note("00-run", Attempt(tries=1))
    for number in (1, 2, 1):
        receipts.note("00-run", Attempt(hints=number))
    receipts.note("00-run", Attempt(solution=True))
    receipts.note("00-run", Attempt(tries=1), {})
    receipts.note("01-cache", Attempt(tries=1), {})
    return receipts.state.folder


@pytest.fixture
def three(tmp_path: Path, prototype: Path) -> Receipts:
    return Receipts(State.open(Path(shutil.copytree(prototype, tmp_path / "state"))))


def edit(file: Path, change: Callable[[Document], object]) -> None:
    document = json.loads(file.read_text("utf-8"))
    change(document)
    file.write_text(json.dumps(document), "utf-8")


# ---------------------------------------------------------------- receipts


def test_a_receipt_tells_what_it_took_and_stays_as_it_is(three: Receipts) -> None:
    record = three.read()
    took = {each.exercise: (each.tries, each.hints, each.solution) for each in record.sound}
    assert took == {"00-tag": (1, 0, False), "00-run": (2, 2, True), "01-cache": (1, 0, False)}
    tag = record.receipts[0]
    assert (tag.evidence, tag.lab) == ({"image": IMAGE}, three.state.lab_id)
    assert tag.time.endswith("+00:00") and (record.broken, record.attempts) == (None, {})
    three.note("00-tag", Attempt(tries=1, hints=2, solution=True))
    three.note("00-tag", Attempt(tries=1), {"image": "another"})
    assert three.read() == record
    three.note("03-pin", Attempt(tries=1))
    three.note("03-pin", Attempt(hints=1))
    again = Receipts(State.open(three.state.folder)).read()
    assert again == replace(record, attempts={"03-pin": Attempt(tries=1, hints=1)})


def test_receipts_of_today_count_in_every_later_lab(tmp_path: Path) -> None:
    """A file as the lab has always written it, with its digests written down."""
    receipt = {
        "number": 1, "exercise": "00-tag", "time": "2026-11-23T19:26:51+00:00", "tries": 1,
        "hints": 0, "solution": False, "evidence": {"image": IMAGE}, "lab": "1a2b3c4d",
        "previous": "sha256:02b7ad3a0a0854150375c7ca85e0f39741c8c4197bd6eb9597fbd56615421211",
    }  # fmt: skip
    document = {
        "format": 1, "lab": "1a2b3c4d", "learner": "ada", "seed": 123,
        "begun": "2026-11-23T19:00:00+00:00", "attempts": {}, "receipts": [receipt],
        "end": {"number": 1, "digest": LAST},
    }  # fmt: skip
    (tmp_path / "ada.json").write_text(json.dumps(document))
    record = read(tmp_path / "ada.json")
    assert record.broken is None and list(record.passed) == ["00-tag"]


def note_many(receipts: Receipts, name: str) -> None:
    for number in range(8):
        receipts.note(f"{name}-{number}", Attempt(tries=1), {})


def test_two_kernels_at_once_lose_nothing(tmp_path: Path) -> None:
    receipts = Receipts(State.open(tmp_path))
    fork = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    kernels = [fork.Process(target=note_many, args=(receipts, name)) for name in ("a", "b")]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join(30)
    record = receipts.read()
    assert {*record.passed} == {f"{k}-{n}" for k in "ab" for n in range(8)}
    assert record.broken is None


# ---------------------------------------------------------------- what was changed is noticed

CHANGES: dict[str, tuple[Callable[[Document], object], int]] = {
    "tries": (lambda d: d["receipts"][1].update(tries=1), 2),
    "evidence": (lambda d: d["receipts"][0].update(evidence={}), 1),
    "the last": (lambda d: d["receipts"][2].update(hints=-1), 3),
    "taken out": (lambda d: d["receipts"].pop(1), 2),
    "the first taken out": (lambda d: d["receipts"].pop(0), 1),
    "the last taken out": (lambda d: d["receipts"].pop(), 3),
    "all taken out": (lambda d: d["receipts"].clear(), 1),
    "another seed": (lambda d: d.update(seed=1), 0),
    "another lab": (lambda d: d.update(lab="00000000"), 0),
    "swapped": (lambda d: d["receipts"].reverse(), 1),
    "invented": (lambda d: d["receipts"].append({**d["receipts"][2], "number": 4}), 3),
    "the end put back": (lambda d: d["end"].update(number=2), 3),
}


@pytest.mark.parametrize(("change", "number"), CHANGES.values(), ids=CHANGES)
def test_an_edited_file_names_where(
    three: Receipts, change: Callable[[Document], object], number: int
) -> None:
    edit(three.file, change)
    # Further receipts don't mend it.
    for record in (three.read(), three.note("02-sent", Attempt(tries=1), {}) or three.read()):
        assert record.broken is not None and record.broken.number == number
        assert len(record.sound) == max(number - 1, 0)


def test_tries_and_a_solution_seen_are_in_the_chain(three: Receipts) -> None:
    """Whoever takes them out of the file before passing is found out, also after that."""
    for new in (Attempt(tries=3), Attempt(solution=True)):
        three.note("03-pin", new)
    assert three.read().broken is None
    edit(three.file, lambda document: document["attempts"].clear())
    for _ in range(2):
        record = three.read()
        assert record.broken is not None and {*THREE} <= {*record.passed}
        three.note("03-pin", Attempt(tries=1), {})


def with_more(text: str, **more: object) -> str:
    return json.dumps(json.loads(text) | more)


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "of a newer lab": lambda text: text.replace('"format": 1', '"format": 2'),
    "a field gone": lambda text: text.replace('"seed"', '"sead"'),
    "a wrong type": lambda text: text.replace('"tries": 2', '"tries": "2"'),
    "a question that is none": lambda text: with_more(text, question={"text": 3, "time": ""}),
    "a question of another kind": lambda text: with_more(text, question={"text": "", "since": ""}),
    "a list of them": lambda text: with_more(text, question=["x"]),
    "posted by a number": lambda text: with_more(text, posted=3),
    "a signature without its parts": lambda text: with_more(text, signatures={"x": {"user": "a"}}),
    "a number that is none": lambda text: with_more(text, seed=1e999),
    "deep": lambda text: "[" * 200_000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_put_aside_never_overwritten(
    three: Receipts, damage: Callable[[str], str]
) -> None:
    whole = three.file.read_text("utf-8")
    for count in (1, 2):
        three.file.write_text(damage(whole), "utf-8")
        three.note("02-sent", Attempt(tries=1), {})
        assert list(three.read().passed) == ["02-sent"]
        assert [file.read_text("utf-8") for file in three.damaged] == [damage(whole)] * count


def test_what_is_written_and_what_cannot_be(
    three: Receipts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "handed in" / "ada.json"
    three.save(copy)
    assert read(copy) == three.read()
    three.rename("  Ada   Lovelace ")
    assert three.read().learner == "Ada Lovelace" and three.read().broken is None
    for bad in ("", "  ", "x" * 101, "a\x1bb"):
        with pytest.raises(StateError):
            three.rename(bad)
    with pytest.raises(StateError, match=str(tmp_path)):
        three.save(tmp_path)
    # What can't be noted is told, and stops nobody.
    three.file.unlink()
    three.file.mkdir()
    bench: Any = SimpleNamespace(state=three.state, work=Path("03"))
    Coach(bench).hint("03-pin"), Coach(bench).solution("03-pin")
    told = capsys.readouterr().out
    assert told.count(f"'{three.file}'") == told.count("Markdown") == 2
    assert "LABAPP_STATE" in told


# ---------------------------------------------------------------- progress and the journey map


def test_progress_says_where_to_go_on(three: Receipts) -> None:
    three.note("01-context", Attempt(tries=1))
    summary, table, advice = overview(three, NOTEBOOKS).split("\n\n")
    assert "ada: 3 of 25" in summary and "tries: 3, hints: 2" in table
    for exercise in ("✓ 00-tag", "… 01-context", "○ 02-sent"):
        assert exercise in table
    assert "01-context" in advice and "01_build.ipynb" in advice and str(three.file) in advice
    for id in all_exercises():
        three.note(id, Attempt(tries=1), {})
    summary, _, advice = overview(three, NOTEBOOKS).split("\n\n")
    assert "25 of 25" in summary and ".ipynb" not in advice


def test_where_a_learner_goes_on(three: Receipts, tmp_path: Path) -> None:
    new = Receipts(State.open(tmp_path / "new"))
    assert [chapter_of(each, NOTEBOOKS).stem[:2] for each in (new, three)] == ["00", "01"]
    for last in ("03", "09"):
        for id in [id for id in all_exercises() if id < last]:
            three.note(id, Attempt(tries=1), {})
        # Who has passed all of it is shown the last one.
        assert chapter_of(three, NOTEBOOKS).stem[:2] == min(last, "08")
    assert chapter_of(three, tmp_path) is None


def test_progress_tells_what_is_wrong_with_the_receipts(three: Receipts) -> None:
    edit(three.file, lambda document: document["receipts"][1].update(tries=1))
    _, _, note, _ = overview(three, NOTEBOOKS).split("\n\n")
    assert "00-run" in note
    three.file.write_text("{", "utf-8")
    _, _, note, _ = overview(three, NOTEBOOKS).split("\n\n")
    assert str(three.damaged[0]) in note and str(three.file) in note


def test_the_map_lights_the_steps_whose_exercises_are_all_passed() -> None:
    passed = ["03-pin", "06-gate", "00-tag"]
    shown = journey_map(passed)
    rows = shown.table.set_index("step")
    assert rows["exercises"].sum() == len(all_exercises()) and rows["exercises"].min() > 1
    assert tuple(rows.loc["Pull → run", ["passed", "left"]]) == (2, "")
    assert rows.loc["Push", "passed"] == 1 and "00-tag" not in rows.loc["Push", "left"]
    assert "Lit: Pull → run. " in shown.alt and shown.title.startswith("1 of 9")
    html = shown._repr_html_()  # The same is a table.
    assert all(text in html for text in (*rows["control"], *all_exercises().keys() - {*passed}))


# ---------------------------------------------------------------- where a notebook is graded


def test_a_grader_judges_by_receipts(three: Receipts, tmp_path: Path) -> None:
    graded = Submission(tmp_path / "receipts.json")
    assert graded.check("00-tag").outcome == "NotYet"
    three.save(graded.file)
    assert graded.check("00-tag", strict=True).evidence == {"image": IMAGE}
    with pytest.raises(AssertionError, match=r"Not yet.* 03-pin"):
        graded.check("03-pin", "any answer", strict=True)
    graded.hint("00-tag"), graded.solution("00-tag"), graded.clean_up()
    edit(graded.file, lambda d: d["receipts"][1].update(hints=0))
    assert graded.check("00-tag").outcome == "Correct"
    verdict = graded.check("01-cache")
    assert verdict.outcome == "Wrong" and "00-run" in verdict.message


@pytest.mark.parametrize(("named", "grader"), [("mine.json", ""), ("", "validate")])
def test_a_notebook_is_graded_where_receipts_are_named_not_where_a_learner_validates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, grader: str
) -> None:
    monkeypatch.setenv("LABAPP_RECEIPTS", named)
    monkeypatch.setenv("NBGRADER_EXECUTION", grader)
    assert submission(tmp_path) == (Submission(tmp_path / named) if named else None)


def test_the_progress_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    copy, picture = tmp_path / "ada.json", tmp_path / "map.svg"
    argv = ["progress", "--name", "ada", "--save", str(copy), "--map", str(picture)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "ada: 0 of 25" in out and "00-tag" in out and "00_start_here.ipynb" in out
    assert read(copy).learner == "ada" and "<svg" in picture.read_text("utf-8")
    assert cli.main(["progress", "--map", str(tmp_path / "map.txt")]) == 1
