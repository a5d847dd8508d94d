"""Odd layers, packed by hand: what engines make of them, or that they refuse them.

What a table says is held twice: of the lab's reader, and, in ``tests/integration``, of the engine.
"""

from __future__ import annotations

import itertools

Seen = tuple[str, int, int, int]
"""What a container sees of one entry: its path, bytes, mode and owner."""


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


SET_UID = b"0004755\0"


def file(name: bytes, data: bytes = b"data\n", **parts: bytes) -> bytes:
    return hdr(name, size=b"%o" % len(data), **parts) + data + bytes(-len(data) % 512)


def evil(name: bytes) -> bytes:
    return file(name, at100=SET_UID)


def folder(name: bytes, **parts: bytes) -> bytes:
    return hdr(name, kind=b"5", **parts)


def link(name: bytes, to: bytes) -> bytes:
    return hdr(name, kind=b"2", at157=to)


def hard(name: bytes, to: bytes, **parts: bytes) -> bytes:
    return hdr(name, kind=b"1", at157=to, **parts)


GNU = b"ustar  \0"
VERSION_1 = ("GNU.sparse.major=1", "GNU.sparse.minor=0")
MAP = b"1\n0\n5\n".ljust(512, b"\0")


def named(path: str, uid: int = 0) -> Seen:
    return path, 0, 0o644, uid


def su(path: str, uid: int = 0) -> Seen:
    return path, 5, 0o4755, uid


def plain(*paths: str) -> list[Seen]:
    return [(path, 5, 0o644, 0) for path in paths]


def to(path: str) -> Seen:
    return path, 0, 0o777, 0


ONE: list[tuple[bytes, Seen]] = [
    (evil(b"e1"), su("/e1")),
    # A name stays inside of the image; in any encoding names stay apart.
    *(
        (hdr(name), named(path))
        for name, path in (
            (b"/opt/passwd", "/opt/passwd"),
            (b"//srv/./passwd", "/srv/passwd"),
            (b"etc/../passwd", "/passwd"),
            (b"a/../../var/passwd", "/var/passwd"),
            (b"..a/b..", "/..a/b.."),
            (b"./dot", "/dot"),
            (b"dir//", "/dir"),
            (b"caf\xc3\xa9", "/café"),
            (b"caf\xe9", "/caf\\xe9"),
            (b"\xff\xfe", "/\\xff\\xfe"),
            (b"\\xff\\xfe", "/\\x5cxff\\x5cxfe"),
            (b"x\\x2d\\x5cxff", "/x\\x2d\\x5cx5cxff"),
        )
    ),
    # A global header is for the archiver: it changes no entry, and ends what came before it.
    (pax("path=harmless", kind=b"g") + evil(b"e2"), su("/e2")),
    (pax("path=harmless") + pax("x=y", kind=b"g") + evil(b"e3"), su("/e3")),
    (extension(b"a\0", b"L") + pax("x=y", kind=b"g") + evil(b"e4"), su("/e4")),
    # Only the last header before an entry counts.
    (pax("path=first", "uid=5") + pax("uid=7") + evil(b"e5"), su("/e5", 7)),
    (pax("path=first") + pax("path=second") + evil(b"e6"), su("/second")),
    (pax("uid=", "path=", "gid=4") + evil(b"e7"), su("/e7")),
    (pax("uid=0", "path=u8") + hdr(at108=b"7"), named("/u8")),
    # Long names go before pax.
    (pax("path=first") + extension(b"long\0more", b"L") + evil(b"e9"), su("/long")),
    # A sparse file's name and size are for sparse files.
    (pax("GNU.sparse.major=9", VERSION_1[1], "GNU.sparse.name=x") + evil(b"e10"), su("/e10")),
    (pax("GNU.sparse.name=harmless") + evil(b"e11"), su("/e11")),
    (pax("GNU.sparse.realsize=0") + evil(b"e12"), su("/e12")),
    (
        pax(*VERSION_1, "GNU.sparse.name=big", "GNU.sparse.realsize=90000")
        + file(b"x", MAP + b"data\n"),
        ("/big", 90_000, 0o644, 0),
    ),
    (
        pax("GNU.sparse.numblocks=1", "GNU.sparse.map=0,5", "GNU.sparse.size=9000") + evil(b"e13"),
        ("/e13", 9000, 0o4755, 0),
    ),
    # Each format has its prefix.
    (hdr(b"p1", at345=b"a"), named("/a/p1")),
    (hdr(b"b", at345=b"p" * 131 + b"12345", at508=b"tar\0"), named(f"/{'p' * 131}/b")),
    (hdr(b"p2", at257=GNU, at345=b"12345"), named("/p2")),
    (hdr(b"b", at257=GNU, at345=b"pre"), named("/pre/b")),
    (hdr(b"p3", at257=GNU, at345=b"\xe9"), named("/p3")),
    (hdr(b"p4", at257=bytes(8), at345=b"a"), named("/p4")),
    # Checksums of signed bytes, and numbers as they come.
    (hdr(b"sum\xe9", sum_of=-256), named("/sum\\xe9")),
    (hdr(b"u14", at108=b"0001750\0"), named("/u14", uid=1000)),
    (hdr(b"u15", at108=b" 1750 \0 "), named("/u15", uid=1000)),
    (hdr(b"u16", at108=b"17\0xxxxx"), named("/u16", uid=15)),
    (hdr(b"u17", at108=b"\x80\x00\x00\x00\xff\xff\xff\xfe"), named("/u17", uid=2**32 - 2)),
    (hdr(b"u18", at108=b"\x80\x00\x00\x01\x00\x00\x00\x00"), named("/u18")),
    (hdr(b"u19", at108=b"\xff" * 8), named("/u19")),
    (hdr(b"u20", at108=b" " * 8), named("/u20")),
    # The end: without padding, without zeros, with one block of them, after a lost header.
    (evil(b"e21")[:517], su("/e21")),
    (evil(b"e22") + bytes(512), su("/e22")),
    (evil(b"e23") + bytes(1024) + b"anything", su("/e23")),
    (evil(b"e24") + pax("path=lost"), su("/e24")),
]
"""Archives of one entry, each of another path, and what a container sees of it."""

MANY: dict[str, tuple[list[bytes], list[Seen]]] = {
    # An entry goes where the links of its own layer lead, and of no lower one.
    "below a link": (
        [folder(b"e") + link(b"d", b"e") + evil(b"d/x"), file(b".wh.d", b"")],
        [su("/e/x")],
    ),
    "below a link to the top": (
        [folder(b"e") + folder(b"q") + link(b"q/d", b"../../../e") + evil(b"q/d/x")],
        [su("/e/x"), to("/q/d")],
    ),
    "below a link of a lower layer": (
        [folder(b"e") + link(b"d", b"/e"), evil(b"d/x")],
        [su("/d/x")],
    ),
    "a whiteout below a link": (
        [file(b"e/x") + file(b"e/y"), folder(b"e") + link(b"d", b"e") + file(b"d/.wh.x", b"")],
        [to("/d"), *plain("/e/y")],
    ),
    "an opaque folder below a link": (
        [file(b"e/x"), folder(b"e") + link(b"d", b"e") + file(b"d/.wh..wh..opq", b"")],
        [to("/d")],
    ),
    "a hard link below a link": (
        [folder(b"e") + file(b"e/x") + link(b"d", b"e") + hard(b"y", b"d/x", at100=SET_UID)],
        [to("/d"), su("/e/x"), ("/y", 0, 0o4755, 0)],
    ),
    # What is deleted below no folder makes one.
    "a whiteout below a link of a lower layer": (
        [file(b"e/x") + link(b"d", b"e"), file(b"d/.wh.x", b"")],
        plain("/e/x"),
    ),
    "a whiteout below a file": ([file(b"e"), file(b"e/.wh.x", b"")], []),
    "an opaque file": ([file(b"e"), file(b"e/.wh..wh..opq", b"")], []),
    # The names of a file share its mode and owner, which the last one tells.
    "a set-uid name": (
        [file(b"a") + hard(b"b", b"a", at100=SET_UID), file(b".wh.b", b"")],
        [su("/a")],
    ),
    "a name less": (
        [evil(b"a") + hard(b"b", b"a", at108=b"0001750\0")],
        [("/a", 5, 0o644, 1000), named("/b", 1000)],
    ),
    "a name of a name": (
        [file(b"a") + hard(b"b", b"/a") + hard(b"c", b"../b", at100=SET_UID)],
        [su("/a"), ("/b", 0, 0o4755, 0), ("/c", 0, 0o4755, 0)],
    ),
    "a name of a link": (
        [file(b"a") + link(b"s", b"a") + hard(b"b", b"s")],
        [*plain("/a"), to("/b"), to("/s")],
    ),
    # Whiteouts
    "a folder after its whiteout": (
        [file(b"a/one"), file(b".wh.a", b"") + folder(b"a") + file(b"a/new")],
        plain("/a/new", "/a/one"),
    ),
    "an opaque folder before its entry": (
        [file(b"a/one"), file(b"a/.wh..wh..opq", b"") + folder(b"a") + file(b"a/new")],
        plain("/a/new"),
    ),
    "an opaque root": ([file(b"a"), file(b".wh..wh..opq", b"") + file(b"b")], plain("/a", "/b")),
    "a whiteout that is a folder": ([file(b"a/one"), folder(b".wh.a")], []),
    "a whiteout that is a link": ([file(b"a/one"), link(b".wh.a", b"x")], []),
    "a file in what looks like a whiteout": ([evil(b".wh.a/x")], [su("/.wh.a/x")]),
    "a file among bookkeeping": (
        [folder(b".wh..wh.plnk") + evil(b".wh..wh.plnk/x")],
        [su("/.wh..wh.plnk/x")],
    ),
    "a whiteout of a whiteout": ([file(b"a"), file(b".wh..wh.a", b"")], plain("/a")),
    "a device that is a whiteout": ([file(b"c"), hdr(b"c", kind=b"3", at329=b"0", at337=b"0")], []),
    "a device": ([hdr(b"c", kind=b"3", at329=b"1", at337=b"3")], [named("/c")]),
    # Entries that are no good for what they are
    "a root": (
        [hdr(b"./", kind=b"2", at157=b"x") + folder(b"/") + evil(b"a")],
        [su("/a")],
    ),
    "sizes of what has no data": (
        [
            folder(b"a", at124=b"1000")
            + hdr(b"s", kind=b"2", size=b"1000", at157=b"x")
            + pax("size=512")
            + folder(b"f")
            + evil(b"b")
        ],
        [su("/b"), to("/s")],
    ),
    "a size that pax tells": (
        [pax("size=5") + hdr(b"a") + b"data\n".ljust(512, b"\0") + evil(b"b")],
        [*plain("/a"), su("/b")],
    ),
    "modes": (
        [
            file(b"a", at100=b"\x80\0\0\0\0\0\x09\xed")
            + file(b"b", at100=b"7777777\0")
            + file(b"c", at100=b"\xff" * 8)
        ],
        [("/a", 5, 0o4755, 0), ("/b", 5, 0o7777, 0), ("/c", 5, 0o7777, 0)],
    ),
    "owners": (
        [
            pax("uid=4294967296")
            + evil(b"a")
            + pax("uid=-1")
            + evil(b"b")
            + pax("uid=-2")
            + evil(b"c")
        ],
        [su("/a"), su("/b"), su("/c", 2**32 - 2)],
    ),
    "names of links": (
        [extension(b"t" * 120 + b"\0", b"K") + link(b"s", b"x") + file(b"b\0evil")],
        [*plain("/b"), to("/s")],
    ),
    "a name of what pax tells": (
        [file(b"a") + pax("linkpath=a") + hard(b"b", b"nothing", at100=SET_UID)],
        [su("/a"), ("/b", 0, 0o4755, 0)],
    ),
}
"""Layers, lowest first, and what a container sees of them but for folders."""

TAKEN_BY_SOME: dict[str, list[bytes]] = {
    "twice": [evil(b"a") + file(b"./a")],
    "a file after its whiteout": [file(b"a"), file(b".wh.a", b"") + evil(b"a")],
    "a name of what a lower layer has": [evil(b"a"), hard(b"b", b"a")],
    "a file below a file": [file(b"a") + evil(b"a/x")],
    "below a link to nothing": [link(b"d", b"e") + evil(b"d/x")],
}
"""Layers of which engines, and the lab, may make anything but hide a file."""

HIDING: dict[str, list[bytes]] = {
    "attributes": [
        folder(b"o") + evil(b"o/x"),
        pax("SCHILY.xattr.trusted.overlay.redirect=/o") + folder(b"d") + file(b".wh.o", b""),
    ],
    "what rootless engines make whiteouts of": [
        file(b"a/one"),
        pax("SCHILY.xattr.user.overlay.opaque=y") + folder(b"a"),
    ],
}
"""Layers that some engine takes, and the lab refuses to read."""

PETABYTE = b"\x80" + (10**15).to_bytes(11, "big")

BROKEN: list[tuple[bytes, str]] = [
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
    *((file(name, b""), "nothing") for name in (b"a/.wh.", b"a/.wh..", b"a/b/.wh...")),
]
"""Archives that engines refuse, and what the error says."""
