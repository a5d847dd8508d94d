"""Layers as bytes: every form of tar as engines read it, every compression, broken ones."""

from __future__ import annotations

import gzip
import io
import operator
import random
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import Files, Memory, made, put, read
from odd_layers import BROKEN, ONE, Seen, evil, extension, hdr
from zstandard import compress

from labapp.errors import DamagedContent
from labapp.registry.manifests import digest_of

KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "fifo",
}
NAME = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=300)
ID = st.integers(0, 2**32 - 2)
ENTRY = st.tuples(
    NAME.filter(lambda name: "/" not in name and name[0] not in ".\\"),
    st.sampled_from([*KINDS]),
    st.binary(max_size=1500),
    st.tuples(st.integers(0, 0o7777), ID, ID),
)
FORMS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@given(FORMS, st.lists(ENTRY, max_size=6, unique_by=operator.itemgetter(0)))
def test_what_tarfile_wrote_is_read(form: int, entries: list[Any]) -> None:
    held, expected = io.BytesIO(), []
    with tarfile.open(fileobj=held, mode="w", format=form) as written:
        for number, (name, kind, data, (mode, *ids)) in enumerate(entries):
            info = tarfile.TarInfo(f"a/{name}")
            info.type, info.linkname = kind, f"./{number}"
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            info.mode, info.uid, info.gid = mode, *ids
            info.devmajor = 1  # as a device without a number is a whiteout
            written.addfile(info, io.BytesIO(data))
            mode = 0o777 if kind == tarfile.SYMTYPE else mode
            target = {"symlink": f"./{number}", "hardlink": f"/{number}"}.get(KINDS[kind], "")
            expected.append([f"/a/{name}", KINDS[kind], target, info.size, mode, *ids])
    files = made(held.getvalue()).files
    columns = ["path", "type", "target", "bytes", "mode", "uid", "gid"]
    assert sorted(files[columns].values.tolist()) == sorted(expected)


@pytest.mark.parametrize(("data", "found"), ONE)
def test_an_archive_is_read_as_engines_read_it(data: bytes, found: Seen) -> None:
    assert made(data).files[["path", "bytes", "mode", "uid"]].values.tolist() == [[*found]]


def test_what_is_no_file_brings_no_data() -> None:
    kinds = {b"1": "hardlink", b"2": "symlink", b"4": "device", b"5": "directory", b"6": "fifo"}
    data = b"".join(hdr(kind, kind=kind, size=b"777", at329=b"1") for kind in kinds)
    files = made(data + evil(b"usr/bin/evil")).files.set_index("path")
    expected = {f"/{kind.decode()}": told for kind, told in kinds.items()}
    assert files["type"].to_dict() == {**expected, "/usr/bin/evil": "file"}
    assert [len(made(bytes(length)).files) for length in (0, 512, 1024, 10240)] == [0] * 4
    # Only in archives from before POSIX a slash makes a folder.
    data = b"".join(
        hdr(b"%d/" % place, kind=kind) for place, kind in enumerate((b"\0", b"0", b"5"))
    )
    assert list(made(data).files["type"]) == ["directory", "file", "directory"]


@pytest.mark.parametrize(("data", "fact"), BROKEN)
def test_a_broken_archive_is_an_error_that_says_where(data: bytes, fact: str) -> None:
    with pytest.raises(DamagedContent) as caught:
        made(data)
    assert "layer 1 of 'r.test/shop/web:1'" in str(caught.value) and fact in str(caught.value)


def test_a_header_of_many_records_takes_bounded_time() -> None:
    began, records = time.process_time(), extension(b"6 a=b\n" * 174_762)
    assert list(made(records + evil(b"usr/bin/evil")).files["path"]) == ["/usr/bin/evil"]
    assert time.process_time() - began < 10  # of a processor


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzipped,
    "gzip in two members": lambda data: gzipped(data[:700]) + gzipped(data[700:]),
    "zstd": compress,
    "zstd in two frames": lambda data: compress(data[:700]) + compress(data[700:]),
}
SMALL: Files = {"etc/motd": b"hello\n" * 100, "empty": b""}
RANDOM = {"noise": random.Random(1).randbytes(9000)}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_each_compression_is_told_by_its_first_bytes(pack: Callable[[bytes], bytes]) -> None:
    assert list(made(SMALL, pack=pack).files["path"]) == ["/empty", "/etc/motd"]
    with pytest.raises(DamagedContent, match=digest_of(b"")):
        made(SMALL, pack=pack, diff_ids=[digest_of(b"")])
    assert len(made(b"", pack=bytes).files) == 0


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_compressed_layer_that_is_cut_off_or_altered_is_noticed(name: str) -> None:
    for spoil in (
        lambda blob: blob[:-1],
        lambda blob: blob[: len(blob) // 2],
        lambda blob: blob[:20] + b"\xff" * 9 + blob[29:],
    ):
        with pytest.raises(DamagedContent, match="layer 1 of"):
            made(RANDOM, pack=lambda data, spoil=spoil: spoil(PACKED[name](data)))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_memory_stays_bounded_whatever_a_layer_unpacks_to(name: str, tmp_path: Path) -> None:
    count, registry = 60_000_000, Memory()
    layer = hdr(b"zeros", size=b"%o" % count) + bytes(count)
    put(registry, "shop/web", "1", [layer], pack=PACKED[name], diff_ids=[digest_of(b"")])
    del layer
    tracemalloc.start()
    try:
        # It is read to its end, for there its diff ID is known to be wrong.
        with pytest.raises(DamagedContent, match="sha256:"):
            read(registry, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
