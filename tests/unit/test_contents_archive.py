"""Layers read from bytes: every form of tar, every compression, and what is broken."""

from __future__ import annotations

import gzip
import io
import itertools
import posixpath
import tarfile
import tracemalloc
from collections.abc import Callable, Generator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from labapp.contents import archive
from labapp.contents.archive import DEVICE, DIRECTORY, FIFO, FILE, HARDLINK, SYMLINK, Entry
from labapp.contents.layers import read_layer
from labapp.contents.streams import LayerStream, opened
from labapp.errors import DamagedContent, RegistryError
from labapp.manifests import digest_of

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
    stream = LayerStream(pieces(data, length), on_chunk=lambda: None)
    return list(archive.walk(stream, doing=DOING))


def header(name: bytes = b"x", *, size: bytes = b"0", kind: bytes = b"0", **parts: bytes) -> bytes:
    """A raw ustar header; ``parts`` are put at an offset, as in ``at345=b"..."``."""
    block = bytearray(512)
    fields = {0: name, 100: b"0000644\0", 108: b"0\0", 116: b"0\0", 124: size, 136: b"0\0"}
    fields |= {148: b" " * 8, 156: kind, 257: b"ustar\x0000"}
    for offset, value in (fields | {int(at[2:]): value for at, value in parts.items()}).items():
        block[offset : offset + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(kind: bytes, text: bytes) -> bytes:
    """A header that says more about the entry after it."""
    return header(kind=kind, size=b"%o" % len(text)) + text + bytes(-len(text) % 512)


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
        ("/etc/passwd", "/etc/passwd", False),
        ("//etc//passwd", "/etc/passwd", False),
        ("./etc/./passwd", "/etc/passwd", False),
        ("etc/../passwd", "/passwd", False),
        ("../../etc/passwd", "/etc/passwd", True),
        ("a/../../etc/passwd", "/etc/passwd", True),
        ("/../etc/passwd", "/etc/passwd", True),
        ("..a/b..", "/..a/b..", False),
        ("./", "/", False),
        (".", "/", False),
        ("dir//", "/dir", False),
    ],
)
def test_a_name_stays_inside_of_the_image(name: str, path: str, outside: bool) -> None:
    found = walked(header(name.encode()))
    assert [(each.path, each.outside) for each in found] == [(path, outside)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"caf\xc3\xa9", "/café"),
        (b"caf\xe9", "/caf\\xe9"),
        (b"\xff\xfe", "/\\xff\\xfe"),
        ("名前".encode("shift_jis"), "/\\x96\\xbc\\x91O"),
    ],
)
def test_names_in_any_encoding_stay_apart(name: bytes, path: str) -> None:
    assert walked(header(name))[0].path == path


@pytest.mark.parametrize(("kind", "found"), [(b"\0", DIRECTORY), (b"0", FILE), (b"7", FILE)])
def test_only_archives_from_before_posix_have_folders_by_a_slash(kind: bytes, found: int) -> None:
    assert [(each.path, each.kind) for each in walked(header(b"d/", kind=kind))] == [("/d", found)]


def test_a_prefix_belongs_to_the_name_only_in_ustar() -> None:
    assert walked(header(b"b", at345=b"a"))[0].path == "/a/b"
    assert walked(header(b"b", at257=b"ustar  \0", at345=b"12345"))[0].path == "/b"


@pytest.mark.parametrize(
    ("field", "owner"),
    [
        (b"0001750\0", 1000),
        (b"\x80\x00\x00\x00\xff\xff\xff\xfe", 2**32 - 2),
        (b"\x80\x00\x00\x01\x00\x00\x00\x00", -1),
        (b"\xff" * 8, -1),
        (b" " * 8, 0),
    ],
)
def test_odd_owners(field: bytes, owner: int) -> None:
    assert walked(header(at108=field))[0].uid == owner


def test_pax_headers_say_more_than_the_entry_and_a_global_one_holds_on() -> None:
    info, content = member("short", b"12345", uid=7)
    info.pax_headers = {"path": "long/näme", "uid": "70000", "mtime": "1.5"}
    held = io.BytesIO()
    general = {"gid": "42", "comment": "a note"}
    with tarfile.open(fileobj=held, mode="w", pax_headers=general) as written:
        written.addfile(info, io.BytesIO(content))
        written.addfile(member("next", b"ab")[0], io.BytesIO(b"ab"))
    found = walked(held.getvalue())
    assert [(each.path, each.uid, each.gid, each.bytes) for each in found] == [
        ("/long/näme", 70000, 42, 5),
        ("/next", 0, 42, 2),
    ]


def test_sparse_files_count_with_their_holes() -> None:
    info, content = member("GNUSparseFile.0/big", b"1\n0\n4\n".ljust(512, b"\0") + b"data")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "var/big",
        "GNU.sparse.realsize": "1000000",
    }
    old = header(b"old", size=b"4", kind=b"S", at482=b"\1", at483=b"00003641100")
    more = bytes(504) + b"\1" + bytes(7) + bytes(512)
    data = tar((info, content))[:2560] + old + more + b"data".ljust(512, b"\0") + header(b"end")
    assert [(each.path, each.bytes) for each in walked(data)] == [
        ("/var/big", 1_000_000),
        ("/old", 0o3641100),
        ("/end", 0),
    ]


@pytest.mark.parametrize("data", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_an_empty_layer(data: bytes) -> None:
    assert walked(data) == []


PETABYTE = b"\x80" + (10**15).to_bytes(11, "big")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"this is no tar archive" * 100, "not a tar archive"),
        (b"\x89PNG" + bytes(range(256)) * 4, "not a tar archive"),
        (b"short", "cut off in a header"),
        (header(size=b"1000"), "cut off in '/x'"),
        (header(size=b"1000") + bytes(100), "cut off in '/x'"),
        (header() + header()[:300], "cut off in a header"),
        (header() + b"y" + header()[1:], "checksum of a header is wrong"),
        (header() + bytes(512) + header(), "end comes in the middle"),
        (header(size=PETABYTE), "claims 1,000,000,000,000,000 bytes"),
        (header(size=b"\xff" * 12), "claims -1 bytes"),
        (header(b"a", size=b"\x80" + bytes(9) + b"\xff\xff"), "cut off in '/a'"),
        (header(kind=b"S", at483=PETABYTE), "claim 1,000,000,000,000,000 bytes"),
        (header(kind=b"L", size=b"77777777777"), "8,589,934,591 bytes comes before"),
        (extension(b"x", b"nonsense") + header(), "pax header is broken"),
        (extension(b"x", b"99999999 path=x\n") + header(), "pax header is broken"),
        (extension(b"x", b"9 size=abc\n") + header(), "pax header is broken"),
        (extension(b"x", b"0 path=x\n") + header(), "pax header is broken"),
        (extension(b"x", b"12 size=abc\n") + header(), "abc"),
        (extension(b"x", b"11 size=-5\n") + header(), "claims"),
        (extension(b"x", b"27 GNU.sparse.realsize=-10\n") + header(), "claims"),
        (extension(b"x", b"25 size=1000000000000000\n") + header(), "claims 1,000,000,000,000,000"),
        (extension(b"x", b"10 path=a\0\n"[:7] + b"a\0\n") + header(), "pax header is broken"),
        (extension(b"x", b"11 path=a\0\n") + header(), "no path"),
        (extension(b"L", b"name\0"), "end comes in the middle"),
        (extension(b"L", b"name\0")[:700], "cut off in a header"),
        (extension(b"L", b"n" * 5000) + header(), "no path"),
        (header(kind=b"S", at482=b"\1"), "cut off in a header"),
        (header(at108=b"99999999"), "not a tar archive"),
    ],
)
def test_a_broken_archive_is_an_error_that_says_how(data: bytes, cause: str) -> None:
    with pytest.raises(DamagedContent, match=DOING) as caught:
        walked(data)
    assert cause in str(caught.value)


def test_an_archive_that_is_cut_off_anywhere_is_noticed() -> None:
    data = tar(member("a", b"x" * 700), member("b" * 150, b"y"))[:4096]
    whole = [each.path for each in walked(data)]
    for length in range(1, len(data)):
        try:
            found = [each.path for each in walked(data[:length], 4096)]
        except DamagedContent:
            continue
        # Only between two entries is a missing end no damage: engines take that as well.
        assert length in {1536: ["/a"], 1024: []} or length >= 3584
        assert found == whole[: len(found)]


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
        return [entry.path for entry in archive.walk(stream, doing=DOING)]


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("length", [7, 100_000])
def test_each_compression_is_told_by_its_first_bytes(name: str, length: int) -> None:
    blob = COMPRESSIONS[name](SMALL)
    assert unpacked(pieces(blob, length), digest_of(SMALL)) == ["/etc/motd", "/empty"]


def test_an_empty_blob_is_an_empty_layer() -> None:
    assert unpacked(pieces(b""), digest_of(b"")) == []


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_wrong_diff_id_is_noticed(name: str) -> None:
    with pytest.raises(DamagedContent, match=r"the image's config promises sha256:0000"):
        unpacked(pieces(COMPRESSIONS[name](SMALL)), "sha256:" + "0" * 64)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_compressed_layer_that_is_cut_off_or_altered_is_noticed(name: str) -> None:
    blob = COMPRESSIONS[name](SMALL)
    for wrong in (blob[:-1], blob[: len(blob) // 2], blob[:20] + b"\xff" * 9 + blob[29:]):
        with pytest.raises(DamagedContent, match=DOING):
            unpacked(pieces(wrong), digest_of(SMALL))


def test_a_wrong_digest_of_the_blob_is_told_before_what_it_leads_to() -> None:
    def altered() -> Generator[bytes]:
        yield from pieces(gzipped(SMALL)[:50] + b"garbage" * 10, 10)
        raise DamagedContent("its bytes do not match the digest")

    with pytest.raises(DamagedContent, match="do not match the digest"):
        unpacked(altered(), digest_of(SMALL))


def test_leaving_early_ends_the_fetching() -> None:
    fetched = 0
    closed = False

    def endless() -> Generator[bytes]:
        nonlocal fetched, closed
        try:
            for piece in itertools.chain([SMALL[:2048]], itertools.repeat(bytes(100_000))):
                fetched += 1
                yield piece
        finally:
            closed = True

    with opened(endless(), diff_id=digest_of(b""), doing=DOING, whole=False) as stream:
        assert next(archive.walk(stream, doing=DOING)).path == "/etc/motd"
    assert closed and fetched < 20


BOMB_BYTES = 400_000_000


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_memory_stays_bounded_whatever_a_layer_unpacks_to(name: str) -> None:
    head = header(b"zeros", size=b"%o" % BOMB_BYTES)
    packer = {"gzip": _gzip_bomb, "zstd": _zstd_bomb}[name]
    blob = packer(head, BOMB_BYTES // 1_000_000)
    tracemalloc.start()
    try:
        with opened(pieces(blob, 10**6), diff_id=digest_of(b""), doing=DOING, whole=False) as plain:
            assert [each.bytes for each in archive.walk(plain, doing=DOING)] == [BOMB_BYTES]
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def _gzip_bomb(head: bytes, megabytes: int) -> bytes:
    return gzipped(head) + gzip.compress(bytes(1_000_000), 9) * megabytes


def _zstd_bomb(head: bytes, megabytes: int) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1_000_000)
    parts = [packer.compress(head), *(packer.compress(zeros) for _ in range(megabytes))]
    return b"".join([*parts, packer.flush()])


def many(count: int) -> Generator[bytes]:
    """The archive of many empty files, without holding it."""
    # Of a number and its complement the digits always add up to the same, and so do the headers.
    before, after = header(b"000000999999").split(b"000000999999")
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        yield b"".join(b"%b%06d%06d%b" % (before, n, 999_999 - n, after) for n in numbers)


def test_many_tiny_files_are_read_as_they_come() -> None:
    stream = LayerStream(many(100_000), on_chunk=lambda: None)
    layer = read_layer(stream, diff_id=digest_of(b""), doing=DOING)
    assert (len(layer.paths), layer.files, layer.unpacked_bytes) == (100_000, 100_000, 0)
    assert layer.paths[-1] == "/099999900000"


def test_too_many_entries_are_an_error_not_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labapp.contents.layers.MAX_ENTRIES", 500)
    stream = LayerStream(many(501), on_chunk=lambda: None)
    with pytest.raises(RegistryError, match="more than 500 entries"):
        read_layer(stream, diff_id=digest_of(b""), doing=DOING)


def test_too_long_names_are_an_error_not_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labapp.contents.layers.MAX_PATH_TEXT", 2000)
    stream = LayerStream(many(501), on_chunk=lambda: None)
    with pytest.raises(RegistryError, match="names of more than"):
        read_layer(stream, diff_id=digest_of(b""), doing=DOING)
