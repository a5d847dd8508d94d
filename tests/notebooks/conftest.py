"""A lab as a learner finds it on the first day: base images, and nothing of an earlier run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labapp.bench import Bench

pytest.register_assert_rewrite("desk")


@pytest.fixture
def emptied(bench: Bench) -> Callable[[], None]:
    """Return a function that takes away all that chapters make, on engine and in registry."""
    from desk import empty

    return lambda: empty(bench)
