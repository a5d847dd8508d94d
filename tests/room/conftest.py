"""A real room on the tests' engine: its hub, and learners who come in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from visitors import CLASS, View

from labapp import room as rooms
from labapp.bench import Bench
from labapp.machine.ports import free_port, wait_until
from labapp.room import Room

SETTINGS: dict[str, Any] = {
    "bind": "127.0.0.1",
    "class_password": CLASS,
    "disk": "3G",
    "memory": "900M",
    "spawns": 2,
}


def emptied(room: Room) -> None:
    """Close a room, and take away what its learners made."""
    rooms.stop(room)
    client = room.engine.client
    mine: list[str] = [f"{name}={value}" for name, value in room.labels.items()]
    wait_until(
        lambda: not client.containers.list(all=True, filters={"label": mine}, ignore_removed=True),
        seconds=20,
    )
    for volume in client.volumes.list(filters={"label": mine}):
        volume.remove(force=True)
    for name in ("room.json", "hub.sqlite", "private", "cookie_secret", "class"):
        place = room.state.folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def room(bench: Bench) -> Iterator[Room]:
    found = Room.of(bench.engine, bench.state)
    emptied(found)
    rooms.start(bench, port=free_port(), **SETTINGS)
    yield found
    emptied(found)


@pytest.fixture(scope="session")
def view(room: Room) -> View:
    return View(room)
