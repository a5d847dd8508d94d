"""Tables as charts take them, checked before anything is drawn; and numbers as people say them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from labapp.errors import LabError

ALIKE = 1.05
"""What is less than so many times as much counts as about the same."""


def checked(chart: str, rows: object, *columns: str) -> None:
    """Raise a LabError unless this is a table that has rows and some columns."""
    if not isinstance(rows, pd.DataFrame) or rows.empty or not set(columns) <= set(rows):
        given = f"'{type(rows).__name__}'"
        if isinstance(rows, pd.DataFrame):
            given = f"one of {counted(len(rows), 'row')} with {quoted(rows) or 'none'}"
        raise LabError(
            f"drawing {chart}: it takes a table that has rows, and the columns {quoted(columns)}, "
            f"not {given}. Give the table as the lab returned it."
        )


def checked_all(chart: str, variants: object, *columns: str) -> None:
    """Raise a LabError unless there are tables by name; without columns, anything by name."""
    if not isinstance(variants, Mapping) or not variants:
        raise LabError(
            f"drawing {chart}: in '{type(variants).__name__}' is nothing to draw by a name. "
            "Give one variant or more, such as {'slim': …}."
        )
    for name, rows in variants.items() if columns else ():
        checked(f"{chart} of '{name}'", rows, *columns)


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: ``1 layer``, ``1,200 layers``."""
    return f"{number:,.0f} {noun}" + ("" if number == 1 else "s")


def times(larger: float, smaller: float) -> str:
    """Return how many times one number is another: ``8 times``, ``1.4 times``."""
    ratio = larger / smaller
    return f"{ratio:,.0f} times" if ratio >= 9.5 else f"{ratio:.1f} times"


def extremes(values: Mapping[str, float]) -> tuple[str, str]:
    """Return the names of the least and of the most."""
    return min(values, key=values.__getitem__), max(values, key=values.__getitem__)


def quoted(texts: Iterable[object]) -> str:
    """Return names in quotes, with commas."""
    return ", ".join(f"'{text}'" for text in texts)


def listed(texts: Sequence[str]) -> str:
    """Return texts as a sentence lists them: ``a, b and c``."""
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last
