"""Which known CVEs an image's packages carry, by sources that are each named and dated.

*Debian's own fixes* compare the installed packages with the security suite that the image's own apt
configuration names, and read the changelogs of its updates; *Grype* or *Trivy* are asked where they
are installed; a *snapshot* brings what a mirror told to a class without internet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from labapp import feedback
from labapp.errors import VulnerabilityError
from labapp.inside import debian_mirror, scanners
from labapp.inside.debian_mirror import Index, Mirror, Suite
from labapp.inside.fixes import Fixes, Release, Report, judge
from labapp.inside.image import Contents

DEBIAN = "Debian's own fixes"
"""The name of this source in tables and charts."""

MIRRORS = 4
"""How many of the mirrors that an image names are asked, one after another."""


def known(contents: Contents, *, folder: Path, source: str = "auto") -> Report:
    """Tell which known CVEs an image's packages carry.

    Args:
        contents: of the image.
        folder: of the cache.
        source: whom to ask, by a name of :data:`SOURCES`. ``auto`` asks the mirror; if it doesn't
            answer, or the image names none, it takes what was last read from one, or came with a
            snapshot.

    Raises:
        VulnerabilityError: the source can't tell; that is not the same as no CVEs.
    """
    return SOURCES[source](contents, folder)


def snapshot(images: Iterable[Contents], *, folder: Path) -> bytes:
    """Return what mirrors tell of some images' packages, and have told before, as one file."""
    for image in images:
        _security_fixes(image, folder)
    return debian_mirror.export(folder)


def _from_mirror(contents: Contents, folder: Path) -> Report:
    return judge(contents.packages, _security_fixes(contents, folder), source=DEBIAN)


def _from_last_read(contents: Contents, folder: Path) -> Report:
    """Judge by what a mirror said when it was last asked, for any image of the release."""
    release = _release(contents.os_release)
    found = debian_mirror.last_index(release, architecture=_architecture(contents), folder=folder)
    fixes = found and _fixes(contents, found[0], None, folder)
    if not found or not fixes or (fixes.notes and not fixes.updates):
        raise VulnerabilityError(
            f"looking up Debian's own fixes: of '{release.security}' nothing was ever read that "
            "tells of this image. Connect to the network, or load a bundle: "
            "'python3 -m labapp bundle load FILE'."
        )
    return judge(contents.packages, fixes, source=DEBIAN if found[1] else f"{DEBIAN}, last read")


def _from_any(contents: Contents, folder: Path) -> Report:
    try:
        return _from_mirror(contents, folder)
    except VulnerabilityError as error:
        try:
            report = _from_last_read(contents, folder)
        except VulnerabilityError:
            raise error from None
        if report.source != DEBIAN:
            feedback.say(f"{error} Taken instead: {report.source}, of {report.date:%Y-%m-%d}.")
        elif report.notes:  # what the mirror did not give just now is no verdict
            raise
        return report


SOURCES: Mapping[str, Callable[[Contents, Path], Report]] = {
    "auto": _from_any,
    "debian": _from_mirror,
    "grype": lambda contents, folder: scanners.ask("grype", contents.image),
    "trivy": lambda contents, folder: scanners.ask("trivy", contents.image),
    "snapshot": _from_last_read,
}
"""Whom to ask: each takes what is in an image, and the folder of the cache."""


def _security_fixes(contents: Contents, folder: Path) -> Fixes:
    """Ask the mirrors that an image names, until one of them serves what it lists."""
    suites = debian_mirror.security_suites(contents.apt_sources, _release(contents.os_release))
    *first, last = suites[:MIRRORS]
    for suite in first:
        with contextlib.suppress(VulnerabilityError):
            return _suite_fixes(contents, suite, folder)
    return _suite_fixes(contents, last, folder)


def _suite_fixes(contents: Contents, suite: Suite, folder: Path) -> Fixes:
    mirror, architecture = Mirror(suite.mirror), _architecture(contents)
    index = debian_mirror.read_index(mirror, suite, architecture=architecture, folder=folder)
    with contextlib.suppress(VulnerabilityError):
        return _fixes(contents, index, mirror, folder)
    # A file goes from the mirror when a newer one comes; the index that was kept still lists it.
    index = debian_mirror.read_index(
        mirror, suite, architecture=architecture, folder=folder, again=True
    )
    return _fixes(contents, index, mirror, folder)


def _fixes(contents: Contents, index: Index, mirror: Mirror | None, folder: Path) -> Fixes:
    names = set(_installed(contents)["source"])
    listed = {name: index.sources[name] for name in sorted(names & set(index.sources))}
    updates, notes = debian_mirror.read_changelogs(mirror, listed, folder=folder)
    return Fixes(_release(contents.os_release), index.date, updates, notes)


def _release(os_release: Mapping[str, str]) -> Release:
    """Return which Debian an image is, by the fields of its ``/etc/os-release`` (os-release(5))."""
    name = os_release.get("PRETTY_NAME") or os_release.get("ID") or "a system without os-release"
    number, codename = os_release.get("VERSION_ID", ""), os_release.get("VERSION_CODENAME", "")
    # A testing one has no number yet. The codename becomes part of a file's name.
    if os_release.get("ID") != "debian" or not number or not codename.isalpha():
        raise VulnerabilityError(
            f"looking up Debian's own fixes: the image is '{name}', and only releases of Debian "
            "have them. Take Grype or Trivy for it."
        )
    return Release(number, codename)


def _installed(contents: Contents) -> pd.DataFrame:
    """Return the Debian packages of an image; none at all is not the same as none with a CVE."""
    found = contents.packages[contents.packages["kind"] == "deb"]
    if found.empty:
        raise VulnerabilityError(
            "looking up Debian's own fixes: the image lists no Debian packages, so nobody can tell "
            "what it has. Take Grype or Trivy for it."
        )
    return found


def _architecture(contents: Contents) -> str:
    """Return the architecture that most packages are for, as Debian names it."""
    found = _installed(contents)["architecture"]
    named = found[found.str.fullmatch("[a-z0-9-]+") & (found != "all")].mode()
    return str(named.iloc[0]) if len(named) else "amd64"
