"""Readers of what strangers send, against bytes that were altered at random.

``tests/unit/test_fuzz.py`` runs each reader for a moment, or, with ``FUZZ_INPUTS=100000`` in the
environment, for so many inputs, others each time. What once broke one is a case of its tests.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import odd_layers
from made_images import Memory, archive, put
from registries import Reply, serving

from labapp.errors import LabError
from labapp.inside import debian_mirror, packages
from labapp.inside.archive import stream_of
from labapp.inside.image import Contents
from labapp.inside.layers import Budget, read_layer
from labapp.journey import deploy, pin
from labapp.registry.client import Registry
from labapp.registry.manifests import Index, Platform, index_of, parse_config, parse_manifest

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
SLOW = 5.0
"""How many seconds of a processor no input may take."""

DOCUMENTS = [
    b"Package: a\nStatus: install ok installed\nVersion: 1:2~x\nSource: b (3)\n\n",
    b"P:a\nV:1\nF:usr\nR:x\n\n",
    b"ID=debian\nVERSION_ID='13'\nVERSION_CODENAME=trixie\n",
    b"a (1-1) trixie; urgency=low\n\n  * CVE-2026-1\n\n -- X <x@y>  2 Jan 2026 10:00:00 +0000\n",
    b"x,,\n'",
    b"deb http://a trixie-security main\n",
]
TOKENS = [b"", b"\0", b"\xff", b"\n", b" ", b"\x1b[2J", b"\xf0\x9f", b"sha256:" + b"0" * 64]
TOKENS += (
    rb"= / .. -1 99999999999999999999 1e999 null {} [] \ud800 ${ $ <<EOF &a *a !! "
    rb".wh. .wh..wh..opq path= size= GNU.sparse."
).split()

STORED = Memory()
put(STORED, "a", "1", [{}], run={"Env": ["a"]}, history="/bin/sh -c #(nop) {}", artifactType="y")
STORED.held["2"] = index_of([(STORED.image("r.test/a:1").manifest, Platform("linux", "arm", "v7"))])
LAYERS = [part for layers, _ in odd_layers.MANY.values() for part in layers]
LAYERS += [part for part, _ in (*odd_layers.ONE, *odd_layers.BROKEN)]
LAYERS += [archive({"var/lib/dpkg/status": DOCUMENTS[0], "lib/apk/db/installed": DOCUMENTS[1]})]
LAYERS += [archive({"a.dist-info/RECORD": b"x,,\n", "a.dist-info/METADATA": b"Name: a\n"})]
TO_PIN = [
    b"# escape=`\nARG A=b:1\nFROM ${A} AS c\nRUN --mount=from=d/e:1,target=/x <<EOF\nFROM x\nEOF\n"
    b"ONBUILD COPY --from=f/g /h /i\nONBUILD RUN --mount=type=bind,from=j/k:2 l\n",
    b"x: &x\n  image: 'a/b:1'\nservices:\n  c: {<<: *x}\n  d:\n    image: \"e@${F}\"\n",
]
ANSWERS = [
    b'401\nWWW-Authenticate: Bearer realm="https://[::1]/b",scope="c"\n\n',
    b'200\nLink: </v2/x>; rel="next"\n\n{"tags":["a"]}',
    b"307\nLocation: http://[::1]/\n\n",
    b'404\n\n{"errors":[{"code":"x"}]}',
    b"204\nContent-Length: \xb2\n\n",
    b"206\nDocker-Content-Digest: md5:x\n\n\xff",
    b"202\nLocation: /%zz?a\n\n{}",
    b'401\nWWW-Authenticate: Basic realm="x", , =, "\n\n',
]


def layers(data: bytes) -> None:
    """One or more layers of an image, put together."""
    parts = data.split(b"\0LAYER\0")[:5]
    held = []
    for part in parts:
        stream = stream_of(iter([part]))
        held.append(read_layer(stream, diff_id="", doing="", budget=Budget("", 0)))
    found = Contents(None, tuple(held))  # type: ignore[arg-type]
    for name in ("changes", "packages", "tools", "secrets", "notes"):
        getattr(found, name)
    assert len(found.sums) == len(found.files)


def documents(data: bytes) -> None:
    """What package managers and systems leave behind."""
    text = data.decode("utf-8", "replace")
    paths = (*packages.LISTS, *packages.OS_RELEASES, "/a.dist-info/METADATA", "/a.dist-info/RECORD")
    for path in (*paths, "/var/lib/dpkg/info/a.list", "/var/lib/dpkg/status.d/a.md5sums"):
        parse = packages.reader(path)
        assert parse
        parse(path, text, lambda _: None)
    packages.os_release(text)
    with contextlib.suppress(LabError):
        debian_mirror.suites([text], debian_mirror.Release("13", "trixie"))
    with contextlib.suppress(ValueError):
        updates = list(debian_mirror._updates(text))
        list(debian_mirror.verdicts(updates, "1", debian_mirror.Release("13", "trixie")))


def manifests(data: bytes) -> None:
    """Manifests, indexes and configs."""
    with contextlib.suppress(LabError):
        found = parse_manifest(data)
        if isinstance(found, Index):
            found.for_platform(Platform.here())
        else:
            _ = found.other_than_image, found.download_bytes
    for step in parse_config(data).history:
        assert not UNPRINTABLE.search(step.instruction)


def files_to_pin(data: bytes) -> None:
    """Dockerfiles and compose files: what is found is a part of the text, and no two overlap."""
    text = data.decode("utf-8", "surrogateescape")
    for spans_in in (pin._image_spans, deploy.image_spans):
        with contextlib.suppress(LabError):
            spans = sorted({span for span, _ in spans_in(text, Path("x"))})
            assert all(0 <= start < end <= len(text) for start, end in spans)
            assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def answers(data: bytes) -> None:
    """What a registry answers, headers and body."""
    head, _, body = data.partition(b"\n\n")
    status, *lines = head.decode("latin-1").splitlines() or ["200"]
    pairs = (line.partition(":")[::2] for line in lines)
    headers = {
        name.strip(): "".join(filter(str.isprintable, value))
        for name, value in pairs
        if name.isascii()
    }
    headers = {name: value for name, value in headers.items() if name.replace("-", "").isalnum()}
    reply = Reply(
        int(status) if status.isdecimal() and 200 <= int(status) < 600 else 200, body, headers
    )
    with serving(reply) as served:
        registry, digest = (
            Registry(served.address, credentials=lambda _: None),
            f"sha256:{'0' * 64}",
        )
        for ask in (
            registry.ping,
            lambda: registry.tags("a/b"),
            lambda: registry.image(f"{served.address}/a/b:1"),
            lambda: registry.read_blob("a/b", digest),
            lambda: registry.upload_blob("a/b", [b"x"]),
        ):
            with contextlib.suppress(LabError):
                ask()


READERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "layers": (layers, LAYERS),
    "documents": (documents, DOCUMENTS),
    "manifests": (manifests, [*STORED.held.values()]),
    "files_to_pin": (files_to_pin, TO_PIN),
    "answers": (answers, ANSWERS),
}
"""Readers, and what they are given in altered form."""


def altered(seeds: list[bytes], chance: random.Random) -> bytes:
    """Return a seed with some bytes changed, cut out, doubled, or put in from elsewhere."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 8, 100, 512))
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
            case 3:
                data[at : at + chance.choice((0, length))] = chance.choice(TOKENS)
            case 4:
                data[at - at % 512 : at - at % 512] = chance.choice(seeds)
            case 5:
                data += chance.choice((b"", b"\0LAYER\0")) + chance.choice(seeds)
    for at in range(0, len(data) - 511, 512) if chance.random() < 0.9 else ():
        if data[at + 257 : at + 262] == b"ustar":  # else the checksum would hide all the rest
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def faults(reader: str, *, seed: int) -> Iterator[str]:
    """Feed a reader for ever; yield an empty text for what is fine, and else what went wrong."""
    read, seeds = READERS[reader]
    chance = random.Random(seed)
    while True:
        data, began, said = altered(seeds, chance), time.process_time(), ""
        try:
            read(data)
        except LabError as error:
            said = f"unprintable: {error!r}" if UNPRINTABLE.search(str(error)) else ""
        except Exception:
            said = traceback.format_exc()
        if (took := time.process_time() - began) > SLOW:
            said += f"took {took:.1f} s"
        yield f"{said}\n{data!r}" if said else ""
