"""The same course on a modern engine: Docker with containerd's store, BuildKit and no old API.

It is that of Debian 13, which doesn't change, and refuses what Docker 29 refuses: an API before
1.44. It runs in a network of its own, and pytest beside it, as on its own machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import engines
import pytest

from labapp import bundle
from labapp.bench import Bench
from labapp.state import State

pytestmark = pytest.mark.own_engine

CHAPTERS = ("00", "01", "02", "03", "06", "08")


@pytest.fixture(scope="module")
def place(
    bench: Bench, state: State, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[engines.Place]:
    """Beside the engine, with a lab on it whose base images are this lab's."""
    folder, saved = state.path("engines"), tmp_path_factory.mktemp("saved") / "bases.zip"
    folder.mkdir(exist_ok=True)
    bundle.save(bench, saved)
    with engines.running("docker-26", folder) as place:
        place.python("-m", "labapp", "bundle", "load", str(saved), check=True)
        saved.unlink()
        yield place


@pytest.mark.parametrize("number", CHAPTERS)
def test_a_chapter(place: engines.Place, number: str) -> None:
    check(place, *engines.course_tests([number]))


@pytest.mark.parametrize("file", ["images", "private"])
def test_what_engines_differ_in(place: engines.Place, file: str) -> None:
    check(place, f"tests/integration/test_{file}.py", "-q", "--tb=short", "--color=no")


def check(place: engines.Place, *words: str) -> None:
    ran = place.python("-m", "pytest", *words, capture_output=True)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
