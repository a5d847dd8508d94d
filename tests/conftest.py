"""The real engine, registry and base images, made once for a whole run, in a state of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import platformdirs
import pytest

from labapp.bases import Base
from labapp.bench import Bench, prepare
from labapp.engine import Engine
from labapp.feedback import QuietFeedback
from labapp.reference import Reference
from labapp.registry import Registry
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


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that is tested."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def state() -> State:
    return State.open()


@pytest.fixture(scope="session")
def feedback() -> QuietFeedback:
    return QuietFeedback()


@pytest.fixture(scope="session")
def bench(state: State, feedback: QuietFeedback) -> Iterator[Bench]:
    """Everything that `labapp start` makes ready; stopped, not removed, at the end."""
    bench = prepare(state, source=os.environ.get("LABAPP_BASES", "auto"), feedback=feedback)
    yield bench
    bench.stop(feedback=feedback)


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
    return bench.base("python:3.13-slim")
