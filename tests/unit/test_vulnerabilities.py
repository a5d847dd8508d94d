"""Debian's own fixes, from a made-up suite on a real HTTP server: its files are real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp import vulnerabilities
from labapp.errors import VulnerabilityError
from labapp.feedback import QuietFeedback
from labapp.registry.reader import RegistryImage
from labapp.vulnerabilities import apt_sources, changelogs, debian_security
from labapp.vulnerabilities.apt_sources import Release, Suite

TRIXIE = Release("13", "trixie")
OS_RELEASE = {
    "ID": "debian",
    "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)",
    "VERSION": "13 (trixie)",
    "VERSION_ID": "13",
    "VERSION_CODENAME": "trixie",
}
INDEX = "dists/trixie-security/main/binary-amd64/Packages.xz"
RELEASE = "dists/trixie-security/InRelease"


# What a mirror serves


def entry(source: str, version: str, suite: str, day: str, *lines: str) -> str:
    """An entry of a changelog (deb-changelog(5)); ``day`` is as in ``12 Sep 2025``."""
    changes = "\n".join(f"  * {line}" for line in lines)
    when = datetime.strptime(day, "%d %b %Y").strftime("%a, %d %b %Y")
    return (
        f"{source} ({version}) {suite}; urgency=medium\n\n{changes}\n\n"
        f" -- A Person <person@example.org>  {when} 12:00:00 +0200\n"
    )


def tar(files: Mapping[str, bytes | str]) -> bytes:
    """A tar, packed, with its folders; a text is where a link leads."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w:xz", preset=0) as packer:
        for folder in sorted({parent for name in files for parent in PurePosixPath(name).parents}):
            member = tarfile.TarInfo(f"./{folder}")
            member.type = tarfile.DIRTYPE
            packer.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                packer.addfile(member)
            else:
                member.size = len(content)
                packer.addfile(member, io.BytesIO(content))
    return result.getvalue()


def deb(files: Mapping[str, bytes | str]) -> bytes:
    """A package's file (deb(5)): an ar archive of three members."""
    members = {"debian-binary": b"2.0\n", "control.tar.xz": tar({}), "data.tar.xz": tar(files)}
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
    packages: list[str] = field(default_factory=list)

    def add(
        self,
        package: str,
        version: str,
        content: bytes | Mapping[str, bytes | str],
        source: str = "",
    ) -> str:
        """Add a package with the text of its changelog or with other files; return its path."""
        if isinstance(content, bytes):
            content = {f"usr/share/doc/{package}/changelog.Debian.gz": gzip.compress(content)}
        path = f"pool/{package}_{version.replace(':', '%3a')}_amd64.deb"
        self.add_file(package, version, path, deb(content), source)
        return path

    def add_file(
        self, package: str, version: str, path: str, data: bytes, source: str = ""
    ) -> None:
        self.files[path] = data
        self.packages.append(
            f"Package: {package}\n"
            + (f"Source: {source}\n" if source else "")
            + f"Version: {version}\nArchitecture: amd64\nFilename: {path}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
        self.publish()

    def publish(self, index: bytes | None = None, *, by_hash: bool = False, size: int = 0) -> None:
        """Write the index and the release file that lists it."""
        index = (
            lzma.compress("\n".join(self.packages).encode(), preset=0) if index is None else index
        )
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
            mirrors[name].asked.append(path)
            body = mirrors[name].files.get(path)
            self.send_response(404 if body is None else 200)
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
).encode()  # fmt: skip
"""An update names a CVE that an older entry has named already: CVE-2026-0003."""

EXPAT = "\n".join(
    [
        entry("expat", "2.9.0-1~deb13u1", "trixie-security", "9 Oct 2026", "Rebuild for trixie"),
        entry("expat", "2.9.0-1", "unstable", "5 Oct 2026", "CVE-2026-0101"),
        entry("expat", "2.8.0-1", "unstable", "5 Jan 2026", "CVE-2026-0102"),
        entry("expat", "2.7.1-2", "unstable", "5 May 2025", "CVE-2025-0103"),
    ]
).encode()

LINUX = "\n".join(
    [
        entry("linux", "6.12.50-1", "trixie-security", "4 Mar 2026", "CVE-2026-1001 CVE-2026-1002"),
        entry("linux", "6.12.38-1", "unstable", "4 Jul 2025", "CVE-2025-1000"),
    ]
).encode()


@pytest.fixture
def mirror(server: Callable[[], Mirror]) -> Mirror:
    made = server()
    made.add("libssl3", "3.5.1-1+deb13u3", OPENSSL, "openssl")
    made.add("libssl-dev", "3.5.1-1+deb13u3", {"usr/share/doc/libssl-dev": "libssl3"}, "openssl")
    made.add("libssl-old", "3.5.1-1+deb13u1", b"", "openssl")
    made.add("libexpat1", "2.9.0-1~deb13u1", EXPAT, "expat")
    made.add("linux-libc-dev", "6.12.50-1", LINUX, "linux")
    made.add("aide", "0.19.1-2+deb13u5", b"", "")
    return made


# What an image has


@dataclass(frozen=True)
class Installed:
    """What the lab reads of an image, as far as Debian's fixes are judged by it."""

    packages: pd.DataFrame
    apt_sources: tuple[str, ...]
    os_release: Mapping[str, str]

    @property
    def image(self) -> RegistryImage:
        raise AssertionError("only a scanner needs the image itself")


def installed(mirror: Mirror, rows: Sequence[tuple[str, str, str]] = ()) -> Installed:
    """An image whose packages are (name, source, source's version)."""
    rows = rows or [
        ("libssl3", "openssl", "3.5.1-1+deb13u1"),
        ("openssl", "openssl", "3.5.1-1+deb13u1"),
        ("libexpat1", "expat", "2.9.0-1~deb13u1"),
        ("linux-libc-dev", "linux", "6.12.38-1"),
        ("bash", "bash", "5.2.37-2"),
    ]
    packages = pd.DataFrame(rows, columns=["name", "source", "source_version"])
    packages = packages.assign(kind="deb", architecture="amd64", version="+b1")
    packages.loc[len(packages)] = ["pip", "expat", "1", "python", "", "1"]
    line = f"deb {mirror.url} trixie-security main\n"
    return Installed(packages, ("# nothing\n", line), OS_RELEASE)


@pytest.fixture
def known(tmp_path: Path) -> Callable[..., vulnerabilities.Report]:
    def ask(image: Installed, **options: object) -> vulnerabilities.Report:
        options = {"folder": tmp_path, "feedback": QuietFeedback(), **options}
        return vulnerabilities.known(image, **options)  # type: ignore[arg-type]

    return ask


Known = Callable[..., vulnerabilities.Report]


def states(report: vulnerabilities.Report) -> dict[tuple[str, str], str]:
    rows = report.rows
    return dict(zip(zip(rows["cve"], rows["package"], strict=True), rows["state"], strict=True))


def test_what_is_missing_and_what_was_fixed_since_the_release(mirror: Mirror, known: Known) -> None:
    report = known(installed(mirror))
    assert states(report) == {
        ("CVE-2025-0001", "libssl3"): "since release",
        ("CVE-2025-0001", "openssl"): "since release",
        ("CVE-2025-0002", "libssl3"): "missing",
        ("CVE-2025-0002", "openssl"): "missing",
        ("CVE-2025-0022", "libssl3"): "missing",
        ("CVE-2025-0022", "openssl"): "missing",
        ("CVE-2026-0101", "libexpat1"): "since release",
        ("CVE-2026-0102", "libexpat1"): "since release",
        ("CVE-2026-1001", "linux-libc-dev"): "missing",
        ("CVE-2026-1002", "linux-libc-dev"): "missing",
    }
    assert (report.missing, report.since_release, report.header_cves) == (2, 5, 2)
    assert report.without_cve == 1, "expat's rebuild"
    assert report.notes == ()
    assert report.source == "Debian's own fixes"
    assert report.date == datetime(2026, 11, 21, 0, 53, 3, tzinfo=UTC)
    assert "lower bound" in report.blind
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


def test_an_image_that_is_up_to_date_lacks_nothing(mirror: Mirror, known: Known) -> None:
    report = known(installed(mirror, [("openssl", "openssl", "3.5.1-1+deb13u3")]))
    assert (report.missing, report.since_release, report.header_cves) == (0, 3, 0)
    assert report.without_cve == 0


def test_an_image_of_packages_without_updates(mirror: Mirror, known: Known) -> None:
    report = known(installed(mirror, [("bash", "bash", "5.2.37-2")]))
    assert (report.missing, report.since_release, len(report.rows)) == (0, 0, 0)
    assert list(report.by_month.columns) == ["month", "cves"]
    assert report.by_month.empty


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        ("3.5.1-1+deb13u2", 0),
        ("3.5.1-1", 3),
        ("3.4.0-1", 6),
        ("3.5.1-1+deb13u2+derived1", 0),
        ("1:1.0-1", 0),
    ],
)
def test_versions_are_compared_as_debian_does(
    mirror: Mirror, known: Known, version: str, missing: int
) -> None:
    assert known(installed(mirror, [("openssl", "openssl", version)])).missing == missing


def age(folder: Path, hours: float = 5) -> None:
    """Make a cache's index one that was read some hours ago."""
    (index,) = folder.glob("index-*")
    when = index.stat().st_mtime - hours * 3600
    os.utime(index, (when, when))


def test_a_second_look_asks_the_mirror_only_after_hours(
    mirror: Mirror, known: Known, tmp_path: Path
) -> None:
    first = known(installed(mirror))
    assert len(mirror.asked) == 6, "InRelease, the index, libssl-dev, libssl3, expat, linux"
    for hours, asked in ((0, []), (3, []), (5, [RELEASE]), (0, []), (-1, [RELEASE])):
        mirror.asked.clear()
        age(tmp_path, hours)
        assert known(installed(mirror)).rows.equals(first.rows)
        assert mirror.asked == asked, hours
    age(tmp_path)
    # A new index, and of the changelogs only the one that is new.
    newer = entry("expat", "2.9.1-1~deb13u1", "trixie-security", "9 Nov 2026", "CVE-2026-0100")
    mirror.add("libexpat1", "2.9.1-1~deb13u1", newer.encode() + b"\n" + EXPAT, "expat")
    mirror.asked.clear()
    assert known(installed(mirror)).missing == first.missing + 1
    assert mirror.asked == [RELEASE, INDEX, "pool/libexpat1_2.9.1-1~deb13u1_amd64.deb"]


def test_an_index_by_its_hash(mirror: Mirror, known: Known) -> None:
    mirror.publish(by_hash=True)
    assert known(installed(mirror)).missing == 2


def test_a_damaged_cache_is_noticed_and_read_again(
    mirror: Mirror, known: Known, tmp_path: Path
) -> None:
    first = known(installed(mirror))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 5
    for number, file in enumerate(files):
        data = file.read_bytes()
        half = len(data) // 2
        file.write_bytes([data[:half], b"", data[:half] + b"!" + data[half + 1 :]][number % 3])
    assert known(installed(mirror)).rows.equals(first.rows)
    mirror.asked.clear()
    known(installed(mirror))
    assert mirror.asked == []


def test_a_file_that_went_from_the_mirror_since_the_index_was_read(
    mirror: Mirror, known: Known
) -> None:
    known(installed(mirror, [("openssl", "openssl", "3.5.1-1")]))
    newer = entry("expat", "2.9.1-1~deb13u1", "trixie-security", "9 Nov 2026", "CVE-2026-0100")
    mirror.add("libexpat1", "2.9.1-1~deb13u1", newer.encode() + b"\n" + EXPAT, "expat")
    del mirror.files[EXPAT_FILE]
    assert known(installed(mirror, [("libexpat1", "expat", "2.9.0-1~deb13u1")])).missing == 1


def test_what_cannot_be_kept_costs_time_only(mirror: Mirror, known: Known, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert known(installed(mirror), folder=tmp_path / "file").missing == 2


# Bad mirrors


def _spoil_nothing(mirror: Mirror) -> None:
    mirror.files.clear()


def _lose_a_package(mirror: Mirror) -> None:
    del mirror.files["pool/libexpat1_2.9.0-1~deb13u1_amd64.deb"]


def _log_in(mirror: Mirror) -> None:
    mirror.files[RELEASE] = b"<html><body>Welcome! Please log in.</body></html>\n"


def _list_no_index(mirror: Mirror) -> None:
    mirror.files[RELEASE] = mirror.files[RELEASE].replace(b"binary-amd64", b"binary-sparc")


def _flip(path: str) -> Callable[[Mirror], None]:
    def spoil(mirror: Mirror) -> None:
        data = bytearray(mirror.files[path])
        data[len(data) // 2] ^= 1
        mirror.files[path] = bytes(data)

    return spoil


def _lengthen(path: str) -> Callable[[Mirror], None]:
    return lambda mirror: mirror.files.update({path: mirror.files[path] + bytes(1_000_000)})


def _shorten(path: str) -> Callable[[Mirror], None]:
    return lambda mirror: mirror.files.update({path: mirror.files[path][:-1]})


EXPAT_FILE = "pool/libexpat1_2.9.0-1~deb13u1_amd64.deb"


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        pytest.param(_spoil_nothing, "InRelease': the mirror answers 404", id="no suite"),
        pytest.param(_lose_a_package, "expat.*: the mirror answers 404", id="no package"),
        pytest.param(_log_in, "log-in page", id="a log-in page"),
        pytest.param(_list_no_index, "lists no 'main/binary-amd64", id="no such architecture"),
        pytest.param(_flip(INDEX), "not those that the suite's index lists", id="index altered"),
        pytest.param(_lengthen(INDEX), "not those that", id="index longer"),
        pytest.param(_shorten(INDEX), "not those that", id="index cut off"),
        pytest.param(_flip(EXPAT_FILE), "expat.* not those that", id="package altered"),
        pytest.param(_lengthen(EXPAT_FILE), "expat.* not those that", id="package longer"),
        pytest.param(_shorten(EXPAT_FILE), "expat.* not those that", id="package cut off"),
        pytest.param(
            lambda mirror: mirror.files.update({RELEASE: bytes(9_000_000)}),
            "longer than 8,388,608 bytes",
            id="endless release file",
        ),
        pytest.param(
            lambda mirror: mirror.publish(size=10**15),
            "claims 1,000,000,000,000,000 bytes",
            id="an index of a petabyte",
        ),
        pytest.param(
            lambda mirror: mirror.publish(b"no xz"), "index .* can't be read", id="index no xz"
        ),
        pytest.param(
            lambda mirror: mirror.publish(lzma.compress(b"Package: x\nVersion: 1\n")),
            "index .* can't be read: 'Filename'",
            id="a stanza without its file",
        ),
        pytest.param(
            lambda mirror: mirror.publish(lzma.compress(b"Package: x\nVersion: a b\n")),
            "index .* can't be read",
            id="a version that is none",
        ),
    ],
)
def test_a_bad_mirror_gives_no_verdict(
    mirror: Mirror, known: Known, spoil: Callable[[Mirror], None], cause: str
) -> None:
    spoil(mirror)
    with pytest.raises(VulnerabilityError, match=cause):
        known(installed(mirror))


def test_an_index_that_unpacks_to_too_much(
    mirror: Mirror, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian_security, "UNPACKED_LIMIT", 500_000)
    mirror.publish(lzma.compress(bytes(500_001)))
    with pytest.raises(VulnerabilityError, match="too long"):
        known(installed(mirror))


def test_a_mirror_that_is_down_and_has_a_password(known: Known) -> None:
    image = installed(Mirror("http://me:secret@127.0.0.1:9"))
    with pytest.raises(VulnerabilityError, match=r"'http://127\.0\.0\.1:9/.*can't be reached") as e:
        known(image)
    assert "secret" not in str(e.value)


def test_a_second_mirror_is_asked_when_the_first_fails(
    server: Callable[[], Mirror], mirror: Mirror, known: Known
) -> None:
    image = installed(mirror)
    empty = f"deb {server().url} trixie-security main"
    assert known(replace(image, apt_sources=(empty, *image.apt_sources))).missing == 2


# Changelogs that can't be read


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no archive", id="no archive"),
        pytest.param(deb({})[:-40], id="cut off"),
        pytest.param(deb({"usr/share/doc/other/changelog.Debian.gz": b""}), id="no changelog"),
        pytest.param(deb({"usr/share/doc/libexpat1/changelog.Debian.gz": b"?"}), id="no gzip"),
        pytest.param(
            deb({"usr/share/doc/libexpat1/changelog.Debian.gz": gzip.compress(EXPAT)[:-20]}),
            id="gzip cut off",
        ),
        pytest.param(
            deb({"usr/share/doc/libexpat1/changelog.Debian.gz": gzip.compress(b"\xff\0 no\n")}),
            id="no changelog's text",
        ),
        pytest.param(deb({"usr/share/doc/libexpat1": "libexpat1"}), id="a link in a circle"),
    ],
)
def test_a_changelog_that_cannot_be_read_is_told(mirror: Mirror, known: Known, data: bytes) -> None:
    mirror.add_file("libexpat1", "2.9.9-1", "pool/broken.deb", data, "expat")
    report = known(installed(mirror))
    assert report.notes == ("the changelog of 'expat' can't be read",)
    assert report.missing == 2
    assert known(installed(mirror)).notes == report.notes


def test_a_changelog_of_a_native_package(mirror: Mirror, known: Known) -> None:
    text = entry("apt", "3.0.3+deb13u1", "trixie-security", "7 Apr 2026", "CVE-2026-0200")
    name = "usr/share/doc/apt/changelog.gz"
    mirror.add("apt", "3.0.3+deb13u1", {name: gzip.compress(text.encode())})
    assert known(installed(mirror, [("apt", "apt", "3.0.3")])).missing == 1


@given(st.binary(max_size=40), st.integers(0, 400))
def test_a_damaged_package_raises_nothing(noise: bytes, where: int) -> None:
    good = deb({"usr/share/doc/libexpat1/changelog.Debian.gz": gzip.compress(EXPAT)})
    data = good[:where] + noise + good[where + len(noise) :]
    assert isinstance(changelogs.parse(io.BytesIO(data), "libexpat1"), tuple)


def test_an_entry_with_a_wrong_heading_is_passed_over(mirror: Mirror, known: Known) -> None:
    new = entry("zlib", "1.3-1+deb13u1", "trixie-security", "7 Apr 2026", "CVE-2026-0300")
    old = entry("zlib", "so:old", "unstable", "7 Apr 2016", "CVE-2026-0300")
    mirror.add("zlib1g", "1.3-1+deb13u1", f"{new}\nzlib, old\n{old}".encode(), "zlib")
    report = known(installed(mirror, [("zlib1g", "zlib", "1.3-1")]))
    assert (report.missing, report.notes) == (1, ())


def test_an_entry_without_a_date_still_counts(mirror: Mirror, known: Known) -> None:
    text = entry("zlib", "1.3-1+deb13u1", "trixie-security", "7 Apr 2026", "CVE-2026-0300")
    mirror.add("zlib1g", "1.3-1+deb13u1", text.replace("Tue, 07 Apr", "soon").encode(), "zlib")
    report = known(installed(mirror, [("zlib1g", "zlib", "1.3-1")]))
    assert report.missing == 1
    assert report.rows["date"].isna().all()
    assert report.by_month.empty


def test_a_version_that_cannot_be_compared_is_told(mirror: Mirror, known: Known) -> None:
    rows = [("libssl3", "openssl", "so new"), ("libexpat1", "expat", "2.8.0-1")]
    report = known(installed(mirror, rows))
    assert report.notes == ("the version 'so new' of 'openssl' can't be compared with a fix",)
    assert report.missing == 1


# Images without a verdict


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"apt_sources": ()}, "names no mirror with 'trixie-security'"),
        ({"apt_sources": ("deb http://localhost trixie main",)}, "names no mirror with"),
        ({"os_release": {}}, "'a system without os-release'"),
        ({"os_release": {"ID": "alpine", "VERSION_ID": "3.20"}}, "'alpine'"),
        ({"os_release": {"ID": "debian", "VERSION_CODENAME": "forky"}}, "only releases of Debian"),
    ],
)
def test_no_verdict_is_not_a_zero(
    mirror: Mirror, known: Known, change: dict[str, object], cause: str
) -> None:
    with pytest.raises(VulnerabilityError, match=cause):
        known(replace(installed(mirror), **change))


def test_an_image_without_debian_packages(mirror: Mirror, known: Known) -> None:
    image = installed(mirror)
    image = replace(image, packages=image.packages[image.packages["kind"] == "python"])
    with pytest.raises(VulnerabilityError, match="lists no Debian packages"):
        known(image)


def test_an_image_without_apt_is_judged_by_its_bases_mirror(mirror: Mirror, known: Known) -> None:
    image = installed(mirror)
    assert known(replace(image, apt_sources=()), sources_of=image).missing == 2


# apt's configuration


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "deb http://m/d trixie-security main",
            [Suite("http://m/d", "trixie-security", ("main",))],
        ),
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
            [
                Suite("http://m/d", "trixie-security", ("main",)),
                Suite("http://n/d", "trixie-security", ("main",)),
            ],
        ),
        ("deb http://m/d trixie/updates main", [Suite("http://m/d", "trixie/updates", ("main",))]),
    ],
)
def test_apts_configuration(text: str, found: list[Suite]) -> None:
    assert list(apt_sources.security_suites([text, text], TRIXIE)) == found


@given(st.lists(st.text(), max_size=3))
def test_any_configuration_names_mirrors_or_none(texts: list[str]) -> None:
    with pytest.raises(VulnerabilityError, match="names no mirror"):
        apt_sources.security_suites(texts, TRIXIE)


def test_an_old_os_release_has_its_codename_in_brackets() -> None:
    fields = {"ID": "debian", "VERSION_ID": "8", "VERSION": "8 (jessie)"}
    assert apt_sources.release(fields) == Release("8", "jessie")


# Snapshots


def test_a_snapshot_tells_the_same_without_the_mirror(
    mirror: Mirror, known: Known, tmp_path: Path
) -> None:
    image = installed(mirror)
    live = known(image)
    path = tmp_path / "snapshot.json.gz"
    part = replace(image, packages=image.packages.iloc[:2])
    vulnerabilities.save_snapshot(
        path, [part, image], folder=tmp_path / "cache", feedback=QuietFeedback()
    )
    mirror.files.clear()
    report = known(image, source="snapshot")
    assert report.source == "Debian's own fixes, snapshot of 2026-11-21"
    assert set(report.rows["source"]) == {report.source}
    assert report.rows.drop(columns="source").equals(live.rows.drop(columns="source"))
    assert (report.date, report.without_cve) == (live.date, live.without_cve)
    feedback = QuietFeedback()
    empty = tmp_path / "empty"
    auto = known(image, source="auto", folder=empty, snapshot=path, feedback=feedback)
    assert auto.rows.equals(report.rows)
    assert "answers 404" in feedback.lines[0]
    assert feedback.lines[0].endswith("Taken instead: Debian's own fixes, snapshot of 2026-11-21.")


def test_a_snapshot_says_what_it_does_not_cover(
    mirror: Mirror, known: Known, tmp_path: Path
) -> None:
    base = installed(mirror, [("bash", "bash", "5.2.37-2"), ("openssl", "openssl", "3.5.1-1")])
    path = tmp_path / "snapshot.json.gz"
    vulnerabilities.save_snapshot(path, [base], folder=tmp_path, feedback=QuietFeedback())
    assert known(base, source="snapshot").notes == ()
    report = known(installed(mirror), source="snapshot")
    assert report.notes == ("the snapshot does not cover expat, linux",)


def test_auto_takes_what_was_last_read_when_the_mirror_is_down(
    mirror: Mirror, known: Known, tmp_path: Path
) -> None:
    image = installed(mirror)
    live = known(image)
    age(tmp_path)
    mirror.files.clear()
    feedback = QuietFeedback()
    report = known(image, source="auto", feedback=feedback)
    assert report.source == "Debian's own fixes, as of 2026-11-21"
    assert (report.date, report.missing) == (live.date, live.missing)
    assert "answers 404" in feedback.lines[0]
    # Not all of this one's changelogs were read, and there is no snapshot.
    with pytest.raises(VulnerabilityError, match="answers 404"):
        known(installed(mirror, [("aide", "aide", "0.19.1-2")]), source="auto")
    with pytest.raises(VulnerabilityError, match="answers 404"):
        known(image, source="debian")


def test_auto_takes_the_newer_of_snapshot_and_last_read(
    mirror: Mirror, known: Known, tmp_path: Path
) -> None:
    image = installed(mirror)
    known(image)
    age(tmp_path)
    mirror.files[RELEASE] = mirror.files[RELEASE].replace(b"Sat, 21 Nov", b"Sun, 22 Nov")
    path = tmp_path / "newer.json.gz"
    vulnerabilities.save_snapshot(path, [image], folder=tmp_path / "o", feedback=QuietFeedback())
    mirror.files.clear()
    report = known(image, source="auto", snapshot=path)
    assert report.source == "Debian's own fixes, snapshot of 2026-11-22"


def test_auto_judges_an_image_without_apt_by_what_was_read_for_another(
    mirror: Mirror, known: Known
) -> None:
    image = installed(mirror)
    live = known(image)
    feedback = QuietFeedback()
    report = known(replace(image, apt_sources=()), source="auto", feedback=feedback)
    assert report.source == live.source
    assert report.rows.equals(live.rows)
    assert feedback.lines == []
    other = {**OS_RELEASE, "VERSION_ID": "12", "VERSION_CODENAME": "bookworm"}
    with pytest.raises(VulnerabilityError, match="names no mirror with 'bookworm-security'"):
        known(replace(image, apt_sources=(), os_release=other), source="auto")


def test_auto_asks_the_mirror_first(mirror: Mirror, known: Known, tmp_path: Path) -> None:
    (tmp_path / "snapshot.json.gz").write_bytes(b"damaged")
    assert known(installed(mirror), source="auto").source == "Debian's own fixes"


def test_auto_without_mirror_and_snapshot(known: Known) -> None:
    with pytest.raises(VulnerabilityError, match="can't be reached"):
        known(installed(Mirror("http://127.0.0.1:9")), source="auto")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "No such file"),
        (b"", "damaged"),
        (gzip.compress(b"[]"), "damaged"),
        (gzip.compress(b'{"format": 2}'), "damaged"),
        (gzip.compress(b'{"format": 1, "release": ["13", "trixie"]}'), "damaged"),
        (
            gzip.compress(
                b'{"format": 1, "release": ["13", "trixie"], "date": "2026-11-21T00:00:00+00:00",'
                b' "updates": {"a": [["1"]]}, "notes": [], "covers": []}'
            ),
            "damaged",
        ),
    ],
    ids=("missing", "empty", "a list", "another format", "no date", "odd updates"),
)
def test_a_snapshot_that_cannot_be_read(
    mirror: Mirror, known: Known, tmp_path: Path, content: bytes | None, cause: str
) -> None:
    path = tmp_path / "other.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VulnerabilityError, match=cause):
        known(installed(mirror), source="snapshot", snapshot=path)


def test_a_snapshot_is_kept_unless_a_newer_one_is_there(
    mirror: Mirror, known: Known, tmp_path: Path
) -> None:
    path = tmp_path / "carried.json.gz"
    for day, found in (("Sun, 22", 22), ("Sat, 21", 22), ("Mon, 23", 23)):
        mirror.files[RELEASE] = mirror.files[RELEASE].replace(b"Sat, 21", day.encode())
        vulnerabilities.save_snapshot(
            path, [installed(mirror)], folder=tmp_path / day, feedback=QuietFeedback()
        )
        mirror.publish()
        fixes = vulnerabilities.parse_snapshot(path.read_bytes(), "carried")
        vulnerabilities.keep_snapshot(fixes, folder=tmp_path / "lab")
        report = known(installed(mirror), source="snapshot", folder=tmp_path / "lab")
        assert report.date.day == found


def test_a_snapshot_of_another_release(mirror: Mirror, known: Known, tmp_path: Path) -> None:
    image = installed(mirror)
    path = tmp_path / "snapshot.json.gz"
    vulnerabilities.save_snapshot(path, [image], folder=tmp_path, feedback=QuietFeedback())
    other = {**OS_RELEASE, "VERSION_ID": "12", "VERSION_CODENAME": "bookworm"}
    with pytest.raises(VulnerabilityError, match="is of Debian 13, the image of Debian 12"):
        known(replace(image, os_release=other), source="snapshot")


def test_a_snapshot_that_cannot_be_written(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VulnerabilityError, match="writing the snapshot"):
        vulnerabilities.save_snapshot(
            tmp_path / "file" / "s", [installed(mirror)], folder=tmp_path, feedback=QuietFeedback()
        )
