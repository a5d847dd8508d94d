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
from labapp.errors import StateError
from labapp.exercises import all_exercises
from labapp.progress.receipts import Receipts
from labapp.progress.report import ClassReport, report
from labapp.state import State

FOUR = ("00-tag", "00-run", "01-cache", "03-pin")


def learner(folder: Path, name: str, *passed: str, file: str = "") -> Path:
    """Receipts of somebody who passed some exercises, handed in."""
    receipts = Receipts(State.open(folder / "states" / (file or name)))
    receipts.rename(name)
    for id in passed:
        receipts.note_try(id, evidence={})
    handed_in = folder / "class" / (file or name) / "receipts.json"
    receipts.save(handed_in)
    return handed_in


@pytest.fixture
def room(tmp_path: Path, prototype: Path) -> Path:
    return Path(shutil.copytree(prototype, tmp_path / "class"))


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class: ada passed all four, bob two with help, cleo none; and what is not in order."""
    tmp_path = tmp_path_factory.mktemp("room")
    ada = learner(tmp_path, "ada", *FOUR)
    early = learner(tmp_path, "bob@example.org", "00-tag")
    shutil.copy(early, tmp_path / "class" / "bob-last-week.json")
    bob = Receipts(State.open(tmp_path / "states" / "bob@example.org"))
    for number in (1, 2):
        bob.note_hint("00-run", number)
    bob.note_try("00-run")
    bob.note_try("00-run", evidence={})
    bob.note_solution("01-cache")
    bob.note_try("01-cache")
    bob.save(early)
    learner(tmp_path, "cleo")
    folder = tmp_path / "class"
    (folder / "cut short.json").write_text(ada.read_text("utf-8")[:200], "utf-8")
    (folder / "quiz.json").write_text('[{"question": "?"}]', "utf-8")
    (folder / "newer.json").write_text('{"format": 2, "receipts": []}', "utf-8")
    return folder


def changed(file: Path, *, name: str = "", tries: int = 0) -> None:
    document = json.loads(file.read_text("utf-8"))
    if name:
        document["learner"] = name
    if tries:
        document["receipts"][1]["tries"] = tries
    file.write_text(json.dumps(document), "utf-8")


def row(found: ClassReport, name: str) -> dict[str, object]:
    rows = found.learners.set_index("learner")
    return {str(key): value for key, value in rows.loc[name].items()}


def test_who_is_where(room: Path) -> None:
    found = report(room, FOUR)
    assert list(found.learners["learner"]) == ["ada", "bob@example.org", "cleo"]
    assert list(found.learners["passed"]) == [4, 2, 0]
    bob = row(found, "bob@example.org")
    assert (bob["of"], bob["tries"], bob["hints"], bob["solutions"]) == (4, 3, 2, 0)
    assert str(bob["last"]).startswith("20") and bob["chain"] == "whole"
    assert row(found, "cleo")["last"] == ""
    states = found.cells.pivot(index="learner", columns="exercise", values="state")
    assert list(states.loc["bob@example.org", list(FOUR)]) == ["alone", "hints", "tried", "open"]


def test_which_exercise_is_hard(room: Path) -> None:
    rows = report(room, FOUR).exercises.set_index("exercise")
    assert list(rows["passed"]) == [2, 2, 1, 1]
    assert list(rows["tried"]) == [2, 2, 2, 1]
    assert rows.loc["00-run", "tries"] == 1.5 and rows.loc["00-run", "hints"] == 1


def test_files_that_do_not_belong_are_listed(room: Path) -> None:
    told = "\n".join(report(room, FOUR).left_out)
    assert "cut short.json': it is cut short or damaged" in told
    assert "quiz.json': this is no receipts file" in told
    assert "newer.json': it has format 2" in told
    assert "bob-last-week.json': '" in told and "same learner and says as much" in told
    assert told.count("\n") == 3


def test_an_edited_file_is_named_and_counts_up_to_there(room: Path) -> None:
    changed(room / "ada" / "receipts.json", tries=7)
    ada = row(report(room, FOUR), "ada")
    assert ada["chain"] == "broken at 2" and ada["notes"] == ("receipt 2 (00-run) was changed",)
    assert ada["passed"] == 1


def test_a_copy_of_a_neighbours_file_is_named(room: Path) -> None:
    shutil.copytree(room / "ada", room / "dan")
    changed(room / "dan" / "receipts.json", name="dan")
    found = report(room, FOUR)
    assert row(found, "dan")["chain"] == "whole"
    (note,) = found.learners.set_index("learner")["notes"]["dan"]
    assert "the same seed as 'ada' in '" in note and "one was copied from the other" in note
    assert len(found.learners.set_index("learner")["notes"]["ada"]) == 1


def test_an_edited_second_copy_does_not_replace_the_first(room: Path) -> None:
    shutil.copytree(room / "ada", room / "ada-again")
    changed(room / "ada-again" / "receipts.json", tries=7)
    found = report(room, FOUR)
    assert list(found.learners["learner"]) == ["ada", "bob@example.org", "ada (2)", "cleo"]
    assert list(found.learners["passed"]) == [4, 2, 1, 0]


def test_two_files_under_one_name_are_told_and_not_added_up(room: Path) -> None:
    learner(room.parent, "cleo", "00-tag", file="cleo-at-home")
    found = report(room, FOUR)
    assert found.points.loc["cleo"].to_dict() == {"00": 1, "01": 0, "03": 0}
    assert found.points.loc["cleo (2)"].to_dict() == {"00": 0, "01": 0, "03": 0}
    (note,) = found.learners.set_index("learner")["notes"]["cleo (2)"]
    assert "the same name, with another seed" in note and "two machines, or two people" in note


def test_points_for_moodle(room: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(report(room, FOUR).gradebook("moodle"))))
    assert rows[1] == {
        "Username": "bob@example.org",
        "Email address": "bob@example.org",
        "Image lab, chapter 00": "2",
        "Image lab, chapter 01": "0",
        "Image lab, chapter 03": "0",
    }
    assert (rows[0]["Username"], rows[0]["Email address"]) == ("ada", "")


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


def test_the_chart_has_every_learner(room: Path) -> None:
    chart = report(room, FOUR).chart
    assert "Grid of 3 learners and 4 exercises" in chart.alt
    assert "00-run by 2" in chart.alt


def test_a_folder_without_receipts(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no such folder"):
        report(tmp_path / "none", FOUR)
    with pytest.raises(StateError, match=r"there are none\. Learners save theirs with"):
        report(tmp_path, FOUR)
    (tmp_path / "notes.json").write_text("{}", "utf-8")
    with pytest.raises(StateError, match=r"notes\.json': this is no receipts file"):
        report(tmp_path, FOUR)


def test_the_report_command(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    changed(room / "ada" / "receipts.json", name="ada\x1b[31m", tries=7)
    grades, chart = tmp_path / "new" / "grades.csv", tmp_path / "class.svg"
    assert cli.main(["report", str(room), "--csv", str(grades), "--chart", str(chart)]) == 0
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out and "ada\N{REPLACEMENT CHARACTER}[31m" in out
    assert f"1 of {len(all_exercises())}" in out and "broken at 2" in out
    assert "receipt 2 (00-run) was changed" in out
    assert "Left out: reading the receipts" in out
    assert grades.read_text("utf-8").startswith("Username,Email address,")
    ElementTree.fromstring(chart.read_text("utf-8"))
    assert "cleo" in chart.read_text("utf-8")
    assert cli.main(["report", str(room), "--csv", str(room)]) == 2
    assert cli.main(["report", str(room), "--csv", str(room / "quiz.json" / "x.csv")]) == 1
    assert "Choose a folder" in capsys.readouterr().err
