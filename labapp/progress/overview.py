"""How far a learner is: every exercise with what it took, and where to go on."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from labapp.exercises import all_exercises
from labapp.progress.chain import Attempt, Record
from labapp.progress.receipts import Receipts

_SIGNS = {"passed": "✓", "tried": "…", "open": "○"}


@dataclass(frozen=True)
class Progress:
    """How far a learner is.

    Attributes:
        learner: whose receipts these are.
        rows: a row an exercise, in the order of the chapters; columns ``chapter`` (its notebook's
            name), ``exercise``, ``state`` (``passed``, ``tried`` or ``open``), ``tries``,
            ``hints``, ``solution`` (whether it was looked at) and ``time`` (of passing, UTC).
        notes: what is wrong with the receipts, in sentences.
        file: where the receipts are.
    """

    learner: str
    rows: pd.DataFrame
    notes: tuple[str, ...]
    file: Path

    @property
    def summary(self) -> str:
        """How many exercises are passed, in a sentence."""
        passed = int((self.rows["state"] == "passed").sum())
        return f"{self.learner}: {passed} of {len(self.rows)} exercises passed."

    @property
    def next(self) -> str | None:
        """The first exercise that is not passed; None when all are."""
        left = self.rows.loc[self.rows["state"] != "passed", "exercise"]
        return None if left.empty else str(left.iloc[0])

    @property
    def advice(self) -> str:
        """Where to go on, in a sentence."""
        if self.next is None:
            return "All exercises are passed."
        return f"Go on with {self.next}, in {self._notebook}."

    @property
    def chapters(self) -> list[tuple[str, str, str]]:
        """For each chapter its name, its exercises with a sign each, and what they took."""
        told = []
        for chapter, rows in self.rows.groupby("chapter", sort=False):
            pairs = zip(rows["state"], rows["exercise"], strict=True)
            marks = "  ".join(f"{_SIGNS[state]} {exercise}" for state, exercise in pairs)
            tries, hints = int(rows["tries"].sum()), int(rows["hints"].sum())
            took = [f"{tries} {'try' if tries == 1 else 'tries'}"] if tries else []
            took += [f"{hints} {'hint' if hints == 1 else 'hints'}"] if hints else []
            seen = int(rows["solution"].sum())
            took += [f"{seen} {'solution' if seen == 1 else 'solutions'} seen"] if seen else []
            told.append((str(chapter), marks, ", ".join(took)))
        return told

    @property
    def _notebook(self) -> str:
        return f"{self.rows.loc[self.rows['exercise'] == self.next, 'chapter'].iloc[0]}.ipynb"

    def __repr__(self) -> str:
        chapters = (f"{name}  {marks}  {took}".rstrip() for name, marks, took in self.chapters)
        return "\n".join((self.summary, *chapters, *self.notes, self.advice))

    def _repr_html_(self) -> str:
        """Show a table, and a link to where to go on."""
        cell = '<td style="text-align:left;padding-left:12px">'
        rows = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(name)}</th>'
            f"{cell}{html.escape(marks).replace('  ', '&emsp;')}</td>"
            f"{cell}{html.escape(took)}</td></tr>"
            for name, marks, took in self.chapters
        )
        notes = "".join(f"<p><b>{html.escape(note)}</b></p>" for note in self.notes)
        advice = html.escape(self.advice)
        if self.next is not None:
            name = html.escape(self._notebook)
            advice = advice.replace(name, f'<a href="{name}">{name}</a>')
        return (
            f'<div class="labapp-progress"><p>{html.escape(self.summary)} '
            "✓ passed, … tried, ○ not begun</p>"
            f'<table aria-label="Progress by chapter">{rows}</table>{notes}<p>{advice}</p></div>'
        )


def overview(receipts: Receipts, notebooks: Path) -> Progress:
    """Return how far a learner is.

    Args:
        receipts: the learner's.
        notebooks: the folder of the chapters.

    Raises:
        StateError: the receipts were written by another version of the lab.
    """
    record = receipts.read()
    files = {file.name[:2]: file.stem for file in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))}
    rows = [
        {"chapter": files.get(id[:2], id[:2]), "exercise": id, **state_of(record, id)}
        for id in all_exercises()
    ]
    return Progress(record.learner, pd.DataFrame(rows), _notes(receipts, record), receipts.file)


def state_of(record: Record, exercise: str) -> dict[str, object]:
    """Return what a record says of an exercise.

    Returns:
        ``state``, ``tries``, ``hints``, ``solution`` and ``time``, as in the rows of a progress.
    """
    receipt = record.passed.get(exercise)
    found = receipt or record.attempts.get(exercise, Attempt())
    return {
        "state": "passed" if receipt else "open" if found == Attempt() else "tried",
        "tries": found.tries,
        "hints": found.hints,
        "solution": found.solution,
        "time": receipt.time if receipt else "",
    }


def _notes(receipts: Receipts, record: Record) -> tuple[str, ...]:
    notes = [
        f"A receipts file could not be read and was put aside: '{file}'. If you have a copy that "
        f"can be read, put it in place of '{receipts.file}'. Delete what was put aside, and "
        "this note is gone."
        for file in receipts.damaged
    ]
    if record.broken is not None:
        notes.append(
            f"The receipts are not as the lab wrote them: {record.broken.text}. What comes after "
            f"does not count. Put a copy in place of '{receipts.file}', or move that file away "
            "and let the checks run again."
        )
    return tuple(notes)
