"""Which CVEs the updates of a release fixed, and which of these fixes installed packages lack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime

import pandas as pd
from debian.debian_support import Version

from labapp.vulnerabilities.apt_sources import Release

COLUMNS = (
    "cve",
    "package",
    "source_package",
    "installed",
    "fixed",
    "date",
    "state",
    "source",
    "severity",
    "headers",
)
"""The columns of a report's rows."""

MISSING = "missing"
SINCE_RELEASE = "since release"

RELEASE_DAYS = {"11": date(2021, 8, 14), "12": date(2023, 6, 10), "13": date(2025, 8, 9)}
"""When Debian published a release, by its number; a later release just counts less."""

_HEADERS = re.compile(r"linux-(libc-dev|headers)\b.*")


@dataclass(frozen=True)
class Update:
    """A version of a source package, as its changelog's entry tells.

    Attributes:
        distributions: where it was uploaded to, such as ``trixie-security``.
        date: of the entry; None if it has no readable one.
        cves: the ids that the entry names.
    """

    version: str
    distributions: tuple[str, ...]
    date: datetime | None
    cves: tuple[str, ...]

    def is_stable(self, release: Release) -> bool:
        """Tell if it was made for a release after its publication, not on the way to it."""
        suites = {
            f"{name}{suffix}"
            for name in (release.codename, "stable")
            for suffix in ("", "-security", "-proposed-updates", "-updates")
        }
        suffix = rf"[+~]deb{re.escape(release.number)}u\d"
        return not suites.isdisjoint(self.distributions) or bool(re.search(suffix, self.version))


@dataclass(frozen=True)
class Fixes:
    """What is known of a release's updates.

    Attributes:
        date: of the suite's index.
        updates: by source package, the newest first.
        notes: which source packages could not be read, in words.
        covers: the source packages that were looked up; None for all of the image.
    """

    release: Release
    date: datetime
    updates: Mapping[str, tuple[Update, ...]]
    notes: tuple[str, ...] = ()
    covers: frozenset[str] | None = None


@dataclass(frozen=True)
class Verdict:
    """What fixes mean for installed packages.

    Attributes:
        rows: a row for each CVE and package, with the report's columns.
        without_cve: how many updates since the release name no CVE.
        notes: what could not be judged, in words.
    """

    rows: pd.DataFrame
    without_cve: int
    notes: tuple[str, ...]


def is_headers(package: str) -> bool:
    """Tell if a package holds the kernel's headers, which are compiled against and never run."""
    return _HEADERS.fullmatch(package) is not None


def judge(packages: pd.DataFrame, fixes: Fixes, *, source: str) -> Verdict:
    """Tell which fixes installed packages lack, and which they have got since the release.

    An update counts as made since the release down to the first entry of the changelog that went to
    unstable or testing; below one that was made from unstable's version (``2.9-1~deb13u1``), what
    unstable got after the release counts as well, for the update brought it. A CVE belongs to the
    oldest entry that names it, so that an update which only mends an earlier fix does not count
    again. Its date and fixed version are those of the update that brought it to the release.

    Args:
        packages: the installed ones: ``name``, ``kind``, ``source``, ``source_version``.
        fixes: of their release.
        source: the name of the source, for the rows.
    """
    rows: list[tuple[object, ...]] = []
    notes = list(fixes.notes)
    silent: set[tuple[str, str]] = set()
    installed = packages[packages["kind"] == "deb"]
    if fixes.covers is not None and (unknown := sorted(set(installed["source"]) - fixes.covers)):
        notes.append(f"the snapshot does not cover {', '.join(unknown)}")
    for (name, version), group in installed.groupby(["source", "source_version"]):
        updates = fixes.updates.get(str(name), ())
        if not updates:
            continue
        try:
            wanted = list(_wanted(updates, Version(str(version)), fixes.release))
        except ValueError:
            notes.append(f"the version '{version}' of '{name}' can't be compared with a fix")
            continue
        first = {cve: number for number in range(len(updates)) for cve in updates[number].cves}
        for number, carrier, state in wanted:
            update, published = updates[number], updates[carrier]
            if not update.cves and not all(map(is_headers, group["name"])):
                silent.add((str(name), update.version))
            new = [cve for cve in update.cves if first[cve] == number]
            when = pd.Timestamp(published.date).tz_convert(None) if published.date else pd.NaT
            fixed = published.version
            rows += [
                (cve, package, name, version, fixed, when, state, source, "", headers)
                for package in group["name"]
                for headers in [is_headers(package)]
                for cve in new
            ]
    return Verdict(table(rows), len(silent), tuple(notes))


def table(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    """Return rows as a report has them: typed, and each CVE once for a package."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame = frame.astype({"date": "datetime64[ns]", "headers": bool})
    frame = frame.drop_duplicates(["cve", "package", "installed"])
    return frame.sort_values(["package", "cve"], ignore_index=True)


def _wanted(
    updates: tuple[Update, ...], installed: Version, release: Release
) -> Iterator[tuple[int, int, str]]:
    """Yield the updates since the release or since what is installed.

    Each is its number, the number of the update that brought it to the release, and a state.
    """
    lacking = _newer(updates, installed)
    day = RELEASE_DAYS.get(release.number)
    since_release, carrier = True, None
    for number, update in enumerate(updates):
        # 2.9-1~deb13u1 brought all of unstable's 2.9-1; what is younger than the release is new.
        stable = update.is_stable(release)
        brought = carrier is not None and day and update.date and update.date.date() > day
        since_release = since_release and (stable or bool(brought))
        if f"~deb{release.number}u" in update.version:
            carrier = number
        if number >= lacking and not since_release:
            break
        by = number if stable or carrier is None else carrier
        yield number, by, MISSING if number < lacking else SINCE_RELEASE


def _newer(updates: tuple[Update, ...], installed: Version) -> int:
    """Return how many of the updates are newer than what is installed."""
    versions = [Version(update.version) for update in updates]
    if versions[0] <= installed:
        return 0
    # Its own entry, where there is one: 2.9-1~deb13u1 sorts before the 2.9-1 that it was made from.
    if installed in versions:
        return versions.index(installed)
    return next((n for n, version in enumerate(versions) if version <= installed), len(versions))
