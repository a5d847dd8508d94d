"""What the rectangles of a treemap stand for, and the words that fit into one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from labapp.charts.figure import SMALL, fitted, fitted_end, text_width
from labapp.charts.rows import counted

LINE = SMALL * 1.2
"""The height of a line in a rectangle."""

_SMALL = 130.0
"""Things with a smaller area, in square points, are drawn as one."""


@dataclass(frozen=True)
class Image:
    """What one map shows.

    Attributes:
        name: the image's.
        pieces: bytes of each package and directory, largest first; columns ``kind`` (``alone``: a
            package that only this image has, ``package``, ``directory``), ``name``, ``bytes``.
        counts: packages and directories of each kind; those whose files are all empty count.
        files: how many the image has.
    """

    name: str
    pieces: pd.DataFrame
    counts: Mapping[str, int]
    files: int

    @property
    def bytes(self) -> float:
        """How many bytes all of it has."""
        return float(self.pieces["bytes"].sum())

    def kinds(self) -> dict[str, float]:
        """Return the bytes of each kind, the most first."""
        sums = self.pieces.groupby("kind")["bytes"].sum().sort_values(ascending=False)
        return {str(kind): float(bytes_) for kind, bytes_ in sums.items() if bytes_}

    def count(self, kind: str) -> int:
        """Return of how many packages or directories the image has files, empty ones too."""
        return self.counts.get(kind, 0)


def read(name: str, rows: pd.DataFrame, others: Sequence[pd.DataFrame]) -> Image:
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
    return Image(name, pieces, counts, files)


def _directory(path: str) -> str:
    """Return the directory that a file counts for: ``/opt/venv``, below ``/usr`` one deeper."""
    parts = path.strip("/").split("/")[:-1]
    return "/" + "/".join(parts[: 3 if parts[:1] == ["usr"] else 2])


def pieces_of(image: Image, kind: str, scale: float) -> dict[str, float]:
    """Return bytes by name, the most first; what is too small to be seen is one, the last."""
    rows = image.pieces[image.pieces["kind"] == kind]
    is_small = rows["bytes"] * scale < _SMALL
    if is_small.sum() < 2:
        is_small[:] = False
    pieces = dict(zip(rows.loc[~is_small, "name"], rows.loc[~is_small, "bytes"], strict=True))
    if is_small.any():
        one, more = ("directory", "directories") if kind == "directory" else ("package", "packages")
        rest = counted(is_small.sum(), f"smaller {one}", f"smaller {more}")
        pieces[rest] = float(rows.loc[is_small, "bytes"].sum())
    return pieces


def label(name: str, size: str, along: float, across: float) -> str:
    """Return the words of a piece as lines for a width and a height; empty if nothing fits."""
    most = int(across // LINE)
    lines = _broken(name, along)
    if not lines or len(lines) > most:
        cut = (fitted_end if name.startswith("/") else fitted)(name, along, SMALL)
        rest = re.match(r"([\d,]+) smaller ", name)
        lines = [f"+{rest[1]}" if rest else cut if len(cut) > 5 else ""]
    if not lines[0] or most < 1 or text_width(lines[0], SMALL) > along:
        return ""
    if len(lines) < most and text_width(size, SMALL) <= along:
        lines.append(size)
    return "\n".join(lines)


def _broken(name: str, width: float) -> list[str]:
    """Return a name as lines, broken behind hyphens, slashes and spaces; none if a part is wider.

    Nothing of it is left out, so that a name that has a label has all of it.
    """
    lines = [""]
    for part in re.findall(r"[-/ ]*[^-/ ]+[-/ ]*|[-/ ]+", name):
        if lines[-1] and text_width((lines[-1] + part).rstrip(), SMALL) > width:
            lines.append("")
        lines[-1] += part
    return lines if all(text_width(line.rstrip(), SMALL) <= width for line in lines) else []
