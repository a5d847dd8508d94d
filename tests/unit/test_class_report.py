"""The report on a class: tables, points for learning platforms, and files that don't belong."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from labapp import cli
from labapp.course.exercises import all_exercises, find_exercise
from labapp.course.hand_in import Place
from labapp.course.receipts import Attempt, Receipts
from labapp.course.report import report
from labapp.errors import StateError
from labapp.registry.client import Registry
from labapp.registry.manifests import digest_of
from labapp.state import State

FOUR = ("00-tag", "00-run", "01-cache", "03-pin")
BOB = "bob@example.org"


@dataclass(frozen=True)
class Made(Place):
    """A registry that has some images."""

    there: frozenset[str] = frozenset()

    def has(self, image: str) -> bool:
        return image in self.there


def image(id: str, who: str) -> str:
    return f"{find_exercise(id).evidence}@{digest_of(f'{id} of {who}'.encode())}"


def named(id: str, who: str) -> dict[str, str]:
    """The evidence of somebody's right answer."""
    return {"image": f"localhost:5000/{image(id, who)}"}


def learner(
    folder: Path,
    name: str,
    *passed: str,
    file: str = "",
    evidence: Callable[[str, str], dict[str, str]] = named,
) -> Receipts:
    """Receipts of somebody who passed some exercises, handed in."""
    receipts = Receipts(State.open(folder / "states" / (file or name)))
    receipts.rename(name)
    for id in passed:
        receipts.note(id, Attempt(tries=1), evidence(id, file or name))
    receipts.save(folder / "class" / (file or name) / "receipts.json")
    return receipts


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class: ada passed all four, bob two with help, cleo none; and what is not in order."""
    tmp_path = tmp_path_factory.mktemp("room")
    folder = tmp_path / "class"
    learner(tmp_path, "ada", *FOUR)
    learner(tmp_path, "cleo")
    bob = learner(tmp_path, BOB, "00-tag")
    bob.save(folder / "bob-last-week.json")
    for hints in (1, 2):
        bob.note("00-run", Attempt(hints=hints))
    bob.note("00-run", Attempt(tries=1))
    bob.note("00-run", Attempt(tries=1), named("00-run", BOB))
    bob.note("01-cache", Attempt(tries=1, solution=True))
    bob.save(folder / BOB / "receipts.json")
    whole = (folder / "ada" / "receipts.json").read_text("utf-8")
    (folder / "cut short.json").write_text(whole[:200], "utf-8")
    (folder / "quiz.json").write_text('[{"question": "?"}]', "utf-8")
    return folder


@pytest.fixture
def room(tmp_path: Path, prototype: Path) -> Path:
    return Path(shutil.copytree(prototype, tmp_path / "class"))


def changed(room: Path, source: str, target: str, *, name: str = "", tries: int = 0) -> None:
    """Hand in a learner's file once more, or instead, with some changes."""
    document = json.loads((room / source / "receipts.json").read_text("utf-8"))
    document["learner"] = name or document["learner"]
    document["receipts"][1]["tries"] += tries
    (room / target).mkdir(exist_ok=True)
    (room / target / "receipts.json").write_text(json.dumps(document), "utf-8")


def test_who_is_where_and_which_exercise_is_hard(room: Path) -> None:
    found = report(room, FOUR)
    learners = found.learners.set_index("learner")
    assert dict(learners["passed"]) == {"ada": 4, BOB: 2, "cleo": 0}
    facts = {"of": 4, "tries": 3, "hints": 2, "solutions": 0, "chain": "whole", "notes": []}
    assert dict(learners.loc[BOB, list(facts)]) == facts
    assert learners.loc[BOB, "last"].startswith("20") and learners.loc["cleo", "last"] == ""
    states = found.cells.pivot(index="learner", columns="exercise", values="state")
    assert list(states.loc[BOB, list(FOUR)]) == ["alone", "hints", "tried", "open"]
    rows = found.exercises.set_index("exercise")
    assert list(rows["passed"]) == [2, 2, 1, 1] and list(rows["tried"]) == [2, 2, 2, 1]
    assert tuple(rows.loc["00-run", ["tries", "hints", "solutions"]]) == (1.5, 1, 0)
    assert (
        "reload" not in found.page()
        and "3 learners" in found.page()
        and 'title="00-run: hints, ' in found.page()
    )
    names = {re.search(r"(\w+)\.json'", line)[1] for line in found.left_out}
    assert names == {"week", "short", "quiz"} and len(found.left_out) == 3


def test_edited_files_count_up_to_there_and_copies_are_named(room: Path) -> None:
    changed(room, "ada", "ada-again", tries=7)
    changed(room, "ada", "dan", name="dan")
    learner(room.parent, "cleo", "00-tag", file="cleo-at-home")
    found = report(room, FOUR)
    learners = found.learners.set_index("learner")
    passed = {"ada": 4, "dan": 4, BOB: 2, "ada (2)": 1, "cleo": 1, "cleo (2)": 0}
    assert dict(learners["passed"]) == passed
    assert dict(learners["chain"]) == {**dict.fromkeys(passed, "whole"), "ada (2)": "broken at 2"}
    broken, twin, *images = learners.loc["ada (2)", "notes"]
    assert "00-run" in broken and "'ada' in '" in twin
    # A neighbour's file under another name has a whole chain, and the neighbour's seed.
    note, shared, _ = learners.loc["dan", "notes"]
    assert "seed" in note and "'ada' in '" in note
    assert "has, too: " in shared and len(images) == 2
    assert "and 1 more" in learners.loc["ada", "notes"][0]
    # Two files under one name are told, and not added up.
    (note,) = learners.loc["cleo (2)", "notes"]
    assert "name" in note and "cleo-at-home" in note
    assert "\ncleo,1,0,0\ncleo (2),0,0,0" in found.gradebook("moodle")


def one_image(id: str, who: str) -> dict[str, str]:
    return {"image": f"localhost:5000/{image('00-tag', 'ada')}"}


def same_name(id: str, who: str) -> dict[str, str]:
    """One image under the name that each exercise asks for."""
    digest = image("05-mine", "ada").partition("@")[2]
    return {"image": f"localhost:5000/{find_exercise(id).evidence}@{digest}"}


FORGED: list[tuple[Callable[[str, str], dict[str, str]], int, str]] = [
    # Whose receipts, how many exercises are verified, and what a note tells.
    (named, 22, ""),
    (lambda id, who: {}, 0, "no image is named"),
    (lambda id, who: {"image": "localhost:5000/hello/web:mine"}, 0, "no image is named"),
    (lambda id, who: {"note": named(id, who)["image"]}, 0, "no image is named"),
    (one_image, 2, "no image is named"),
    (same_name, 22, "one image for"),
    (lambda id, who: named(id, "nobody"), 0, "does not have"),
    (lambda id, who: named(id, "ada"), 22, "'ada'"),
]


@pytest.mark.parametrize(("evidence", "verified", "fact"), FORGED)
def test_points_are_for_what_the_registry_has(
    tmp_path: Path,
    evidence: Callable[[str, str], dict[str, str]],
    verified: int,
    fact: str,
) -> None:
    """Chains that are whole, of all exercises: forged by who has read the lab's source."""
    ids = list(all_exercises())
    learner(tmp_path, "ada", *FOUR)
    learner(tmp_path, "eve", *ids, evidence=evidence)
    repositories = {find_exercise(id).evidence for id in ids}
    there = {image(id, who) for id in ids for who in ("ada", "eve")}
    there |= {f"{name}@{image('05-mine', 'ada').partition('@')[2]}" for name in repositories}
    place = Made(Registry("localhost:5000"), there=frozenset(there))
    found = report(tmp_path / "class", ids, place=place)
    eve = found.learners.set_index("learner").loc["eve"]
    assert (eve["passed"], eve["verified"], eve["claimed"]) == (25, verified, 25 - verified)
    assert (fact in " ".join(eve["notes"])) if fact else eve["notes"] == []
    rows = list(csv.DictReader(io.StringIO(found.gradebook("moodle"))))
    (points,) = [row for row in rows if row.pop("Username") == "eve"]
    assert sum(map(int, points.values())) == verified
    _, possible, *_ = csv.reader(io.StringIO(found.gradebook("canvas")))
    assert sum(map(int, possible[5:])) == 22


def test_points_for_learning_platforms(room: Path) -> None:
    changed(room, "ada", "ada", name="=HYPERLINK(1)")
    found = report(room, FOUR)
    rows = list(csv.DictReader(io.StringIO(found.gradebook("moodle"))))
    points = {f"Image lab, chapter {number} (claimed)": "0" for number in ("00", "01", "03")}
    points["Image lab, chapter 00 (claimed)"] = "2"
    assert rows[1] == {"Username": BOB, **points}
    # A name is no formula.
    assert rows[0]["Username"] == "'=HYPERLINK(1)"
    head, possible, ada, *_ = csv.reader(io.StringIO(found.gradebook("canvas")))
    # What its importer asks of a file, and where it looks for a student.
    assert head[:5] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    assert "Points Possible" in possible[0] and possible[5:] == ["2", "1", "1"]
    assert ada == ["'=HYPERLINK(1)", "", "", "'=HYPERLINK(1)", "", "2", "1", "1"]


def test_a_folder_without_receipts(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}", "utf-8")
    for folder, fact in ((tmp_path / "none", "none'"), (tmp_path, r"notes\.json'")):
        with pytest.raises(StateError, match=fact):
            report(folder, FOUR)


def test_the_report_command(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(room, "ada", "ada", name="ada\x1b[31m", tries=7)
    shutil.copy(room / "quiz.json", room / "quiz\a.json")
    grades, page = tmp_path / "new" / "grades.csv", tmp_path / "class.html"
    assert cli.main(["report", str(room), "--csv", str(grades), "--page", str(page)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\a" not in out and "ada\N{REPLACEMENT CHARACTER}[31m" in out
    for fact in (f"1 of {len(all_exercises())}", "broken at 2", "00-run", "quiz"):
        assert fact in out
    assert grades.read_text("utf-8").startswith("Username,")
    assert "cleo" in page.read_text("utf-8") and "\x1b" not in page.read_text("utf-8")
    assert cli.main(["report", str(room), "--csv", str(room / "quiz.json" / "x.csv")]) == 1
