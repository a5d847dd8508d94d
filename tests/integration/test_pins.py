"""Pins against a real registry: they hold while the tag moves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import images, pins
from labapp.engine import Engine
from labapp.errors import NotInRegistry
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.server import RegistryServer
from labapp.state import State


@pytest.fixture
def name(engine: Engine, registry: Registry) -> Iterator[str]:
    """A repository of this test alone."""
    name = f"{registry.address}/test/{uuid.uuid4().hex[:8]}"
    yield name
    for _ in range(2):  # The one that was built last stands on the one that it copied from.
        for image in engine.client.images.list(name=name):
            engine.client.images.remove(image.id, force=True)


def _push(
    engine: Engine,
    server: RegistryServer,
    state: State,
    folder: Path,
    tag: str,
    text: str,
) -> str:
    """Build and push an image that holds a text; return its digest."""
    (folder / "text").write_text(text)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY text /text\n")
    quiet = QuietFeedback()
    builds.build(engine, folder, tag=tag, labels=state.labels, feedback=quiet)
    return images.push(engine, server, tag, feedback=quiet).digest


def test_a_pinned_from_line_builds_the_same_after_the_tag_moved(
    engine: Engine,
    server: RegistryServer,
    registry: Registry,
    state: State,
    slim: Reference,
    name: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    first = _push(engine, server, state, folder, f"{name}:1", "first")
    assert pins.pin(registry, f"{name}:1") == Reference.parse(f"{name}@{first}")

    page = tmp_path / "page"
    page.mkdir()
    dockerfile = page / "Dockerfile"
    dockerfile.write_text(f"FROM {slim}\n# its text\nCOPY --from={name}:1 /text /text\n")
    [change] = pins.pin_dockerfile(dockerfile, registry)
    assert (change.line, change.before, change.after) == (3, f"{name}:1", f"{name}:1@{first}")
    assert dockerfile.read_text() == (
        f"FROM {slim}\n# its text\nCOPY --from={name}:1@{first} /text /text\n"
    )

    second = _push(engine, server, state, folder, f"{name}:1", "second")
    assert second != first
    assert pins.pin(registry, f"{name}:1").digest == second
    quiet = QuietFeedback()
    # The engine has to fetch the pinned image anew: nothing else here names it any more.
    builds.build(engine, page, tag=f"{name}:page", labels=state.labels, feedback=quiet)
    command = ["cat", "/text"]
    printed = images.run_once(
        engine, f"{name}:page", command, labels=state.labels, feedback=quiet
    )  # fmt: skip
    assert printed == "first"


def test_from_takes_tag_and_digest(
    engine: Engine, registry: Registry, state: State, slim: Reference, name: str, tmp_path: Path
) -> None:
    """Every builder accepts what a pinned FROM line looks like, and heeds the digest."""
    path = tmp_path / "Dockerfile"
    path.write_text(f"ARG BASE={slim.name}:3.13-slim\nFROM ${{BASE}}\nRUN true\n")
    [change] = pins.pin_dockerfile(path, registry)
    assert change.after == f"{slim.name}:3.13-slim@{registry.resolve('base/python', '3.13-slim')}"
    quiet = QuietFeedback()
    builds.build(engine, tmp_path, tag=f"{name}:1", labels=state.labels, feedback=quiet)


def test_what_the_registry_has_not(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotInRegistry, match="no tag '9', the repository has the tags"):
        pins.pin(registry, f"{registry.address}/base/python:9")
    path = tmp_path / "deployment.yaml"
    path.write_text(f"services:\n  web:\n    image: {registry.address}/test/none:1\n")
    with pytest.raises(NotInRegistry, match=r"line 3: .*no repository 'test/none'"):
        pins.pin_deployment(path, registry)
