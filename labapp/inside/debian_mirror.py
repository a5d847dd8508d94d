"""Debian's mirrors: which ones an image names, what their security suite lists, and what it fixed.

The chain of hashes is checked: ``InRelease`` lists ``Packages.xz``, which lists each ``.deb``, in
which there is the changelog of its source package. The signature of ``InRelease`` is not: the lab
reads fixes from it, and installs nothing. What was read is kept in a folder, as gzipped JSON.

Sources: sources.list(5); the Debian wiki's DebianRepository/Format, "Release files" and "Packages
indices"; deb-changelog(5), and Debian Policy 12.7 for where a package keeps it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import requests
import urllib3
from debian.changelog import ChangeBlock, Changelog
from debian.deb822 import Deb822, Packages
from debian.deb822 import Release as ReleaseFile
from debian.debfile import DebError, DebFile
from debian.debian_support import Version
from requests.adapters import HTTPAdapter

from labapp import feedback
from labapp.errors import VulnerabilityError
from labapp.inside.fixes import Release, Update
from labapp.state import write_atomically

LIMIT = 64 * 1024 * 1024
"""How many bytes a file may have, packed or unpacked: an image names mirrors of its own choice."""

TRIES = 12
"""How many packages of a source are looked into: some only link to the changelog of another."""

FRESH_SECONDS = 4 * 3600.0
"""How long an index is taken as it was read; a suite changes about once a day."""

THREADS, REDIRECTS = 6, 5
SECONDS = (5.0, 20.0)
"""How long to wait for a connection, and for an answer."""

_CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE)
_ONE_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)")

_NAME = re.compile(r"[a-z]+-security-[a-z0-9-]+\.json\.gz|changelogs/[0-9a-f]{64}\.json\.gz")
"""Names of files in the cache: an index, or what a package's changelog tells."""

_FORMAT = 2
"""Of snapshots; those of an earlier one are taken for empty."""

Updates = tuple[Update, ...]


class Suite(NamedTuple):
    """A suite on a mirror, as in ``deb http://… trixie-security main``."""

    mirror: str
    name: str
    components: tuple[str, ...]


class Deb(NamedTuple):
    """A binary package's file: where it is below the mirror, its length in bytes, its hash."""

    package: str
    path: str
    size: int
    sha256: str


class Index(NamedTuple):
    """When a suite was made, and by source package the newest version's files, smallest first."""

    date: datetime
    sources: Mapping[str, tuple[Deb, ...]]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Index:
        """Return an index from what a kept file holds of it."""
        sources = content["sources"].items()
        files = {name: tuple(Deb(*fields) for fields in debs) for name, debs in sources}
        return cls(datetime.fromisoformat(content["date"]), files)


class Mirror:
    """The connections to one mirror, by the proxies that the environment names, as apt does.

    Several threads may use them at once.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # The address may hold a password, which an error must not show.
        self.name = re.sub(r"(?<=//)[^/?#]*@", "", self._url)
        self._session = requests.Session()
        # A room without internet is told so within a quarter of a minute.
        retries = urllib3.Retry(
            2, connect=1, read=1, backoff_factor=0.1, status_forcelist=(502, 503, 504)
        )
        for scheme in ("http://", "https://"):
            adapter = HTTPAdapter(max_retries=retries, pool_maxsize=THREADS)
            self._session.mount(scheme, adapter)
        self._session.headers["Accept-Encoding"] = "identity"

    def fetch(self, path: str, *, limit: int, sha256: str | None = None) -> bytes:
        """Return a file, which has so many bytes at most and the hash that lists it."""
        data = bytearray()
        for chunk in self._chunks(path):
            data += chunk
            if len(data) > limit:
                raise self.error(path, f"it is longer than {limit:,} bytes")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise self.error(path, "its bytes are not those that the suite's index lists")
        return bytes(data)

    def error(self, path: str, cause: str) -> VulnerabilityError:
        """Return the error for a file that can't be had, or can't be used."""
        return VulnerabilityError(
            f"reading '{self.name}/{path}': {cause}. Try again later, on another network, or take "
            "a snapshot."
        )

    def _chunks(self, path: str) -> Iterator[bytes]:
        url = f"{self._url}/{path}"
        try:
            # Redirects are followed here, as requests would read their bodies, however long.
            for _ in range(REDIRECTS + 1):
                with self._session.get(
                    url, stream=True, timeout=SECONDS, allow_redirects=False
                ) as answer:
                    if answer.is_redirect:
                        url = urljoin(url, answer.headers["Location"])
                    elif answer.status_code == 200:
                        yield from answer.iter_content(64 * 1024)
                        return
                    else:
                        raise self.error(path, f"the mirror answers {answer.status_code}")
            raise self.error(path, "the mirror redirects again and again")
        # An address that is none, here or in a redirect, is a ValueError in some places.
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise self.error(path, "the mirror can't be reached") from error


# Kept files


def export(folder: Path) -> bytes:
    """Return all that was kept as a snapshot: the bytes of one file, for other machines."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.json.gz")}
    files = {name: _kept(path) for name, path in paths.items() if _NAME.fullmatch(name)}
    return _pack({"format": _FORMAT, "files": {name: file for name, file in files.items() if file}})


def parse_snapshot(data: bytes, name: str) -> dict[str, dict[str, Any]]:
    """Read a snapshot from the bytes of the file of that name: contents by path in the cache."""
    content = _unpack(data) or {}
    try:
        if content["format"] < _FORMAT:
            return {}
        files: dict[str, dict[str, Any]] = content["files"]
        for path, kept in files.items():
            if not _NAME.fullmatch(path):
                raise ValueError(path)
            if "/" in path:
                list(map(Update.from_json, kept["updates"]))
            else:
                Index.from_json(kept)
        return files
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise VulnerabilityError(
            f"reading the snapshot '{name}': it is damaged, or none of this lab. Save it again."
        ) from error


def keep_snapshot(files: Mapping[str, Mapping[str, Any]], *, folder: Path) -> None:
    """Keep what a snapshot brings, unless a newer index is there; it counts as read long ago."""
    for name, content in files.items():
        path = folder / name
        held = _kept(path)
        if held is None or held.get("date", "") < content.get("date", ""):
            _keep(path, content)
            with contextlib.suppress(OSError):
                os.utime(path, (0, 0))


def _pack(content: Mapping[str, Any]) -> bytes:
    """Return gzipped JSON; equal content gives equal bytes, as there is no time in it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=datetime.isoformat)
    return gzip.compress(text.encode(), mtime=0)


def _unpack(data: bytes) -> dict[str, Any] | None:
    """Return what such bytes hold; None if they are damaged, as gzip's checksum tells."""
    try:
        content = json.loads(gzip.decompress(data))
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return content if isinstance(content, dict) else None


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of the cache; if that fails, it costs time only."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _pack(content), mode=0o644)


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        return _unpack(path.read_bytes())
    except OSError:
        return None


# Which suites an image names


def security_suites(texts: Iterable[str], release: Release) -> tuple[Suite, ...]:
    """Return the release's security suite, once for each mirror that apt's configuration names."""
    found = {
        Suite(uri.rstrip("/"), name.rstrip("/"), components): None
        for text in texts
        for uri, name, components in (*_one_line(text), *_deb822(text))
        # A disc or a folder of the image can't be read from here; the rest is no address at all.
        if uri.startswith(("http://", "https://")) and "".join((uri, *components)).isprintable()
    }
    suites = tuple(suite for suite in found if suite.name == release.security)
    if not suites:
        raise VulnerabilityError(
            f"looking up Debian's own fixes: the image's apt configuration names no mirror with "
            f"'{release.security}', so nobody can tell which fixes it lacks. Take a snapshot, "
            "Grype or Trivy."
        )
    return suites


def _one_line(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for line in text.splitlines():
        if match := _ONE_LINE.fullmatch(line.partition("#")[0].strip()):
            yield match[1], match[2], tuple(match[3].split())


def _deb822(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for stanza in Deb822.iter_paragraphs(text.splitlines()):
        enabled = stanza.get("Enabled", "yes").strip().lower() not in ("no", "false", "0", "off")
        if enabled and "deb" in stanza.get("Types", "").split():
            for uri in stanza.get("URIs", "").split():
                for name in stanza.get("Suites", "").split():
                    yield uri, name, tuple(stanza.get("Components", "").split())


# What a suite lists


def read_index(
    mirror: Mirror, suite: Suite, *, architecture: str, folder: Path, again: bool = False
) -> Index:
    """Read a suite's index; the kept one, where it is fresh or ``InRelease`` is still the same.

    The architecture is as Debian names it (``amd64``); ``again`` asks the mirror in any case.
    """
    key = hashlib.sha256("\n".join((mirror.name, *suite.components)).encode()).hexdigest()[:16]
    path = folder / f"{suite.name}-{architecture}-{key}.json.gz"
    found = _kept(path)
    if found and not again and _is_fresh(path):
        return Index.from_json(found)
    text = mirror.fetch(f"dists/{suite.name}/InRelease", limit=LIMIT)
    digest = hashlib.sha256(text).hexdigest()
    if found and found["release"] == digest:
        with contextlib.suppress(OSError):
            os.utime(path)
        return Index.from_json(found)
    index = _fetch_index(mirror, suite, architecture, text)
    _keep(path, {"release": digest, **index._asdict()})
    return index


def last_index(release: Release, *, architecture: str, folder: Path) -> tuple[Index, bool] | None:
    """Return the newest kept index of a release's security suite, and whether it is fresh."""
    found = [
        (Index.from_json(content), _is_fresh(path))
        for path in folder.glob(f"{release.security}-{architecture}-*.json.gz")
        if (content := _kept(path))
    ]
    return max(found, key=lambda pair: pair[0].date, default=None)


def _is_fresh(path: Path) -> bool:
    """Tell if an index was read lately; a clock that was set back makes it old."""
    return 0 <= time.time() - path.stat().st_mtime < FRESH_SECONDS


def _fetch_index(mirror: Mirror, suite: Suite, architecture: str, text: bytes) -> Index:
    """Read the indexes that a suite's ``InRelease`` lists, one for each component."""
    place = f"dists/{suite.name}"
    try:
        release = ReleaseFile(text)
        date = parsedate_to_datetime(release["Date"]).astimezone(UTC)
        listed = {entry["name"]: entry for entry in release["SHA256"]}
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        # A hotel's log-in page answers every address with 200 and a page of its own.
        cause = "it is not one of a Debian mirror, perhaps a network's log-in page"
        raise mirror.error(f"{place}/InRelease", cause) from error
    newest: dict[str, tuple[Version, list[Deb]]] = {}
    for component in suite.components:
        name = f"{component}/binary-{architecture}/Packages.xz"
        try:
            sha256, size = listed[name]["sha256"], int(listed[name]["size"])
            # By its hash, so that a mirror which is just being updated still serves what it listed.
            by_hash = release.get("Acquire-By-Hash", "").strip() == "yes"
            file = f"{name.rpartition('/')[0]}/by-hash/SHA256/{sha256}" if by_hash else name
            data = mirror.fetch(f"{place}/{file}", limit=min(size, LIMIT), sha256=sha256)
            _add_packages(newest, data)
        except (lzma.LZMAError, EOFError, KeyError, ValueError, TypeError) as error:
            cause = f"the suite does not list it, or it can't be read ({error})"
            raise mirror.error(f"{place}/{name}", cause) from error
    sources = {
        name: tuple(sorted(debs, key=lambda deb: (deb.size, deb.package)))
        for name, (_, debs) in newest.items()
    }
    return Index(date, sources)


def _add_packages(newest: dict[str, tuple[Version, list[Deb]]], packed: bytes) -> None:
    """Add what a ``Packages.xz`` lists; of each source package, only the newest version's files."""
    with lzma.open(io.BytesIO(packed)) as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError("it is too long")
    for stanza in Packages.iter_paragraphs(io.BytesIO(data), use_apt_pkg=False):
        name, version = stanza.source or "", stanza.source_version
        size, sha256 = int(stanza["Size"]), stanza["SHA256"].lower()
        if name not in newest or newest[name][0] < version:
            newest[name] = (version, [])
        if newest[name][0] == version and size <= LIMIT:
            newest[name][1].append(Deb(stanza["Package"], stanza["Filename"], size, sha256))


# What the changelogs tell


def read_changelogs(
    mirror: Mirror | None, sources: Mapping[str, tuple[Deb, ...]], *, folder: Path
) -> tuple[dict[str, Updates], tuple[str, ...]]:
    """Return the updates of source packages, newest first, and a note for each unreadable one.

    What was read from a file is kept for good, by its hash; without a mirror there is only that.
    """
    found = {name: _read_updates(None, debs, folder) for name, debs in sources.items()}
    missing = [name for name, updates in found.items() if updates is None]
    if missing and mirror:
        pool = ThreadPoolExecutor(THREADS)
        title = "Reading what Debian has fixed since the release"
        with feedback.bars(title, unit="steps") as bars:
            try:
                read = pool.map(lambda name: _read_updates(mirror, sources[name], folder), missing)
                for number, (name, updates) in enumerate(zip(missing, read, strict=True), 1):
                    found[name] = updates
                    bars.update("changelogs", number, len(missing))
            finally:
                # After an error, or when a person stops it, nobody waits for a slow mirror.
                pool.shutdown(wait=False, cancel_futures=True)
    notes = [f"the changelog of '{name}' can't be read" for name in found if not found[name]]
    return {name: updates for name, updates in found.items() if updates}, tuple(notes)


def _read_updates(mirror: Mirror | None, debs: tuple[Deb, ...], folder: Path) -> Updates | None:
    """Return what the first readable changelog of a source tells; None if that takes a mirror."""
    for deb in debs[:TRIES]:
        path = folder / "changelogs" / f"{deb.sha256}.json.gz"
        if content := _kept(path):
            updates = tuple(map(Update.from_json, content["updates"]))
        elif mirror is None:
            return None
        else:
            data = mirror.fetch(deb.path, limit=deb.size, sha256=deb.sha256)
            updates = parse_changelog(data, deb.package)
            _keep(path, {"updates": updates})
        if updates:
            return updates
    return ()


def parse_changelog(data: bytes, package: str) -> Updates:
    """Return the changelog in a package's ``.deb``, newest first; empty if it can't be read."""
    try:
        with DebFile(fileobj=io.BytesIO(data)) as deb:
            for name in ("changelog.Debian.gz", "changelog.gz"):
                path = f"usr/share/doc/{package}/{name}"
                try:
                    packed = deb.data.get_file(path, follow_symlinks=True)
                except DebError:
                    continue
                with gzip.GzipFile(fileobj=packed) as unpacked:
                    text = unpacked.read(LIMIT + 1)
                if len(text) <= LIMIT:
                    # What is below an entry that is not understood has no place in the order.
                    entries = Changelog(text.decode("utf-8", "replace"))
                    return tuple(map(_update, itertools.takewhile(_has_version, entries)))
    except Exception:  # whatever three readers make of a damaged archive
        pass
    return ()


def _update(entry: ChangeBlock) -> Update:
    cves = dict.fromkeys(id.upper() for id in _CVE.findall("\n".join(entry.changes())))
    distributions = tuple((entry.distributions or "").split())
    try:
        day = parsedate_to_datetime(entry.date or "").astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        day = None
    return Update(str(entry.version), distributions, day, tuple(cves))


def _has_version(entry: ChangeBlock) -> bool:
    try:
        return entry.package is not None and bool(str(entry.version))
    except ValueError:
        return False
