"""Pins against a real registry: they hold while the tag moves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp.journey.bases import SLIM
from labapp.journey.build import build
from labapp.journey.pin import Change, pin, pin_dockerfile
from labapp.journey.run import run_once
from labapp.journey.transfer import push
from labapp.machine.engine import Engine
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer


@pytest.fixture
def name(engine: Engine, registry: Registry) -> Iterator[str]:
    """A repository of this test alone."""
    name = f"{registry.address}/test/{uuid.uuid4().hex[:8]}"
    yield name
    for _ in range(2):  # The one that was built last stands on the one that it copied from.
        for image in engine.client.images.list(name=name):
            engine.client.images.remove(image.id, force=True)


def _push(engine: Engine, server: RegistryServer, folder: Path, tag: str, text: str) -> str:
    """Build and push an image that holds a text; return its digest."""
    (folder / "text").write_text(text)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY text /text\n")
    build(engine, folder, tag=tag)
    return push(engine, server, tag).digest


def test_what_is_pinned_builds_the_same_after_the_tag_moved(
    engine: Engine,
    server: RegistryServer,
    registry: Registry,
    name: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    first = _push(engine, server, folder, f"{name}:1", "first")
    assert pin(registry, f"{name}:1") == Reference.parse(f"{name}@{first}")

    page = tmp_path / "page"
    page.mkdir()
    dockerfile = page / "Dockerfile"
    base = f"{registry.address}/base/{SLIM}"
    dockerfile.write_text(f"ARG BASE={base}\nFROM ${{BASE}}\nCOPY --from={name}:1 /text /text\n")
    assert pin_dockerfile(dockerfile, registry) == [
        Change(1, base, f"{base}@{registry.digest(base)}"),
        Change(3, f"{name}:1", f"{name}:1@{first}"),
    ]

    second = _push(engine, server, folder, f"{name}:1", "second")
    assert second != first
    assert pin(registry, f"{name}:1").digest == second
    # The engine has to fetch the pinned image anew: nothing else here names it any more.
    build(engine, page, tag=f"{name}:page")
    assert run_once(engine, f"{name}:page", ["cat", "/text"]) == "first"
