"""Receipts of real answers, and the report that asks the registry for their evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labapp import cli, reset
from labapp.bench import Bench
from labapp.course import receipts
from labapp.course.coach import Coach
from labapp.course.report import report
from labapp.errors import NotInRegistry, RegistryUnreachable
from labapp.feedback import QuietFeedback
from labapp.journey import transfer
from labapp.lab import Lab
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.state import State

EXERCISE = "00-tag"

Make = Callable[[str], Coach]


def put(bench: Bench, *tags: str) -> str:
    """Put the slim base into the registry as the page of chapter 00, under some tags."""
    base = bench.base("python:3.13-slim")
    held = bench.registry.image(base).manifest
    for blob in held.blobs:
        bench.registry.mount_blob("hello/web", blob.digest, base.repository)
    for tag in tags:
        bench.registry.put_manifest("hello/web", tag, held.raw, held.media_type)
    return held.digest


def take(bench: Bench) -> None:
    """Take what is in the page's repository out of the registry."""
    if "hello/web" in bench.registry.repositories():
        for tag in bench.registry.tags("hello/web"):
            try:
                digest = bench.registry.resolve("hello/web", tag)
            except NotInRegistry:
                continue
            bench.registry.delete_manifest("hello/web", digest)


@pytest.fixture
def learner(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make a learner: another state folder, on the same engine and registry."""
    (tmp_path / "notebooks").mkdir()
    transfer.remove(bench.engine, f"{bench.registry.address}/hello/web:mine")
    monkeypatch.chdir(tmp_path / "notebooks")
    take(bench)

    def make(name: str) -> Coach:
        coach = Coach(replace(bench, state=State.open(tmp_path / name), work=tmp_path))
        coach.receipts.rename(name)
        return coach

    yield make
    take(bench)


def test_a_real_answer_gets_a_receipt_whose_evidence_is_in_the_registry(
    learner: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    coach = learner("ada")
    registry, folder = coach.bench.registry, tmp_path / "class"
    put(coach.bench, "1.0")
    assert coach.check(EXERCISE).outcome == "NotYet"
    coach.hint(EXERCISE)
    digest = put(coach.bench, "1.0", "mine")
    assert coach.check(EXERCISE).outcome == "Correct"
    assert coach.check(EXERCISE).outcome == "Correct"
    (receipt,) = coach.receipts.read().receipts
    assert (receipt.tries, receipt.hints, receipt.solution) == (1, 1, False)
    assert Reference.parse(receipt.evidence["image"]).digest == digest

    coach.receipts.save(folder / "ada.json")
    (row,) = report(folder, [EXERCISE], registry=registry).learners.to_dict("records")
    assert (row["images"], row["verified"], row["notes"]) == (1, 1, ())
    take(coach.bench)
    (row,) = report(folder, [EXERCISE], registry=registry).learners.to_dict("records")
    assert row["verified"] == 0
    (note,) = row["notes"]
    for fact in (EXERCISE, registry.address, f"hello/web@{digest}"):
        assert fact in note
    assert cli.main(["report", str(folder), "--registry", registry.address]) == 0
    assert "0 of 1" in capsys.readouterr().out


def test_a_registry_that_does_not_answer(learner: Make, tmp_path: Path) -> None:
    coach = learner("ada")
    coach.receipts.note_try(EXERCISE, evidence={"image": f"x:1/a@sha256:{'a' * 64}"})
    coach.receipts.save(tmp_path / "class" / "ada.json")
    dead = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryUnreachable, match=dead):
        report(tmp_path / "class", [EXERCISE], registry=Registry(dead))
    assert cli.main(["report", str(tmp_path / "class"), "--registry", dead]) == 1


def test_strict_raises_and_leaves_the_receipts_beside_the_notebook(learner: Make) -> None:
    coach = learner("ada")
    with pytest.raises(AssertionError, match="hello/web"):
        coach.check(EXERCISE, strict=True)
    copy = Path("receipts.json")
    assert receipts.read(copy).passed == {}
    put(coach.bench, "1.0", "mine")
    assert coach.check(EXERCISE, strict=True).outcome == "Correct"
    assert list(receipts.read(copy).passed) == [EXERCISE]


def test_an_exercise_of_another_chapter_is_no_try(learner: Make, tmp_path: Path) -> None:
    coach = learner("ada")
    put(coach.bench, "1.0", "mine")
    there, elsewhere = (
        Coach(replace(coach.bench, work=tmp_path / "work" / number)) for number in ("00", "03")
    )
    verdict = elsewhere.check(EXERCISE)
    assert verdict.outcome == "NotYet" and "chapter 03" in verdict.message
    assert coach.receipts.read().attempts == {}
    assert there.check(EXERCISE).outcome == "Correct"


def test_what_cannot_be_noted_is_told_and_stops_nobody(
    learner: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    coach = learner("ada")
    newer = '{"format": 2, "receipts": []}'
    coach.receipts.file.write_text(newer, "utf-8")
    put(coach.bench, "1.0", "mine")
    verdict = coach.check(EXERCISE, strict=True)
    assert verdict.outcome == "Correct" and str(coach.receipts.file) in verdict.message
    coach.hint(EXERCISE)
    coach.solution(EXERCISE)
    told = capsys.readouterr().out
    assert told.count(str(coach.receipts.file)) == 3 and told.count("Markdown") == 2
    assert coach.receipts.file.read_text("utf-8") == newer


def test_the_lab_shows_progress_and_the_map(learner: Make) -> None:
    coach = learner("ada")
    lab = Lab(bench=coach.bench, coach=coach)
    put(coach.bench, "1.0", "mine")
    lab.check(EXERCISE)
    assert lab.progress(name="Ada Lovelace").learner == "Ada Lovelace"
    assert lab.progress().next == "00-run"
    assert lab.map().rows.set_index("step").loc["Push", "passed"] == 1


def test_a_reset_keeps_what_was_passed(
    learner: Make, feedback: QuietFeedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    coach = learner("ada")
    state = coach.bench.state
    # This learner's state does not know of an engine that is the first lab's own.
    monkeypatch.setenv("DOCKER_HOST", coach.bench.engine.host)
    coach.receipts.note_try(EXERCISE, evidence={})
    state.write("something-else", {})
    assert reset.carry_out(reset.plan(state)) == []
    assert state.read("something-else") == {}
    assert list(coach.receipts.read().passed) == [EXERCISE]
    everything = reset.plan(state, everything=True)
    assert reset.carry_out(everything) == []
    assert not coach.receipts.file.exists()
