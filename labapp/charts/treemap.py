"""Where an image's bytes are: a map of its packages and directories, area for bytes.

Source: Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000), as the library squarify does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import squarify  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from labapp.charts.figure import (
    AMBER,
    DARK,
    DEEP,
    MARGIN,
    PALE,
    SMALL,
    TEXT,
    WIDTH,
    Chart,
    fitted_middle,
    frame,
    ink,
    whole,
)
from labapp.charts.pieces import Image, label, pieces_of, read
from labapp.charts.rows import ALIKE, checked, counted, listed, named, times
from labapp.feedback import amount

_HIGH, _GAP, _LINE, _KEY = 330.0, 24.0, 13.5, 36.0
_NARROW = 178.0
"""So wide is a variant's place at least, for its name and numbers."""

_COLOURS = {"alone": DEEP, "package": PALE, "directory": AMBER}
_SPACING = 1.15
_ROUND = sorted((digit * 10**power for digit in (1, 2, 5) for power in range(10)), reverse=True)


@dataclass(frozen=True)
class _Box:
    """A rectangle, from its upper left corner, in points."""

    x: float
    y: float
    wide: float
    high: float


def where_bytes_are(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw where the unpacked bytes of one or two images are; equal areas are equal bytes.

    A file that a package owns counts there, any other in its directory. What is too small to be
    seen is drawn as one.

    Args:
        variants: for each image's name its files; columns ``path``, ``bytes`` and ``package``
            (empty for a file that none owns).

    Raises:
        LabError: there are no rows, a column is missing, or there are more than two images.
    """
    for name, rows in named(variants, chart="where the bytes are", most=2).items():
        checked(rows, "path", "bytes#", "package", chart="where the bytes are", name=name)
    images = [
        read(name, rows, [other for key, other in variants.items() if key != name])
        for name, rows in variants.items()
    ]
    boxes, scale = _boxes([image.bytes for image in images])
    head = (2 + max(len(image.kinds()) for image in images)) * _LINE + 4
    maps = max(box.high for box in boxes)
    axes = frame(
        title=_title(images), height=head + maps + _KEY, left=MARGIN, right=MARGIN, bottom=MARGIN
    )
    axes.axis("off")
    # A unit of the axes is a point. The maps hang from the line at 0, their words stand on it.
    axes.set(xlim=(0, WIDTH - 2 * MARGIN), ylim=(maps + _KEY, -head))
    for image, box in zip(images, boxes, strict=True):
        _write_head(axes, image, box.x, -head, paired=len(images) > 1)
        for kind, region in _cut(image.kinds(), box, scale).items():
            for name, piece in _cut(pieces_of(image, kind, scale), region, scale).items():
                _draw(axes, name, piece, scale, _COLOURS[kind])
    if maps:
        _write_key(axes, scale, maps + _KEY)
    return Chart(whole(axes), f"Treemap of unpacked files. {' '.join(map(_said, images))}")


def _boxes(totals: Sequence[float]) -> tuple[list[_Box], float]:
    """Return where each image's map is, and how many square points a byte has in all of them."""
    room = WIDTH - 2 * MARGIN - _GAP * (len(totals) - 1)
    if not any(totals):
        return [_Box(0, 0, 0, 0) for _ in totals], 1.0
    if len(totals) == 1 or min(totals) / sum(totals) * room >= _NARROW:
        # Side by side, equally high.
        widths = [room * total / sum(totals) for total in totals]
        scale = room * _HIGH / sum(totals)
        highs = [_HIGH] * len(totals)
    else:
        # The smaller one keeps room for its words, and its map is not as high.
        scale = (room - _NARROW) * _HIGH / max(totals)
        wide_one = totals.index(max(totals))
        areas = [total * scale for total in totals]
        widths = [min(_NARROW, math.sqrt(area * 1.8)) for area in areas]
        widths[wide_one] = room - _NARROW
        highs = [area / wide if wide else 0.0 for area, wide in zip(areas, widths, strict=True)]
    lefts = [0.0, max(widths[0], _NARROW) + _GAP]
    return [
        _Box(x, 0.0, wide, high)
        for x, wide, high in zip(lefts[: len(totals)], widths, highs, strict=True)
    ], scale


def _cut(parts: Mapping[str, float], box: _Box, scale: float) -> dict[str, _Box]:
    """Cut a box into one for each part, the largest first, as square as can be."""
    areas = [value * scale for value in parts.values()]
    cut = squarify.squarify(areas, box.x, box.y, box.wide, box.high)
    return {
        name: _Box(piece["x"], piece["y"], piece["dx"], piece["dy"])
        for name, piece in zip(parts, cut, strict=True)
    }


def _draw(axes: Axes, name: str, box: _Box, scale: float, colour: str) -> None:
    """Draw a piece, with its name and bytes where they fit, upright in a narrow one."""
    axes.add_artist(
        Rectangle((box.x, box.y), box.wide, box.high, facecolor=colour, edgecolor="white",
                  linewidth=1)
    )  # fmt: skip
    size = amount(box.wide * box.high / scale)
    flat, upright = (
        label(name, size, along - 5, across - 3)
        for along, across in ((box.wide, box.high), (box.high, box.wide))
    )
    # As it is read, unless a narrow piece has clearly more room the other way.
    turned = len(upright) > len(flat) + 3
    axes.text(
        box.x + box.wide / 2, box.y + box.high / 2, upright if turned else flat, ha="center",
        va="center", rotation=90 if turned else 0, fontsize=SMALL, linespacing=_SPACING,
        color=ink(colour), parse_math=False,
    )  # fmt: skip


def _write_head(axes: Axes, image: Image, x: float, top: float, *, paired: bool) -> None:
    """Write an image's name and numbers, and what its colours mean."""
    name = fitted_middle(image.name, _NARROW, TEXT, bold=True)
    total = f"{amount(image.bytes)} in {counted(image.files, 'file')}"
    for line, (text, weight) in enumerate(((name, "bold"), (total, "normal"))):
        axes.text(x, top + (line + 0.5) * _LINE, text, va="center", fontsize=TEXT, weight=weight,
                  color=DARK, parse_math=False)  # fmt: skip
    for line, (kind, size) in enumerate(image.kinds().items(), start=2):
        y = top + (line + 0.5) * _LINE
        axes.add_artist(
            Rectangle((x, y - 4), 8, 8, facecolor=_COLOURS[kind], edgecolor=DARK, linewidth=0.4)
        )
        text = {
            "alone": counted(image.count(kind), "package") + " only here",
            "package": counted(image.count(kind), "package") + (" of both" if paired else ""),
            "directory": "in no package",
        }[kind]
        axes.text(x + 12, y, f"{text}: {amount(size)}", va="center", fontsize=SMALL, color=DARK)


def _write_key(axes: Axes, scale: float, bottom: float) -> None:
    """Draw an area that everybody can compare with."""
    size = next((size for size in _ROUND if size * scale <= 24**2), 1)
    side = min(math.sqrt(size * scale), 24.0)
    axes.add_artist(
        Rectangle((0.5, bottom - side - 0.5), side, side, facecolor="none", edgecolor=DARK,
                  linewidth=0.8)
    )  # fmt: skip
    axes.text(side + 7, bottom - side / 2, f"this area is {amount(size)} of unpacked files",
              va="center", fontsize=SMALL, color=DARK)  # fmt: skip


def _title(images: Sequence[Image]) -> str:
    """Say how to read the map, and how the images compare."""
    ordered = sorted(images, key=lambda image: image.bytes)
    least, most = ordered[0], ordered[-1]
    if len(images) == 1 or not least.bytes:
        return f"{most.name} has {amount(most.bytes)} of files. Equal areas are equal bytes"
    ratio = times(most.bytes, least.bytes)
    if most.bytes < ALIKE * least.bytes:
        both = f"{images[0].name} and {images[1].name}"
        return f"{both} have about as many bytes. Equal areas are equal bytes"
    return f"{most.name} has {ratio} the bytes of {least.name}. Equal areas are equal bytes"


def _said(image: Image) -> str:
    """Say what is largest, and how much is in packages that the other image has not."""
    rows = image.pieces.head(3).to_dict("records")
    said = f"{image.name}: {amount(image.bytes)} in {counted(image.files, 'file')}"
    if rows:
        most = listed([f"{row['name']} {amount(row['bytes'])}" for row in rows])
        said += f", the largest {'part is' if len(rows) == 1 else 'parts are'} {most}"
    if alone := image.count("alone"):
        said += f"; {counted(alone, 'package')} that the other has not: "
        said += amount(image.kinds()["alone"])
    return said + "."
