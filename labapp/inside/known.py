"""Which known CVEs an image's packages carry, by sources that are each named and dated.

*Debian's own fixes* compare the installed packages with the security suite that the image's own apt
configuration names, and read the changelogs of its updates; *Grype* or *Trivy* are asked where they
are installed; a *snapshot* brings what a mirror told to a class without internet.

Sources: Grype's JSON (its package ``grype/presenter/models``: ``matches``, ``descriptor``); Trivy's
report, schema version 2 (its package ``pkg/types``: ``Results``, ``Vulnerabilities``).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from labapp import feedback
from labapp.errors import VulnerabilityError
from labapp.inside import debian_mirror
from labapp.inside.debian_mirror import Fixes, Release
from labapp.inside.image import Contents
from labapp.registry.client import RegistryImage

DEBIAN = "Debian's own fixes"
DEBIAN_BLIND = (
    "A lower bound: it sees only what Debian has fixed in its security suite and named in a "
    "changelog, not what is unfixed, what came with a point release alone, and nothing outside "
    "Debian's packages."
)
SCANNERS_BLIND = (
    "It sees what its database matches by name and version, as of the database's date; programs "
    "that no package manager lists, and whether the vulnerable code is ever run, it can't see."
)
SCAN_SECONDS = 900.0


@dataclass(frozen=True)
class Report:
    """The known CVEs of an image's packages: who says so (``source``), as of which ``date`` (UTC).

    Attributes:
        rows: one for each ``cve`` and ``package``. The versions ``installed`` and ``fixed`` are
            those of the ``source_package``, where Debian is the source; ``severity`` is empty and
            ``date`` (of the fix) NaT if unknown; ``headers`` marks the kernel's, which never run.
            A ``state`` is ``missing`` (there is a fix, the image lacks it), ``since release`` (the
            image has the fix, one of release day would not) or ``no fix yet`` (scanners only).
        blind: what the source can't see, in a sentence.
        notes: what could not be read, in words; its CVEs are not counted.
    """

    rows: pd.DataFrame
    source: str
    date: datetime
    blind: str
    knows_release: bool = True
    notes: tuple[str, ...] = ()

    @cached_property
    def missing(self) -> int:
        """How many CVEs the image has for which a fix is there; without the kernel's headers."""
        return int(self._run[self._run["state"] == "missing"]["cve"].nunique())

    @cached_property
    def since_release(self) -> int | None:
        """How many CVEs were fixed in these packages since the release, without headers.

        They include the missing ones: an image of release day, never rebuilt, has all of them. It
        is None where the source can't tell, as scanners can't: they list what is open today.
        """
        return int(self._run["cve"].nunique()) if self.knows_release else None

    @cached_property
    def by_month(self) -> pd.DataFrame:
        """The CVEs fixed since the release, without headers: rows from the first fix to the date.

        Columns: ``month`` (its first day), ``cves`` (distinct ones up to its end).
        """
        first = self._run.dropna(subset="date").groupby("cve")["date"].min().dt.to_period("M")
        counts = first.value_counts()
        if len(counts):
            # What a changelog dates later than that has no day that counts.
            months = pd.period_range(counts.index.min(), f"{self.date:%Y-%m}", freq="M")
            counts = counts.reindex(months, fill_value=0).cumsum()
        return pd.DataFrame({"month": counts.index.to_timestamp(), "cves": counts.to_numpy()})

    @property
    def _run(self) -> pd.DataFrame:
        return self.rows[~self.rows["headers"]]


def table(rows: Iterable[tuple[str, ...]]) -> pd.DataFrame:
    """Return rows as a report has them: typed, each CVE once for a package."""
    names = ["cve", "package", "source_package", "installed", "fixed", "severity", "state", "date"]
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    # A date that is none, such as the year 9999 in a changelog, is an unknown one.
    dates = pd.to_datetime(frame["date"], utc=True, errors="coerce").dt.tz_localize(None)
    headers = frame["package"].str.match(r"linux-(libc-dev|headers)\b")
    frame = frame.assign(date=dates.astype("datetime64[us]"), headers=headers.astype(bool))
    frame = frame.drop_duplicates(["cve", "package", "installed"])
    return frame.sort_values(["package", "cve"], ignore_index=True)


def known(contents: Contents, *, folder: Path, source: str = "auto") -> Report:
    """Tell which known CVEs an image's packages carry, by a name of :data:`SOURCES`.

    ``auto`` asks the mirror; if it doesn't answer, or the image names none, it takes what was last
    read from one, or came with a snapshot. A source that can't tell raises VulnerabilityError: that
    is not the same as no CVEs.
    """
    return SOURCES[source](contents, folder)


def snapshot(images: Iterable[Contents], *, folder: Path) -> bytes:
    """Return what mirrors tell of some images' packages, and have told before, as one file."""
    for image in images:
        _from_mirror(image, folder)
    return debian_mirror.pack(debian_mirror.load(folder))


# Debian's own fixes


def _from_mirror(contents: Contents, folder: Path) -> Report:
    release, installed, architecture = _debian(contents)
    suite = debian_mirror.security_suite(contents.apt_sources, release)
    fixes = debian_mirror.read(suite, architecture, set(installed["source"]), folder=folder)
    return _judged(installed, fixes, release)


def _from_last_read(contents: Contents, folder: Path) -> Report:
    """Judge by what a mirror said when it was last asked, for any image of the release."""
    release, installed, architecture = _debian(contents)
    kept, start = debian_mirror.load(folder), f"{release.security} {architecture} "
    found = [fixes for key, fixes in kept.items() if key.startswith(start)]
    report = found and _judged(installed, max(found, key=lambda fixes: fixes.date), release)
    if not report or (report.notes and report.rows.empty):
        raise VulnerabilityError(
            f"looking up Debian's own fixes: of '{release.security}' nothing was ever read that "
            "tells of this image. Connect to the network, or load a bundle: "
            "'python3 -m labapp bundle load FILE'."
        )
    return report


def _from_any(contents: Contents, folder: Path) -> Report:
    try:
        return _from_mirror(contents, folder)
    except VulnerabilityError as error:
        with contextlib.suppress(VulnerabilityError):
            report = _from_last_read(contents, folder)
            if report.source != DEBIAN:
                feedback.say(f"{error} Taken instead: {report.source}, of {report.date:%Y-%m-%d}.")
                return report
            if not report.notes:  # what the mirror did not give just now is no verdict
                return report
        raise


def _judged(installed: pd.DataFrame, fixes: Fixes, release: Release) -> Report:
    told = fixes.of(set(installed["source"]))
    notes = [f"the changelog of '{name}' can't be read" for name in told if not told[name]]
    rows: list[tuple[str, ...]] = []
    listed = installed[installed["source"].isin([name for name in told if told[name]])]
    for key, group in listed.groupby(["source", "source_version"]):
        name, version = map(str, key)
        try:
            found = list(debian_mirror.verdicts(told[name] or [], version, release))
        except ValueError:
            notes.append(f"the version '{version}' of '{name}' can't be compared with a fix")
            continue
        for cve, fixed, state, day in found:
            for package in group["name"]:
                rows.append((cve, package, name, version, fixed, "", state, day))
    source = DEBIAN if fixes.is_fresh else f"{DEBIAN}, last read"
    date = datetime.fromisoformat(fixes.date)
    return Report(table(rows), source, date, DEBIAN_BLIND, notes=tuple(notes))


def _debian(contents: Contents) -> tuple[Release, pd.DataFrame, str]:
    """Return which Debian an image is, its packages, and the architecture that most are for."""
    told, packages = contents.os_release, contents.packages
    number, codename = told.get("VERSION_ID", ""), told.get("VERSION_CODENAME", "")
    installed = packages[packages["kind"] == "deb"]
    # A testing one has no number yet. No packages at all is not the same as none with a CVE.
    if told.get("ID") != "debian" or not number or not codename.isalpha() or installed.empty:
        name = told.get("PRETTY_NAME") or told.get("ID") or "a system without os-release"
        raise VulnerabilityError(
            f"looking up Debian's own fixes: the image is '{name}' with {len(installed)} Debian "
            "packages, and only packages of a release of Debian have them. Take Grype or Trivy."
        )
    found = installed["architecture"]
    named = found[found.str.fullmatch("[a-z0-9-]+") & (found != "all")].mode()
    return Release(number, codename), installed, str(named.iloc[0]) if len(named) else "amd64"


# Scanners


Scan = tuple[str, str, list[tuple[str, ...]]]
"""Name and version, when the database was made, and of each CVE the first six columns."""


def _from_scanner(
    scan: Callable[[RegistryImage], Scan], contents: Contents, folder: Path
) -> Report:
    rows = []
    try:
        name, built, found = scan(contents.image)
        date = datetime.fromisoformat(built[:19].rstrip("Z")).replace(tzinfo=UTC)
        for *names, fixed, severity in found:
            rated = severity.lower().replace("unknown", "")
            rows.append((*names, fixed, rated, "missing" if fixed else "no fix yet", ""))
        return Report(table(rows), name, date, SCANNERS_BLIND, knows_release=False)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise VulnerabilityError(
            f"reading what '{scan.__name__.strip('_')}' printed: it is not the report that the lab "
            f"knows ({error!r}). Take another version of it, or another source."
        ) from error


def _grype(image: RegistryImage) -> Scan:
    options = ["--platform", str(image.config.platform), "--output", "json"]
    report = _run("grype", f"registry:{image.pinned}", *options)
    rows: list[tuple[str, ...]] = []
    for match in report["matches"]:
        found, artifact = match["vulnerability"], match["artifact"]
        # A GitHub advisory names the CVE that it is about.
        ids = [found["id"], *(entry["id"] for entry in match.get("relatedVulnerabilities") or [])]
        cve = next((id for id in ids if id.startswith("CVE-")), ids[0])
        source = (artifact.get("upstreams") or [artifact])[0]["name"]
        fixed = ", ".join((found.get("fix") or {}).get("versions") or [])
        severity = found.get("severity") or ""
        rows.append((cve, artifact["name"], source, artifact["version"], fixed, severity))
    about = report["descriptor"]
    return f"Grype {about['version']}", about["db"]["status"]["built"], rows


def _trivy(image: RegistryImage) -> Scan:
    options = ["--image-src", "remote", "--scanners", "vuln", "--format", "json", "--quiet"]
    platform = ["--platform", str(image.config.platform)]
    report = _run("trivy", "image", *options, *platform, str(image.pinned))
    if report["SchemaVersion"] != 2:
        raise ValueError(f"its schema version is {report['SchemaVersion']}, not 2")
    rows: list[tuple[str, ...]] = []
    for result in report.get("Results") or []:
        for entry in result.get("Vulnerabilities") or []:
            cve, package = entry["VulnerabilityID"], entry["PkgName"]
            fixed, severity = entry.get("FixedVersion") or "", entry.get("Severity") or ""
            rows.append((cve, package, package, entry["InstalledVersion"], fixed, severity))
    about = _run("trivy", "version", "--format", "json")
    return f"Trivy {about['Version']}", about["VulnerabilityDB"]["UpdatedAt"], rows


def _run(*argv: str) -> Any:
    feedback.command(argv)
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SCAN_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode("utf-8", "replace").strip()
        raise VulnerabilityError(
            f"asking '{argv[0]}': {error}. Is it installed? Mend what its last lines tell of, or "
            "take another source.\n  " + "\n  ".join(said.splitlines()[-5:])
        ) from error
    return json.loads(done.stdout)


SOURCES: Mapping[str, Callable[[Contents, Path], Report]] = {
    "auto": _from_any,
    "debian": _from_mirror,
    "snapshot": _from_last_read,
    "grype": partial(_from_scanner, _grype),
    "trivy": partial(_from_scanner, _trivy),
}
"""Whom to ask: each takes what is in an image, and the folder of the cache."""
