"""How far a learner is: every exercise with what it took, where to go on, and the journey map."""

from __future__ import annotations

import html
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from labapp.course.exercises import all_exercises
from labapp.course.receipts import Receipts, Record, Standing, standing

if TYPE_CHECKING:
    import pandas as pd

    from labapp.charts import Chart

_SIGNS = {"passed": "✓", "tried": "…", "open": "○"}
_HEADS = ("Step", "What can get in", "What stops it", "Passed", "Still to do")
_ROW_HEAD = '<th scope="row" style="text-align:left">'
_LEGEND = "✓ passed, … tried, ○ not begun"


@dataclass(frozen=True)
class Progress:
    """How far a learner is.

    Attributes:
        learner: whose receipts these are.
        standings: of every exercise, in the order of the chapters.
        notebooks: the chapters' names, by their numbers.
        notes: what is wrong with the receipts, in sentences.
        file: where the receipts are.
    """

    learner: str
    standings: tuple[Standing, ...] = field(repr=False)
    notebooks: dict[str, str] = field(repr=False)
    notes: tuple[str, ...]
    file: Path

    @property
    def rows(self) -> pd.DataFrame:
        """A row an exercise, in the order of the chapters.

        Columns: ``chapter`` (its notebook's name), ``exercise``, ``state`` (``passed``, ``tried``
        or ``open``), ``tries``, ``hints``, ``solution`` (whether it was looked at) and ``time`` (of
        passing, UTC).
        """
        import pandas as pd

        return pd.DataFrame(
            [{"chapter": self._chapter(each.exercise), **asdict(each)} for each in self.standings]
        )

    @property
    def summary(self) -> str:
        """How many exercises are passed, in a sentence."""
        passed = sum(each.state == "passed" for each in self.standings)
        return f"{self.learner}: {passed} of {len(self.standings)} exercises passed."

    @property
    def next(self) -> str | None:
        """The first exercise that is not passed; None when all are."""
        left = (each.exercise for each in self.standings if each.state != "passed")
        return next(left, None)

    @property
    def advice(self) -> str:
        """Where to go on, in a sentence."""
        if self.next is None:
            return "All exercises are passed."
        return f"Go on with {self.next}, in {self._chapter(self.next)}.ipynb."

    @property
    def chapters(self) -> list[tuple[str, str, str]]:
        """For each chapter its name, its exercises with a sign each, and what they took."""
        told = []
        for chapter, rows in groupby(self.standings, lambda each: self._chapter(each.exercise)):
            found = list(rows)
            marks = "  ".join(f"{_SIGNS[each.state]} {each.exercise}" for each in found)
            took = [
                _counted(sum(each.tries for each in found), "try", "tries"),
                _counted(sum(each.hints for each in found), "hint", "hints"),
                _counted(sum(each.solution for each in found), "solution seen", "solutions seen"),
            ]
            told.append((chapter, marks, ", ".join(filter(None, took))))
        return told

    def _chapter(self, exercise: str) -> str:
        return self.notebooks.get(exercise[:2], exercise[:2])

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.chapters, strict=True)]
        rows = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in self.chapters
        )
        parts = (f"{self.summary}\n{_LEGEND}", "\n".join(rows), *self.notes, self.advice)
        return "\n\n".join(parts) + f"\nThe receipts are in '{self.file}'."

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
            name = html.escape(f"{self._chapter(self.next)}.ipynb")
            advice = advice.replace(name, f'<a href="{name}">{name}</a>')
        return (
            f'<div class="labapp-progress"><p>{html.escape(self.summary)} {_LEGEND}</p>'
            f'<table aria-label="Progress by chapter">{rows}</table>{notes}<p>{advice}</p></div>'
        )


def _counted(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}" if count else ""


def overview(receipts: Receipts, notebooks: Path) -> Progress:
    """Return how far a learner is, by the receipts and the folder of the chapters."""
    record = receipts.read()
    files = {file.name[:2]: file.stem for file in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))}
    standings = tuple(standing(record, id) for id in all_exercises())
    return Progress(record.learner, standings, files, _notes(receipts, record), receipts.file)


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


_LAST_STEP = (
    "all",
    "All of it",
    "a saboteur, who takes one to three of these",
    "a delivery script of your own that survives",
)


@dataclass(frozen=True)
class JourneyMap:
    """The map, as a picture and as a table.

    Attributes:
        rows: a row a step; columns ``step``, ``attack``, ``control``, ``passed``, ``exercises``
            (how many are passed, of how many) and ``left`` (the ids of the others).
        chart: the picture.
    """

    rows: pd.DataFrame
    chart: Chart

    def __repr__(self) -> str:
        return repr(self.chart)

    def _repr_html_(self) -> str:
        """Show the picture, and below it the same as a table, which screen readers can walk."""
        import pandas as pd

        passed = [f"{row.passed} of {row.exercises}" for row in self.rows.itertuples()]
        left = self.rows["left"].replace("", "nothing: it is lit")
        shown = self.rows[["step", "attack", "control"]].assign(passed=passed, left=left)
        table = shown.set_axis(list(_HEADS), axis=1).set_index(_HEADS[0])
        with pd.option_context("display.max_colwidth", None):
            text = table.to_html(index_names=False, justify="left", border=0)
        head, _, body = text.partition("<tbody>")
        return (
            f"{self.chart._repr_html_()}"
            '<details class="labapp-journey"><summary>The same as a table</summary>'
            f"{head.replace('<th>', '<th scope=col>')}<tbody>{body.replace('<th>', _ROW_HEAD)}"
            "</details>"
        )


def journey_map(passed: Container[str]) -> JourneyMap:
    """Return the map for what a learner passed, given by the ids of the exercises.

    A step of the journey is one of the attacks and what stops it, or, at last, all of them; an
    exercise's file names the step that it helps to light by the attack's id.
    """
    import pandas as pd

    from labapp.attacks.attacks import ATTACKS
    from labapp.charts import journey

    exercises = all_exercises().values()
    steps = [(each.id, each.step, each.wrong, each.control) for each in ATTACKS]
    rows = []
    for id, step, attack, control in (*steps, _LAST_STEP):
        here = [each.id for each in exercises if each.step == id]
        left = [id for id in here if id not in passed]
        rows.append(
            {
                "step": step[:1].upper() + step[1:],
                "attack": attack,
                "control": control,
                "passed": len(here) - len(left),
                "exercises": len(here),
                "left": ", ".join(left),
            }
        )
    table = pd.DataFrame(rows)
    return JourneyMap(table, journey(table))
