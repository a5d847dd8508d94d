"""Debian's own fixes, from a made-up suite on a real HTTP server: its files are real ones."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pytest
from made_images import Files, archive, made

from labapp import feedback
from labapp.errors import VulnerabilityError
from labapp.feedback import QuietFeedback
from labapp.inside import debian_mirror
from labapp.inside.debian_mirror import (
    Suite,
    keep_snapshot,
    parse_snapshot,
    security_suites,
)
from labapp.inside.fixes import Release
from labapp.inside.image import Contents
from labapp.inside.known import MIRRORS, known, snapshot

TRIXIE = "ID=debian\nVERSION_ID=13\nVERSION='13 (trixie)'\nVERSION_CODENAME=trixie\n"
BOOKWORM = TRIXIE.replace("13", "12").replace("trixie", "bookworm")
INDEX = "dists/trixie-security/main/binary-amd64/Packages.xz"
RELEASE = "dists/trixie-security/InRelease"
EXPAT_FILE = "pool/libexpat1_2.9.0-1~deb13u1_amd64.deb"


# What a mirror serves


def entry(source: str, version: str, suite: str, day: str, *lines: str) -> str:
    """An entry of a changelog (deb-changelog(5)); ``day`` is as in ``12 Sep 2025``."""
    changes = "\n".join(f"  * {line}" for line in lines)
    when = datetime.strptime(day, "%d %b %Y").strftime("%a, %d %b %Y")
    return (
        f"{source} ({version}) {suite}; urgency=medium\n\n{changes}\n\n"
        f" -- A Person <person@example.org>  {when} 12:00:00 +0200\n"
    )


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


@dataclass
class Mirror:
    """A mirror on this machine; what is in ``files`` can be spoiled."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    moved: str = ""
    packages: list[str] = field(default_factory=list)

    def add(self, source: str, package: str, version: str, content: str | Files | bytes) -> None:
        """Add a package: the text of its changelog, other files, or a file that is none."""
        if isinstance(content, str):
            name = f"usr/share/doc/{package}/changelog.Debian.gz"
            content = {name: gzip.compress(content.encode())}
        data = content if isinstance(content, bytes) else deb(content)
        path = f"pool/{package}_{version}_amd64.deb"
        self.files[path] = data
        self.packages.append(
            f"Package: {package}\n"
            + (f"Source: {source}\n" if source != package else "")
            + f"Version: {version}\nArchitecture: amd64\nFilename: {path}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
        self.publish()

    def publish(self, index: bytes | None = None, *, by_hash: bool = False, size: int = 0) -> None:
        """Write the index and the release file that lists it."""
        if index is None:
            index = lzma.compress("\n".join(self.packages).encode(), preset=0)
        digest = hashlib.sha256(index).hexdigest()
        self.files[INDEX] = index
        if by_hash:
            del self.files[INDEX]
            self.files[f"{INDEX.rpartition('/')[0]}/by-hash/SHA256/{digest}"] = index
        self.files[RELEASE] = (
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n"
            "Origin: Debian\nCodename: trixie-security\nDate: Sat, 21 Nov 2026 00:53:03 UTC\n"
            + ("Acquire-By-Hash: yes\n" if by_hash else "")
            + f"SHA256:\n {digest} {size or len(index)} main/binary-amd64/Packages.xz\n"
            "-----BEGIN PGP SIGNATURE-----\n\niQ\n-----END PGP SIGNATURE-----\n"
        ).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[], Mirror]]:
    """Make mirrors, each below a path of its own on one server."""
    mirrors: dict[str, Mirror] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, name, path = self.path.split("/", 2)
            mirror = mirrors[name]
            mirror.asked.append(path)
            body = mirror.files.get(path)
            self.send_response(302 if mirror.moved else 404 if body is None else 200)
            self.send_header("Location", mirror.moved)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def make() -> Mirror:
        name = f"m{len(mirrors)}"
        mirrors[name] = Mirror(f"http://127.0.0.1:{listening.server_port}/{name}")
        return mirrors[name]

    yield make
    listening.shutdown()
    thread.join()
    listening.server_close()


OPENSSL = "\n".join(
    [
        entry("openssl", "3.5.1-1+deb13u3", "trixie-security", "3 Feb 2026", "Fix CVE-2026-0003."),
        entry(
            "openssl", "3.5.1-1+deb13u2", "trixie-security", "2 Dec 2025",
            "CVE-2025-0002: mend the mending of CVE-2025-0001", "cve-2025-0022 too",
        ),
        entry("openssl", "3.5.1-1+deb13u1", "trixie", "1 Sep 2025", "Mends CVE-2025-0001."),
        entry("openssl", "3.5.1-1", "unstable", "1 Jul 2025", "New upstream, CVE-2025-9999"),
        entry("openssl", "3.5.0-1", "unstable", "1 May 2025", "CVE-2025-9998, CVE-2026-0003"),
    ]
)  # fmt: skip
"""An update names a CVE that an older entry has named already: CVE-2026-0003."""

EXPAT = "\n".join(
    [
        entry("expat", "2.9.0-1~deb13u1", "trixie-security", "9 Oct 2026", "Rebuild for trixie"),
        entry("expat", "2.9.0-1", "unstable", "5 Oct 2026", "CVE-2026-0101"),
        entry("expat", "2.8.0-1", "unstable", "5 Jan 2026", "CVE-2026-0102"),
        entry("expat", "2.7.1-2", "unstable", "5 May 2025", "CVE-2025-0103"),
    ]
)

LINUX = "\n".join(
    [
        entry("linux", "6.12.50-1", "trixie-security", "4 Mar 2026", "CVE-2026-1001 CVE-2026-1002"),
        entry("linux", "6.12.38-1", "unstable", "4 Jul 2025", "CVE-2025-1000"),
    ]
)


@pytest.fixture
def mirror(server: Callable[[], Mirror]) -> Mirror:
    made = server()
    made.add("openssl", "libssl3", "3.5.1-1+deb13u3", OPENSSL)
    made.add("openssl", "libssl-dev", "3.5.1-1+deb13u3", {"usr/share/doc/libssl-dev": "-> libssl3"})
    made.add("openssl", "libssl-old", "3.5.1-1+deb13u1", "")
    made.add("expat", "libexpat1", "2.9.0-1~deb13u1", EXPAT)
    made.add("linux", "linux-libc-dev", "6.12.50-1", LINUX)
    made.add("aide", "aide", "0.19.1-2+deb13u5", "")
    return made


@pytest.fixture(autouse=True)
def told() -> Iterator[QuietFeedback]:
    """What the lab says."""
    quiet = QuietFeedback()
    with feedback.using(quiet):
        yield quiet


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
    line = f"deb {mirror.url} trixie-security main\n"
    return made(
        {
            "etc/os-release": system,
            "etc/apt/sources.list": "# nothing\n",
            "etc/apt/sources.list.d/security.list": line if apt is None else apt,
            "var/lib/dpkg/status": status,
            "usr/lib/python3/expat-1.dist-info/METADATA": "Name: expat\nVersion: 1\n",
        }
    )


def test_what_is_missing_and_what_was_fixed_since_the_release(
    mirror: Mirror, tmp_path: Path
) -> None:
    report = known(installed(mirror), folder=tmp_path)
    found = report.rows.groupby(["source_package", "state"])["cve"].unique().map(set)
    assert found.to_dict() == {
        ("openssl", "since release"): {"CVE-2025-0001"},
        ("openssl", "missing"): {"CVE-2025-0002", "CVE-2025-0022"},
        ("expat", "since release"): {"CVE-2026-0101", "CVE-2026-0102"},
        ("linux", "missing"): {"CVE-2026-1001", "CVE-2026-1002"},
    }
    assert set(report.rows[report.rows["cve"] == "CVE-2025-0001"]["package"]) == {
        "libssl3",
        "openssl",
    }
    assert (report.missing, report.since_release, report.header_cves) == (2, 5, 2)
    assert report.notes == ()
    assert report.source == "Debian's own fixes"
    assert report.date == datetime(2026, 11, 21, 0, 53, 3, tzinfo=UTC)
    row = report.rows.set_index(["cve", "package"]).loc[("CVE-2025-0002", "libssl3")]
    assert row.drop("headers").to_dict() == {
        "source_package": "openssl",
        "installed": "3.5.1-1+deb13u1",
        "fixed": "3.5.1-1+deb13u2",
        "date": pd.Timestamp("2025-12-02 10:00:00"),
        "state": "missing",
        "source": "Debian's own fixes",
        "severity": "",
    }
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
        ("bash", "5.2.37-2", 0, 0),
    ],
)
def test_versions_are_compared_as_debian_does(
    mirror: Mirror, tmp_path: Path, source: str, version: str, missing: int, since_release: int
) -> None:
    report = known(installed(mirror, [(source, source, version)]), folder=tmp_path)
    assert (report.missing, report.since_release) == (missing, since_release)
    assert report.header_cves == 0
    assert list(report.by_month.columns) == ["month", "cves"]
    assert report.by_month.empty == (since_release == 0)


def age(folder: Path, hours: float = 5) -> None:
    """Make what was read of an index something that was read some hours ago."""
    (index,) = folder.glob("*.json.gz")
    when = index.stat().st_mtime - hours * 3600
    os.utime(index, (when, when))


def renew_expat(mirror: Mirror) -> None:
    newer = entry("expat", "2.9.1-1~deb13u1", "trixie-security", "9 Nov 2026", "CVE-2026-0100")
    mirror.add("expat", "libexpat1", "2.9.1-1~deb13u1", f"{newer}\n{EXPAT}")


def test_a_second_look_asks_the_mirror_only_after_hours(mirror: Mirror, tmp_path: Path) -> None:
    image = installed(mirror)
    first = known(image, folder=tmp_path)
    assert len(mirror.asked) == 6, "InRelease, the index, libssl-dev, libssl3, expat, linux"
    for hours, asked in ((0, []), (3, []), (5, [RELEASE]), (0, []), (-1, [RELEASE])):
        mirror.asked.clear()
        age(tmp_path, hours)
        assert known(image, folder=tmp_path).rows.equals(first.rows)
        assert mirror.asked == asked, hours
    age(tmp_path)
    # A new index, and of the changelogs only the one that is new.
    renew_expat(mirror)
    mirror.asked.clear()
    assert known(image, folder=tmp_path).missing == first.missing + 1
    assert mirror.asked == [RELEASE, INDEX, "pool/libexpat1_2.9.1-1~deb13u1_amd64.deb"]


def test_an_index_by_its_hash_and_a_cache_that_can_not_be_written(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.publish(by_hash=True)
    (tmp_path / "file").touch()
    assert known(installed(mirror), folder=tmp_path / "file").missing == 2


def test_damaged_files_of_the_cache_are_noticed_and_read_again(
    mirror: Mirror, tmp_path: Path
) -> None:
    image = installed(mirror)
    first = known(image, folder=tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 5
    for number, file in enumerate(files):
        data = file.read_bytes()
        half = len(data) // 2
        file.write_bytes([data[:half], b"", data[:half] + b"!" + data[half + 1 :]][number % 3])
    assert known(image, folder=tmp_path).rows.equals(first.rows)
    mirror.asked.clear()
    known(image, folder=tmp_path)
    assert mirror.asked == []


def test_a_file_that_went_from_the_mirror_since_the_index_was_read(
    mirror: Mirror, tmp_path: Path
) -> None:
    known(installed(mirror, [("openssl", "openssl", "3.5.1-1")]), folder=tmp_path)
    renew_expat(mirror)
    del mirror.files[EXPAT_FILE]
    image = installed(mirror, [("libexpat1", "expat", "2.9.0-1~deb13u1")])
    assert known(image, folder=tmp_path, source="debian").missing == 1


# Bad mirrors


def change(path: str, how: Callable[[bytes], bytes]) -> Callable[[Mirror], None]:
    return lambda mirror: mirror.files.update({path: how(mirror.files[path])})


def flipped(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


def packages(text: bytes) -> Callable[[Mirror], None]:
    return lambda mirror: mirror.publish(lzma.compress(text))


def redirect(to: str) -> Callable[[Mirror], None]:
    return lambda mirror: setattr(mirror, "moved", to)


BAD = {
    "no suite": (lambda mirror: mirror.files.clear(), "InRelease"),
    "no package": (lambda mirror: mirror.files.pop(EXPAT_FILE), EXPAT_FILE),
    "a log-in page": (change(RELEASE, lambda data: b"<html>Please log in.</html>\n"), "InRelease"),
    "no such architecture": (
        change(RELEASE, lambda data: data.replace(b"amd64", b"sparc")),
        "binary-amd64",
    ),
    "index altered": (change(INDEX, flipped), "Packages.xz"),
    "package altered": (change(EXPAT_FILE, flipped), EXPAT_FILE),
    "an index that is no xz": (lambda mirror: mirror.publish(b"no xz"), "trixie-security"),
    "a stanza without its file": (packages(b"Package: x\nVersion: 1\n"), "trixie-security"),
    "a version that is none": (packages(b"Package: x\nVersion: a b\n"), "trixie-security"),
    "redirects in a circle": (redirect("InRelease"), "InRelease"),
    "a redirect to no address": (redirect("http://[::bad/"), "InRelease"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", BAD)
def test_a_bad_mirror_gives_no_verdict(mirror: Mirror, tmp_path: Path, spoil: str) -> None:
    how, fact = BAD[spoil]
    how(mirror)
    with pytest.raises(VulnerabilityError) as error:
        known(installed(mirror), folder=tmp_path)
    assert fact in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "file"),
    [
        (packages(bytes(500_001)), "Packages.xz"),
        (change(RELEASE, lambda data: data + bytes(500_001)), "InRelease"),
        (lambda mirror: mirror.publish(os.urandom(500_001), size=10**15), "Packages.xz"),
    ],
    ids=("unpacked", "release file", "claimed"),
)
def test_no_file_is_read_without_a_limit(
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Mirror], None],
    file: str,
) -> None:
    monkeypatch.setattr(debian_mirror, "LIMIT", 500_000)
    spoil(mirror)
    with pytest.raises(VulnerabilityError, match=file):
        known(installed(mirror), folder=tmp_path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@127.0.0.1:9", "'http://127.0.0.1:9/"),
        ("http://[::bad/d", "'http://[::bad/d/"),
        ("http://a..b/d", "'http://a..b/d/"),
        ("http://localhost:99999/d", "'http://localhost:99999/d/"),
    ],
)
def test_a_mirror_that_cannot_be_reached(tmp_path: Path, url: str, shown: str) -> None:
    with pytest.raises(VulnerabilityError) as error:
        known(installed(Mirror(url)), folder=tmp_path)
    assert shown in str(error.value)
    assert "secret" not in str(error.value)


def test_the_next_mirror_is_asked_when_one_fails_but_not_thousands(
    server: Callable[[], Mirror], mirror: Mirror, tmp_path: Path
) -> None:
    good = f"deb {mirror.url} trixie-security main\n"
    empty = [server() for _ in range(MIRRORS + 2)]
    lines = [f"deb {each.url} trixie-security main\n" for each in empty]
    apt = "".join([*lines[: MIRRORS - 1], good])
    assert known(installed(mirror, apt=apt), folder=tmp_path).missing == 2
    for each in empty:
        each.asked.clear()
    with pytest.raises(VulnerabilityError):
        known(installed(mirror, apt="".join(lines)), folder=tmp_path, source="debian")
    assert [len(each.asked) for each in empty] == [1] * MIRRORS + [0, 0]


# Changelogs that can't be read


def changelog(data: bytes) -> bytes:
    return deb({"usr/share/doc/libexpat1/changelog.Debian.gz": data})


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"no archive", id="no archive"),
        pytest.param(deb({})[:-40], id="cut off"),
        pytest.param(deb({"usr/share/doc/other/changelog.Debian.gz": b""}), id="no changelog"),
        pytest.param(changelog(b"?"), id="no gzip"),
        pytest.param(changelog(gzip.compress(EXPAT.encode())[:-20]), id="gzip cut off"),
        pytest.param(changelog(gzip.compress(b"\xff\0 no\n")), id="no changelog's text"),
        pytest.param(deb({"usr/share/doc/libexpat1": "-> libexpat1"}), id="a link in a circle"),
    ],
)
def test_a_changelog_that_cannot_be_read_is_told(
    mirror: Mirror, tmp_path: Path, data: bytes
) -> None:
    mirror.add("expat", "libexpat1", "2.9.9-1", data)
    for _ in range(2):
        report = known(installed(mirror), folder=tmp_path)
        (note,) = report.notes
        assert "'expat'" in note
        assert report.missing == 2


ZLIB = entry("zlib", "1.3-1+deb13u1", "trixie-security", "7 Apr 2026", "CVE-2026-0300")
ODD_ZLIB = entry("zlib", "so:old", "unstable", "7 Apr 2016", "CVE-2026-0300")


@pytest.mark.parametrize(
    ("name", "text", "dated"),
    [
        ("changelog.gz", ZLIB, True),  # of a native package
        ("changelog.Debian.gz", f"{ZLIB}\nzlib, old\n{ODD_ZLIB}", True),
        ("changelog.Debian.gz", ZLIB.replace("Tue, 07 Apr", "soon"), False),
        ("changelog.Debian.gz", ZLIB.replace("2026 12:00", "9999 12:00"), False),
    ],
    ids=("native", "a heading that is none", "no date", "no date on earth"),
)
def test_odd_changelogs_still_count(
    mirror: Mirror, tmp_path: Path, name: str, text: str, dated: bool
) -> None:
    content = {f"usr/share/doc/zlib1g/{name}": gzip.compress(text.encode())}
    mirror.add("zlib", "zlib1g", "1.3-1+deb13u1", content)
    report = known(installed(mirror, [("zlib1g", "zlib", "1.3-1")]), folder=tmp_path)
    assert (report.missing, report.notes) == (1, ())
    assert not dated or list(report.by_month["cves"])[-1] == 1


def test_a_version_that_cannot_be_compared_is_told(mirror: Mirror, tmp_path: Path) -> None:
    rows = [("libssl3", "openssl", "so_new"), ("libexpat1", "expat", "2.8.0-1")]
    report = known(installed(mirror, rows), folder=tmp_path)
    assert ["'so_new'" in note for note in report.notes] == [True]
    assert report.missing == 1


# Images without a verdict


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"apt": ""}, "'trixie-security'"),
        ({"apt": "deb http://localhost trixie main"}, "'trixie-security'"),
        ({"system": ""}, "os-release"),
        ({"system": "ID=alpine\nVERSION_ID=3.20"}, "'alpine'"),
        ({"system": "ID=debian\nVERSION_CODENAME=forky"}, "'debian'"),
        ({"rows": ()}, "no Debian packages"),
        ({"apt": "deb http://m/\x1b[31m trixie-security main"}, "'trixie-security'"),
        ({"apt": "deb http://m/ trixie-security \x1b[31m"}, "'trixie-security'"),
        ({"apt": "\0\n: a\nTypes: deb\nURIs:\n\ufffd"}, "'trixie-security'"),
    ],
)
def test_no_verdict_is_not_a_zero(
    mirror: Mirror, tmp_path: Path, options: dict[str, Any], fact: str
) -> None:
    with pytest.raises(VulnerabilityError, match=fact):
        known(installed(mirror, **options), folder=tmp_path)


MAIN = Suite("http://m/d", "trixie-security", ("main",))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("deb http://m/d trixie-security main", [MAIN]),
        (
            "  deb [arch=amd64 signed-by=/a.gpg] https://m/d/ trixie-security main contrib # x\n"
            "deb-src http://m/d trixie-security main\n#deb http://n/d trixie-security main\n"
            "deb cdrom:[Debian] trixie-security main\ndeb file:/d trixie-security main\nnonsense",
            [Suite("https://m/d", "trixie-security", ("main", "contrib"))],
        ),
        (
            "Types: deb deb-src\n# a comment\nURIs: http://m/d http://n/d\n"
            "Suites: trixie-security\nComponents: main\nSigned-By: /a.gpg\n\n"
            "Types: deb-src\nURIs: http://o/d\nSuites: trixie-security\nComponents: main\n\n"
            "Types: deb\nURIs: http://p/d\nSuites: trixie-security\nEnabled: no\n",
            [MAIN, Suite("http://n/d", "trixie-security", ("main",))],
        ),
    ],
)
def test_apts_configuration(text: str, found: list[Suite]) -> None:
    assert list(security_suites([text, text], Release("13", "trixie"))) == found


# Snapshots, and what was last read


def carry(folder: Path, *images: Contents, cache: str = "other") -> None:
    """Take a snapshot of images in one lab to the folder of another."""
    keep_snapshot(parse_snapshot(snapshot(images, folder=folder / cache), "s"), folder=folder)


def test_a_snapshot_tells_the_same_without_the_mirror(
    mirror: Mirror, tmp_path: Path, told: QuietFeedback
) -> None:
    image = installed(mirror)
    live = known(image, folder=tmp_path / "live")
    carry(tmp_path, installed(mirror, [("libssl3", "openssl", "3.5.1-1+deb13u1")]), image)
    mirror.files.clear()
    report = known(image, folder=tmp_path, source="snapshot")
    assert report.source == "Debian's own fixes, last read"
    assert set(report.rows["source"]) == {report.source}
    assert report.rows.drop(columns="source").equals(live.rows.drop(columns="source"))
    assert (report.date, report.notes) == (live.date, ())
    assert known(image, folder=tmp_path).rows.equals(report.rows)
    (line,) = told.lines
    assert "404" in line
    assert "2026-11-21" in line


def test_a_snapshot_says_what_it_does_not_cover(mirror: Mirror, tmp_path: Path) -> None:
    base = installed(mirror, [("bash", "bash", "5.2.37-2"), ("openssl", "openssl", "3.5.1-1")])
    carry(tmp_path, base)
    assert known(base, folder=tmp_path, source="snapshot").notes == ()
    report = known(installed(mirror), folder=tmp_path, source="snapshot")
    assert [name for name in ("expat", "linux") if name in str(report.notes)] == ["expat", "linux"]
    assert report.missing == 2


def test_auto_takes_what_was_last_read_when_the_mirror_is_down(
    mirror: Mirror, tmp_path: Path, told: QuietFeedback
) -> None:
    image = installed(mirror)
    live = known(image, folder=tmp_path)
    age(tmp_path)
    mirror.files.clear()
    report = known(image, folder=tmp_path)
    assert report.source == "Debian's own fixes, last read"
    assert (report.date, report.missing) == (live.date, live.missing)
    assert "404" in told.lines[0]
    # Nothing that was read tells of the first one, or of another release.
    for other, source in (
        (installed(mirror, [("aide", "aide", "0.19.1-2")]), "auto"),
        (image, "debian"),
        (installed(mirror, system=BOOKWORM), "snapshot"),
    ):
        with pytest.raises(VulnerabilityError):
            known(other, folder=tmp_path, source=source)


def test_the_newer_of_snapshot_and_last_read_counts(mirror: Mirror, tmp_path: Path) -> None:
    image = installed(mirror)
    known(image, folder=tmp_path)
    age(tmp_path)
    for day, found in (("Sun, 22", 22), ("Fri, 20", 22), ("Mon, 23", 23)):
        mirror.publish()
        mirror.files[RELEASE] = mirror.files[RELEASE].replace(b"Sat, 21", day.encode())
        carry(tmp_path, image, cache=day)
        assert known(image, folder=tmp_path, source="snapshot").date.day == found
    # It counts as read long ago, so that the mirror is asked where there is one.
    mirror.asked.clear()
    known(image, folder=tmp_path)
    assert RELEASE in mirror.asked


def test_auto_judges_an_image_without_apt_by_what_was_read_for_another(
    mirror: Mirror, tmp_path: Path, told: QuietFeedback
) -> None:
    live = known(installed(mirror), folder=tmp_path)
    report = known(installed(mirror, apt=""), folder=tmp_path)
    assert report.source == live.source
    assert report.rows.equals(live.rows)
    assert told.lines == []
    with pytest.raises(VulnerabilityError, match="'bookworm-security'"):
        known(installed(mirror, apt="", system=BOOKWORM), folder=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 2, "files": {"../../x": {"updates": []}}}',
        '{"format": 2, "files": {"trixie-security-amd64-1.json.gz": {"sources": {}}}}',
        '{"format": 2, "files": {"changelogs/%s.json.gz": {"updates": [["1"]]}}}' % ("a" * 64),
    ],
    ids=("empty", "a list", "no format", "no files", "elsewhere", "no date", "odd updates"),
)
def test_a_snapshot_that_cannot_be_read(content: str) -> None:
    with pytest.raises(VulnerabilityError, match=r"'a\.tar/s'"):
        parse_snapshot(gzip.compress(content.encode()), "a.tar/s")
    assert parse_snapshot(gzip.compress(b'{"format": 1}'), "of an earlier lab") == {}
