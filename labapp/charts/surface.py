"""How much there is in an image to attack and to patch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from labapp.charts.bars import THICK, behind
from labapp.charts.figure import (
    BLUE,
    DARK,
    GREY,
    MARGIN,
    TEXT,
    WIDTH,
    Chart,
    fitted,
    frame,
    text_width,
    whole,
)
from labapp.charts.words import checked_all, extremes, listed
from labapp.errors import LabError

_COLUMNS = 3
_ROW, _HEAD, _GAP = 18.0, 24.0, 24.0


def surface(variants: Mapping[str, Mapping[str, float | None]]) -> Chart:
    """Draw how much there is to attack and to patch: a small chart for each kind of thing.

    Args:
        variants: for each image's name how many it has of each kind, such as
            ``{"packages": 431, "shells": 2}``. What is not known may be left out, or NaN.

    Raises:
        LabError: there is nothing to draw, or something is no number from 0 up.
    """
    checked_all("surface", variants)
    kinds = list(dict.fromkeys(kind for own in variants.values() for kind in own))
    if not kinds:
        raise LabError("drawing surface: no image has a number. Give for each what it has.")
    counts = {
        kind: {name: _count(own.get(kind), kind, name) for name, own in variants.items()}
        for kind in kinds
    }
    names = [fitted(name, 110, TEXT, keep="ends") for name in variants]
    left = MARGIN + max(text_width(name, TEXT) for name in names) + 8
    columns = 2 if len(kinds) in (2, 4) else min(_COLUMNS, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    high = _ROW * len(names)
    height = rows * (high + _HEAD) + (rows - 1) * 8
    base = frame(
        title=f"{_finding(counts)}Fewer is better; each small chart has a scale of its own",
        height=height, left=left, right=MARGIN, bottom=MARGIN,
    )  # fmt: skip
    base.axis("off")
    wide = (WIDTH - left - MARGIN - _GAP * (columns - 1)) / columns
    for place, (kind, own) in enumerate(counts.items()):
        row, column = divmod(place, columns)
        top = height - row * (high + _HEAD + 8)
        axes = base.inset_axes(
            (
                column * (wide + _GAP) / (WIDTH - left - MARGIN),
                (top - _HEAD - high) / height,
                wide / (WIDTH - left - MARGIN),
                high / height,
            )
        )
        _panel(axes, kind, own, wide, names if column == 0 else [])
    return Chart(whole(base), f"Small bar charts, fewer is better. {_surface_said(counts)}")


def _count(value: object, kind: str, name: str) -> float:
    """Return how many there are; NaN for what is not known."""
    if value is None:
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = -1.0
    if number < 0 or math.isinf(number):
        raise LabError(
            f"drawing surface of '{name}': '{value}' {kind} is not a number from 0 up. "
            "Give None for what is not known."
        )
    return number


def _finding(counts: Mapping[str, Mapping[str, float]]) -> str:
    """Say how far the images are apart in the first kind of thing that is known of all."""
    for kind, own in counts.items():
        least, most = extremes(own)
        if not any(map(math.isnan, own.values())) and own[least] < own[most]:
            return f"{most} has {_number(own[most])} {kind}, {least} {_number(own[least])}. "
    return ""


def _panel(
    axes: Axes, kind: str, counts: Mapping[str, float], width: float, names: Sequence[str]
) -> None:
    """Draw one kind's bars; only the panels at the left name the images."""
    values = [0.0 if math.isnan(value) else value for value in counts.values()]
    words = [_number(value) for value in counts.values()]
    places = range(len(values))
    scales = [
        (width - 6 - text_width(text, TEXT)) / value
        for text, value in zip(words, values, strict=True)
        if value
    ]
    axes.set(xlim=(0, width / min(scales, default=width)), ylim=(len(values) - 0.5, -0.5))
    axes.barh(places, values, color=BLUE, height=THICK)
    for place, value, text in zip(places, values, words, strict=True):
        behind(axes, value, place, text)
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=DARK)
    axes.set_xticks([])
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)
    axes.set_yticks(places if names else [], names, fontsize=TEXT, parse_math=False)
    head = fitted(kind[:1].upper() + kind[1:], width, TEXT, bold=True)
    axes.set_title(head, loc="left", fontsize=TEXT, weight="bold", color=DARK, pad=4,
                   parse_math=False)  # fmt: skip


def _number(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _surface_said(counts: Mapping[str, Mapping[str, float]]) -> str:
    said = (
        f"{kind}: {listed([f'{name} {_number(value)}' for name, value in own.items()])}"
        for kind, own in counts.items()
    )
    return "; ".join(said) + "."
