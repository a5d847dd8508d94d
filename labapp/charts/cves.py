"""How many known CVEs an image would carry that nobody built again."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator

from labapp.charts.figure import (
    DARK,
    DEEP,
    GREY,
    MARGIN,
    ORANGE,
    SMALL,
    TEXT,
    Chart,
    fitted_middle,
    frame,
    text_width,
    whole,
)
from labapp.charts.rows import checked, counted, listed, named, times

_LINES = (
    (DEEP, "-", "o"), (ORANGE, "--", "s"), ("#832db6", "-.", "^"),
    ("#717581", ":", "D"), ("#3f90da", (0, (6, 1, 1, 1, 1, 1)), "v"),
)  # fmt: skip
"""Colour, dashes and mark of each line: any of the three tells it apart."""


def cves_since_release(
    variants: Mapping[str, pd.DataFrame], *, source: str, date: datetime.date
) -> Chart:
    """Draw how the CVEs add up in images that were built on release day and never again.

    Args:
        variants: for each image's name a row a month; columns ``month`` (its first day) and
            ``cves`` (distinct ones since the release, added up). No rows mean no CVEs.
        source: who says so; it is named in the chart.
        date: of what the source says.

    Raises:
        LabError: there is nothing to draw, or a column is missing.
    """
    lines: dict[str, pd.Series[float]] = {}
    for name, rows in named(variants, chart="CVEs since the release").items():
        if isinstance(rows, pd.DataFrame) and rows.empty:
            lines[name] = pd.Series(dtype=float)
            continue
        checked(rows, "month", "cves#", chart="CVEs since the release", name=name)
        line = pd.Series(rows["cves"].astype(float).array, index=pd.to_datetime(rows["month"]))
        lines[name] = line.sort_index()
    day = f"{date.day} {date:%B %Y}"
    now = pd.Timestamp(date.year, date.month, date.day)
    began = min((line.index[0] for line in lines.values() if len(line)), default=now)
    began = min(began, now - pd.DateOffset(months=1))
    last = {name: line.iloc[-1] if len(line) else 0.0 for name, line in lines.items()}
    words = {name: f"{fitted_middle(name, 120, TEXT)}: {last[name]:,.0f}" for name in lines}
    note = (
        f"Source: {source}, {day}. Counted: CVEs with a fix in the image's packages since this "
        "Debian was released. An image built on release day, and never again, has them all."
    )
    axes = frame(
        title=_cves_title(last), height=230, left=MARGIN + 56, note=note, bottom=32,
        right=MARGIN + 14 + max(text_width(text, TEXT) for text in words.values()),
    )  # fmt: skip
    for number, (name, line) in enumerate(lines.items()):
        colour, dashes, mark = _LINES[number % len(_LINES)]
        # It was nothing before its first month, and is the same until today.
        drawn = line if len(line) and line.index[0] <= began else pd.concat(
            [pd.Series([0.0], index=[began]), line]
        )  # fmt: skip
        if drawn.index[-1] < now:
            drawn = pd.concat([drawn, pd.Series([last[name]], index=[now])])
        axes.plot(
            drawn.index.to_numpy(), drawn.to_numpy(), color=colour, linestyle=dashes,
            marker=mark, markersize=4, markevery=max(1, len(drawn) // 8), linewidth=2,
            clip_on=False,
        )  # fmt: skip
    axes.set_xlim(began, now)  # type: ignore[arg-type]
    axes.set_ylim(0, max(*last.values(), 1.0) * 1.04)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color=GREY, alpha=0.4, linewidth=0.6)
    locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, show_offset=False)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.set_ylabel("CVEs fixed since the release", color=DARK, fontsize=SMALL)
    axes.set_xlabel("month", color=DARK, fontsize=SMALL)
    _line_ends(axes, [last[name] for name in lines], list(words.values()))
    said = listed([f"{name} {value:,.0f}" for name, value in last.items()])
    return Chart(
        whole(axes),
        f"Line chart of CVEs fixed since the release, added up until {day}, from {source}: {said}.",
    )


def _cves_title(last: Mapping[str, float]) -> str:
    """Say the finding: how many today, in the image that has most and the one that has least."""
    least, most = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    if not last[most]:
        return "No CVE was fixed in these packages since the release"
    title = f"Never rebuilt since the release, {most} would have {counted(last[most], 'known CVE')}"
    if last[least] == last[most]:
        return title + (", like the others" if len(last) > 1 else "")
    title += f", {least} {last[least]:,.0f}"
    ratio = f": {times(last[most], last[least])} as many" if last[least] else ""
    return title + ratio


def _line_ends(axes: Axes, ends: Sequence[float], words: Sequence[str]) -> None:
    """Write each line's name at its end; where lines end close together, spread the names."""
    low, high = axes.get_ylim()
    points = axes.get_position().height * whole(axes).get_figheight() * 72
    line = TEXT * 1.35
    wanted = {text: end / (high - low) * points for text, end in zip(words, ends, strict=True)}
    placed: dict[str, float] = {}
    # From the lowest up, each as low as it can be; then the pile is pushed below the top.
    for number, text in enumerate(sorted(wanted, key=wanted.__getitem__)):
        floor = list(placed.values())[-1] + line if number else -line
        placed[text] = max(wanted[text], floor)
    ceiling = points
    for text in reversed(list(placed)):
        placed[text] = min(placed[text], ceiling)
        ceiling = placed[text] - line
    for text, end in zip(words, ends, strict=True):
        axes.annotate(
            text, (1, end), xycoords=("axes fraction", "data"), xytext=(14, placed[text]),
            textcoords=("offset points", "axes points"), va="center", fontsize=TEXT, color=DARK,
            arrowprops={"arrowstyle": "-", "color": GREY, "shrinkA": 1, "shrinkB": 4},
            annotation_clip=False, parse_math=False,
        )  # fmt: skip
