"""Bars of bytes: layers, pushes, and any few amounts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from labapp.charts.figure import BLUE, Chart, fitted_middle, whole
from labapp.charts.frames import THICK, Bar, bars_axes, ground
from labapp.charts.rows import byte_unit, checked, counted, named, numbers
from labapp.feedback import amount


def layers(rows: pd.DataFrame) -> Chart:
    """Draw what each layer of an image adds to a pull.

    Args:
        rows: a row a layer, lowest first; columns ``instruction`` and ``download_bytes``.

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    checked(rows, "instruction", "download_bytes#", chart="layers")
    names = [" ".join(str(text).split()) for text in rows["instruction"]]
    sizes = numbers(rows, "download_bytes")
    total, largest = sum(sizes), max(range(len(sizes)), key=sizes.__getitem__)
    count = counted(len(names), "layer")
    figure = _bars(
        names, sizes, [amount(size) for size in sizes],
        title=f"{count}, {amount(total)} to download; the first instruction is on top",
        unit="{} to download (compressed)",
    )  # fmt: skip
    share = f", {sizes[largest] / total:.0%} of the download" if total else ""
    return Chart(
        figure,
        f"Bar chart of {count}, {amount(total)} in all. The largest is "
        f"'{fitted_middle(names[largest], 500, 9)}' with {amount(sizes[largest])}{share}.",
    )


def sizes(values: Mapping[str, float], *, title: str) -> Chart:
    """Draw a few amounts of bytes, one bar each.

    Args:
        values: bytes by name.
        title: what the bars have in common.

    Raises:
        LabError: there are no values, or one is no number of bytes.
    """
    named(values, chart="sizes")
    checked(pd.DataFrame({"bytes": list(values.values())}), "bytes#", chart="sizes")
    words = [amount(value) for value in values.values()]
    figure = _bars(list(values), list(values.values()), words, title=title, unit="{}")
    said = "; ".join(f"{name}: {text}" for name, text in zip(values, words, strict=True))
    return Chart(figure, f"Bar chart. {title}. {said}.")


def pushes(rows: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw how much of an image each push sent.

    Args:
        rows: for each push's name its layers; columns ``bytes`` (compressed) and ``outcome``
            (``sent``, ``mounted`` or ``already there``).

    Raises:
        LabError: there are no rows, or a column is missing.
    """
    words, sent = [], []
    for name, table in named(rows, chart="pushes").items():
        checked(table, "bytes#", "outcome", chart="pushes", name=name)
        is_sent = table["outcome"] == "sent"
        sent.append(float(table.loc[is_sent, "bytes"].sum()))
        words.append(f"{amount(sent[-1])}: {is_sent.sum()} of {counted(len(table), 'layer')}")
    largest = max(float(table["bytes"].sum()) for table in rows.values())
    figure = _bars(
        list(rows), sent, words,
        title=f"The image has {amount(largest)}. Each push sent only what was missing",
        unit="{} sent (layers, compressed)",
    )  # fmt: skip
    said = "; ".join(f"{name}: {text}" for name, text in zip(rows, words, strict=True))
    return Chart(figure, f"Bar chart of pushes. {said}.")


def _bars(
    names: Sequence[str], values: Sequence[float], words: Sequence[str], *, title: str, unit: str
) -> Figure:
    """Draw bars of bytes; ``{}`` in the axis' unit becomes the name of the fitting one."""
    size, word = byte_unit(max(values))
    ends = [value / size for value in values]
    bars = [Bar(*row) for row in zip(names, ends, words, strict=True)]
    axes, places = bars_axes(bars, title=title, unit=unit.format(word))
    axes.barh(places, ends, color=BLUE, height=THICK)
    ground(axes)
    return whole(axes)
