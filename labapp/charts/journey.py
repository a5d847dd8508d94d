"""The journey of an image as a line of stations, each with what can get in and what stops it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch

from labapp.charts.figure import (
    DARK,
    DEEP,
    GREY,
    MARGIN,
    PALE,
    SMALL,
    TEXT,
    WIDTH,
    Chart,
    frame,
    whole,
    wrapped,
)
from labapp.charts.rows import checked, listed

_ROW, _GAP, _HEAD = 40.0, 6.0, 20.0
_LINE, _NAME, _ATTACK, _CONTROL = 22.0, 44.0, 160.0, 396.0
"""Where, from the left, the line and the columns stand."""

_RADIUS = 9.0


def journey(rows: pd.DataFrame) -> Chart:
    """Draw the steps of the journey; one whose exercises are all passed is lit.

    Args:
        rows: a row a step, in order; columns ``step``, ``attack``, ``control``, ``passed`` and
            ``exercises`` (how many are passed, of how many).

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    columns = ("step", "attack", "control", "passed#", "exercises#")
    steps = checked(rows, *columns, chart="the journey").to_dict("records")
    lit = [step["step"] for step in steps if step["passed"] >= step["exercises"]]
    height = _HEAD + len(steps) * (_ROW + _GAP)
    axes = frame(title=_title(len(lit), len(steps)), height=height, left=MARGIN, right=MARGIN,
                 bottom=MARGIN)  # fmt: skip
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH - 2 * MARGIN)
    axes.set_ylim(height, 0)
    for x, text in ((_ATTACK, "what can get in"), (_CONTROL, "what stops it")):
        _write(axes, x, _HEAD / 2, text, colour=DARK)
    middles = [_HEAD + number * (_ROW + _GAP) + _ROW / 2 for number in range(len(steps))]
    axes.plot([_LINE, _LINE], [middles[0], middles[-1]], color=GREY, linewidth=3, zorder=2)
    for step, middle in zip(steps, middles, strict=True):
        _draw(axes, step, middle)
    said = "; ".join(
        f"{step['step']}: {step['passed']:.0f} of {step['exercises']:.0f} exercises passed"
        for step in steps
    )
    which = f"Lit: {listed(lit)}. " if lit else "None is lit. "
    return Chart(
        whole(axes), f"Map of the journey of an image, in {len(steps)} steps. {which}{said}."
    )


def _title(lit: int, steps: int) -> str:
    if lit == steps:
        return f"All {steps} steps are lit: you know what gets in at each one, and what stops it"
    if lit == 0:
        return f"{steps} steps, and at each one the wrong thing can get in. None is lit yet"
    return f"{lit} of {steps} steps {'is' if lit == 1 else 'are'} lit"


def _draw(axes: Axes, step: Mapping[Hashable, Any], middle: float) -> None:
    passed, of = step["passed"], step["exercises"]
    is_lit = passed >= of
    axes.add_patch(
        FancyBboxPatch(
            (_NAME - 8, middle - _ROW / 2), WIDTH - 2 * MARGIN - _NAME + 7, _ROW,
            boxstyle="round,pad=0,rounding_size=4", facecolor=PALE if is_lit else "white",
            edgecolor=DEEP if is_lit else GREY, linewidth=1.2 if is_lit else 0.8, zorder=1,
        )
    )  # fmt: skip
    colour = DEEP if is_lit else PALE if passed else "white"
    edge = DEEP if passed else GREY
    axes.add_patch(
        Circle((_LINE, middle), _RADIUS, facecolor=colour, edgecolor=edge, linewidth=2, zorder=3)
    )
    mark = "✓" if is_lit else f"{passed:.0f}" if passed else ""
    axes.text(_LINE, middle, mark, ha="center", va="center_baseline", fontsize=SMALL, zorder=4,
              weight="bold", color="white" if is_lit else DEEP)  # fmt: skip
    _write(axes, _NAME, middle - 7, str(step["step"]), bold=True)
    exercises = "exercise" if of == 1 else "exercises"
    _write(axes, _NAME, middle + 7, f"{passed:.0f} of {of:.0f} {exercises}")
    for x, end, text in (
        (_ATTACK, _CONTROL, step["attack"]),
        (_CONTROL, WIDTH - 2 * MARGIN, step["control"]),
    ):
        lines = wrapped(str(text), end - x - 14, SMALL)
        _write(axes, x, middle, "\n".join(lines[:3]))


def _write(axes: Axes, x: float, y: float, text: str, *, bold: bool = False,
           colour: str = DARK) -> None:  # fmt: skip
    axes.text(
        x, y, text, va="center", fontsize=TEXT if bold else SMALL, color=colour, zorder=4,
        weight="bold" if bold else "normal", linespacing=1.2, parse_math=False,
    )  # fmt: skip
