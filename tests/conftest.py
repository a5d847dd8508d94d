"""The real engine, registry and base images, made once for a whole run, in a state of its own."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import platformdirs
import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from labapp.bench import Bench, prepare
from labapp.cli import SECOND
from labapp.feedback import QuietFeedback, using
from labapp.journey.bases import SLIM, Base
from labapp.machine import own_engine
from labapp.machine.engine import Engine, find
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer
from labapp.state import State

# `labapp test` names the folder; a bare pytest must not fall back on the learner's own lab.
os.environ.setdefault("LABAPP_STATE", str(platformdirs.user_state_path("labapp-test")))

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


FOLDERS = ("notebooks", "browser", "integration", "unit")
"""The order of the tests: what takes long comes first, so that both processes end together."""

SHOP = ("test_app", "test_contents", "test_exercises_inside")
"""The files whose tests all need the application in its four variants: minutes of building."""


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process a file at a time, as it comes."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
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
    first = State.open()
    engine = find(first)
    address = RegistryServer(engine=engine, state=first).address
    if own_engine.host(first) is None:
        os.environ["DOCKER_HOST"] = engine.host
    os.environ["LABAPP_MIRROR"] = f"http://{address}"
    os.environ["LABAPP_BASES"] = "mirror"
    os.environ["LABAPP_STATE"] = f"{first.folder}{SECOND}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that is tested."""
    return Path(__file__).parent.parent


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
    source = os.environ.get("LABAPP_BASES", "auto")
    bench = prepare(state, source=source, clean=PARALLEL)
    yield bench
    if not PARALLEL:
        bench.stop()
    elif bench.state.folder.name.endswith(SECOND):
        # The first lab's registry and engine serve both processes; `labapp test` stops them.
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
def bases(bench: Bench) -> tuple[Base, ...]:
    return bench.bases


@pytest.fixture(scope="session")
def slim(bench: Bench) -> Reference:
    """The slim base image, pinned by digest."""
    return bench.base(SLIM)
