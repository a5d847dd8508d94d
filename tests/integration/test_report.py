"""Receipts of real answers, and the report that asks the registry for their evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labapp import cli, images, removal
from labapp.bench import Bench
from labapp.errors import NotInRegistry, RegistryUnreachable
from labapp.exercises.coach import Coach
from labapp.feedback import QuietFeedback
from labapp.lab import Lab
from labapp.progress import chain
from labapp.progress.report import report
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.copies import put_image
from labapp.state import State
from labapp.system.ports import free_port

EXERCISE = "00-tag"


def put(bench: Bench, *tags: str) -> str:
    """Put the slim base into the registry as the page of chapter 00, under some tags."""
    base = bench.base("python:3.13-slim")
    held = bench.registry.image(base)
    for blob in held.manifest.blobs:
        bench.registry.mount_blob("hello/web", blob.digest, base.repository)
    for tag in tags:
        put_image(bench.registry, "hello/web", tag, held.manifest)
    return held.manifest.digest


def take(bench: Bench) -> None:
    """Take what is in the page's repository out of the registry."""
    for tag in bench.registry.tags("hello/web"):
        try:
            digest = bench.registry.resolve("hello/web", tag)
        except NotInRegistry:
            continue
        bench.registry.delete_manifest("hello/web", digest)


@pytest.fixture
def learner(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Bench]]:
    """Make a learner: another state folder, on the same engine and registry."""
    (tmp_path / "notebooks").mkdir()
    images.remove(bench.engine, f"{bench.registry.address}/hello/web:mine")
    monkeypatch.chdir(tmp_path / "notebooks")
    if "hello/web" in bench.registry.repositories():
        take(bench)

    def make(name: str) -> Bench:
        own = replace(bench, state=State.open(tmp_path / name), work=tmp_path)
        Coach(own).receipts.rename(name)
        return own

    yield make
    take(bench)


def test_a_real_answer_gets_a_receipt_whose_evidence_is_in_the_registry(
    learner: Callable[[str], Bench], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = learner("ada")
    coach = Coach(own)
    put(own, "1.0")
    assert coach.check(EXERCISE).outcome == "NotYet"
    coach.hint(EXERCISE)
    digest = put(own, "1.0", "mine")
    assert coach.check(EXERCISE).outcome == "Correct"
    assert coach.check(EXERCISE).outcome == "Correct"
    record = coach.receipts.read()
    (receipt,) = record.receipts
    assert (receipt.tries, receipt.hints, receipt.solution) == (1, 1, False)
    assert Reference.parse(receipt.evidence["image"]).digest == digest

    coach.receipts.save(tmp_path / "class" / "ada.json")
    found = report(tmp_path / "class", [EXERCISE], registry=own.registry)
    assert list(found.learners["verified"]) == [1] and list(found.learners["images"]) == [1]
    take(own)
    found = report(tmp_path / "class", [EXERCISE], registry=own.registry)
    (note,) = found.learners["notes"].iloc[0]
    assert list(found.learners["verified"]) == [0]
    assert note == f"{EXERCISE}: {own.registry.address} does not have hello/web@{digest}"
    argv = ["report", str(tmp_path / "class"), "--registry", own.registry.address]
    assert cli.main(argv) == 0
    assert "0 of 1" in capsys.readouterr().out


def test_a_registry_that_does_not_answer(
    learner: Callable[[str], Bench], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = learner("ada")
    Coach(own).receipts.note_try(EXERCISE, evidence={"image": f"x:1/a@sha256:{'a' * 64}"})
    Coach(own).receipts.save(tmp_path / "class" / "ada.json")
    dead = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryUnreachable):
        report(tmp_path / "class", [EXERCISE], registry=Registry(dead))
    assert cli.main(["report", str(tmp_path / "class"), "--registry", dead]) == 1
    assert dead in capsys.readouterr().err


def test_strict_raises_and_leaves_the_receipts_beside_the_notebook(
    learner: Callable[[str], Bench],
) -> None:
    coach = Coach(learner("ada"))
    with pytest.raises(AssertionError, match="no '"):
        coach.check(EXERCISE, strict=True)
    copy = Path("receipts.json")
    assert chain.read(copy).passed == {}
    put(coach.bench, "1.0", "mine")
    assert coach.check(EXERCISE, strict=True).outcome == "Correct"
    assert list(chain.read(copy).passed) == [EXERCISE]


def test_an_exercise_of_another_chapter_is_no_try(learner: Callable[[str], Bench]) -> None:
    own = learner("ada")
    put(own, "1.0", "mine")
    coach = Coach(replace(own, work=own.work / "work" / "03"))
    verdict = coach.check(EXERCISE)
    assert verdict.outcome == "NotYet"
    assert "00-tag is an exercise of chapter 00, and this notebook opened chapter 03" in str(
        verdict
    )
    assert coach.receipts.read().attempts == {}
    there = Coach(replace(own, work=own.work / "work" / "00"))
    assert there.check(EXERCISE).outcome == "Correct"


def test_what_cannot_be_noted_is_told_and_stops_nobody(
    learner: Callable[[str], Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    coach = Coach(learner("ada"))
    coach.receipts.file.write_text('{"format": 2, "receipts": []}', "utf-8")
    put(coach.bench, "1.0", "mine")
    verdict = coach.check(EXERCISE, strict=True)
    assert verdict.outcome == "Correct"
    assert "Not noted" in verdict.message and "has format 2" in verdict.message
    coach.hint(EXERCISE)
    coach.solution(EXERCISE)
    told = capsys.readouterr().out
    assert told.count("Not noted") == 3 and told.count("Markdown") == 2
    assert coach.receipts.file.read_text("utf-8") == '{"format": 2, "receipts": []}'


def test_the_lab_shows_progress_and_the_map(learner: Callable[[str], Bench]) -> None:
    own = learner("ada")
    lab = Lab(bench=own, feedback=QuietFeedback(), coach=Coach(own))
    put(own, "1.0", "mine")
    lab.check(EXERCISE)
    assert lab.progress(name="Ada Lovelace").summary.startswith("Ada Lovelace: 1 of ")
    assert lab.progress().next == "00-run"
    assert "Push: 1 of 3 exercises passed" in lab.map().chart.alt


def test_a_reset_keeps_what_was_passed(
    learner: Callable[[str], Bench], feedback: QuietFeedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = learner("ada")
    # This learner's state does not know of an engine that is the first lab's own.
    monkeypatch.setenv("DOCKER_HOST", own.engine.host)
    coach = Coach(own)
    coach.receipts.note_try(EXERCISE, evidence={})
    own.state.write("something-else", {})
    assert removal.carry_out(removal.plan(own.state, feedback=feedback), feedback=feedback) == []
    assert own.state.read("something-else") == {}
    assert list(coach.receipts.read().passed) == [EXERCISE]
    everything = removal.plan(own.state, everything=True, feedback=feedback)
    assert removal.carry_out(everything, feedback=feedback) == []
    assert not coach.receipts.file.exists()
