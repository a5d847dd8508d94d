"""Which known CVEs an image's packages carry, by sources that are each named and dated.

*Debian's own fixes* compare the installed packages with the security suite and the point releases
that the image's own apt configuration names, and read the changelogs of their updates. A *snapshot*
brings what a mirror told to a class without internet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pandas as pd

from labapp import feedback
from labapp.errors import VulnerabilityError
from labapp.inside import debian_mirror
from labapp.inside.debian_mirror import Fixes, Release
from labapp.inside.image import Contents

DEBIAN = "Debian's own fixes"


@dataclass(frozen=True)
class Report:
    """The known CVEs of an image's packages: who says so (``source``), as of which ``date`` (UTC).

    Attributes:
        rows: one for each ``cve`` and ``package``. The versions ``installed`` and ``fixed`` are
            those of the ``source_package``; ``date`` (of the fix) is NaT if unknown; ``headers``
            marks the kernel's, which never run. A ``state`` is ``missing`` (there is a fix, the
            image lacks it) or ``since release`` (the image has the fix, one of release day would
            not).
        notes: what could not be read, in words; its CVEs are not counted.
        blind: what the source can't see.
    """

    rows: pd.DataFrame
    source: str
    date: datetime
    notes: tuple[str, ...] = ()
    blind: ClassVar[str] = (
        "A lower bound: it sees only what Debian has fixed, in its security suite or a point "
        "release, and named in a changelog; not what is unfixed, and nothing outside Debian's "
        "packages."
    )

    @property
    def is_live(self) -> bool:
        """Whether the mirror said so just now, and not some day before."""
        return self.source == DEBIAN

    @property
    def lacking(self) -> pd.DataFrame:
        """The rows for which a fix is there that the image lacks; without the kernel's headers."""
        return self._run[self._run["state"] == "missing"]

    @property
    def missing(self) -> int:
        """How many CVEs the image has for which a fix is there; without the kernel's headers."""
        return int(self.lacking["cve"].nunique())

    @cached_property
    def since_release(self) -> int:
        """How many CVEs were fixed in these packages since the release, without headers.

        They include the missing ones: an image of release day, never rebuilt, has all of them.
        """
        return int(self._run["cve"].nunique())

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
    names = ["cve", "package", "source_package", "installed", "fixed", "state", "date"]
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    # A date that is none, such as the year 9999 in a changelog, is an unknown one.
    dates = pd.to_datetime(frame["date"], utc=True, errors="coerce").dt.tz_localize(None)
    headers = frame["package"].str.match(r"linux-(libc-dev|headers)\b")
    frame = frame.assign(date=dates.astype("datetime64[us]"), headers=headers.astype(bool))
    frame = frame.drop_duplicates(["cve", "package", "installed"])
    return frame.sort_values(["package", "cve"], ignore_index=True)


def known(contents: Contents, *, folder: Path, source: str = "auto") -> Report:
    """Tell which known CVEs an image's packages carry; the folder is for what mirrors told.

    The source is ``debian`` (the mirror that the image names), ``snapshot`` (what was last read
    from a mirror, or came with a bundle), or ``auto``: the mirror, and where there is none or it
    doesn't answer, the snapshot. One that can't tell raises VulnerabilityError: that is not the
    same as no CVEs.
    """
    release, installed, architecture = _debian(contents)
    if source == "snapshot":
        return _last_read(release, installed, architecture, folder)
    try:
        suites, sources = debian_mirror.suites(contents.apt_sources, release), installed["source"]
        fixes = debian_mirror.read(suites, release, architecture, set(sources), folder=folder)
        return _judged(installed, fixes, release)
    except VulnerabilityError as error:
        if source == "auto":
            with contextlib.suppress(VulnerabilityError):
                report = _last_read(release, installed, architecture, folder)
                # What the mirror did not give just now is no verdict.
                if not report.is_live or not report.notes:
                    taken = f"{report.source}, of {report.date:%Y-%m-%d}"
                    feedback.say(f"{error} Taken instead: {taken}.")
                    return report
        raise


def snapshot(images: Iterable[Contents], *, folder: Path) -> bytes:
    """Return what mirrors tell of some images' packages, and have told before, as one file."""
    for image in images:
        known(image, folder=folder, source="debian")
    return debian_mirror.pack(debian_mirror.load(folder))


def _last_read(
    release: Release, installed: pd.DataFrame, architecture: str, folder: Path
) -> Report:
    """Judge by what a mirror said when it was last asked, for any image of the release."""
    # A snapshot of an earlier lab tells of the security suite alone: it would count too few.
    start = f"{release.security} {architecture} {release.security} "
    kept = debian_mirror.load(folder)
    found = [fixes for key, fixes in kept.items() if key.startswith(start)]
    report = found and _judged(installed, max(found, key=lambda fixes: fixes.date), release)
    if not report or (report.notes and report.rows.empty):
        raise VulnerabilityError(
            f"looking up Debian's own fixes: nothing was read of '{release.security}' for this "
            "image. Connect to the network, or load a bundle: 'python3 -m labapp bundle load'."
        )
    return report


def _judged(installed: pd.DataFrame, fixes: Fixes, release: Release) -> Report:
    told = fixes.of(set(installed["source"]))
    read = {name: updates for name, updates in told.items() if updates}
    notes = [f"the changelog of '{name}' can't be read" for name in told if name not in read]
    rows: list[tuple[str, ...]] = []
    listed = installed[installed["source"].isin(list(read))]
    for key, group in listed.groupby(["source", "source_version"]):
        name, version = map(str, key)
        try:
            found = list(debian_mirror.verdicts(read[name], version, release))
        except ValueError:
            notes.append(f"the version '{version}' of '{name}' can't be compared with a fix")
            continue
        for cve, fixed, state, day in found:
            rows += [(cve, package, name, version, fixed, state, day) for package in group["name"]]
    source = DEBIAN if fixes.is_fresh else f"{DEBIAN}, last read"
    return Report(table(rows), source, datetime.fromisoformat(fixes.date), tuple(notes))


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
            "packages, and no release of Debian. Ask a scanner that knows other systems."
        )
    found = installed["architecture"]
    named = found[found.str.fullmatch("[a-z0-9-]+") & (found != "all")].mode()
    return Release(number, codename), installed, str(named.iloc[0]) if len(named) else "amd64"
