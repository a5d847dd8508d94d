"""Builds on the real engine: what they make, what they say when they fail, what they leave."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import feedback
from labapp.errors import BuildError, InvalidReference
from labapp.feedback import QuietFeedback
from labapp.journey.build import Build, build
from labapp.journey.run import run_once
from labapp.journey.transfer import remove
from labapp.machine.engine import Engine
from labapp.reference import Reference
from labapp.state import LABEL, State


@pytest.fixture(autouse=True)
def told() -> Iterator[QuietFeedback]:
    told = QuietFeedback()
    with feedback.using(told):
        yield told


@pytest.fixture
def tag(engine: Engine) -> Iterator[str]:
    """A name for an image, taken from it at the end."""
    name = f"labapp/test-{uuid.uuid4().hex[:8]}:1"
    yield name
    remove(engine, name)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("hello\n")
    (tmp_path / "b.txt").write_text("bye\n")
    return tmp_path


def _build(engine: Engine, context: Path, text: str, tag: str) -> Build:
    (context / "Dockerfile").write_text(text)
    return build(engine, context, tag=tag)


def test_build_and_cache(
    engine: Engine, state: State, slim: Reference, context: Path, tag: str, told: QuietFeedback
) -> None:
    file = context / "my.Dockerfile"
    file.write_text(
        "ARG BASE\nFROM ${BASE} AS first\nARG WORD=none\nRUN echo ${WORD} > /word\n"
        "FROM ${BASE} AS second\nCOPY --from=first /word /word\nCOPY a.txt /\n"
        "FROM ${BASE}\nCOPY nope /\n"
    )
    unique = uuid.uuid4().hex
    arguments = {"BASE": str(slim), "WORD": unique}
    made = build(engine, context, tag=tag, dockerfile=file, args=arguments, target="second")
    assert run_once(engine, tag, ["cat", "/word", "/a.txt"]) == f"{unique}\nhello\n"
    assert made.reference == Reference.parse(tag)
    assert engine.client.images.get(tag).id == made.image_id
    assert engine.client.images.get(tag).labels[LABEL] == state.lab_id
    assert made.context_bytes > 0
    assert made.seconds > 0
    assert [step.number for step in made.steps] == list(range(1, len(made.steps) + 1))
    runs = [step for step in made.steps if step.instruction.startswith("RUN")]
    assert [(step.stage, step.cached) for step in runs] == [("first", False)]
    assert list(made.table.columns) == ["step", "stage", "instruction", "cached", "seconds"]
    shown = f"docker build -t {tag} -f {file} --build-arg BASE={slim} --build-arg WORD={unique} "
    assert told.commands[0].startswith(f"{shown}--target second")
    assert all(bar.finished for bars in told.shown for bar in bars.bars.values())

    again = build(engine, context, tag=tag, dockerfile=file, args=arguments, target="second")
    acting = [s for s in again.steps if s.instruction.split()[0] in {"RUN", "COPY"}]
    assert acting
    assert all(step.cached for step in acting)
    assert again.image_id == made.image_id

    anew = build(
        engine, context, tag=tag, dockerfile=file, args=arguments, target="second", cache=False
    )
    assert not [s for s in anew.steps if s.cached and not s.instruction.startswith("FROM")]


def test_ignored_files_are_not_sent(engine: Engine, context: Path, tag: str) -> None:
    # BuildKit sends what it has not got from the last build of a folder of this name.
    (context / "large.bin").write_bytes(os.urandom(3_000_000))
    text = "FROM scratch\nCOPY . /\n"
    assert _build(engine, context, text, tag).context_bytes >= 3_000_000
    (context / "larger.bin").write_bytes(os.urandom(5_000_000))
    (context / ".dockerignore").write_text("# not these\n*.bin\n")
    assert _build(engine, context, text, tag).context_bytes < 100_000


def test_failures_leave_nothing_behind(
    engine: Engine, slim: Reference, context: Path, tag: str
) -> None:
    """What each builder says of a failure is in the unit tests."""
    mark = uuid.uuid4().hex
    for text, line, log in (
        (f"FROM {slim}\n\nCOPPY a.txt /\n", 3, ()),
        (f"FROM {slim}\nRUN echo {mark} && \\\n    exit 3\n", 2, (mark,)),
        (f"FROM {slim}\nRUN true {mark}\nCOPY a.txt nope.txt /x/\n", 3, ()),
        (f"# base\nFROM {slim.registry}/none/such:1\n", 2, ()),
    ):
        with pytest.raises(BuildError) as caught:
            _build(engine, context, text, tag)
        assert (caught.value.line, caught.value.log) == (line, log)
    containers = engine.client.api.containers(all=True)
    assert [each["Command"] for each in containers if mark in each["Command"]] == []
    # The next try works.
    _build(engine, context, "FROM scratch\nCOPY a.txt /\n", tag)


def test_what_is_missing(engine: Engine, tmp_path: Path, tag: str, told: QuietFeedback) -> None:
    for folder, name, kind, fact in (
        (tmp_path, tag, BuildError, "Dockerfile"),
        (tmp_path / "none", tag, BuildError, "none"),
        (tmp_path, "Shop/web", InvalidReference, "Shop/web"),
        (tmp_path, f"web@sha256:{'0' * 64}", BuildError, "digest"),
    ):
        with pytest.raises(kind, match=fact):
            build(engine, folder, tag=name)
    assert told.commands == []


def test_terminal_and_lab_share_the_cache(
    engine: Engine, slim: Reference, context: Path, tag: str
) -> None:
    if hasattr(os, "getuid") and os.getuid() == 0:
        os.chown(context / "a.txt", 1000, 1000)
    (context / "Dockerfile").write_text(f"FROM {slim}\nCOPY . /x/\nRUN cat /x/a.txt\n")
    (context / "b.txt").write_text(uuid.uuid4().hex)
    variables = engine.environment()
    if engine.builder == "classic":
        variables["DOCKER_BUILDKIT"] = "0"
    subprocess.run(
        ["docker", "build", "-t", tag, str(context)], env=variables, check=True, capture_output=True
    )
    acting = [s for s in build(engine, context, tag=tag).steps if s.instruction[:4] != "FROM"]
    assert [step.cached for step in acting] == [True, True]
