"""Which known CVEs an image's packages carry, from three sources, each named and dated.

*Debian's own fixes* compare the installed packages with the security suite that the image's own apt
configuration names, and read the changelogs of its updates; *Grype* or *Trivy* are asked where they
are installed; a *snapshot* holds Debian's fixes for a class without internet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

from labapp.errors import VulnerabilityError
from labapp.feedback import Feedback
from labapp.registry.reader import RegistryImage
from labapp.vulnerabilities import apt_sources, own_fixes, scanners, snapshots
from labapp.vulnerabilities.fixes import Fixes, judge
from labapp.vulnerabilities.own_fixes import Packaged
from labapp.vulnerabilities.report import Report
from labapp.vulnerabilities.snapshots import parse as parse_snapshot

__all__ = [
    "Fixes",
    "Packaged",
    "Report",
    "keep_snapshot",
    "known",
    "parse_snapshot",
    "save_snapshot",
]

DEBIAN = "Debian's own fixes"
"""The name of this source in tables and charts."""

BLIND = (
    "A lower bound: it sees only what Debian has fixed in its security suite and named in a "
    "changelog, not what is unfixed, what came with a point release alone, and nothing outside "
    "Debian's packages."
)

SNAPSHOT = "snapshot.json.gz"
"""The file in the cache's folder that a bundle brings."""


class PackagedImage(Packaged, Protocol):
    """An image that was read; ``labapp.contents.Contents`` is one."""

    @property
    def image(self) -> RegistryImage:
        """Where it is, for the scanners."""


def known(
    contents: PackagedImage,
    *,
    folder: Path,
    source: Literal["auto", "debian", "grype", "trivy", "snapshot"] = "debian",
    snapshot: Path | None = None,
    sources_of: Packaged | None = None,
    feedback: Feedback,
) -> Report:
    """Tell which known CVEs an image's packages carry.

    Args:
        contents: of the image.
        folder: of the cache.
        source: whom to ask. ``auto`` asks the mirror; if it doesn't answer, or the image names
            none, it takes the newer of what was last read and the snapshot.
        snapshot: the snapshot's file; by default the one that a bundle brought.
        sources_of: the image that it was built on, where it has no apt configuration itself.
        feedback: where the progress is told.

    Raises:
        VulnerabilityError: the source can't tell; that is not the same as no CVEs.
    """
    path = snapshot or folder / SNAPSHOT
    match source:
        case "grype":
            return scanners.grype(contents.image, feedback=feedback)
        case "trivy":
            return scanners.trivy(contents.image, feedback=feedback)
        case "snapshot":
            return _from_snapshot(contents, path)
        case "debian":
            fixes = own_fixes.look_up(
                contents, folder=folder, sources_of=sources_of, feedback=feedback
            )
            return _report(contents, fixes, DEBIAN)
    try:
        return known(contents, folder=folder, sources_of=sources_of, feedback=feedback)
    except VulnerabilityError as error:
        report = _without_mirror(contents, folder, path, feedback)
        if report is None:
            raise
        if report.source != DEBIAN:
            feedback.say(f"{error} Taken instead: {report.source}.")
        return report


def save_snapshot(
    path: Path, images: Iterable[Packaged], *, folder: Path, feedback: Feedback
) -> None:
    """Write the fixes for all packages of some images of one release to a file.

    Args:
        path: of the file.
        images: whose packages are taken; their apt configuration names the mirror.
        folder: of the cache.
        feedback: where the progress is told.

    Raises:
        VulnerabilityError: the mirror doesn't answer, or the images are of several releases.
    """
    found = [own_fixes.look_up(image, folder=folder, feedback=feedback) for image in images]
    if len({fixes.release for fixes in found}) != 1:
        raise VulnerabilityError(
            f"writing the snapshot '{path}': it takes images of one release of Debian, not "
            f"{len(found)} of several. Save one for each."
        )
    merged = {name: updates for fixes in found for name, updates in fixes.updates.items()}
    notes = dict.fromkeys(note for fixes in found for note in fixes.notes)
    date = min(fixes.date for fixes in found)
    covers = frozenset().union(*(fixes.covers or () for fixes in found))
    snapshots.write(path, Fixes(found[0].release, date, merged, tuple(notes), covers))


def keep_snapshot(fixes: Fixes, *, folder: Path) -> None:
    """Put a snapshot where :func:`known` finds it, unless a newer one is there.

    Args:
        fixes: the snapshot.
        folder: of the cache.

    Raises:
        VulnerabilityError: the folder can't be written.
    """
    path = folder / SNAPSHOT
    with contextlib.suppress(VulnerabilityError):
        if snapshots.read(path).date > fixes.date:
            return
    snapshots.write(path, fixes)


def _without_mirror(
    contents: Packaged, folder: Path, snapshot: Path, feedback: Feedback
) -> Report | None:
    """Return the newest that is known without asking anybody; None if nothing is."""
    found = []
    with contextlib.suppress(VulnerabilityError):
        if last := own_fixes.last_read(contents, folder=folder, feedback=feedback):
            fixes, is_fresh = last
            as_of = "" if is_fresh else f", as of {fixes.date:%Y-%m-%d}"
            found.append(_report(contents, fixes, f"{DEBIAN}{as_of}"))
    with contextlib.suppress(VulnerabilityError):
        found.append(_from_snapshot(contents, snapshot))
    return max(found, key=lambda report: report.date, default=None)


def _from_snapshot(contents: Packaged, path: Path) -> Report:
    fixes = snapshots.read(path)
    release = apt_sources.release(contents.os_release)
    if fixes.release != release:
        raise VulnerabilityError(
            f"reading the snapshot '{path}': it is of Debian {fixes.release.number}, the image of "
            f"Debian {release.number}. Take another source."
        )
    own_fixes.installed(contents)
    return _report(contents, fixes, f"{DEBIAN}, snapshot of {fixes.date:%Y-%m-%d}")


def _report(contents: Packaged, fixes: Fixes, source: str) -> Report:
    verdict = judge(contents.packages, fixes, source=source)
    return Report(
        rows=verdict.rows,
        source=source,
        date=fixes.date,
        blind=BLIND,
        without_cve=verdict.without_cve,
        notes=verdict.notes,
    )
