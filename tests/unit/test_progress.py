"""Receipts: noted, chained, damaged, edited and graded by; progress, and the journey map."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labapp import cli
from labapp.course.coach import Submission, submission
from labapp.course.exercises import all_exercises
from labapp.course.progress import journey_map, overview
from labapp.course.receipts import Attempt, Receipts, read
from labapp.errors import ExerciseError, StateError
from labapp.state import State

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
THREE = ("00-tag", "00-run", "01-cache")
IMAGE = "localhost:5000/hello/web@sha256:" + "a" * 64

LAST = "sha256:4d2b8376ab1c0857e3fddbbcdf09dc6394afb8be56a58007370c7e1db7ed4df8"

Document = dict[str, Any]


@pytest.fixture
def receipts(tmp_path: Path) -> Receipts:
    return Receipts(State.open(tmp_path / "state"))


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Receipts:
    """Receipts of a learner who passed three exercises, the second one with some trouble."""
    receipts = Receipts(State.open(tmp_path_factory.mktemp("state")))
    receipts.rename("ada")
    receipts.note_try("00-tag", evidence={"image": IMAGE})
    receipts.note_try("00-run")
    for number in (1, 2, 1):
        receipts.note_hint("00-run", number)
    receipts.note_solution("00-run")
    receipts.note_try("00-run", evidence={})
    receipts.note_try("01-cache", evidence={})
    return receipts


@pytest.fixture
def three(tmp_path: Path, prototype: Receipts) -> Receipts:
    shutil.copytree(prototype.state.folder, tmp_path / "state")
    return Receipts(State.open(tmp_path / "state"))


def edit(file: Path, change: Callable[[Document], object]) -> None:
    document = json.loads(file.read_text("utf-8"))
    change(document)
    file.write_text(json.dumps(document), "utf-8")


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
    assert again.attempts == {"03-pin": Attempt(tries=1, hints=1)} and again.passed == {}


def test_a_name_may_be_changed_at_any_time(three: Receipts) -> None:
    three.rename("  Ada   Lovelace ")
    assert three.read().learner == "Ada Lovelace" and three.read().broken is None
    for bad in ("", "  ", "x" * 101, "a\x1bb"):
        with pytest.raises(StateError):
            three.rename(bad)


def test_seeds_differ_by_learner_and_exercise_and_stay(tmp_path: Path) -> None:
    labs = [Receipts(State.open(tmp_path / name)) for name in ("one", "two", "one")]
    one, two, again = ([lab.seed_for(name) for name in THREE] for lab in labs)
    assert len({*one, *two}) == 6 and one == again
    assert all(0 <= seed < 2**32 for seed in one)


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
}


@pytest.mark.parametrize(("change", "number"), CHANGES.values(), ids=CHANGES)
def test_an_edited_file_names_where(
    three: Receipts, change: Callable[[Document], object], number: int
) -> None:
    edit(three.file, change)
    record = three.read()
    assert record.broken is not None and record.broken.number == number
    assert len(record.sound) == max(number - 1, 0)


def test_a_break_stays_after_further_receipts(three: Receipts) -> None:
    edit(three.file, lambda document: document["receipts"].pop())
    three.note_try("02-sent", evidence={})
    record = three.read()
    assert record.broken is not None and record.broken.number == 3
    assert sorted(record.passed) == ["00-run", "00-tag"]


# ---------------------------------------------------------------- what can't be read

DAMAGES: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "a field gone": lambda text: text.replace('"seed"', '"sead"'),
    "a wrong type": lambda text: text.replace('"tries": 2', '"tries": "2"'),
    "no text as evidence": lambda text: text.replace(f'"{IMAGE}"', "7"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_put_aside_never_overwritten(
    three: Receipts, damage: Callable[[str], str]
) -> None:
    whole = three.file.read_text("utf-8")
    for count in (1, 2):
        three.file.write_text(damage(whole), "utf-8")
        three.note_try("02-sent", evidence={})
        assert list(three.read().passed) == ["02-sent"]
        assert [file.read_text("utf-8") for file in three.damaged] == [damage(whole)] * count


def test_a_file_of_a_newer_lab_is_left_alone(three: Receipts) -> None:
    edit(three.file, lambda document: document.update(format=2))
    before = three.file.read_text("utf-8")
    with pytest.raises(StateError, match=r"\b2\b.*\b1\b"):
        three.note_try("02-sent", evidence={})
    assert three.file.read_text("utf-8") == before and three.damaged == ()


def test_a_folder_that_cannot_be_written(three: Receipts) -> None:
    lock = three.state.path("receipts.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(StateError, match="LABAPP_STATE"):
        three.note_try("02-sent")


def test_a_copy_to_hand_in(three: Receipts, tmp_path: Path) -> None:
    copy = tmp_path / "new" / "ada.json"
    three.save(copy)
    assert read(copy) == three.read()
    with pytest.raises(StateError, match=str(tmp_path)):
        three.save(tmp_path)


# ---------------------------------------------------------------- progress and the journey map


def test_progress_says_where_to_go_on(three: Receipts) -> None:
    three.note_try("01-context")
    progress = overview(three, NOTEBOOKS)
    rows = progress.rows.set_index("exercise")
    states = list(rows.loc[[*THREE, "01-context", "02-sent"], "state"])
    assert states == ["passed", "passed", "passed", "tried", "open"]
    assert progress.next == "01-context" and rows.loc["01-context", "chapter"] == "01_build"
    for shown in (repr(progress), progress._repr_html_()):
        for fact in ("ada: 3 of 26", "✓ 00-tag", "… 01-context", "○ 02-sent", "3 tries, 2 hints"):
            assert fact in shown
    assert str(three.file) in repr(progress)
    assert '<a href="01_build.ipynb">' in progress._repr_html_()
    assert progress.notes == ()


def test_progress_when_all_is_passed(receipts: Receipts) -> None:
    for id in all_exercises():
        receipts.note_try(id, evidence={})
    assert overview(receipts, NOTEBOOKS).next is None


def test_progress_tells_what_is_wrong_with_the_receipts(three: Receipts) -> None:
    edit(three.file, lambda document: document["receipts"][1].update(tries=1))
    (note,) = overview(three, NOTEBOOKS).notes
    assert "00-run" in note and note in repr(overview(three, NOTEBOOKS))
    three.file.write_text("{", "utf-8")
    (note,) = overview(three, NOTEBOOKS).notes
    assert "receipts.damaged-1.json" in note and str(three.file) in note


def test_a_name_is_shown_and_not_obeyed(receipts: Receipts) -> None:
    receipts.rename("<script>x</script>")
    assert "<script>" not in overview(receipts, NOTEBOOKS)._repr_html_()


def test_each_exercise_lights_one_step() -> None:
    lit = journey_map(all_exercises())
    assert lit.rows["exercises"].sum() == len(all_exercises()) and lit.rows["exercises"].min() > 1
    assert set(lit.rows["left"]) == {""}
    rows = journey_map(["03-pin"]).rows.set_index("step")
    assert (rows.loc["Pull → run", "passed"], rows.loc["Pull → run", "left"]) == (1, "06-gate")
    assert rows["passed"].sum() == 1


def test_a_step_is_lit_when_all_its_exercises_are_passed() -> None:
    half, lit = journey_map(["03-pin"]), journey_map(["03-pin", "06-gate"])
    assert "Lit" not in half.chart.alt and "Lit: Pull → run. " in lit.chart.alt
    assert lit.chart.title.startswith("1 of 9")


def test_the_map_is_a_table_too() -> None:
    shown = journey_map([])
    html = shown._repr_html_()
    assert html.count('<th scope="row"') == len(shown.rows) == 9
    for row in shown.rows.itertuples():
        assert str(row.control) in html
    for id in all_exercises():
        assert id in html


# ---------------------------------------------------------------- where a notebook is graded


@pytest.fixture
def graded(three: Receipts, tmp_path: Path) -> Submission:
    three.save(tmp_path / "handed in" / "receipts.json")
    return Submission(tmp_path / "handed in" / "receipts.json")


def test_a_grader_judges_by_receipts(graded: Submission) -> None:
    verdict = graded.check("00-tag", strict=True)
    assert verdict.outcome == "Correct" and verdict.evidence == {"image": IMAGE}
    with pytest.raises(AssertionError, match="03-pin"):
        graded.check("03-pin", "any answer", strict=True)
    assert graded.check("03-pin").outcome == "NotYet"
    with pytest.raises(ExerciseError):
        graded.check("99-none")
    with pytest.raises(ExerciseError, match=r"lab\.build"):
        graded.build("x")
    graded.hint("00-tag"), graded.solution("00-tag"), graded.clean_up()


def test_a_grader_is_told_what_is_wrong(graded: Submission) -> None:
    edit(graded.file, lambda d: d["receipts"][1].update(hints=0))
    assert graded.check("00-tag").outcome == "Correct"
    verdict = graded.check("01-cache")
    assert verdict.outcome == "Wrong" and "00-run" in verdict.message
    graded.file.unlink()
    assert graded.check("00-tag").outcome == "NotYet"


@pytest.mark.parametrize(
    ("variables", "file"),
    [
        ({}, None),
        # A learner's own validation has the lab.
        ({"NBGRADER_EXECUTION": "validate"}, None),
        ({"NBGRADER_EXECUTION": "autograde"}, "receipts.json"),
        ({"NBGRADER_EXECUTION": "autograde", "LABAPP_RECEIPTS": "mine.json"}, "mine.json"),
    ],
)
def test_when_a_notebook_is_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], file: str | None
) -> None:
    for name in ("LABAPP_RECEIPTS", "NBGRADER_EXECUTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert submission(tmp_path) == (Submission(tmp_path / file) if file else None)


def test_the_progress_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    copy, picture = tmp_path / "ada.json", tmp_path / "map.svg"
    argv = ["progress", "--name", "ada", "--save", str(copy), "--map", str(picture)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "ada: 0 of 26" in out and "00-tag" in out and "00_start_here.ipynb" in out
    assert read(copy).learner == "ada" and "<svg" in picture.read_text("utf-8")
    assert cli.main(["progress", "--map", str(tmp_path / "map.txt")]) == 1
    edit(Receipts(State.open()).file, lambda document: document.update(format=9))
    assert cli.main(["progress"]) == 1
