"""The quiet style that all charts share, and what a chart is: a figure and what it says.

Colour-blind safe colours that also differ in brightness, labels at the marks instead of a legend,
units on every axis. Nothing here measures; it only draws.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, DEEP, ORANGE, GREY, DARK = "#3f90da", "#1f5f9e", "#bd1f01", "#b9bec4", "#30343a"
PALETTE = ("#3f90da", "#bd1f01", "#ffa90e", "#832db6", "#92dadd", "#717581")
WIDTH, ROW = 8.6, 0.42


@dataclass(frozen=True)
class Chart:
    """A figure and what it says.

    Attributes:
        figure: the picture.
        alt: the finding in a sentence or two, for those who don't see the picture.
    """

    figure: Figure
    alt: str

    def show(self) -> None:
        """Show the chart below the notebook's cell, with its alternative text."""
        data = base64.b64encode(self.png()).decode("ascii")
        width = round(self.figure.get_figwidth() * 88)
        display(  # type: ignore[no-untyped-call]
            HTML(  # type: ignore[no-untyped-call]
                f'<img class="labapp-chart" alt="{html.escape(self.alt)}" '
                f'style="max-width:100%;width:{width}px" src="data:image/png;base64,{data}">'
            )
        )

    def png(self) -> bytes:
        """Return the picture as PNG, twice as fine as it is shown."""
        out = io.BytesIO()
        self.figure.savefig(out, format="png", dpi=176, facecolor="white")
        return out.getvalue()

    def save(self, path: Path) -> Path:
        """Write the picture to a ``.png`` or ``.svg`` file."""
        self.figure.savefig(path, dpi=176, facecolor="white")
        return path


def short(text: str, length: int) -> str:
    """Return the beginning of a text, with an ellipsis where it is cut."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: max(0, length - 1)] + "…"


def ending(text: str, length: int) -> str:
    """Return the end of an instruction: its beginning is often the same as another's."""
    text = " ".join(text.split())
    return text if len(text) <= length else "…" + text[-max(1, length - 1) :]


def bars_axes(count: int, unit: str) -> Axes:
    """Return axes for a number of horizontal bars, first on top, with their unit below."""
    figure = Figure(figsize=(WIDTH, 1.15 + ROW * count), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(unit, color=DARK, fontsize=9)
    axes.set_ylim(count - 0.4, -0.6)
    quiet(axes)
    return axes


def quiet(axes: Axes) -> None:
    """Take away what draws the eye from the data."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(length=0, labelsize=9, colors=DARK)


def entitle(axes: Axes, text: str) -> None:
    """Write the sentence on top that says the finding, or how to read the chart."""
    axes.figure.suptitle(text, fontsize=10, x=0.01, ha="left", color=DARK)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write each bar's name before it."""
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names)


def end_labels(axes: Axes, ends: Sequence[float], words: Sequence[str]) -> None:
    """Write each bar's number behind its end, and leave room for the longest one."""
    longest = max(ends, default=1.0) or 1.0
    for row, (end, text) in enumerate(zip(ends, words, strict=True)):
        axes.text(end + longest * 0.012, row, text, va="center", fontsize=9, color=DARK)
    room = max((end + longest * 0.0145 * len(text) for end, text in zip(ends, words, strict=True)))
    axes.set_xlim(0, max(longest * 1.05, room))


def show(chart: Chart) -> None:
    """Show a chart below the notebook's cell, with its alternative text."""
    chart.show()
