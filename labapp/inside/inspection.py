"""Inspections: what an image weighs, holds and leaves to patch, and images side by side.

What is slow to import is imported where it is needed: a wrong reference is told at once.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labapp.errors import VulnerabilityError
from labapp.feedback import amount
from labapp.inside.packages import KINDS
from labapp.reference import Reference
from labapp.registry.client import Registry, RegistryImage
from labapp.registry.manifests import Platform, layer_history
from labapp.registry.strangers import printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from labapp.charts import Chart
    from labapp.inside.fixes import Report
    from labapp.inside.image import Contents

CACHE = "cache"
"""The folder in the lab's state for what was read from layers and mirrors."""

SHOWN = 10
"""How many rows of a long list a terminal is shown; JSON has all."""

LOOKED_FOR = (
    "Packages are those of dpkg, apk and Python's installers; those of npm, gems, jars and Go "
    "modules are not looked for."
)

_TOOLS = {
    "shell": "shells",
    "compiler": "compilers",
    "package manager": "package managers",
    "network client": "network clients",
}
_SOURCES = {"debian-packages": "of Debian packages", "docker-hub": "from Docker Hub"}
_ABOVE = ["image", "digest"]
"""Facts that are too long for a column."""

_CUT = "which of them"
"""The head of the one column that a terminal is not shown as a whole."""


@dataclass(frozen=True, repr=False)
class Inspection:
    """What was found in an image.

    Attributes:
        contents: its layers, files, packages and tools.
        found: its known vulnerabilities; None where they could not be told.
        unknown: why they could not be told, in words; empty where they were.
    """

    contents: Contents
    found: Report | None
    unknown: str = ""

    @property
    def report(self) -> Report:
        """The known vulnerabilities.

        Raises:
            VulnerabilityError: they could not be told; the message says why, and what to do.
        """
        if self.found is None:
            raise VulnerabilityError(self.unknown or "nobody was asked for vulnerabilities.")
        return self.found

    @cached_property
    def surface(self) -> dict[str, float | None]:
        """Numbers of what there is to patch, and of what helps an intruder; None is not known."""
        contents, found = self.contents, self.found
        tools = contents.tools["kind"].value_counts()
        return {
            "Debian packages": int((contents.packages["kind"] == "deb").sum()),
            "CVEs fixed since the release": found.since_release if found else None,
            **{name: int(tools.get(kind, 0)) for kind, name in _TOOLS.items()},
            "set-uid and set-gid files": len(contents.privileged),
        }

    @cached_property
    def facts(self) -> dict[str, str]:
        """What to know of the image, as texts, by name: what all tables show."""
        contents, image, found = self.contents, self.contents.image, self.found
        labels, user, secrets = image.config.labels, image.config.user, contents.secrets
        kinds = contents.packages["kind"].value_counts()
        packages = ", ".join(f"{kinds[key]} {name}" for key, name in KINDS.items() if key in kinds)
        source = labels.get("labapp.base.source", "")
        base = [labels.get("org.opencontainers.image.base.name"), _SOURCES.get(source, source)]
        hidden = int((~secrets["visible"]).sum())
        facts = {
            "image": str(image.reference),
            "digest": image.digest,
            "platform": str(image.config.platform),
            "system": contents.os_release.get("PRETTY_NAME", "not told"),
            "base": ", ".join(filter(None, base)) or "not told",
            "layers": _number(len(contents.layers)),
            "download": amount(contents.download_bytes),
            "unpacked": amount(contents.unpacked_bytes),
            "of it visible": amount(contents.visible_bytes),
            "of it wasted": amount(contents.wasted_bytes),
            "files": _number(int((contents.files["type"] == "file").sum())),
            "packages": packages or f"none of {', '.join(KINDS.values())}",
            **{name: _number(self.surface[name]) for name in list(self.surface)[2:]},
            "secrets": _number(len(secrets))
            + (f" ({hidden} in files that a later layer hides)" if hidden else ""),
            "runs as": "root" if user.partition(":")[0] in ("", "0", "root") else f"user {user}",
            "fixes missing now": _number(found.missing if found else None),
            "CVEs fixed since the release": _number(found.since_release if found else None),
        }
        return {name: " ".join(printable(text).split()) for name, text in facts.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """Whose vulnerabilities they are, what nobody looked for, and what was not read."""
        told = [f"Vulnerabilities: {self.unknown}"] if self.unknown else []
        if found := self.found:
            told = [f"{found.source}, as of {found.date:%Y-%m-%d}. {found.blind}", *found.notes]
        return tuple(map(printable, (*told, LOOKED_FOR, *self.contents.notes)))

    @property
    def table(self) -> pd.DataFrame:
        """A row a fact: ``fact`` and ``value``."""
        import pandas as pd

        return pd.DataFrame(list(self.facts.items()), columns=["fact", "value"])

    def charts(self) -> dict[str, Chart]:
        """Draw what there is to see, by the name of the file that it may go to."""
        return Comparison({self.contents.image.reference.repository: self}).charts()

    def __repr__(self) -> str:
        return self.table.to_string(index=False)

    def _repr_html_(self) -> str:
        return _page(self.table.set_index("fact").rename(columns={"value": ""}), self.notes)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Images side by side.

    Attributes:
        images: what was found in each, by a short name.
    """

    images: Mapping[str, Inspection]

    @property
    def table(self) -> pd.DataFrame:
        """A row a fact, a column an image."""
        import pandas as pd

        return pd.DataFrame({name: each.facts for name, each in self.images.items()})

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all images, each once."""
        return tuple(dict.fromkeys(note for each in self.images.values() for note in each.notes))

    def charts(self) -> dict[str, Chart]:
        """Draw what there is to see, by the name of the file that it may go to."""
        from labapp import charts

        # An image without layers, or without a byte in them, has nothing to draw.
        inside = {
            name: each.contents for name, each in self.images.items() if len(each.contents.layers)
        }
        layers = {name: each.layers for name, each in inside.items()}
        files = {name: _drawable(each.files) for name, each in inside.items() if each.visible_bytes}
        told = {name: each.found for name, each in self.images.items() if each.found}
        drawn = {
            "surface": charts.surface({name: each.surface for name, each in self.images.items()})
        }
        if layers:
            sizes = {name: each.download_bytes for name, each in inside.items()}
            drawn["sizes"] = charts.variant_sizes(layers)
            drawn["pull-times"] = charts.pull_times(sizes)
        if files:
            drawn["where-bytes-are"] = charts.where_bytes_are(dict(list(files.items())[:2]))
        if len(layers) > 1:
            drawn["shared-layers"] = charts.shared_layers(layers)
        if told:
            report = next(iter(told.values()))
            drawn["cves"] = charts.cves_since_release(
                {name: each.by_month for name, each in told.items()},
                source=report.source,
                date=report.date,
                blind=report.blind,
            )
        return drawn

    def __repr__(self) -> str:
        return self.table.to_string()

    def _repr_html_(self) -> str:
        return _page(self.table.drop(index=_ABOVE), self.notes)


def inspect(
    registry: Registry,
    reference: Reference | str,
    *,
    cache: Path,
    source: str | None = "auto",
    platform: Platform | None = None,
) -> Inspection:
    """Read an image in a registry, and look its packages up.

    Args:
        registry: where the image is.
        reference: the image.
        cache: the folder for what was read, from layers and from mirrors.
        source: whom to ask for vulnerabilities; None to ask nobody. If it can't tell, the rest is
            returned, and ``unknown`` says why.
        platform: which image of an index; by default the one for this machine's processor.

    Raises:
        LabError: the image can't be read; see :func:`labapp.inside.image.read`.
    """
    from labapp.inside import image

    contents = image.read(registry, reference, folder=cache / "layers", platform=platform)
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

    Returns:
        Columns ``instruction``, ``digest``, ``download_bytes`` (compressed).
    """
    import pandas as pd

    rows = [
        (history.instruction if history else "(not recorded)", layer.digest, layer.size)
        for layer, history in layer_history(held.manifest, held.config)
    ]
    return pd.DataFrame(rows, columns=["instruction", "digest", "download_bytes"])


def print_inspection(found: Inspection | Comparison) -> None:
    """Show on a terminal what was found: the facts, and of a single image the longest lists."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    images = {"": found} if isinstance(found, Inspection) else found.images
    for name, each in images.items():
        # One line each, however long: what is copied must be in one piece.
        if name:
            console.print(name, style="bold", soft_wrap=True)
        console.print(each.facts["image"], style="" if name else "bold", soft_wrap=True)
        console.print(each.facts["digest"], style="dim", soft_wrap=True)
    console.print()
    facts = Comparison(images).table.drop(index=_ABOVE)
    console.print(_grid(["", *images], facts.reset_index().to_numpy()))
    for title, rows in _lists(found).items() if isinstance(found, Inspection) else ():
        if rows.empty:
            continue
        most = len(rows) if title.startswith("Layers") else SHOWN
        names = [str(name) for name in rows]
        numbers = [n for n, name in enumerate(names) if rows[name].dtype.kind in "if"]
        sizes = {name: rows[name].map(amount) for name in names if name.endswith("_bytes")}
        heads = [name.removesuffix("_bytes").replace("_", " ") for name in names]
        console.print()
        console.print(title, style="bold")
        console.print(_grid(heads, rows.assign(**sizes).head(most).to_numpy(), right=numbers))
        if len(rows) > most:
            console.print(f"… and {len(rows) - most} more; --json has all", style="dim")
    for note in found.notes:
        console.print()
        console.print(note, style="dim")


def _grid(
    heads: Sequence[str], rows: Iterable[Iterable[object]], *, right: Sequence[int] = ()
) -> Table:
    """Return a table whose columns in ``right`` are numbers; the lists of CVEs are cut off."""
    from rich.table import Table

    table = Table(
        box=None, show_header=any(heads), header_style="dim", padding=(0, 2, 0, 0), pad_edge=False
    )
    for number, head in enumerate(heads):
        short = head == _CUT
        table.add_column(
            head,
            justify="right" if number in right else "left",
            no_wrap=number in right or short,
            overflow="ellipsis" if short else "fold",
        )
    for row in rows:
        table.add_row(*(" ".join(printable(str(cell)).split()) for cell in row))
    return table


def _lists(found: Inspection) -> dict[str, pd.DataFrame]:
    """Return the lists that a terminal is shown of an image, by title."""
    import pandas as pd

    contents = found.contents
    layers = contents.layers.rename(columns={"number": "#", "instruction": "made_by"})
    packages = contents.packages.sort_values("unpacked_bytes", ascending=False, kind="stable")
    tools = contents.tools.groupby("kind", sort=False)["name"]
    helpers = {f"{kind}s": _few(names) for kind, names in tools}
    if len(contents.privileged):
        helpers["set-uid and set-gid"] = _few(contents.privileged["path"])
    secrets = contents.secrets[["path", "line", "kind", "layer", "visible"]].copy()
    secrets["line"] = ["" if pd.isna(line) else str(int(line)) for line in secrets["line"]]
    secrets["visible"] = [
        "" if there else "hidden, still in its layer" for there in secrets["visible"]
    ]
    sizes = ["download_bytes", "unpacked_bytes", "wasted_bytes"]
    lists = {
        "Layers, lowest first": layers[["#", *sizes, "made_by"]],
        "Largest packages": packages[["name", "version", "kind", "unpacked_bytes", "layer"]],
        "What helps an intruder": pd.DataFrame(list(helpers.items()), columns=["what", "names"]),
        "What a secret scanner would flag": secrets.rename(columns={"visible": ""}),
    }
    if found.found is not None:
        rows = found.found.rows
        rows = rows[(rows["state"] == "missing") & ~rows["headers"]]
        # A row a package, those with the most CVEs first.
        listed = rows.groupby(["source_package", "installed"], as_index=False).agg(
            fixed_in=("fixed", _few),
            CVEs=("cve", "nunique"),
            **{_CUT: ("cve", lambda ids: ", ".join(ids.unique()))},
        )
        lists["Fixes missing now"] = listed.sort_values("CVEs", ascending=False, kind="stable")
    return lists


def _few(names: Iterable[object]) -> str:
    listed = list(dict.fromkeys(map(str, names)))
    more = f", and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def as_json(found: Inspection | Comparison) -> str:
    """Return all that was found, but the files, as a JSON document.

    Sizes are in bytes, dates in ISO 8601; a number that nobody knows is null. A comparison has one
    object, ``images``, with what was found in each by its name.
    """
    if isinstance(found, Inspection):
        document = _document(found)
    else:
        document = {"images": {name: _document(each) for name, each in found.images.items()}}
    return json.dumps(document, indent=2, default=datetime.isoformat)


def _document(found: Inspection) -> dict[str, Any]:
    contents, image, report = found.contents, found.contents.image, found.found
    numbers = ("download_bytes", "unpacked_bytes", "visible_bytes", "wasted_bytes")
    tables = ("layers", "packages", "tools", "privileged", "secrets")
    known = ("source", "date", "blind", "missing", "since_release", "header_cves", "notes")
    return {
        "image": str(image.reference),
        "digest": image.digest,
        "manifest_digest": image.manifest.digest,
        "platform": str(image.config.platform),
        "user": image.config.user,
        "system": dict(contents.os_release),
        **{name: int(getattr(contents, name)) for name in numbers},
        "files": int((contents.files["type"] == "file").sum()),
        "surface": found.surface,
        **{name: _records(getattr(contents, name)) for name in tables},
        "vulnerabilities": report
        and {name: getattr(report, name) for name in known} | {"rows": _records(report.rows)},
        "vulnerabilities_unknown": found.unknown,
        "notes": [LOOKED_FOR, *contents.notes],
    }


def _records(table: pd.DataFrame) -> Any:
    """Return a table's rows as JSON has them: what is missing is null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _drawable(files: pd.DataFrame) -> pd.DataFrame:
    return files.assign(**{name: files[name].map(printable) for name in ("path", "package")})


def _page(table: pd.DataFrame, notes: Iterable[str]) -> str:
    text = table.rename_axis(index=None, columns=None).to_html(border=0, justify="left")
    # JupyterLab puts cells to the right, as for numbers; these are words.
    text = re.sub("<(t[hd])>", r'<\1 style="text-align:left">', text)
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<div class="labapp-inspection">{text}<ul style="opacity:0.8">{said}</ul></div>'


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.0f}"
