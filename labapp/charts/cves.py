"""How many known CVEs an image would carry that nobody built again."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
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
    fitted,
    frame,
    text_width,
    whole,
)
from labapp.charts.words import ALIKE, checked, checked_all, counted, extremes, listed, times

_LINES = (
    (DEEP, "-", "o"), (ORANGE, "--", "s"), ("#832db6", "-.", "^"),
    ("#717581", ":", "D"), ("#3f90da", (0, (6, 1, 1, 1, 1, 1)), "v"),
)  # fmt: skip
"""Colour, dashes and mark of each line: any of the three tells it apart."""

_MONTHS = 7
"""As many months are named below a chart, or one more."""


def cves_since_release(
    variants: Mapping[str, pd.DataFrame], *, source: str, date: datetime.date, blind: str = ""
) -> Chart:
    """Draw how the CVEs add up in images that were built on release day and never again.

    Args:
        variants: for each image's name a row a month; columns ``month`` (its first day) and
            ``cves`` (distinct ones from the release to the month's end). No rows mean that no
            dated fix is known.
        source: who says so; it is named in the chart.
        date: of what the source says.
        blind: what the source can't see, in a sentence.

    Raises:
        LabError: there is nothing to draw, or a column is missing.
    """
    now = pd.Timestamp(date.year, date.month, date.day)
    known = {
        name: _line(name, rows, now)
        for name, rows in checked_all("CVEs since the release", variants).items()
    }
    began = min((line.index[0] for line in known.values() if len(line)), default=now)
    began = min(began.replace(day=1), (now - pd.DateOffset(months=1)).replace(day=1))
    last = {name: float(line.iloc[-1]) if len(line) else 0.0 for name, line in known.items()}
    words = {
        name: f"{fitted(name, 120, TEXT, keep='ends')}: {_number(value)}"
        for name, value in last.items()
    }
    day = f"{date.day} {date:%B %Y}"
    axes = frame(
        title=_title(last), height=230, left=MARGIN + 56, bottom=34,
        right=MARGIN + 16 + max(text_width(text, TEXT) for text in words.values()),
        note=f"Source: {source}, {day}. Counted are CVEs that were fixed in the image's packages "
        f"since this Debian was released, but for kernel headers, which never run. {blind}",
    )  # fmt: skip
    for number, (name, line) in enumerate(known.items()):
        # Nothing on release day, and the same from the last month on until today.
        ends = {began: 0.0, **dict(zip(line.index, line, strict=True)), now: last[name]}
        colour, dashes, mark = _LINES[number % len(_LINES)]
        every = max(1, len(ends) // 8)
        # The last point has a mark, the first has none: all lines begin there.
        marked = ((len(ends) - 1) % every or every, every)
        axes.plot(
            pd.DatetimeIndex(list(ends)).to_numpy(), list(ends.values()), color=colour,
            linestyle=dashes, linewidth=2, marker=mark, markersize=4.5, markevery=marked,
            clip_on=False,
        )  # fmt: skip
    axes.set_xlim(began, now)  # type: ignore[arg-type]
    axes.set_ylim(0, max(*last.values(), 1.0) * 1.04)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color=GREY, alpha=0.4, linewidth=0.6)
    apart = math.ceil((now - began).days / 30 / _MONTHS)
    months = pd.date_range(began, now, freq=f"{apart}MS")
    axes.set_xticks(months.to_numpy(), [f"{month:%b %Y}" for month in months])
    axes.tick_params(pad=6)
    axes.set_ylabel("CVEs fixed since the release", color=DARK, fontsize=SMALL)
    axes.set_xlabel("month", color=DARK, fontsize=SMALL)
    _line_ends(axes, [last[name] for name in known], list(words.values()))
    said = listed([f"{name} {_number(value)}" for name, value in last.items()])
    return Chart(
        whole(axes),
        f"Line chart of CVEs fixed since the release, added up until {day}, from {source}: {said}.",
    )


def _line(name: str, rows: pd.DataFrame, now: pd.Timestamp) -> pd.Series[float]:
    """Return CVEs by the end of each month, or by now; none when the first month began."""
    if isinstance(rows, pd.DataFrame) and rows.empty:
        return pd.Series(dtype=float)
    checked("CVEs since the release", rows, "month", "cves#", name=name)
    ends = pd.DatetimeIndex(pd.to_datetime(rows["month"])) + pd.offsets.MonthEnd(0)
    line = pd.Series(rows["cves"].astype(float).array, index=ends.where(ends < now, now))
    line = line.sort_index()
    began = line.index[0].replace(day=1)
    return pd.Series([0.0, *line], index=[began, *line.index])


def _number(cves: float) -> str:
    return f"{cves:,.0f}" if cves else "none known"


def _title(last: Mapping[str, float]) -> str:
    """Say the finding: how many today, in the image that has most and the one that has least."""
    least, most = extremes(last)
    if not last[most]:
        return "No fix with a date is known in these packages since the release"
    title = f"Never rebuilt since the release, {most} would have {counted(last[most], 'known CVE')}"
    if len(last) == 1:
        return title
    if not last[least]:
        return f"{title}, {least} none"
    if last[most] < ALIKE * last[least]:
        return f"{title}, {least} {last[least]:,.0f}"
    return f"{title}: {times(last[most], last[least])} those of {least} ({last[least]:,.0f})"


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
            arrowprops={"arrowstyle": "-", "color": GREY, "shrinkA": 1, "shrinkB": 4,
                        "relpos": (0, 0.5)},
            annotation_clip=False, parse_math=False,
        )  # fmt: skip
