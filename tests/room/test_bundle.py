"""A room is carried to another machine: all that it needs is in a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from visitors import CLASS, Learner, emptied

from labapp import bundle as bundles
from labapp import room as rooms
from labapp.bench import Bench, prepare
from labapp.machine.ports import free_port
from labapp.room import Room
from labapp.state import State


@pytest.mark.long
def test_a_bundle_is_all_that_a_room_needs(
    bench: Bench, another_lab: Callable[[], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_MIRROR", "http://localhost:9")
    here, state, bundle = rooms.images(bench), another_lab(), tmp_path / "room.zip"
    bundles.save(bench, bundle, more=rooms.pushed(bench))
    bundles.load(state, bundle, wheel_folder=tmp_path / "app" / "wheels")
    bundle.unlink()

    # Nothing can be built there, and nothing fetched.
    monkeypatch.setattr(rooms, "build", lambda *_, **__: pytest.fail("it builds"))
    there = prepare(state, source="mirror")
    room = Room.of(there.engine, there.state)
    try:
        told = rooms.start(there, bind="127.0.0.1", port=free_port(), class_password=CLASS)
        for kind, name in told["images"].items():
            assert name.startswith(there.registry.address)
            same = [bench.engine.image(each) for each in (name, here[kind])]
            assert None not in same and same[0].id == same[1].id  # type: ignore[union-attr]
        learner = Learner(told["address"], "ada", "the word of ada")
        assert learner.log_in(CLASS).status_code == 302
        learner.spawn()
        learner.run("from labapp import open_lab\nlab = open_lab('00')")
    finally:
        emptied(room)
