"""Where an image's bytes are: a map of its packages and directories, area for bytes.

Source: Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000), as the library squarify does it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import squarify  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from labapp.charts.figure import Chart, canvas, fitted, ink, text_width, wrapped, write
from labapp.charts.style import AMBER, DARK, DEEP, MARGIN, PALE, SMALL, TEXT, WIDTH
from labapp.charts.words import ALIKE, checked_all, counted, listed, quoted, times
from labapp.errors import LabError
from labapp.feedback import amount

_HIGH, _GAP, _LINE, _KEY = 330.0, 24.0, 13.5, 36.0
_NARROW = 178.0
"""So wide is a variant's place at least, for its name and numbers."""

_SMALL = 130.0
"""Things with a smaller area, in square points, are drawn as one."""

_COLOURS = {"alone": DEEP, "package": PALE, "directory": AMBER}
"""A package that only this image has, any other, and what is in no package."""

_ROUND = sorted((digit * 10**power for digit in (1, 2, 5) for power in range(10)), reverse=True)

Box = dict[str, float]
"""A rectangle, from its upper left corner, in points: ``x``, ``y``, ``dx`` and ``dy``."""


@dataclass(frozen=True)
class _Image:
    """What one map shows; pieces have ``kind``, ``name`` and ``bytes``, the largest first."""

    name: str
    pieces: pd.DataFrame
    kinds: pd.Series[float]
    words: str

    @property
    def bytes(self) -> float:
        return float(self.kinds.sum())


def where_bytes_are(variants: Mapping[str, pd.DataFrame]) -> Chart:
    """Draw where the unpacked bytes of one or two images are; equal areas are equal bytes.

    A file that a package owns counts there, any other in its directory. What is too small to be
    seen is drawn as one.

    Args:
        variants: for each image's name its files; columns ``path``, ``type``, ``bytes`` and
            ``package`` (empty for a file that none owns).
    """
    drawing = "where the bytes are"
    tables = checked_all(drawing, variants, "path", "type", "bytes#", "package")
    if len(tables) > 2 or not all(rows["bytes"].any() for rows in tables.values()):
        raise LabError(
            f"drawing {drawing}: it takes one or two images with bytes in them, not "
            f"{quoted(tables)}. Choose two."
        )
    images = [
        _read(name, rows, [other for key, other in tables.items() if key != name])
        for name, rows in tables.items()
    ]
    head = (2 + max(len(image.kinds) for image in images)) * _LINE + 4
    boxes, scale = _boxes([image.bytes for image in images], head)
    bottom = head + max(box["dy"] for box in boxes) + _KEY
    axes = canvas(title=_title(images), height=bottom)
    for image, box in zip(images, boxes, strict=True):
        _write_head(axes, image, box["x"], paired=len(images) > 1)
        for kind, region in _cut(image.kinds, box, scale):
            for name, piece in _cut(_pieces(image, kind, scale), region, scale):
                _draw(axes, name, piece, scale, _COLOURS[kind])
    _write_key(axes, scale, bottom)
    return Chart(axes, f"Treemap of unpacked files. {' '.join(map(_said, images))}")


def _read(name: str, rows: pd.DataFrame, others: Sequence[pd.DataFrame]) -> _Image:
    """Add up an image's files by package, or else by directory."""
    owner = rows["package"].fillna("").astype(str)
    elsewhere = {str(package) for other in others for package in other["package"].dropna()}
    kind = pd.Series("package", index=rows.index)
    if others:
        kind[~owner.isin(elsewhere)] = "alone"
    kind[owner == ""] = "directory"
    place = owner.where(owner != "", rows["path"].map(_directory))
    table = pd.DataFrame({"kind": kind, "name": place, "bytes": rows["bytes"]})
    pieces = table.groupby(["kind", "name"], as_index=False).sum()
    pieces = pieces.sort_values("bytes", ascending=False, kind="stable")
    kinds = pieces.groupby("kind")["bytes"].sum().sort_values(ascending=False)
    words = f"{amount(kinds.sum())} in {counted((rows['type'] == 'file').sum(), 'file')}"
    return _Image(name, pieces, kinds[kinds > 0], words)


def _directory(path: str) -> str:
    """Return the directory that a file counts for: ``/opt/venv``, below ``/usr`` one deeper."""
    parts = path.strip("/").split("/")[:-1]
    return "/" + "/".join(parts[: 3 if parts[:1] == ["usr"] else 2])


def _pieces(image: _Image, kind: str, scale: float) -> pd.Series[float]:
    """Return bytes by name, the most first; what is too small to be seen is one, the last."""
    rows = image.pieces[(image.pieces["kind"] == kind) & (image.pieces["bytes"] > 0)]
    sizes: pd.Series[float] = rows.set_index("name")["bytes"]
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


def _write_head(axes: Axes, image: _Image, x: float, *, paired: bool) -> None:
    """Write an image's name and numbers, and what its colours mean."""
    name = fitted(image.name, _NARROW, TEXT, bold=True)
    write(axes, x, 0.5 * _LINE, name, size=TEXT, weight="bold")
    write(axes, x, 1.5 * _LINE, image.words, size=TEXT)
    for line, (kind, size) in enumerate(image.kinds.items(), start=2):
        y = (line + 0.5) * _LINE
        colour = _COLOURS[str(kind)]
        axes.add_artist(
            Rectangle((x, y - 4), 8, 8, facecolor=colour, edgecolor=DARK, linewidth=0.4)
        )
        packages = counted((image.pieces["kind"] == kind).sum(), "package")
        text = {
            "alone": f"{packages} only here",
            "package": packages + (" of both" if paired else ""),
            "directory": "in no package",
        }[str(kind)]
        write(axes, x + 12, y, f"{text}: {amount(size)}")


def _write_key(axes: Axes, scale: float, bottom: float) -> None:
    """Draw an area that everybody can compare with."""
    size = next((size for size in _ROUND if size * scale <= 24**2), 1)
    side = min(math.sqrt(size * scale), 24.0)
    axes.add_artist(
        Rectangle((0.5, bottom - side - 0.5), side, side, facecolor="none", edgecolor=DARK,
                  linewidth=0.8)
    )  # fmt: skip
    write(axes, side + 7, bottom - side / 2, f"this area is {amount(size)} of unpacked files")


def _title(images: Sequence[_Image]) -> str:
    """Say how to read the map, and how the images compare."""
    least, most = sorted((images[0], images[-1]), key=lambda image: image.bytes)
    if len(images) == 1:
        found = f"{most.name} has {amount(most.bytes)} of files"
    elif most.bytes < ALIKE * least.bytes:
        found = f"{images[0].name} and {images[1].name} have about as many bytes"
    else:
        found = f"{most.name} has {times(most.bytes, least.bytes)} the bytes of {least.name}"
    return f"{found}. Equal areas are equal bytes"


def _said(image: _Image) -> str:
    """Say what is largest, and how much is in packages that the other image has not."""
    rows = image.pieces[image.pieces["bytes"] > 0].head(3)
    most = [
        f"{name} {amount(size)}" for name, size in zip(rows["name"], rows["bytes"], strict=True)
    ]
    said = f"{image.name}: {image.words}, the largest "
    said += f"{'part is' if len(rows) == 1 else 'parts are'} {listed(most)}"
    if alone := (image.pieces["kind"] == "alone").sum():
        said += f"; {counted(alone, 'package')} that the other has not: "
        said += amount(image.kinds.get("alone", 0))
    return said + "."
