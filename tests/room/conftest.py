"""A real room on the tests' engine: its hub, and learners who come in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from visitors import CLASS, View, emptied

from labapp import room as rooms
from labapp.bench import Bench
from labapp.machine.ports import free_port
from labapp.room import Room

SETTINGS: dict[str, Any] = {
    "bind": "127.0.0.1",
    "class_password": CLASS,
    "disk": "3G",
    "memory": "900M",
    "spawns": 2,
}


@pytest.fixture(scope="session")
def room(bench: Bench) -> Iterator[Room]:
    if bench.engine.rootless or bench.engine.store == "podman":
        pytest.skip("a room needs Docker that root runs: other engines can't run engines")
    found = Room.of(bench.engine, bench.state)
    emptied(found)
    rooms.start(bench, port=free_port(), **SETTINGS)
    yield found
    emptied(found)


@pytest.fixture(scope="session")
def view(room: Room) -> View:
    return View(room)
