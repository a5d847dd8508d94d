"""Builds on the real engine: what they make, what they say when they fail, what they leave."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import images
from labapp.engine import Engine
from labapp.errors import BuildError, InvalidReference
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.reference import Reference
from labapp.state import LABEL, State


@pytest.fixture
def tag(engine: Engine) -> Iterator[str]:
    """A name for an image, taken from it at the end."""
    name = f"labapp/test-{uuid.uuid4().hex[:8]}:1"
    yield name
    images.remove(engine, name)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("hello\n")
    (tmp_path / "b.txt").write_text("bye\n")
    return tmp_path


def _containers(engine: Engine, state: State) -> set[str]:
    """This lab's containers: the base image's label reaches those of a build, too."""
    label = f"{LABEL}={state.lab_id}"
    return {c["Id"] for c in engine.client.api.containers(all=True, filters={"label": label})}


def _build(engine: Engine, state: State, context: Path, text: str, tag: str) -> builds.Build:
    (context / "Dockerfile").write_text(text)
    return builds.build(
        engine, context, tag=tag, labels=state.labels, feedback=QuietFeedback()
    )  # fmt: skip


def test_build_and_cache(
    engine: Engine, state: State, slim: Reference, context: Path, tag: str
) -> None:
    file = context / "my.Dockerfile"
    file.write_text(
        "ARG BASE\nFROM ${BASE} AS first\nARG WORD=none\nRUN echo ${WORD} > /word\n"
        "FROM ${BASE}\nCOPY --from=first /word /word\nCOPY a.txt /\n"
    )
    feedback = QuietFeedback()
    unique = uuid.uuid4().hex
    arguments = {"BASE": str(slim), "WORD": unique}
    made = builds.build(
        engine,
        context,
        tag=tag,
        dockerfile=file,
        args=arguments,
        labels=state.labels,
        feedback=feedback,
    )
    assert made.reference == Reference.parse(tag)
    assert engine.client.images.get(tag).id == made.image_id
    assert engine.client.images.get(tag).labels[LABEL] == state.lab_id
    assert made.context_bytes > 0
    assert made.seconds > 0
    assert [step.number for step in made.steps] == list(range(1, len(made.steps) + 1))
    runs = [step for step in made.steps if step.instruction.startswith("RUN")]
    assert [(step.stage, step.cached) for step in runs] == [("first", False)]
    assert list(made.table.columns) == ["step", "stage", "instruction", "cached", "seconds"]
    assert feedback.commands == [
        f"docker build -t {tag} -f {file} --build-arg BASE={slim} --build-arg WORD={unique} "
        f"{context}"
    ]
    assert all(bar.finished for bars in feedback.shown for bar in bars.bars.values())

    again = builds.build(
        engine,
        context,
        tag=tag,
        dockerfile=file,
        args=arguments,
        labels=state.labels,
        feedback=QuietFeedback(),
    )
    acting = [s for s in again.steps if s.instruction.split()[0] in {"RUN", "COPY"}]
    assert acting
    assert all(step.cached for step in acting)
    assert again.image_id == made.image_id

    anew = builds.build(
        engine,
        context,
        tag=tag,
        dockerfile=file,
        args=arguments,
        cache=False,
        labels=state.labels,
        feedback=QuietFeedback(),
    )
    assert not [s for s in anew.steps if s.cached and not s.instruction.startswith("FROM")]


def test_ignored_files_are_not_sent(engine: Engine, state: State, context: Path, tag: str) -> None:
    (context / "large.bin").write_bytes(b"x" * 3_000_000)
    text = "FROM scratch\nCOPY . /\n"
    all_of_it = _build(engine, state, context, text, tag)
    assert all_of_it.context_bytes > 3_000_000
    (context / ".dockerignore").write_text("# not this\n*.bin\n")
    assert _build(engine, state, context, text, tag).context_bytes < 100_000


def test_target(engine: Engine, state: State, slim: Reference, context: Path, tag: str) -> None:
    text = f"FROM {slim} AS one\nCOPY a.txt /a.txt\nFROM {slim} AS two\nCOPY nope /\n"
    (context / "Dockerfile").write_text(text)
    builds.build(
        engine, context, tag=tag, target="one", labels=state.labels, feedback=QuietFeedback()
    )
    printed = images.run_once(
        engine, tag, ["cat", "/a.txt"], labels=state.labels, feedback=QuietFeedback()
    )
    assert printed == "hello\n"


FAILURES = {
    "syntax error": ("FROM BASE\n\nCOPPY a.txt /\n", 3, ["unknown instruction: COPPY"]),
    "failing RUN": (
        "FROM BASE\n# next\nRUN echo first word && \\\n    exit 3\n",
        3,
        ["3 | RUN echo first word && \\", "4 |     exit 3", "first word", "from the cache"],
    ),
    "COPY of a missing file": (
        "FROM BASE\nRUN true\nCOPY a.txt nope.txt /x/\n",
        3,
        ["nope.txt", "3 | COPY a.txt nope.txt /x/", ".dockerignore"],
    ),
    "base image not found": (
        "# base\nFROM HOST/none/such:1\n",
        2,
        ["none/such", "2 | FROM", "not found"],
    ),
    "no instruction": ("# nothing\n", None, ["no instructions"]),
    "argument without a value": ("ARG A\nFROM ${A}\n", 2, ["should not be blank"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure(
    name: str, engine: Engine, state: State, slim: Reference, context: Path, tag: str
) -> None:
    text, line, said = FAILURES[name]
    text = text.replace("BASE", str(slim)).replace("HOST", slim.registry)
    before = _containers(engine, state)
    with pytest.raises(BuildError) as caught:
        _build(engine, state, context, text, tag)
    message = str(caught.value)
    assert message.startswith(f"building '{tag}' from '")
    for words in said:
        assert words in message
    if line is not None:
        assert caught.value.line == line
        assert f"line {line}" in message
    if name == "failing RUN":
        assert caught.value.log == ("first word",)
    assert _containers(engine, state) <= before
    # The next try works.
    _build(engine, state, context, "FROM scratch\nCOPY a.txt /\n", tag)


def test_what_is_missing(engine: Engine, state: State, tmp_path: Path, tag: str) -> None:
    quiet, labels = QuietFeedback(), state.labels
    with pytest.raises(BuildError, match=r"reading the Dockerfile .*No such file"):
        builds.build(engine, tmp_path, tag=tag, labels=labels, feedback=quiet)
    with pytest.raises(BuildError, match=r"no folder .*none"):
        builds.build(engine, tmp_path / "none", tag=tag, labels=labels, feedback=quiet)
    with pytest.raises(InvalidReference, match="upper-case"):
        builds.build(engine, tmp_path, tag="Shop/web", labels=labels, feedback=quiet)
    with pytest.raises(BuildError, match="the digest comes"):
        builds.build(engine, tmp_path, tag=f"web@sha256:{'0' * 64}", labels=labels, feedback=quiet)
    assert quiet.commands == []


def test_terminal_and_lab_share_the_cache(
    engine: Engine, state: State, slim: Reference, context: Path, tag: str
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
    made = builds.build(engine, context, tag=tag, labels=state.labels, feedback=QuietFeedback())
    acting = [step for step in made.steps if not step.instruction.startswith("FROM")]
    assert [step.cached for step in acting] == [True, True]
