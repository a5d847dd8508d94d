"""Receipts: noted, chained, damaged, edited and shared; the journey, and what is shown of both."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labapp import cli
from labapp.errors import ExerciseError, StateError
from labapp.exercises import all_exercises
from labapp.progress import chain
from labapp.progress.grading import Submission, submission
from labapp.progress.journey import STEPS, journey_map
from labapp.progress.overview import overview
from labapp.progress.receipts import Receipts
from labapp.state import State

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
THREE = ("00-tag", "00-run", "01-cache")
IMAGE = "localhost:5000/hello/web@sha256:" + "a" * 64


@pytest.fixture
def receipts(tmp_path: Path) -> Receipts:
    return Receipts(State.open(tmp_path / "state"))


@pytest.fixture
def three(tmp_path: Path, prototype: Receipts) -> Receipts:
    shutil.copytree(prototype.state.folder, tmp_path / "state")
    return Receipts(State.open(tmp_path / "state"))


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Receipts:
    """Receipts of a learner who passed three exercises, the second one with some trouble."""
    receipts = Receipts(State.open(tmp_path_factory.mktemp("state")))
    receipts.rename("ada")
    receipts.note_try("00-tag", evidence={"image": IMAGE})
    receipts.note_try("00-run")
    receipts.note_hint("00-run", 1)
    receipts.note_hint("00-run", 2)
    receipts.note_hint("00-run", 1)
    receipts.note_solution("00-run")
    receipts.note_try("00-run", evidence={})
    receipts.note_try("01-cache", evidence={})
    return receipts


def edit(receipts: Receipts, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(receipts.file.read_text("utf-8"))
    change(document)
    receipts.file.write_text(json.dumps(document), "utf-8")


# ---------------------------------------------------------------- receipts


def test_a_receipt_tells_what_it_took(three: Receipts) -> None:
    record = three.read()
    assert [receipt.exercise for receipt in record.sound] == list(THREE)
    tag, run, _ = record.receipts
    assert (tag.tries, tag.hints, tag.solution) == (1, 0, False)
    assert (run.tries, run.hints, run.solution) == (2, 2, True)
    assert tag.evidence == {"image": IMAGE}
    assert tag.time.endswith("+00:00") and tag.lab == three.state.lab_id
    assert record.broken is None and record.attempts == {}


def test_what_is_passed_stays_as_it_is(three: Receipts) -> None:
    before = three.read()
    three.note_try("00-tag")
    three.note_try("00-tag", evidence={"image": "another"})
    three.note_solution("00-tag")
    three.note_hint("00-tag", 2)
    assert three.read() == before


def test_what_is_not_passed_is_kept_too(receipts: Receipts) -> None:
    receipts.note_try("03-pin")
    receipts.note_hint("03-pin", 1)
    again = Receipts(State.open(receipts.state.folder)).read()
    assert again.attempts == {"03-pin": chain.Attempt(tries=1, hints=1)}
    assert again.passed == {}


def test_a_name_may_be_changed_at_any_time(three: Receipts) -> None:
    three.rename("  Ada   Lovelace ")
    assert three.read().learner == "Ada Lovelace"
    assert three.read().broken is None
    for bad in ("", "  ", "x" * 101, "a\x1bb"):
        with pytest.raises(StateError, match="naming the learner"):
            three.rename(bad)


def test_seeds_differ_by_learner_and_exercise_and_stay(tmp_path: Path) -> None:
    labs = [Receipts(State.open(tmp_path / name)) for name in ("one", "two")]
    drawn = {lab.seed_for(name) for lab in labs for name in THREE}
    assert len(drawn) == 6 and all(0 <= seed < 2**32 for seed in drawn)
    again = Receipts(State.open(tmp_path / "one"))
    assert [again.seed_for(name) for name in THREE] == [labs[0].seed_for(n) for n in THREE]


def note_many(folder: str, name: str) -> None:
    receipts = Receipts(State.open(Path(folder)))
    for number in range(8):
        receipts.note_try(f"{name}-{number}", evidence={})


def test_two_kernels_at_once_lose_nothing(receipts: Receipts) -> None:
    folder = str(receipts.state.folder)
    fork = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    kernels = [fork.Process(target=note_many, args=(folder, name)) for name in ("a", "b")]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join(30)
    record = receipts.read()
    assert sorted(record.passed) == sorted(f"{k}-{n}" for k in "ab" for n in range(8))
    assert record.broken is None


# ---------------------------------------------------------------- what was changed is noticed

CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], int, str]] = [
    ("tries", lambda d: d["receipts"][1].update(tries=1), 2, "receipt 2 (00-run) was changed"),
    ("evidence", lambda d: d["receipts"][0].update(evidence={}), 1, "1 (00-tag) was changed"),
    ("the last", lambda d: d["receipts"][2].update(hints=-1), 3, "3 (01-cache) was changed"),
    ("taken out", lambda d: d["receipts"].pop(1), 2, "receipt 2 is missing"),
    ("the first taken out", lambda d: d["receipts"].pop(0), 1, "receipt 1 is missing"),
    ("the last taken out", lambda d: d["receipts"].pop(), 3, "receipt 3 is missing"),
    ("all taken out", lambda d: d["receipts"].clear(), 1, "receipt 1 is missing"),
    ("another seed", lambda d: d.update(seed=1), 0, "the seed"),
    ("another lab", lambda d: d.update(lab="00000000"), 0, "the lab"),
    ("swapped", lambda d: d["receipts"].reverse(), 1, "receipt 1 is missing"),
    (
        "invented",
        lambda d: d["receipts"].append({**d["receipts"][2], "number": 4, "exercise": "03-pin"}),
        3,
        "3 (01-cache) was changed",
    ),
]


@pytest.mark.parametrize(
    ("change", "number", "text"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_an_edited_file_names_where(
    three: Receipts, change: Callable[[dict[str, Any]], object], number: int, text: str
) -> None:
    edit(three, change)
    broken = three.read().broken
    assert broken is not None
    assert broken.number == number
    assert text in broken.text
    assert len(three.read().sound) == max(number - 1, 0)


def test_a_break_stays_after_further_receipts(three: Receipts) -> None:
    edit(three, lambda document: document["receipts"].pop())
    three.note_try("02-sent", evidence={})
    broken = three.read().broken
    assert broken is not None and broken.text == "receipt 3 is missing"
    assert sorted(three.read().passed) == ["00-run", "00-tag"]


# ---------------------------------------------------------------- what can't be read


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"seed"', '"sead"'),
        lambda text: text.replace('"tries": 2', '"tries": "2"'),
    ],
    ids=["cut short", "empty", "a list", "a field gone", "a wrong type"],
)
def test_a_damaged_file_is_put_aside_never_overwritten(
    three: Receipts, damage: Callable[[str], str]
) -> None:
    for _ in range(2):
        text = damage(three.file.read_text("utf-8"))
        three.file.write_text(text, "utf-8")
        three.note_try("00-tag", evidence={})
        assert list(three.read().passed) == ["00-tag"]
        assert text in [file.read_text("utf-8") for file in three.damaged]
        if not text or text == "[]":
            break
        three.note_try("00-run")
        three.note_try("00-run", evidence={})


def test_a_file_of_a_newer_lab_is_left_alone(three: Receipts) -> None:
    edit(three, lambda document: document.update(format=2))
    before = three.file.read_text("utf-8")
    with pytest.raises(StateError, match="has format 2, and this lab reads format 1"):
        three.note_try("02-sent", evidence={})
    assert three.file.read_text("utf-8") == before and three.damaged == ()


def test_a_folder_that_cannot_be_written(three: Receipts) -> None:
    lock = three.state.path("receipts.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(StateError, match="Make the folder writable"):
        three.note_try("02-sent")


def test_a_copy_to_hand_in(three: Receipts, tmp_path: Path) -> None:
    copy = tmp_path / "new" / "ada.json"
    three.save(copy)
    assert chain.read(copy) == three.read()
    with pytest.raises(StateError, match="Choose a folder"):
        three.save(tmp_path)


# ---------------------------------------------------------------- progress and the journey map


def test_progress_says_where_to_go_on(three: Receipts) -> None:
    three.note_try("01-context")
    progress = overview(three, NOTEBOOKS)
    assert progress.summary.startswith("ada: 3 of ")
    assert progress.next == "01-context"
    assert progress.advice == "Go on with 01-context, in 01_build.ipynb."
    states = dict(zip(progress.rows["exercise"], progress.rows["state"], strict=True))
    assert [states[id] for id in (*THREE, "01-context", "02-sent")] == [
        *["passed"] * 3, "tried", "open",
    ]  # fmt: skip
    assert "00_start_here  ✓ 00-tag  ✓ 00-run  3 tries, 2 hints, 1 solution seen" in repr(progress)
    assert '<a href="01_build.ipynb">' in progress._repr_html_()
    assert progress.notes == ()


def test_progress_when_all_is_passed(receipts: Receipts) -> None:
    for id in all_exercises():
        receipts.note_try(id, evidence={})
    progress = overview(receipts, NOTEBOOKS)
    assert progress.next is None and progress.advice == "All exercises are passed."


def test_progress_tells_what_is_wrong_with_the_receipts(three: Receipts) -> None:
    edit(three, lambda document: document["receipts"][1].update(tries=1))
    (note,) = overview(three, NOTEBOOKS).notes
    assert "receipt 2 (00-run) was changed. What comes after does not count" in note
    three.file.write_text("{", "utf-8")
    (note,) = overview(three, NOTEBOOKS).notes
    assert "receipts.damaged-1.json" in note and str(three.file) in note


def test_a_name_is_shown_and_not_obeyed(receipts: Receipts) -> None:
    receipts.rename("<script>x</script>")
    assert "<script>" not in overview(receipts, NOTEBOOKS)._repr_html_()


def test_each_exercise_lights_one_step() -> None:
    mapped = [id for step in STEPS for id in step.exercises]
    assert len(mapped) == len(set(mapped))
    written = {id[:2] for id in all_exercises()}
    assert sorted(id for id in mapped if id[:2] in written) == sorted(all_exercises())


def test_a_step_lights_up_when_its_exercises_pass() -> None:
    pull = next(step for step in STEPS if step.name == "Pull")
    half, lit = journey_map(pull.exercises[:1]), journey_map(pull.exercises)
    row = lit.rows.set_index("step").loc["Pull"]
    assert row["passed"] == row["exercises"] == 2 and row["left"] == ""
    assert half.rows.set_index("step").loc["Pull", "left"] == pull.exercises[1]
    assert half.chart.title.endswith("None is lit yet")
    assert lit.chart.title == f"1 of {len(STEPS)} steps is lit"
    assert "Lit: Pull. " in lit.chart.alt
    assert journey_map([id for s in STEPS for id in s.exercises]).chart.title.startswith("All 9")


def test_the_map_is_a_table_too() -> None:
    html = journey_map([])._repr_html_()
    assert html.count('<th scope="row"') == len(STEPS)
    for step in STEPS:
        assert step.control in html and ", ".join(step.exercises) in html
    assert re.search(r'class="labapp-chart" alt="[^"]{100,}"', html)


# ---------------------------------------------------------------- where a notebook is graded


@pytest.fixture
def graded(three: Receipts, tmp_path: Path) -> Submission:
    three.save(tmp_path / "handed in" / "receipts.json")
    return Submission(tmp_path / "handed in" / "receipts.json")


def test_a_grader_judges_by_receipts(graded: Submission) -> None:
    verdict = graded.check("00-tag", strict=True)
    assert verdict.outcome == "Correct" and verdict.evidence == {"image": IMAGE}
    with pytest.raises(AssertionError, match="have none for 03-pin"):
        graded.check("03-pin", "any answer", strict=True)
    assert graded.check("03-pin").outcome == "NotYet"
    with pytest.raises(ExerciseError, match="there is none"):
        graded.check("99-none")
    with pytest.raises(ExerciseError, match=r"using 'lab\.build': this notebook is being graded"):
        graded.build("x")
    graded.hint("00-tag"), graded.solution("00-tag"), graded.clean_up()


def test_a_grader_is_told_what_is_wrong(graded: Submission) -> None:
    edit(Receipts(State(graded.file.parent, "")), lambda d: d["receipts"][1].update(hints=0))
    assert graded.check("00-tag").outcome == "Correct"
    verdict = graded.check("01-cache")
    assert verdict.outcome == "Wrong" and "receipt 2 (00-run) was changed" in verdict.message
    graded.file.unlink()
    verdict = graded.check("00-tag")
    assert verdict.outcome == "NotYet" and "no 'receipts.json' beside" in verdict.message


def test_when_a_notebook_is_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABAPP_RECEIPTS", raising=False)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    assert submission(tmp_path) is None
    monkeypatch.setenv("NBGRADER_EXECUTION", "validate")
    assert submission(tmp_path) is None, "a learner's own validation has the lab"
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert submission(tmp_path) == Submission(tmp_path / "receipts.json")
    monkeypatch.setenv("LABAPP_RECEIPTS", "mine.json")
    assert submission(tmp_path) == Submission(tmp_path / "mine.json")


# ---------------------------------------------------------------- the commands


def test_the_progress_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    copy, picture = tmp_path / "ada.json", tmp_path / "map.svg"
    argv = ["progress", "--name", "ada", "--save", str(copy), "--map", str(picture)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "ada: 0 of" in out and "Go on with 00-tag, in 00_start_here.ipynb" in out
    assert chain.read(copy).learner == "ada"
    assert "None is lit yet" in picture.read_text("utf-8")
    assert cli.main(["progress", "--map", str(tmp_path / "map.txt")]) == 1
    assert "PNG or SVG" in capsys.readouterr().err
    edit(Receipts(State.open()), lambda document: document.update(format=9))
    assert cli.main(["progress"]) == 1
    assert "has format 9" in capsys.readouterr().err
