"""Classes of any size, made up but always the same, for the page of the live view."""

from __future__ import annotations

import zlib
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from labapp.course.exercises import all_exercises
from labapp.course.receipts import Attempt, Question, Receipt, Record

NOW = datetime(2026, 11, 26, 14, 5, tzinfo=UTC)


def ago(minutes: float) -> str:
    """The time so many minutes before now."""
    return (NOW - timedelta(minutes=minutes)).isoformat(timespec="seconds")


def learner(name: str, *passed: str, last: float = 5, **more: Any) -> Record:
    """Somebody who passed some exercises, one in five minutes, the last one so long ago.

    Every second one took a hint, and every seventh a look at the solution.
    """
    began = ago(5 * len(passed) + last)
    made = Record("1a2b3c4d", name, zlib.crc32(name.encode("utf-8", "replace")), began, **more)
    for number, id in enumerate(passed, 1):
        receipt = Receipt(
            **asdict(Attempt(tries=1, hints=number % 2, solution=number % 7 == 6)),
            number=number,
            exercise=id,
            time=ago(5 * (len(passed) - number) + last),
            evidence={},
            lab=made.lab,
            previous=made.last[1],
        )
        made = replace(made, receipts=(*made.receipts, receipt), end=(number, receipt.digest))
    return made


def room(size: int) -> list[Record]:
    """A class in which everybody is somewhere else: some tried often, some ask, a few went home."""
    ids = list(all_exercises())
    return [
        learner(
            f"learner {number}",
            *ids[: number % (len(ids) + 1)],
            last=200 if number % 11 == 10 else number % 25,
            attempts={ids[number % len(ids)]: Attempt(number % 6)},
            question=Question("Why?", ago(number)) if number % 8 == 2 else Question(),
        )
        for number in range(size)
    ]
