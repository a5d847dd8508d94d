"""Package databases: what dpkg, apk and Python's installers write down about what they installed.

Sources: dpkg(1) and dpkg-query(1) ("/var/lib/dpkg"), the Alpine wiki's "Apk spec" (the installed
database), the Python packaging specification "Recording installed projects", and os-release(5).
"""

from __future__ import annotations

import csv
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from typing import TypedDict

KINDS = {"deb": "Debian", "apk": "Alpine", "python": "Python"}
"""What is looked for, by the kind's name; packages of npm, gem, Java or Go, or of rpm, are not."""

DPKG_STATUS = "/var/lib/dpkg/status"
DPKG_STATUS_FOLDER = "/var/lib/dpkg/status.d/"
DPKG_LISTS = "/var/lib/dpkg/info/"
APK_DATABASES = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
LISTS = (DPKG_STATUS, *APK_DATABASES)
"""The files that name all packages of a distribution."""

_STANZAS = re.compile(r"\n[ \t\r]*\n")
_SOURCE = re.compile(r"(\S+)(?: +\((\S+)\))?")
_ASSIGNMENT = re.compile(r"\s*(\w+)=(.*)")
_DPKG_FIELDS = ["Package", "Version", "Status", "Source", "Architecture", "Installed-Size"]
_NOT_THERE = {"config-files", "not-installed"}
_PYTHON_FILES = ("METADATA", "PKG-INFO", "RECORD")
_ENDINGS = (*_PYTHON_FILES, ".egg-info", "/installed")


class Package(TypedDict):
    """A row of the table of packages, without the layer."""

    name: str
    version: str
    kind: str
    source: str
    source_version: str
    architecture: str
    unpacked_bytes: int


@dataclass
class Found:
    """What one database file says.

    Attributes:
        packages: the packages that are installed.
        owned: for each package the paths that it says are its own.
        broken: how many records could not be read.
    """

    packages: list[Package] = field(default_factory=list)
    owned: dict[str, list[str]] = field(default_factory=dict)
    broken: int = 0


def is_database(path: str) -> bool:
    """Tell if a path is that of a database file that :func:`parse` reads."""
    if path.startswith("/var/lib/dpkg/"):
        return (
            path == DPKG_STATUS
            or path.startswith(DPKG_STATUS_FOLDER)
            or (path.startswith(DPKG_LISTS) and path.endswith(".list"))
        )
    return path.endswith(_ENDINGS) and (path in APK_DATABASES or python_home(path) != "")


def python_home(path: str) -> str:
    """Return the folder (or file) that stands for a Python distribution; empty for another path."""
    folder, _, name = path.rpartition("/")
    if name in _PYTHON_FILES and folder.endswith((".dist-info", ".egg-info")):
        return folder
    return path if name.endswith(".egg-info") else ""


def parse(path: str, text: str) -> Found:
    """Read a database file, which the path tells; what is broken is counted and left out."""
    name = path.rpartition("/")[2]
    if path.startswith(DPKG_LISTS):
        lines = text.splitlines()
        package = name.removesuffix(".list").partition(":")[0]
        return Found(owned={package: [line for line in lines if line != "/."]})
    if path.startswith(DPKG_STATUS_FOLDER) and name.endswith(".md5sums"):
        sums = (line.partition("  ") for line in text.splitlines())
        return Found(
            owned={name.removesuffix(".md5sums"): [f"/{path}" for *_, path in sums if path]}
        )
    if path in APK_DATABASES:
        return _apk(text)
    home = python_home(path)
    if name == "RECORD":
        return _record(home, text)
    return _metadata(text) if home else _dpkg(text)


def os_release(text: str) -> Mapping[str, str]:
    """Read the assignments of an os-release file; a line that is none is left out."""
    found = {}
    for match in filter(None, map(_ASSIGNMENT.fullmatch, text.splitlines())):
        try:
            found[match[1]] = "".join(shlex.split(match[2], comments=True)[:1])
        except ValueError:  # quotes without an end
            continue
    return found


def with_layers(versions: Mapping[int, Iterable[Package]]) -> list[tuple[Package, int]]:
    """Tell for each package of a database's last version which layer it came with.

    ``versions`` are by layer number, lowest first: the database as that layer wrote it.
    """
    since: dict[tuple[str, str, str], int] = {}
    last: list[tuple[tuple[str, str, str], Package]] = []
    for number, packages in versions.items():
        last = [((each["name"], each["architecture"], each["version"]), each) for each in packages]
        since = {key: since.get(key, number) for key, _ in last}
    return [(package, since[key]) for key, package in last]


def _dpkg(text: str) -> Found:
    from debian.deb822 import Deb822

    found = Found()
    for stanza in filter(str.strip, _STANZAS.split(text)):
        try:
            fields = Deb822(stanza, fields=_DPKG_FIELDS)
        except ValueError:
            found.broken += 1
            continue
        name, version = fields.get("Package", ""), fields.get("Version", "")
        state = fields.get("Status", "installed").split()[-1:]
        if state and state[0] in _NOT_THERE:
            continue
        if not name or not version or any(mark in name + version for mark in "\n \t"):
            found.broken += 1
            continue
        source = _SOURCE.fullmatch(fields.get("Source", "").strip())
        package = _package("deb", name, version, source[1] if source else name)
        package["source_version"] = (source[2] if source else None) or version
        package["architecture"] = fields.get("Architecture", "")
        package["unpacked_bytes"] = _count(fields.get("Installed-Size", "")) * 1024
        found.packages.append(package)
    return found


def _apk(text: str) -> Found:
    found = Found()
    for stanza in _STANZAS.split(text):
        fields: dict[str, str] = {}
        folder, paths = "", []
        for line in stanza.splitlines():
            letter, _, value = line.partition(":")
            if letter == "F":
                folder = value
            elif letter == "R":
                paths.append(posixpath.normpath(f"/{folder}/{value}"))
            else:
                fields.setdefault(letter, value)
        name, version = fields.get("P"), fields.get("V")
        if not name or not version:
            found.broken += bool(stanza.strip())
            continue
        found.owned[name] = paths
        package = _package("apk", name, version, fields.get("o") or name)
        package["architecture"] = fields.get("A", "")
        package["unpacked_bytes"] = _count(fields.get("I", ""))
        found.packages.append(package)
    return found


def _metadata(text: str) -> Found:
    """Read a Python distribution's core metadata; its length is what RECORD says."""
    headers = HeaderParser().parsestr(text.partition("\n\n")[0])
    name, version = str(headers.get("Name", "")).strip(), str(headers.get("Version", "")).strip()
    if not name or not version:
        return Found(broken=1)
    return Found(packages=[_package("python", name, version, name)])


def _record(home: str, text: str) -> Found:
    """Read the files of a Python distribution, whose name METADATA spells better."""
    site, folder = posixpath.split(home)
    name = folder.rpartition(".")[0].partition("-")[0]
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except csv.Error:
        return Found(broken=1)
    return Found(owned={name: [posixpath.normpath(posixpath.join(site, row[0])) for row in rows]})


def _package(kind: str, name: str, version: str, source: str) -> Package:
    return Package(
        name=name,
        version=version,
        kind=kind,
        source=source,
        source_version=version,
        architecture="",
        unpacked_bytes=0,
    )


def _count(digits: str) -> int:
    return int(digits) if digits.strip().isdecimal() and len(digits) < 16 else 0
