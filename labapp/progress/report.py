"""The report on a class, from a folder of receipts: who is where, and which exercise is hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from labapp.charts import Chart, classroom
from labapp.errors import StateError
from labapp.progress import submitted as submissions
from labapp.progress.chain import Record
from labapp.progress.overview import state_of
from labapp.progress.submitted import Submitted
from labapp.registry import Registry


@dataclass(frozen=True)
class ClassReport:
    """What a folder of receipts says of a class.

    Attributes:
        learners: a row a learner, those who are furthest first; columns ``learner``, ``file``,
            ``passed``, ``of``, ``tries``, ``hints``, ``solutions`` (how many were looked at),
            ``last`` (time of the last receipt, UTC), ``chain`` (``whole``, or at which receipt it
            is broken), ``images`` and ``verified`` (how many images the receipts name, and how many
            of them the registry has) and ``notes`` (a tuple of sentences).
        exercises: a row an exercise; columns ``exercise``, ``passed`` and ``tried`` (by how many
            learners), ``tries`` and ``hints`` (medians of those who passed) and ``solutions``.
        cells: a row for each learner and exercise; columns ``learner``, ``exercise``, ``state``
            (``alone``, ``hints``, ``solution``, ``tried`` or ``open``), ``tries``, ``hints`` and
            ``solution``.
        left_out: a sentence for each file that is not in the tables.
    """

    learners: pd.DataFrame
    exercises: pd.DataFrame
    cells: pd.DataFrame
    left_out: tuple[str, ...]

    @property
    def chart(self) -> Chart:
        """The class at a glance: a grid of learners and exercises."""
        return classroom(self.cells)

    @property
    def points(self) -> pd.DataFrame:
        """A point for each passed exercise: a row a learner, a column a chapter."""
        done = self.cells["state"].isin(("alone", "hints", "solution")).astype(int)
        rows = self.cells.assign(points=done, chapter=self.cells["exercise"].str[:2])
        table = rows.pivot_table(
            index="learner", columns="chapter", values="points", aggfunc="sum", sort=False
        )
        return pd.DataFrame(table.astype(int))

    def gradebook(self, platform: str) -> str:
        """Return the points as a CSV text that a learning platform imports.

        Args:
            platform: ``moodle``: columns ``Username``, ``Email address`` and one a chapter, to be
                mapped to the course's grade items on import. ``canvas``: the columns of its own
                export (``Student``, ``ID``, ``SIS User ID``, ``SIS Login ID``, ``Section``), one a
                chapter, and the row of points possible.

        Source: Moodle's documentation, "Grade import"; Canvas' ``gradebook_importer.rb``.
        """
        points = self.points
        titles = {chapter: f"Image lab, chapter {chapter}" for chapter in points.columns}
        grades = points.rename(columns=titles).reset_index()
        names = grades.pop("learner").map(_harmless)
        if platform == "moodle":
            grades.insert(0, "Username", names)
            grades.insert(1, "Email address", names.where(names.str.contains("@"), ""))
            return str(grades.to_csv(index=False))
        possible = self.exercises["exercise"].str[:2].value_counts()
        row = {titles[chapter]: int(possible[chapter]) for chapter in points.columns}
        full = pd.concat([pd.DataFrame([row]), grades], ignore_index=True)
        full.insert(0, "Student", ["    Points Possible", *names])
        for place, column in enumerate(("ID", "SIS User ID", "SIS Login ID", "Section"), 1):
            full.insert(place, column, ["", *names] if column == "SIS Login ID" else "")
        return str(full.to_csv(index=False))


def report(
    folder: Path, exercises: Sequence[str], *, registry: Registry | None = None
) -> ClassReport:
    """Read a folder of receipts.

    Args:
        folder: every ``.json`` file in it, and in its folders, is looked at.
        exercises: the ids of all exercises, in order.
        registry: asked whether it has the images that the receipts name.

    Raises:
        StateError: there is no such folder, or no receipts in it.
        RegistryUnreachable: the registry does not answer.
    """
    submitted, left_out = submissions.read(folder)
    if not submitted:
        told = f" {left_out[0]}" if left_out else ""
        raise StateError(
            f"reading the receipts in '{folder}': there are none.{told} Learners save theirs with "
            "'python3 -m labapp progress --save FILE.json'."
        )
    if registry is not None:
        submitted = submissions.verified(submitted, registry)
    submitted.sort(key=lambda each: (-len(each.record.passed), each.record.learner))
    names = _unique([each.record.learner for each in submitted])
    cells = pd.DataFrame(
        [
            {"learner": name, "exercise": exercise, **_cell(each.record, exercise)}
            for name, each in zip(names, submitted, strict=True)
            for exercise in exercises
        ]
    )
    learners = pd.DataFrame(
        [
            {"learner": name, **_row(each, exercises)}
            for name, each in zip(names, submitted, strict=True)
        ]
    )
    by_exercise = [
        {"exercise": exercise, **_of_all(cells[cells["exercise"] == exercise])}
        for exercise in exercises
    ]
    return ClassReport(learners, pd.DataFrame(by_exercise), cells, tuple(left_out))


def _cell(record: Record, exercise: str) -> dict[str, object]:
    found = state_of(record, exercise)
    state = found["state"]
    if state == "passed":
        state = "solution" if found["solution"] else "hints" if found["hints"] else "alone"
    kept = {name: found[name] for name in ("tries", "hints", "solution")}
    return {"state": state, **kept}


def _row(each: Submitted, exercises: Sequence[str]) -> Mapping[str, object]:
    record, passed = each.record, each.record.passed
    known = [receipt for id, receipt in passed.items() if id in exercises]
    broken = record.broken
    return {
        "file": str(each.file),
        "passed": len(known),
        "of": len(exercises),
        "tries": sum(receipt.tries for receipt in known),
        "hints": sum(receipt.hints for receipt in known),
        "solutions": sum(receipt.solution for receipt in known),
        "last": max((receipt.time for receipt in known), default=""),
        "chain": "whole" if broken is None else f"broken at {broken.number}",
        "images": each.images,
        "verified": each.verified,
        "notes": each.notes if broken is None else (broken.text, *each.notes),
    }


def _of_all(cells: pd.DataFrame) -> dict[str, object]:
    done = cells[cells["state"].isin(("alone", "hints", "solution"))]
    return {
        "passed": len(done),
        "tried": int((cells["state"] != "open").sum()),
        "tries": float(done["tries"].median()) if len(done) else None,
        "hints": float(done["hints"].median()) if len(done) else None,
        "solutions": int(done["solution"].sum()),
    }


def _unique(names: Sequence[str]) -> list[str]:
    """Return names, the second of the same as ``ada (2)``."""
    seen: dict[str, int] = {}
    told = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        told.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return told


def _harmless(name: str) -> str:
    """Return a learner's name so that a spreadsheet doesn't take it for a formula."""
    return f"'{name}" if name[:1] in "=+-@" else name
