"""What variants of an image weigh, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pandas as pd

from labapp.charts.figure import DEEP, PALE, Chart, whole
from labapp.charts.frames import THICK, Bar, bars_axes, ground, inside
from labapp.charts.rows import (
    ALIKE,
    byte_unit,
    checked,
    counted,
    named,
    numbers,
    telling,
    times,
)
from labapp.feedback import amount


def variant_sizes(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw what images weigh, packed for the way and unpacked, stacked by layer.

    Args:
        variants: for each image's name its layers, lowest first; columns ``instruction``,
            ``download_bytes`` and ``unpacked_bytes``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    columns = {"download_bytes": "to download", "unpacked_bytes": "unpacked"}
    totals: dict[str, dict[str, float]] = {}
    for name, rows in named(variants, chart="sizes of variants").items():
        checked(rows, "instruction", *(f"{column}#" for column in columns),
                chart="sizes of variants", name=name)  # fmt: skip
        totals[name] = {column: sum(numbers(rows, column)) for column in columns}
    size, unit = byte_unit(max(value for total in totals.values() for value in total.values()))
    bars = [
        Bar(label, totals[name][column] / size, amount(totals[name][column]), name)
        for name in variants
        for column, label in columns.items()
    ]
    axes, places = bars_axes(
        bars, title=_title(totals), unit=f"{unit}; each block is a layer, the lowest first"
    )
    for (rows, column), place in zip(
        itertools.product(variants.values(), columns), places, strict=True
    ):
        left = 0.0
        values = [value / size for value in numbers(rows, column)]
        for number, (value, text) in enumerate(zip(values, rows["instruction"], strict=True)):
            colour = (DEEP, PALE)[number % 2]
            axes.barh(place, value, left=left, height=THICK, color=colour, edgecolor="white",
                      linewidth=0.5)  # fmt: skip
            inside(axes, left, value, place, telling(str(text)), on=colour)
            left += value
    ground(axes)
    said = "; ".join(
        f"{name}: {amount(totals[name]['download_bytes'])} to download, "
        f"{amount(totals[name]['unpacked_bytes'])} unpacked, in {counted(len(rows), 'layer')}"
        for name, rows in variants.items()
    )
    return Chart(whole(axes), f"Bar chart of sizes, stacked by layer. {said}.")


def _title(totals: Mapping[str, Mapping[str, float]]) -> str:
    """Say the finding: what the largest image is to the smallest."""
    packed = {name: total["download_bytes"] for name, total in totals.items()}
    least, most = min(packed, key=packed.__getitem__), max(packed, key=packed.__getitem__)
    if len(packed) == 1:
        unpacked = totals[most]["unpacked_bytes"]
        return f"{most}: {amount(packed[most])} to download, {amount(unpacked)} unpacked"
    if packed[most] <= ALIKE * packed[least]:
        return f"All take about as many bytes to download, at most {amount(packed[most])}"
    ratio = (
        f"{times(packed[most], packed[least])} the bytes of {least}" if packed[least] else "most"
    )
    return (
        f"{most} takes {ratio} to download: {amount(packed[most])} against {amount(packed[least])}"
    )
