"""Who is where: a class as a grid of learners and exercises, and the map of an image's journey."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from labapp.charts.figure import (
    AMBER,
    DARK,
    DEEP,
    GREY,
    MARGIN,
    PALE,
    SMALL,
    TEXT,
    WIDTH,
    Chart,
    canvas,
    fitted,
    ink,
    text_width,
    whole,
    wrapped,
    write,
)
from labapp.charts.words import checked, counted, listed

_ROW, _HEAD = 17.0, 62.0
"""A learner's row, and the room above the grid for the exercises' names."""

_FILLS = {"alone": DEEP, "hints": PALE, "solution": AMBER, "tried": "white"}
"""How a cell is filled: passed alone, passed with hints, after the solution, or not passed."""

_STEP, _STEP_HEAD = 46.0, 20.0
_BOX = 40.0
_LINE, _NAME, _ATTACK, _CONTROL = 22.0, 44.0, 160.0, 396.0
"""Where, from the left, the journey's line and its columns stand."""


def classroom(cells: pd.DataFrame) -> Chart:
    """Draw who passed which exercise: a grid of learners and exercises.

    Args:
        cells: a row for each learner and exercise, both in the order to draw; columns ``learner``,
            ``exercise``, ``state`` (``alone``, ``hints``, ``solution``, ``tried`` or ``open``) and
            ``tries``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    checked("a class", cells, "learner", "exercise", "state", "tries#")
    learners = list(dict.fromkeys(cells["learner"]))
    exercises = list(dict.fromkeys(cells["exercise"]))
    passed = cells[cells["state"].isin(("alone", "hints", "solution"))]
    by = passed.groupby("exercise")["learner"].nunique()
    count = {exercise: int(by.get(exercise, 0)) for exercise in exercises}
    names = [fitted(str(name), 170, TEXT, keep="ends") for name in learners]
    left = MARGIN + max(text_width(name, TEXT) for name in [*names, "passed by"]) + 10
    foot = _HEAD + (len(learners) + 0.9) * _ROW
    axes = canvas(
        title=_class_title(cells, count, len(learners)), height=foot + _ROW / 2,
        left=left, right=20,
        note="The number in a square is how many answers it took. Dark: passed without help. "
        "Light: with hints. A dark corner: after the solution was looked at. Outlined: tried, not "
        "passed yet.",
    )  # fmt: skip
    column = min((WIDTH - left - 20) / len(exercises), 34.0)
    _class_head(axes, exercises, column)
    place = {name: _HEAD + number * _ROW for number, name in enumerate(learners)}
    for name, shown in zip(learners, names, strict=True):
        write(axes, -8, place[name] + _ROW / 2, shown, size=TEXT, ha="right")
    for cell in cells.to_dict("records"):
        x = exercises.index(cell["exercise"]) * column
        _cell(axes, x, place[cell["learner"]], column, cell["state"], int(cell["tries"]))
    write(axes, -8, foot, "passed by", size=TEXT, ha="right")
    for number, exercise in enumerate(exercises):
        x = (number + 0.5) * column
        write(axes, x, foot, str(count[exercise]), ha="center", weight="bold")
    said = "; ".join(f"{exercise} by {count[exercise]}" for exercise in exercises)
    return Chart(
        whole(axes),
        f"Grid of {counted(len(learners), 'learner')} and {counted(len(exercises), 'exercise')}. "
        f"Passed: {said}.",
    )


def _class_title(cells: pd.DataFrame, count: dict[str, int], learners: int) -> str:
    """Say how far the class is, and the exercise at which most of it hangs."""
    most, done = learners * len(count), sum(count.values())
    if done == most:
        return f"Everybody passed everything: {counted(most, 'receipt')}"
    title = f"{counted(learners, 'learner')}: {done} of {most} exercises passed"
    tried = list(cells.loc[cells["state"] == "tried", "exercise"])
    hard = max(count, key=tried.count)
    if tried.count(hard) < 2:
        return title
    return f"{title}; {tried.count(hard)} tried {hard} and have not passed it yet"


def _class_head(axes: Axes, exercises: list[str], column: float) -> None:
    """Write the exercises' names above their columns, and the chapters above those."""
    chapters: dict[str, list[int]] = {}
    for number, exercise in enumerate(exercises):
        chapter, _, word = exercise.partition("-")
        chapters.setdefault(chapter, []).append(number)
        x = (number + 0.5) * column
        write(axes, x, _HEAD - 4, word or chapter, rotation=90, ha="center", va="bottom")
    for chapter, numbers in chapters.items():
        start, end = numbers[0] * column + 1.5, (numbers[-1] + 1) * column - 1.5
        axes.plot([start, end], [12, 12], color=GREY, linewidth=1)
        write(axes, (start + end) / 2, 5, chapter, ha="center", weight="bold")


def _cell(axes: Axes, x: float, y: float, width: float, state: str, tries: int) -> None:
    if state not in _FILLS:
        axes.plot([x + width / 2], [y + _ROW / 2], marker=".", color=GREY, markersize=4)
        return
    fill, right = _FILLS[state], x + width - 1
    axes.add_patch(
        Rectangle((x + 1, y + 1), width - 2, _ROW - 2, facecolor=fill, linewidth=0.8,
                  edgecolor=GREY if state == "tried" else fill)
    )  # fmt: skip
    if state == "solution":
        corner = ((right - 5, y + 1), (right, y + 1), (right, y + 6))
        axes.add_patch(Polygon(corner, facecolor=DARK, edgecolor="none"))
    number = str(tries) if tries < 100 else "…"
    middle = x + width / 2, y + _ROW / 2
    write(axes, *middle, number, ha="center", va="center_baseline", color=ink(fill))


def journey(rows: pd.DataFrame) -> Chart:
    """Draw the steps of the journey; one whose exercises are all passed is lit.

    Args:
        rows: a row a step, in order; columns ``step``, ``attack``, ``control``, ``passed`` and
            ``exercises`` (how many are passed, of how many).

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    checked("the journey", rows, "step", "attack", "control", "passed#", "exercises#")
    steps: list[Any] = list(rows.itertuples())
    lit = [step.step for step in steps if step.passed >= step.exercises]
    axes = canvas(
        title=_journey_title(len(lit), len(steps)), height=_STEP_HEAD + len(steps) * _STEP
    )
    for x, text in ((_ATTACK, "what can get in"), (_CONTROL, "what stops it")):
        write(axes, x, _STEP_HEAD / 2, text)
    middles = [_STEP_HEAD + number * _STEP + _BOX / 2 for number in range(len(steps))]
    axes.plot([_LINE, _LINE], [middles[0], middles[-1]], color=GREY, linewidth=3, zorder=2)
    said = []
    for step, middle in zip(steps, middles, strict=True):
        share = f"{step.passed:.0f} of {step.exercises:.0f}"
        said.append(f"{step.step}: {share} exercises passed")
        _station(axes, middle, step.passed, is_lit=step.step in lit)
        write(axes, _NAME, middle - 7, step.step, size=TEXT, weight="bold", zorder=4)
        noun = "exercise" if step.exercises == 1 else "exercises"
        write(axes, _NAME, middle + 7, f"{share} {noun}", zorder=4)
        for x, end, text in (
            (_ATTACK, _CONTROL, step.attack),
            (_CONTROL, WIDTH - 2 * MARGIN, step.control),
        ):
            lines = wrapped(text, end - x - 14, SMALL)
            write(axes, x, middle, "\n".join(lines[:3]), zorder=4)
    which = f"Lit: {listed(lit)}. " if lit else "None is lit. "
    words = "; ".join(said)
    return Chart(
        whole(axes), f"Map of the journey of an image, in {len(steps)} steps. {which}{words}."
    )


def _journey_title(lit: int, steps: int) -> str:
    if lit == steps:
        return f"All {steps} steps are lit: you know what gets in at each one, and what stops it"
    if lit == 0:
        return f"{steps} steps, and at each one the wrong thing can get in. None is lit yet"
    return f"{lit} of {steps} steps {'is' if lit == 1 else 'are'} lit"


def _station(axes: Axes, middle: float, passed: float, *, is_lit: bool) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (_NAME - 8, middle - _BOX / 2), WIDTH - 2 * MARGIN - _NAME + 7, _BOX,
            boxstyle="round,pad=0,rounding_size=4", facecolor=PALE if is_lit else "white",
            edgecolor=DEEP if is_lit else GREY, linewidth=1.2 if is_lit else 0.8, zorder=1,
        )
    )  # fmt: skip
    colour = DEEP if is_lit else PALE if passed else "white"
    edge = DEEP if passed else GREY
    axes.add_patch(
        Circle((_LINE, middle), 9.0, facecolor=colour, edgecolor=edge, linewidth=2, zorder=3)
    )
    mark = "✓" if is_lit else f"{passed:.0f}" if passed else ""
    ink_of_mark = "white" if is_lit else DEEP
    write(axes, _LINE, middle, mark, ha="center", va="center_baseline", zorder=4, weight="bold",
          color=ink_of_mark)  # fmt: skip
