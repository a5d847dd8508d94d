"""What was found in images, as a terminal shows it and as a program reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from labapp.contents import Contents
from labapp.feedback import amount
from labapp.inspection import Comparison, Inspection
from labapp.terminal import add_row, new_table, plain, print_line
from labapp.vulnerabilities import Report
from labapp.vulnerabilities.fixes import MISSING

SHOWN = 10
"""How many rows of a long list a terminal is shown; JSON has all."""

_ABOVE = ("image", "digest")
"""Facts that are too long for a column."""


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Show what was found in one image: facts, layers, and the longest of each list."""
    contents, facts = inspection.contents, inspection.facts
    print_line(console, facts["image"], style="bold")
    print_line(console, facts["digest"], style="dim")
    console.print()
    table = new_table("", "")
    for name, value in facts.items():
        if name not in _ABOVE:
            add_row(table, name, value)
    console.print(table)
    _show(console, "Layers, lowest first", _layers(contents))
    _show(console, "Largest packages", _packages(contents))
    _show(console, "What helps an intruder", _helpers(contents))
    _show(console, "What a secret scanner would flag", _secrets(contents))
    if inspection.found is not None:
        _show(console, "Fixes missing now", _fixes(inspection.found))
    _notes(console, inspection.notes)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Show images side by side: a row a fact, a column an image."""
    facts = comparison.table
    for name, each in comparison.images.items():
        print_line(console, name, style="bold")
        print_line(console, f"  {each.facts['image']}")
        print_line(console, f"  {each.facts['digest']}", style="dim")
    console.print()
    table = new_table("", *facts.columns)
    for fact, values in facts.drop(index=list(_ABOVE)).iterrows():
        add_row(table, fact, *values)
    console.print(table)
    _notes(console, comparison.notes)


def as_json(found: Inspection | Comparison) -> str:
    """Return all that was found, but the files, as a JSON document.

    Sizes are in bytes, dates in ISO 8601; a number that nobody knows is null. A comparison has one
    object, ``images``, with what was found in each by its name.
    """
    if isinstance(found, Comparison):
        document: Mapping[str, Any] = {
            "images": {name: _document(each) for name, each in found.images.items()}
        }
    else:
        document = _document(found)
    return json.dumps(document, indent=2, ensure_ascii=False)


def _document(inspection: Inspection) -> dict[str, Any]:
    contents, image = inspection.contents, inspection.contents.image
    return {
        "image": str(image.reference),
        "digest": image.digest,
        "manifest_digest": image.manifest.digest,
        "platform": str(image.config.platform),
        "user": image.config.user,
        "system": dict(contents.os_release),
        "download_bytes": int(contents.download_bytes),
        "unpacked_bytes": int(contents.unpacked_bytes),
        "visible_bytes": int(contents.visible_bytes),
        "wasted_bytes": int(contents.wasted_bytes),
        "files": int((contents.files["type"] == "file").sum()),
        "surface": inspection.surface,
        "layers": _records(contents.layers),
        "packages": _records(contents.packages),
        "tools": _records(contents.tools),
        "privileged": _records(contents.privileged),
        "secrets": _records(contents.secrets),
        "vulnerabilities": inspection.found and _vulnerabilities(inspection.found),
        "vulnerabilities_unknown": inspection.unknown,
        "notes": list(contents.notes),
    }


def _vulnerabilities(report: Report) -> dict[str, Any]:
    return {
        "source": report.source,
        "date": report.date.isoformat(),
        "blind": report.blind,
        "missing": report.missing,
        "since_release": report.since_release,
        "header_cves": report.header_cves,
        "without_cve": report.without_cve,
        "notes": list(report.notes),
        "rows": _records(report.rows),
    }


def _records(table: pd.DataFrame) -> Any:
    # pandas' own writer knows how to write its numbers, dates and missing values.
    return json.loads(table.to_json(orient="records", date_format="iso"))


def _layers(contents: Contents) -> tuple[Table, int]:
    """Return the rows to show, and how many there are in all; so do the others."""
    table = new_table("#", "download", "unpacked", "wasted", "made by", right=(0, 1, 2, 3))
    for row in contents.layers.to_dict("records"):
        sizes = [amount(row[f"{name}_bytes"]) for name in ("download", "unpacked", "wasted")]
        words = " ".join(row["instruction"].split()) or "(not told)"
        add_row(table, row["number"], *sizes, words)
    return table, table.row_count


def _packages(contents: Contents) -> tuple[Table, int]:
    rows = contents.packages.sort_values("unpacked_bytes", ascending=False, kind="stable")
    table = new_table("package", "version", "kind", "unpacked", "layer", right=(3, 4))
    for row in rows.head(SHOWN).to_dict("records"):
        told = [row["name"], row["version"], row["kind"]]
        add_row(table, *told, amount(row["unpacked_bytes"]), row["layer"])
    return table, len(rows)


def _helpers(contents: Contents) -> tuple[Table, int]:
    table = new_table("", "")
    for kind, rows in contents.tools.groupby("kind", sort=False):
        add_row(table, f"{kind}s", _few(rows["name"]))
    if len(contents.privileged):
        add_row(table, "set-uid and set-gid", _few(contents.privileged["path"]))
    return table, table.row_count


def _secrets(contents: Contents) -> tuple[Table, int]:
    table = new_table("file", "line", "kind", "layer", "", right=(1, 3))
    for row in contents.secrets.head(SHOWN).to_dict("records"):
        line = "" if pd.isna(row["line"]) else int(row["line"])
        hidden = "" if row["visible"] else "hidden, still in its layer"
        add_row(table, row["path"], line, row["kind"], row["layer"], hidden)
    return table, len(contents.secrets)


def _fixes(report: Report) -> tuple[Table, int]:
    """Return what there is to patch: a row a package, those with the most CVEs first."""
    rows = report.rows[(report.rows["state"] == MISSING) & ~report.rows["headers"]]
    parts = sorted(
        (part for _, part in rows.groupby(["source_package", "installed"], sort=True)),
        key=lambda part: -part["cve"].nunique(),
    )
    table = new_table("package", "installed", "fixed in", "CVEs", "", right=(3,), cut=4)
    for part in parts[:SHOWN]:
        first = part.iloc[0]
        ids = part["cve"].unique()
        name = first["source_package"] or first["package"]
        add_row(table, name, first["installed"], _few(part["fixed"]), len(ids), ", ".join(ids))
    return table, len(parts)


def _few(names: Iterable[object]) -> str:
    listed = list(dict.fromkeys(str(name) for name in names))
    more = f", and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _show(console: Console, title: str, listed: tuple[Table, int]) -> None:
    """Print a table under a title, and how many rows it leaves out; nothing if it is empty."""
    table, rows = listed
    if table.row_count:
        console.print()
        print_line(console, title, style="bold")
        console.print(table)
    if rows > table.row_count:
        print_line(console, f"… and {rows - table.row_count} more; --json has all", style="dim")


def _notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print()
        console.print(plain(note), style="dim")
