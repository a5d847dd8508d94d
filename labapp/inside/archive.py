"""A layer's archive: its bytes as a stream, inflated and verified on the way, and its entries.

Nothing is unpacked to disk; memory holds a few chunks, whatever a layer unpacks to. An archive is
read as Go's archive/tar reads it, with which engines unpack: what `tarfile` makes of an odd one is
not always what a container sees, and takes twice as long.

Sources: OCI Image Specification 1.1, layer.md and config.md ("rootfs.diff_ids"); POSIX.1-2017, pax;
Go's archive/tar/reader.go.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import hashlib
import io
import itertools
import posixpath
import queue
import re
import struct
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import zstandard
from isal import igzip
from isal.igzip_lib import IsalError

from labapp.errors import DamagedContent, damaged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 512 * 1024
PIECE_BYTES = 64 * 1024
"""How much is read or skipped at once: of larger pieces, making room takes longer than copying."""
AHEAD = 4
"""How many chunks each thread works ahead of the next."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BROKEN: tuple[Any, ...] = (IsalError, gzip.BadGzipFile, EOFError, zstandard.ZstdError)

BLOCK = 512
MAX_EXTENSION_BYTES = 1024 * 1024
"""The longest long name or pax header that Go reads."""
MAX_PATH = 4096
MAX_UNPACKED_BYTES = 1 << 44
"""16 TiB, the largest file of ext4."""

FILE, DIRECTORY, SYMLINK, HARDLINK, DEVICE, FIFO = range(6)
KINDS = ("file", "directory", "symlink", "hardlink", "device", "fifo")
"""What an entry is; plain numbers, as there may be a million of them."""

_KINDS = {0: FILE}
_KINDS |= enumerate((FILE, HARDLINK, SYMLINK, DEVICE, DEVICE, DIRECTORY, FIFO), ord("0"))
_HEADER = struct.Struct("100s 8s 8s 8s 12s 12x 8s B 100s 8s 64x 8s 8s 155s 8x 4s")
"""Name, mode, uid, gid, size, checksum, kind, target, magic, device's two, prefix, star's end."""

WHITEOUT = ".wh."
_LIKE_A_BYTE = re.compile(rb"\\(?=x(?:[89a-f][0-9a-f]|5c))")


class _Chunks(io.RawIOBase):
    """Chunks as a file, which is what the libraries that inflate read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest, self._position = chunks, memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer).cast("B")
        self._rest = self._rest or memoryview(next(self._chunks, b""))
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        return count


def stream_of(chunks: Iterator[bytes]) -> BinaryIO:
    """Return chunks as a stream that tells its position and is read from front to back."""
    return io.BufferedReader(_Chunks(chunks), PIECE_BYTES)


@contextlib.contextmanager
def opened(
    compressed: Generator[bytes],
    *,
    diff_id: str,
    doing: str,
    unpack: Callable[[int], None] = lambda _: None,
) -> Iterator[BinaryIO]:
    """Hand out the unpacked bytes of a blob; when the block is left, the diff ID is verified.

    The blob's generator verifies the blob's own digest at its end. ``doing`` begins an error, and
    ``unpack`` is told each number of bytes.
    Fetching, inflating, hashing, and reading have a thread each, as all but the reading leaves
    Python's lock alone.
    """
    plain = _ahead(_inflated(_ahead(compressed), doing))
    with contextlib.closing(_ahead(_verified(plain, diff_id, doing, unpack))) as verified:
        try:
            yield stream_of(verified)
        except DamagedContent:
            # If the registry changed the bytes, then that is the reason, not what it led to.
            collections.deque(verified, maxlen=0)
            raise
        collections.deque(verified, maxlen=0)


def _verified(
    plain: Generator[bytes], diff_id: str, doing: str, unpack: Callable[[int], None]
) -> Generator[bytes]:
    hasher = hashlib.new(diff_id.partition(":")[0])
    with contextlib.closing(plain):
        for chunk in plain:
            unpack(len(chunk))
            hasher.update(chunk)
            yield chunk
    check_diff_id(f"{hasher.name}:{hasher.hexdigest()}", diff_id, doing)


def check_diff_id(found: str, diff_id: str, doing: str) -> None:
    """Compare the digest of unpacked bytes with the one that the image's config promises."""
    if found != diff_id:
        raise damaged(doing, f"its bytes unpacked are {found}, the config promises {diff_id}")


def _ahead(chunks: Generator[bytes]) -> Generator[bytes]:
    """Yield what a generator yields, while a thread of its own already works on the next chunks.

    Closing it waits for nothing, so that who interrupts a reading need not wait for the registry;
    the thread ends with its next chunk.
    """
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)
    closed = threading.Event()

    def work() -> None:
        end: BaseException | None = None
        with contextlib.closing(chunks):
            try:
                while not closed.is_set() and (chunk := next(chunks, None)) is not None:
                    ready.put(chunk)
            except BaseException as error:
                end = error
        ready.put(end)

    threading.Thread(target=work, daemon=True).start()
    try:
        while isinstance(found := ready.get(), bytes):
            yield found
        if found:
            raise found
    finally:
        closed.set()
        with contextlib.suppress(queue.Empty):
            while True:  # so that no put waits for ever
                ready.get_nowait()


def _inflated(compressed: Generator[bytes], doing: str) -> Generator[bytes]:
    """Yield unpacked chunks; the first bytes tell the compression, as engines go by them too."""
    with contextlib.closing(compressed):
        first = b""
        while len(first) < len(_ZSTD) and (more := next(compressed, b"")):
            first += more
        source: Any = _Chunks(itertools.chain([first], compressed))
        try:
            if first.startswith(_GZIP):
                source = igzip.open(source, "rb")  # type: ignore[no-untyped-call]
            elif first.startswith(_ZSTD):
                inflater = zstandard.ZstdDecompressor()
                source = inflater.stream_reader(source, read_across_frames=True)
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
        except _BROKEN as error:
            collections.deque(compressed, maxlen=0)  # a wrong digest, told at the end, says more
            raise damaged(doing, f"it is cut off or damaged ({error})") from error


class Entry(NamedTuple):
    """One entry, its path from ``/`` on and without ``..``.

    Attributes:
        kind: one of the numbers that ``KINDS`` names.
        bytes: of a file as it reads, holes included; 0 of anything else.
        stored: how many bytes of a file's content come next in the stream; where they are not
            ``bytes``, there are holes between them.
    """

    path: str
    kind: int
    bytes: int
    mode: int
    uid: int
    gid: int
    target: str
    stored: int


def walk(
    stream: BinaryIO, *, doing: str, spend: Callable[[int], None] = lambda _: None
) -> Iterator[Entry]:
    """Yield the entries in the archive's order; the bytes of a file can be read in between.

    A name that is absolute, or leads out by ``..``, stays inside of the image as containerd has
    it. ``spend`` is told what headers take, in bytes.
    """
    pax: Mapping[bytes, bytes] = {}
    long: dict[int, bytes] = {}
    unpacked = 0
    try:
        while header := stream.read(BLOCK):
            if len(header) < BLOCK:
                raise ValueError("it is cut off in a header")
            if not header.strip(b"\0"):
                if stream.read(BLOCK).strip(b"\0"):
                    raise ValueError("its end comes in the middle")
                return
            fields = _HEADER.unpack(header)
            kind, length = fields[6], _number(fields[4])
            _check(header, _number(fields[5]))
            if kind in b"xgLK":
                text = stream.read(length if 0 <= length <= MAX_EXTENSION_BYTES else 0)
                if len(text) != length:
                    raise ValueError(f"a header of {length:,} bytes is too long, or cut off")
                spend(length)
                if kind == ord("x"):  # of several before an entry, only the last one counts
                    pax = _pax_records(text, spend)
                elif kind == ord("g"):  # engines ignore it, and forget what came before it
                    pax, long = {}, {}
                else:
                    long[kind] = _ended(text)
                stream.read(-length % BLOCK)
                continue
            entry = _entry(fields, length, pax, long)
            pax, long = {}, {}
            unpacked += entry.bytes
            if min(entry.bytes, entry.stored) < 0 or unpacked > MAX_UNPACKED_BYTES:
                raise ValueError(f"its files claim {unpacked:,} bytes")
            end = stream.tell() + entry.stored
            yield entry
            padded = end + -end % BLOCK
            while (rest := padded - stream.tell()) > 0 and stream.read(min(rest, PIECE_BYTES)):
                pass
            if stream.tell() < end:  # but the last entry may lack its padding
                raise ValueError(f"it is cut off in '{entry.path}'")
    except ValueError as error:
        cause = str(error) if stream.tell() > BLOCK else f"it is not a tar archive ({error})"
        raise damaged(doing, f"{cause}, at byte {stream.tell():,} of the archive") from error


def _entry(
    fields: tuple[Any, ...], size: int, pax: Mapping[bytes, bytes], long: Mapping[int, bytes]
) -> Entry:
    name, mode, owner, group, _, _, letter, target, magic, major, minor, prefix, star = fields
    kind = _KINDS.get(letter)
    if kind is None:
        raise ValueError(f"it has an entry of the type {bytes([letter])!r}, which engines refuse")
    name, target, uid, gid = _ended(name), _ended(target), _number(owner), _number(group)
    if prefix[0]:
        name = _with_prefix(name, magic, prefix[:131] if star == b"tar\0" else prefix)
    if pax or long:
        if any(b"xattr." in key and b"overlay" in key for key in pax):
            raise ValueError("it has an attribute with which the engine's file system hides files")
        name = long.get(ord("L")) or pax.get(b"path") or name
        target = long.get(ord("K")) or pax.get(b"linkpath") or target
        size = _decimal(pax.get(b"size"), size)
        uid, gid = _decimal(pax.get(b"uid"), uid), _decimal(pax.get(b"gid"), gid)
    if letter == 0 and name.endswith(b"/"):
        kind = DIRECTORY  # as archives from before POSIX have folders
    stored = size = size if kind == FILE else 0
    if pax and kind == FILE and _is_sparse(pax):
        name = pax.get(b"GNU.sparse.name") or name
        size = _decimal(pax.get(b"GNU.sparse.size") or pax.get(b"GNU.sparse.realsize"), size)
    if max(len(name), len(target)) > MAX_PATH:
        raise ValueError(f"'{_text(name[:80])}' is no path that a system takes")
    path, pointed = _path(_text(name)), _text(target) if kind in (SYMLINK, HARDLINK) else ""
    if letter == ord("3") and not _number(major) and not _number(minor):
        # The engine's file system takes this device for a whiteout.
        path = "/".join([posixpath.dirname(path).rstrip("/"), WHITEOUT + posixpath.basename(path)])
    if path.endswith((f"/{WHITEOUT}", f"/{WHITEOUT}.", f"/{WHITEOUT}..")):
        raise ValueError(f"'{path[-80:]}' is a whiteout of nothing")
    return Entry(
        path,
        kind,
        size,
        _number(mode) & 0o7777 if kind != SYMLINK else 0o777,
        _owner(uid),
        _owner(gid),
        _path(pointed) if kind == HARDLINK else pointed,
        stored,
    )


def _owner(number: int) -> int:
    """Return whose a file becomes: Linux takes 32 bits, and all of them set mean no change."""
    return number % (1 << 32) % ((1 << 32) - 1)


def _with_prefix(name: bytes, magic: bytes, prefix: bytes) -> bytes:
    if magic == b"ustar  \0":
        # GNU's has times there, but Go once wrote a prefix, which it still reads.
        with contextlib.suppress(ValueError):
            _number(prefix[:12]), _number(prefix[12:24])
            return name
    elif not magic.startswith(b"ustar\0"):
        return name
    prefix = _ended(prefix)
    return prefix + b"/" + name if magic[5] == 0 or prefix.isascii() else name


def _ended(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _path(name: str) -> str:
    return posixpath.normpath(f"/{name.lstrip('/')}")


def _text(name: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 become ``\\xe9``, and no other name does."""
    if b"\\" in name:
        name = _LIKE_A_BYTE.sub(rb"\\x5c", name)
    return name.decode("utf-8", "backslashreplace")


def _check(header: bytes, told: int) -> None:
    """Compare the checksum: the sum of the bytes, or (in old archives) of bytes with a sign."""
    covered = header[:148] + b" " * 8 + header[156:]
    found = sum(covered)
    if told != found and told != found - 256 * sum(byte > 127 for byte in covered):
        raise ValueError("the checksum of a header is wrong")


def _number(field: bytes) -> int:
    """Read a number: octal digits, or, marked by the first bit, the bytes themselves (GNU)."""
    digits = field.strip(b"\0 ")
    if b"\0" in digits:
        digits = _ended(digits)
    if not digits.strip(b"01234567"):
        return int(digits or b"0", 8)
    if field[0] & 0x80:
        number = int.from_bytes(field, "big", signed=True)
        if not field[0] & 0x40:  # the mark is not the sign of a positive number
            number += 1 << (8 * len(field) - 1)
        if -(1 << 63) <= number < 1 << 63:
            return number
    raise ValueError("a number in a header is broken")


def _decimal(text: bytes | None, otherwise: int) -> int:
    if text and not (text.lstrip(b"-").isdigit() and len(text) < 19):
        raise ValueError("a pax header is broken")
    return int(text or otherwise)


def _pax_records(text: bytes, spend: Callable[[int], None]) -> dict[bytes, bytes]:
    """Read records of the form ``length keyword=value\\n``, and keep those that are of use."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(text):
        spend(64)  # for the time that a short one takes
        space = text.find(b" ", at, at + 9)
        digits = text[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else at
        keyword, equals, value = text[space + 1 : end].partition(b"=")
        if not keyword or not equals or value[-1:] != b"\n" or end > len(text):
            raise ValueError("a pax header is broken")
        found[keyword] = value[:-1]
        at = end
    if b"\0" in found.get(b"path", b"") + found.get(b"linkpath", b""):
        raise ValueError("a pax header is broken")
    return found


def _is_sparse(pax: Mapping[bytes, bytes]) -> bool:
    """Tell if Go takes the file for a sparse one, which brings a name and a size of its own."""
    version = pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor")
    if not any(version):
        return bool(pax.get(b"GNU.sparse.map") or b"GNU.sparse.offset" in pax)
    return version in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0"))
