"""One layer: what it brings and removes, read once and kept in a folder by its digest, for good.

Source: OCI Image Specification 1.1, layer.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labapp import feedback
from labapp.errors import DamagedContent, RegistryError, StateError
from labapp.inside import findings, packages
from labapp.inside.archive import DIRECTORY, FILE, Entry, LayerStream, check_diff_id, opened, walk
from labapp.inside.findings import Secret
from labapp.inside.packages import Package
from labapp.reference import is_digest
from labapp.registry.client import Registry, RegistryImage
from labapp.state import write_atomically

BUDGET_BYTES = 512 * 1024 * 1024
"""What the layers of an image may take together: for a million files, or a few bombs."""
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_SEARCH = 256 * 1024
"""How much of a layer is searched for secrets: suspicious characters, and 256 others count one."""
MAX_NOTES = 20

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"

OS_RELEASES = ("/etc/os-release", "/usr/lib/os-release")
APT_SOURCES = "/etc/apt/sources.list"
RPM_FOLDERS = ("/var/lib/rpm/", "/usr/lib/sysimage/rpm/", "/usr/share/rpm/")

COLUMNS = np.dtype([("kind", "u1"), ("bytes", "i8"), ("mode", "u2"), ("uid", "i8"), ("gid", "i8")])

FORMAT = 3
"""To be raised with each change of what is read from a layer or of how it is written."""
_CHECKSUM_BYTES = 32
_JOIN = "\0"
"""What no path has inside: JSON with a few long texts is read sooner than with many short ones."""
_FOREIGN = (".foreign.", ".nondistributable.")
"""What marks the media types of layers that registries don't have (OCI layer.md)."""


@dataclass(frozen=True)
class Layer:
    """What one layer brings and removes.

    Attributes:
        diff_id: the digest of the unpacked archive, verified.
        paths: of the entries, from ``/`` on, sorted.
        entries: a row for each path, with ``COLUMNS``.
        targets: of links, by path, in the archive's order.
        removed: paths whose lower copy is hidden, and whether only what is in the folder is.
        databases: the packages that a database file names, by its path.
        owned: the paths that it says are a package's own, by its path and the package.
        texts: of os-release and apt's sources, by path.
        notes: what could not be read, in words.
    """

    diff_id: str
    paths: list[str] = field(default_factory=list)
    entries: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, COLUMNS))
    targets: dict[str, str] = field(default_factory=dict)
    removed: list[tuple[str, bool]] = field(default_factory=list)
    databases: dict[str, list[Package]] = field(default_factory=dict)
    owned: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    secrets: list[Secret] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def unpacked_bytes(self) -> int:
        """The bytes of the layer's files."""
        return int(self.entries["bytes"].sum())

    @property
    def files(self) -> int:
        """How many entries are no folders."""
        return int((self.entries["kind"] != DIRECTORY).sum())


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


def read_layer(
    stream: LayerStream, *, diff_id: str, doing: str, budget: Budget | None = None
) -> Layer:
    """Read a layer to its end; the diff ID is noted, and verified where the stream is opened."""
    reading = _Reading(budget or Budget(doing))
    for entry in walk(stream, doing=doing, spend=reading.budget.spend):
        reading.take(entry, stream)
    return reading.layer(diff_id)


def removal(path: str) -> tuple[str, bool] | None:
    """Read a whiteout: the path that it hides, and whether only what is inside; None if it is none.

    Source: OCI Image Specification 1.1, layer.md, "Whiteouts".
    """
    folder, _, name = path.rpartition("/")
    if not name.startswith(WHITEOUT):
        return None
    if name == OPAQUE:
        return folder or "/", True
    return f"{folder}/{name.removeprefix(WHITEOUT)}", False


def hides(path: str, removed: str, only_inside: bool) -> bool:
    """Tell if a whiteout, as :func:`removal` returns it, hides a path of a lower layer."""
    inside = path.startswith(removed if removed == "/" else f"{removed}/")
    return inside or (path == removed and not only_inside)


class _Reading:
    """A layer while it is read."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.entries: dict[str, Entry] = {}
        self.removed: dict[tuple[str, bool], None] = {}
        self.found: dict[str, packages.Found] = {}
        self.texts: dict[str, str] = {}
        self.suspicious: dict[str, list[tuple[int | None, str]]] = {}
        self.searched = 0
        self.notes: dict[str, None] = {}

    def take(self, entry: Entry, stream: LayerStream) -> None:
        path = entry.path
        # About the memory that it takes, and more for a deep one, which takes time to put together.
        self.budget.spend(150 + len(path) + len(entry.target) + 32 * path.count("/"))
        if entry.outside:
            self.note(f"'{path}' was named out of the image, which the classic engine refuses")
        if WHITEOUT in path and (hidden := removal(path)):
            # Other names of this form are bookkeeping of aufs, which engines skip.
            if hidden[1] or not hidden[0].rpartition("/")[2].startswith(WHITEOUT):
                self.removed[hidden] = None
            return
        if self.entries.pop(path, None):  # as with tar itself, the last one stays
            for kept in (self.found, self.texts, self.suspicious):
                kept.pop(path, None)
        self.entries[path] = entry
        if entry.kind != FILE:
            return
        if packages.is_database(path) or _is_text(path):
            self.keep(path, entry.stored, stream)
        elif self.searched <= MAX_SEARCH and findings.is_looked_at(path, entry.stored):
            self.search(path, stream.read(entry.stored))

    def keep(self, path: str, length: int, stream: LayerStream) -> None:
        if length > MAX_DOCUMENT_BYTES:
            self.note(f"'{path}' is too long to be read ({length:,} bytes)")
            return
        self.budget.spend(8 * length)
        text = stream.read(length).decode("utf-8", "replace")
        if _is_text(path):
            self.texts[path] = text
            return
        # Here, not at the end, so that the other threads work meanwhile.
        found = self.found[path] = packages.parse(path, text)
        if found.broken:
            self.note(f"{found.broken:,} broken records of '{path}' were left out")

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
        """Make the layer, once all entries are known."""
        paths, owned = sorted(self.entries), self.owned()
        if any(path.startswith(RPM_FOLDERS) for path in paths):
            self.note("an rpm database, which the lab can't read")
        if self.suspicious:
            lists = (names for each in owned.values() for names in each.values())
            for path in {name for names in lists for name in names} & self.suspicious.keys():
                del self.suspicious[path]
        return Layer(
            diff_id=diff_id,
            paths=paths,
            entries=np.fromiter((self.entries[path][1:6] for path in paths), COLUMNS, len(paths)),
            targets={path: entry.target for path, entry in self.entries.items() if entry.target},
            removed=list(self.removed),
            databases={path: each.packages for path, each in self.found.items() if each.packages},
            owned=owned,
            texts=self.texts,
            secrets=findings.secrets(self.suspicious) if self.suspicious else [],
            notes=list(self.notes),
        )

    def owned(self) -> dict[str, dict[str, list[str]]]:
        """Return whose files are whose; what Python's installers brought is measured by it."""
        owned: dict[str, dict[str, list[str]]] = {}
        for path, found in self.found.items():
            described = self.found.get(f"{packages.python_home(path)}/METADATA")
            for package, names in found.owned.items():
                names = [name for name in map(self.placed, names) if name]
                if described and described.packages:  # it spells the name as its author does
                    package = described.packages[0]["name"]
                    sizes = (self.entries[name].bytes for name in names if name in self.entries)
                    described.packages[0]["unpacked_bytes"] = sum(sizes)
                owned[path] = {**owned.get(path, {}), package: names}
        return owned

    def placed(self, name: str) -> str:
        """Return where a package's file is, which may be named without /usr; empty for a folder."""
        entry = self.entries.get(name)
        if entry is None and f"/usr{name}" in self.entries:
            return f"/usr{name}"
        return "" if entry and entry.kind == DIRECTORY else name


def _is_text(path: str) -> bool:
    return path in OS_RELEASES or (
        path.startswith(APT_SOURCES) and path.endswith((".list", ".sources"))
    )


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
    held: dict[str, Layer] = {}
    with contextlib.ExitStack() as stack:
        bars: feedback.Bars | None = None
        for number, (descriptor, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1):
            digest = descriptor.digest
            if digest in held:
                continue
            if any(mark in descriptor.media_type for mark in _FOREIGN):
                note = f"layer {number} is a foreign one, which registries don't have: left out"
                held[digest] = Layer(diff_id, notes=[note])
            elif layer := load(folder, digest):
                held[digest] = layer
                budget.spend(sum(map(len, layer.paths)) + 250 * len(layer.paths))
                check_diff_id(
                    layer.diff_id, diff_id, f"reading layer {number} of '{image.reference}'"
                )
            else:
                if bars is None:
                    title = f"reading what is in {image.reference}"
                    bars = stack.enter_context(feedback.bars(title))
                held[digest] = _fetch(registry, image, number, bars, budget)
                save(folder, digest, held[digest])
    return tuple(held[each.digest] for each in layers)


def _fetch(
    registry: Registry, image: RegistryImage, number: int, bars: feedback.Bars, budget: Budget
) -> Layer:
    """Read a layer from the registry, verified."""
    descriptor, diff_id = image.manifest.layers[number - 1], image.config.diff_ids[number - 1]
    doing = f"reading layer {number} of '{image.reference}' ('{descriptor.digest}')"
    key, fetched = f"layer {number}", 0

    def counted() -> Generator[bytes]:
        nonlocal fetched
        repository = image.reference.repository
        blob = registry.open_blob(repository, descriptor.digest, size=descriptor.size)
        with contextlib.closing(blob):
            for chunk in blob:
                fetched += len(chunk)
                yield chunk

    def tell() -> None:
        bars.update(key, fetched, descriptor.size)

    with opened(counted(), diff_id=diff_id, doing=doing, on_chunk=tell) as stream:
        layer = read_layer(stream, diff_id=diff_id, doing=doing, budget=budget)
    bars.finish(key, "verified")
    return layer


def load(folder: Path, digest: str) -> Layer | None:
    """Return a layer that was saved before; None if there is none, or its file is damaged."""
    try:
        packed = io.BytesIO(_file(folder, digest).read_bytes())
        checksum = packed.read(_CHECKSUM_BYTES)
        if hashlib.sha256(packed.getbuffer()[_CHECKSUM_BYTES:]).digest() != checksum:
            return None
        entries = np.load(packed, allow_pickle=False)
        rest = json.loads(packed.read())
    except (OSError, ValueError):
        return None
    rest["paths"] = rest["paths"].split(_JOIN) if rest["paths"] else []
    for packages_of in rest["owned"].values():
        for package, names in packages_of.items():
            packages_of[package] = names.split(_JOIN)
    rest["removed"] = [(path, inside) for path, inside in rest["removed"]]
    rest["secrets"] = [Secret(*each) for each in rest["secrets"]]
    return Layer(entries=entries, **rest)


def save(folder: Path, digest: str, layer: Layer) -> None:
    """Write a layer to its file: a checksum, the table of entries, and the rest as JSON.

    No file's content is in it, and of a secret only where it is.
    """
    rest = {name: value for name, value in vars(layer).items() if name != "entries"}
    rest["paths"] = _JOIN.join(layer.paths)
    rest["owned"] = {
        path: {package: _JOIN.join(names) for package, names in each.items()}
        for path, each in layer.owned.items()
    }
    packed = io.BytesIO(bytes(_CHECKSUM_BYTES))
    packed.seek(_CHECKSUM_BYTES)
    np.save(packed, layer.entries)
    packed.write(json.dumps(rest, separators=(",", ":")).encode())
    with packed.getbuffer() as content:
        content[:_CHECKSUM_BYTES] = hashlib.sha256(content[_CHECKSUM_BYTES:]).digest()
    path = _file(folder, digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, packed.getvalue())
    except OSError as error:
        raise StateError(
            f"writing '{path}': {error.strerror or error}. Free some disk space and try again."
        ) from error


def _file(folder: Path, digest: str) -> Path:
    return folder / f"v{FORMAT}" / digest.replace(":", "-")
