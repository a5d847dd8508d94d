"""Known vulnerabilities, from a made-up suite on a real HTTP server."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pytest
from made_images import Files, archive, made
from registries import Reply, Seen, Server, serving

from labapp.errors import VulnerabilityError
from labapp.feedback import QuietFeedback
from labapp.inside import debian_mirror as mirrors
from labapp.inside.image import Contents
from labapp.inside.known import known, snapshot

TRIXIE = "ID=debian\nVERSION_ID=13\nVERSION='13 (trixie)'\nVERSION_CODENAME=trixie\n"
BOOKWORM = TRIXIE.replace("13", "12").replace("trixie", "bookworm")
SECURITY, MAIN = "trixie-security", "trixie"
BOTH = "deb {0} trixie main\ndeb {0} trixie-security main\n"
INDEX = "dists/trixie-security/main/binary-amd64/Packages.xz"
RELEASE = "dists/trixie-security/InRelease"
EXPAT_FILE = "pool/libexpat1_2.9.0-1~deb13u1_amd64.deb"
LINUX_FILE = "pool/linux-libc-dev_6.12.50-1_amd64.deb"


# What a mirror serves


def changelog(source: str, *entries: tuple[str, str, str, str]) -> str:
    """A changelog (deb-changelog(5)), by version, suite, day (``12 Sep 2025``) and change."""
    text = ""
    for version, suite, day, change in entries:
        when = datetime.strptime(day, "%d %b %Y").strftime("%a, %d %b %Y")
        text += (
            f"{source} ({version}) {suite}; urgency=medium\n\n  * {change}\n\n"
            f" -- A Person <person@example.org>  {when} 12:00:00 +0200\n\n"
        )
    return text


AGAIN = "CVE-2025-0002: mend the mending of CVE-2025-0001\n  * cve-2025-0022 too"
OPENSSL = changelog(
    "openssl",
    ("3.5.1-1+deb13u3", "trixie-security", "3 Feb 2026", "Fix CVE-2026-0003."),
    ("3.5.1-1+deb13u2", "trixie-security", "2 Dec 2025", AGAIN),
    ("3.5.1-1+deb13u1", "trixie", "1 Sep 2025", "Mends CVE-2025-0001."),
    ("3.5.1-1", "unstable", "1 Jul 2025", "New upstream, CVE-2025-9999"),
    ("3.5.0-1", "unstable", "1 May 2025", "CVE-2025-9998, CVE-2026-0003"),
)
"""Two updates name CVEs that an older entry has named already."""

EXPAT = changelog(
    "expat",
    ("2.9.0-1~deb13u1", "trixie-security", "9 Oct 2026", "Rebuild for trixie"),
    ("2.9.0-1", "unstable", "5 Oct 2026", "CVE-2026-0101"),
    ("2.8.0-1", "unstable", "5 Jan 2026", "CVE-2026-0102"),
    ("2.7.1-2", "unstable", "5 May 2025", "CVE-2025-0103"),
)
LINUX = changelog(
    "linux",
    ("6.12.50-1", "trixie-security", "4 Mar 2026", "CVE-2026-1001 CVE-2026-1002"),
    ("6.12.38-1", "unstable", "4 Jul 2025", "CVE-2025-1000"),
)
SQLITE = changelog(
    "sqlite3",
    ("3.46.1-7+deb13u1", "trixie", "30 Jul 2025", "CVE-2026-0401"),
    ("3.46.1-7", "unstable", "4 Jul 2025", "CVE-2025-0402"),
)
DPKG = changelog(
    "dpkg",
    ("1.22.22", "trixie", "6 Mar 2026", "CVE-2026-0501"),
    ("1.22.21", "trixie", "1 Jul 2025", "On the way to the release: CVE-2025-0502"),
)
"""Both came with a point release; the version of one of them does not say so."""

ZLIB = changelog("zlib", ("1.3-1+deb13u1", "trixie-security", "7 Apr 2026", "CVE-2026-0300"))
ODD_ZLIB = changelog("zlib", ("so:old", "unstable", "7 Apr 2016", "CVE-2026-0300"))


def deb(files: Files) -> bytes:
    """A package's file (deb(5)): an ar archive of three members."""
    folders = {f"./{parent}/" for name in files for parent in PurePosixPath(name).parents}
    below = {f"./{name}": content for name, content in files.items()}
    data = archive(dict.fromkeys(sorted(folders), "") | below)
    members = {"debian-binary": b"2.0\n", "control.tar": archive({}), "data.tar": data}
    result = b"!<arch>\n"
    for name, data in members.items():
        result += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        result += data + b"\n" * (len(data) % 2)
    return result


def suite(packages: bytes, name: str = SECURITY, *, day: str = "Sat, 21") -> dict[str, bytes]:
    """The files of a suite: its index, and the release file that lists it."""
    digest = hashlib.sha256(packages).hexdigest()
    release = (
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n"
        f"Origin: Debian\nCodename: {name}\nDate: {day} Nov 2026 00:53:03 UTC\n"
        f"SHA256:\n {digest} {len(packages)} main/binary-amd64/Packages.xz\n"
        "-----BEGIN PGP SIGNATURE-----\n\niQ\n-----END PGP SIGNATURE-----\n"
    )
    files = {RELEASE: release.encode(), INDEX: packages}
    return {path.replace(SECURITY, name): content for path, content in files.items()}


class Mirror:
    """A mirror on this machine; what is in ``files`` can be spoiled."""

    def __init__(self, server: Server) -> None:
        self.url, self.server = f"http://{server.address}", server
        self.files: dict[str, bytes | None] = {}
        self.packages: dict[str, list[str]] = {SECURITY: [], MAIN: []}
        server.answer = self.answer

    def answer(self, seen: Seen) -> Reply:
        body = self.files.get(seen.path[1:])
        return Reply(404) if body is None else Reply(body=body)

    def asked(self) -> list[str]:
        """What was asked for since the last time."""
        paths = [seen.path[1:] for seen in self.server.seen]
        self.server.seen.clear()
        return paths

    def add(
        self, source: str, package: str, version: str, content: str | Files | bytes,
        to: str = SECURITY,
    ) -> None:  # fmt: skip
        """Add a package to a suite: the text of its changelog, other files, or a file of none."""
        if isinstance(content, str):
            name = f"usr/share/doc/{package}/changelog.Debian.gz"
            content = {name: gzip.compress(content.encode())}
        data = content if isinstance(content, bytes) else deb(content)
        path = f"pool/{package}_{version}_amd64.deb"
        self.files[path] = data
        self.packages[to].append(
            f"Package: {package}\nSource: {source}\nVersion: {version}\nArchitecture: amd64\n"
            f"Filename: {path}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
        self.files |= suite(self.index(to), to)

    def index(self, name: str = SECURITY) -> bytes:
        return lzma.compress("\n".join(self.packages[name]).encode(), preset=0)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serving(Reply()) as server:
        made = Mirror(server)
        made.add("openssl", "libssl3", "3.5.1-1+deb13u3", OPENSSL)
        made.add(
            "openssl", "libssl-dev", "3.5.1-1+deb13u3", {"usr/share/doc/libssl-dev": "-> libssl3"}
        )
        made.add("openssl", "libssl-old", "3.5.1-1+deb13u1", "")
        made.add("expat", "libexpat1", "2.9.0-1~deb13u1", EXPAT)
        made.add("linux", "linux-libc-dev", "6.12.50-1", LINUX)
        made.add("aide", "aide", "0.19.1-2+deb13u5", "")
        made.add("bash", "bash", "5.2.37-2", ZLIB, MAIN)
        made.add("dpkg", "dpkg", "1.22.22", DPKG, MAIN)
        made.add("netbase", "netbase", "6.5", "", MAIN)
        made.add("openssl", "libssl3", "3.5.0-1", ZLIB, MAIN)
        made.add("sqlite3", "libsqlite3-0", "3.46.1-7+deb13u1", SQLITE, MAIN)
        yield made


# What an image has

ROWS = (
    ("libssl3", "openssl", "3.5.1-1+deb13u1"),
    ("openssl", "openssl", "3.5.1-1+deb13u1"),
    ("libexpat1", "expat", "2.9.0-1~deb13u1"),
    ("linux-libc-dev", "linux", "6.12.38-1"),
    ("bash", "bash", "5.2.37-2"),
)


def installed(
    mirror: Mirror,
    rows: Sequence[tuple[str, str, str]] = ROWS,
    *,
    apt: str | None = None,
    system: str = TRIXIE,
) -> Contents:
    """An image whose packages are (name, source, source's version)."""
    status = "\n".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\n"
        f"Source: {source} ({version})\nVersion: +b1\n"
        for name, source, version in rows
    )
    lines = BOTH.format(mirror.url)
    return made(
        {
            "etc/os-release": system,
            "etc/apt/sources.list": "# nothing\n",
            "etc/apt/sources.list.d/security.list": lines if apt is None else apt,
            "var/lib/dpkg/status": status,
            "usr/lib/python3/expat-1.dist-info/METADATA": "Name: expat\nVersion: 1\n",
        }
    )


@pytest.fixture
def image(mirror: Mirror) -> Contents:
    return installed(mirror)


def test_what_is_missing_and_what_was_fixed_since_the_release(
    image: Contents, tmp_path: Path
) -> None:
    report = known(image, folder=tmp_path)
    found = report.rows.groupby(["source_package", "state"])["cve"].unique().map(set)
    assert found.to_dict() == {
        ("openssl", "since release"): {"CVE-2025-0001"},
        ("openssl", "missing"): {"CVE-2025-0002", "CVE-2025-0022"},
        ("expat", "since release"): {"CVE-2026-0101", "CVE-2026-0102"},
        ("linux", "missing"): {"CVE-2026-1001", "CVE-2026-1002"},
    }
    assert (report.missing, report.since_release, report.notes) == (2, 5, ())
    assert report.source == "Debian's own fixes"
    assert report.date == datetime(2026, 11, 21, 0, 53, 3, tzinfo=UTC)
    rows = report.rows[report.rows["cve"] == "CVE-2025-0002"]
    about = ("openssl", "3.5.1-1+deb13u1", "3.5.1-1+deb13u2", "missing")
    day = pd.Timestamp("2025-12-02 10:00:00")
    assert list(rows.itertuples(index=False, name=None)) == [
        ("CVE-2025-0002", package, *about, day, False) for package in ("libssl3", "openssl")
    ]
    assert list(report.rows[report.rows["headers"]]["package"]) == ["linux-libc-dev"] * 2
    months = report.by_month
    assert list(months["month"]) == list(pd.date_range("2025-09-01", "2026-11-01", freq="MS"))
    # What unstable got in January came to the release in October.
    assert list(months["cves"]) == [1, 1, 1, *[3] * 10, 5, 5]
    assert set(report.rows[report.rows["package"] == "libexpat1"]["fixed"]) == {"2.9.0-1~deb13u1"}


@pytest.mark.parametrize(
    ("source", "version", "missing", "since_release"),
    [
        ("openssl", "3.5.1-1+deb13u3", 0, 3),
        ("openssl", "3.5.1-1+deb13u2", 0, 3),
        ("openssl", "3.5.1-1", 3, 3),
        ("openssl", "3.4.0-1", 6, 6),
        ("openssl", "3.5.1-1+deb13u2+derived1", 0, 3),
        ("openssl", "1:1.0-1", 0, 3),
        ("openssl", "so_new", 0, 0),
        ("bash", "5.2.37-2", 0, 0),
        ("netbase", "6.5", 0, 0),
        ("sqlite3", "3.46.1-7+deb13u1", 0, 1),
        ("sqlite3", "3.46.1-7", 1, 1),
        ("dpkg", "1.22.22", 0, 1),
        ("dpkg", "1.22.21", 1, 1),
    ],
)
def test_versions_are_compared_as_debian_does(
    mirror: Mirror, tmp_path: Path, source: str, version: str, missing: int, since_release: int
) -> None:
    report = known(installed(mirror, [(source, source, version)]), folder=tmp_path)
    assert (report.missing, report.since_release) == (missing, since_release)
    assert list(report.by_month["cves"])[-1:] == [since_release] * (since_release > 0)
    assert ["'so_new'" in note for note in report.notes] == [True] * (version == "so_new")


def test_an_update_written_before_the_release_came_to_it_on_its_day(
    mirror: Mirror, tmp_path: Path
) -> None:
    report = known(installed(mirror, [("sqlite3", "sqlite3", "3.46.1-7")]), folder=tmp_path)
    assert list(report.rows["date"]) == [pd.Timestamp("2025-08-09")]


# What is kept


def age(folder: Path, hours: float = 5) -> None:
    """Make what was read of the suite something that was read some hours ago."""
    kept = mirrors.load(folder).items()
    aged = {key: fixes._replace(read=fixes.read - hours * 3600) for key, fixes in kept}
    next(folder.iterdir()).write_bytes(mirrors.pack(aged))


def test_a_second_look_asks_the_mirror_only_after_hours(
    mirror: Mirror, image: Contents, tmp_path: Path
) -> None:
    folder, few = tmp_path / "all", tmp_path / "few"
    first = known(image, folder=folder)
    again = [RELEASE, INDEX]
    again += [path.replace(SECURITY, MAIN) for path in again]
    asked = mirror.asked()
    assert asked[:4] == again
    assert len(asked) == 8, "and libssl-dev, libssl3, expat, linux"
    for hours, asked in ((0, []), (3, []), (5, again), (0, []), (-1, again)):
        age(folder, hours)
        assert known(image, folder=folder).rows.equals(first.rows)
        assert mirror.asked() == asked, hours
    # A new index, and of the changelogs only the one that is new.
    known(installed(mirror, [("openssl", "openssl", "3.5.1-1")]), folder=few)
    newest = ("2.9.1-1~deb13u1", "trixie-security", "9 Nov 2026", "CVE-2026-0100")
    del mirror.files[EXPAT_FILE]
    mirror.add("expat", "libexpat1", "2.9.1-1~deb13u1", changelog("expat", newest) + EXPAT)
    age(folder)
    mirror.asked()
    assert known(image, folder=folder).missing == first.missing + 1
    assert mirror.asked() == [*again, "pool/libexpat1_2.9.1-1~deb13u1_amd64.deb"]
    # Where a package was not looked into before, the index that counts as new is too old for it:
    # the mirror has its newest version alone.
    report = known(image, folder=few, source="debian")
    assert report.missing == first.missing + 1


# Bad mirrors, and changelogs that can't be read

LONG = 500_000
BAD: dict[str, Mapping[str, bytes | None]] = {
    "no suite": {RELEASE: None},
    "the last package": {LINUX_FILE: None},
    "a log-in page": {RELEASE: b"<html>Please log in.</html>\n"},
    "no such architecture": {RELEASE: suite(b"")[RELEASE].replace(b"amd64", b"sparc"), INDEX: b""},
    "index altered": {INDEX: b"altered"},
    "package altered": {EXPAT_FILE: b"altered"},
    "an index that is no xz": suite(b"no xz"),
    "a stanza without its file": suite(lzma.compress(b"Package: x\nVersion: 1\n")),
    "a version that is none": suite(lzma.compress(b"Package: x\nVersion: a b\n")),
    "long, unpacked": suite(lzma.compress(bytes(LONG + 1))),
    "long, packed": suite(os.urandom(LONG + 1)),
}
"""What a mirror serves instead; the error names the last of the files."""


@pytest.mark.parametrize("files", BAD.values(), ids=list(BAD))
def test_a_bad_mirror_gives_no_verdict(
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: Mapping[str, bytes | None],
) -> None:
    monkeypatch.setattr(mirrors, "LIMIT", LONG)
    mirror.files |= files
    with pytest.raises(VulnerabilityError, match=re.escape([*files][-1])):
        known(installed(mirror), folder=tmp_path)


def holding(data: bytes | str, name: str = "changelog.Debian.gz") -> bytes:
    packed = data if isinstance(data, bytes) else gzip.compress(data.encode())
    return deb({f"usr/share/doc/zlib1g/{name}": packed})


CHANGELOGS = {
    "no archive": (b"no archive", 0, 0),
    "no changelog": (deb({"usr/share/doc/other/changelog.Debian.gz": b""}), 0, 0),
    "gzip cut off": (holding(gzip.compress(ZLIB.encode())[:-20]), 0, 0),
    "no changelog's text": (holding("\0 no\n"), 0, 0),
    "a link in a circle": (deb({"usr/share/doc/zlib1g": "-> zlib1g"}), 0, 0),
    "of a native package": (holding(ZLIB, "changelog.gz"), 1, 1),
    "a heading that is none": (holding(f"{ZLIB}zlib, old\n{ODD_ZLIB}"), 1, 1),
    "no date": (holding(ZLIB.replace("Tue, 07 Apr", "soon")), 1, 0),
    "no date on earth": (holding(ZLIB.replace("2026 12:00", "9999 12:00")), 1, 0),
}
"""By what they are: a package's file, and how many of its CVEs are told, and told with a date."""


@pytest.mark.parametrize(("data", "told", "dated"), CHANGELOGS.values(), ids=list(CHANGELOGS))
def test_a_changelog_counts_or_is_told_to_be_unreadable(
    mirror: Mirror, tmp_path: Path, data: bytes, told: int, dated: int
) -> None:
    mirror.add("zlib", "zlib1g", "1.3-1+deb13u1", data)
    image = installed(mirror, [*ROWS, ("zlib1g", "zlib", "1.3-1")])
    for _ in range(2):
        report = known(image, folder=tmp_path)
        assert ["'zlib'" in note for note in report.notes] == [True] * (1 - told)
        assert (report.missing, list(report.by_month["cves"])[-1]) == (2 + told, 5 + dated)


# Images without a verdict


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"apt": ""}, "'trixie-security'"),
        ({"apt": "deb http://localhost trixie main"}, "'trixie-security'"),
        ({"apt": "deb http://localhost trixie-security main"}, "'trixie'"),
        ({"apt": "deb http://m/\x1b[31m trixie-security main"}, "'trixie-security'"),
        ({"apt": "deb http://m/ trixie-security \x1b[31m"}, "'trixie-security'"),
        ({"apt": "\0\n: a\nTypes: deb\nURIs:\n\ufffd"}, "'trixie-security'"),
        ({"apt": BOTH.format("http://me:secret@127.0.0.1:9")}, "'http://127.0.0.1:9/"),
        ({"apt": BOTH.format("http://[::bad/d")}, "'http://[::bad/d/"),
        ({"system": ""}, "os-release"),
        ({"system": "ID=alpine\nVERSION_ID=3.20"}, "'alpine'"),
        ({"system": "ID=debian\nVERSION_CODENAME=forky"}, "'debian'"),
        ({"rows": ()}, "0 Debian packages"),
    ],
)
def test_no_verdict_is_not_a_zero(
    mirror: Mirror, tmp_path: Path, options: dict[str, Any], fact: str
) -> None:
    with pytest.raises(VulnerabilityError, match=re.escape(fact)) as error:
        known(installed(mirror, **options), folder=tmp_path)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "deb-src http://n/d trixie-security main\n#deb http://n/d trixie-security main\n"
        "deb cdrom:[Debian] trixie-security main\ndeb file:/d trixie-security main\nnonsense\n"
        "  deb [arch=amd64 signed-by=/a.gpg] {0}/ trixie-security/ main # x\ndeb {0} trixie main",
        "Types: deb-src\nURIs: http://o/d\nSuites: trixie-security\nComponents: main\n\n"
        "Types: deb\nURIs: http://p/d\nSuites: trixie-security\nEnabled: no\n\n"
        "Types: deb deb-src\n# a comment\nURIs: {0} http://n/d\n"
        "Suites: trixie trixie-security\nComponents: main\nSigned-By: /a.gpg\n",
    ],
)
def test_apts_configuration_is_read_as_apt_does(mirror: Mirror, tmp_path: Path, text: str) -> None:
    report = known(installed(mirror, apt=text.format(mirror.url)), folder=tmp_path)
    assert (report.missing, report.notes) == (2, ())
    assert {path for path in mirror.asked() if "InRelease" in path} == {
        RELEASE, RELEASE.replace(SECURITY, MAIN),
    }  # fmt: skip


# Snapshots, and what was last read


def test_a_snapshot(mirror: Mirror, image: Contents, tmp_path: Path) -> None:
    here, few = tmp_path / "here", tmp_path / "few"
    # The newer of what is kept and of what it brings counts.
    for day, found in (("Sat, 21", 21), ("Sun, 22", 22), ("Fri, 20", 22)):
        mirror.files |= suite(mirror.index(), day=day)
        packed = snapshot([image], folder=tmp_path / day)
        mirrors.keep_snapshot(mirrors.parse_snapshot(packed, "s"), folder=here)
        report = known(image, folder=here, source="snapshot")
        assert (report.date.day, report.notes) == (found, ())
    # It counts as read long ago, so that the mirror is asked where there is one.
    assert report.source == "Debian's own fixes, last read"
    live = known(image, folder=here)
    assert live.source == "Debian's own fixes"
    assert live.rows.equals(report.rows)
    # It says what it does not cover.
    known(installed(mirror, [("openssl", "openssl", "3.5.1-1")]), folder=few)
    report = known(image, folder=few, source="snapshot")
    assert ["'expat'" in report.notes[0], "'linux'" in report.notes[1]] == [True, True]
    assert report.missing == 2


def test_auto_takes_what_was_last_read_when_the_mirror_is_down(
    mirror: Mirror, image: Contents, tmp_path: Path, told: QuietFeedback
) -> None:
    live = known(image, folder=tmp_path)
    # An image without apt is judged by what was just read for another.
    assert known(installed(mirror, apt=""), folder=tmp_path).rows.equals(live.rows)
    assert "names no mirror" in told.lines.pop()
    age(tmp_path)
    mirror.files.clear()
    report = known(image, folder=tmp_path)
    assert report.source == "Debian's own fixes, last read"
    assert (report.date, report.missing, report.notes) == (live.date, live.missing, ())
    (line,) = told.lines
    assert "404" in line
    assert "2026-11-21" in line
    # Nothing that was read tells of the first one, or of another release.
    for other, source in (
        (installed(mirror, [("aide", "aide", "0.19.1-2")]), "auto"),
        (image, "debian"),
        (installed(mirror, apt="", system=BOOKWORM), "auto"),
        (installed(mirror, system=BOOKWORM), "snapshot"),
    ):
        with pytest.raises(VulnerabilityError):
            known(other, folder=tmp_path, source=source)
