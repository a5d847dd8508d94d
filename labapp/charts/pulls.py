"""How long pulls take, on lines that the lab doesn't have and as measured here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from labapp.charts.figure import BLUE, DARK, DEEP, PALE, Chart, whole
from labapp.charts.frames import Bar, bars_axes, ground
from labapp.charts.rows import checked, counted, duration, listed, named, quoted
from labapp.errors import LabError

LINES = {"slow": 10, "typical": 100, "fast": 1000}
"""The lines that a pull is computed for, in megabits (a million bits) a second."""

_THICK = 0.74


def pull_times(
    variants: Mapping[str, float], *, measured: Mapping[str, Sequence[float]] | None = None
) -> Chart:
    """Draw how long pulls take: computed for three lines, and as measured.

    What is computed is the bytes over the line's speed, and nothing else: no unpacking, no waiting.

    Args:
        variants: bytes to download by image.
        measured: seconds of each measured pull by image, as many as there were; the middle one
            is the bar. An image may be left out.

    Raises:
        LabError: there is nothing to draw, a number is missing or negative, or something was
            measured that has no bytes.
    """
    named(variants, chart="pull times")
    checked(pd.DataFrame({"bytes": list(variants.values())}), "bytes#", chart="pull times")
    runs = {name: list(seconds) for name, seconds in (measured or {}).items() if len(seconds)}
    for name, seconds in runs.items():
        if name not in variants:
            raise LabError(
                f"drawing pull times of '{name}': it was measured, but its bytes are not given, "
                f"only those of {quoted(list(variants))}. Use the same names."
            )
        checked(pd.DataFrame({"seconds": seconds}), "seconds#", chart="pull times", name=name)
    several = any(len(seconds) > 1 for seconds in runs.values())
    bars, colours = [], []
    for name, size in variants.items():
        for line, colour in zip(LINES, (DEEP, BLUE, PALE), strict=True):
            seconds_alone = _seconds(size, line)
            label = f"{line}, {LINES[line]:,} Mbit/s"
            bars.append(Bar(label, seconds_alone, duration(seconds_alone), name))
            colours.append(colour)
        if name in runs:
            middle = statistics.median(runs[name])
            said = duration(middle)
            if len(runs[name]) > 1:
                said += f" ({counted(len(runs[name]), 'run')})"
            bars.append(Bar("measured here", max(runs[name]), said, name))
            colours.append("white")
    axes, places = bars_axes(
        bars, title=_pulls_title(variants), unit="seconds", row=21,
        note="Computed: bytes to download, divided by the line's speed, nothing else."
        + (" Measured: from the registry, on this machine." if runs else "")
        + (" The bar is the middle run, each dot is a run." if several else ""),
    )  # fmt: skip
    for place, bar, colour in zip(places, bars, colours, strict=True):
        if colour != "white":
            axes.barh(place, bar.end, height=_THICK, color=colour)
            continue
        axes.barh(place, statistics.median(runs[bar.group]), height=_THICK, color="white",
                  edgecolor=DARK, hatch="////", linewidth=0.8)  # fmt: skip
        if len(runs[bar.group]) > 1:
            axes.plot(runs[bar.group], [place] * len(runs[bar.group]), "o", color=DARK,
                      markersize=3.5, markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
    ground(axes)
    return Chart(whole(axes), _pulls_said(variants, runs))


def _seconds(size: float, line: str) -> float:
    return size * 8 / (LINES[line] * 1e6)


def _pulls_title(variants: Mapping[str, float]) -> str:
    least, most = min(variants, key=variants.__getitem__), max(variants, key=variants.__getitem__)
    longest = duration(_seconds(variants[most], "slow"))
    title = f"On a slow line a pull of {most} takes {longest}"
    if len(variants) > 1:
        title += f", of {least} {duration(_seconds(variants[least], 'slow'))}"
    return title + ": computed from the bytes"


def _pulls_said(variants: Mapping[str, float], runs: Mapping[str, Sequence[float]]) -> str:
    sentences = []
    for name, size in variants.items():
        lines = listed([f"{duration(_seconds(size, line))} on a {line} line" for line in LINES])
        measured = f"; measured {duration(statistics.median(runs[name]))}" if name in runs else ""
        sentences.append(f"{name}: {lines}{measured}")
    speeds = listed([f"{line} is {speed:,} Mbit/s" for line, speed in LINES.items()])
    return (
        "Bar chart of times to pull, computed from the bytes to download alone. "
        f"{'. '.join(sentences)}. {speeds[:1].upper()}{speeds[1:]}."
    )
