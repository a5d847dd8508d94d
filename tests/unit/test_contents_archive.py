"""Layers read from bytes: every form of tar as engines read it, every compression, broken ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import posixpath
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import archive
from odd_layers import BROKEN, ONE, Seen, evil, extension, hdr
from zstandard import compress

from labapp.errors import DamagedContent, RegistryError
from labapp.inside.archive import KINDS, Entry, opened, stream_of, walk
from labapp.inside.layers import Budget, read_layer
from labapp.registry.manifests import digest_of

DOING = "reading layer 1 of 'shop/web'"


def pieces(data: bytes, length: int = 1000) -> Generator[bytes]:
    for start in range(0, len(data), length):
        yield data[start : start + length]


def walked(data: bytes, length: int = 1000) -> list[Entry]:
    return list(walk(stream_of(pieces(data, length)), doing=DOING))


KINDS_OF = {
    tarfile.REGTYPE: ("file", ""),
    tarfile.DIRTYPE: ("directory", ""),
    tarfile.SYMTYPE: ("symlink", "./x"),
    tarfile.LNKTYPE: ("hardlink", "/x"),
    tarfile.CHRTYPE: ("device", ""),
    tarfile.BLKTYPE: ("device", ""),
    tarfile.FIFOTYPE: ("fifo", ""),
}
NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=300)
ID = st.integers(0, 2**32 - 2)
NUMBERS = st.tuples(st.integers(0, 0o7777), ID, ID)
ENTRIES = st.tuples(NAMES, st.sampled_from([*KINDS_OF]), st.binary(max_size=1500), NUMBERS)


@given(
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(ENTRIES, max_size=6),
    st.integers(1, 3000),
)
def test_what_tarfile_wrote_is_read(
    form: int, entries: list[tuple[str, bytes, bytes, tuple[int, int, int]]], length: int
) -> None:
    held = io.BytesIO()
    expected: list[tuple[Any, ...]] = []
    with tarfile.open(fileobj=held, mode="w", format=form) as written:
        for name, kind, data, numbers in entries:
            info = tarfile.TarInfo(f"a/{name}")
            info.type, info.linkname = kind, "./x"
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            info.mode, info.uid, info.gid = numbers
            info.devmajor = 1  # as a device without a number is a whiteout
            written.addfile(info, io.BytesIO(data))
            path = posixpath.normpath(f"/a/{name}")
            if kind == tarfile.SYMTYPE:
                numbers = (0o777, *numbers[1:])
            expected.append((path, *KINDS_OF[kind], info.size, *numbers))
    assert [
        (each.path, KINDS[each.kind], each.target, each.bytes, each.mode, each.uid, each.gid)
        for each in walked(held.getvalue(), length)
    ] == expected


@pytest.mark.parametrize(("data", "found"), ONE)
def test_an_archive_is_read_as_engines_read_it(data: bytes, found: Seen) -> None:
    assert [(each.path, each.bytes, each.mode, each.uid) for each in walked(data)] == [found]


def test_what_is_no_file_brings_no_data() -> None:
    kinds = b"12456"
    data = b"".join(hdr(b"a", kind=bytes([kind]), size=b"777") for kind in kinds) + evil(
        b"usr/bin/evil"
    )
    assert [each.path for each in walked(data)] == ["/a"] * len(kinds) + ["/usr/bin/evil"]
    assert [walked(bytes(length)) for length in (0, 512, 1024, 10240)] == [[]] * 4
    # Only in archives from before POSIX a slash makes a folder.
    data = b"".join(hdr(b"d/", kind=kind) for kind in (b"\0", b"0", b"5"))
    assert [KINDS[each.kind] for each in walked(data)] == ["directory", "file", "directory"]


@pytest.mark.parametrize(("data", "fact"), BROKEN)
def test_a_broken_archive_is_an_error_that_says_where(data: bytes, fact: str) -> None:
    with pytest.raises(DamagedContent) as caught:
        walked(data)
    assert DOING in str(caught.value) and fact in str(caught.value)


@contextlib.contextmanager
def memory_below(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def test_bombs_of_headers_and_of_files_take_bounded_time_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = time.process_time()
    records = extension(b"6 a=b\n" * 174_762)
    assert [each.path for each in walked(records + evil(b"usr/bin/evil"), 10**6)] == [
        "/usr/bin/evil"
    ]
    many = extension(b"".join(b"13 k%06d=v\n" % number for number in range(10_000)))
    monkeypatch.setattr("labapp.inside.layers.BUDGET_BYTES", 2_000_000)
    for bomb in (many, hdr(b"a" * 99)):
        endless = stream_of(itertools.repeat(bomb))
        with memory_below(10_000_000), pytest.raises(RegistryError):
            read_layer(endless, diff_id="", doing=DOING, budget=Budget(DOING, 0))
    assert time.process_time() - began < 15  # of a processor; it was many more


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzipped,
    "gzip in two members": lambda data: gzipped(data[:700]) + gzipped(data[700:]),
    "zstd": compress,
    "zstd in two frames": lambda data: compress(data[:700]) + compress(data[700:]),
}
SMALL = archive({"etc/motd": b"hello\n" * 100, "empty": b""})


def unpacked(blob: Generator[bytes], diff_id: str) -> list[str]:
    with opened(blob, diff_id=diff_id, doing=DOING) as stream:
        return [entry.path for entry in walk(stream, doing=DOING)]


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("length", [7, 100_000])
def test_each_compression_is_told_by_its_first_bytes(name: str, length: int) -> None:
    blob = COMPRESSIONS[name](SMALL)
    assert unpacked(pieces(blob, length), digest_of(SMALL)) == ["/etc/motd", "/empty"]
    with pytest.raises(DamagedContent, match=digest_of(b"")):
        unpacked(pieces(blob, length), digest_of(b""))
    assert unpacked(pieces(b""), digest_of(b"")) == []


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_compressed_layer_that_is_cut_off_or_altered_is_noticed(name: str) -> None:
    blob = COMPRESSIONS[name](SMALL)
    for wrong in (blob[:-1], blob[: len(blob) // 2], blob[:20] + b"\xff" * 9 + blob[29:]):
        with pytest.raises(DamagedContent, match=DOING):
            unpacked(pieces(wrong), digest_of(SMALL))

    def altered() -> Generator[bytes]:
        yield from pieces(blob[:20] + b"garbage" * 10, 10)
        raise DamagedContent("another digest of the blob")

    # Which is told before what it leads to.
    with pytest.raises(DamagedContent, match="another digest"):
        unpacked(altered(), digest_of(SMALL))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_memory_stays_bounded_whatever_a_layer_unpacks_to(name: str) -> None:
    count = 60_000_000
    blob = COMPRESSIONS[name](hdr(b"zeros", size=b"%o" % count) + bytes(count))
    # It is read to its end, for there its diff ID is known to be wrong.
    with memory_below(30_000_000), pytest.raises(DamagedContent, match="sha256:"):
        unpacked(pieces(blob, 10**6), digest_of(b""))
