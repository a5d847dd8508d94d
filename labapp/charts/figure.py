"""What a chart is, a figure and what it says, and how text fits into one.

Nothing in this package measures; it only draws.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from labapp.charts.style import BRIGHT, DARK, GREY, MARGIN, SMALL, TITLE, WIDTH
from labapp.errors import LabError
from labapp.state import write_file

_SHOWN_DPI = 88

_SLACK = 1.03
"""Letters are set at whole pixels, and an SVG viewer may have only a font that is like ours."""


@dataclass(frozen=True, repr=False)
class Chart:
    """A figure and ``alt``, the finding in a sentence or two for those who don't see it.

    A ``table`` says the same below it, where there is one: screen readers can walk it.
    """

    axes: Axes
    alt: str
    table: pd.DataFrame | None = None

    @property
    def figure(self) -> Figure:
        """The whole picture."""
        figure = self.axes.figure
        assert isinstance(figure, Figure)
        return figure

    @property
    def title(self) -> str:
        """The sentence on top of the picture, in one line."""
        return " ".join(self.figure.get_suptitle().split())

    def show(self) -> None:
        """Show the chart below the notebook's cell; where only text is shown, what it says."""
        from IPython.display import display

        display(self)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"Chart: {self.alt}"

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png()).decode("ascii")
        width = round(self.figure.get_figwidth() * _SHOWN_DPI)
        picture = (
            f'<img class="labapp-chart" alt="{html.escape(self.alt)}" '
            f'style="max-width:100%;width:{width}px" src="data:image/png;base64,{data}">'
        )
        if self.table is None:
            return picture
        with pd.option_context("display.max_colwidth", None):
            table = self.table.to_html(border=0, justify="left", index=False)
        return f"{picture}<details><summary>The same as a table</summary>{table}</details>"

    def png(self) -> bytes:
        """Return the picture as PNG, twice as fine as it is shown; the file holds the alt text."""
        out = io.BytesIO()
        said = {"Title": self.title, "Description": self.alt}
        self.figure.savefig(out, format="png", dpi=2 * _SHOWN_DPI, facecolor="white", metadata=said)
        return out.getvalue()

    def svg(self) -> bytes:
        """Return the picture as SVG: its text is text, and a screen reader reads the alt text.

        Source: Scalable Vector Graphics 2, section 5.8, the ``desc`` and ``title`` elements.
        """
        out = io.BytesIO()
        # Neither the time nor a random number: the same rows give the same file.
        said = {"Title": self.title, "Date": None}
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "labapp"}):
            self.figure.savefig(out, format="svg", facecolor="white", metadata=said)
        text = out.getvalue().decode("utf-8")
        text = text.replace("<svg ", '<svg role="img" ', 1)
        described = f"</title>\n <desc>{html.escape(self.alt)}</desc>"
        return text.replace("</title>", described, 1).encode("utf-8")

    def save(self, path: Path | str) -> Path:
        """Write the picture to a ``.png`` or ``.svg`` file, and make its folder if need be.

        Raises:
            LabError: the name ends with neither, or the file can't be written.
        """
        path = Path(path)
        draw = {".png": self.png, ".svg": self.svg}.get(path.suffix.lower())
        if draw is None:
            raise LabError(
                f"saving a chart as '{path}': a chart is saved as PNG or SVG. "
                "Give a file name that ends with '.png' or '.svg'."
            )
        write_file(path, draw(), mode=0o644)
        return path


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return how wide a text gets, at a font size in points."""
    return _SLACK * size * sum(_advance(character, bold) for character in text)


def fitted(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """Return a text in one line; one that is too wide keeps both ends, which tell it apart."""
    text = shown = " ".join(text.split())
    for length in range(len(text) - 1, -1, -1):
        if text_width(shown, size, bold=bold) <= width:
            break
        shown = text[: (length + 1) // 2] + "…" + text[len(text) - length // 2 :]
    return shown


def wrapped(
    text: str, width: float, size: float, *, bold: bool = False, after: str = " ", most: int = 99
) -> list[str]:
    """Return a text as lines that are no wider than allowed, broken after certain characters.

    All that is left stands in the last of the ``most`` lines, as far as it fits.
    """
    lines = [""]
    for part in re.findall(f"[{after}]*[^{after}]+[{after}]*", " ".join(text.split())):
        is_full = text_width((lines[-1] + part).rstrip(), size, bold=bold) > width
        if lines[-1] and is_full and len(lines) < most:
            lines.append("")
        lines[-1] += part
    return [fitted(line, width, size, bold=bold) for line in lines]


def ink(colour: str) -> str:
    """Return the colour of text that stands on another colour."""
    return DARK if colour in BRIGHT else "white"


def frame(*, title: str, height: float, left: float, right: float, bottom: float = 40.0,
          note: str = "") -> Axes:  # fmt: skip
    """Return the axes of a new figure, with its title on top, and below a source or a limit.

    ``height`` is that of the axes; ``left``, ``right`` and ``bottom`` are to the figure's edge.
    """
    lines = wrapped(title, WIDTH - 2 * MARGIN, TITLE)
    notes = wrapped(note, WIDTH - 2 * MARGIN, SMALL) if note else []
    top = MARGIN + len(lines) * TITLE * 1.3 + 8
    bottom += len(notes) * SMALL * 1.35 + (4 if notes else 0)
    tall = top + height + bottom
    figure = Figure(figsize=(WIDTH / 72, tall / 72))
    figure.suptitle(
        "\n".join(lines), x=MARGIN / WIDTH, y=1 - MARGIN / tall, ha="left", va="top",
        fontsize=TITLE, linespacing=1.2, color=DARK, parse_math=False,
    )  # fmt: skip
    if notes:
        figure.text(
            MARGIN / WIDTH, (MARGIN - 2) / tall, "\n".join(notes), va="bottom",
            fontsize=SMALL, linespacing=1.25, color=DARK, parse_math=False,
        )  # fmt: skip
    axes = figure.add_axes(
        (left / WIDTH, bottom / tall, (WIDTH - left - right) / WIDTH, height / tall)
    )
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(length=0, labelsize=SMALL, colors=DARK)
    return axes


def canvas(*, title: str, height: float, left: float = MARGIN, note: str = "") -> Axes:
    """Return axes without any line, whose unit is a point, from the upper left corner on."""
    axes = frame(title=title, height=height, left=left, right=MARGIN, bottom=MARGIN, note=note)
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH - left - MARGIN), ylim=(height, 0))
    return axes


def write(axes: Axes, x: float, y: float, text: str, *, size: float = SMALL, **look: Any) -> None:
    """Write a text that is no formula, from a place to the right."""
    usual: dict[str, Any] = {"va": "center", "color": DARK, "linespacing": 1.2}
    if text:
        axes.text(x, y, text, fontsize=size, parse_math=False, **usual | look)


@functools.cache
def _advance(character: str, bold: bool) -> float:
    """Return by how much a character moves the pen, as a share of the font size."""
    font = FontProperties(weight="bold" if bold else "normal", size=100)
    width, _, _ = text_to_path.get_text_width_height_descent(character, font, ismath=False)
    return float(width) / 100
