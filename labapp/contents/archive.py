"""The entries of a layer's tar archive, one after the other, from a stream.

`tarfile` isn't used: it takes ten times as long a member, ends in silence where a header is broken,
and holds a name of any length that a header claims.

Sources: OCI Image Specification 1.1, layer.md; POSIX.1-2017, pax ("ustar" and "pax" formats); GNU
tar's manual, "Basic Tar Format" and "Sparse Formats".
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from labapp.contents.streams import LayerStream
from labapp.errors import DamagedContent

BLOCK = 512
MAX_EXTENSION_BYTES = 1024 * 1024
"""The longest long name or pax header that is read; Linux takes paths of 4 KiB."""
MAX_PATH = 4096
MAX_UNPACKED_BYTES = 1 << 44
"""16 TiB, the largest file of ext4: what claims more is no layer that a machine could unpack."""
MAX_OWNER = (1 << 32) - 1

_ZEROS = bytes(BLOCK)


class Kind(IntEnum):
    """What an entry is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    DEVICE = 4
    FIFO = 5


_KINDS = {
    ord("1"): Kind.HARDLINK,
    ord("2"): Kind.SYMLINK,
    ord("3"): Kind.DEVICE,
    ord("4"): Kind.DEVICE,
    ord("5"): Kind.DIRECTORY,
    ord("6"): Kind.FIFO,
}
"""The types that bring no data, whatever length their header claims; any other is a file."""


class Entry(NamedTuple):
    """One entry, its path from ``/`` on and without ``..``.

    Attributes:
        bytes: of a file as it reads, holes included; 0 of anything else.
        stored: the bytes that follow in the archive.
        outside: the name led out of the image by ``..``.
    """

    path: str
    kind: Kind
    bytes: int
    mode: int
    uid: int
    gid: int
    target: str
    stored: int
    outside: bool


def walk(stream: LayerStream, *, doing: str) -> Iterator[Entry]:
    """Yield the entries in the archive's order; the bytes of a file can be read in between.

    A name that is absolute, or leads out by ``..``, stays inside of the image as containerd has
    it (the classic Docker engine refuses ``..``). Owners that Linux doesn't know become -1.

    Args:
        stream: the unpacked bytes, at their start.
        doing: what is being done, to begin an error with.

    Raises:
        DamagedContent: no tar archive, cut off, or a header that claims what can't be.
    """
    common: dict[str, str] = {}
    special: dict[str, str] = {}
    unpacked = 0
    while True:
        begins = stream.position
        header = stream.read(BLOCK)
        if not header or header == _ZEROS:
            if header and stream.read(BLOCK).strip(b"\0"):
                raise _damaged(doing, begins, "it goes on after a block of zeros")
            if special:
                raise _damaged(doing, begins, "it ends after a header without its entry")
            return
        if len(header) < BLOCK:
            raise _damaged(doing, begins, "it is cut off in a header")
        _check(header, doing, begins)
        kind_byte, length = header[156], _number(header[124:136], doing, begins)
        if length < 0 or length > MAX_UNPACKED_BYTES:
            raise _damaged(doing, begins, f"a header claims {length:,} bytes")
        if kind_byte in b"xgLK":
            text = _extension(stream, length, doing)
            if kind_byte == ord("x"):
                special |= _pax_records(text, doing, begins)
            elif kind_byte == ord("g"):
                common |= _pax_records(text, doing, begins)
            else:
                special["path" if kind_byte == ord("L") else "linkpath"] = _text(text)
            continue
        entry = _entry(header, length, common | special if common or special else {}, doing, begins)
        special = {}
        if kind_byte == ord("S"):
            entry = entry._replace(bytes=_old_sparse(stream, header, doing))
        unpacked += entry.bytes
        if entry.bytes > MAX_UNPACKED_BYTES or unpacked > MAX_UNPACKED_BYTES:
            raise _damaged(doing, begins, f"its files claim {unpacked:,} bytes")
        ends = stream.position + (entry.stored + BLOCK - 1) // BLOCK * BLOCK
        yield entry
        if not stream.skip(ends - stream.position):
            raise _damaged(doing, begins, f"it is cut off in '{entry.path}'")


def _entry(header: bytes, length: int, pax: dict[str, str], doing: str, begins: int) -> Entry:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    kind = _KINDS.get(header[156], Kind.FILE)
    target = _text(header[157:257]) if kind in (Kind.SYMLINK, Kind.HARDLINK) else ""
    uid, gid = _number(header[108:116], doing, begins), _number(header[116:124], doing, begins)
    size = length
    if pax:
        try:
            name = pax.get("GNU.sparse.name") or pax.get("path") or name
            target = pax.get("linkpath", target) if target else ""
            uid, gid = int(pax.get("uid", uid)), int(pax.get("gid", gid))
            length = int(pax.get("size", length))
            size = int(pax.get("GNU.sparse.realsize") or pax.get("GNU.sparse.size") or length)
        except ValueError as error:
            raise _damaged(doing, begins, f"a number in a pax header is none ({error})") from error
    if min(length, size) < 0 or "\0" in name or len(name) > MAX_PATH or len(target) > MAX_PATH:
        raise _damaged(doing, begins, f"the header of '{name[:80]}' makes no sense")
    if kind is Kind.FILE and name.endswith("/"):  # as archives from before POSIX have directories
        kind = Kind.DIRECTORY
    path = posixpath.normpath("/" + name.lstrip("/"))
    return Entry(
        path=path,
        kind=kind,
        bytes=size if kind is Kind.FILE else 0,
        mode=_number(header[100:108], doing, begins) & 0o7777,
        uid=uid if 0 <= uid <= MAX_OWNER else -1,
        gid=gid if 0 <= gid <= MAX_OWNER else -1,
        target=posixpath.normpath("/" + target.lstrip("/")) if kind is Kind.HARDLINK else target,
        stored=0 if header[156] in _KINDS else length,
        outside=".." in name and _leads_out(name),
    )


def _check(header: bytes, doing: str, begins: int) -> None:
    """Compare the header's checksum: the sum of its bytes, the sum itself taken as blanks."""
    claimed = _number(header[148:156], doing, begins)
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != claimed:
        if begins == 0:
            raise _damaged(doing, begins, "it is not a tar archive")
        raise _damaged(doing, begins, "the checksum of a header is wrong")


def _number(field: bytes, doing: str, begins: int) -> int:
    """Read a number: octal digits, or, marked by the first bit, the bytes themselves (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        return value if field[0] != 0xFF else value - (1 << (8 * len(field) - 1))
    digits = field.partition(b"\0")[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError as error:
        what = "it is not a tar archive" if begins == 0 else "a number in a header is none"
        raise _damaged(doing, begins, what) from error


def _text(field: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 stay apart from each other as ``\\xe9``."""
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _extension(stream: LayerStream, length: int, doing: str) -> bytes:
    begins = stream.position
    if length > MAX_EXTENSION_BYTES:
        raise _damaged(doing, begins, f"a header of {length:,} bytes comes before an entry")
    text = stream.read(length)
    if len(text) < length or not stream.skip(-length % BLOCK):
        raise _damaged(doing, begins, "it is cut off in a header")
    return text


def _pax_records(text: bytes, doing: str, begins: int) -> dict[str, str]:
    """Read records of the form ``length keyword=value\\n``."""
    records = {}
    while text:
        digits, _, rest = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 9 else 0
        keyword, equals, value = rest[: length - len(digits) - 1].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _damaged(doing, begins, "a pax header is broken")
        records[keyword.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "backslashreplace")
        text = text[length:]
    return records


def _old_sparse(stream: LayerStream, header: bytes, doing: str) -> int:
    """Read the rest of an old GNU sparse header, and return the file's length with its holes."""
    more, size = header[482], _number(header[483:495], doing, stream.position)
    while more:
        further = stream.read(BLOCK)
        if len(further) < BLOCK:
            raise _damaged(doing, stream.position, "it is cut off in a header")
        more = further[504]
    return max(size, 0)


def _leads_out(name: str) -> bool:
    depth = 0
    for part in name.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return False


def _damaged(doing: str, at: int, cause: str) -> DamagedContent:
    return DamagedContent(f"{doing}: {cause} (at byte {at:,}). Build and push the image again.")
