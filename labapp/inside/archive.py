"""A layer's archive: its bytes as a stream, inflated and verified on the way, and its entries.

Fetching, inflating, and reading with hashing have a thread each, as all but the reading leaves
Python's lock alone. Nothing is unpacked to disk; memory holds a few chunks, whatever a layer
unpacks to.

An archive is read as Go's archive/tar reads it, with which engines unpack: what `tarfile` makes of
an odd one is not always what a container sees.

Sources: OCI Image Specification 1.1, layer.md and config.md ("rootfs.diff_ids"); POSIX.1-2017, pax;
Go's archive/tar/reader.go.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import posixpath
import queue
import re
import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import zstandard
from isal import igzip
from isal.igzip_lib import IsalError

from labapp.errors import DamagedContent, LabError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 512 * 1024
AHEAD = 4
"""How many chunks each thread works ahead of the next."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BROKEN: tuple[type[Exception], ...] = (
    zlib.error,
    IsalError,  # type: ignore[assignment]
    gzip.BadGzipFile,
    EOFError,
    zstandard.ZstdError,
)

BLOCK = 512
MAX_EXTENSION_BYTES = 1024 * 1024
"""The longest long name or pax header that Go reads."""
MAX_PATH = 4096
MAX_UNPACKED_BYTES = 1 << 44
"""16 TiB, the largest file of ext4."""

FILE, DIRECTORY, SYMLINK, HARDLINK, DEVICE, FIFO = range(6)
KINDS = ("file", "directory", "symlink", "hardlink", "device", "fifo")
"""What an entry is; plain numbers, as there may be a million of them."""

_KINDS = {0: FILE} | {
    ord(str(number)): kind
    for number, kind in enumerate((FILE, HARDLINK, SYMLINK, DEVICE, DEVICE, DIRECTORY, FIFO))
}
_ZEROS = bytes(BLOCK)
_DECIMAL = re.compile(rb"[+-]?[0-9]{1,18}")
_USED = {b"path", b"linkpath", b"uid", b"gid", b"size"} | {
    f"GNU.sparse.{name}".encode()
    for name in ("major", "minor", "map", "offset", "name", "size", "realsize")
}


class LayerStream:
    """The unpacked bytes of one layer, read once from front to back, and hashed on the way."""

    def __init__(
        self,
        chunks: Iterator[bytes],
        *,
        algorithm: str = "sha256",
        on_chunk: Callable[[], None] = lambda: None,
    ) -> None:
        self._chunks = chunks
        self._hasher = hashlib.new(algorithm)
        self._on_chunk = on_chunk
        self._chunk = b""
        self._at = self._before = 0

    @property
    def position(self) -> int:
        """How many bytes have been read or skipped."""
        return self._before + self._at

    def read(self, count: int) -> bytes:
        """Return the next bytes; fewer than asked for only at the end."""
        end = self._at + count
        if end <= len(self._chunk):
            piece = self._chunk[self._at : end]
            self._at = end
            return piece
        held = bytearray(self._chunk[self._at :])
        while len(held) < count and self._next():
            self._at = min(count - len(held), len(self._chunk))
            held += self._chunk[: self._at]
        return bytes(held)

    def skip_to(self, position: int) -> bool:
        """Go forward to a position; to the end, and False, where there is no such."""
        while position > self._before + len(self._chunk):
            if not self._next():
                return False
        self._at = position - self._before
        return True

    def finish(self) -> str:
        """Go to the end, and return the digest of all the bytes."""
        while self._next():
            pass
        return f"{self._hasher.name}:{self._hasher.hexdigest()}"

    def _next(self) -> bool:
        self._before += len(self._chunk)
        self._chunk, self._at = next(self._chunks, b""), 0
        self._hasher.update(self._chunk)
        self._on_chunk()
        return bool(self._chunk)


@contextlib.contextmanager
def opened(
    compressed: Generator[bytes],
    *,
    diff_id: str,
    doing: str,
    on_chunk: Callable[[], None] = lambda: None,
) -> Iterator[LayerStream]:
    """Hand out the unpacked bytes of a blob; when the block is left, the diff ID is verified.

    The blob's generator verifies the blob's own digest at its end. ``doing`` begins an error, and
    ``on_chunk`` is called in the reader's thread.
    """
    with (
        contextlib.closing(_Ahead(compressed)) as fetched,
        contextlib.closing(_Ahead(_inflated(fetched, doing))) as plain,
    ):
        stream = LayerStream(plain, algorithm=diff_id.partition(":")[0], on_chunk=on_chunk)
        try:
            yield stream
        except DamagedContent:
            # If the registry changed the bytes, then that is the reason, not what it led to.
            stream.finish()
            raise
        check_diff_id(stream.finish(), diff_id, doing)


def check_diff_id(found: str, diff_id: str, doing: str) -> None:
    """Compare the digest of unpacked bytes with the one that the image's config promises."""
    if found != diff_id:
        raise DamagedContent(
            f"{doing}: its unpacked bytes are {found}, the image's config promises {diff_id}. "
            "Build and push the image again."
        )


class _Ahead(Iterator[bytes]):
    """What a generator yields, while a thread of its own already works on the next chunks.

    Closing it waits for nothing, so that who interrupts a reading need not wait for the registry;
    the thread ends with its next chunk.
    """

    def __init__(self, chunks: Generator[bytes]) -> None:
        self._ready: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)
        self._closed = False
        threading.Thread(target=self._work, args=(chunks,), daemon=True).start()

    def _work(self, chunks: Generator[bytes]) -> None:
        end: BaseException | None = None
        with contextlib.closing(chunks):
            try:
                while not self._closed and (chunk := next(chunks, None)) is not None:
                    self._ready.put(chunk)
            except BaseException as error:
                end = error
        self._ready.put(end)

    def __next__(self) -> bytes:
        found = None if self._closed else self._ready.get()
        if isinstance(found, bytes):
            return found
        self.close()
        raise StopIteration if found is None else found

    def close(self) -> None:
        """Let the thread end, and another one that waits for it."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._ready.put(None)


class _Source(io.RawIOBase):
    """Chunks as a file, which is what the libraries that inflate read from."""

    def __init__(self, first: bytes, chunks: Iterator[bytes]) -> None:
        self._rest, self._chunks = memoryview(first), chunks

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer).cast("B")
        self._rest = self._rest or memoryview(next(self._chunks, b""))
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _inflated(compressed: Iterator[bytes], doing: str) -> Generator[bytes]:
    """Yield unpacked chunks; the first bytes tell the compression, as engines go by them too."""
    first = b""
    while len(first) < len(_ZSTD) and (more := next(compressed, b"")):
        first += more
    source: Any = _Source(first, compressed)
    try:
        if first.startswith(_GZIP):
            source = igzip.open(source, "rb")  # type: ignore[no-untyped-call]
        elif first.startswith(_ZSTD):
            inflater = zstandard.ZstdDecompressor()
            source = inflater.stream_reader(cast("IO[bytes]", source), read_across_frames=True)
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
    except _BROKEN as error:
        for _ in compressed:  # a wrong digest, which only shows at the end, says more
            pass
        cut_off = isinstance(error, EOFError)
        cause = "it is cut off" if cut_off else f"it can't be inflated ({error})"
        raise DamagedContent(f"{doing}: {cause}. Build and push the image again.") from error
    except OSError as error:
        raise LabError(f"{doing}: {error}.") from error


class Entry(NamedTuple):
    """One entry, its path from ``/`` on and without ``..``.

    Attributes:
        kind: one of the numbers that ``KINDS`` names.
        bytes: of a file as it reads, holes included; 0 of anything else.
        stored: how many bytes of a file's content come next in the stream.
        outside: the name led out of the image by ``..``.
    """

    path: str
    kind: int
    bytes: int
    mode: int
    uid: int
    gid: int
    target: str
    stored: int
    outside: bool


def walk(
    stream: LayerStream, *, doing: str, spend: Callable[[int], None] = lambda _: None
) -> Iterator[Entry]:
    """Yield the entries in the archive's order; the bytes of a file can be read in between.

    A name that is absolute, or leads out by ``..``, stays inside of the image as containerd has
    it. Owners that Linux doesn't know become -1. ``spend`` is told what headers take, in bytes.
    """
    pax: Mapping[bytes, bytes] = {}
    long: dict[int, bytes] = {}
    unpacked = 0
    try:
        while header := stream.read(BLOCK):
            if len(header) < BLOCK:
                raise ValueError("it is cut off in a header")
            if header == _ZEROS:
                if stream.read(BLOCK).strip(b"\0"):
                    raise ValueError("its end comes in the middle")
                return
            _check(header)
            kind, length = header[156], _number(header[124:136])
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
                    long[kind] = text.partition(b"\0")[0]
                stream.skip_to(stream.position + -length % BLOCK)
            else:
                entry = _entry(header, length, pax, long)
                pax, long = {}, {}
                unpacked += entry.bytes
                if min(entry.bytes, entry.stored) < 0 or unpacked > MAX_UNPACKED_BYTES:
                    raise ValueError(f"its files claim {unpacked:,} bytes")
                end = stream.position + entry.stored
                yield entry
                # The last entry may lack its padding.
                if not stream.skip_to(end + -end % BLOCK) and stream.position < end:
                    raise ValueError(f"it is cut off in '{entry.path}'")
    except ValueError as error:
        cause = str(error) if stream.position > BLOCK else f"it is not a tar archive ({error})"
        raise DamagedContent(
            f"{doing}: {cause}, at byte {stream.position:,} of the archive. Build and push the "
            "image again."
        ) from error


def _entry(
    header: bytes, size: int, pax: Mapping[bytes, bytes], long: Mapping[int, bytes]
) -> Entry:
    """Read an entry's header, with what the headers before it say."""
    kind = _KINDS.get(header[156])
    if kind is None:
        raise ValueError(f"it has an entry of the type {header[156:157]!r}, which engines refuse")
    name, target = header[:100].partition(b"\0")[0], header[157:257].partition(b"\0")[0]
    if header[345]:
        name = _with_prefix(header, name)
    uid, gid, sparse = _number(header[108:116]), _number(header[116:124]), False
    if pax or long:
        name = long.get(ord("L")) or pax.get(b"path") or name
        target = long.get(ord("K")) or pax.get(b"linkpath") or target
        size = _decimal(pax.get(b"size"), size)
        uid, gid = _decimal(pax.get(b"uid"), uid), _decimal(pax.get(b"gid"), gid)
        sparse = kind == FILE and _is_sparse(pax)
    if header[156] == 0 and name.endswith(b"/"):
        kind = DIRECTORY  # as archives from before POSIX have folders
    stored = size = size if kind == FILE else 0
    if sparse:
        name = pax.get(b"GNU.sparse.name") or name
        size = _decimal(pax.get(b"GNU.sparse.size") or pax.get(b"GNU.sparse.realsize"), size)
    if max(len(name), len(target)) > MAX_PATH:
        raise ValueError(f"'{_text(name[:80])}' is no path that a system takes")
    shown = _text(name)
    pointed = _text(target) if kind in (SYMLINK, HARDLINK) else ""
    return Entry(
        _path(shown),
        kind,
        size,
        _number(header[100:108]) & 0o7777,
        uid if 0 <= uid < 1 << 32 else -1,
        gid if 0 <= gid < 1 << 32 else -1,
        _path(pointed) if kind == HARDLINK else pointed,
        stored,
        ".." in shown and f"{posixpath.normpath(shown.lstrip('/'))}/".startswith("../"),
    )


def _with_prefix(header: bytes, name: bytes) -> bytes:
    """Put in front of a name what the header's format has for it."""
    prefix = b""
    if header[257:263] == b"ustar\0":
        end = 476 if header[508:] == b"tar\0" else 500
        prefix = header[345:end].partition(b"\0")[0]
    elif header[257:265] == b"ustar  \0":
        try:  # GNU's has times there, but Go once wrote a prefix, which it still reads
            _number(header[345:357]), _number(header[357:369])
        except ValueError:
            prefix = header[345:500].partition(b"\0")[0]
            prefix = prefix if prefix.isascii() else b""
    return prefix + b"/" + name if prefix else name


def _path(name: str) -> str:
    """Return a name as a path from ``/`` on; ``normpath`` is slow where there is nothing to do."""
    name = name.removeprefix("./").rstrip("/")
    if not name or name[0] in "./" or "//" in name or "/." in name:
        return posixpath.normpath(f"/{name.lstrip('/')}")
    return f"/{name}"


def _text(name: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 stay apart from each other as ``\\xe9``."""
    return name.decode("utf-8", "backslashreplace")


def _check(header: bytes) -> None:
    """Compare the checksum: the sum of the bytes, or (in old archives) of bytes with a sign."""
    told, covered = _number(header[148:156]), header[:148] + b" " * 8 + header[156:]
    found = sum(covered)
    if told != found and told != found - 256 * sum(byte > 127 for byte in covered):
        raise ValueError("the checksum of a header is wrong")


def _number(field: bytes) -> int:
    """Read a number: octal digits, or, marked by the first bit, the bytes themselves (GNU)."""
    digits = field.strip(b"\0 ")
    if b"\0" in digits:
        digits = digits.partition(b"\0")[0]
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
    if text and not _DECIMAL.fullmatch(text):
        raise ValueError("a pax header is broken")
    return int(text) if text else otherwise


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
        if keyword in _USED:
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
