"""The entries of a layer's tar archive, one after the other, from a stream.

`tarfile` isn't used: it takes ten times as long a member, ends in silence where a header is broken,
and holds a name of any length that a header claims.

Sources: OCI Image Specification 1.1, layer.md; POSIX.1-2017, pax ("ustar" and "pax" formats); GNU
tar's manual, "Basic Tar Format" and "Sparse Formats".
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
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


FILE, DIRECTORY, SYMLINK, HARDLINK, DEVICE, FIFO = range(6)
KINDS = ("file", "directory", "symlink", "hardlink", "device", "fifo")
"""What an entry is; plain numbers, as there may be a million of them."""

_WITHOUT_DATA = {
    ord("1"): HARDLINK,
    ord("2"): SYMLINK,
    ord("3"): DEVICE,
    ord("4"): DEVICE,
    ord("5"): DIRECTORY,
    ord("6"): FIFO,
}
"""The types that bring no data, whatever length their header claims; any other is a file."""


class Entry(NamedTuple):
    """One entry, its path from ``/`` on and without ``..``.

    Attributes:
        kind: one of the numbers above, which ``KINDS`` names.
        bytes: of a file as it reads, holes included; 0 of anything else.
        stored: the bytes that follow in the archive.
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
        header = stream.read(BLOCK)
        if not header or header == _ZEROS:
            if special or (header and stream.read(BLOCK).strip(b"\0")):
                raise _damaged(doing, stream, "its end comes in the middle")
            return
        if len(header) < BLOCK:
            raise _damaged(doing, stream, "it is cut off in a header")
        try:
            _check(header)
            kind, length = header[156], _number(header[124:136])
            if not 0 <= length <= MAX_UNPACKED_BYTES:
                raise ValueError(f"a header claims {length:,} bytes")
            if kind in b"xgLK":
                text = _extension(stream, length)
                if kind == ord("x"):
                    special |= _pax_records(text)
                elif kind == ord("g"):
                    common |= _pax_records(text)
                else:
                    special["path" if kind == ord("L") else "linkpath"] = _text(text)
                continue
            entry = _entry(header, length, common | special if common or special else None)
            if kind == ord("S"):
                entry = entry._replace(bytes=_old_sparse(stream, header))
            special = {}
            unpacked += entry.bytes
            if unpacked > MAX_UNPACKED_BYTES:
                raise ValueError(f"its files claim {unpacked:,} bytes")
        except ValueError as error:
            cause = str(error) if stream.position > BLOCK else f"it is not a tar archive ({error})"
            raise _damaged(doing, stream, cause) from error
        ends = stream.position + entry.stored + -entry.stored % BLOCK
        yield entry
        if not stream.skip(ends - stream.position):
            raise _damaged(doing, stream, f"it is cut off in '{entry.path}'")


def _entry(header: bytes, length: int, pax: Mapping[str, str] | None) -> Entry:
    """Read an entry's header, with the pax records that are in force."""
    kind = _WITHOUT_DATA.get(header[156], FILE)
    name = _text(header[:100])
    if header[345] and header[257:263] == b"ustar\0":
        name = f"{_text(header[345:500])}/{name}"
    target = _text(header[157:257]) if kind in (SYMLINK, HARDLINK) else ""
    uid, gid, size = _number(header[108:116]), _number(header[116:124]), length
    if pax:
        name = pax.get("GNU.sparse.name") or pax.get("path") or name
        target = pax.get("linkpath", target) if kind in (SYMLINK, HARDLINK) else ""
        uid, gid = int(pax.get("uid", uid)), int(pax.get("gid", gid))
        length = int(pax.get("size", length))
        size = int(pax.get("GNU.sparse.realsize") or pax.get("GNU.sparse.size") or length)
        if not 0 <= max(length, size) <= MAX_UNPACKED_BYTES or min(length, size) < 0:
            raise ValueError(f"a header claims {max(length, size):,} bytes")
        if "\0" in name + target or max(len(name), len(target)) > MAX_PATH:
            raise ValueError(f"'{name[:80]}' is no path that a system takes")
    if header[156] == 0 and name.endswith("/"):  # as archives from before POSIX have folders
        kind = DIRECTORY
    return Entry(
        _path(name),
        kind,
        size if kind == FILE else 0,
        _number(header[100:108]) & 0o7777,
        uid if 0 <= uid <= MAX_OWNER else -1,
        gid if 0 <= gid <= MAX_OWNER else -1,
        _path(target) if kind == HARDLINK else target,
        0 if header[156] in _WITHOUT_DATA else length,
        ".." in name and _leads_out(name),
    )


def _path(name: str) -> str:
    """Return a name as a path from ``/`` on; ``normpath`` is slow where there is nothing to do."""
    name = name.removeprefix("./").rstrip("/")
    if not name or name[0] in "./" or "//" in name or "/." in name:
        return posixpath.normpath(f"/{name.lstrip('/')}")
    return f"/{name}"


def _check(header: bytes) -> None:
    """Compare the header's checksum: the sum of its bytes, the sum itself taken as blanks."""
    field = header[148:156]
    if sum(header) - sum(field) + 8 * ord(" ") != _number(field):
        raise ValueError("the checksum of a header is wrong")


def _number(field: bytes) -> int:
    """Read a number: octal digits, or, marked by the first bit, the bytes themselves (GNU)."""
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        if field[0] == 0xFF:
            return int.from_bytes(field, "big", signed=True)
        digits = field.partition(b"\0")[0].strip()  # what follows a NUL is not meant
        return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 stay apart from each other as ``\\xe9``."""
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _extension(stream: LayerStream, length: int) -> bytes:
    if length > MAX_EXTENSION_BYTES:
        raise ValueError(f"a header of {length:,} bytes comes before an entry")
    text = stream.read(length)
    if len(text) < length or not stream.skip(-length % BLOCK):
        raise ValueError("it is cut off in a header")
    return text


def _pax_records(text: bytes) -> dict[str, str]:
    """Read records of the form ``length keyword=value\\n``."""
    records = {}
    while text:
        digits, _, rest = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 9 else 0
        keyword, equals, value = rest[: length - len(digits) - 1].partition(b"=")
        if length > len(text) or not equals or not value.endswith(b"\n"):
            raise ValueError("a pax header is broken")
        records[keyword.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "backslashreplace")
        text = text[length:]
    return records


def _old_sparse(stream: LayerStream, header: bytes) -> int:
    """Read the rest of an old GNU sparse header, and return the file's length with its holes."""
    more, size = header[482], _number(header[483:495])
    while more:
        further = stream.read(BLOCK)
        if len(further) < BLOCK:
            raise ValueError("it is cut off in a header")
        more = further[504]
    return max(size, 0)


def _leads_out(name: str) -> bool:
    depth = 0
    for part in name.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return False


def _damaged(doing: str, stream: LayerStream, cause: str) -> DamagedContent:
    return DamagedContent(
        f"{doing}: {cause}, at byte {stream.position:,} of the archive. Build and push the image "
        "again."
    )
