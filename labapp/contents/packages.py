"""Package databases: what dpkg, apk and Python's installers write down about what they installed.

Sources: dpkg(1) and dpkg-query(1) ("/var/lib/dpkg"), the Alpine wiki's "Apk spec" (the installed
database), and the Python packaging specification "Recording installed projects".
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from typing import TypedDict

from debian.deb822 import Deb822

DPKG_STATUS = "/var/lib/dpkg/status"
DPKG_STATUS_FOLDER = "/var/lib/dpkg/status.d"
APK_DATABASES = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")

_STANZAS = re.compile(r"\n[ \t\r]*\n")
_SOURCE = re.compile(r"(\S+)(?: +\((\S+)\))?")
_DPKG_LIST = re.compile(r"/var/lib/dpkg/info/([^/]+)\.list")
_DPKG_SUMS = re.compile(r"/var/lib/dpkg/status\.d/([^/]+)\.md5sums")
_PYTHON = re.compile(
    r"(?P<home>.*/(?P<name>[^/]+?)(?:-[^/]*)?\.(?:dist|egg)-info)(?:/(?P<file>METADATA|PKG-INFO|RECORD))?"
)
_DPKG_FIELDS = ["Package", "Version", "Status", "Source", "Architecture", "Installed-Size"]
_NOT_THERE = {"config-files", "not-installed"}


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
        return path == DPKG_STATUS or bool(
            path.startswith(DPKG_STATUS_FOLDER + "/") or _DPKG_LIST.fullmatch(path)
        )
    if path.endswith(("-info/METADATA", "-info/PKG-INFO", "-info/RECORD", ".egg-info")):
        return _PYTHON.fullmatch(path) is not None
    return path in APK_DATABASES


def is_distribution_database(path: str) -> bool:
    """Tell if a path is one of dpkg's or apk's lists of packages."""
    if path.startswith(DPKG_STATUS_FOLDER + "/"):
        return not path.endswith(".md5sums")
    return is_whole_database(path)


def is_whole_database(path: str) -> bool:
    """Tell if a path is that of a file with all packages, not of a folder's file for each."""
    return path == DPKG_STATUS or path in APK_DATABASES


def parse(path: str, content: bytes) -> Found:
    """Read a database file; what is broken in it is counted and left out.

    Args:
        path: where it is in the image, which tells what it is.
        content: its bytes; what is not UTF-8 becomes U+FFFD.
    """
    text = content.decode("utf-8", "replace")
    if match := _DPKG_LIST.fullmatch(path):
        lines = text.splitlines()
        return Found(owned={match[1].partition(":")[0]: [each for each in lines if each != "/."]})
    if match := _DPKG_SUMS.fullmatch(path):
        sums = (line.partition("  ") for line in text.splitlines())
        return Found(owned={match[1]: [f"/{name}" for _, _, name in sums if name]})
    if path in APK_DATABASES:
        return _apk(text)
    if match := _PYTHON.fullmatch(path):
        if match["file"] == "RECORD":
            return _record(match["home"], match["name"], text)
        return _metadata(text)
    return _dpkg(text)


def _dpkg(text: str) -> Found:
    found = Found()
    for stanza in _STANZAS.split(text):
        if not stanza.strip():
            continue
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
        found.packages.append(
            Package(
                name=name,
                version=version,
                kind="deb",
                source=source[1] if source else name,
                source_version=(source[2] if source else None) or version,
                architecture=fields.get("Architecture", ""),
                unpacked_bytes=_count(fields.get("Installed-Size", "")) * 1024,
            )
        )
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
        found.packages.append(
            Package(
                name=name,
                version=version,
                kind="apk",
                source=fields.get("o") or name,
                source_version=version,
                architecture=fields.get("A", ""),
                unpacked_bytes=_count(fields.get("I", "")),
            )
        )
    return found


def _metadata(text: str) -> Found:
    """Read a Python distribution's core metadata; its length is what RECORD says."""
    headers = HeaderParser().parsestr(text.partition("\n\n")[0])
    name, version = str(headers.get("Name", "")).strip(), str(headers.get("Version", "")).strip()
    if not name or not version:
        return Found(broken=1)
    package = Package(
        name=name,
        version=version,
        kind="python",
        source=name,
        source_version=version,
        architecture="",
        unpacked_bytes=0,
    )
    return Found(packages=[package])


def _record(home: str, name: str, text: str) -> Found:
    site = posixpath.dirname(home)
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except csv.Error:
        return Found(broken=1)
    return Found(owned={name: [posixpath.normpath(posixpath.join(site, row[0])) for row in rows]})


def python_home(path: str) -> str:
    """Return the folder (or file) that stands for a Python distribution; empty for another path."""
    match = _PYTHON.fullmatch(path)
    return match["home"] if match else ""


def rows_with_layers(
    versions: Mapping[int, Iterable[Package]],
) -> list[tuple[Package, int]]:
    """Tell for each package of a database's last version which layer it came with.

    Args:
        versions: by layer number, lowest first, what the database held as that layer wrote it.
    """
    since: dict[tuple[str, str, str], int] = {}
    last: list[Package] = []
    for number, packages in versions.items():
        last = list(packages)
        since = {key: since.get(key, number) for key in map(_identity, last)}
    return [(package, since[_identity(package)]) for package in last]


def _identity(package: Package) -> tuple[str, str, str]:
    return package["name"], package["architecture"], package["version"]


def _count(digits: str) -> int:
    return int(digits) if digits.strip().isdecimal() and len(digits) < 16 else 0
