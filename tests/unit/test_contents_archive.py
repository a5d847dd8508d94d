"""Layers read from bytes: every form of tar as engines read it, every compression, broken ones."""

from __future__ import annotations

import gzip
import io
import itertools
import posixpath
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from labapp.errors import DamagedContent, RegistryError
from labapp.inside.archive import (
    DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    HARDLINK,
    SYMLINK,
    Entry,
    LayerStream,
    opened,
    walk,
)
from labapp.inside.layers import Layer, read_layer
from labapp.registry.manifests import digest_of

DOING = "reading layer 1 of 'shop/web'"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], form: str = "pax") -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=FORMATS[form]) as written:
        for info, content in members:
            written.addfile(info, io.BytesIO(content))
    return held.getvalue()


def pieces(data: bytes, length: int = 1000) -> Generator[bytes]:
    for start in range(0, len(data), length):
        yield data[start : start + length]


def walked(data: bytes, length: int = 1000) -> list[Entry]:
    return list(walk(LayerStream(pieces(data, length)), doing=DOING))


def layer(data: Generator[bytes]) -> Layer:
    return read_layer(LayerStream(data), diff_id=digest_of(b""), doing=DOING)


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
        length = len(record) + 2
        length += len(str(length + len(str(length)))) if length > 7 else 1
        text += f"{length} {record}\n".encode()
    return extension(text, kind)


@pytest.mark.parametrize("form", FORMATS)
def test_each_kind_of_entry_is_read(form: str) -> None:
    data = tar(
        member("etc/", type=tarfile.DIRTYPE, mode=0o755),
        member("etc/motd", b"hello", mode=0o4755, uid=12, gid=34),
        member("etc/link", type=tarfile.SYMTYPE, linkname="../motd"),
        member("etc/hard", type=tarfile.LNKTYPE, linkname="./etc/motd"),
        member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("dev/sda", type=tarfile.BLKTYPE),
        member("run/pipe", type=tarfile.FIFOTYPE),
        form=form,
    )
    found = walked(data)
    assert [(each.path, each.kind, each.bytes, each.target) for each in found] == [
        ("/etc", DIRECTORY, 0, ""),
        ("/etc/motd", FILE, 5, ""),
        ("/etc/link", SYMLINK, 0, "../motd"),
        ("/etc/hard", HARDLINK, 0, "/etc/motd"),
        ("/dev/null", DEVICE, 0, ""),
        ("/dev/sda", DEVICE, 0, ""),
        ("/run/pipe", FIFO, 0, ""),
    ]
    assert (found[1].mode, found[1].uid, found[1].gid) == (0o4755, 12, 34)


NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=300)


@given(
    form=st.sampled_from(["gnu", "pax"]),
    files=st.lists(
        st.tuples(
            NAMES, st.binary(max_size=1500), st.integers(0, 0o7777), st.integers(0, 2**32 - 1)
        ),
        max_size=6,
    ),
    length=st.integers(1, 3000),
)
def test_what_tarfile_wrote_is_read_as_tarfile_reads_it(
    form: str, files: list[tuple[str, bytes, int, int]], length: int
) -> None:
    data = tar(
        *(member(f"a/{name}", text, mode=mode, uid=owner) for name, text, mode, owner in files),
        form=form,
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as expected:
        wanted = [(each.size, each.mode, each.uid) for each in expected]
    found = walked(data, length)
    assert [(each.bytes, each.mode, each.uid) for each in found] == wanted
    for entry, (name, *_) in zip(found, files, strict=True):
        assert entry.path == posixpath.normpath(f"/a/{name}")


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_name_of_4_kib_is_read(form: str) -> None:
    name = "/".join(["d" * 200] * 20)
    found = walked(tar(member(name, b"x"), member("short"), form=form))
    assert [each.path for each in found] == [f"/{name}", "/short"]


@pytest.mark.parametrize(
    ("name", "path", "outside"),
    [
        (b"/etc/passwd", "/etc/passwd", False),
        (b"//etc//passwd", "/etc/passwd", False),
        (b"./etc/./passwd", "/etc/passwd", False),
        (b"etc/../passwd", "/passwd", False),
        (b"../../etc/passwd", "/etc/passwd", True),
        (b"a/../../etc/passwd", "/etc/passwd", True),
        (b"/../etc/passwd", "/etc/passwd", True),
        (b"..a/b..", "/..a/b..", False),
        (b"./", "/", False),
        (b".", "/", False),
        (b"dir//", "/dir", False),
        # Names in any encoding stay apart.
        (b"caf\xc3\xa9", "/café", False),
        (b"caf\xe9", "/caf\\xe9", False),
        (b"\xff\xfe", "/\\xff\\xfe", False),
    ],
)
def test_a_name_stays_inside_of_the_image(name: bytes, path: str, outside: bool) -> None:
    assert [(each.path, each.outside) for each in walked(hdr(name))] == [(path, outside)]


EVIL = hdr(b"usr/bin/evil", size=b"5", at100=b"0004755\0") + b"data\n".ljust(512, b"\0")
GNU = b"ustar  \0"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (EVIL, ("/usr/bin/evil", 5, 0o4755, 0)),
        # A global header is for the archiver: it changes no entry, and ends what came before it.
        (pax("path=harmless", kind=b"g") + EVIL, ("/usr/bin/evil", 5, 0o4755, 0)),
        (pax("path=harmless") + pax("x=y", kind=b"g") + EVIL, ("/usr/bin/evil", 5, 0o4755, 0)),
        (extension(b"a\0", b"L") + pax("x=y", kind=b"g") + EVIL, ("/usr/bin/evil", 5, 0o4755, 0)),
        # Only the last header before an entry counts.
        (pax("path=first", "uid=5") + pax("uid=7") + EVIL, ("/usr/bin/evil", 5, 0o4755, 7)),
        (pax("path=first") + pax("path=second") + EVIL, ("/second", 5, 0o4755, 0)),
        (pax("uid=", "path=", "gid=4") + EVIL, ("/usr/bin/evil", 5, 0o4755, 0)),
        (pax("uid=0", "path=a") + hdr(at108=b"7"), ("/a", 0, 0o644, 0)),
        # Long names go before pax.
        (pax("path=first") + extension(b"long\0more", b"L") + EVIL, ("/long", 5, 0o4755, 0)),
        # A sparse file's name and size are for sparse files.
        (pax("GNU.sparse.name=harmless") + EVIL, ("/usr/bin/evil", 5, 0o4755, 0)),
        (pax("GNU.sparse.realsize=0") + EVIL, ("/usr/bin/evil", 5, 0o4755, 0)),
        (
            pax("GNU.sparse.major=9", "GNU.sparse.minor=0", "GNU.sparse.name=x") + EVIL,
            ("/usr/bin/evil", 5, 0o4755, 0),
        ),
        (
            pax(
                "GNU.sparse.major=1",
                "GNU.sparse.minor=0",
                "GNU.sparse.name=var/big",
                "GNU.sparse.realsize=1000000",
            )
            + EVIL,
            ("/var/big", 1_000_000, 0o4755, 0),
        ),
        (pax("GNU.sparse.map=0,4", "GNU.sparse.size=9") + EVIL, ("/usr/bin/evil", 9, 0o4755, 0)),
        # Each format has its prefix.
        (hdr(b"b", at345=b"a"), ("/a/b", 0, 0o644, 0)),
        (hdr(b"b", at345=b"p" * 131 + b"12345", at508=b"tar\0"), (f"/{'p' * 131}/b", 0, 0o644, 0)),
        (hdr(b"b", at257=GNU, at345=b"12345"), ("/b", 0, 0o644, 0)),
        (hdr(b"b", at257=GNU, at345=b"pre"), ("/pre/b", 0, 0o644, 0)),
        (hdr(b"b", at257=GNU, at345=b"\xe9"), ("/b", 0, 0o644, 0)),
        (hdr(b"b", at257=bytes(8), at345=b"a"), ("/b", 0, 0o644, 0)),
        # Checksums of signed bytes, and numbers as they come.
        (hdr(b"caf\xe9", sum_of=-256), ("/caf\\xe9", 0, 0o644, 0)),
        (hdr(at108=b"0001750\0"), ("/x", 0, 0o644, 1000)),
        (hdr(at108=b" 1750 \0 "), ("/x", 0, 0o644, 1000)),
        (hdr(at108=b"17\0xxxxx"), ("/x", 0, 0o644, 15)),
        (hdr(at108=b"\x80\x00\x00\x00\xff\xff\xff\xfe"), ("/x", 0, 0o644, 2**32 - 2)),
        (hdr(at108=b"\x80\x00\x00\x01\x00\x00\x00\x00"), ("/x", 0, 0o644, -1)),
        (hdr(at108=b"\xff" * 8), ("/x", 0, 0o644, -1)),
        (hdr(at108=b" " * 8), ("/x", 0, 0o644, 0)),
        # The end: without padding, without zeros, with one block of them, after a lost header.
        (EVIL[:517], ("/usr/bin/evil", 5, 0o4755, 0)),
        (EVIL + bytes(512), ("/usr/bin/evil", 5, 0o4755, 0)),
        (EVIL + bytes(1024) + b"anything", ("/usr/bin/evil", 5, 0o4755, 0)),
        (EVIL + pax("path=lost"), ("/usr/bin/evil", 5, 0o4755, 0)),
    ],
)
def test_an_archive_is_read_as_engines_read_it(
    data: bytes, found: tuple[str, int, int, int]
) -> None:
    assert [(each.path, each.bytes, each.mode, each.uid) for each in walked(data)] == [found]


@pytest.mark.parametrize(("kind", "found"), [(b"\0", DIRECTORY), (b"0", FILE), (b"5", DIRECTORY)])
def test_only_archives_from_before_posix_have_folders_by_a_slash(kind: bytes, found: int) -> None:
    assert [(each.path, each.kind) for each in walked(hdr(b"d/", kind=kind))] == [("/d", found)]


def test_what_brings_no_data_is_followed_by_none() -> None:
    data = b"".join(hdr(b"a", kind=bytes([kind]), size=b"777") for kind in b"123456") + EVIL
    assert [each.path for each in walked(data)] == ["/a"] * 6 + ["/usr/bin/evil"]


@pytest.mark.parametrize("data", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_an_empty_layer(data: bytes) -> None:
    assert walked(data) == []


PETABYTE = b"\x80" + (10**15).to_bytes(11, "big")


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"this is no tar archive" * 100, "tar archive"),
        (b"\x89PNG" + bytes(range(256)) * 4, "tar archive"),
        (b"short", "tar archive"),
        (hdr(size=b"1000"), "'/x'"),
        (hdr(size=b"1000") + bytes(100), "'/x'"),
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
        (extension(b"9 size=abc\n") + hdr(), "pax"),
        (extension(b"0 path=x\n") + hdr(), "pax"),
        (extension(b"5 =a\n") + hdr(), "pax"),
        (extension(b"12 size=abc\n") + hdr(), "pax"),
        (extension(b"12 size=1_0\n") + hdr(), "pax"),
        (extension(b"11 size=-5\n") + hdr(), "-5"),
        (pax("size=1000000000000000") + hdr(), "1,000,000,000,000,000"),
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


def test_an_archive_that_is_cut_off_anywhere_is_noticed() -> None:
    data = tar(member("a", b"x" * 700), member("b" * 150, b"y"))[:4096]
    whole = [each.path for each in walked(data)]
    for length in range(1, len(data)):
        try:
            found = [each.path for each in walked(data[:length], 4096)]
        except DamagedContent:
            continue
        # Only between two entries, or in padding, is a missing end no damage: as engines have it.
        assert found == whole[: len(found)]
        assert not data[length : length + -length % 512].strip(b"\0")


def test_bombs_of_headers_take_bounded_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.process_time()
    records = extension(b"6 a=b\n" * 174_762)
    assert [each.path for each in walked(records + EVIL, 10**6)] == ["/usr/bin/evil"]
    monkeypatch.setattr("labapp.inside.layers.BUDGET_BYTES", 8_000_000)
    other = extension(b"".join(b"13 k%06d=v\n" % number for number in range(80_000)))
    tracemalloc.start()
    try:
        with pytest.raises(RegistryError):
            layer(other for _ in range(900))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5  # of a processor; it was many more


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def zstd(data: bytes) -> bytes:
    return zstandard.compress(data)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzipped,
    "gzip in two members": lambda data: gzipped(data[:700]) + gzipped(data[700:]),
    "zstd": zstd,
    "zstd in two frames": lambda data: zstd(data[:700]) + zstd(data[700:]),
}
SMALL = tar(member("etc/motd", b"hello\n" * 100), member("empty"))


def unpacked(blob: Generator[bytes], diff_id: str) -> list[str]:
    with opened(blob, diff_id=diff_id, doing=DOING) as stream:
        return [entry.path for entry in walk(stream, doing=DOING)]


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("length", [7, 100_000])
def test_each_compression_is_told_by_its_first_bytes(name: str, length: int) -> None:
    blob = COMPRESSIONS[name](SMALL)
    assert unpacked(pieces(blob, length), digest_of(SMALL)) == ["/etc/motd", "/empty"]
    with pytest.raises(DamagedContent, match="sha256:0000"):
        unpacked(pieces(blob, length), "sha256:" + "0" * 64)


def test_an_empty_blob_is_an_empty_layer() -> None:
    assert unpacked(pieces(b""), digest_of(b"")) == []


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_compressed_layer_that_is_cut_off_or_altered_is_noticed(name: str) -> None:
    blob = COMPRESSIONS[name](SMALL)
    for wrong in (blob[:-1], blob[: len(blob) // 2], blob[:20] + b"\xff" * 9 + blob[29:]):
        with pytest.raises(DamagedContent, match=DOING):
            unpacked(pieces(wrong), digest_of(SMALL))


def test_a_wrong_digest_of_the_blob_is_told_before_what_it_leads_to() -> None:
    def altered() -> Generator[bytes]:
        yield from pieces(gzipped(SMALL)[:50] + b"garbage" * 10, 10)
        raise DamagedContent("another digest")

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


def _gzip_bomb(head: bytes, megabytes: int) -> bytes:
    return gzipped(head) + gzip.compress(bytes(1_000_000), 9) * megabytes


def _zstd_bomb(head: bytes, megabytes: int) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1_000_000)
    parts = [packer.compress(head), *(packer.compress(zeros) for _ in range(megabytes))]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize("bomb", [_gzip_bomb, _zstd_bomb])
def test_memory_stays_bounded_whatever_a_layer_unpacks_to(
    bomb: Callable[[bytes, int], bytes],
) -> None:
    count = 200_000_000
    blob = bomb(hdr(b"zeros", size=b"%o" % count), count // 1_000_000)
    tracemalloc.start()
    try:
        with (
            pytest.raises(DamagedContent, match="sha256:"),
            opened(pieces(blob, 10**6), diff_id=digest_of(b""), doing=DOING) as plain,
        ):
            assert [each.bytes for each in walk(plain, doing=DOING)] == [count]
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def many(count: int) -> Generator[bytes]:
    """The archive of many empty files, without holding it."""
    # Of a number and its complement the digits always add up to the same, and so do the headers.
    before, after = hdr(b"000000999999").split(b"000000999999")
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        yield b"".join(b"%b%06d%06d%b" % (before, n, 999_999 - n, after) for n in numbers)


def test_many_tiny_files_are_read_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    found = layer(many(20_000))
    assert (len(found.paths), found.files, found.unpacked_bytes) == (20_000, 20_000, 0)
    assert found.paths[-1] == "/019999980000"
    monkeypatch.setattr("labapp.inside.layers.BUDGET_BYTES", 1_000_000)
    with pytest.raises(RegistryError):
        layer(many(20_000))
