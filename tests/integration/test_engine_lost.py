"""An engine that is killed in the middle of the lab's work, and what the next start finds."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import engine as engines
from labapp import images
from labapp.engine import Engine, own_engine
from labapp.errors import EngineLost
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.leftovers import remove_leftovers
from labapp.reference import Reference
from labapp.registry.server import RegistryServer
from labapp.state import State
from labapp.system import processes

pytestmark = pytest.mark.own_engine


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """The state of an engine of these tests alone, removed with all its data."""
    state = State.open(tmp_path_factory.mktemp("lost"))
    yield state
    own_engine.remove(state, feedback=QuietFeedback())


def _start(lost: State) -> Engine:
    environ = {"DOCKER_HOST": f"unix://{own_engine.socket(lost)}"}
    return engines.start(lost, feedback=QuietFeedback(), environ=environ)


class _Killer(threading.Thread):
    """Kills an engine as soon as the lab's bars tell that the work is in its middle."""

    def __init__(self, lost: State, quiet: QuietFeedback, *, note: str, done: float) -> None:
        super().__init__(daemon=True)
        self._lost, self._quiet, self._note, self._done = lost, quiet, note, done

    def run(self) -> None:
        while not any(
            self._note in bar.note and bar.done >= self._done
            for bars in self._quiet.shown
            for bar in list(bars.bars.values())
        ):
            time.sleep(0.02)
        time.sleep(0.5)
        config = self._lost.path("engine", "daemon.json")
        [pid] = processes.running("dockerd", f"--config-file={config}")
        os.kill(pid, signal.SIGKILL)


def test_engine_killed_in_mid_build(
    lost: State, state: State, slim: Reference, tmp_path: Path
) -> None:
    engine, quiet = _start(lost), QuietFeedback()
    tag = f"labapp/lost-{uuid.uuid4().hex[:8]}:1"
    (tmp_path / "Dockerfile").write_text(f"FROM {slim}\nRUN sleep 300\n")
    killer = _Killer(lost, quiet, note="sleep", done=0)
    killer.start()
    with pytest.raises(EngineLost, match=r"building 'labapp/lost.*labapp start"):
        builds.build(engine, tmp_path, tag=tag, labels=state.labels, feedback=quiet)
    killer.join()

    again = _start(lost)
    # The base image carries this lab's label, and so does what was built on it.
    remove_leftovers(again, state)
    assert again.client.containers.list(all=True) == []
    assert again.client.images.list(filters={"dangling": True}) == []
    (tmp_path / "Dockerfile").write_text(f"FROM {slim}\nRUN true\n")
    builds.build(again, tmp_path, tag=tag, labels=state.labels, feedback=QuietFeedback())


def test_engine_killed_in_mid_push(
    lost: State, state: State, server: RegistryServer, tmp_path: Path
) -> None:
    engine, quiet = _start(lost), QuietFeedback()
    tag = f"{server.address}/test/{uuid.uuid4().hex[:8]}:1"
    (tmp_path / "large").write_bytes(os.urandom(100_000_000))
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY large /\n")
    builds.build(engine, tmp_path, tag=tag, labels=state.labels, feedback=QuietFeedback())
    killer = _Killer(lost, quiet, note="pushing", done=10e6)
    killer.start()
    with pytest.raises(EngineLost, match=r"pushing .*does not answer any more"):
        images.push(engine, server, tag, feedback=quiet)
    killer.join()

    again = _start(lost)
    pushed = images.push(again, server, tag, feedback=QuietFeedback())
    assert list(pushed.layers["outcome"]) == ["sent"]
