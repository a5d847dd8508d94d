"""Classes of any size, made up but always the same, for the page of the live view."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from labapp.course.exercises import all_exercises
from labapp.course.receipts import Attempt, Posted, Question, Receipt, Record

NOW = datetime(2026, 11, 26, 14, 5, tzinfo=UTC)
FIRST = ("Ada", "Ben", "Chiara", "Deniz", "Émile", "Fatou", "Grace", "Hiro", "Jörg", "Kofi", "Mo")
LAST = ("Abel", "Brandt", "Costa", "Diaz", "Ekström", "Fischer", "Gupta", "Haas", "Ito", "Jansen")
LAST += ("Kowalczyk", "Lopez", "Müller", "Nowak", "Okafor", "Petit", "Rossi", "Silva", "Tanaka")
WORDS = (
    "The push says unauthorized, though I logged in a minute ago",
    "Which digest does 'pin' mean: of the index or of my image?",
    "stuck",
    "My build stops at pip install with 'no matching distribution', twice; wheels are there",
)


def ago(minutes: float) -> str:
    """The time so many minutes before now."""
    return (NOW - timedelta(minutes=minutes)).isoformat(timespec="seconds")


def learner(
    name: str,
    *passed: str,
    last: float = 5,
    took: Mapping[str, Attempt] | None = None,
    **more: Any,
) -> Record:
    """Somebody who passed some exercises, one in five minutes, the last one so long ago."""
    began = ago(5 * len(passed) + last)
    made = Record("1a2b3c4d", name, zlib.crc32(name.encode("utf-8", "replace")), began, **more)
    for number, id in enumerate(passed, 1):
        receipt = Receipt(
            **asdict((took or {}).get(id, Attempt(tries=1))),
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
    """A class on its second day: some are fast, some are stuck, some ask, a few went home."""
    draw = random.Random(7)
    names = [f"{first} {last}" for last in LAST for first in FIRST]
    draw.shuffle(names)
    return [_somebody(draw, number, name) for number, name in enumerate(names[:size])]


def _somebody(draw: random.Random, number: int, name: str) -> Record:
    ids, left = list(all_exercises()), number % 11 == 10
    done = len(ids) if number == 3 else min(len(ids) - 1, max(0, round(draw.gauss(11, 5))))
    took = {
        id: Attempt(draw.choice((1, 1, 2, 3)), draw.choice((0, 0, 0, 1)), draw.random() < 0.07)
        for id in ids
    }
    last = 180 if left else draw.choice((1, 3, 7, 12, 24))
    if number == 3:
        return learner(name, *ids, last=last, took=took)
    tries = draw.choice((0, 1, 1, 2, 5)) if number % 3 else 0
    asks = number % 8 == 2
    return learner(
        name,
        *ids[:done],
        last=last,
        took=took,
        attempts={ids[done]: Attempt(tries)} if tries else {},
        posted=Posted(where=ids[done], last=ago(last), since=ago(150)),
        question=Question(WORDS[number // 8 % 4], ago(draw.uniform(0, 9))) if asks else Question(),
    )
