"""The live view: a class as one page for the teacher, from what its learners' receipts say.

The page loads nothing from elsewhere. It asks for itself anew, wherever it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from unicodedata import normalize

import jinja2

from labapp.course.exercises import all_exercises
from labapp.course.receipts import Record
from labapp.errors import printable

EVERY = 5
"""Seconds from one drawing of the page to the next."""

TRIES = 4
"""So many tries at an exercise without a pass are being stuck."""

QUIET = 20
"""So many minutes without a receipt are being stuck as well."""

AWAY = 120
"""Who has not been heard of for so many minutes is away, and not stuck."""

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Row:
    """A learner; ``number`` stands for a hidden name, and is the place in the order of beginning.

    The state is ``asks``, ``stuck``, ``away``, ``done`` or ``here``, and ``why`` says more of it.
    Minutes are those since the last receipt, or since the learner came.
    """

    record: Record
    number: int
    state: str
    why: str
    where: str
    minutes: int


def rows(records: Iterable[Record], exercises: Sequence[str], now: datetime) -> list[Row]:
    """Return the learners in the order of their names, with what a teacher looks for at a time."""
    began = sorted(records, key=lambda record: (record.begun, record.learner))
    made = [_row(record, number, exercises, now) for number, record in enumerate(began, 1)]
    return sorted(made, key=lambda row: normalize("NFKD", row.record.learner.casefold()))


def page(
    records: Iterable[Record],
    now: datetime,
    *,
    token: str | None = None,
    every: int = EVERY,
    left_out: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    Args:
        records: the learners' receipts.
        now: the time, with its zone; minutes are counted to it.
        token: what the page sends along when a teacher clicks 'seen'; None leaves these out.
        every: seconds until it is drawn anew; 0 for a page that stays as it is.
        left_out: a sentence for each file that was not read.
    """
    exercises = list(all_exercises())
    learners = rows(records, exercises, now)
    passed = [sum(id in row.record.passed for row in learners) for id in exercises]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        finalize=lambda text: printable(text) if type(text) is str else text,
    )
    return environment.get_template("class.html.j2").render(
        learners=learners,
        exercises=exercises,
        chapters=[(each, len([*ids])) for each, ids in groupby(exercises, lambda id: id[:2])],
        passed=passed,
        states=[row.state for row in learners],
        time=now.astimezone().strftime("%H:%M:%S"),
        every=every,
        limits=(TRIES, QUIET, AWAY),
        token=token,
        left_out=left_out,
    )


def _row(record: Record, number: int, exercises: Sequence[str], now: datetime) -> Row:
    where = record.posted.where or _last_tried(record, exercises)
    if where.isdigit():  # a chapter that was opened: its first exercise that is left
        left = (id for id in exercises if id[:2] == where and id not in record.passed)
        where = next(left, where)
    receipts = [receipt.time for receipt in record.sound]
    minutes = _minutes([record.begun, record.posted.since, *receipts], now)
    silent = _minutes([record.begun, record.posted.last, *receipts], now)
    took = record.took(where)
    state, why = "here", ""
    if record.question.text and record.question.time != record.posted.seen:
        state, why = "asks", f"{_minutes([record.question.time], now)} min ago"
    elif record.passed.keys() >= {*exercises}:
        state = "done"
    elif silent >= AWAY:
        state = "away"
    elif took.by == "tried" and took.tries >= TRIES:
        state, why = "stuck", f"{min(took.tries, 99)} tries"
    elif minutes >= QUIET:
        state, why = "stuck", f"{minutes} min without a receipt"
    return Row(record, number, state, why, where, minutes)


def _last_tried(record: Record, exercises: Sequence[str]) -> str:
    """Tell where somebody is whose posts nobody saw: where tried last, or passed last."""
    tried = [id for id in exercises if id in record.attempts and id not in record.passed]
    passed = [receipt.exercise for receipt in record.sound if receipt.exercise in exercises]
    return (tried or passed or [""])[-1]


def _minutes(times: Iterable[str], now: datetime) -> int:
    """Count the minutes since the last of some times (ISO 8601), of which a stranger wrote some."""
    found = []
    for text in filter(None, times):
        try:
            time = datetime.fromisoformat(text)
            found.append(min(now, time if time.tzinfo else time.replace(tzinfo=UTC)))
        except (ValueError, OverflowError):
            continue
    return int((now - max(found)).total_seconds() // 60) if found else 0
