"""Debian's own fixes: what the mirrors that an image names tell of them, and which ones it lacks.

The chain of hashes is checked: ``InRelease`` lists ``Packages.xz``, which lists each ``.deb``, in
which there is the changelog of its source package. The signature of ``InRelease`` is not: the lab
reads fixes from it, and installs nothing. What was read is kept in one file, which is a snapshot.

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
import logging
import lzma
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from debian.changelog import Changelog
from debian.deb822 import Deb822
from debian.deb822 import Release as ReleaseFile
from debian.debfile import DebFile
from debian.debian_support import Version

from labapp import feedback
from labapp.errors import RegistryError, StateError, VulnerabilityError
from labapp.registry.http import Connection, at_once
from labapp.state import write_file

LIMIT = 128 * 1024 * 1024
"""How many bytes a file may have, packed or unpacked: an image names mirrors of its own choice.

The longest of Debian 13's indexes has 57 million.
"""

RELEASE_DAYS = {"11": "2021-08-14", "12": "2023-06-10", "13": "2025-08-09"}
"""When Debian published a release, by its number; a later release just counts less."""

_CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE)
_FIELD = re.compile(rb"^(Package|Source|Version|Filename|Size|SHA256): *(.+)$", re.MULTILINE)
_ONE_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)")
_FILE = "debian.json.gz"

logging.getLogger("debian").setLevel(logging.CRITICAL)  # it prints the lines that it can't read


class Release(NamedTuple):
    """A release of Debian: its number (``13``) and its codename (``trixie``)."""

    number: str
    codename: str

    @property
    def security(self) -> str:
        """The name of its security suite."""
        return f"{self.codename}-security"

    def has_made(self, version: str) -> bool:
        """Tell if a version says that it was made for this release, as in ``3.5.1-1+deb13u1``."""
        return re.search(rf"[+~]deb{re.escape(self.number)}u\d", version) is not None


class Update(NamedTuple):
    """An entry of a source package's changelog; the date may be empty."""

    version: str
    distributions: Sequence[str]
    date: str
    cves: Sequence[str]

    def is_stable(self, release: Release) -> bool:
        """Tell if it was made for a release after its publication, not on the way to it."""
        suite = rf"({release.codename}|stable)(-security|-proposed-updates|-updates)?"
        made_for = any(re.fullmatch(suite, name) for name in self.distributions)
        return release.has_made(self.version) or (made_for and self.is_younger_than(release))

    def is_younger_than(self, release: Release) -> bool:
        """Tell if its date is after that of the release; without a date it is not."""
        return self.date[:10] > RELEASE_DAYS.get(release.number, "9999")


class Fixes(NamedTuple):
    """What a release's suites tell of the source packages that had updates."""

    date: str  # when the security suite was made (ISO 8601, UTC)
    read: float  # when it was read here, in seconds since 1970
    versions: dict[str, str]
    updates: dict[str, list[Update]]  # of those looked into; none if no changelog can be read

    @property
    def is_fresh(self) -> bool:
        """Whether it was read lately; a clock that was set back makes it old."""
        return 0 <= time.time() - self.read < 4 * 3600  # a suite changes about once a day

    def of(self, sources: Set[str]) -> dict[str, list[Update] | None]:
        """Return the updates of those sources that had any; None if they were not read."""
        return {name: self.updates.get(name) for name in sorted(self.versions.keys() & sources)}


@dataclass(frozen=True)
class Suite:
    """A suite on a mirror, as in ``deb http://… trixie-security main``."""

    mirror: str
    name: str
    components: tuple[str, ...]

    @cached_property
    def _connection(self) -> Connection:
        # With no login: neither what the image names, nor what this machine has for that host.
        return Connection(self.mirror, self.mirror)

    def fetch(self, path: str, *, sha256: str | None = None) -> bytes:
        """Return a file below the mirror, which has the hash that lists it."""
        url = f"{self.mirror}/{path}"
        try:
            with self._connection.open("GET", url, doing="reading", expected=range(1000)) as answer:
                if answer.status == 200:
                    answer.read(LIMIT)
        except (RegistryError, ValueError) as error:  # the latter for an address that is none
            raise self.error(path, "the mirror can't be reached") from error
        if answer.status != 200:
            raise self.error(path, f"the mirror answers {answer.status}")
        data = answer.body
        if len(data) > LIMIT:
            raise self.error(path, f"it is longer than {LIMIT:,} bytes")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise self.error(path, "its bytes are not those that the suite's index lists")
        return data

    def error(self, path: str, cause: str) -> VulnerabilityError:
        """Return the error for a file that can't be had, or can't be used."""
        advice = "Try again later, on another network, or take a snapshot."
        return VulnerabilityError(f"reading '{self.mirror}/{path}': {cause}. {advice}")


def suites(texts: Iterable[str], release: Release) -> list[Suite]:
    """Return the release's suites, each on the first mirror that apt's configuration names.

    Security comes first, then where point releases go; what is meant for the next one may be left.
    """
    found: dict[str, Suite] = {}
    for text in texts:
        for mirror, name, components in _suites(text):
            # A disc or a folder of the image can't be read from here; the rest is no address.
            is_url = mirror.startswith(("http://", "https://"))
            if is_url and (mirror + components).isprintable():
                mirror = re.sub(r"(?<=//)[^/?#]*@", "", mirror.rstrip("/"))
                name = name.rstrip("/")
                found.setdefault(name, Suite(mirror, name, tuple(components.split())))
    for name in (release.security, release.codename):
        if name not in found:
            raise VulnerabilityError(
                f"looking up Debian's own fixes: apt names no mirror with '{name}'. Take an "
                "image of that release that has, or load a bundle: 'python3 -m labapp bundle load'."
            )
    names = (release.security, release.codename, f"{release.codename}-updates")
    return [found[name] for name in names if name in found]


def _suites(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the mirrors, suites and components of apt's configuration, in either format."""
    for line in text.splitlines():
        if match := _ONE_LINE.fullmatch(line.partition("#")[0].strip()):
            yield match.groups()
    for stanza in Deb822.iter_paragraphs(text.splitlines()):
        enabled = stanza.get("Enabled", "yes").strip().lower() not in ("no", "false", "0", "off")
        if enabled and "deb" in stanza.get("Types", "").split():
            for mirror in stanza.get("URIs", "").split():
                for name in stanza.get("Suites", "").split():
                    yield mirror, name, stanza.get("Components", "")


# What a suite tells


class Deb(NamedTuple):
    """A binary package's file: its length in bytes, where it is below the mirror, its hash."""

    size: int
    package: str
    path: str
    sha256: str


class Listed(NamedTuple):
    """A source package's newest version, the suite that has it, and the files of that.

    ``is_certain`` that it is an update: a version without a suffix may be as old as the release.
    """

    version: Version
    suite: Suite
    debs: list[Deb]
    is_certain: bool


def read(
    suites: Sequence[Suite], release: Release, architecture: str, sources: Set[str], *, folder: Path
) -> Fixes:
    """Read what suites tell of source packages; what is kept in the folder, where it is fresh."""
    kept = load(folder)
    words = [word for each in suites for word in (each.name, each.mirror, *each.components)]
    key = " ".join((release.security, architecture, *words))
    held = kept.get(key)
    if held and held.is_fresh and None not in held.of(sources).values():
        return held
    listed: dict[str, Listed] = {}
    dates = [_read_index(suite, release, architecture, listed) for suite in suites]
    versions = {name: str(newest.version) for name, newest in listed.items()}
    fixes = kept[key] = Fixes(dates[0], time.time(), versions, {})
    if held:
        same = held.versions.items() & versions.items()
        fixes.updates.update((name, held.updates[name]) for name, _ in same if name in held.updates)
    missing = [name for name, updates in fixes.of(sources).items() if updates is None]
    with feedback.bars("Reading what Debian has fixed since the release", unit="steps") as bars:
        try:
            found = at_once(
                lambda name: _changelog(listed[name].suite, listed[name].debs), missing, threads=6
            )
            for number, (name, updates) in enumerate(found, 1):
                if updates or listed[name].is_certain:
                    fixes.updates[name] = updates
                else:
                    del versions[name]
                bars.update("changelogs", number, len(missing))
        finally:
            _write(kept, folder)
    return fixes


def _read_index(
    suite: Suite, release: Release, architecture: str, listed: dict[str, Listed]
) -> str:
    """Add what the indexes list that a suite's ``InRelease`` lists; return when it was made."""
    path = f"dists/{suite.name}/InRelease"
    data = suite.fetch(path)
    try:
        index = ReleaseFile(data)
        date = _in_utc(index["Date"])
        hashes = {entry["name"]: entry["sha256"] for entry in index["SHA256"]}
        for component in suite.components:
            folder = f"{component}/binary-{architecture}"
            path = f"dists/{suite.name}/{folder}/Packages.xz"
            sha256 = hashes[f"{folder}/Packages.xz"]
            # By its hash, so that a mirror which is just being updated still serves what it listed.
            if index.get("Acquire-By-Hash", "").strip() == "yes":
                path = f"dists/{suite.name}/{folder}/by-hash/SHA256/{sha256}"
            _add_packages(listed, suite.fetch(path, sha256=sha256), suite, release)
    except (lzma.LZMAError, EOFError, KeyError, ValueError, TypeError, OverflowError) as error:
        # A hotel's log-in page answers every address with 200 and a page of its own.
        cause = f"it is not what a Debian mirror has there ({error!r}), perhaps a log-in page"
        raise suite.error(path, cause) from error
    return date


def _add_packages(listed: dict[str, Listed], packed: bytes, suite: Suite, release: Release) -> None:
    """Add the updates in a ``Packages.xz``; of each source, only the newest version's files.

    What the security suite has is one; of the others, what it has as well (the kernel's versions
    have no suffix), what has the suffix, and perhaps what is Debian's own, a version without a dash
    (``dpkg 1.22.22``).
    """
    with lzma.open(io.BytesIO(packed)) as file:
        data = _bounded(file)
    for is_gap, lines in itertools.groupby(io.BytesIO(data), bytes.isspace):
        found = {key: value.decode() for key, value in _FIELD.findall(b"".join(lines))}
        if is_gap:
            continue
        package = found[b"Package"]
        name, _, own = found.get(b"Source", package).partition(" ")
        version = own.strip("()") or found[b"Version"]
        is_certain = suite.name == release.security or release.has_made(version) or name in listed
        if not is_certain and "-" in version:
            continue
        deb = Deb(int(found[b"Size"]), package, found[b"Filename"], found[b"SHA256"].lower())
        newest = Version(version)
        if name not in listed or listed[name].version < newest:
            listed[name] = Listed(newest, suite, [], is_certain)
        if listed[name][:2] == (newest, suite) and deb.size <= LIMIT:
            listed[name].debs.append(deb)


def _bounded(file: lzma.LZMAFile | gzip.GzipFile) -> bytes:
    data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError("it is too long")
    return data


def _in_utc(date: str) -> str:
    return parsedate_to_datetime(date).astimezone(UTC).isoformat()


def _changelog(suite: Suite, debs: Iterable[Deb]) -> list[Update]:
    """Return what the first readable changelog of a source tells; empty if there is none."""
    # Small ones first, behind 'gcc-12-base' and the like: others only link to the changelog of it.
    for deb in sorted(debs, key=lambda deb: (not deb.package.endswith("-base"), deb))[:12]:
        data = suite.fetch(deb.path, sha256=deb.sha256)
        # Three readers may make anything of a damaged archive.
        with contextlib.suppress(Exception), DebFile(fileobj=io.BytesIO(data)) as archive:
            for name in ("changelog.Debian.gz", "changelog.gz"):
                path = f"usr/share/doc/{deb.package}/{name}"
                if archive.data.has_file(path, follow_symlinks=True):
                    packed = archive.data.get_file(path, follow_symlinks=True)
                    with gzip.GzipFile(fileobj=packed) as file:
                        text = _bounded(file).decode("utf-8", "replace")
                    if updates := list(_updates(text)):
                        return updates
    return []


def _updates(text: str) -> Iterator[Update]:
    """Yield what a changelog tells, newest first."""
    for entry in Changelog(text):
        version = day = ""
        with contextlib.suppress(ValueError):
            version = str(entry.version)
        if not (entry.package and version):
            return  # what is below an entry that is not understood has no place in the order
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            day = _in_utc(entry.date or "")
        cves = dict.fromkeys(id.upper() for id in _CVE.findall("\n".join(entry.changes())))
        yield Update(version, (entry.distributions or "").split(), day, list(cves))


# What is kept


def load(folder: Path) -> dict[str, Fixes]:
    """Return what is kept in a folder, by suite, architecture and mirror."""
    with contextlib.suppress(OSError, VulnerabilityError):  # it costs time only
        return parse_snapshot((folder / _FILE).read_bytes(), _FILE)
    return {}


def pack(kept: Mapping[str, Fixes]) -> bytes:
    """Return a snapshot: the bytes of one file, for other machines."""
    return gzip.compress(json.dumps({"suites": kept}).encode(), mtime=0)


def parse_snapshot(data: bytes, name: str) -> dict[str, Fixes]:
    """Read a snapshot from the bytes of the file of that name."""
    try:
        # An earlier lab's has no suites in this form, and is taken for empty.
        suites = json.loads(gzip.decompress(data)).get("suites", {})
        found = {key: Fixes(*fields) for key, fields in suites.items()}
        for fixes in found.values():
            for name, updates in fixes.updates.items():
                fixes.updates[name] = [Update(*fields) for fields in updates]
    except Exception as error:  # whatever gzip, JSON and the types make of other bytes
        raise VulnerabilityError(
            f"reading the snapshot '{name}': it is damaged, or none of this lab. Save it again."
        ) from error
    return found


def keep_snapshot(snapshot: Mapping[str, Fixes], *, folder: Path) -> None:
    """Keep what a snapshot tells of suites, unless newer is there; it counts as read long ago."""
    kept = load(folder)
    for key, fixes in snapshot.items():
        if key not in kept or kept[key].date < fixes.date:
            kept[key] = fixes._replace(read=0.0)
    _write(kept, folder)


def _write(kept: Mapping[str, Fixes], folder: Path) -> None:
    with contextlib.suppress(StateError):  # it costs time only
        write_file(folder / _FILE, pack(kept), mode=0o644)


def verdicts(
    updates: Sequence[Update], installed: str, release: Release
) -> Iterator[tuple[str, str, str, str]]:
    """Yield CVE, fixed version, state and date of what was fixed since the release, or is missing.

    The updates are given newest first; a version that can't be compared is a ValueError.

    An update counts as made since the release down to the first entry of the changelog that went to
    unstable or testing; below one that was made from unstable's version (``2.9-1~deb13u1``), what
    unstable got after the release counts as well, for the update brought it. A CVE belongs to the
    oldest entry that names it, so that an update which only mends an earlier fix does not count
    again. Its date and fixed version are those of the update that brought it to the release.
    """
    has = Version(installed)
    older = (number for number, update in enumerate(updates) if Version(update.version) <= has)
    lacking = next(older, len(updates))
    oldest = {cve: update for update in updates for cve in update.cves}
    since_release, carrier = True, None
    published = RELEASE_DAYS.get(release.number)
    for number, update in enumerate(updates):
        # 2.9-1~deb13u1 brought all of unstable's 2.9-1; what is younger than the release is new.
        stable = update.is_stable(release)
        brought = carrier is not None and update.is_younger_than(release)
        since_release = since_release and (stable or brought)
        if f"~deb{release.number}u" in update.version:
            carrier = update
        if number >= lacking and not since_release:
            break
        by = update if stable or carrier is None else carrier
        state = "missing" if number < lacking else "since release"
        # What was written before the release day, for the release, reached it on that day or later.
        day = by.date
        if day and published:
            day = max(day, f"{published}T00:00:00+00:00")
        for cve in update.cves:
            if oldest[cve] is update:
                yield cve, by.version, state, day
