"""Which CVEs the updates of a release fixed, and which of these fixes installed packages lack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
from debian.debian_support import Version

MISSING = "missing"
SINCE_RELEASE = "since release"

BLIND = (
    "A lower bound: it sees only what Debian has fixed in its security suite and named in a "
    "changelog, not what is unfixed, what came with a point release alone, and nothing outside "
    "Debian's packages."
)

RELEASE_DAYS = {"11": date(2021, 8, 14), "12": date(2023, 6, 10), "13": date(2025, 8, 9)}
"""When Debian published a release, by its number; a later release just counts less."""

_HEADERS = re.compile(r"linux-(libc-dev|headers)\b.*")


class Row(NamedTuple):
    """A CVE of a package, in a report."""

    cve: str
    package: str
    source_package: str
    installed: str
    fixed: str
    date: datetime | None
    state: str
    source: str
    severity: str
    headers: bool


@dataclass(frozen=True)
class Report:
    """The known CVEs of an image's packages.

    Attributes:
        rows: one for each CVE and package: ``cve``, ``package``, ``source_package``, ``installed``
            and ``fixed`` (versions; of the source package, where Debian is the source), ``date``
            (when the fix was published, NaT if unknown), ``state``, ``source``, ``severity`` (empty
            if unknown), ``headers`` (whether the package is the kernel's headers, which never run).
            A state is ``missing`` (there is a fix, the image lacks it), ``since release`` (the
            image has the fix, one of release day would not) or ``no fix yet`` (scanners only).
        source: who says so.
        date: of the data, in UTC.
        blind: what the source can't see, in a sentence.
        knows_release: whether the source tells what was fixed since the release.
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
        return int(self._run[self._run["state"] == MISSING]["cve"].nunique())

    @cached_property
    def since_release(self) -> int | None:
        """How many CVEs were fixed in these packages since the release, without headers.

        They include the missing ones: an image of release day, never rebuilt, has all of them. It
        is None where the source can't tell, as scanners can't: they list what is open today.
        """
        return int(self._fixed["cve"].nunique()) if self.knows_release else None

    @cached_property
    def header_cves(self) -> int:
        """How many CVEs the kernel's headers carry, which are compiled against and never run."""
        return int(self.rows[self.rows["headers"]]["cve"].nunique())

    @cached_property
    def by_month(self) -> pd.DataFrame:
        """The CVEs fixed since the release, month by month, without headers.

        Returns:
            ``month`` (its first day) and ``cves`` (distinct ones up to its end), from the first fix
            to the date of the data; no rows where no dates are known.
        """
        dated = self._fixed.dropna(subset="date") if self.knows_release else self._fixed.iloc[:0]
        first = dated.groupby("cve")["date"].min().dt.to_period("M").value_counts()
        if first.empty:
            return pd.DataFrame({"month": pd.to_datetime([]), "cves": pd.Series(dtype="int64")})
        last = max(first.index.max(), pd.Period(self.date.strftime("%Y-%m"), "M"))
        months = pd.period_range(first.index.min(), last, freq="M")
        cves = first.reindex(months, fill_value=0).cumsum().to_numpy()
        return pd.DataFrame({"month": months.to_timestamp(), "cves": cves})

    @property
    def _run(self) -> pd.DataFrame:
        return self.rows[~self.rows["headers"]]

    @property
    def _fixed(self) -> pd.DataFrame:
        return self._run[self._run["state"].isin([MISSING, SINCE_RELEASE])]


class Release(NamedTuple):
    """A release of Debian: its number (``13``) and its codename (``trixie``)."""

    number: str
    codename: str

    @property
    def security(self) -> str:
        """The name of its security suite."""
        return f"{self.codename}-security"


class Update(NamedTuple):
    """A version of a source package, as its changelog's entry tells; the date may be unreadable."""

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

    @classmethod
    def from_json(cls, fields: Iterable[Any]) -> Update:
        """Return an update from what JSON makes of it: a list, and the date a text."""
        version, distributions, day, cves = fields
        when = datetime.fromisoformat(day) if day else None
        return cls(version, tuple(distributions), when, tuple(cves))


@dataclass(frozen=True)
class Fixes:
    """What is known of a release's updates: by source package, the newest first."""

    release: Release
    date: datetime
    updates: Mapping[str, tuple[Update, ...]]
    notes: tuple[str, ...]


def judge(packages: pd.DataFrame, fixes: Fixes, *, source: str) -> Report:
    """Tell which fixes installed packages lack, and which they have got since the release.

    An update counts as made since the release down to the first entry of the changelog that went to
    unstable or testing; below one that was made from unstable's version (``2.9-1~deb13u1``), what
    unstable got after the release counts as well, for the update brought it. A CVE belongs to the
    oldest entry that names it, so that an update which only mends an earlier fix does not count
    again. Its date and fixed version are those of the update that brought it to the release.
    """
    rows: list[Row] = []
    notes = list(fixes.notes)
    installed = packages[packages["kind"] == "deb"]
    for key, group in installed.groupby(["source", "source_version"]):
        name, version = map(str, key)
        if not (updates := fixes.updates.get(name)):
            continue
        try:
            wanted = list(_wanted(updates, Version(version), fixes.release))
        except ValueError:
            notes.append(f"the version '{version}' of '{name}' can't be compared with a fix")
            continue
        first = {cve: update for update in updates for cve in update.cves}
        rows += [
            Row(
                cve, package, name, version, brought.version, brought.date, state, source, "",
                is_headers(package),
            )
            for update, brought, state in wanted
            for cve in update.cves
            if first[cve] is update
            for package in group["name"]
        ]  # fmt: skip
    return Report(table(rows), source, fixes.date, BLIND, notes=tuple(notes))


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a report has them: typed, and each CVE once for a package."""
    frame = pd.DataFrame(rows, columns=list(Row._fields))
    # A date that is none, such as the year 9999 in a changelog, is an unknown one.
    dates = pd.to_datetime(frame["date"], utc=True, errors="coerce").dt.tz_localize(None)
    frame = frame.assign(date=dates.astype("datetime64[us]"), headers=frame["headers"].astype(bool))
    frame = frame.drop_duplicates(["cve", "package", "installed"])
    return frame.sort_values(["package", "cve"], ignore_index=True)


def is_headers(package: str) -> bool:
    """Tell if a package holds the kernel's headers, which are compiled against and never run."""
    return _HEADERS.fullmatch(package) is not None


def _wanted(
    updates: tuple[Update, ...], installed: Version, release: Release
) -> Iterator[tuple[Update, Update, str]]:
    """Yield the updates since the release or since what is installed.

    Each comes with the update that brought it to the release, and with a state.
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
            carrier = update
        if number >= lacking and not since_release:
            break
        by = update if stable or carrier is None else carrier
        yield update, by, MISSING if number < lacking else SINCE_RELEASE


def _newer(updates: tuple[Update, ...], installed: Version) -> int:
    """Return how many of the updates are newer than what is installed."""
    versions = [Version(update.version) for update in updates]
    # Its own entry, where there is one: 2.9-1~deb13u1 sorts before the 2.9-1 that it was made from.
    if versions[0] > installed and installed in versions:
        return versions.index(installed)
    return next((n for n, version in enumerate(versions) if version <= installed), len(versions))
