"""Where an image's bytes are: a map of its packages and directories, area for bytes.

Source: Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000), as the library squarify does it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence

import pandas as pd
import squarify  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from labapp.charts.figure import Chart, canvas, fitted, ink, text_width, wrapped, write
from labapp.charts.style import AMBER, DARK, DEEP, MARGIN, PALE, SMALL, TEXT, WIDTH
from labapp.charts.words import ALIKE, checked_all, counted, extremes, listed, quoted, times
from labapp.errors import LabError
from labapp.feedback import amount

_HIGH, _GAP, _LINE = 330.0, 24.0, 13.5
_NARROW = 178.0
"""So wide is a variant's place at least, for its name and numbers."""

_SMALL = 130.0
"""Things with a smaller area, in square points, are drawn as one."""

_COLOURS = {"alone": DEEP, "package": PALE, "directory": AMBER}
"""A package that only this image has, any other, and what is in no package."""

Box = dict[str, float]
"""A rectangle, from its upper left corner, in points: ``x``, ``y``, ``dx`` and ``dy``."""

Kinds = dict[str, "pd.Series[float]"]
"""What one map shows: for each kind its bytes by name; in both, the largest first."""


def where_bytes_are(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw where the unpacked bytes of one or two images are; equal areas are equal bytes.

    A file that a package owns counts there, any other in its directory. What is too small to be
    seen is drawn as one.

    Args:
        variants: for each image's name its files; columns ``path``, ``type``, ``bytes`` and
            ``package`` (empty for a file that none owns).
    """
    drawing = "where the bytes are"
    checked_all(drawing, variants, "path", "type", "bytes", "package")
    totals = {name: float(rows["bytes"].sum()) for name, rows in variants.items()}
    if len(totals) > 2 or not all(totals.values()):
        raise LabError(
            f"drawing {drawing}: it takes one or two images with bytes in them, not "
            f"{quoted(totals)}. Choose two."
        )
    owners = [set(rows["package"].dropna()) for rows in variants.values()]
    in_all = set.intersection(*owners)
    images = [_read(rows, in_all) for rows in variants.values()]
    top = (2 + max(map(len, images))) * _LINE + 4
    boxes, scale = _boxes(list(totals.values()), top)
    bottom = top + max(box["dy"] for box in boxes)
    axes = canvas(title=f"{_finding(totals)}. Equal areas are equal bytes", height=bottom)
    said = []
    for (name, rows), kinds, box in zip(variants.items(), images, boxes, strict=True):
        words = f"{amount(totals[name])} in {counted((rows['type'] == 'file').sum(), 'file')}"
        _write_head(axes, box["x"], name, words, kinds, paired=len(images) > 1)
        areas = pd.Series({kind: sizes.sum() for kind, sizes in kinds.items()})
        for kind, region in _cut(areas, box, scale):
            for piece, place in _cut(_without_specks(kinds[kind], kind, scale), region, scale):
                _draw(axes, piece, place, scale, _COLOURS[kind])
        said.append(f"{name}: {words}, {_largest(kinds)}.")
    return Chart(axes, f"Treemap of unpacked files. {' '.join(said)}")


def _finding(totals: Mapping[str, float]) -> str:
    least, most = extremes(totals)
    if len(totals) == 1:
        return f"{most} has {amount(totals[most])} of files"
    if totals[most] < ALIKE * totals[least]:
        return f"{' and '.join(totals)} have about as many bytes"
    return f"{most} has {times(totals[most], totals[least])} the bytes of {least}"


def _read(rows: pd.DataFrame, in_all: Container[object]) -> Kinds:
    """Add up an image's files by package, or else by directory."""
    owner = rows["package"].fillna("")
    kind = owner.map(lambda name: "package" if name in in_all else "alone")
    kind[owner == ""] = "directory"
    place = owner.where(owner != "", rows["path"].map(_directory))
    pieces = rows["bytes"].groupby([kind, place]).sum()
    pieces = pieces.sort_values(ascending=False, kind="stable")
    totals = pieces.groupby(level=0).sum().sort_values(ascending=False)
    return {str(name): pieces.xs(name) for name, size in totals.items() if size}


def _directory(path: str) -> str:
    """Return the directory that a file counts for: ``/opt/venv``, below ``/usr`` one deeper."""
    parts = path.strip("/").split("/")[:-1]
    return "/" + "/".join(parts[: 3 if parts[:1] == ["usr"] else 2])


def _without_specks(sizes: pd.Series[float], kind: str, scale: float) -> pd.Series[float]:
    """Return bytes by name; what is too small to be seen is one, the last."""
    sizes = sizes[sizes > 0]
    is_small = sizes * scale < _SMALL
    if is_small.sum() < 2:
        return sizes
    rest = f"{is_small.sum():,} smaller " + ("directories" if kind == "directory" else "packages")
    return pd.concat([sizes[~is_small], pd.Series({rest: sizes[is_small].sum()})])


def _boxes(totals: Sequence[float], top: float) -> tuple[list[Box], float]:
    """Return where each image's map is, and how many square points a byte has in all of them."""
    room = WIDTH - 2 * MARGIN - _GAP * (len(totals) - 1)
    scale = room * _HIGH / sum(totals)
    widths = [total * scale / _HIGH for total in totals]
    if len(totals) > 1 and min(widths) < _NARROW:
        # The smaller one keeps room for its words, and its map is not as high.
        scale = (room - _NARROW) * _HIGH / max(totals)
        widths = [min(_NARROW, math.sqrt(total * scale * 1.8)) for total in totals]
        widths[totals.index(max(totals))] = room - _NARROW
    lefts = (0.0, max(widths[0], _NARROW) + _GAP)
    return [
        {"x": x, "y": top, "dx": wide, "dy": total * scale / wide}
        for x, wide, total in zip(lefts, widths, totals, strict=False)
    ], scale


def _cut(parts: pd.Series[float], box: Box, scale: float) -> Iterator[tuple[str, Box]]:
    """Cut a box into one for each part, the largest first, as square as can be."""
    return zip(map(str, parts.index), squarify.squarify(list(parts * scale), **box), strict=True)


def _draw(axes: Axes, name: str, box: Box, scale: float, colour: str) -> None:
    """Draw a piece, with its name and bytes where they fit, upright in a narrow one."""
    x, y, wide, high = box["x"], box["y"], box["dx"], box["dy"]
    axes.add_artist(Rectangle((x, y), wide, high, facecolor=colour, edgecolor="white", linewidth=1))
    size = amount(wide * high / scale)
    flat, upright = (
        _label(name, size, along - 5, across - 3) for along, across in ((wide, high), (high, wide))
    )
    # As it is read, unless a narrow piece has clearly more room the other way.
    turned = len(upright) > len(flat) + 3
    write(
        axes, x + wide / 2, y + high / 2, upright if turned else flat, ha="center",
        rotation=90 if turned else 0, linespacing=1.15, color=ink(colour),
    )  # fmt: skip


def _label(name: str, size: str, along: float, across: float) -> str:
    """Return the words of a piece as lines for a width and a height; empty if nothing fits."""
    most = int(across // (SMALL * 1.2))
    lines = wrapped(name, along, SMALL, after="/ -")
    if len(lines) > most or "…" in "".join(lines):
        rest = re.match(r"([\d,]+) smaller ", name)
        cut = f"+{rest[1]}" if rest else fitted(name, along, SMALL)
        lines = [cut] if rest or len(cut) > 6 else []
    if not lines or most < 1 or text_width(lines[0], SMALL) > along:
        return ""
    if len(lines) < most and text_width(size, SMALL) <= along:
        lines.append(size)
    return "\n".join(lines)


def _write_head(axes: Axes, x: float, name: str, words: str, kinds: Kinds, *, paired: bool) -> None:
    """Write an image's name and numbers, and what its colours mean."""
    name = fitted(name, _NARROW, TEXT, bold=True)
    write(axes, x, 0.5 * _LINE, name, size=TEXT, weight="bold")
    write(axes, x, 1.5 * _LINE, words, size=TEXT)
    for line, (kind, sizes) in enumerate(kinds.items(), start=2):
        y = (line + 0.5) * _LINE
        axes.add_artist(
            Rectangle((x, y - 4), 8, 8, facecolor=_COLOURS[kind], edgecolor=DARK, linewidth=0.4)
        )
        packages = counted(len(sizes), "package")
        text = {
            "alone": f"{packages} only here",
            "package": packages + (" of both" if paired else ""),
            "directory": "in no package",
        }[kind]
        write(axes, x + 12, y, f"{text}: {amount(sizes.sum())}")


def _largest(kinds: Kinds) -> str:
    """Say what is largest, and how much is in packages that the other image has not."""
    every = pd.concat(list(kinds.values())).nlargest(3)
    most = [f"{name} {amount(size)}" for name, size in every[every > 0].items()]
    said = f"the largest {'part is' if len(most) == 1 else 'parts are'} {listed(most)}"
    if "alone" in kinds:
        said += f"; {counted(len(kinds['alone']), 'package')} that the other has not: "
        said += amount(kinds["alone"].sum())
    return said
