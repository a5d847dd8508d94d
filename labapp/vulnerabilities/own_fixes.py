"""What Debian's security suite says of an image's packages: asked, or as it was last read.

The suite is the one that the image's own apt configuration names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pandas as pd

from labapp.errors import VulnerabilityError
from labapp.feedback import Feedback
from labapp.vulnerabilities import apt_sources, changelogs, debian_security
from labapp.vulnerabilities.debian_security import Index
from labapp.vulnerabilities.fixes import Fixes
from labapp.vulnerabilities.mirror import Mirror


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


def look_up(
    image: Packaged, *, folder: Path, sources_of: Packaged | None = None, feedback: Feedback
) -> Fixes:
    """Return what the security suite says of an image's packages.

    Args:
        image: its packages, and the apt configuration that names the mirror.
        folder: of the cache; a fresh index there is taken as it is.
        sources_of: the image whose apt configuration is taken where there is none.
        feedback: where the progress is told.

    Raises:
        VulnerabilityError: the image is no release of Debian or names no mirror, or the mirror does
            not serve what it lists.
    """
    release = apt_sources.release(image.os_release)
    texts = image.apt_sources or (sources_of.apt_sources if sources_of else ())
    suites = apt_sources.security_suites(texts, release)
    architecture = _architecture(image)

    def ask(mirror: Mirror, suite: apt_sources.Suite, *, again: bool = False) -> Index:
        return debian_security.read(
            mirror, suite, architecture=architecture, folder=folder, again=again
        )

    for number, suite in enumerate(suites):
        mirror = Mirror(suite.mirror)
        try:
            index = ask(mirror, suite)
            try:
                return _fixes(image, index, mirror, folder, feedback)
            except VulnerabilityError:
                # A file goes from the mirror when a newer one comes; an index may still list it.
                newer = ask(mirror, suite, again=True)
                if newer == index:
                    raise
                return _fixes(image, newer, mirror, folder, feedback)
        except VulnerabilityError:
            if number == len(suites) - 1:
                raise
    raise AssertionError("there is a suite, or an error about it")


def last_read(image: Packaged, *, folder: Path, feedback: Feedback) -> tuple[Fixes, bool] | None:
    """Return what the security suite said when it was last asked, for any image of the release.

    Args:
        image: its packages.
        folder: of the cache.
        feedback: where the progress is told.

    Returns:
        The fixes, and whether they are still fresh; None where the cache lacks something.

    Raises:
        VulnerabilityError: the image is no release of Debian.
    """
    codename = apt_sources.release(image.os_release).codename
    architecture = _architecture(image)
    found = debian_security.last_read(codename, architecture=architecture, folder=folder)
    if found is None:
        return None
    index, is_fresh = found
    try:
        return _fixes(image, index, None, folder, feedback), is_fresh
    except VulnerabilityError:
        return None


def installed(image: Packaged) -> pd.DataFrame:
    """Return the Debian packages of an image.

    Raises:
        VulnerabilityError: there are none, which is not the same as none with a CVE.
    """
    found = image.packages[image.packages["kind"] == "deb"]
    if found.empty:
        raise VulnerabilityError(
            "looking up Debian's own fixes: the image lists no Debian packages, so nobody can tell "
            "what it has. Take Grype or Trivy for it."
        )
    return found


def _architecture(image: Packaged) -> str:
    found = installed(image)["architecture"]
    named = found[found != "all"].mode()
    return str(named.iloc[0]) if len(named) else "amd64"


def _fixes(
    image: Packaged, index: Index, mirror: Mirror | None, folder: Path, feedback: Feedback
) -> Fixes:
    names = set(installed(image)["source"])
    listed = {name: index.sources[name] for name in sorted(names & set(index.sources))}
    updates, notes = changelogs.read(mirror, listed, folder=folder, feedback=feedback)
    release = apt_sources.release(image.os_release)
    return Fixes(release, index.date, updates, notes, frozenset(names))
