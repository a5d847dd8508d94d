"""A Debian security suite's index: the newest version of each source package, and its files.

The chain of hashes is checked: ``InRelease`` lists ``Packages.xz``, which lists each ``.deb``. The
signature of ``InRelease`` is not: the lab reads fixes from it, and installs nothing.

Source: the Debian wiki's DebianRepository/Format, "Release files" and "Packages indices".
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

from debian.deb822 import Packages
from debian.deb822 import Release as ReleaseFile
from debian.debian_support import Version

from labapp.errors import VulnerabilityError
from labapp.vulnerabilities import cache
from labapp.vulnerabilities.apt_sources import Suite, security_names
from labapp.vulnerabilities.mirror import Mirror

RELEASE_LIMIT = 8 * 1024 * 1024
INDEX_LIMIT = 64 * 1024 * 1024
UNPACKED_LIMIT = 128 * 1024 * 1024

FRESH_SECONDS = 4 * 3600.0
"""How long an index is taken as it was read; a suite changes about once a day."""


@dataclass(frozen=True)
class Deb:
    """A binary package's file: where it is below the mirror, its length in bytes, its hash."""

    package: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A source package's newest version in the suite, and its files, the smallest first."""

    version: str
    debs: tuple[Deb, ...]


@dataclass(frozen=True)
class Index:
    """What a suite holds, by source package, and when it was made."""

    date: datetime
    sources: Mapping[str, Source]


def read(
    mirror: Mirror, suite: Suite, *, architecture: str, folder: Path, again: bool = False
) -> Index:
    """Read a suite's index; from the cache, where it is fresh or ``InRelease`` is still the same.

    Args:
        mirror: where the suite is.
        suite: its name and components.
        architecture: as Debian names it (``amd64``).
        folder: of the cache.
        again: ask the mirror even if the index was read a moment ago.

    Raises:
        VulnerabilityError: the mirror does not serve it, or serves a damaged one.
    """
    key = "\n".join((mirror.name, suite.name, architecture, *suite.components))
    cached = folder / f"index-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json.gz"
    found = cache.read(cached)
    if found and not again and _is_fresh(cached):
        return _from_json(found)
    place = f"dists/{suite.name}"
    text = mirror.read(f"{place}/InRelease", limit=RELEASE_LIMIT)
    digest = hashlib.sha256(text).hexdigest()
    if found and found.get("release") == digest:
        with contextlib.suppress(OSError):
            os.utime(cached)
        return _from_json(found)
    where = f"'{mirror.name}/{place}'"
    release, date = _release(text, where)
    sources: dict[str, Source] = {}
    for component in suite.components:
        with tempfile.TemporaryFile() as file:
            _fetch(mirror, place, f"{component}/binary-{architecture}/Packages.xz", release, file)
            _read_packages(file, sources, where)
    index = Index(date, sources)
    about = {"release": digest, "suite": suite.name, "architecture": architecture}
    cache.keep(cached, about | _to_json(index))
    return index


def last_read(codename: str, *, architecture: str, folder: Path) -> tuple[Index, bool] | None:
    """Return the newest index of a release's security suite that was read from any mirror.

    Args:
        codename: of the release.
        architecture: as Debian names it.
        folder: of the cache.

    Returns:
        The index, and whether it is fresh; None if there is none.
    """
    found = []
    for path in folder.glob("index-*.json.gz"):
        content = cache.read(path) or {}
        suites = security_names(codename)
        if content.get("suite") in suites and content["architecture"] == architecture:
            found.append((_from_json(content), _is_fresh(path)))
    return max(found, key=lambda pair: pair[0].date, default=None)


def _is_fresh(path: Path) -> bool:
    """Tell if an index was read lately; a clock that was set back makes it old."""
    return 0 <= time.time() - path.stat().st_mtime < FRESH_SECONDS


def _release(text: bytes, where: str) -> tuple[ReleaseFile, datetime]:
    try:
        release = ReleaseFile(text)
        return release, parsedate_to_datetime(release["Date"]).astimezone(UTC)
    except (KeyError, ValueError, TypeError) as error:
        # A hotel's log-in page answers every address with 200 and a page of its own.
        raise VulnerabilityError(
            f"reading {where}: its InRelease is not one of a Debian mirror. Is there a log-in "
            "page between you and the network? Pass that, or take a snapshot."
        ) from error


def _fetch(mirror: Mirror, place: str, name: str, release: ReleaseFile, file: BinaryIO) -> None:
    """Download an index that the release file lists."""
    try:
        listed = {entry["name"]: entry for entry in release["SHA256"]}[name]
        sha256, size = listed["sha256"], int(listed["size"])
    except (KeyError, ValueError, TypeError) as error:
        raise VulnerabilityError(
            f"reading '{mirror.name}/{place}': its InRelease lists no '{name}'. Take a snapshot, "
            "Grype or Trivy."
        ) from error
    if size > INDEX_LIMIT:
        raise VulnerabilityError(
            f"reading '{mirror.name}/{place}/{name}': it claims {size:,} bytes, more than an index "
            "has. Take a snapshot, or an image that names another mirror."
        )
    # By its hash, so that a mirror which is just being updated still serves what was listed.
    if release.get("Acquire-By-Hash", "").strip() == "yes":
        name = f"{name.rpartition('/')[0]}/by-hash/SHA256/{sha256}"
    mirror.download(f"{place}/{name}", file, size=size, sha256=sha256)


def _read_packages(file: BinaryIO, sources: dict[str, Source], where: str) -> None:
    """Add what a ``Packages.xz`` lists; of each source package, only the newest version's files."""
    file.seek(0)
    found: dict[str, tuple[Version, list[Deb]]] = {}
    try:
        with lzma.open(file) as unpacked:
            data = unpacked.read(UNPACKED_LIMIT + 1)
        if len(data) > UNPACKED_LIMIT:
            raise ValueError("it is too long")
        for stanza in Packages.iter_paragraphs(io.BytesIO(data), use_apt_pkg=False):
            name, version = stanza.source or "", stanza.source_version
            deb = Deb(
                stanza["Package"], stanza["Filename"], int(stanza["Size"]), stanza["SHA256"].lower()
            )
            known = found.get(name)
            if known is None or known[0] < version:
                found[name] = (version, [deb])
            elif known[0] == version:
                known[1].append(deb)
    except (lzma.LZMAError, EOFError, KeyError, ValueError, TypeError) as error:
        raise VulnerabilityError(
            f"reading {where}: its index of packages can't be read: {error}. Take a snapshot."
        ) from error
    for name, (version, debs) in found.items():
        if name not in sources or Version(sources[name].version) < version:
            debs.sort(key=lambda deb: (deb.size, deb.package))
            sources[name] = Source(str(version), tuple(debs))


def _to_json(index: Index) -> dict[str, object]:
    return {
        "date": index.date.isoformat(),
        "sources": {
            name: [source.version, [[d.package, d.path, d.size, d.sha256] for d in source.debs]]
            for name, source in index.sources.items()
        },
    }


def _from_json(content: Mapping[str, object]) -> Index:
    sources = content["sources"]
    assert isinstance(sources, dict)
    return Index(
        datetime.fromisoformat(str(content["date"])),
        {
            name: Source(version, tuple(Deb(*fields) for fields in debs))
            for name, (version, debs) in sources.items()
        },
    )
