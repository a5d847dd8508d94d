"""Further labs on the same engine, as of other users; each removes what it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from labapp import removal
from labapp.engine import Engine
from labapp.feedback import QuietFeedback
from labapp.state import State


@pytest.fixture
def another_lab(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    feedback: QuietFeedback,
) -> Iterator[Callable[[], State]]:
    """Make the state of one more lab, which works on the same engine."""
    # The other lab's state does not know of an engine that is the first lab's own.
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    made: list[State] = []

    def make() -> State:
        made.append(State.open(tmp_path_factory.mktemp("lab")))
        return made[-1]

    yield make
    for state in made:
        # An image may be needed by one that comes later in the list.
        for _ in range(2):
            left = removal.carry_out(
                removal.plan(state, everything=True, feedback=feedback), feedback=feedback
            )
            state.folder.mkdir(exist_ok=True)
        assert left == []
