"""The changelogs of a suite's source packages: which update names which CVE.

Each source package's changelog is in its smallest ``.deb``. What was read from one is kept for
good, by the file's hash.

Source: deb-changelog(5); Debian Policy 12.7 for where a package keeps it.
"""

from __future__ import annotations

import gzip
import itertools
import lzma
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

from debian.arfile import ArError
from debian.changelog import ChangeBlock, Changelog, ChangelogParseError
from debian.debfile import DebError, DebFile

from labapp.errors import VulnerabilityError
from labapp.feedback import Feedback
from labapp.vulnerabilities import cache
from labapp.vulnerabilities.debian_security import Deb, Source
from labapp.vulnerabilities.fixes import Update
from labapp.vulnerabilities.mirror import THREADS, Mirror

CHANGELOG_LIMIT = 64 * 1024 * 1024
"""The longest changelog that is read, in bytes; the kernel's has about five million."""

TRIES = 12
TRIES_BYTES = 32 * 1024 * 1024
"""How many packages of a source are looked into, and how many bytes beyond the first one's.

Some packages only link to the changelog of another one, which need not be small."""

_CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE)

_UNREADABLE = (
    ArError, DebError, ChangelogParseError, tarfile.TarError, lzma.LZMAError, zlib.error,
    EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
)  # fmt: skip
"""What the readers of a damaged archive or changelog raise."""


def read(
    mirror: Mirror | None, sources: Mapping[str, Source], *, folder: Path, feedback: Feedback
) -> tuple[dict[str, tuple[Update, ...]], tuple[str, ...]]:
    """Read the changelogs of source packages; from the mirror, where the cache has none.

    Args:
        mirror: where the files are; None to take the cache alone.
        sources: by name.
        folder: of the cache.
        feedback: where the progress is told.

    Returns:
        The updates by source package, the newest first; and a note for each that can't be read.

    Raises:
        VulnerabilityError: the mirror does not serve a file as its index lists it; or, without a
            mirror, the cache lacks one.
    """
    found = {name: _cached(_candidates(source), folder) for name, source in sources.items()}
    missing = [name for name, updates in found.items() if updates is None]
    if missing and mirror is None:
        raise VulnerabilityError(
            f"looking up Debian's own fixes: the changelog of '{missing[0]}' was never read. "
            "Connect to the network, or take a snapshot."
        )
    if missing and mirror:
        total, done = sum(sources[name].debs[0].size for name in missing), 0
        with feedback.bars("Reading what Debian has fixed since the release") as bars:

            def fetch(name: str) -> tuple[Update, ...]:
                return _fetch(mirror, _candidates(sources[name]), folder, progress)

            def progress(count: int) -> None:
                nonlocal done
                done += count
                bars.update("changelogs", done, max(total, done), f"of {len(missing)} packages")

            pool = ThreadPoolExecutor(THREADS)
            try:
                found |= zip(missing, pool.map(fetch, missing), strict=True)
            finally:
                # After an error, what has not begun is not wanted any more.
                pool.shutdown(cancel_futures=True)
    notes = [f"the changelog of '{name}' can't be read" for name in found if not found[name]]
    return {name: updates for name, updates in found.items() if updates}, tuple(notes)


def _candidates(source: Source) -> list[Deb]:
    """Return the packages to look into, the smallest first."""
    ends = itertools.accumulate(deb.size for deb in source.debs[1:])
    return [source.debs[0]] + [
        deb for deb, end in zip(source.debs[1:TRIES], ends, strict=False) if end <= TRIES_BYTES
    ]


def _cached(debs: Iterable[Deb], folder: Path) -> tuple[Update, ...] | None:
    """Return what earlier runs read: None if nothing, empty if there was nothing to be read."""
    for deb in debs:
        content = cache.read(_place(deb, folder))
        if content is None:
            return None
        if updates := from_json(content["updates"]):
            return updates
    return ()


def _fetch(
    mirror: Mirror, debs: Iterable[Deb], folder: Path, progress: Callable[[int], None]
) -> tuple[Update, ...]:
    for deb in debs:
        with tempfile.TemporaryFile() as file:
            mirror.download(deb.path, file, size=deb.size, sha256=deb.sha256, progress=progress)
            updates = parse(file, deb.package)
        cache.keep(_place(deb, folder), {"updates": to_json(updates)})
        if updates:
            return updates
    return ()


def parse(file: BinaryIO, package: str) -> tuple[Update, ...]:
    """Return the changelog of a ``.deb``, the newest entry first; empty if it can't be read.

    Args:
        file: the archive.
        package: its name.
    """
    file.seek(0)
    try:
        with DebFile(fileobj=file) as deb:
            for name in ("changelog.Debian.gz", "changelog.gz"):
                try:
                    packed = deb.data.get_file(
                        f"usr/share/doc/{package}/{name}", follow_symlinks=True
                    )
                except DebError:
                    continue
                with gzip.GzipFile(fileobj=packed) as unpacked:
                    text = unpacked.read(CHANGELOG_LIMIT + 1)
                if len(text) <= CHANGELOG_LIMIT:
                    return _updates(text)
    except _UNREADABLE:
        pass
    return ()


def _updates(text: bytes) -> tuple[Update, ...]:
    # What is below an entry that is not understood can't be placed in the order of versions.
    whole = itertools.takewhile(_has_version, Changelog(text.decode("utf-8", "replace")))
    return tuple(
        Update(
            version=str(entry.version),
            distributions=tuple((entry.distributions or "").split()),
            date=_date(entry.date),
            cves=tuple(
                dict.fromkeys(id.upper() for id in _CVE.findall("\n".join(entry.changes())))
            ),
        )
        for entry in whole
    )


def _has_version(entry: ChangeBlock) -> bool:
    try:
        return entry.package is not None and bool(str(entry.version))
    except ValueError:
        return False


def _date(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text or "").astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def _place(deb: Deb, folder: Path) -> Path:
    return folder / "changelogs" / f"{deb.sha256}.json.gz"


def to_json(updates: Iterable[Update]) -> list[list[Any]]:
    """Return updates as JSON has them."""
    return [
        [u.version, list(u.distributions), u.date.isoformat() if u.date else "", list(u.cves)]
        for u in updates
    ]


def from_json(content: Iterable[Any]) -> tuple[Update, ...]:
    """Return updates from what :func:`to_json` made of them."""
    return tuple(
        Update(
            version,
            tuple(distributions),
            datetime.fromisoformat(date) if date else None,
            tuple(cves),
        )
        for version, distributions, date, cves in content
    )
