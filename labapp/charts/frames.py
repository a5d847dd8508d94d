"""Axes for horizontal bars: names before them, and what they amount to behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from labapp.charts.figure import (
    DARK,
    GREY,
    MARGIN,
    SMALL,
    TEXT,
    fitted,
    fitted_end,
    fitted_middle,
    frame,
    ink,
    text_width,
    whole,
    wrapped,
)

THICK = 0.66
ROW = 27.0

_GAP = 0.5
_NAME, _GROUP = 230.0, 140.0


@dataclass(frozen=True)
class Bar:
    """A bar's words.

    Attributes:
        name: written before it.
        end: where it ends, in the axis' unit.
        words: written behind its end.
        group: bars with the same one stand together, and it stands before their names.
    """

    name: str
    end: float
    words: str
    group: str = ""


def bars_axes(
    bars: Sequence[Bar], *, title: str, unit: str, note: str = "", row: float = ROW
) -> tuple[Axes, list[float]]:
    """Return axes with everything but the bars, and the place of each; the first is on top.

    The scale is the largest at which the words behind the bars still fit into the figure.

    Args:
        bars: their words; those of a group follow each other.
        title: the finding, or how to read the chart.
        unit: of the axis, with what it measures.
        note: a small line below.
        row: the height of a row in points.
    """
    places = _places(bars)
    names = [fitted_middle(bar.name, _NAME, TEXT) for bar in bars]
    groups = ["\n".join(wrapped(bar.group, _GROUP, TEXT, bold=True)[:2]) for bar in bars]
    of_names = max(text_width(name, TEXT) for name in names) + 8
    of_groups = max(
        text_width(line, TEXT, bold=True) for group in groups for line in group.split("\n")
    )
    left = MARGIN + of_names + (of_groups + 12 if of_groups else 0)
    axes = frame(
        title=title, height=row * (places[-1] + 1), left=left, bottom=40 if unit else MARGIN,
        note=note,
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set_yticks(places, names, fontsize=TEXT, parse_math=False)
    axes.set_xlabel(unit, color=DARK, fontsize=SMALL, labelpad=6, parse_math=False)
    room = axes_width(axes)
    words = [fitted(bar.words, 0.7 * room, TEXT) for bar in bars]
    scales = [
        (room - 6 - text_width(text, TEXT)) / bar.end
        for bar, text in zip(bars, words, strict=True)
        if bar.end > 0
    ]
    axes.set_xlim(0, room / min(scales, default=room))
    for place, bar, text in zip(places, bars, words, strict=True):
        behind(axes, bar.end, place, text)
    for group in dict.fromkeys(groups):
        own = [place for place, other in zip(places, groups, strict=True) if other == group]
        axes.annotate(
            group, (0, sum(own) / len(own)), xycoords=("figure points", "data"),
            xytext=(MARGIN, 0), textcoords=("offset points", "offset points"),
            va="center", fontsize=TEXT, weight="bold", color=DARK, parse_math=False,
            annotation_clip=False,
        )  # fmt: skip
    return axes, places


def behind(axes: Axes, x: float, y: float, text: str) -> None:
    """Write what a bar amounts to behind its end."""
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=TEXT,
        color=DARK, parse_math=False, annotation_clip=False,
    )  # fmt: skip


def inside(axes: Axes, left: float, width: float, y: float, text: str, *, on: str,
           before: str = "") -> None:  # fmt: skip
    """Write into a part of a bar the end of what it is, if there is room for some of it.

    Args:
        axes: where the bar is.
        left: where the part begins, in the axis' unit; ``width`` likewise.
        width: how wide it is.
        y: the bar's place.
        text: what it is; it is cut where it does not fit.
        on: the part's colour.
        before: a letter that is written before it, and alone where there is no room for more.
    """
    low, high = axes.get_xlim()
    room = width / (high - low) * axes_width(axes) - 4
    shown = fitted_end(text, room - 4 - text_width(before, SMALL), SMALL)
    if shown.startswith("…") and len(shown) < 10:
        shown = ""
    shown = (before + shown).strip()
    if shown and text_width(shown, SMALL) <= room:
        axes.text(
            left + width / 2, y, shown, ha="center", va="center", fontsize=SMALL,
            color=ink(on), parse_math=False,
        )  # fmt: skip


def axes_width(axes: Axes) -> float:
    """Return how wide axes are, in points."""
    return float(axes.get_position().width * whole(axes).get_figwidth() * 72)


def label_rows(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Write a name before each place of the vertical axis."""
    axes.set_yticks(places, names, fontsize=TEXT, parse_math=False)


def ground(axes: Axes) -> None:
    """Draw the line where bars begin, so that a bar of nothing is seen to be one."""
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)


def _places(bars: Sequence[Bar]) -> list[float]:
    places: list[float] = []
    for number, bar in enumerate(bars):
        is_new = number > 0 and bar.group != bars[number - 1].group
        places.append(places[-1] + 1 + (_GAP if is_new else 0) if places else 0.0)
    return places
