"""Rows as charts take them, checked before anything is drawn; and numbers as a person says them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from labapp.errors import LabError

ALIKE = 1.05
"""What is less than so many times as much counts as about the same."""


def checked(chart: str, rows: object, *columns: str, name: str = "") -> pd.DataFrame:
    """Return a table that has rows and some columns; those that end with ``#`` hold numbers.

    ``chart`` and ``name``, which of several tables it is, are for the message. LabError if
    something is missing, or a number is negative or endless.
    """
    drawing = f"drawing {chart}" + (f" of '{name}'" if name else "")
    if not isinstance(rows, pd.DataFrame):
        raise LabError(f"{drawing}: it takes a table, not '{type(rows).__name__}'.")
    missing = [column for column in columns if column.rstrip("#") not in rows]
    if missing:
        raise LabError(
            f"{drawing}: the table has no column '{missing[0].rstrip('#')}', only "
            f"{quoted(rows.columns) or 'none'}. Give the table as the lab returned it."
        )
    if rows.empty:
        raise LabError(f"{drawing}: the table has no rows. Measure something first.")
    for column in (column.rstrip("#") for column in columns if column.endswith("#")):
        values = pd.to_numeric(rows[column], errors="coerce")
        bad = rows.loc[~(values >= 0) | (values == float("inf")), column]
        if len(bad):
            raise LabError(
                f"{drawing}: '{bad.iloc[0]}' in the column '{column}' is not a number from 0 up. "
                "Give the table as the lab returned it."
            )
    return rows


def checked_all(
    chart: str, variants: object, *columns: str, most: int = 0
) -> Mapping[str, pd.DataFrame]:
    """Return tables by name, each as :func:`checked` has it; without columns, anything by name."""
    if not isinstance(variants, Mapping):
        raise LabError(
            f"drawing {chart}: it takes values by name, such as {{'slim': …}}, "
            f"not '{type(variants).__name__}'."
        )
    if not variants:
        raise LabError(f"drawing {chart}: there is nothing to draw. Give one variant or more.")
    if most and len(variants) > most:
        raise LabError(
            f"drawing {chart}: it shows at most {most} variants, and there are {len(variants)}: "
            f"{quoted(variants)}. Choose {most}."
        )
    for name, rows in variants.items():
        if columns:
            checked(chart, rows, *columns, name=name)
    return variants


def numbers(rows: pd.DataFrame, column: str) -> list[float]:
    """Return a column of checked rows as plain numbers."""
    return [float(value) for value in rows[column]]


def byte_unit(largest: float) -> tuple[float, str]:
    """Return how many bytes the unit of an axis has (a power of ten), and its name."""
    for size, name in ((1e9, "gigabytes"), (1e6, "megabytes"), (1e3, "kilobytes")):
        if largest >= 2 * size:
            return size, name
    return 1.0, "bytes"


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``0.4 s``, ``20 s``, ``3 min 23 s``, ``2 h 5 min``."""
    if seconds < 0.005:
        return "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else f"{seconds:.2f} s"
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes, rest, units = *divmod(round(seconds), 60), "min s"
    if minutes >= 60:
        minutes, rest, units = *divmod(round(seconds / 60), 60), "h min"
    one, other = units.split()
    return f"{minutes} {one} {rest} {other}" if rest else f"{minutes} {one}"


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 layer``, ``1,200 layers``."""
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"


def times(larger: float, smaller: float) -> str:
    """Return how many times one number is another: ``8 times``, ``1.4 times``."""
    ratio = larger / smaller
    return f"{ratio:,.0f} times" if ratio >= 9.5 else f"{ratio:.1f} times"


def extremes(values: Mapping[str, float]) -> tuple[str, str]:
    """Return the names of the least and of the most."""
    return min(values, key=values.__getitem__), max(values, key=values.__getitem__)


def quoted(texts: object) -> str:
    """Return names in quotes, with commas."""
    return ", ".join(f"'{text}'" for text in texts)  # type: ignore[attr-defined]


def listed(texts: Sequence[str]) -> str:
    """Return texts as a sentence lists them: ``a, b and c``."""
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last


def telling(instruction: str) -> str:
    """Return an instruction without the tidying up at its end, which tells nothing."""
    return re.sub(r" ?&& ?rm -.*$", "", " ".join(str(instruction).split()))
