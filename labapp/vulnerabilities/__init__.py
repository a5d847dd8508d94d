"""Which known CVEs an image's packages carry, from three sources, each named and dated.

*Debian's own fixes* compare the installed packages with the security suite that the image's own apt
configuration names, and read the changelogs of its updates; *Grype* or *Trivy* are asked where they
are installed; a *snapshot* holds Debian's fixes for a class without internet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol

import pandas as pd

from labapp.errors import VulnerabilityError
from labapp.feedback import Feedback
from labapp.registry.reader import RegistryImage
from labapp.vulnerabilities import apt_sources, changelogs, debian_security, scanners, snapshots
from labapp.vulnerabilities.fixes import Fixes, judge
from labapp.vulnerabilities.mirror import Mirror
from labapp.vulnerabilities.report import Report as Report

DEBIAN = "Debian's own fixes"
"""The name of this source in tables and charts."""

BLIND = (
    "A lower bound: it sees only what Debian has fixed in its security suite and named in a "
    "changelog, not what is unfixed, what came with a point release alone, and nothing outside "
    "Debian's packages."
)

SNAPSHOT = "snapshot.json.gz"
"""The file in the cache's folder that a bundle brings."""


class Packaged(Protocol):
    """What Debian's fixes are judged by: the installed packages, and where they came from."""

    @property
    def packages(self) -> pd.DataFrame:
        """``name``, ``kind``, ``source``, ``source_version`` and ``architecture``."""

    @property
    def os_release(self) -> Mapping[str, str]:
        """The fields of ``/etc/os-release``."""

    @property
    def apt_sources(self) -> tuple[str, ...]:
        """The texts of apt's configuration."""


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
        source: whom to ask. ``auto`` asks the mirror, and takes the snapshot if it doesn't answer.
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
            return _report(contents, _look_up(contents, folder, sources_of, feedback), DEBIAN)
    try:
        return known(contents, folder=folder, sources_of=sources_of, feedback=feedback)
    except VulnerabilityError as error:
        if not path.exists():
            raise
        feedback.say(f"{error} The snapshot is taken instead.")
        return _from_snapshot(contents, path)


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
    found = [_look_up(image, folder, None, feedback) for image in images]
    if len({fixes.release for fixes in found}) != 1:
        raise VulnerabilityError(
            f"writing the snapshot '{path}': it takes images of one release of Debian, not "
            f"{len(found)} of several. Save one for each."
        )
    merged = {name: updates for fixes in found for name, updates in fixes.updates.items()}
    notes = dict.fromkeys(note for fixes in found for note in fixes.notes)
    date = min(fixes.date for fixes in found)
    snapshots.write(path, Fixes(found[0].release, date, merged, tuple(notes)))


def _look_up(
    contents: Packaged, folder: Path, sources_of: Packaged | None, feedback: Feedback
) -> Fixes:
    """Return what the security suite says of an image's packages."""
    release = apt_sources.release(contents.os_release)
    texts = contents.apt_sources or (sources_of.apt_sources if sources_of else ())
    suites = apt_sources.security_suites(texts, release)
    installed = _installed(contents)
    architectures = installed[installed["architecture"] != "all"]["architecture"].mode()
    architecture = str(architectures.iloc[0]) if len(architectures) else "amd64"
    for number, suite in enumerate(suites):
        mirror = Mirror(suite.mirror)
        try:
            index = debian_security.read(mirror, suite, architecture=architecture, folder=folder)
            break
        except VulnerabilityError:
            if number == len(suites) - 1:
                raise
    names = sorted(set(installed["source"]) & set(index.sources))
    updates, notes = changelogs.read(
        mirror, {name: index.sources[name] for name in names}, folder=folder, feedback=feedback
    )
    return Fixes(release, index.date, updates, notes)


def _installed(contents: Packaged) -> pd.DataFrame:
    installed = contents.packages[contents.packages["kind"] == "deb"]
    if installed.empty:
        raise VulnerabilityError(
            "looking up Debian's own fixes: the image lists no Debian packages, so nobody can tell "
            "what it has. Take Grype or Trivy for it."
        )
    return installed


def _from_snapshot(contents: Packaged, path: Path) -> Report:
    fixes = snapshots.read(path)
    release = apt_sources.release(contents.os_release)
    if fixes.release != release:
        raise VulnerabilityError(
            f"reading the snapshot '{path}': it is of Debian {fixes.release.number}, the image of "
            f"Debian {release.number}. Take another source."
        )
    _installed(contents)
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
