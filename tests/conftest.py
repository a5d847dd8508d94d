"""The real engine, registry and base images, made once for a whole run, in a state of its own."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import platformdirs
import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from labapp.cli import SECOND
from labapp.feedback import QuietFeedback, using
from labapp.state import State

if TYPE_CHECKING:  # the process that only hands out tests needs none of it
    from labapp.bench import Bench
    from labapp.machine.engine import Engine
    from labapp.reference import Reference
    from labapp.registry.client import Registry
    from labapp.registry.server import RegistryServer

# `labapp test` names the folder; a bare pytest must not fall back on the learner's own lab.
os.environ.setdefault("LABAPP_STATE", str(platformdirs.user_state_path("labapp-test")))

# What a test writes need not outlast a power cut.
os.fsync = lambda _: None

# How fast a shared machine draws examples says nothing about the lab. The everyday loop draws few.
hypothesis.settings.register_profile(
    "lab",
    deadline=None,
    max_examples=200 if os.environ.get("CI") else 30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("lab")


TESTS = Path(__file__).parent

PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
"""Whether this process is one of two, which `labapp test` starts; each has a lab of its own."""


# Who runs what, in a whole run: a process takes the next group of files when it is free. The groups
# are below; a file that is in none is one by itself. Chapters 00 to 03, 06 and 08 are in
# test_modern_engine's group, the others are the shop's.

FOLDERS = ("room", "notebooks", "browser", "integration", "unit")
"""The order of the tests: what takes long comes first, so that both processes end together."""

SHOP = ("test_app", "test_chapters", "test_contents", "test_exercises_inside")
"""The files that need the application in its variants: one engine builds them, in minutes."""

DRAWN = ("test_charts", "test_class_report", "test_inspection", "test_progress")
"""The files whose tests draw: one process alone loads matplotlib."""


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process a file at a time, as it comes."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if Path(file).parent.name == "room":
            return "room"  # a room, once: its images are those of one lab
        if Path(file).parent.name == "unit" and Path(file).stem in DRAWN:
            return "drawn"
        return "shop" if Path(file).stem in SHOP else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FOLDERS.index(item.path.relative_to(TESTS).parts[0]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" and item.path.parent.name != "unit":
        second_lab()


@functools.cache
def second_lab() -> None:
    """Give the second process a lab of its own, with the first one's base images.

    Where the first one's engine is its own, so is theirs: on one engine, images of equal base and
    instructions share their cache, and who removes one disturbs who builds another.
    """
    from labapp.machine import own_engine
    from labapp.machine.engine import find
    from labapp.registry.server import RegistryServer

    first = State.open()
    engine = find(first)
    address = RegistryServer(engine=engine, state=first).address
    if own_engine.host(first) is None:
        os.environ["DOCKER_HOST"] = engine.host
    os.environ["LABAPP_MIRROR"] = f"http://{address}"
    os.environ["LABAPP_BASES"] = "mirror"
    os.environ["LABAPP_STATE"] = f"{first.folder}{SECOND}"


@pytest.fixture(scope="session")
def state() -> State:
    return State.open()


@pytest.fixture(scope="session")
def feedback() -> Iterator[QuietFeedback]:
    """What the lab said; nothing of it is printed."""
    with using(QuietFeedback()) as quiet:
        yield quiet


@pytest.fixture
def told() -> Iterator[QuietFeedback]:
    """What the lab said during one test; nothing of it is printed."""
    with using(QuietFeedback()) as told:
        yield told


@pytest.fixture(scope="session")
def bench(state: State, feedback: QuietFeedback) -> Iterator[Bench]:
    """Everything that `labapp start` makes ready; stopped, not removed, at the end."""
    from labapp.bench import prepare

    bench = prepare(state, source=os.environ.get("LABAPP_BASES", "auto"), clean=PARALLEL)
    yield bench
    # The first lab's registry and engine serve both processes; `labapp test` stops them.
    if not PARALLEL or state.folder.name.endswith(SECOND):
        bench.stop()


@pytest.fixture(scope="session")
def engine(bench: Bench) -> Engine:
    return bench.engine


@pytest.fixture(scope="session")
def server(bench: Bench) -> RegistryServer:
    return bench.server


@pytest.fixture(scope="session")
def registry(bench: Bench) -> Registry:
    return bench.registry


@pytest.fixture(scope="session")
def slim(bench: Bench) -> Reference:
    """The slim base image, pinned by digest."""
    from labapp.journey.bases import SLIM

    return bench.base(SLIM)


@pytest.fixture
def another_lab(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    feedback: QuietFeedback,
) -> Iterator[Callable[[], State]]:
    """Make the state of one more lab, which works on the same engine."""
    from labapp import reset

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
            left = reset.carry_out(reset.plan(state, everything=True))
            state.folder.mkdir(exist_ok=True)
        assert left == []


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The browser; installed where the lab may install packages."""
    from labapp.machine import root

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and root.why_no_packages() is None:
        root.install_packages(["chromium", "fonts-dejavu-core"])
        found = shutil.which("chromium")
    assert found, f"no browser: install one of {', '.join(BROWSERS)}"
    return found
