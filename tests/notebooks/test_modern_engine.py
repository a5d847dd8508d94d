"""Chapters on a modern engine: Docker with containerd's store, BuildKit, and no old API.

It is that of Debian 13, which doesn't change, and refuses what Docker 29 refuses: an API before
1.44. ``python3 -m labapp test --engine`` runs the whole course on this engine and on others.
"""

from __future__ import annotations

import engines
import pytest
from test_chapters import MODERN

from labapp import bundle
from labapp.bench import Bench
from labapp.state import State

pytestmark = pytest.mark.own_engine


@pytest.fixture(scope="module")
def came(bench: Bench, state: State, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each chapter, untouched and solved, with this lab's base images."""
    folder, saved = state.path("engines"), tmp_path_factory.mktemp("saved") / "bases.zip"
    folder.mkdir(exist_ok=True)
    bundle.save(bench, saved)
    return engines.course("docker-26", folder, saved, MODERN)


@pytest.mark.parametrize("number", MODERN)
def test_a_chapter(came: dict[str, str], number: str) -> None:
    assert came[number].endswith(" s"), came[number]
