"""Layers put together, and what their files tell: packages, owners, tools, secrets; the cache."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from made_images import Files, Memory, archive, made, put, read
from odd_layers import HIDING, MANY, extension, hdr

from labapp.errors import DamagedContent, RegistryError
from labapp.inside import packages
from labapp.inside.image import Contents
from labapp.inside.layers import MAX_NOTES


def seen(found: Contents) -> dict[str, tuple[int, int]]:
    """Path → layer and bytes of what a container sees, folders aside."""
    rows = found.files[found.files["type"] != "directory"]
    return {path: (n, count) for path, n, count in rows[["path", "layer", "bytes"]].values}


BASE: dict[str, bytes | str] = {"a/": "", "a/one": b"1", "a/b/two": b"22", "c": b"333"}
ONE, TWO, C = {"/a/one": (1, 1)}, {"/a/b/two": (1, 2)}, {"/c": (1, 3)}
AUFS: Files = {".wh..wh.plnk": b"", "a/.wh..wh.aufs": b""}
SHARED: Files = {"a": b"333", "b": "=> a"}


@pytest.mark.parametrize(
    ("layers", "visible", "wasted"),
    [
        ([], {}, []),
        ([BASE], ONE | TWO | C, [0]),
        ([BASE, {"c": b"4444"}], ONE | TWO | {"/c": (2, 4)}, [3, 0]),
        ([BASE, {".wh.c": b""}], ONE | TWO, [3, 0]),
        ([BASE, {".wh.a": b""}], C, [3, 0]),
        # A folder without an entry of its own goes as well.
        ([BASE, {"a/.wh.b": b""}], ONE | C, [2, 0]),
        # Whiteouts are for lower layers only, wherever in the archive they come.
        ([BASE, {"a/new": b"55555", "a/.wh..wh..opq": b""}], {"/a/new": (2, 5)} | C, [3, 0]),
        ([BASE, {"c": b"4", ".wh.c": b""}], ONE | TWO | {"/c": (2, 1)}, [3, 0]),
        # But not below the root, where engines pass over it.
        ([BASE, {".wh..wh..opq": b"", "x": b"1"}], ONE | TWO | C | {"/x": (2, 1)}, [0, 0]),
        # What a folder held goes when a file or a link takes its place.
        ([BASE, {"a": b"file"}], {"/a": (2, 4)} | C, [3, 0]),
        ([BASE, {"a": "-> c"}], {"/a": (2, 0)} | C, [3, 0]),
        # Deleted, and back again.
        ([BASE, {".wh.c": b""}, {"c": b"1"}], ONE | TWO | {"/c": (3, 1)}, [3, 0, 0]),
        ([BASE, {"c": b"1"}, {"c": b"2"}], ONE | TWO | {"/c": (3, 1)}, [3, 1, 0]),
        # Nothing to delete, and aufs' own bookkeeping.
        ([BASE, {".wh.nothing": b"", **AUFS}], ONE | TWO | C, [0, 0]),
        # As engines have it, also where no layer has an entry for the folder, or for one above it.
        ([{"e/x": b"1", "e/y/z": b"2"}, {"e": b"333"}], {"/e": (2, 3)}, [2, 0]),
        ([{"e": b"333"}, {"e/y/z": b"1"}], {"/e/y/z": (2, 1)}, [3, 0]),
        ([{"e": "-> c", "c": b"1"}, {"e/x": b"2"}], {"/c": (1, 1), "/e/x": (2, 1)}, [0, 0]),
        ([{"e": "-> c"}, {"e/": "", "e/x": b"2"}], {"/e/x": (2, 1)}, [0, 0]),
        # A name that only begins alike stays.
        ([{"ab": b"1", "a/x": b"22"}, {".wh.a": b""}], {"/ab": (1, 1)}, [2, 0]),
        # Twice in one layer: the last one counts.
        ([{"x": b"1", "./x": b"22"}], {"/x": (1, 2)}, [0]),
        # Hard links share their bytes.
        ([SHARED], {"/a": (1, 3), "/b": (1, 0)}, [0]),
        # The data stays for as long as one name is visible, and counts there.
        ([SHARED, {".wh.a": b""}], {"/b": (1, 3)}, [0, 0]),
        ([SHARED, {".wh.a": b"", ".wh.b": b""}], {}, [3, 0]),
        ([SHARED, {"a": b"1", "b": b"2"}], {"/a": (2, 1), "/b": (2, 1)}, [3, 0]),
        # A link to a link.
        ([{**SHARED, "c": "=> b"}, {".wh.a": b"", ".wh.b": b""}], C, [0, 0]),
        # A link to what a lower layer has.
        ([{"a": b"333"}, {"b": "=> a"}], {"/a": (1, 3), "/b": (2, 0)}, [0, 0]),
        ([{"a": b"333"}, {"b": "=> a"}, {".wh.a": b""}], {"/b": (2, 3)}, [0, 0, 0]),
        ([{"a": b"333"}, {"b": "=> a"}, {".wh.a": b""}, {".wh.b": b""}], {}, [3, 0, 0, 0]),
        # A link to what the same layer replaces.
        ([{"a": b"333"}, {"a": b"22", "b": "=> a"}, {".wh.a": b""}], {"/b": (2, 2)}, [3, 0, 0]),
        # To nothing, and to itself.
        ([{"b": "=> nothing", "c": "=> c"}], {"/b": (1, 0), "/c": (1, 0)}, [0]),
    ],
)
def test_layers_put_together(
    layers: list[Files], visible: dict[str, tuple[int, int]], wasted: list[int]
) -> None:
    found = made(*layers)
    assert seen(found) == visible
    assert found.layers["wasted_bytes"].tolist() == wasted
    assert found.unpacked_bytes == found.visible_bytes + sum(wasted)
    assert found.visible_bytes == sum(count for _, count in visible.values())
    assert found.changes["wasted_bytes"].sum() == sum(wasted)
    assert found.changes["bytes"].sum() == found.unpacked_bytes


@pytest.mark.parametrize("name", MANY)
def test_odd_layers_are_what_engines_make_of_them(name: str) -> None:
    layers, expected = MANY[name]
    rows = made(*layers).files[["path", "bytes", "mode", "uid", "type"]].itertuples(index=False)
    assert [(*facts,) for *facts, kind in rows if kind != "directory"] == expected


@pytest.mark.parametrize("name", HIDING)
def test_a_layer_that_could_hide_files_is_refused(name: str) -> None:
    with pytest.raises(DamagedContent, match="hides"):
        made(*HIDING[name])


def test_the_rows_of_changes() -> None:
    rows = made(BASE, {"c": b"4", "a/.wh.one": b"", "a/b/.wh..wh..opq": b"", **AUFS}).changes
    assert rows[rows["layer"] == 2].values.tolist() == [
        ["/a/one", 2, "deleted", 0, 1],
        ["/a/b/*", 2, "deleted", 0, 2],
        ["/c", 2, "changed", 1, 3],
    ]
    assert set(rows.loc[rows["layer"] == 1, "change"]) == {"added"}
    back = made(BASE, {".wh.a": b"", "a/one": b"back", "a/new": b""}).files.set_index("path")
    assert back["change"].to_dict() == {"/a/new": "added", "/a/one": "changed", "/c": "added"}


BOMBS: dict[str, Files] = {
    "stanzas": {"var/lib/dpkg/status": b"Package: a\nVersion: 1\n\n" * 200_000},
    "fields": {"var/lib/dpkg/status": b"Package: a\n" + b"A: b\n" * 1_000_000},
    "lines": {"var/lib/dpkg/info/a.list": b"a\n" * 1_000_000},
    "paths that grow": {"lib/apk/db/installed": b"P:a\nF:" + b"f" * 4000 + b"\nR:a" * 100_000},
    "a deep record": {f"{'d/' * 1000}a.dist-info/RECORD": b"a\n" * 100_000},
    "tools": {f"opt/{number}/bin/sh": f"-> ../../{number + 1}/bin/sh" for number in range(200)},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_layer_that_takes_much_is_refused_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labapp.inside.findings.MAX_NAMES", 100)
    began, layer = time.process_time(), archive(BOMBS[name])
    with pytest.raises(RegistryError, match="more than"):
        _ = made(layer).tools
    assert time.process_time() - began < 10  # of a processor


def test_more_layers_than_engines_take_and_more_bytes_than_compress_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RegistryError, match="128 layers"):
        made(*[b""] * 128)
    monkeypatch.setattr("labapp.inside.layers.MAX_UNPACKED_BYTES", 60_000)
    assert len(made({"a": bytes(40_000)}).files) == 1
    with pytest.raises(RegistryError, match="60,000 bytes"):
        made({"a": bytes(20_000)}, {"b": bytes(40_000)})
    monkeypatch.undo()
    monkeypatch.setattr("labapp.inside.layers.BUDGET_BYTES", 2_000_000)
    records = b"".join(b"13 k%06d=v\n" % number for number in range(80_000))
    again = [{f"{number}": b"" for number in range(200)}] * 20
    for layers in (again, [extension(records)], [hdr(b"a" * 99) * 80_000]):
        with pytest.raises(RegistryError, match="2,000,000 bytes"):
            made(*layers)


STATUS = b"""\
Package: libssl3
Status: install ok installed
Architecture: amd64
Source: openssl (3.0.1-1)
Version: 3.0.1-1+b2
Installed-Size: 6000
Maintainer: J\xf6rg <joerg@example.org>
Description: a library
 with a second line

Package: gone
Status: deinstall ok config-files
Version: 1.0

Package: half
Status: install ok half-configured
Version: 1:2.0~rc1-1
"""


GOOD = b"Package: good\nVersion: 1\n"
BROKEN = [b"garbage", b"Package: x", b" goes on from nothing", b"Package:\nVersion: 1"]
BROKEN += [b"Package: a b\nVersion: 1", b"\0\0\0\xff", b"\xef\xbb\xbf" + GOOD]
ODD = [GOOD.replace(b"\n", b"\r\n"), GOOD + b"Installed-Size: many\nno colon here\n"]


def test_broken_records_are_told_and_left_out() -> None:
    stanzas = [text for broken in BROKEN for text in (broken, GOOD)]
    found = made({"var/lib/dpkg/status": b"\n \t\n".join(stanzas + ODD)})
    assert {*found.packages["name"]} == {"good"}
    assert any(f"{len(BROKEN)} broken records" in note for note in found.notes)


APK = b"""\
C:Q1abc=
P:musl
V:1.2.5-r0
A:x86_64
S:383304
I:622592
o:musl
F:lib
R:ld-musl-x86_64.so.1
Z:Q1x=
F:usr/bin
R:ldd

P:busybox-binsh
V:1.36.1-r5
o:busybox
"""


STATUS_D = "var/lib/dpkg/status.d"
ONE_MD5: Files = {f"{STATUS_D}/good": GOOD, f"{STATUS_D}/good.md5sums": b"0  a\n"}
SITE = "usr/lib/python3.13/site-packages"
IMAGE: dict[str, bytes | str] = {
    "bin": "-> usr/bin",
    "usr/bin/": "",
    "usr/bin/tool": b"tool",
    "usr/bin/other": b"other",
    "etc/os-release": b'ID=debian\nNAME="Debian GNU/Linux"\n',
    "var/lib/dpkg/status": STATUS,
    "var/lib/dpkg/info/libssl3:amd64.list": b"/.\n/bin\n/bin/tool\n/usr/bin\n/gone\n",
    f"{SITE}/Flask_Login-1.0.dist-info/RECORD": b"flask_login.py,sha256=x,8\n../../../bin/other,\n",
    f"{SITE}/Flask_Login-1.0.dist-info/METADATA": b"Name: Flask-Login\nVersion: 1.0\n\nName: no\n",
    f"{SITE}/flask_login.py": b"print(1)",
    f"{SITE}/old.egg-info": b"Name: old\nVersion: 0.1\n",
}


LISTS = "var/lib/dpkg/info"
ONE_LIST: Files = {"a": b"1", "b": b"2", f"{LISTS}/x.list": b"/a\n"}


@pytest.mark.parametrize(
    ("layers", "owned"),
    [
        (
            [IMAGE],
            {
                "/bin": "libssl3",
                "/usr/bin/tool": "libssl3",
                "/usr/bin/other": "Flask-Login",
                f"/{SITE}/flask_login.py": "Flask-Login",
            },
        ),
        (
            [{"lib/apk/db/installed": APK, "usr/bin/ldd": b"1", "ldd": b""}],
            {"/usr/bin/ldd": "musl"},
        ),
        # Visible lists own files of all layers.
        ([ONE_LIST], {"/a": "x"}),
        ([ONE_LIST, {f"{LISTS}/.wh.x.list": b""}], {}),
        ([ONE_LIST, {f"{LISTS}/y.list": b"/a\n/b\n"}], {"/a": "x", "/b": "y"}),
        ([ONE_LIST, {f"{LISTS}/x.list": b"/b\n"}], {"/b": "x"}),
        ([ONE_LIST, {"a": b"new"}], {"/a": "x"}),
        ([ONE_LIST, {"p-1.dist-info/RECORD": b"a,,\nb,,\n"}], {"/a": "x", "/b": "p"}),
        ([ONE_MD5, {"a": b"1"}], {"/a": "good"}),
    ],
)
def test_files_have_owners(layers: list[Files], owned: dict[str, str]) -> None:
    files = made(*layers).files
    assert dict(files[["path", "package"]][files["package"] != ""].values) == owned


def test_packages_come_with_the_layer_that_brought_this_version() -> None:
    def status(**versions: int) -> Files:
        stanzas = [f"Package: {name}\nVersion: {n}\n" for name, n in versions.items()]
        return {"var/lib/dpkg/status": "\n".join(stanzas)}

    rows = made(
        status(a=1, b=1, gone=1, back=1),
        ONE_MD5,
        status(a=1, b=2, c=1),
        status(a=1, b=2, c=1, back=1),
        {f"{STATUS_D}/two": GOOD.replace(b"good", b"two")},
    ).packages
    assert [*map(tuple, rows[["name", "version", "layer"]].values)] == [
        ("a", "1", 1),
        ("b", "2", 3),
        ("back", "1", 4),
        ("c", "1", 3),
        ("good", "1", 2),
        ("two", "1", 5),
    ]


def test_packages_of_every_kind_are_seen_and_deleted_ones_are_not() -> None:
    rows = made(IMAGE, {"usr/lib/apk/db/installed": APK, "lib/ld-musl-x86_64.so.1": b"1"}).packages
    assert list(rows) == [*packages.Package._fields, "layer"]
    assert rows.values.tolist() == [
        ["busybox-binsh", "1.36.1-r5", "apk", "busybox", "1.36.1-r5", "", 0, 2],
        ["musl", "1.2.5-r0", "apk", "musl", "1.2.5-r0", "x86_64", 622592, 2],
        ["half", "1:2.0~rc1-1", "deb", "half", "1:2.0~rc1-1", "", 0, 1],
        ["libssl3", "3.0.1-1+b2", "deb", "openssl", "3.0.1-1", "amd64", 6000 * 1024, 1],
        ["Flask-Login", "1.0", "python", "Flask-Login", "1.0", "", 13, 1],
        ["old", "0.1", "python", "old", "0.1", "", 0, 1],
    ]
    assert set(rows["kind"]) == set(packages.KINDS)
    assert len(made(IMAGE, {"var/lib/.wh.dpkg": b"", f"{SITE}/.wh..wh..opq": b""}).packages) == 0


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([{"other": STATUS, "var/lib/dpkg/status": "=> other"}], True),
        ([{"other": STATUS, "var/lib/dpkg/status": "=> other"}, {".wh.other": b""}], True),
        ([{"other": STATUS, "var/lib/dpkg/status": "-> /other"}], True),
        ([{"other/status": STATUS, "var/lib/dpkg": "-> ../../other"}], True),
        ([{"var/lib/dpkg/status": "-> /nothing"}], False),
        ([{"lib": "-> usr/lib", "usr/lib/apk/db/installed": APK}], False),
        ([IMAGE], False),
    ],
)
def test_a_list_of_packages_behind_a_link_is_told(layers: list[Files], told: bool) -> None:
    assert any("is a link" in note for note in made(*layers).notes) == told


PROGRAMS: Files = {
    "bin": "-> usr/bin",
    "usr/bin/dash": b"dash",
    "usr/bin/sh": "-> dash",
    "usr/bin/bash": b"bash",
    "usr/bin/x86_64-linux-gnu-gcc-14": b"gcc",
    "usr/bin/gcc-14": "-> x86_64-linux-gnu-gcc-14",
    "usr/bin/gcc": "-> gcc-14",
    "usr/bin/cc": "-> /etc/alternatives/cc",
    "etc/alternatives/cc": "-> /bin/gcc",
    "usr/bin/curl": b"curl",
    "usr/bin/wget": "-> wget",
    "usr/bin/nc": "-> /nowhere",
    "usr/bin/gccmakedep": b"",
    "usr/local/bin/pip3.13": b"pip",
    "home/me/ssh": b"not where programs are",
    "usr/bin/fish/": "",
    "usr/bin/git": b"a program that nobody may run",
    "usr/bin/zsh": "-> ../../../usr/bin/ksh",
    "usr/bin/ksh": b"k",
    "usr/bin/busybox": b"box",
    **{f"usr/bin/{name}": "-> /bin/busybox" for name in ("ash", "ftp", "ls")},
}


def test_tools_are_told_from_names_and_links() -> None:
    found = made(PROGRAMS, modes={"usr/bin/git": 0o644}).tools
    assert found[["kind", "name", "path", "bytes"]].values.tolist() == [
        ["compiler", "gcc", "/usr/bin/x86_64-linux-gnu-gcc-14", 3],
        ["network client", "curl", "/usr/bin/curl", 4],
        ["network client", "ftp", "/usr/bin/busybox", 3],
        ["package manager", "pip3.13", "/usr/local/bin/pip3.13", 3],
        ["shell", "bash", "/usr/bin/bash", 4],
        ["shell", "busybox", "/usr/bin/busybox", 3],
        ["shell", "dash", "/usr/bin/dash", 4],
        ["shell", "ksh", "/usr/bin/ksh", 1],
    ]


def test_set_uid_files() -> None:
    files: Files = {"su": b"1", "chage": b"2", "both": b"3", "tmp/": ""}
    modes = {"su": 0o4755, "chage": 0o2755, "both": 0o6755, "tmp/": 0o2777}
    rows = made(files, modes=modes).privileged
    found = [f"{path} {bit} {mode:o}" for path, bit, mode in rows[["path", "bit", "mode"]].values]
    told = ["/both set-gid 6755", "/both set-uid 6755", "/chage set-gid 2755", "/su set-uid 4755"]
    assert found == told


KEY = b"-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----\n"
TOKEN = b"ghp_" + b"aB3dE5gH7j" * 3 + b"kLmNoP"


@pytest.mark.parametrize(
    ("path", "content", "found"),
    [
        ("root/.ssh/id_rsa", KEY, [(None, "Private Key")]),
        ("app/server.pem", b"\n" + KEY, [(2, "Private Key")]),
        ("usr/lib/app/tls.key", KEY, [(1, "Private Key")]),
        ("root/.netrc", b"machine x login y password z8sdf\n", [(None, "Login in .netrc")]),
        ("root/.pypirc", b"[pypi]\npassword = pypi-abc\n", [(None, "Login in .pypirc")]),
        ("root/.docker/config.json", b'{"x":{"auth":"eDp5"}}', [(None, "Registry login")]),
        ("root/.docker/config.json", b'{"auths":{}}', []),
        ("root/.aws/credentials", b"aws_secret_access_key = abc\n", [(None, "AWS Access Key")]),
        ("root/.git-credentials", b"https://me:pw@host\n", [(None, "Login in .git-credentials")]),
        ("root/.npmrc", b"//x/:_authToken=npm_" + b"aB3dE5gH7jK9" * 3, [(1, "NPM tokens")]),
        ("app/.env", b"DEBUG=1\nDB_PASSWORD=correct-horse-7\n", [(2, "Secret Keyword")]),
        ("app/settings.py", b"API_KEY = 'q8Zr2LmX0vTy'\n", [(1, "Secret Keyword")]),
        ("app/deploy.sh", b"x\nexport T=" + TOKEN + b"\n", [(2, "GitHub Token")]),
        ("etc/app.conf", b"url = https://user:s3cr3t77@db/x\n", [(1, "Basic Auth Credentials")]),
        (f"{SITE}/flask/.env", b"SECRET_TOKEN=q8Zr2LmX0vTy\n", [(1, "Secret Keyword")]),
        ("app/settings.py", b"PASSWORD = os.environ['PASSWORD']\n", []),
        ("app/settings.yaml", b"password: ${PASSWORD}\n", []),
        ("app/id_rsa.pub", b"ssh-rsa AAAAB3NzaC1yc2E me@host\n", []),
        ("etc/nsswitch.conf", b"passwd:         files systemd\n", []),
        ("usr/share/doc/x/example.conf", b"password = 'q8Zr2LmX0vTy'\n", []),
        (f"{SITE}/flask/config.py", b"API_KEY = 'q8Zr2LmX0vTy'\n", []),
        ("app/program", b"\0ELF password = 'q8Zr2LmX0vTy'\n", []),
        ("app/large.txt", b"#\n" * 200_000 + TOKEN, []),
    ],
)
def test_secrets_are_flagged(
    path: str, content: bytes, found: list[tuple[int | None, str]]
) -> None:
    rows = made({path: content}).secrets
    lines = rows["line"].astype(object).where(rows["line"].notna(), None)
    assert list(zip(lines, rows["kind"], strict=True)) == found


def test_a_secret_of_a_package_is_not_flagged_and_a_hidden_one_is() -> None:
    secret = b"token = " + TOKEN
    rows = made(
        {f"etc/{name}.conf": secret for name in "abcd"} | {f"{LISTS}/p.list": b"/etc/a.conf"},
        {"etc/.wh.b.conf": b"", "etc/c.conf": b"nothing"},
    ).secrets
    assert rows[["path", "line", "kind", "layer", "visible"]].values.tolist() == [
        [f"/etc/{name}.conf", 1, "GitHub Token", 1, name == "d"] for name in "bcd"
    ]


def test_of_a_path_that_comes_twice_only_the_last_entry_tells() -> None:
    status, env = "var/lib/dpkg/status", "app/.env"
    found = made({status: GOOD, f"./{status}": "-> x", env: b"x=" + TOKEN, f"./{env}": "-> x"})
    assert [len(table) for table in (found.packages, found.secrets, found.files)] == [0, 0, 2]


def test_what_looks_like_secrets_is_looked_at_within_bounds() -> None:
    many = {f"app/{number:02}.txt": b"password: hunter\n" * 4_000 for number in range(20)}
    found = made({"app/.env": b"x=" + TOKEN, **many})
    assert "/app/.env" in set(found.secrets["path"]) and len(found.secrets) < 10_000
    assert any("secrets" in note for note in found.notes)


def test_notes_say_what_was_not_read_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labapp.inside.layers.MAX_DOCUMENT_BYTES", 1000)
    lists = {"var/lib/dpkg/status": b"garbage\n", "usr/lib/apk/db/installed": b"P:x\n" * 500}
    found = made(lists)
    facts = ("1 broken records of '/var/lib/dpkg/status'", "2,000")
    assert [[fact in note for note in found.notes].count(True) for fact in facts] == [1, 1]
    assert len(found.packages) == 0
    broken = {f"{number}.egg-info": b"Name: x\n" for number in range(100)}
    assert len(made(broken).notes) == MAX_NOTES


def test_texts_are_those_that_a_container_sees() -> None:
    below: Files = {
        "usr/lib/os-release": b"ID=below",
        "etc/apt/sources.list": b"one",
        "etc/apt/sources.list.d/b.sources": b"two",
        "etc/apt/sources.list.d/readme": b"no",
    }
    above: Files = {"etc/apt/sources.list.d/b.sources": b"new", "etc/apt/.wh.sources.list": b""}
    assert made(below).apt_sources == ("one", "two")
    found = made(below, above, {"etc/os-release": b"ID=above"})
    assert (found.apt_sources, found.os_release) == (("new",), {"ID": "above"})
    text = '# a comment\n\nID=\'a b\'\nbroken\nNAME="Debian GNU/Linux"\nA=\nB="no end\nC=2'
    assert made({"etc/os-release": text}).os_release == {
        "ID": "a b",
        "NAME": "Debian GNU/Linux",
        "A": "",
        "C": "2",
    }


LAYERED: tuple[Files, ...] = (
    {"etc/": b"", "etc/os-release": b"ID=debian\n", "big": b"b" * 50_000, "kept": b"k"},
    {"app/": b"", "app/a": b"a" * 300, "app/link": "=> app/a", ".env": TOKEN, "é\n": b""},
    {"big": b"small now", "app/.wh.a": b""},
    IMAGE,
    {},
)


def blobs(registry: Memory, tag: str = "1") -> list[str]:
    return [each.digest for each in registry.image(f"r.test/shop/web:{tag}").manifest.layers]


def test_what_is_kept_or_occurs_twice_is_fetched_once(tmp_path: Path) -> None:
    registry = Memory()
    put(registry, "shop/web", "1", [*LAYERED, LAYERED[2], {}])
    first, opened = read(registry, tmp_path), registry.opened[1:]  # after the config
    digests = blobs(registry)
    assert sorted(opened) == sorted(set(digests))
    counts = [(50_011, 3, 50_010), (340, 4, 0), (9, 1, 9), (540, 10, 0), (0, 0, 0), (9, 1, 0)]
    assert first.layers.values.tolist() == [
        [number, f"COPY layer{number} /", digest, len(registry.held[digest]), *told]
        for number, (digest, told) in enumerate(zip(digests, [*counts, (0, 0, 0)], strict=True), 1)
    ]
    put(registry, "shop/web", "2", [*LAYERED, {"new": b"1"}])
    for tag, fetched in (("1", []), ("2", blobs(registry, "2")[-1:])):
        registry.opened.clear()
        read(registry, tmp_path, tag)
        assert registry.opened[1:] == fetched
    again = read(registry, tmp_path)
    for name in ("layers", "files", "changes", "packages", "tools", "secrets"):
        assert getattr(again, name).equals(getattr(first, name)), name
    assert (again.os_release, again.notes) == (first.os_release, first.notes)
    assert len(first.secrets) == 1
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(TOKEN in file.read_bytes() for file in files)


WHOLE = archive({"file": b"1" * 2000})
NOTHING = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("layer", "diff_ids", "more", "fact"),
    [
        (WHOLE[:1500], None, b"", "layer 2 of 'r.test/shop/web:1'"),
        (WHOLE, [NOTHING] * 2, b"", NOTHING),
        (WHOLE, [NOTHING], b"", "1 diff IDs for 2 layers"),
        (WHOLE, ["md5:nothing"] * 2, b"", "2 diff IDs for 2 layers"),
        (WHOLE, None, b"more", "altered"),
    ],
)
def test_what_is_damaged_is_not_kept(
    tmp_path: Path, layer: bytes, diff_ids: list[str] | None, more: bytes, fact: str
) -> None:
    registry = Memory()
    put(registry, "shop/web", "1", [LAYERED[0], layer], diff_ids=diff_ids)
    registry.held[blobs(registry)[1]] += more
    for _ in range(2):
        with pytest.raises(DamagedContent) as caught:
            read(registry, tmp_path)
        assert fact in str(caught.value)
    # A layer that was read for another image must be the one that this image's config promises.
    put(registry, "shop/web", "good", [LAYERED[0], WHOLE])
    assert len(read(registry, tmp_path, "good").files) == 5
    if diff_ids:
        with pytest.raises(DamagedContent):
            read(registry, tmp_path)
