"""Inspections: what an image weighs, holds and leaves to patch, and images side by side."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd

from labapp import charts, vulnerabilities
from labapp import contents as image_contents
from labapp.bases.sources import SOURCE_LABEL
from labapp.charts import Chart
from labapp.contents import Contents
from labapp.errors import VulnerabilityError
from labapp.feedback import Feedback, amount
from labapp.manifests import Platform, layer_history
from labapp.reference import Reference
from labapp.registry.reader import RegistryImage, RegistryReader
from labapp.vulnerabilities import Report

CACHE = "cache"
"""The folder in the lab's state for what was read from layers and mirrors."""

Source = Literal["auto", "debian", "grype", "trivy", "snapshot"]

_TOOLS = {
    "shell": "shells",
    "compiler": "compilers",
    "package manager": "package managers",
    "network client": "network clients",
}


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
        """What to know of the image, as texts, by name."""
        contents, image = self.contents, self.contents.image
        others = contents.packages["kind"].value_counts()
        named = ", ".join(
            f"{others[kind]} {name}"
            for kind, name in {"deb": "Debian", "apk": "Alpine", "python": "Python"}.items()
            if kind in others
        )
        user = image.config.user
        numbers = {name: _number(value) for name, value in self.surface.items()}
        del numbers["Debian packages"], numbers["CVEs fixed since the release"]
        return {
            "image": str(image.reference),
            "digest": image.digest,
            "platform": str(image.config.platform),
            "system": contents.os_release.get("PRETTY_NAME", "not told"),
            "base": _base(image.config.labels),
            "layers": str(len(contents.layers)),
            "download": amount(contents.download_bytes),
            "unpacked": amount(contents.unpacked_bytes),
            "of it visible": amount(contents.visible_bytes),
            "of it wasted": amount(contents.wasted_bytes),
            "files": f"{int((contents.files['type'] == 'file').sum()):,}",
            "packages": named or "none",
            **numbers,
            "secrets": _secrets(contents),
            "runs as": "root" if user.partition(":")[0] in ("", "0", "root") else f"user {user}",
            "fixes missing now": self._told("missing"),
            "CVEs fixed since the release": self._told("since_release"),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Whose vulnerabilities they are, what that source can't see, and what was not read."""
        if self.found is None:
            told: tuple[str, ...] = (f"Vulnerabilities: {self.unknown}",) if self.unknown else ()
        else:
            found = self.found
            told = (f"{found.source}, as of {found.date:%Y-%m-%d}. {found.blind}", *found.notes)
        return told + self.contents.notes

    @property
    def table(self) -> pd.DataFrame:
        """A row a fact: ``fact`` and ``value``."""
        return pd.DataFrame(list(self.facts.items()), columns=["fact", "value"])

    def charts(self) -> dict[str, Chart]:
        """Draw what there is to see, by the name of the file that it may go to."""
        return Comparison({self.contents.image.reference.repository: self}).charts()

    def __repr__(self) -> str:
        return self.table.to_string(index=False)

    def _repr_html_(self) -> str:
        return _html(self.table.set_index("fact").rename(columns={"value": ""}), self.notes)

    def _told(self, name: str) -> str:
        value = getattr(self.found, name) if self.found else None
        return "not known" if value is None else f"{value:,}"


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
        return pd.DataFrame({name: each.facts for name, each in self.images.items()})

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all images, each once."""
        return tuple(dict.fromkeys(note for each in self.images.values() for note in each.notes))

    def charts(self) -> dict[str, Chart]:
        """Draw what there is to see, by the name of the file that it may go to."""
        inside = {name: each.contents for name, each in self.images.items()}
        layers = {name: each.layers for name, each in inside.items()}
        drawn = {
            "sizes": charts.variant_sizes(layers),
            "where-bytes-are": charts.where_bytes_are(
                {name: each.files for name, each in list(inside.items())[:2]}
            ),
            "surface": charts.surface({name: each.surface for name, each in self.images.items()}),
            "pull-times": charts.pull_times({n: each.download_bytes for n, each in inside.items()}),
        }
        if len(layers) > 1:
            drawn["shared-layers"] = charts.shared_layers(layers)
        told = {name: each.found for name, each in self.images.items() if each.found is not None}
        if told:
            first = next(iter(told.values()))
            drawn["cves"] = charts.cves_since_release(
                {name: report.by_month for name, report in told.items()},
                source=first.source,
                date=first.date,
                blind=first.blind,
            )
        return drawn

    def __repr__(self) -> str:
        return self.table.to_string()

    def _repr_html_(self) -> str:
        table = self.table.drop(index=["digest", "image"])
        return _html(table, self.notes)


def inspect(
    registry: RegistryReader,
    reference: Reference | str,
    *,
    cache: Path,
    source: Source | None = "auto",
    platform: Platform | None = None,
    feedback: Feedback,
) -> Inspection:
    """Read an image in a registry, and look its packages up.

    Args:
        registry: where the image is.
        reference: the image.
        cache: the folder for what was read, from layers and from mirrors.
        source: whom to ask for vulnerabilities; None to ask nobody. If it can't tell, the rest is
            returned, and ``unknown`` says why.
        platform: which image of an index; by default the one for this machine's processor.
        feedback: where the progress is told.

    Raises:
        LabError: the image can't be read; see :func:`labapp.contents.read`.
    """
    contents = image_contents.read(
        registry, reference, folder=cache / "layers", platform=platform, feedback=feedback
    )
    if source is None:
        return Inspection(contents, None)
    try:
        found = vulnerabilities.known(
            contents, folder=cache / "vulnerabilities", source=source, feedback=feedback
        )
    except VulnerabilityError as error:
        return Inspection(contents, None, str(error))
    return Inspection(contents, found)


def layers(held: RegistryImage) -> pd.DataFrame:
    """Return an image's layers as its manifest and config tell them, lowest first.

    Returns:
        Columns ``instruction``, ``digest``, ``download_bytes`` (compressed).
    """
    return pd.DataFrame(
        [
            {
                "instruction": history.instruction if history else "(not recorded)",
                "digest": layer.digest,
                "download_bytes": layer.size,
            }
            for layer, history in layer_history(held.manifest, held.config)
        ]
    )


def _base(labels: Mapping[str, str]) -> str:
    """Tell what the labels say of the base image, which only its builder knows."""
    name = labels.get("org.opencontainers.image.base.name", "")
    made = {"debian-packages": "of Debian packages", "docker-hub": "from Docker Hub"}
    source = labels.get(SOURCE_LABEL, "")
    return ", ".join(filter(None, [name, made.get(source, source)])) or "not told"


def _secrets(contents: Contents) -> str:
    """Tell how many secrets a scanner would flag, and how many of them only look deleted."""
    found = contents.secrets
    hidden = int((~found["visible"].astype(bool)).sum())
    return (
        f"{len(found)} ({hidden} in files that a later layer hides)" if hidden else str(len(found))
    )


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.0f}"


def _html(table: pd.DataFrame, notes: tuple[str, ...]) -> str:
    text = table.rename_axis(index=None, columns=None).to_html(border=0, justify="left")
    # JupyterLab puts cells to the right, as for numbers; these are words.
    for cell in ("th", "td"):
        text = text.replace(f"<{cell}>", f'<{cell} style="text-align:left">')
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<div class="labapp-inspection">{text}<ul style="opacity:0.8">{said}</ul></div>'
