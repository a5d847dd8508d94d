"""Waiting until something is so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(ready: Callable[[], T], *, seconds: float, every: float = 0.1) -> T:
    """Ask again and again until the answer is truthy; return the last answer.

    Args:
        ready: asked at once, and then after each pause; at least once in all.
        seconds: how long to go on. A falsy answer is returned when they are over.
        every: the pause, in seconds.
    """
    deadline = time.monotonic() + seconds
    while not (answer := ready()) and time.monotonic() < deadline:
        time.sleep(every)
    return answer
