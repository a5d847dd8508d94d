"""What the tests of exercises begin with: a lab as before a chapter, with what a module keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from desk import Desk, empty

from labapp.bench import Bench


@pytest.fixture(scope="module")
def bare(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A desk for what a module makes once, as its ``shelf``."""
    empty(bench)
    return Desk(bench).at(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def desk(shelf: Desk, tmp_path: Path) -> Any:
    """What the module's shelf keeps, and nothing else."""
    empty(shelf.bench)
    return shelf.at(tmp_path)
