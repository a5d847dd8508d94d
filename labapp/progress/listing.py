"""Progress and the report on a class, as a terminal shows them."""

from __future__ import annotations

import pandas as pd
from rich.console import Console

from labapp.progress.overview import Progress
from labapp.progress.report import ClassReport
from labapp.terminal import add_row, new_table, plain, print_line


def print_progress(console: Console, progress: Progress) -> None:
    """Show a learner's progress: a row a chapter, and where to go on."""
    print_line(console, progress.summary, style="bold")
    print_line(console, "✓ passed, … tried, ○ not begun", style="dim")
    console.print()
    table = new_table("", "", "")
    for row in progress.chapters:
        add_row(table, *row)
    console.print(table)
    for note in progress.notes:
        console.print()
        console.print(plain(note), style="bold")
    console.print()
    print_line(console, progress.advice)
    print_line(console, f"The receipts are in '{progress.file}'.", style="dim")


def print_report(console: Console, report: ClassReport) -> None:
    """Show a class: a row a learner, a row an exercise, and what is odd or was left out."""
    learners = report.learners
    is_verified = bool(learners["verified"].notna().any())
    heads = ("learner", "passed", "tries", "hints", "solutions", "last", "chain")
    table = new_table(*heads, *(["verified"] if is_verified else []), right=(1, 2, 3, 4))
    for row in learners.to_dict("records"):
        cells = [row["learner"], f"{row['passed']} of {row['of']}"]
        cells += [row[name] for name in ("tries", "hints", "solutions")]
        cells += [row["last"][:10], row["chain"]]
        cells += [f"{row['verified']:.0f} of {row['images']}"] if is_verified else []
        add_row(table, *cells)
    console.print(table)
    console.print()
    columns = ("exercise", "passed by", "tried by", "tries", "hints", "solutions")
    table = new_table(*columns, right=(1, 2, 3, 4, 5))
    for row in report.exercises.to_dict("records"):
        medians = ["" if pd.isna(row[name]) else f"{row[name]:g}" for name in ("tries", "hints")]
        add_row(table, row["exercise"], row["passed"], row["tried"], *medians, row["solutions"])
    console.print(table)
    print_line(console, "Tries and hints are medians of those who passed.", style="dim")
    rows = learners.to_dict("records")
    told = [f"{row['learner']}: {note}" for row in rows for note in row["notes"]]
    for line in (*told, *(f"Left out: {line}" for line in report.left_out)):
        console.print()
        console.print(plain(line))
