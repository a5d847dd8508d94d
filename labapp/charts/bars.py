"""Bars of bytes and seconds: layers, pushes, builds, and any few amounts side by side."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from labapp.charts.figure import (
    BLUE,
    DEEP,
    GREY,
    Chart,
    bars_axes,
    end_labels,
    ending,
    entitle,
    name_rows,
    short,
)
from labapp.feedback import amount

NOTICED = 0.05
"""A step that takes less, in seconds, only wrote down a setting."""


def layers(rows: pd.DataFrame) -> Chart:
    """Draw what each layer of an image adds to a pull.

    Args:
        rows: a row a layer, lowest first; columns ``instruction`` and ``download_bytes``.
    """
    names = [short(text, 52) for text in rows["instruction"]]
    sizes = [float(size) for size in rows["download_bytes"]]
    axes = bars_axes(len(names), "megabytes to download (compressed)")
    axes.barh(range(len(names)), [size / 1e6 for size in sizes], color=BLUE, height=0.62)
    end_labels(axes, [size / 1e6 for size in sizes], [amount(size) for size in sizes])
    name_rows(axes, names)
    total, largest = sum(sizes), max(range(len(sizes)), key=sizes.__getitem__)
    entitle(axes, f"{len(names)} layers, {amount(total)} in all; the first instruction is on top")
    return Chart(
        axes.figure,  # type: ignore[arg-type]
        f"Bar chart of {len(names)} layers, {amount(total)} in all. The largest is "
        f"'{names[largest]}' with {amount(sizes[largest])}, "
        f"{sizes[largest] / total:.0%} of the download.",
    )


def build_times(builds: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how long builds took, step by step.

    Args:
        builds: for each build's name its steps; columns ``instruction``, ``cached``, ``seconds``.
    """
    axes = bars_axes(len(builds), "seconds")
    totals, words = [], []
    widest = max(float(steps["seconds"].sum()) for steps in builds.values()) or 1.0
    for row, steps in enumerate(builds.values()):
        left = 0.0
        for number, step in enumerate(steps.to_dict("records")):
            seconds = float(step["seconds"])
            axes.barh(
                row, seconds, left=left, height=0.62, edgecolor="white",
                color=GREY if step["cached"] else (BLUE, DEEP)[number % 2],
            )  # fmt: skip
            if seconds > 0.13 * widest and not step["cached"]:
                text = ending(str(step["instruction"]), int(60 * seconds / widest))
                axes.text(left + seconds / 2, row, text, ha="center", va="center", fontsize=8,
                          color="white")  # fmt: skip
            left += seconds
        ran = int((~steps["cached"].astype(bool) & (steps["seconds"] >= NOTICED)).sum())
        totals.append(left)
        words.append(f"{left:.1f} s, {ran} steps had work to do")
    end_labels(axes, totals, words)
    name_rows(axes, list(builds))
    entitle(axes, "Each block is a step that had work to do; cached steps take no time")
    said = "; ".join(f"{name}: {text}" for name, text in zip(builds, words, strict=True))
    return Chart(axes.figure, f"Bar chart of build times. {said}.")  # type: ignore[arg-type]


def sizes(values: Mapping[str, float], *, title: str) -> Chart:
    """Draw a few amounts of bytes, one bar each.

    Args:
        values: bytes by name.
        title: what the bars have in common.
    """
    axes = bars_axes(len(values), "megabytes")
    numbers = [value / 1e6 for value in values.values()]
    words = [amount(value) for value in values.values()]
    axes.barh(range(len(numbers)), numbers, color=BLUE, height=0.62)
    end_labels(axes, numbers, words)
    name_rows(axes, list(values))
    entitle(axes, title)
    said = "; ".join(f"{name}: {text}" for name, text in zip(values, words, strict=True))
    return Chart(axes.figure, f"Bar chart. {title}. {said}.")  # type: ignore[arg-type]


def pushes(rows: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how much of an image each push sent.

    Args:
        rows: for each push's name its layers; columns ``bytes`` (compressed) and ``outcome``
            (``sent``, ``mounted`` or ``already there``).
    """
    axes = bars_axes(len(rows), "megabytes sent (layers, compressed)")
    words, ends = [], []
    for row, table in enumerate(rows.values()):
        is_sent = table["outcome"] == "sent"
        sent, whole = float(table.loc[is_sent, "bytes"].sum()), float(table["bytes"].sum())
        axes.barh(row, sent / 1e6, color=BLUE, height=0.62)
        words.append(f"{amount(sent)}: {is_sent.sum()} of {len(table)} layers")
        ends.append(sent / 1e6)
    end_labels(axes, ends, words)
    name_rows(axes, list(rows))
    entitle(axes, f"The image has {amount(whole)}. Each push sent only what was missing")
    said = "; ".join(f"{name}: {text}" for name, text in zip(rows, words, strict=True))
    return Chart(axes.figure, f"Bar chart of pushes. {said}.")  # type: ignore[arg-type]
