"""Receipts of real answers, and the report that asks the registry for their evidence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from desk import Desk, forget

from labapp import cli
from labapp.bench import Bench
from labapp.course import receipts
from labapp.course.exercises import Coach
from labapp.course.hand_in import Place
from labapp.course.report import report
from labapp.errors import RegistryUnreachable
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.state import State

EXERCISE = "00-tag"


@pytest.fixture
def desk(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A learner with another state folder, on the same engine and registry, and a page there."""
    monkeypatch.chdir(tmp_path)
    forget(bench, "hello/web")
    desk = Desk(replace(bench, state=State.open(tmp_path / "ada"), work=tmp_path))
    desk.copy(desk.slim, "hello/web:1.0")
    yield desk
    forget(bench, "hello/web")


def test_a_real_answer_gets_a_receipt_whose_evidence_is_in_the_registry(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    learner, registry = Coach(desk.bench), desk.bench.registry
    folder, copy = Path("class"), Path("receipts.json")
    # For a grader, the receipts are left beside the notebook.
    with pytest.raises(AssertionError, match="hello/web"):
        learner.check(EXERCISE, strict=True)
    assert receipts.read(copy).passed == {}
    learner.hint(EXERCISE)
    desk.copy(desk.slim, "hello/web:mine")
    digest = desk.digest("hello/web:mine")
    for _ in range(2):
        assert learner.check(EXERCISE, strict=True).outcome == "Correct"
    (receipt,) = learner.receipts.read().receipts
    assert receipts.read(copy).passed == {EXERCISE: receipt}
    assert (receipt.tries, receipt.hints, receipt.solution) == (1, 1, False)
    assert Reference.parse(receipt.evidence["image"]).digest == digest

    learner.receipts.save(folder / "ada.json")
    (row,) = report(folder, [EXERCISE], place=Place(registry)).learners.to_dict("records")
    assert (row["images"], row["verified"], row["notes"]) == (1, 1, [])
    forget(desk.bench, "hello/web")
    (row,) = report(folder, [EXERCISE], place=Place(registry)).learners.to_dict("records")
    (note,) = row["notes"]
    assert row["verified"] == 0
    assert all(fact in note for fact in (EXERCISE, registry.address, f"hello/web@{digest}"))
    assert cli.main(["report", str(folder), "--registry", registry.address]) == 0
    assert re.search(r"1 of 25 +0 +1 ", capsys.readouterr().out)
    dead = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryUnreachable, match=dead):
        report(folder, [EXERCISE], place=Place(Registry(dead)))


def test_what_cannot_be_noted_is_told_and_stops_nobody(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = Coach(desk.bench)
    learner.receipts.file.mkdir()
    desk.copy(desk.slim, "hello/web:mine")
    assert learner.check(EXERCISE, strict=True).outcome == "Correct"
    learner.hint(EXERCISE)
    learner.solution(EXERCISE)
    told = capsys.readouterr().out
    assert told.count(f"'{learner.receipts.file}'") == 3 and told.count("Markdown") == 2
