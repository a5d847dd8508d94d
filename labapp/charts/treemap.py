"""Where an image's bytes are: a map of its packages and directories, area for bytes.

Source: Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000), as the library squarify does it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    canvas,
    fitted,
    ink,
    text_width,
    whole,
    write,
)
from labapp.charts.words import ALIKE, checked_all, counted, listed, times
from labapp.feedback import amount

_HIGH, _GAP, _LINE, _KEY = 330.0, 24.0, 13.5, 36.0
_NARROW = 178.0
"""So wide is a variant's place at least, for its name and numbers."""

_SMALL = 130.0
"""Things with a smaller area, in square points, are drawn as one."""

_COLOURS = {"alone": DEEP, "package": PALE, "directory": AMBER}
_ROUND = sorted((digit * 10**power for digit in (1, 2, 5) for power in range(10)), reverse=True)


@dataclass(frozen=True)
class _Image:
    """What one map shows: bytes by kind and name, the largest first, and how many files.

    Kinds are ``alone`` (a package that only this image has), ``package`` and ``directory``;
    ``counts`` has how many there are of each, those whose files are all empty included.
    """

    name: str
    pieces: pd.DataFrame
    counts: Mapping[str, int]
    files: int

    @property
    def bytes(self) -> float:
        return float(self.pieces["bytes"].sum())

    def kinds(self) -> dict[str, float]:
        """Return the bytes of each kind, the most first."""
        sums = self.pieces.groupby("kind")["bytes"].sum().sort_values(ascending=False)
        return {str(kind): float(size) for kind, size in sums.items() if size}

    def pieces_of(self, kind: str, scale: float) -> dict[str, float]:
        """Return bytes by name, the most first; what is too small to be seen is one, the last."""
        rows = self.pieces[self.pieces["kind"] == kind]
        is_small = rows["bytes"] * scale < _SMALL
        if is_small.sum() < 2:
            is_small[:] = False
        pieces = dict(zip(rows.loc[~is_small, "name"], rows.loc[~is_small, "bytes"], strict=True))
        if is_small.any():
            one, more = "package", "packages"
            if kind == "directory":
                one, more = "directory", "directories"
            rest = counted(is_small.sum(), f"smaller {one}", f"smaller {more}")
            pieces[rest] = float(rows.loc[is_small, "bytes"].sum())
        return pieces


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
    checked_all("where the bytes are", variants, "path", "bytes#", "package", most=2)
    images = [
        _read(name, rows, [other for key, other in variants.items() if key != name])
        for name, rows in variants.items()
    ]
    head = (2 + max(len(image.kinds()) for image in images)) * _LINE + 4
    boxes, scale = _boxes([image.bytes for image in images], head)
    bottom = head + max(box.high for box in boxes) + _KEY
    axes = canvas(title=_title(images), height=bottom)
    for image, box in zip(images, boxes, strict=True):
        _write_head(axes, image, box.x, paired=len(images) > 1)
        for kind, region in _cut(image.kinds(), box, scale).items():
            for name, piece in _cut(image.pieces_of(kind, scale), region, scale).items():
                _draw(axes, name, piece, scale, _COLOURS[kind])
    if any(box.high for box in boxes):
        _write_key(axes, scale, bottom)
    return Chart(whole(axes), f"Treemap of unpacked files. {' '.join(map(_said, images))}")


def _read(name: str, rows: pd.DataFrame, others: Sequence[pd.DataFrame]) -> _Image:
    """Add up an image's files by package, or else by directory."""
    owner = rows["package"].fillna("").astype(str)
    elsewhere = {str(package) for other in others for package in other["package"].dropna()}
    kind = pd.Series("package", index=rows.index)
    if others:
        kind[~owner.isin(elsewhere)] = "alone"
    kind[owner == ""] = "directory"
    place = owner.where(owner != "", rows["path"].map(_directory))
    table = pd.DataFrame({"kind": kind, "name": place, "bytes": rows["bytes"].astype(float)})
    pieces = table.groupby(["kind", "name"], as_index=False)["bytes"].sum()
    counts = {str(kind): int(count) for kind, count in pieces["kind"].value_counts().items()}
    pieces = pieces[pieces["bytes"] > 0].sort_values("bytes", ascending=False, kind="stable")
    files = int((rows["type"] == "file").sum()) if "type" in rows else len(rows)
    return _Image(name, pieces, counts, files)


def _directory(path: str) -> str:
    """Return the directory that a file counts for: ``/opt/venv``, below ``/usr`` one deeper."""
    parts = path.strip("/").split("/")[:-1]
    return "/" + "/".join(parts[: 3 if parts[:1] == ["usr"] else 2])


def _boxes(totals: Sequence[float], top: float) -> tuple[list[_Box], float]:
    """Return where each image's map is, and how many square points a byte has in all of them."""
    room = WIDTH - 2 * MARGIN - _GAP * (len(totals) - 1)
    if not any(totals):
        return [_Box(0, top, 0, 0) for _ in totals], 1.0
    scale = room * _HIGH / sum(totals)
    widths = [room * total / sum(totals) for total in totals]
    if len(totals) > 1 and min(widths) < _NARROW:
        # The smaller one keeps room for its words, and its map is not as high.
        scale = (room - _NARROW) * _HIGH / max(totals)
        widths = [min(_NARROW, math.sqrt(total * scale * 1.8)) for total in totals]
        widths[totals.index(max(totals))] = room - _NARROW
    lefts = [0.0, max(widths[0], _NARROW) + _GAP]
    return [
        _Box(x, top, wide, total * scale / wide if wide else 0.0)
        for x, wide, total in zip(lefts[: len(totals)], widths, totals, strict=True)
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
        _label(name, size, along - 5, across - 3)
        for along, across in ((box.wide, box.high), (box.high, box.wide))
    )
    # As it is read, unless a narrow piece has clearly more room the other way.
    turned = len(upright) > len(flat) + 3
    look: dict[str, Any] = {"ha": "center", "rotation": 90 if turned else 0, "linespacing": 1.15}
    middle = box.x + box.wide / 2, box.y + box.high / 2
    write(axes, *middle, upright if turned else flat, color=ink(colour), **look)


def _label(name: str, size: str, along: float, across: float) -> str:
    """Return the words of a piece as lines for a width and a height; empty if nothing fits.

    A name is broken behind hyphens, slashes and spaces, and cut only where that is not enough.
    """
    most = int(across // (SMALL * 1.2))
    lines = [""]
    for part in re.findall(r"[-/ ]*[^-/ ]+[-/ ]*|[-/ ]+", name):
        if lines[-1] and text_width((lines[-1] + part).rstrip(), SMALL) > along:
            lines.append("")
        lines[-1] += part
    if len(lines) > most or any(text_width(line.rstrip(), SMALL) > along for line in lines):
        cut = fitted(name, along, SMALL, keep="end" if name.startswith("/") else "start")
        rest = re.match(r"([\d,]+) smaller ", name)
        lines = [f"+{rest[1]}" if rest else cut if len(cut) > 5 else ""]
    if not lines[0] or most < 1 or text_width(lines[0].rstrip(), SMALL) > along:
        return ""
    if len(lines) < most and text_width(size, SMALL) <= along:
        lines.append(size)
    return "\n".join(lines)


def _write_head(axes: Axes, image: _Image, x: float, *, paired: bool) -> None:
    """Write an image's name and numbers, and what its colours mean."""
    name = fitted(image.name, _NARROW, TEXT, bold=True, keep="ends")
    write(axes, x, 0.5 * _LINE, name, size=TEXT, weight="bold")
    total = f"{amount(image.bytes)} in {counted(image.files, 'file')}"
    write(axes, x, 1.5 * _LINE, total, size=TEXT)
    for line, (kind, size) in enumerate(image.kinds().items(), start=2):
        y = (line + 0.5) * _LINE
        axes.add_artist(
            Rectangle((x, y - 4), 8, 8, facecolor=_COLOURS[kind], edgecolor=DARK, linewidth=0.4)
        )
        packages = counted(image.counts.get(kind, 0), "package")
        text = {
            "alone": f"{packages} only here",
            "package": packages + (" of both" if paired else ""),
            "directory": "in no package",
        }[kind]
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
    ordered = sorted(images, key=lambda image: image.bytes)
    least, most = ordered[0], ordered[-1]
    if len(images) == 1 or not least.bytes:
        return f"{most.name} has {amount(most.bytes)} of files. Equal areas are equal bytes"
    if most.bytes < ALIKE * least.bytes:
        both = f"{images[0].name} and {images[1].name}"
        return f"{both} have about as many bytes. Equal areas are equal bytes"
    ratio = times(most.bytes, least.bytes)
    return f"{most.name} has {ratio} the bytes of {least.name}. Equal areas are equal bytes"


def _said(image: _Image) -> str:
    """Say what is largest, and how much is in packages that the other image has not."""
    rows = image.pieces.head(3).to_dict("records")
    said = f"{image.name}: {amount(image.bytes)} in {counted(image.files, 'file')}"
    if rows:
        most = listed([f"{row['name']} {amount(row['bytes'])}" for row in rows])
        said += f", the largest {'part is' if len(rows) == 1 else 'parts are'} {most}"
    if alone := image.counts.get("alone", 0):
        said += f"; {counted(alone, 'package')} that the other has not: "
        said += amount(image.kinds()["alone"])
    return said + "."
