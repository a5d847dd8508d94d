"""A class at a glance: learners, exercises, and who passed which with how much help."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

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
    fitted_middle,
    frame,
    ink,
    text_width,
    whole,
)
from labapp.charts.rows import checked, counted

_ROW, _NAMES = 17.0, 170.0
_HEAD = 62.0
"""Room above the grid for the exercises' names."""

_FILLS = {"alone": DEEP, "hints": PALE, "solution": AMBER, "tried": "white"}
"""How a cell is filled: passed alone, passed with hints, after the solution, or not passed."""

_NOTE = (
    "The number in a square is how many answers it took. Dark: passed without help. Light: with "
    "hints. A dark corner: after the solution was looked at. Outlined: tried, not passed yet."
)


def classroom(cells: pd.DataFrame) -> Chart:
    """Draw who passed which exercise: a grid of learners and exercises.

    Args:
        cells: a row for each learner and exercise, both in the order to draw; columns ``learner``,
            ``exercise``, ``state`` (``alone``, ``hints``, ``solution``, ``tried`` or ``open``) and
            ``tries``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    checked(cells, "learner", "exercise", "state", "tries#", chart="a class")
    learners = list(dict.fromkeys(cells["learner"]))
    exercises = list(dict.fromkeys(cells["exercise"]))
    passed = cells[cells["state"].isin(("alone", "hints", "solution"))]
    by = passed.groupby("exercise")["learner"].nunique()
    count = {exercise: int(by.get(exercise, 0)) for exercise in exercises}
    names = [fitted_middle(str(name), _NAMES, TEXT) for name in learners]
    left = MARGIN + max(text_width(name, TEXT) for name in [*names, "passed by"]) + 10
    height = _HEAD + (len(learners) + 1.4) * _ROW
    axes = frame(
        title=_title(cells, count, len(learners)),
        height=height,
        left=left,
        bottom=MARGIN,
        note=_NOTE,
    )
    axes.set_axis_off()
    wide = WIDTH - left - 20
    column = min(wide / len(exercises), 34.0)
    axes.set_xlim(0, wide)
    axes.set_ylim(height, 0)
    _head(axes, exercises, column)
    place = {name: _HEAD + number * _ROW for number, name in enumerate(learners)}
    for name, shown in zip(learners, names, strict=True):
        axes.text(-8, place[name] + _ROW / 2, shown, ha="right", va="center", fontsize=TEXT,
                  color=DARK, parse_math=False)  # fmt: skip
    for cell in cells.to_dict("records"):
        x = exercises.index(cell["exercise"]) * column
        _cell(axes, x, place[cell["learner"]], column, cell["state"], int(cell["tries"]))
    foot = _HEAD + (len(learners) + 0.9) * _ROW
    axes.text(-8, foot, "passed by", ha="right", va="center", fontsize=TEXT, color=DARK)
    for number, exercise in enumerate(exercises):
        axes.text((number + 0.5) * column, foot, str(count[exercise]), ha="center", va="center",
                  fontsize=SMALL, weight="bold", color=DARK)  # fmt: skip
    said = "; ".join(f"{exercise} by {count[exercise]}" for exercise in exercises)
    return Chart(
        whole(axes),
        f"Grid of {counted(len(learners), 'learner')} and {counted(len(exercises), 'exercise')}. "
        f"Passed: {said}.",
    )


def _title(cells: pd.DataFrame, count: dict[str, int], learners: int) -> str:
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


def _head(axes: Axes, exercises: list[str], column: float) -> None:
    """Write the exercises' names above their columns, and the chapters above those."""
    chapters: dict[str, list[int]] = {}
    for number, exercise in enumerate(exercises):
        chapter, _, word = exercise.partition("-")
        chapters.setdefault(chapter, []).append(number)
        axes.text((number + 0.5) * column, _HEAD - 4, word or chapter, rotation=90, ha="center",
                  va="bottom", fontsize=SMALL, color=DARK, parse_math=False)  # fmt: skip
    for chapter, numbers in chapters.items():
        start, end = numbers[0] * column + 1.5, (numbers[-1] + 1) * column - 1.5
        axes.plot([start, end], [12, 12], color=GREY, linewidth=1)
        axes.text((start + end) / 2, 5, chapter, ha="center", va="center", fontsize=SMALL,
                  weight="bold", color=DARK, parse_math=False)  # fmt: skip


def _cell(axes: Axes, x: float, y: float, width: float, state: str, tries: int) -> None:
    if state not in _FILLS:
        axes.plot([x + width / 2], [y + _ROW / 2], marker=".", color=GREY, markersize=4)
        return
    fill = _FILLS[state]
    left, top, right, bottom = x + 1, y + 1, x + width - 1, y + _ROW - 1
    axes.add_patch(
        Rectangle(
            (left, top), right - left, bottom - top, facecolor=fill, linewidth=0.8,
            edgecolor=GREY if state == "tried" else fill,
        )
    )  # fmt: skip
    if state == "solution":
        corner = ((right - 5, top), (right, top), (right, top + 5))
        axes.add_patch(Polygon(corner, facecolor=DARK, edgecolor="none"))
    axes.text(x + width / 2, y + _ROW / 2, str(tries) if tries < 100 else "…", ha="center",
              va="center_baseline", fontsize=SMALL, color=ink(fill))  # fmt: skip
