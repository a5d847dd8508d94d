"""One layer: what it brings and removes, read once and kept in a folder by its digest, for good.

Source: OCI Image Specification 1.1, layer.md ("Whiteouts").
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from labapp import feedback
from labapp.errors import RegistryError, damaged
from labapp.inside import archive, findings, packages
from labapp.inside.archive import DIRECTORY, FILE, HARDLINK, PIECE_BYTES, SYMLINK, WHITEOUT, Entry
from labapp.inside.findings import Secret
from labapp.inside.packages import JOIN, Document, Package, Reader
from labapp.reference import is_digest
from labapp.registry.client import Registry, RegistryImage
from labapp.state import write_file

MAX_LAYERS = 127
"""As many as engines take."""
BUDGET_BYTES = 400_000_000
"""What the layers of an image may take of memory together, for half a million files; …"""
MAX_UNPACKED_BYTES = 32 * 1024**3
"""… and what they may unpack to. A small image may less: a bomb is known by what it weighs."""
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_SEARCH = 256 * 1024
"""How much of a layer is searched for secrets: suspicious characters, and 100 others count one."""
MAX_NOTES = 20

OPAQUE = ".wh..wh..opq"

COLUMNS = np.dtype(
    [("kind", "u1"), ("bytes", "i8"), ("mode", "u2"), ("uid", "i8"), ("gid", "i8"), ("sum", "V16")]
)
"""Of each entry; ``sum`` is the first half of the SHA-256 of a file's bytes as they are stored."""

FORMAT = 7
"""To be raised with each change of what is read from a layer or of how it is written."""


@dataclass(frozen=True)
class Layer:
    """What one layer brings and removes.

    Attributes:
        entries: a row with ``COLUMNS`` for each of the paths, which are sorted.
        targets: of links, by path, in the archive's order.
        removed: paths whose lower copy is hidden, and whether only what is in the folder is.
    """

    diff_id: str
    paths: list[str]
    entries: npt.NDArray[np.void]
    targets: dict[str, str]
    removed: list[tuple[str, bool]]
    documents: dict[str, Document]
    secrets: list[Secret]
    notes: list[str]

    @property
    def unpacked_bytes(self) -> int:
        """The bytes of the layer's files."""
        return int(self.entries["bytes"].sum())


class Budget:
    """What is left of the memory and the work that an image of so many bytes may cost."""

    def __init__(self, doing: str, download_bytes: int) -> None:
        self._doing = doing
        self._most = self._left = min(BUDGET_BYTES, 64_000_000 + 64 * download_bytes)
        # Honest compression makes no more than a thousand of one byte.
        self._most_unpacked = min(MAX_UNPACKED_BYTES, 1024**3 + 1024 * download_bytes)
        self._unpacked = self._most_unpacked

    def spend(self, count: int) -> None:
        """Take bytes of memory from what is left; an error if that is too little."""
        self._left -= count
        if self._left < 0:
            raise self._error(
                f"its files, their names and its lists of packages take more than {self._most:,} "
                "bytes of memory"
            )

    def unpack(self, count: int) -> None:
        """Take bytes from what may still be unpacked; an error if that is too little."""
        self._unpacked -= count
        if self._unpacked < 0:
            raise self._error(f"it unpacks to more than {self._most_unpacked:,} bytes")

    def _error(self, bound: str) -> RegistryError:
        return RegistryError(f"{self._doing}: {bound}, the most for its size. Take another image.")


def read_layer(stream: BinaryIO, *, diff_id: str, doing: str, budget: Budget) -> Layer:
    """Read a layer to its end; who opened the stream verifies the diff ID."""
    reading = _Reading(budget)
    for entry in archive.walk(stream, doing=doing, spend=budget.spend):
        reading.take(entry, stream)
    return reading.layer(diff_id)


class _Reading:
    """A layer while it is read."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.entries: dict[str, Entry] = {}
        self.sums: dict[str, bytes] = {}
        self.shared: dict[str, list[Entry]] = {}
        self.folders: dict[str, str] | None = None
        self.removed: dict[tuple[str, bool], None] = {}
        self.documents: dict[str, Document] = {}
        self.suspicious: dict[str, list[tuple[int | None, str]]] = {}
        self.searched = 0
        self.notes: dict[str, None] = {}

    def take(self, entry: Entry, stream: BinaryIO) -> None:
        path, target = entry.path, entry.target
        # About the memory that it takes, and more for a deep one, which takes time to put together.
        self.budget.spend(600 + len(target) + len(path) * (4 + path.count("/") // 8))
        if self.folders is not None:
            path = self.reached(path)
            target = self.reached(target) if entry.kind == HARDLINK else target
            if (path, target) != (entry.path, entry.target):
                entry = entry._replace(path=path, target=target)
        folder, _, name = path.rpartition("/")
        if not name:  # engines leave the root as it is
            return
        if name.startswith(WHITEOUT):
            if name == OPAQUE:
                if folder:  # what is below the root shines through all the same
                    self.removed[folder, True] = None
            elif not name.startswith(WHITEOUT * 2):  # bookkeeping of aufs, which engines skip
                self.removed[f"{folder}/{name.removeprefix(WHITEOUT)}", False] = None
            return
        if self.entries.pop(path, None):  # as with tar itself, the last one stays
            self.documents.pop(path, None)
            self.suspicious.pop(path, None)
            self.sums.pop(path, None)
            self.folders = self.folders and {}
        self.shared.pop(path, None)
        self.entries[path] = entry
        if entry.kind == SYMLINK:
            self.folders = {}
        elif entry.kind == HARDLINK:
            self.share(entry)
        elif entry.kind == DIRECTORY:  # it takes the place of a whiteout, which so has no effect
            self.removed.pop((path, False), None)
        if entry.kind != FILE:
            return
        hasher, left = hashlib.sha256(), entry.stored
        if parse := packages.reader(path):
            hasher.update(content := self.keep(entry, stream, parse))
            left -= len(content)
        elif self.searched <= MAX_SEARCH and findings.is_looked_at(path, entry.stored):
            hasher.update(content := stream.read(left))
            left -= len(content)
            self.search(path, content)
        while left and (piece := stream.read(min(left, PIECE_BYTES))):
            hasher.update(piece)
            left -= len(piece)
        self.sums[path] = hasher.digest()[:16]

    def reached(self, path: str) -> str:
        """Return where a path leads by the links of this layer, as engines follow those."""
        folder, _, name = path.rpartition("/")
        assert self.folders is not None
        if folder not in self.folders:
            self.folders[folder] = findings.resolve(folder, self.link) or folder
        return f"{self.folders[folder]}/{name}"

    def link(self, path: str) -> str:
        entry = self.entries.get(path)
        return entry.target if entry and entry.kind == SYMLINK else ""

    def share(self, link: Entry) -> None:
        """Note that a hard link and what it leads to are one, which has the owner told last."""
        one = self.shared.get(link.target) or [self.entries.get(link.target, link)]
        if one[0].kind in (FILE, HARDLINK):
            one[0] = one[0]._replace(mode=link.mode, uid=link.uid, gid=link.gid)
        self.shared[link.path] = self.shared[link.target] = one

    def keep(self, entry: Entry, stream: BinaryIO, parse: Reader) -> bytes:
        path, length = entry.path, entry.stored
        most = packages.MAX_TEXT if parse is packages.text else MAX_DOCUMENT_BYTES
        if not length == entry.bytes <= most:
            self.note(
                f"'{path}' has holes or is too long, and was not read ({entry.bytes:,} bytes)"
            )
            return b""
        content = stream.read(length)
        text = content.decode("utf-8", "replace")
        self.budget.spend(8 * length + 60 * text.count("\n"))
        # Here, not at the end, so that the other threads work meanwhile.
        document = parse(path, text, self.budget.spend)
        self.documents[path] = document
        if document.broken:
            self.note(f"{document.broken:,} broken records of '{path}' were left out")
        return content

    def search(self, path: str, content: bytes) -> None:
        lines = findings.suspicious_lines(path, content)
        cost = sum(50 + len(text) for _, text in lines)
        cost += 0 if b"\0" in content else len(content) // 100
        self.budget.spend(96 * cost)
        self.searched += cost
        if self.searched > MAX_SEARCH:
            self.note(f"secrets were sought up to '{path}' only: there is too much to look at")
        elif lines:
            self.suspicious[path] = lines

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes[text] = None

    def layer(self, diff_id: str) -> Layer:
        paths = sorted(self.entries)
        for path, (one,) in self.shared.items():
            if (entry := self.entries.get(path)) and one.kind in (FILE, HARDLINK):
                self.entries[path] = entry._replace(mode=one.mode, uid=one.uid, gid=one.gid)
            elif entry:
                self.entries[path] = one._replace(path=path)
        for path, document in self.documents.items():
            for package, names in document.owned.items():
                document.owned[package] = JOIN.join(map(self.placed, names.split(JOIN)))
            if path.endswith("/RECORD"):
                self.measure(path.removesuffix("RECORD"))
        if self.suspicious:
            owned = {name for each in self.documents.values() for name in each.paths()}
            for path in owned & self.suspicious.keys():
                del self.suspicious[path]
        rows = ((*self.entries[path][1:6], self.sums.get(path, b"")) for path in paths)
        return Layer(
            diff_id=diff_id,
            paths=paths,
            entries=np.fromiter(rows, COLUMNS, len(paths)),
            targets={path: entry.target for path, entry in self.entries.items() if entry.target},
            removed=list(self.removed),
            documents=self.documents,
            secrets=findings.secrets(self.suspicious) if self.suspicious else [],
            notes=list(self.notes),
        )

    def placed(self, name: str) -> str:
        """Return where a package's file is, which may be named without /usr."""
        moved = f"/usr{name}"
        return moved if name not in self.entries and moved in self.entries else name

    def measure(self, home: str) -> None:
        """Tell what a Python distribution takes, whose name METADATA spells as its author does."""
        about, record = self.documents.get(f"{home}METADATA"), self.documents[f"{home}RECORD"]
        if about and about.packages:
            held = (self.entries[path].bytes for path in record.paths() if path in self.entries)
            package = about.packages[0]._replace(unpacked_bytes=sum(held))
            about.packages, record.owned = [package], {package.name: JOIN.join(record.paths())}


def read_layers(registry: Registry, image: RegistryImage, folder: Path) -> tuple[Layer, ...]:
    """Return an image's layers, lowest first, from the folder of read ones or the registry."""
    doing = f"reading what is in '{image.reference}'"
    layers, diff_ids = image.manifest.layers, image.config.diff_ids
    if len(diff_ids) != len(layers) or not all(map(is_digest, diff_ids)):
        told = f"{len(diff_ids)} diff IDs for {len(layers)} layers, or one that is none"
        raise damaged(doing, f"its config has {told}")
    if len(layers) > MAX_LAYERS:
        raise RegistryError(f"{doing}: it has {len(layers):,} layers; engines take {MAX_LAYERS}.")
    budget, found = Budget(doing, image.manifest.download_bytes), list[Layer]()
    held = {each.digest: load(folder, each.digest) for each in layers}
    with feedback.bars(doing) if None in held.values() else contextlib.nullcontext() as bars:
        for number, (descriptor, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1):
            digest = descriptor.digest
            if layer := held[digest]:  # kept from before, or there twice
                budget.spend(600 * len(layer.paths) + 4 * sum(map(len, layer.paths)))
            else:
                assert bars
                layer = held[digest] = _fetch(registry, image, number, bars, budget)
                save(folder, digest, layer)
            archive.check_diff_id(layer.diff_id, diff_id, f"{doing} ('{digest}')")
            found.append(layer)
    return tuple(found)


def _fetch(
    registry: Registry, image: RegistryImage, number: int, bars: feedback.Bars, budget: Budget
) -> Layer:
    descriptor, diff_id = image.manifest.layers[number - 1], image.config.diff_ids[number - 1]
    name, repository = f"layer {number}", image.reference.repository
    doing = f"reading {name} of '{image.reference}' ('{descriptor.digest}')"
    blob = registry.open_blob(repository, descriptor.digest, size=descriptor.size)

    def shown() -> Generator[bytes]:
        fetched = 0
        with contextlib.closing(blob):
            for chunk in blob:
                fetched += len(chunk)
                bars.update(name, fetched, descriptor.size)
                yield chunk

    with archive.opened(shown(), diff_id=diff_id, doing=doing, unpack=budget.unpack) as stream:
        layer = read_layer(stream, diff_id=diff_id, doing=doing, budget=budget)
    bars.finish(name, "verified")
    return layer


def load(folder: Path, digest: str) -> Layer | None:
    """Return a layer that was saved before; None if there is none, or none that can be read."""
    try:
        head, _, table = _file(folder, digest).read_bytes().partition(b"\n")
        rest, entries = json.loads(head), np.frombuffer(table, COLUMNS)
        paths = list(filter(None, rest.pop("paths").split(JOIN)))
        documents = {path: Document(**each) for path, each in rest.pop("documents").items()}
    except (OSError, ValueError, KeyError):
        return None
    for document in documents.values():
        document.packages = [Package(*each) for each in document.packages]
    return Layer(paths=paths, entries=entries, documents=documents, **rest)


def save(folder: Path, digest: str, layer: Layer) -> None:
    """Write a layer to its file: a line of JSON, and the table of entries."""
    rest = vars(layer) | {"paths": JOIN.join(layer.paths)}
    table = rest.pop("entries").tobytes()
    write_file(_file(folder, digest), json.dumps(rest, default=vars).encode() + b"\n" + table)


def _file(folder: Path, digest: str) -> Path:
    return folder / f"v{FORMAT}" / digest.replace(":", "-")
