"""Tables and lines for a terminal, whatever is in them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


def new_table(*headers: str, right: tuple[int, ...] = (), cut: int | None = None) -> Table:
    """Return an empty table; columns in ``right`` are numbers, the one in ``cut`` has one line."""
    table = Table(
        box=None, show_header=any(headers), header_style="dim", padding=(0, 2, 0, 0), pad_edge=False
    )
    for number, header in enumerate(headers):
        numeric, short = number in right, number == cut
        table.add_column(
            header,
            justify="right" if numeric else "left",
            no_wrap=numeric or short,
            overflow="ellipsis" if short else "fold",
        )
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row to a table."""
    table.add_row(*(plain(str(cell)) for cell in cells))


def print_line(console: Console, text: str, *, style: str = "") -> None:
    """Print one line as it is, however long: what is copied must be in one piece."""
    console.print(plain(text), style=style, soft_wrap=True)


def plain(text: str) -> Text:
    """Return a text from elsewhere, which can hold anything, without power over the terminal."""
    return Text(
        "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    )
