"""Layers read from bytes: every form of tar as engines read it, every compression, broken ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import posixpath
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import archive
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


def hdr(
    name: bytes = b"x", *, size: bytes = b"0", kind: bytes = b"0", sum_of: int = 0, **parts: bytes
) -> bytes:
    """A raw ustar header; ``parts`` are put at an offset, as in ``at345=b"..."``."""
    block = bytearray(512)
    fields = {0: name, 100: b"0000644\0", 108: b"0\0", 116: b"0\0", 124: size, 136: b"0\0"}
    fields |= {148: b" " * 8, 156: kind, 257: b"ustar\x0000"}
    for offset, value in (fields | {int(at[2:]): value for at, value in parts.items()}).items():
        block[offset : offset + len(value)] = value
    block[148:156] = b"%06o\0 " % (sum(block) + sum_of)
    return bytes(block)


def extension(text: bytes, kind: bytes = b"x") -> bytes:
    """A header that says more about the entry after it."""
    return hdr(b"more", kind=kind, size=b"%o" % len(text)) + text + bytes(-len(text) % 512)


def pax(*records: str, kind: bytes = b"x") -> bytes:
    text = b""
    for record in records:
        lines = (f"{length} {record}\n" for length in itertools.count())
        text += next(line for line in lines if line.startswith(f"{len(line)} ")).encode()
    return extension(text, kind)


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
ID = st.integers(0, 2**32 - 1)
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
            written.addfile(info, io.BytesIO(data))
            path = posixpath.normpath(f"/a/{name}")
            expected.append((path, *KINDS_OF[kind], info.size, *numbers))
    assert [
        (each.path, KINDS[each.kind], each.target, each.bytes, each.mode, each.uid, each.gid)
        for each in walked(held.getvalue(), length)
    ] == expected


EVIL = hdr(b"usr/bin/evil", size=b"5", at100=b"0004755\0") + b"data\n".ljust(512, b"\0")
GNU = b"ustar  \0"
VERSION_1 = ("GNU.sparse.major=1", "GNU.sparse.minor=0")
SEEN = ("/usr/bin/evil", 5, 0o4755, 0)


def named(path: str, uid: int = 0) -> tuple[str, int, int, int]:
    return path, 0, 0o644, uid


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (EVIL, SEEN),
        # A name stays inside of the image; in any encoding names stay apart.
        *(
            (hdr(name), named(path))
            for name, path in (
                (b"/etc/passwd", "/etc/passwd"),
                (b"//etc/./passwd", "/etc/passwd"),
                (b"etc/../passwd", "/passwd"),
                (b"a/../../etc/passwd", "/etc/passwd"),
                (b"..a/b..", "/..a/b.."),
                (b"./", "/"),
                (b"dir//", "/dir"),
                (b"caf\xc3\xa9", "/café"),
                (b"caf\xe9", "/caf\\xe9"),
                (b"\xff\xfe", "/\\xff\\xfe"),
            )
        ),
        # A global header is for the archiver: it changes no entry, and ends what came before it.
        (pax("path=harmless", kind=b"g") + EVIL, SEEN),
        (pax("path=harmless") + pax("x=y", kind=b"g") + EVIL, SEEN),
        (extension(b"a\0", b"L") + pax("x=y", kind=b"g") + EVIL, SEEN),
        # Only the last header before an entry counts.
        (pax("path=first", "uid=5") + pax("uid=7") + EVIL, ("/usr/bin/evil", 5, 0o4755, 7)),
        (pax("path=first") + pax("path=second") + EVIL, ("/second", 5, 0o4755, 0)),
        (pax("uid=", "path=", "gid=4") + EVIL, SEEN),
        (pax("uid=0", "path=a") + hdr(at108=b"7"), named("/a")),
        # Long names go before pax.
        (pax("path=first") + extension(b"long\0more", b"L") + EVIL, ("/long", 5, 0o4755, 0)),
        # A sparse file's name and size are for sparse files.
        (pax("GNU.sparse.major=9", VERSION_1[1], "GNU.sparse.name=x") + EVIL, SEEN),
        (pax("GNU.sparse.name=harmless") + EVIL, SEEN),
        (pax("GNU.sparse.realsize=0") + EVIL, SEEN),
        (
            pax(*VERSION_1, "GNU.sparse.name=var/big", "GNU.sparse.realsize=1000000") + EVIL,
            ("/var/big", 1_000_000, 0o4755, 0),
        ),
        (pax("GNU.sparse.map=0,4", "GNU.sparse.size=9") + EVIL, ("/usr/bin/evil", 9, 0o4755, 0)),
        # Each format has its prefix.
        (hdr(b"b", at345=b"a"), named("/a/b")),
        (hdr(b"b", at345=b"p" * 131 + b"12345", at508=b"tar\0"), named(f"/{'p' * 131}/b")),
        (hdr(b"b", at257=GNU, at345=b"12345"), named("/b")),
        (hdr(b"b", at257=GNU, at345=b"pre"), named("/pre/b")),
        (hdr(b"b", at257=GNU, at345=b"\xe9"), named("/b")),
        (hdr(b"b", at257=bytes(8), at345=b"a"), named("/b")),
        # Checksums of signed bytes, and numbers as they come.
        (hdr(b"caf\xe9", sum_of=-256), named("/caf\\xe9")),
        (hdr(at108=b"0001750\0"), named("/x", uid=1000)),
        (hdr(at108=b" 1750 \0 "), named("/x", uid=1000)),
        (hdr(at108=b"17\0xxxxx"), named("/x", uid=15)),
        (hdr(at108=b"\x80\x00\x00\x00\xff\xff\xff\xfe"), named("/x", uid=2**32 - 2)),
        (hdr(at108=b"\x80\x00\x00\x01\x00\x00\x00\x00"), named("/x", uid=-1)),
        (hdr(at108=b"\xff" * 8), named("/x", uid=-1)),
        (hdr(at108=b" " * 8), named("/x")),
        # The end: without padding, without zeros, with one block of them, after a lost header.
        (EVIL[:517], SEEN),
        (EVIL + bytes(512), SEEN),
        (EVIL + bytes(1024) + b"anything", SEEN),
        (EVIL + pax("path=lost"), SEEN),
    ],
)
def test_an_archive_is_read_as_engines_read_it(
    data: bytes, found: tuple[str, int, int, int]
) -> None:
    assert [(each.path, each.bytes, each.mode, each.uid) for each in walked(data)] == [found]


def test_what_is_no_file_brings_no_data() -> None:
    kinds = b"123456"
    data = b"".join(hdr(b"a", kind=bytes([kind]), size=b"777") for kind in kinds) + EVIL
    assert [each.path for each in walked(data)] == ["/a"] * len(kinds) + ["/usr/bin/evil"]
    assert [walked(bytes(length)) for length in (0, 512, 1024, 10240)] == [[]] * 4
    # Only in archives from before POSIX a slash makes a folder.
    data = b"".join(hdr(b"d/", kind=kind) for kind in (b"\0", b"0", b"5"))
    assert [KINDS[each.kind] for each in walked(data)] == ["directory", "file", "directory"]


PETABYTE = b"\x80" + (10**15).to_bytes(11, "big")


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"this is no tar archive" * 100, "tar archive"),
        (b"short", "tar archive"),
        (hdr(size=b"1000"), "'/x'"),
        (hdr() + hdr()[:300], "byte 812"),
        (hdr() + b"y" + hdr()[1:], "checksum"),
        (hdr() + bytes(512) + hdr(), "end"),
        (hdr(b"a") + hdr(size=PETABYTE), "1,000,000,000,000,000"),
        (hdr(b"a") + hdr(size=b"\xff" * 12), "-1"),
        (hdr(b"a", size=b"\x80" + bytes(9) + b"\xff\xff"), "'/a'"),
        (hdr(kind=b"L", size=b"77777777777"), "8,589,934,591"),
        (hdr(kind=b"g", size=b"1000") + bytes(20), "cut off"),
        (extension(b"nonsense") + hdr(), "pax"),
        (extension(b"99999999 path=x\n") + hdr(), "pax"),
        (extension(b"0 path=x\n") + hdr(), "pax"),
        (extension(b"5 =a\n") + hdr(), "pax"),
        (extension(b"12 size=abc\n") + hdr(), "pax"),
        (extension(b"12 size=1_0\n") + hdr(), "pax"),
        (extension(b"11 size=-5\n") + hdr(), "-5"),
        (pax("GNU.sparse.map=0,1", "GNU.sparse.size=-10") + hdr(), "-10"),
        (extension(b"11 path=a\0\n") + hdr(), "pax"),
        (extension(b"n" * 600, b"L")[:700], "600"),
        (extension(b"n" * 5000, b"L") + hdr(), "nnn"),
        *((hdr(b"a") + hdr(kind=bytes([kind])), chr(kind)) for kind in b"7SVMDNZ"),
        *(
            (hdr(b"a") + hdr(at108=field), "number")
            for field in (b"99999999", b"0o17", b"+7", b"-7", b"1_0", b"7 7")
        ),
        (hdr(b"a") + hdr(size=b"\x80" + b"\xff" * 11), "number"),
    ],
)
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
    assert [each.path for each in walked(records + EVIL, 10**6)] == ["/usr/bin/evil"]
    many = extension(b"".join(b"13 k%06d=v\n" % number for number in range(10_000)))
    monkeypatch.setattr("labapp.inside.layers.BUDGET_BYTES", 800_000)
    for bomb in (many, hdr(b"a" * 99)):
        endless = stream_of(itertools.repeat(bomb))
        with memory_below(10_000_000), pytest.raises(RegistryError):
            read_layer(endless, diff_id="", doing=DOING, budget=Budget(DOING))
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


def test_who_leaves_early_waits_for_nobody_and_ends_the_fetching() -> None:
    silent, closed = threading.Event(), threading.Event()

    def blob() -> Generator[bytes]:
        try:
            yield SMALL[:2048]
            silent.wait(60)
            yield from itertools.repeat(bytes(1000))
        finally:
            closed.set()

    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        opened(blob(), diff_id=digest_of(b""), doing=DOING) as stream,
    ):
        assert next(walk(stream, doing=DOING)).path == "/etc/motd"
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30 and not closed.is_set()
    silent.set()
    assert closed.wait(30)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_memory_stays_bounded_whatever_a_layer_unpacks_to(name: str) -> None:
    count = 60_000_000
    blob = COMPRESSIONS[name](hdr(b"zeros", size=b"%o" % count) + bytes(count))
    # It is read to its end, for there its diff ID is known to be wrong.
    with memory_below(30_000_000), pytest.raises(DamagedContent, match="sha256:"):
        unpacked(pieces(blob, 10**6), digest_of(b""))
