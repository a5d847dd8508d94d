"""One layer: what it brings and removes, read once and kept in a folder by its digest, for good.

Source: OCI Image Specification 1.1, layer.md ("Whiteouts").
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from labapp import feedback
from labapp.errors import DamagedContent, RegistryError
from labapp.inside import findings, packages
from labapp.inside.archive import FILE, Entry, check_diff_id, opened, walk
from labapp.inside.findings import Secret
from labapp.inside.packages import JOIN, Document, Package
from labapp.reference import is_digest
from labapp.registry.client import Registry, RegistryImage
from labapp.state import write_file

BUDGET_BYTES = 512 * 1024 * 1024
"""What the layers of an image may take together: for a million files, or a few bombs."""
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_SEARCH = 256 * 1024
"""How much of a layer is searched for secrets: suspicious characters, and 256 others count one."""
MAX_NOTES = 20

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"

COLUMNS = np.dtype([("kind", "u1"), ("bytes", "i8"), ("mode", "u2"), ("uid", "i8"), ("gid", "i8")])

FORMAT = 5
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
    """What is left of the memory and the work that one image may cost, as bytes of memory."""

    def __init__(self, doing: str) -> None:
        self._doing, self._left = doing, BUDGET_BYTES

    def spend(self, count: int) -> None:
        """Take from what is left; an error if that is too little."""
        self._left -= count
        if self._left < 0:
            raise RegistryError(
                f"{self._doing}: it has more files, longer names or headers than the lab can hold. "
                "Take a smaller image."
            )


def read_layer(stream: BinaryIO, *, diff_id: str, doing: str, budget: Budget) -> Layer:
    """Read a layer to its end; who opened the stream verifies the diff ID."""
    reading = _Reading(budget)
    for entry in walk(stream, doing=doing, spend=budget.spend):
        reading.take(entry, stream)
    return reading.layer(diff_id)


class _Reading:
    """A layer while it is read."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.entries: dict[str, Entry] = {}
        self.removed: dict[tuple[str, bool], None] = {}
        self.documents: dict[str, Document] = {}
        self.suspicious: dict[str, list[tuple[int | None, str]]] = {}
        self.searched = 0
        self.notes: dict[str, None] = {}

    def take(self, entry: Entry, stream: BinaryIO) -> None:
        path = entry.path
        # About the memory that it takes, and more for a deep one, which takes time to put together.
        self.budget.spend(150 + len(path) + len(entry.target) + 32 * path.count("/"))
        folder, _, name = path.rpartition("/")
        if name.startswith(WHITEOUT):
            if name == OPAQUE:
                self.removed[folder or "/", True] = None
            elif not name.startswith(WHITEOUT * 2):  # bookkeeping of aufs, which engines skip
                self.removed[f"{folder}/{name.removeprefix(WHITEOUT)}", False] = None
            return
        if self.entries.pop(path, None):  # as with tar itself, the last one stays
            self.documents.pop(path, None)
            self.suspicious.pop(path, None)
        self.entries[path] = entry
        if entry.kind != FILE:
            return
        if parse := packages.reader(path):
            self.keep(entry, stream, parse)
        elif self.searched <= MAX_SEARCH and findings.is_looked_at(path, entry.stored):
            self.search(path, stream.read(entry.stored))

    def keep(self, entry: Entry, stream: BinaryIO, parse: Callable[[str, str], Document]) -> None:
        path, length = entry.path, entry.stored
        if length > MAX_DOCUMENT_BYTES:
            self.note(f"'{path}' is too long to be read ({length:,} bytes)")
            return
        self.budget.spend(8 * length)
        # Here, not at the end, so that the other threads work meanwhile.
        document = parse(path, stream.read(length).decode("utf-8", "replace"))
        self.documents[path] = document
        if document.broken:
            self.note(f"{document.broken:,} broken records of '{path}' were left out")

    def search(self, path: str, content: bytes) -> None:
        lines = findings.suspicious_lines(path, content)
        cost = sum(50 + len(text) for _, text in lines)
        cost += 0 if b"\0" in content else len(content) // 256
        self.budget.spend(64 * cost)
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
        for path, document in self.documents.items():
            for package, names in document.owned.items():
                document.owned[package] = JOIN.join(map(self.placed, names.split(JOIN)))
            if path.endswith("/RECORD"):
                self.measure(path.removesuffix("RECORD"))
        if self.suspicious:
            owned = {name for each in self.documents.values() for name in each.paths()}
            for path in owned & self.suspicious.keys():
                del self.suspicious[path]
        return Layer(
            diff_id=diff_id,
            paths=paths,
            entries=np.fromiter((self.entries[path][1:6] for path in paths), COLUMNS, len(paths)),
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
        raise DamagedContent(
            f"{doing}: its config has {len(diff_ids)} diff IDs for {len(layers)} layers, or one "
            "that is no digest. Build and push the image again."
        )
    budget = Budget(doing)
    numbers = {each.digest: number for number, each in enumerate(layers)}
    held = {digest: layer for digest in numbers if (layer := load(folder, digest))}
    for layer in held.values():
        budget.spend(sum(map(len, layer.paths)) + 250 * len(layer.paths))
    if missing := [digest for digest in numbers if digest not in held]:
        with feedback.bars(doing) as bars:
            for digest in missing:
                held[digest] = _fetch(registry, image, numbers[digest], bars, budget)
                save(folder, digest, held[digest])
    for descriptor, diff_id in zip(layers, diff_ids, strict=True):
        check_diff_id(held[descriptor.digest].diff_id, diff_id, f"{doing} ('{descriptor.digest}')")
    return tuple(held[each.digest] for each in layers)


def _fetch(
    registry: Registry, image: RegistryImage, at: int, bars: feedback.Bars, budget: Budget
) -> Layer:
    descriptor, diff_id = image.manifest.layers[at], image.config.diff_ids[at]
    name, repository = f"layer {at + 1}", image.reference.repository
    doing = f"reading {name} of '{image.reference}' ('{descriptor.digest}')"
    blob = registry.open_blob(repository, descriptor.digest, size=descriptor.size)

    def shown() -> Generator[bytes]:
        fetched = 0
        with contextlib.closing(blob):
            for chunk in blob:
                fetched += len(chunk)
                bars.update(name, fetched, descriptor.size)
                yield chunk

    with opened(shown(), diff_id=diff_id, doing=doing) as stream:
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
