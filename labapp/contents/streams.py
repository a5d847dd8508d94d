"""A layer's unpacked bytes as a stream: fetched, inflated and hashed at the same time.

Fetching, inflating and hashing each leave Python's lock alone, so two threads beside the reader's
own keep two processors busy. Memory holds a few chunks, whatever the layer unpacks to.

Sources: OCI Image Specification 1.1, layer.md ("+gzip", "+zstd") and config.md ("rootfs.diff_ids").
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, cast

import zstandard
from isal import igzip
from isal.igzip_lib import IsalError

from labapp.errors import DamagedContent, LabError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 4 * 1024 * 1024
AHEAD = 2
"""How many chunks each step works ahead of the next."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_BROKEN: tuple[type[Exception], ...] = (
    zlib.error,
    IsalError,  # type: ignore[assignment]
    gzip.BadGzipFile,
    EOFError,
    zstandard.ZstdError,
)


class LayerStream:
    """The unpacked bytes of one layer, read once from front to back.

    Attributes:
        position: how many bytes have been read or skipped.
    """

    def __init__(
        self, chunks: Iterator[bytes], *, algorithm: str = "sha256", on_chunk: Callable[[], None]
    ) -> None:
        """Prepare to read.

        Args:
            chunks: the unpacked bytes.
            algorithm: what the diff ID is made with.
            on_chunk: called for each chunk, in the thread of the reader.
        """
        self._chunks = chunks
        self._hasher = hashlib.new(algorithm)
        self._on_chunk = on_chunk
        self._chunk = b""
        self._at = 0
        self._before = 0

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

    def skip(self, count: int) -> bool:
        """Go past some bytes; False if the end came before."""
        end = self.position + count
        while end > self._before + len(self._chunk):
            if not self._next():
                return False
        self._at = end - self._before
        return True

    def finish(self) -> str:
        """Go to the end, and return the digest of all the bytes."""
        while self._next():
            pass
        return f"{self._hasher.name}:{self._hasher.hexdigest()}"

    def _next(self) -> bool:
        """Take the next chunk; at the end, stay there."""
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
    whole: bool = True,
    on_chunk: Callable[[], None] = lambda: None,
) -> Iterator[LayerStream]:
    """Hand out a layer's unpacked bytes; when the block is left, its diff ID has been verified.

    Args:
        compressed: the blob's bytes, which verify the blob's own digest at their end.
        diff_id: the digest that the unpacked bytes must have.
        doing: what is being done, to begin an error with.
        whole: False if the block may leave the rest unread, and so unverified.
        on_chunk: called for each unpacked chunk.

    Raises:
        DamagedContent: the blob is cut off or not what it claims to be, or the diff ID differs.
    """
    with (
        contextlib.closing(_ahead(compressed)) as fetched,
        contextlib.closing(_ahead(_inflated(fetched, doing))) as plain,
    ):
        algorithm = diff_id.partition(":")[0]
        stream = LayerStream(plain, algorithm=algorithm, on_chunk=on_chunk)
        try:
            yield stream
        except DamagedContent:
            # If the registry changed the bytes, then that is the reason, not what it led to.
            stream.finish()
            raise
        found = stream.finish() if whole else diff_id
    if found != diff_id:
        raise DamagedContent(
            f"{doing}: its unpacked bytes are {found}, the image's config promises {diff_id}. "
            "Build and push the image again."
        )


def _ahead(chunks: Generator[bytes]) -> Generator[bytes]:
    """Yield what a generator yields, while a thread already works on its next chunks."""
    pending: deque[Future[bytes | None]] = deque()
    with contextlib.closing(chunks), ThreadPoolExecutor(1) as thread:
        try:
            for _ in range(AHEAD):
                pending.append(thread.submit(next, chunks, None))
            while (chunk := pending.popleft().result()) is not None:
                pending.append(thread.submit(next, chunks, None))
                yield chunk
        finally:
            thread.shutdown(cancel_futures=True)


class _Source(io.RawIOBase):
    """Chunks as a file, which is what the libraries that inflate read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer).cast("B")
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _inflated(compressed: Generator[bytes], doing: str) -> Generator[bytes]:
    """Yield unpacked chunks; the first bytes tell the compression, as engines go by them too."""
    first = next(compressed, b"")
    while len(first) < len(_ZSTD) and (more := next(compressed, b"")):
        first += more
    source = _Source(_chain(first, compressed))
    try:
        if first.startswith(_GZIP):
            file = igzip.open(source, "rb")  # type: ignore[no-untyped-call]
            yield from _read(file.read)
        elif first.startswith(_ZSTD):
            inflater = zstandard.ZstdDecompressor()
            reader = inflater.stream_reader(cast("IO[bytes]", source), read_across_frames=True)
            yield from _read(reader.read)
        else:
            yield from _chain(first, compressed)
    except _BROKEN as error:
        with contextlib.suppress(StopIteration):
            while next(compressed):  # a wrong digest, which only shows at the end, says more
                pass
        cause = (
            "it is cut off" if isinstance(error, EOFError) else f"it can't be inflated ({error})"
        )
        raise DamagedContent(f"{doing}: {cause}. Build and push the image again.") from error
    except OSError as error:
        raise LabError(f"{doing}: {error}.") from error


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _read(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := read(CHUNK_BYTES):
        yield chunk
