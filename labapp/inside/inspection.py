"""Inspections: what an image weighs, holds and leaves to patch, and images side by side.

What is slow to import is imported where it is needed: a wrong reference is told at once.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labapp.errors import InvalidReference, NotInRegistry, VulnerabilityError, printable
from labapp.feedback import amount
from labapp.inside.packages import KINDS
from labapp.reference import Reference
from labapp.registry.client import Registry, RegistryImage
from labapp.registry.manifests import Platform, layer_history
from labapp.state import SOURCE_LABEL

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from labapp.charts import Chart
    from labapp.inside.changes import Changes
    from labapp.inside.image import Contents
    from labapp.inside.known import Report

CACHE = "cache"
"""The folder in the lab's state for what was read from layers and mirrors."""

COLUMN = 16
"""How many letters of a terminal's width a column of a comparison gets at least."""

LONGEST = 1_000
"""How many characters of a text a table shows; JSON has all."""

SHOWN, FEW = 10, 3
"""How many rows of a long list a terminal is shown, and how many names in a cell; JSON has all."""

LOOKED_FOR = (
    "Packages are those of dpkg, apk and Python's installers; those of rpm, npm, gems, jars and Go "
    "modules are not looked for."
)

_SOURCES = {"debian-packages": "made from Debian packages", "docker-hub": "from Docker Hub"}
_ABOVE = ["image", "digest"]
"""Facts that are too long for a column."""


class Comparison:
    """Images side by side, each by a short name."""

    def __init__(self, images: Mapping[str, Inspection]) -> None:
        self.images = images

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all images, each once."""
        return tuple(dict.fromkeys(note for each in self.images.values() for note in each.notes))

    @property
    def table(self) -> pd.DataFrame:
        """A row a fact, a column an image."""
        import pandas as pd

        return pd.DataFrame({name: each.facts for name, each in self.images.items()})

    @property
    def changes(self) -> Changes:
        """What changed from the first of two images to the second; InvalidReference for more."""
        from labapp.inside.changes import Changes

        if len(self.images) != 2:
            raise InvalidReference(
                f"looking for changes in {len(self.images)} images: take two, the old one first."
            )
        old, new = self.images.values()
        return Changes(old.contents, new.contents)

    def charts(self) -> dict[str, Chart]:
        """Draw what there is to see, by the name of the file that it may go to."""
        from labapp import charts

        images = self.images.items()
        # An image without layers, or without a byte in them, has nothing to draw.
        inside = {name: each.contents for name, each in images if each.contents.visible_bytes}
        layers = {name: each.layers for name, each in inside.items()}
        reports = {name: each.found for name, each in images if each.found}
        drawn = {"surface": charts.surface({name: each.surface for name, each in images})}
        if inside:
            files = {
                name: each.files.assign(**each.files[["path", "package"]].map(printable))
                for name, each in list(inside.items())[:2]
            }
            drawn["sizes"] = charts.variant_sizes(layers)
            drawn["where-bytes-are"] = charts.where_bytes_are(files)
            sizes = {name: each.download_bytes for name, each in inside.items()}
            drawn["pull-times"] = charts.pull_times(sizes)
        if len(inside) > 1:
            drawn["shared-layers"] = charts.shared_layers(layers)
        if reports:
            report, *_ = reports.values()
            months = {name: each.by_month for name, each in reports.items()}
            drawn["cves"] = charts.cves_since_release(
                months, source=report.source, date=report.date, blind=report.blind
            )
        return drawn

    def __repr__(self) -> str:
        return self.table.to_string()

    def _repr_html_(self) -> str:
        table = self.table.drop(index=_ABOVE) if len(self.images) > 1 else self.table
        # JupyterLab puts cells to the right, as for numbers; these are words.
        cell = r'<\1 style="text-align:left">'
        text = re.sub("<(t[hd])>", cell, table.to_html(border=0, justify="left"))
        said = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f'<div class="labapp-inspection">{text}<ul style="opacity:0.8">{said}</ul></div>'


class Inspection(Comparison):
    """What was found in an image: a comparison of one.

    Attributes:
        contents: its layers, files, packages and tools.
        found: its known vulnerabilities; None where they could not be told.
        unknown: why they could not be told, in words; empty where they were.
    """

    def __init__(self, contents: Contents, found: Report | None, unknown: str = "") -> None:
        super().__init__({contents.image.reference.repository: self})
        self.contents, self.found, self.unknown = contents, found, unknown

    @property
    def report(self) -> Report:
        """The known vulnerabilities; where they could not be told, VulnerabilityError says why."""
        if self.found is None:
            raise VulnerabilityError(self.unknown or "nobody was asked for vulnerabilities.")
        return self.found

    @cached_property
    def surface(self) -> dict[str, float | None]:
        """Numbers of what there is to patch, and of what helps an intruder; None is not known."""
        contents = self.contents
        tools = contents.tools["kind"].value_counts()
        kinds = ("shell", "compiler", "package manager", "network client")
        return {
            "Debian packages": int((contents.packages["kind"] == "deb").sum()),
            "CVEs fixed since the release": self.found.since_release if self.found else None,
            **{f"{kind}s": int(tools.get(kind, 0)) for kind in kinds},
            "set-uid and set-gid files": len(contents.privileged),
        }

    @cached_property
    def values(self) -> dict[str, str | float | None]:
        """What to know of the image, by name: what JSON has, and all tables show as texts."""
        contents, config = self.contents, self.contents.image.config
        base = config.labels.get("org.opencontainers.image.base.name")
        source = config.labels.get(SOURCE_LABEL, "")
        kinds = contents.packages["kind"].value_counts()
        packages = [f"{kinds[key]} {name}" for key, name in KINDS.items() if key in kinds]
        hidden = int((~contents.secrets["visible"]).sum())
        behind = f" ({hidden} in files that a later layer hides)" if hidden else ""
        is_root = config.user.partition(":")[0] in ("", "0", "root")
        return {
            "image": str(contents.image.reference),
            "digest": contents.image.digest,
            "platform": str(config.platform),
            "system": contents.os_release.get("PRETTY_NAME", "not told"),
            "base": ", ".join(filter(None, [base, _SOURCES.get(source, source)])) or "not told",
            "layers": len(contents.layers),
            "download_bytes": contents.download_bytes,
            "unpacked_bytes": contents.unpacked_bytes,
            "visible_bytes": contents.visible_bytes,
            "wasted_bytes": contents.wasted_bytes,
            "files": int((contents.files["type"] == "file").sum()),
            "packages": ", ".join(packages) or f"none of {', '.join(KINDS.values())}",
            "secrets": f"{len(contents.secrets)}{behind}",
            "runs as": "root" if is_root else f"user {config.user}",
            "fixes missing now": self.found.missing if self.found else None,
            **{name: self.surface[name] for name in list(self.surface)[1:]},
        }

    @cached_property
    def facts(self) -> dict[str, str]:
        """The values as texts: what all tables show."""
        return {
            name.removesuffix("_bytes"): _text(name, each) for name, each in self.values.items()
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Whose vulnerabilities they are, what nobody looked for, and what was not read."""
        told = [f"Vulnerabilities: {self.unknown}"] if self.unknown else []
        if found := self.found:
            told = [f"{found.source}, as of {found.date:%Y-%m-%d}. {found.blind}", *found.notes]
        return tuple(map(printable, (*told, LOOKED_FOR, *self.contents.notes)))


def inspect(
    registry: Registry,
    reference: Reference | str,
    *,
    cache: Path,
    source: str | None = "auto",
    platform: Platform | None = None,
) -> Inspection:
    """Read an image in a registry, and look its packages up; the cache is for what was read.

    The source is whom to ask for vulnerabilities; None to ask nobody. If it can't tell, the rest is
    returned, and ``unknown`` says why. The platform is for an index.
    """
    held = registry.image(reference, platform=platform)
    # A plain image is for one platform, and no registry refuses it to others.
    if platform is not None and not platform.can_run(held.config.platform):
        only = f"is for {held.config.platform} alone, not for {platform}"
        raise NotInRegistry(f"inspecting '{reference}': it {only}. Leave --platform out.")
    from labapp.inside import image

    contents = image.read(registry, held, folder=cache / "layers")
    if source is None:
        return Inspection(contents, None)
    from labapp.inside.known import known

    try:
        found = known(contents, folder=cache / "vulnerabilities", source=source)
    except VulnerabilityError as error:
        return Inspection(contents, None, str(error))
    return Inspection(contents, found)


def layers(held: RegistryImage) -> pd.DataFrame:
    """Return an image's layers as its manifest and config tell them, lowest first.

    Columns: ``instruction``, ``digest``, ``download_bytes`` (compressed).
    """
    import pandas as pd

    rows = [
        (history.instruction if history else "(not recorded)", layer.digest, layer.size)
        for layer, history in layer_history(held.manifest, held.config)
    ]
    return pd.DataFrame(rows, columns=["instruction", "digest", "download_bytes"])


def print_inspection(found: Comparison) -> None:
    """Show on a terminal what was found: the facts, and of a single image the longest lists."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for name, each in found.images.items():
        if len(found.images) > 1:
            console.print(name, style="bold", soft_wrap=True)
        # One line each, however long: what is copied must be in one piece.
        for fact in _ABOVE:
            console.print(each.facts[fact], style="dim", soft_wrap=True)
    table = found.table.drop(index=_ABOVE)
    # As many columns as can be read side by side, and the others below.
    side_by_side = max(1, (console.width - max(map(len, table.index)) - 2) // COLUMN)
    for first in range(0, len(found.images), side_by_side):
        console.print()
        console.print(_grid(table.iloc[:, first : first + side_by_side].reset_index(names="")))
    if isinstance(found, Inspection):
        _print_lists(console, _lists(found))
    for note in found.notes:
        console.print()
        console.print(note, style="dim")


def print_changes(found: Changes) -> None:
    """Show on a terminal what changed between two images, the files of no package first."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for each in (found.old, found.new):
        console.print(f"{each.image.reference}", style="bold", soft_wrap=True)
        console.print(each.image.digest, style="dim", soft_wrap=True)
    console.print()
    console.print(found.summary)
    files = found.files.drop(columns="explained")
    lists = {
        "Packages": found.packages,
        "Layers, lowest first": found.layers.drop(columns="digest"),
        "Files of no changed package": files[~found.files["explained"]],
        "Files of changed packages": files[found.files["explained"]],
    }
    _print_lists(console, lists)


def _print_lists(console: Console, lists: Mapping[str, pd.DataFrame]) -> None:
    for title, rows in lists.items():
        most = len(rows) if title.startswith("Layers") else SHOWN
        if len(rows):
            console.print()
            console.print(title, style="bold")
            console.print(_grid(rows.head(most)))
        if len(rows) > most:
            console.print(f"… and {len(rows) - most} more; --json has all", style="dim")


def _grid(rows: pd.DataFrame) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for name in map(str, rows):
        number = rows[name].dtype.kind in "if"
        head = name.removesuffix("_bytes").replace("_", " ")
        table.add_column(
            head, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in rows.to_dict("records"):
        table.add_row(*(_text(str(name), value) for name, value in row.items()))
    return table


def _lists(found: Inspection) -> dict[str, pd.DataFrame]:
    contents = found.contents
    sizes = ["download_bytes", "unpacked_bytes", "wasted_bytes"]
    seen = contents.secrets["visible"].map({True: "yes", False: "no, still in its layer"})
    lines = contents.secrets["line"].astype(object).fillna("")
    packages = contents.packages.sort_values("unpacked_bytes", ascending=False, kind="stable")
    lists = {
        "Layers, lowest first": contents.layers[["number", *sizes, "instruction"]],
        "Largest packages": packages[["name", "version", "kind", "unpacked_bytes", "layer"]],
        "What helps an intruder": contents.tools[["name", "kind", "path", "layer"]],
        "Set-uid and set-gid files": contents.privileged[["path", "bit", "uid", "gid", "layer"]],
        "What a secret scanner would flag": contents.secrets.assign(line=lines, visible=seen),
    }
    if found.found:
        each = found.found.lacking.groupby(["source_package", "installed"], as_index=False)
        listed = each.agg(fixed_in=("fixed", _few), CVEs=("cve", "nunique"), which=("cve", _few))
        lists["Fixes missing now"] = listed.sort_values("CVEs", ascending=False, kind="stable")
    return lists


def _few(names: pd.Series[str]) -> str:
    listed = list(dict.fromkeys(names))
    more = f", and {len(listed) - FEW} more" if len(listed) > FEW else ""
    return ", ".join(listed[:FEW]) + more


def as_json(found: Comparison, *, changes: bool = False) -> str:
    """Return all that was found, but the files, as a JSON document.

    Sizes are in bytes, dates in ISO 8601; a number that nobody knows is null. A comparison has one
    object, ``images``, with what was found in each by its name. With ``changes``, it is what
    changed: ``packages``, ``layers`` and ``files``.
    """
    if changes:
        tables = ("packages", "layers", "files")
        document = {name: _records(getattr(found.changes, name)) for name in tables}
    elif isinstance(found, Inspection):
        document = _document(found)
    else:
        document = {"images": {name: _document(each) for name, each in found.images.items()}}
    return json.dumps(document, indent=2, default=datetime.isoformat)


def _document(found: Inspection) -> dict[str, Any]:
    contents, report = found.contents, found.found
    tables = ("layers", "packages", "tools", "privileged", "secrets")
    known = ("source", "date", "blind", "missing", "since_release", "notes")
    return {
        **found.values,
        "manifest_digest": contents.image.manifest.digest,
        **{name: _records(getattr(contents, name)) for name in tables},
        "vulnerabilities": report
        and {name: getattr(report, name) for name in known} | {"rows": _records(report.rows)},
        "vulnerabilities_unknown": found.unknown,
        "notes": found.notes,
    }


def _records(table: pd.DataFrame) -> Any:
    """Return a table's rows as JSON has them: what is missing is null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _text(name: str, value: object) -> str:
    if isinstance(value, int | float):
        return amount(value) if name.endswith("_bytes") else f"{value:,}"
    text = "not known" if value is None else " ".join(printable(str(value)).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
