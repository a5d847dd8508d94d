"""The report on a class: tables, points for learning platforms, and files that don't belong."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labapp import cli
from labapp.course.exercises import all_exercises
from labapp.course.receipts import Receipts
from labapp.course.report import ClassReport, report
from labapp.errors import StateError
from labapp.state import State

FOUR = ("00-tag", "00-run", "01-cache", "03-pin")
BOB = "bob@example.org"


def learner(folder: Path, name: str, *passed: str, file: str = "") -> Path:
    """Receipts of somebody who passed some exercises, handed in."""
    receipts = Receipts(State.open(folder / "states" / (file or name)))
    receipts.rename(name)
    for id in passed:
        receipts.note_try(id, evidence={})
    handed_in = folder / "class" / (file or name) / "receipts.json"
    receipts.save(handed_in)
    return handed_in


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class: ada passed all four, bob two with help, cleo none; and what is not in order."""
    tmp_path = tmp_path_factory.mktemp("room")
    folder = tmp_path / "class"
    ada = learner(tmp_path, "ada", *FOUR)
    early = learner(tmp_path, BOB, "00-tag")
    shutil.copy(early, folder / "bob-last-week.json")
    bob = Receipts(State.open(tmp_path / "states" / BOB))
    for number in (1, 2):
        bob.note_hint("00-run", number)
    bob.note_try("00-run")
    bob.note_try("00-run", evidence={})
    bob.note_solution("01-cache")
    bob.note_try("01-cache")
    bob.save(early)
    learner(tmp_path, "cleo")
    (folder / "cut short.json").write_text(ada.read_text("utf-8")[:200], "utf-8")
    (folder / "quiz.json").write_text('[{"question": "?"}]', "utf-8")
    (folder / "newer.json").write_text('{"format": 2, "receipts": []}', "utf-8")
    return folder


@pytest.fixture
def room(tmp_path: Path, prototype: Path) -> Path:
    return Path(shutil.copytree(prototype, tmp_path / "class"))


def changed(file: Path, *, name: str = "", tries: int = 0) -> None:
    document = json.loads(file.read_text("utf-8"))
    if name:
        document["learner"] = name
    if tries:
        document["receipts"][1]["tries"] = tries
    file.write_text(json.dumps(document), "utf-8")


def row(found: ClassReport, name: str) -> dict[str, object]:
    (row,) = (each for each in found.learners.to_dict("records") if each["learner"] == name)
    return {str(key): value for key, value in row.items()}


def test_who_is_where_and_which_exercise_is_hard(room: Path) -> None:
    found = report(room, FOUR)
    assert list(found.learners["learner"]) == ["ada", BOB, "cleo"]
    assert list(found.learners["passed"]) == [4, 2, 0]
    bob = row(found, BOB)
    assert (bob["of"], bob["tries"], bob["hints"], bob["solutions"]) == (4, 3, 2, 0)
    assert str(bob["last"]).startswith("20") and bob["chain"] == "whole"
    assert row(found, "cleo")["last"] == ""
    states = found.cells.pivot(index="learner", columns="exercise", values="state")
    assert list(states.loc[BOB, list(FOUR)]) == ["alone", "hints", "tried", "open"]
    rows = found.exercises.set_index("exercise")
    assert list(rows["passed"]) == [2, 2, 1, 1] and list(rows["tried"]) == [2, 2, 2, 1]
    assert rows.loc["00-run", "tries"] == 1.5 and rows.loc["00-run", "hints"] == 1
    assert "3 learners and 4 exercises" in found.chart.alt and "00-run by 2" in found.chart.alt


def test_files_that_do_not_belong_are_listed(room: Path) -> None:
    left_out = report(room, FOUR).left_out
    names = ("bob-last-week", "cut short", "newer", "quiz")
    assert [name for name in names for line in left_out if f"{name}.json'" in line] == list(names)
    assert len(left_out) == len(names)


def test_an_edited_file_is_named_and_counts_up_to_there(room: Path) -> None:
    changed(room / "ada" / "receipts.json", tries=7)
    ada = row(report(room, FOUR), "ada")
    assert ada["chain"] == "broken at 2" and "00-run" in str(ada["notes"]) and ada["passed"] == 1


def test_a_copy_of_a_neighbours_file_is_named(room: Path) -> None:
    shutil.copytree(room / "ada", room / "dan")
    changed(room / "dan" / "receipts.json", name="dan")
    found = report(room, FOUR)
    assert row(found, "dan")["chain"] == "whole"
    for name, other in (("dan", "'ada' in '"), ("ada", "'dan' in '")):
        (note,) = row(found, name)["notes"]  # type: ignore[misc]
        assert "seed" in note and other in note


def test_an_edited_second_copy_does_not_replace_the_first(room: Path) -> None:
    shutil.copytree(room / "ada", room / "ada-again")
    changed(room / "ada-again" / "receipts.json", tries=7)
    found = report(room, FOUR)
    assert list(found.learners["learner"]) == ["ada", BOB, "ada (2)", "cleo"]
    assert list(found.learners["passed"]) == [4, 2, 1, 0]


def test_two_files_under_one_name_are_told_and_not_added_up(room: Path) -> None:
    learner(room.parent, "cleo", "00-tag", file="cleo-at-home")
    found = report(room, FOUR)
    assert found.points.loc["cleo"].to_dict() == {"00": 1, "01": 0, "03": 0}
    assert found.points.loc["cleo (2)"].to_dict() == {"00": 0, "01": 0, "03": 0}
    (note,) = row(found, "cleo (2)")["notes"]  # type: ignore[misc]
    assert "name" in note and "cleo-at-home" in note


def test_points_for_moodle(room: Path) -> None:
    ada, bob, _ = csv.DictReader(io.StringIO(report(room, FOUR).gradebook("moodle")))
    points = {f"Image lab, chapter {number}": "0" for number in ("00", "01", "03")}
    points["Image lab, chapter 00"] = "2"
    assert bob == {"Username": BOB, "Email address": BOB, **points}
    assert (ada["Username"], ada["Email address"]) == ("ada", "")


def test_points_for_canvas(room: Path) -> None:
    head, possible, *rows = csv.reader(io.StringIO(report(room, FOUR).gradebook("canvas")))
    # What its importer asks of a file, and where it looks for a student.
    assert head[:5] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    assert "Points Possible" in possible[0] and possible[5:] == ["2", "1", "1"]
    assert rows[0] == ["ada", "", "", "ada", "", "2", "1", "1"]


@pytest.mark.parametrize("platform", ["moodle", "canvas"])
def test_a_name_is_no_formula(room: Path, platform: str) -> None:
    changed(room / "ada" / "receipts.json", name="=HYPERLINK(1)")
    text = report(room, FOUR).gradebook(platform)
    assert "'=HYPERLINK(1)" in text and "\n=HYPER" not in text


def test_a_folder_without_receipts(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="none'"):
        report(tmp_path / "none", FOUR)
    (tmp_path / "notes.json").write_text("{}", "utf-8")
    with pytest.raises(StateError, match=r"notes\.json'"):
        report(tmp_path, FOUR)


def test_the_report_command(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(room / "ada" / "receipts.json", name="ada\x1b[31m", tries=7)
    shutil.copy(room / "quiz.json", room / "quiz\x1b[31m.json")
    grades, chart = tmp_path / "new" / "grades.csv", tmp_path / "class.svg"
    assert cli.main(["report", str(room), "--csv", str(grades), "--chart", str(chart)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "ada\N{REPLACEMENT CHARACTER}[31m" in out
    for fact in (f"1 of {len(all_exercises())}", "broken at 2", "00-run", "quiz", "newer"):
        assert fact in out
    assert grades.read_text("utf-8").startswith("Username,Email address,")
    ElementTree.fromstring(chart.read_text("utf-8"))
    assert "cleo" in chart.read_text("utf-8")
    assert cli.main(["report", str(room), "--csv", str(room)]) == 2
    assert cli.main(["report", str(room), "--csv", str(room / "quiz.json" / "x.csv")]) == 1
