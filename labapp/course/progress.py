"""How far a learner is: every exercise with what it took, where to go on, and the journey map."""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from labapp.course.exercises import all_exercises
from labapp.course.receipts import Attempt, Receipts

if TYPE_CHECKING:
    from labapp.charts import Chart

_SIGNS = {"tried": "…", "open": "○"}


def overview(receipts: Receipts, notebooks: Path) -> str:
    """Tell how far a learner is, by the receipts and the folder of the chapters."""
    record = receipts.read()
    files = {file.name[:2]: file.stem for file in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))}
    took = {id: record.took(id) for id in all_exercises()}
    left = [id for id in took if id not in record.passed]
    summary = f"{record.learner}: {len(took) - len(left)} of {len(took)} exercises passed."
    advice = "All exercises are passed."
    if left:
        chapter = left[0][:2]
        advice = f"Go on with {left[0]}, in {files.get(chapter, chapter)}.ipynb."
    notes = [
        f"A receipts file could not be read and was put aside: '{file}'. If you have a copy that "
        f"can be read, put it in place of '{receipts.file}'. Delete what was put aside, and "
        "this note is gone."
        for file in receipts.damaged
    ]
    if record.broken is not None:
        notes.append(
            f"{record.broken.text} Put a copy in place of '{receipts.file}', or move that file "
            "away and let the checks run again."
        )
    parts = (f"{summary}\n✓ passed, … tried, ○ not begun", _by_chapter(took, files), *notes, advice)
    return "\n\n".join(parts) + f"\nThe receipts are in '{receipts.file}'."


def chapter_of(receipts: Receipts, notebooks: Path) -> Path | None:
    """Return the file of the chapter where a learner goes on: the first with work left in it."""
    passed = receipts.read().passed
    files = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    left = {id[:2] for id in all_exercises() if id not in passed}
    return next((file for file in files if file.name[:2] in left), files[-1] if files else None)


def _by_chapter(took: Mapping[str, Attempt], files: Mapping[str, str]) -> str:
    """Return a line for each chapter: its exercises with a sign each, and what they took."""
    rows = []
    for number, ids in groupby(took, lambda id: id[:2]):
        here = {id: took[id] for id in ids}
        counts = {
            "tries": sum(each.tries for each in here.values()),
            "hints": sum(each.hints for each in here.values()),
            "solutions seen": sum(each.solution for each in here.values()),
        }
        marks = ", ".join(f"{_SIGNS.get(each.by, '✓')} {id}" for id, each in here.items())
        sums = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
        rows.append((files.get(number, number), marks, sums))
    name, exercises = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{row[0]:{name}}  {row[1]:{exercises}}  {row[2]}".rstrip() for row in rows)


def journey_map(passed: Container[str]) -> Chart:
    """Return the map for the exercises that a learner passed, with a table of those that are left.

    A step of the journey is one of the attacks and what stops it, or, at last, all of them.
    """
    import pandas as pd

    from labapp.attacks.attacks import ATTACKS
    from labapp.charts import journey

    exercises = all_exercises().values()
    steps = [(each.id, each.step, each.wrong, each.control) for each in ATTACKS.values()]
    wrong = "a saboteur, who takes one to three of these"
    steps.append(("all", "All of it", wrong, "a delivery script of your own that survives"))
    rows = []
    for id, step, attack, control in steps:
        here = [each.id for each in exercises if each.step == id]
        left = [id for id in here if id not in passed]
        count = len(here) - len(left), len(here)
        rows.append((step[:1].upper() + step[1:], attack, control, *count, ", ".join(left)))
    columns = ["step", "attack", "control", "passed", "exercises", "left"]
    return journey(pd.DataFrame(rows, columns=columns))
