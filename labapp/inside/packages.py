"""What files say of the system and of what dpkg, apk and Python's installers installed in it.

Sources: dpkg(1) and dpkg-query(1) ("/var/lib/dpkg"), the Alpine wiki's "Apk spec" (the installed
database), the Python packaging specification "Recording installed projects", and os-release(5).
"""

from __future__ import annotations

import contextlib
import csv
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from typing import NamedTuple

KINDS = {"deb": "Debian", "apk": "Alpine", "python": "Python"}
"""What is looked for, by the kind's name; packages of npm, gem, Java or Go, or of rpm, are not."""

LISTS = ("/var/lib/dpkg/status", "/lib/apk/db/installed", "/usr/lib/apk/db/installed")
"""The files that name all packages of a distribution."""
OS_RELEASES = ("/etc/os-release", "/usr/lib/os-release")
APT_SOURCES = "/etc/apt/sources.list"

MAX_TEXT = 64 * 1024
"""How many bytes are read of a text, such as os-release, or of what a distribution says first."""

JOIN = "\0"
"""What no path has inside: one long text is kept and read sooner than many short ones."""

_STANZAS = re.compile(r"\n[ \t\r]*\n")
_SOURCE = re.compile(r"(\S+)(?: +\((\S+)\))?")
_ASSIGNMENT = re.compile(r"\s*(\w+)=(.*)")
_DPKG_FIELDS = ["Package", "Version", "Status", "Source", "Architecture", "Installed-Size"]


class Package(NamedTuple):
    """A row of the table of packages, without the layer."""

    name: str
    version: str
    kind: str
    source: str
    source_version: str
    architecture: str = ""
    unpacked_bytes: int = 0


@dataclass
class Document:
    """What one file says: ``owned`` are each package's own paths, joined; ``broken`` is a count."""

    packages: list[Package] = field(default_factory=list)
    owned: dict[str, str] = field(default_factory=dict)
    text: str = ""
    broken: int = 0

    def paths(self) -> list[str]:
        """Return all packages' own paths."""
        return JOIN.join(self.owned.values()).split(JOIN)


Spend = Callable[[int], None]
Reader = Callable[[str, str, Spend], Document]
"""What reads a file from its path and its text, and tells what that takes in bytes of memory."""


def reader(path: str) -> Reader | None:
    """Return what reads a file of that path; None for one that says nothing.

    What is broken is counted and left out.
    """
    folder, _, name = path.rpartition("/")
    if name.endswith(".egg-info"):
        return _metadata
    if folder.endswith((".dist-info", ".egg-info")):
        return {"METADATA": _metadata, "PKG-INFO": _metadata, "RECORD": _record}.get(name)
    if folder == "/var/lib/dpkg/info":
        return _dpkg_list if name.endswith(".list") else None
    if folder == "/var/lib/dpkg/status.d":
        return _md5sums if name.endswith(".md5sums") else _dpkg
    if path in LISTS:
        return _dpkg if path == LISTS[0] else _apk
    if path.startswith(APT_SOURCES) and path.endswith((".list", ".sources")):
        return text
    return text if path in OS_RELEASES else None


def os_release(text: str) -> Mapping[str, str]:
    """Read the assignments of an os-release file; a line that is none is left out."""
    found = {}
    for match in filter(None, map(_ASSIGNMENT.fullmatch, text.splitlines())):
        with contextlib.suppress(ValueError):  # quotes without an end
            found[match[1]] = "".join(shlex.split(match[2], comments=True)[:1])
    return found


def text(path: str, content: str, spend: Spend) -> Document:
    """Keep a file's text as it is."""
    return Document(text=content)


def _joined(paths: Iterable[str], spend: Spend) -> str:
    kept = []
    for path in paths:
        spend(200 + 3 * len(path))
        kept.append(path)
    return JOIN.join(kept)


def _dpkg_list(path: str, text: str, spend: Spend) -> Document:
    name = posixpath.basename(path).removesuffix(".list").partition(":")[0]
    return Document(owned={name: JOIN.join(text.splitlines())})


def _md5sums(path: str, text: str, spend: Spend) -> Document:
    name = posixpath.basename(path).removesuffix(".md5sums")
    paths = (line.partition("  ")[2] for line in text.splitlines())
    return Document(owned={name: _joined((f"/{path}" for path in paths if path), spend)})


def _dpkg(path: str, text: str, spend: Spend) -> Document:
    from debian.deb822 import Deb822

    found = Document()
    for stanza in filter(str.strip, _STANZAS.split(text)):
        spend(1000)
        fields: Mapping[str, str] = {}
        with contextlib.suppress(ValueError):
            fields = Deb822(stanza, fields=_DPKG_FIELDS)
        name, version = fields.get("Package", ""), fields.get("Version", "")
        if fields.get("Status", "").endswith((" config-files", " not-installed")):
            continue
        if f"{name} {version}".split() != [name, version]:
            found.broken += 1
            continue
        source = _SOURCE.fullmatch(fields.get("Source", "").strip())
        package = Package(
            name,
            version,
            "deb",
            source=source[1] if source else name,
            source_version=(source[2] if source else None) or version,
            architecture=fields.get("Architecture", ""),
            unpacked_bytes=_count(fields.get("Installed-Size", "")) * 1024,
        )
        found.packages.append(package)
    return found


def _apk(path: str, text: str, spend: Spend) -> Document:
    found = Document()
    for stanza in _STANZAS.split(text):
        spend(1000)
        fields: dict[str, str] = {}
        folder, paths = "", []
        for line in stanza.splitlines():
            letter, _, value = line.partition(":")
            if letter == "F":
                folder = value
            elif letter == "R":
                spend(200 + 3 * len(folder))
                paths.append(posixpath.normpath(f"/{folder}/{value}"))
            else:
                fields.setdefault(letter, value)
        name, version = fields.get("P"), fields.get("V")
        if not name or not version:
            found.broken += bool(stanza.strip())
            continue
        source, size = fields.get("o") or name, _count(fields.get("I", ""))
        package = Package(name, version, "apk", source, version, fields.get("A", ""), size)
        found.packages.append(package)
        found.owned[name] = JOIN.join(paths)
    return found


def _metadata(path: str, text: str, spend: Spend) -> Document:
    """Read a Python distribution's core metadata; its length is what RECORD says."""
    headers = HeaderParser().parsestr(text[:MAX_TEXT].partition("\n\n")[0])
    name, version = str(headers.get("Name", "")).strip(), str(headers.get("Version", "")).strip()
    if not name or not version:
        return Document(broken=1)
    return Document([Package(name, version, "python", name, version)])


def _record(path: str, text: str, spend: Spend) -> Document:
    """Read the files of a Python distribution, whose name METADATA spells better."""
    site, folder = posixpath.split(posixpath.dirname(path))
    name = folder.rpartition(".")[0].partition("-")[0]
    try:
        lines = (line for line in text.splitlines() if len(line) < 10_000)
        rows = [row[0] for row in csv.reader(lines) if row]
    except csv.Error:
        return Document(broken=1)
    paths = (posixpath.normpath(posixpath.join(site, row)) for row in rows)
    return Document(owned={name: _joined(paths, spend)})


def _count(digits: str) -> int:
    return int(digits) if digits.strip().isdecimal() and len(digits) < 16 else 0
