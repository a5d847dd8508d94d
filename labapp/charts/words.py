"""Tables as charts take them, checked before anything is drawn; and numbers as people say them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from labapp.errors import LabError

ALIKE = 1.05
"""What is less than so many times as much counts as about the same."""


def checked(chart: str, rows: object, *columns: str, name: str = "") -> pd.DataFrame:
    """Return a table that has rows and some columns; those that end with ``#`` hold numbers.

    LabError if something is missing, or a number is negative or endless.
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
        rows = rows.assign(**{column: values})
    return rows


def checked_all(chart: str, variants: object, *columns: str) -> dict[str, pd.DataFrame]:
    """Return tables by name, each as :func:`checked` has it; without columns, anything by name."""
    if not isinstance(variants, Mapping):
        raise LabError(
            f"drawing {chart}: it takes values by name, such as {{'slim': …}}, "
            f"not '{type(variants).__name__}'."
        )
    if not variants:
        raise LabError(f"drawing {chart}: there is nothing to draw. Give one variant or more.")
    if not columns:
        return dict(variants)
    return {name: checked(chart, rows, *columns, name=name) for name, rows in variants.items()}


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
