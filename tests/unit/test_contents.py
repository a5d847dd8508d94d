"""Layers put together, and what their files tell: packages, owners, tools, secrets."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from assembly import build_config, build_manifest
from hypothesis import given
from hypothesis import strategies as st

from labapp.errors import StateError
from labapp.inside import findings, layers, packages
from labapp.inside.archive import LayerStream
from labapp.inside.image import Contents
from labapp.inside.layers import MAX_NOTES, Layer, hides, read_layer, removal
from labapp.reference import Reference
from labapp.registry.client import RegistryImage
from labapp.registry.manifests import (
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    parse_config,
    parse_manifest,
)

DIGEST = "sha256:" + "1" * 64
Files = Mapping[str, bytes | str | None]


def layer(files: Files, **modes: int) -> Layer:
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
    return read_layer(LayerStream(iter([held.getvalue()])), diff_id=DIGEST, doing="reading a layer")


def image(*layers: Files | Layer, **modes: int) -> Contents:
    """What is inside an image with such layers."""
    held = tuple(each if isinstance(each, Layer) else layer(each, **modes) for each in layers)
    config = build_config(platform=Platform("linux", "amd64"), diff_ids=[DIGEST] * len(held))
    described = Descriptor(OCI_CONFIG, digest_of(config), len(config))
    raw = build_manifest(described, [Descriptor(OCI_LAYER, DIGEST, 1)] * len(held))
    manifest = parse_manifest(raw)
    assert isinstance(manifest, Manifest)
    reference = Reference.parse("localhost:5/shop/web:1.4")
    return Contents(RegistryImage(reference, manifest, parse_config(config)), held)


def seen(found: Contents) -> dict[str, tuple[int, int]]:
    """Path → layer and bytes of what a container sees, folders aside."""
    rows = found.files[found.files["type"] != "directory"]
    return {path: (n, count) for path, n, count in rows[["path", "layer", "bytes"]].values}


BASE: dict[str, bytes | str | None] = {"a/": None, "a/one": b"1", "a/b/two": b"22", "c": b"333"}


ONE, TWO, C = {"/a/one": (1, 1)}, {"/a/b/two": (1, 2)}, {"/c": (1, 3)}


@pytest.mark.parametrize(
    ("layers", "visible", "wasted"),
    [
        ([BASE], ONE | TWO | C, [0]),
        ([BASE, {}], ONE | TWO | C, [0, 0]),
        ([BASE, {"c": b"4444"}], ONE | TWO | {"/c": (2, 4)}, [3, 0]),
        ([BASE, {".wh.c": b""}], ONE | TWO, [3, 0]),
        ([BASE, {".wh.a": b""}], C, [3, 0]),
        ([BASE, {"a/b/.wh.two": b""}], ONE | C, [2, 0]),
        # A folder without an entry of its own goes as well.
        ([BASE, {"a/.wh.b": b""}], ONE | C, [2, 0]),
        # Whiteouts are for lower layers only, wherever in the archive they come.
        ([BASE, {"a/new": b"55555", "a/.wh..wh..opq": b""}], {"/a/new": (2, 5)} | C, [3, 0]),
        ([BASE, {"c": b"4", ".wh.c": b""}], ONE | TWO | {"/c": (2, 1)}, [3, 0]),
        ([BASE, {".wh..wh..opq": b"", "x": b"1"}], {"/x": (2, 1)}, [6, 0]),
        # What a folder held goes when a file or a link takes its place.
        ([BASE, {"a": b"file"}], {"/a": (2, 4)} | C, [3, 0]),
        ([BASE, {"a": "-> c"}], {"/a": (2, 0)} | C, [3, 0]),
        ([BASE, {"a/": None}], ONE | TWO | C, [0, 0]),
        # Deleted, and back again.
        ([BASE, {".wh.c": b""}, {"c": b"1"}], ONE | TWO | {"/c": (3, 1)}, [3, 0, 0]),
        ([BASE, {"c": b"1"}, {"c": b"2"}], ONE | TWO | {"/c": (3, 1)}, [3, 1, 0]),
        # Nothing to delete, and aufs' own bookkeeping.
        (
            [BASE, {".wh.nothing": b"", ".wh..wh.plnk": b"", "a/.wh..wh.aufs": b""}],
            ONE | TWO | C,
            [0, 0],
        ),
        # As engines have it, also where no layer has an entry for the folder, or for one above it.
        ([{"e/x": b"1", "e/y/z": b"2"}, {"e": b"333"}], {"/e": (2, 3)}, [2, 0]),
        ([{"e": b"333"}, {"e/y/z": b"1"}], {"/e/y/z": (2, 1)}, [3, 0]),
        ([{"e": "-> c", "c": b"1"}, {"e/x": b"2"}], {"/c": (1, 1), "/e/x": (2, 1)}, [0, 0]),
        ([{"e": "-> c"}, {"e/": None, "e/x": b"2"}], {"/e/x": (2, 1)}, [0, 0]),
        # A name that only begins alike stays.
        ([{"ab": b"1", "a/x": b"22"}, {".wh.a": b""}], {"/ab": (1, 1)}, [2, 0]),
        # Twice in one layer: the last one counts.
        ([{"x": b"1", "./x": b"22"}], {"/x": (1, 2)}, [0]),
        # Hard links share their bytes.
        ([{"a": b"333", "b": "=> a"}], {"/a": (1, 3), "/b": (1, 0)}, [0]),
        (
            [{"z": b"333", "y": "=> z", "b": "=> y"}, {".wh.z": b"", ".wh.y": b""}],
            {"/b": (1, 3)},
            [0, 0],
        ),
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
        ([{"a": b"333", "b": "=> a", "c": "=> b"}, {".wh.a": b"", ".wh.b": b""}], C, [0, 0]),
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
    found = image(*layers)
    assert seen(found) == visible
    assert found.layers["wasted_bytes"].tolist() == wasted
    assert found.unpacked_bytes == found.visible_bytes + sum(wasted)
    assert found.visible_bytes == sum(count for _, count in visible.values())
    assert found.changes["wasted_bytes"].sum() == sum(wasted)
    assert found.changes["bytes"].sum() == found.unpacked_bytes


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
    found = image(*held)
    assert int(found.files["bytes"].sum()) + found.wasted_bytes == found.unpacked_bytes
    assert int(found.changes["wasted_bytes"].sum()) == found.wasted_bytes
    assert (found.files["bytes"] >= 0).all() and (found.layers["wasted_bytes"] >= 0).all()
    assert found.files["path"].is_monotonic_increasing and found.files["path"].is_unique


def test_the_rows_of_changes() -> None:
    aufs = {".wh..wh.plnk": b"", "a/.wh..wh.aufs": b""}
    rows = image(BASE, {"c": b"4", "a/.wh.one": b"", "a/b/.wh..wh..opq": b""} | aufs).changes
    assert rows[rows["layer"] == 2].values.tolist() == [
        ["/a/one", 2, "deleted", 0, 1],
        ["/a/b/*", 2, "deleted", 0, 2],
        ["/c", 2, "changed", 1, 3],
    ]
    assert set(rows.loc[rows["layer"] == 1, "change"]) == {"added"}
    back = image(BASE, {".wh.a": b"", "a/one": b"back", "a/new": b""}).files.set_index("path")
    assert back["change"].to_dict() == {"/a/new": "added", "/a/one": "changed", "/c": "added"}


def test_no_layers_at_all() -> None:
    found = image()
    for table in (found.layers, found.files, found.changes, found.packages):
        assert len(table) == 0 and len(table.columns) >= 5
    assert len(found.tools) == len(found.secrets) == len(found.privileged) == 0
    assert found.unpacked_bytes == found.wasted_bytes == 0


def test_whiteouts_of_deep_folders_take_bounded_time() -> None:
    deep = {f"{number:04}{'/d' * 900}": b"" for number in range(500)}
    whiteouts = [{f"{number:04}/.wh.d": b""} for number in range(40)]
    began = time.process_time()
    found = image(deep, *whiteouts)
    assert len(found.files) == 460
    assert time.process_time() - began < 10  # of a processor


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
    return packages.parse(packages.DPKG_STATUS, text.decode("utf-8", "replace"))


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
        f"{packages.DPKG_STATUS_FOLDER}x.md5sums",
        "/var/lib/dpkg/info/x.list",
        packages.APK_DATABASES[0],
        f"{site}/METADATA",
        f"{site}/RECORD",
    ):
        assert packages.is_database(path)
        packages.parse(path, content.decode("utf-8", "replace"))


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
    found = packages.parse("/lib/apk/db/installed", APK.decode())
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
    table = image(IMAGE).files.set_index("path")["package"]
    assert {path: name for path, name in table.items() if name} == {
        "/bin": "libssl3",
        "/usr/bin/tool": "libssl3",
        "/usr/bin/other": "Flask-Login",
        f"/{SITE}/flask_login.py": "Flask-Login",
    }


LISTS = "var/lib/dpkg/info"


@pytest.mark.parametrize(
    ("layers", "owners"),
    [
        ([{}], {"/a": "x", "/b": ""}),
        ([{f"{LISTS}/.wh.x.list": b""}], {"/a": "", "/b": ""}),
        ([{f"{LISTS}/y.list": b"/a\n/b\n"}], {"/a": "x", "/b": "y"}),
        ([{f"{LISTS}/x.list": b"/b\n"}], {"/a": "", "/b": "x"}),
        ([{"a": b"new"}], {"/a": "x", "/b": ""}),
        ([{"p-1.dist-info/RECORD": b"a,,\nb,,\n"}], {"/a": "x", "/b": "p"}),
    ],
)
def test_visible_lists_own_files_of_all_layers(layers: list[Files], owners: dict[str, str]) -> None:
    below: Files = {"a": b"1", "b": b"2", f"{LISTS}/x.list": b"/a\n"}
    table = image(below, *layers).files.set_index("path")["package"]
    assert {path: table[path] for path in owners} == owners


def test_packages_come_with_the_layer_that_brought_this_version() -> None:
    def status(*names: str) -> Files:
        stanzas = [f"Package: {n.split()[0]}\nVersion: {n.split()[1]}\n" for n in names]
        return {"var/lib/dpkg/status": "\n".join(stanzas).encode()}

    rows = image(
        status("a 1", "b 1", "gone 1", "back 1"),
        {"x": b""},
        status("a 1", "b 2", "c 1"),
        status("a 1", "b 2", "c 1", "back 1"),
    ).packages
    assert rows[["name", "version", "layer"]].values.tolist() == [
        ["a", "1", 1],
        ["b", "2", 3],
        ["back", "1", 4],
        ["c", "1", 3],
    ]


def test_packages_of_every_kind_are_seen_and_deleted_ones_are_not() -> None:
    rows = image(IMAGE, {"usr/lib/apk/db/installed": APK}).packages
    assert rows[["kind", "name", "unpacked_bytes", "layer"]].values.tolist() == [
        ["apk", "busybox-binsh", 0, 2],
        ["apk", "musl", 622592, 2],
        ["deb", "half", 0, 1],
        ["deb", "libssl3", 6000 * 1024, 1],
        ["python", "Flask-Login", 13, 1],
        ["python", "old", 0, 1],
    ]
    assert set(rows["kind"]) == set(packages.KINDS)
    assert len(image(IMAGE, {"var/lib/.wh.dpkg": b"", f"{SITE}/.wh..wh..opq": b""}).packages) == 0


def test_each_file_of_status_d_is_a_database() -> None:
    folder = "var/lib/dpkg/status.d"
    found = image(
        {f"{folder}/one": GOOD.replace(b"good", b"one"), f"{folder}/one.md5sums": b"0  a\n"},
        {f"{folder}/two": GOOD.replace(b"good", b"two"), "a": b"1"},
    )
    assert found.packages[["name", "layer"]].values.tolist() == [["one", 1], ["two", 2]]
    assert found.files.set_index("path").loc["/a", "package"] == "one"


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
    assert any("is a link" in note for note in image(*layers).notes) == told


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
    found = image(SHELLS, git=0o644).tools
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
    found = image({"bin/busybox": b"box"} | names).tools
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
    there = {"/file": "", "/file/x": ""} | links
    assert findings.resolve(path, there.get) == real


def test_set_uid_files() -> None:
    files: Files = {"su": b"1", "chage": b"2", "both": b"3", "tmp/": None}
    rows = image(files, su=0o4755, chage=0o2755, both=0o6755, tmp=0o2777).privileged
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


def test_a_secret_of_a_package_is_not_flagged_and_a_hidden_one_is() -> None:
    secret = b"token = " + TOKEN
    rows = image(
        {f"etc/{name}.conf": secret for name in "abcd"} | {f"{LISTS}/p.list": b"/etc/a.conf"},
        {"etc/.wh.b.conf": b"", "etc/c.conf": b"nothing"},
    ).secrets
    assert rows[["line", "kind", "layer"]].drop_duplicates().values.tolist() == [
        [1, "GitHub Token", 1]
    ]
    visible = dict(zip(rows["path"], rows["visible"], strict=True))
    assert visible == {"/etc/b.conf": False, "/etc/c.conf": False, "/etc/d.conf": True}


def test_of_a_path_that_comes_twice_only_the_last_entry_tells() -> None:
    status, env = "var/lib/dpkg/status", "app/.env"
    found = layer({status: GOOD, f"./{status}": "-> x", env: b"x=" + TOKEN, f"./{env}": "-> x"})
    assert (found.databases, found.secrets, len(found.paths)) == ({}, [], 2)


def test_what_looks_like_secrets_is_looked_at_within_bounds() -> None:
    many = {f"app/{number:02}.txt": b"password: hunter\n" * 4_000 for number in range(20)}
    few = layer({"app/.env": b"x=" + TOKEN, **many})
    assert [secret.path for secret in few.secrets if secret.kind == "GitHub Token"] == ["/app/.env"]
    assert len(few.secrets) < 10_000 and any("secrets" in note for note in few.notes)


def test_notes_say_what_was_not_read_and_are_bounded() -> None:
    notes = layer(
        {"../../etc/x": b"1", "var/lib/rpm/rpmdb.sqlite": b"1", "var/lib/dpkg/status": b"garbage\n"}
    ).notes
    for fact in ("'/etc/x'", "rpm", "1 broken records of '/var/lib/dpkg/status'"):
        assert sum(fact in note for note in notes) == 1
    assert len(layer({f"../{number}": b"" for number in range(100)}).notes) == MAX_NOTES


def test_a_database_that_is_too_long_is_left_out_with_a_note() -> None:
    found = layer({"var/lib/dpkg/status": GOOD * 800_000})
    assert not found.databases
    assert [("'/var/lib/dpkg/status'" in note, "20,000,000" in note) for note in found.notes] == [
        (True, True)
    ]


def test_paths_made_to_be_slow_are_told_apart_quickly() -> None:
    began = time.process_time()
    for number in range(30):
        assert packages.python_home(f"/{number}{'a-' * 1980}.dist-info/METADATA")
        assert not packages.is_database(f"/{number}{'a-' * 1980}-info/METADATA")
    assert time.process_time() - began < 1


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
    assert packages.os_release(text) == found


def test_texts_are_those_that_a_container_sees() -> None:
    below: Files = {
        "usr/lib/os-release": b"ID=below",
        "etc/apt/sources.list": b"one",
        "etc/apt/sources.list.d/b.sources": b"two",
        "etc/apt/sources.list.d/readme": b"no",
    }
    above: Files = {"etc/apt/sources.list.d/b.sources": b"new", "etc/apt/.wh.sources.list": b""}
    assert image(below).apt_sources == ("one", "two")
    found = image(below, above, {"etc/os-release": b"ID=above"})
    assert (found.apt_sources, found.os_release) == (("new",), {"ID": "above"})


@pytest.mark.parametrize(
    "files",
    [{}, {".": None} | BASE, IMAGE, {"app/.env": TOKEN, "a/.wh.b": b"", "./": None, "é\n": b""}],
)
def test_a_layer_comes_back_from_its_file(tmp_path: Path, files: Files) -> None:
    held = layer(files)
    assert layers.load(tmp_path, DIGEST) is None
    layers.save(tmp_path, DIGEST, held)
    again = layers.load(tmp_path, DIGEST)
    assert again is not None and repr(again) == repr(held)
    assert again.entries.tolist() == held.entries.tolist()
    (file,) = (each for each in tmp_path.rglob("*") if each.is_file())
    assert bool(held.secrets) == (TOKEN in files.values())
    assert TOKEN not in file.read_bytes() and TOKEN.decode() not in repr(held)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
def test_a_damaged_file_is_noticed_and_written_anew(tmp_path: Path, damage: str) -> None:
    held = layer(IMAGE)
    layers.save(tmp_path, DIGEST, held)
    (file,) = (each for each in tmp_path.rglob("*") if each.is_file())
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    wrong = {"cut": good[:-1], "empty": b"", "flipped": bytes(flipped), "other": b"x" * 5000}
    file.write_bytes(wrong[damage])
    assert layers.load(tmp_path, DIGEST) is None
    layers.save(tmp_path, DIGEST, held)
    assert file.read_bytes() == good


def test_a_file_that_cant_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(StateError, match="taken"):
        layers.save(tmp_path / "taken", DIGEST, layer({}))
