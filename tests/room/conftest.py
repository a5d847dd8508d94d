"""A real room on the tests' engine: its hub, and learners who come in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from visitors import Learner

from labapp import room as rooms
from labapp.bench import Bench
from labapp.machine.ports import free_port, wait_until
from labapp.room import Room

CLASS = "the word of the class"

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
    for name in ("room.json", "hub.sqlite", "private", "cookie_secret"):
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


@pytest.fixture
def come(room: Room) -> Callable[[str], Learner]:
    """Let a learner in, whose server is started by the caller."""

    def come(name: str) -> Learner:
        learner = Learner(room.settings()["address"], name, f"the word of {name}")
        assert learner.log_in(CLASS).status_code == 302
        return learner

    return come
