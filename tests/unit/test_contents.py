"""Layers put together, and what their files tell: packages, owners, tools, secrets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp.contents import layer_cache, os_release, packages, tables, tools
from labapp.contents.layers import MAX_NOTES, Layer, hides, read_layer, removal
from labapp.contents.merge import Union, union
from labapp.contents.streams import LayerStream
from labapp.errors import StateError

DIGEST = "sha256:" + "1" * 64
FOLDER = None
"""Marks a folder in the layers below."""


def layer(files: Mapping[str, bytes | str | None], **modes: int) -> Layer:
    """A layer of files: bytes, a folder (None), ``-> target`` or ``=> hard link``."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as written:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode = modes.get(name.rpartition("/")[2], 0o755)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                info.linkname = content[3:]
            else:
                info.size = len(content)
            written.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    stream = LayerStream(iter([held.getvalue()]), on_chunk=lambda: None)
    return read_layer(stream, diff_id=DIGEST, doing="reading a layer")


def seen(merged: Union) -> dict[str, tuple[int, int]]:
    """Path → layer and bytes of what a container sees, folders aside."""
    table = tables.files(merged)
    rows = table[table["type"] != "directory"]
    return {
        path: (number, count)
        for path, number, count in zip(rows["path"], rows["layer"], rows["bytes"], strict=True)
    }


BASE: dict[str, bytes | str | None] = {"a/": None, "a/one": b"1", "a/b/two": b"22", "c": b"333"}


@pytest.mark.parametrize(
    ("layers", "visible", "wasted"),
    [
        ([BASE], {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (1, 3)}, [0]),
        ([BASE, {}], {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (1, 3)}, [0, 0]),
        ([BASE, {"c": b"4444"}], {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (2, 4)}, [3, 0]),
        ([BASE, {".wh.c": b""}], {"/a/one": (1, 1), "/a/b/two": (1, 2)}, [3, 0]),
        ([BASE, {".wh.a": b""}], {"/c": (1, 3)}, [3, 0]),
        ([BASE, {"a/b/.wh.two": b""}], {"/a/one": (1, 1), "/c": (1, 3)}, [2, 0]),
        # A folder without an entry of its own goes as well.
        ([BASE, {"a/.wh.b": b""}], {"/a/one": (1, 1), "/c": (1, 3)}, [2, 0]),
        # Whiteouts are for lower layers only, wherever in the archive they come.
        (
            [BASE, {"a/new": b"55555", "a/.wh..wh..opq": b""}],
            {"/a/new": (2, 5), "/c": (1, 3)},
            [3, 0],
        ),
        (
            [BASE, {"c": b"4", ".wh.c": b""}],
            {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (2, 1)},
            [3, 0],
        ),
        ([BASE, {".wh..wh..opq": b"", "x": b"1"}], {"/x": (2, 1)}, [6, 0]),
        # What a folder held goes when a file or a link takes its place.
        ([BASE, {"a": b"file"}], {"/a": (2, 4), "/c": (1, 3)}, [3, 0]),
        ([BASE, {"a": "-> c"}], {"/a": (2, 0), "/c": (1, 3)}, [3, 0]),
        ([BASE, {"a/": None}], {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (1, 3)}, [0, 0]),
        # Deleted, and back again.
        (
            [BASE, {".wh.c": b""}, {"c": b"1"}],
            {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (3, 1)},
            [3, 0, 0],
        ),
        (
            [BASE, {"c": b"1"}, {"c": b"2"}],
            {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (3, 1)},
            [3, 1, 0],
        ),
        # Nothing to delete, and aufs' own bookkeeping.
        (
            [BASE, {".wh.nothing": b"", ".wh..wh.plnk": b"", "a/.wh..wh.aufs": b""}],
            {"/a/one": (1, 1), "/a/b/two": (1, 2), "/c": (1, 3)},
            [0, 0],
        ),
        # A name that only begins alike stays.
        ([{"ab": b"1", "a/x": b"22"}, {".wh.a": b""}], {"/ab": (1, 1)}, [2, 0]),
        # Twice in one layer: the last one counts.
        ([{"x": b"1", "./x": b"22"}], {"/x": (1, 2)}, [0]),
    ],
)
def test_layers_put_together(
    layers: list[dict[str, bytes | str | None]],
    visible: dict[str, tuple[int, int]],
    wasted: list[int],
) -> None:
    held = [layer(each) for each in layers]
    merged = union(held)
    assert seen(merged) == visible
    assert merged.wasted == wasted
    total = sum(each.unpacked_bytes for each in held)
    assert total == sum(count for _, count in visible.values()) + sum(wasted)
    changes = tables.changes(merged)
    assert changes["wasted_bytes"].sum() == sum(wasted)
    assert changes["bytes"].sum() == total


@pytest.mark.parametrize(
    ("layers", "visible", "wasted"),
    [
        ([{"a": b"333", "b": "=> a"}], {"/a": (1, 3), "/b": (1, 0)}, [0]),
        # The data stays for as long as one name is visible, and counts there.
        ([{"a": b"333", "b": "=> a"}, {".wh.a": b""}], {"/b": (1, 3)}, [0, 0]),
        ([{"a": b"333", "b": "=> a"}, {".wh.b": b""}], {"/a": (1, 3)}, [0, 0]),
        ([{"a": b"333", "b": "=> a"}, {".wh.a": b"", ".wh.b": b""}], {}, [3, 0]),
        (
            [{"a": b"333", "b": "=> a"}, {"a": b"1", "b": b"2"}],
            {"/a": (2, 1), "/b": (2, 1)},
            [3, 0],
        ),
        # A link to a link.
        (
            [{"a": b"333", "b": "=> a", "c": "=> b"}, {".wh.a": b"", ".wh.b": b""}],
            {"/c": (1, 3)},
            [0, 0],
        ),
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
def test_hard_links_share_their_bytes(
    layers: list[dict[str, bytes | str | None]],
    visible: dict[str, tuple[int, int]],
    wasted: list[int],
) -> None:
    merged = union([layer(each) for each in layers])
    assert seen(merged) == visible
    assert merged.wasted == wasted


PATHS = st.sampled_from(["a", "b", "a/x", "a/y", "a/x/deep", "b/x", "b/x/deep/er"])
CHANGES = st.dictionaries(
    PATHS, st.sampled_from(["file", "folder", "link", "whiteout", "opaque"]), max_size=5
)


@given(st.lists(CHANGES, min_size=1, max_size=4))
def test_bytes_are_visible_or_wasted_and_never_both(changes: list[dict[str, str]]) -> None:
    held = []
    for number, change in enumerate(changes, 1):
        files: dict[str, bytes | str | None] = {}
        for path, what in change.items():
            parent, _, name = path.rpartition("/")
            whiteout = f"{parent}/.wh.{name}".lstrip("/")
            new: dict[str, tuple[str, bytes | str | None]] = {
                "file": (path, b"x" * number),
                "folder": (path, None),
                "link": (path, "=> a"),
                "whiteout": (whiteout, b""),
                "opaque": (f"{path}/.wh..wh..opq", b""),
            }
            files[new[what][0]] = new[what][1]
        held.append(layer(files))
    merged = union(held)
    table = tables.files(merged)
    total = sum(each.unpacked_bytes for each in held)
    assert int(table["bytes"].sum()) + sum(merged.wasted) == total
    assert int(tables.changes(merged)["wasted_bytes"].sum()) == sum(merged.wasted)
    assert (table["bytes"] >= 0).all() and min(merged.wasted) >= 0
    assert table["path"].is_monotonic_increasing and table["path"].is_unique


def test_the_rows_of_changes() -> None:
    merged = union([layer(BASE), layer({"c": b"4", "a/.wh.one": b"", "a/b/.wh..wh..opq": b""})])
    rows = tables.changes(merged)
    assert rows[rows["layer"] == 2].values.tolist() == [
        ["/a/one", 2, "deleted", 0, 1],
        ["/a/b/*", 2, "deleted", 0, 2],
        ["/c", 2, "changed", 1, 3],
    ]
    assert set(rows.loc[rows["layer"] == 1, "change"]) == {"added"}


def test_no_layers_at_all() -> None:
    merged = union([])
    for table in (tables.files, tables.changes, tables.packages, tables.tools, tables.secrets):
        assert len(table(merged)) == 0
    assert list(tables.changes(merged)) == ["path", "layer", "change", "bytes", "wasted_bytes"]
    assert len(tables.privileged(tables.files(merged))) == 0


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/a/b", None),
        ("/a/.wh.b", ("/a/b", False)),
        ("/.wh.b", ("/b", False)),
        ("/a/.wh..wh..opq", ("/a", True)),
        ("/.wh..wh..opq", ("/", True)),
        ("/.wh.folder/file", None),
    ],
)
def test_whiteouts(path: str, found: tuple[str, bool] | None) -> None:
    assert removal(path) == found


def test_what_a_whiteout_hides() -> None:
    assert hides("/a/b", "/a", False) and hides("/a", "/a", False) and hides("/a", "/", True)
    assert hides("/a/b", "/a", True) and not hides("/a", "/a", True)
    assert not hides("/ab", "/a", False)


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


def dpkg(text: bytes) -> packages.Found:
    return packages.parse(packages.DPKG_STATUS, text)


def test_dpkg_status() -> None:
    assert dpkg(STATUS).packages == [
        {
            "name": "libssl3",
            "version": "3.0.1-1+b2",
            "kind": "deb",
            "source": "openssl",
            "source_version": "3.0.1-1",
            "architecture": "amd64",
            "unpacked_bytes": 6000 * 1024,
        },
        {
            "name": "half",
            "version": "1:2.0~rc1-1",
            "kind": "deb",
            "source": "half",
            "source_version": "1:2.0~rc1-1",
            "architecture": "",
            "unpacked_bytes": 0,
        },
    ]


GOOD = b"Package: good\nVersion: 1\n"


@pytest.mark.parametrize(
    ("text", "names", "broken"),
    [
        (b"", [], 0),
        (b"\n\n\n", [], 0),
        (b"garbage\n\n" + GOOD, ["good"], 1),
        (GOOD + b"\n\0\0\0\xff\n\n" + GOOD, ["good", "good"], 1),
        (b"Package: nothing\n\n" + GOOD, ["good"], 1),
        (b"Version: 1\n\n" + GOOD, ["good"], 1),
        (b" a line that goes on from nothing\n\n" + GOOD, ["good"], 1),
        (b"Package:\nVersion: 1\n\n" + GOOD, ["good"], 1),
        (b"Package: a b\nVersion: 1\n\n" + GOOD, ["good"], 1),
        (GOOD + b"Installed-Size: many\nSource: (broken\n", ["good"], 0),
        (GOOD + b"no colon here\nArchitecture: all\n", ["good"], 0),
        (GOOD.replace(b"\n", b"\r\n"), ["good"], 0),
        (b"\n \t\n".join([GOOD, GOOD]), ["good", "good"], 0),
        (b"\xef\xbb\xbf" + GOOD, [], 1),
    ],
)
def test_broken_stanzas_are_counted_and_left_out(
    text: bytes, names: list[str], broken: int
) -> None:
    found = dpkg(text)
    assert [package["name"] for package in found.packages] == names
    assert found.broken == broken


@given(st.binary(max_size=300))
def test_no_bytes_make_a_database_an_error(content: bytes) -> None:
    site = "/usr/lib/python3/dist-packages/x-1.dist-info"
    for path in (
        packages.DPKG_STATUS,
        f"{packages.DPKG_STATUS_FOLDER}/x.md5sums",
        "/var/lib/dpkg/info/x.list",
        packages.APK_DATABASES[0],
        f"{site}/METADATA",
        f"{site}/RECORD",
    ):
        assert packages.is_database(path)
        packages.parse(path, content)


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


def test_apks_database() -> None:
    found = packages.parse("/lib/apk/db/installed", APK)
    assert [(each["name"], each["source"], each["unpacked_bytes"]) for each in found.packages] == [
        ("musl", "musl", 622592),
        ("busybox-binsh", "busybox", 0),
    ]
    assert found.owned["musl"] == ["/lib/ld-musl-x86_64.so.1", "/usr/bin/ldd"]


SITE = "usr/lib/python3.13/site-packages"
IMAGE: dict[str, bytes | str | None] = {
    "bin": "-> usr/bin",
    "usr/bin/": None,
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


def test_files_have_owners() -> None:
    table = tables.files(union([layer(IMAGE)])).set_index("path")["package"]
    assert {path: name for path, name in table.items() if name} == {
        "/bin": "libssl3",
        "/usr/bin/tool": "libssl3",
        "/usr/bin/other": "Flask-Login",
        f"/{SITE}/flask_login.py": "Flask-Login",
    }


def test_a_later_layers_list_owns_what_is_below_and_a_deleted_one_nothing() -> None:
    lists = "var/lib/dpkg/info"
    below = layer({"a": b"1", "b": b"2", f"{lists}/x.list": b"/a\n"})
    assert set(tables.files(union([below]))["package"]) == {"", "x"}
    gone = union([below, layer({f"{lists}/.wh.x.list": b""})])
    assert set(tables.files(gone)["package"]) == {""}
    later = tables.files(union([below, layer({f"{lists}/y.list": b"/a\n/b\n"})]))
    assert dict(zip(later["path"], later["package"], strict=True))["/b"] == "y"
    assert dict(zip(later["path"], later["package"], strict=True))["/a"] == "x"


def test_packages_come_with_the_layer_that_brought_this_version() -> None:
    def status(*names: str) -> Layer:
        stanzas = [f"Package: {n.split()[0]}\nVersion: {n.split()[1]}\n" for n in names]
        return layer({"var/lib/dpkg/status": "\n".join(stanzas).encode()})

    layers = [
        status("a 1", "b 1", "gone 1", "back 1"),
        layer({"x": b""}),
        status("a 1", "b 2", "c 1"),
        status("a 1", "b 2", "c 1", "back 1"),
    ]
    rows = tables.packages(union(layers))
    assert rows[["name", "version", "layer"]].values.tolist() == [
        ["a", "1", 1],
        ["b", "2", 3],
        ["back", "1", 4],
        ["c", "1", 3],
    ]


def test_packages_of_every_kind_are_seen_and_deleted_ones_are_not() -> None:
    rows = tables.packages(union([layer(IMAGE)]))
    assert rows[["kind", "name", "unpacked_bytes"]].values.tolist() == [
        ["deb", "half", 0],
        ["deb", "libssl3", 6000 * 1024],
        ["python", "Flask-Login", 13],
        ["python", "old", 0],
    ]
    without = layer({"var/lib/.wh.dpkg": b"", f"{SITE}/.wh..wh..opq": b""})
    assert len(tables.packages(union([layer(IMAGE), without]))) == 0


def test_each_file_of_status_d_is_a_database() -> None:
    folder = "var/lib/dpkg/status.d"
    held = [
        layer({f"{folder}/one": GOOD.replace(b"good", b"one"), f"{folder}/one.md5sums": b"0  a\n"}),
        layer({f"{folder}/two": GOOD.replace(b"good", b"two"), "a": b"1"}),
    ]
    rows = tables.packages(union(held))
    assert rows[["name", "layer"]].values.tolist() == [["one", 1], ["two", 2]]
    files = tables.files(union(held)).set_index("path")
    assert files.loc["/a", "package"] == "one"


SHELLS: dict[str, bytes | str | None] = {
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
    "usr/bin/fish/": None,
    "usr/bin/git": b"a program that nobody may run",
}


def test_tools_are_told_from_names_and_links() -> None:
    found = tables.tools(union([layer(SHELLS, git=0o644)]))
    assert found[["kind", "name", "path", "bytes"]].values.tolist() == [
        ["compiler", "gcc", "/usr/bin/x86_64-linux-gnu-gcc-14", 3],
        ["network client", "curl", "/usr/bin/curl", 4],
        ["package manager", "pip3.13", "/usr/local/bin/pip3.13", 3],
        ["shell", "bash", "/usr/bin/bash", 4],
        ["shell", "dash", "/usr/bin/dash", 4],
    ]


def test_busybox_is_a_shell_and_a_network_client() -> None:
    names: dict[str, bytes | str | None] = {
        f"bin/{name}": "-> /bin/busybox" for name in ("sh", "ash", "wget", "ls")
    }
    found = tables.tools(union([layer({"bin/busybox": b"box"} | names)]))
    assert found[["kind", "name", "path"]].values.tolist() == [
        ["network client", "wget", "/bin/busybox"],
        ["shell", "busybox", "/bin/busybox"],
    ]


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/a", "/file"),
        ("/up", "/file"),
        ("/folder/x", "/file/x"),
        ("/loop", None),
        ("/broken", None),
        ("/file", "/file"),
    ],
)
def test_links_are_followed_within_the_image(path: str, real: str | None) -> None:
    links = {
        "/a": "b",
        "/b": "/file",
        "/up": "../../../file",
        "/folder": "file",
        "/loop": "loop",
        "/broken": "nothing",
    }

    def link(name: str) -> str | None:
        return links.get(name, "" if name in ("/file", "/file/x") else None)

    assert tools.resolve(path, link) == real


def test_set_uid_files() -> None:
    files: dict[str, bytes | str | None] = {"su": b"1", "chage": b"2", "both": b"3", "tmp/": None}
    held = layer(files, su=0o4755, chage=0o2755, both=0o6755, tmp=0o2777)
    rows = tables.privileged(tables.files(union([held])))
    assert rows[["path", "bit", "mode"]].values.tolist() == [
        ["/both", "set-gid", 0o6755],
        ["/both", "set-uid", 0o6755],
        ["/chage", "set-gid", 0o2755],
        ["/su", "set-uid", 0o4755],
    ]


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
        (
            "root/.docker/config.json",
            b'{"auths":{"r":{"auth":"eDp5"}}}',
            [(None, "Registry login")],
        ),
        ("root/.docker/config.json", b'{"auths":{}}', []),
        ("root/.aws/credentials", b"aws_secret_access_key = abc\n", [(None, "AWS Access Key")]),
        ("root/.git-credentials", b"https://me:pw@host\n", [(None, "Login in .git-credentials")]),
        (
            "root/.npmrc",
            b"//npm.example/:_authToken=npm_" + b"aB3dE5gH7jK9" * 3 + b"\n",
            [(1, "NPM tokens")],
        ),
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
    held = layer({path: content})
    assert [(each.line, each.kind) for each in held.secrets] == found


def test_a_secret_of_a_package_is_not_flagged_and_a_deleted_one_is() -> None:
    secret = b"token = " + TOKEN
    below = layer(
        {"etc/a.conf": secret, "etc/b.conf": secret, "var/lib/dpkg/info/p.list": b"/etc/a.conf"}
    )
    rows = tables.secrets(union([below, layer({"etc/.wh.b.conf": b""})]))
    assert rows.to_dict("records") == [
        {"path": "/etc/b.conf", "line": 1, "kind": "GitHub Token", "layer": 1, "visible": False}
    ]


def test_suspicious_lines_are_bounded() -> None:
    held = layer({"app/data.txt": b"password: hunter\n" * 15_000})
    assert any("first 10,000 lines" in note for note in held.notes)


def test_notes_say_what_was_not_read_and_are_bounded() -> None:
    files: dict[str, bytes | str | None] = {
        "../../etc/x": b"1",
        "var/lib/rpm/rpmdb.sqlite": b"1",
        "var/lib/dpkg/status": b"garbage\n",
    }
    notes = layer(files).notes
    assert [note for note in notes if "'/etc/x' was named with '..'" in note]
    assert "an rpm database, which the lab can't read" in notes
    assert "1 broken records of '/var/lib/dpkg/status' were left out" in notes
    assert len(layer({f"../{number}": b"" for number in range(100)}).notes) == MAX_NOTES


def test_a_database_that_is_too_long_is_left_out_with_a_note() -> None:
    found = layer({"var/lib/dpkg/status": GOOD * 800_000})
    assert not found.databases
    assert found.notes == ["'/var/lib/dpkg/status' is too long to be read (20,000,000 bytes)"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('ID=debian\nNAME="Debian GNU/Linux"\n', {"ID": "debian", "NAME": "Debian GNU/Linux"}),
        ("# a comment\n\nID='a b'\nbroken\n", {"ID": "a b"}),
        ('A="no end\nB=2', {"B": "2"}),
        ("A=", {"A": ""}),
    ],
)
def test_os_release(text: str, found: dict[str, str]) -> None:
    assert os_release.parse(text) == found


def same(one: Layer, other: Layer | None) -> bool:
    return other is not None and all(
        np.array_equal(getattr(one, each.name), getattr(other, each.name))
        if isinstance(getattr(one, each.name), np.ndarray)
        else getattr(one, each.name) == getattr(other, each.name)
        for each in fields(one)
    )


@pytest.mark.parametrize("files", [{}, BASE, IMAGE, {"app/.env": TOKEN, "a/.wh.b": b""}])
def test_a_layer_comes_back_from_its_file(
    tmp_path: Path, files: dict[str, bytes | str | None]
) -> None:
    held = layer(files)
    assert layer_cache.load(tmp_path, DIGEST) is None
    layer_cache.save(tmp_path, DIGEST, held)
    assert same(held, layer_cache.load(tmp_path, DIGEST))
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [
        DIGEST.replace(":", "-")
    ]


def test_a_secret_is_not_in_the_file(tmp_path: Path) -> None:
    held = layer({"app/.env": b"T=" + TOKEN})
    assert held.secrets
    layer_cache.save(tmp_path, DIGEST, held)
    (file,) = (each for each in tmp_path.rglob("*") if each.is_file())
    assert TOKEN not in file.read_bytes() and TOKEN.decode() not in repr(held)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
def test_a_damaged_file_is_noticed_and_written_anew(tmp_path: Path, damage: str) -> None:
    held = layer(IMAGE)
    layer_cache.save(tmp_path, DIGEST, held)
    (file,) = (each for each in tmp_path.rglob("*") if each.is_file())
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    wrong = {"cut": good[:-1], "empty": b"", "flipped": bytes(flipped), "other": b"x" * 5000}
    file.write_bytes(wrong[damage])
    assert layer_cache.load(tmp_path, DIGEST) is None
    layer_cache.save(tmp_path, DIGEST, held)
    assert same(held, layer_cache.load(tmp_path, DIGEST))


def test_a_file_that_cant_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(StateError, match=r"writing '.*taken"):
        layer_cache.save(tmp_path / "taken", DIGEST, layer({}))
