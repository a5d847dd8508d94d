"""Receipts of real answers, and the report that asks the registry for their evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from desk import Desk, forget

from labapp import cli, reset
from labapp.bench import Bench
from labapp.course import receipts
from labapp.course.exercises import Coach
from labapp.course.receipts import Attempt
from labapp.course.report import report
from labapp.errors import RegistryUnreachable
from labapp.feedback import QuietFeedback
from labapp.lab import Lab
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.state import State

EXERCISE = "00-tag"


def put(learner: Coach, *tags: str) -> None:
    """Put the slim base into the registry as the page of chapter 00, under some tags."""
    desk = Desk(learner.bench)
    for tag in tags:
        desk.copy(desk.slim, f"hello/web:{tag}")


@pytest.fixture
def learner(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coach]:
    """A learner with another state folder, on the same engine and registry."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    forget(bench, "hello/web")
    coach = Coach(replace(bench, state=State.open(tmp_path / "ada"), work=tmp_path))
    coach.receipts.rename("ada")
    yield coach
    forget(bench, "hello/web")


def test_a_real_answer_gets_a_receipt_whose_evidence_is_in_the_registry(
    learner: Coach, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    registry, folder = learner.bench.registry, tmp_path / "class"
    put(learner, "1.0")
    copy = Path("receipts.json")
    # For a grader, the receipts are left beside the notebook.
    with pytest.raises(AssertionError, match="hello/web"):
        learner.check(EXERCISE, strict=True)
    assert receipts.read(copy).passed == {}
    learner.hint(EXERCISE)
    put(learner, "mine")
    digest = registry.resolve("hello/web", "mine")
    for _ in range(2):
        assert learner.check(EXERCISE, strict=True).outcome == "Correct"
    (receipt,) = learner.receipts.read().receipts
    assert receipts.read(copy).passed == {EXERCISE: receipt}
    assert (receipt.tries, receipt.hints, receipt.solution) == (1, 1, False)
    assert Reference.parse(receipt.evidence["image"]).digest == digest

    learner.receipts.save(folder / "ada.json")
    (row,) = report(folder, [EXERCISE], registry=registry).learners.to_dict("records")
    assert (row["images"], row["verified"], row["notes"]) == (1, 1, [])
    forget(learner.bench, "hello/web")
    (row,) = report(folder, [EXERCISE], registry=registry).learners.to_dict("records")
    assert row["verified"] == 0
    (note,) = row["notes"]
    for fact in (EXERCISE, registry.address, f"hello/web@{digest}"):
        assert fact in note
    assert cli.main(["report", str(folder), "--registry", registry.address]) == 0
    assert "0 of 1" in capsys.readouterr().out
    dead = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryUnreachable, match=dead):
        report(folder, [EXERCISE], registry=Registry(dead))
    assert cli.main(["report", str(folder), "--registry", dead]) == 1


def test_an_exercise_of_another_chapter_is_no_try(learner: Coach, tmp_path: Path) -> None:
    put(learner, "1.0", "mine")
    there, elsewhere = (
        Coach(replace(learner.bench, work=tmp_path / "work" / number)) for number in ("00", "03")
    )
    verdict = elsewhere.check(EXERCISE)
    assert verdict.outcome == "NotYet" and "chapter 03" in verdict.message
    assert learner.receipts.read().attempts == {}
    assert there.check(EXERCISE).outcome == "Correct"
    lab = Lab(bench=learner.bench, coach=learner)
    assert lab.map().rows.set_index("step").loc["Push", "passed"] == 1


def test_what_cannot_be_noted_is_told_and_stops_nobody(
    learner: Coach, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = '{"format": 2, "receipts": []}'
    learner.receipts.file.write_text(newer, "utf-8")
    put(learner, "1.0", "mine")
    verdict = learner.check(EXERCISE, strict=True)
    assert verdict.outcome == "Correct" and str(learner.receipts.file) in verdict.message
    learner.hint(EXERCISE)
    learner.solution(EXERCISE)
    told = capsys.readouterr().out
    assert told.count(str(learner.receipts.file)) == 3 and told.count("Markdown") == 2
    assert learner.receipts.file.read_text("utf-8") == newer


def test_a_reset_keeps_what_was_passed(
    learner: Coach, feedback: QuietFeedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = learner.bench.state
    # This learner's state does not know of an engine that is the first lab's own.
    monkeypatch.setenv("DOCKER_HOST", learner.bench.engine.host)
    learner.receipts.note(EXERCISE, Attempt(tries=1), {})
    state.write("something-else", {})
    assert reset.carry_out(reset.plan(state)) == []
    assert state.read("something-else") == {}
    assert list(learner.receipts.read().passed) == [EXERCISE]
    everything = reset.plan(state, everything=True)
    assert reset.carry_out(everything) == []
    assert not learner.receipts.file.exists()
