"""One layer, read: its entries in packed columns, and what its package databases say."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from labapp.contents import packages, secret_files
from labapp.contents.archive import DIRECTORY, FILE, Entry, walk
from labapp.contents.packages import Package
from labapp.contents.streams import LayerStream
from labapp.errors import RegistryError

MAX_ENTRIES = 2_000_000
MAX_PATH_TEXT = 256 * 1024 * 1024
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_DOCUMENTS_BYTES = 64 * 1024 * 1024
MAX_NOTES = 20

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"

OS_RELEASES = ("/etc/os-release", "/usr/lib/os-release")
APT_SOURCES = "/etc/apt/sources.list"
RPM_FOLDERS = ("/var/lib/rpm/", "/usr/lib/sysimage/rpm/", "/usr/share/rpm/")


@dataclass(frozen=True)
class Secret:
    """Where a secret is: the entry's number, the line (None: the whole file), and the kind."""

    entry: int
    line: int | None
    kind: str


@dataclass(frozen=True)
class Layer:
    """What one layer brings and removes; entry numbers count from 0.

    Attributes:
        diff_id: the digest of the unpacked archive, verified.
        paths: of the entries, from ``/`` on; the columns after it have a value for each.
        owners: which of ``claims`` an entry belongs to; -1 for none.
        targets: of links, by entry number.
        removed: paths whose lower copy is hidden, and whether only what is in the folder is.
        claims: pairs of a database file and the package that it gives entries to.
        elsewhere: paths of other layers that a claim names, by the claim's number.
        databases: the packages that a database file names, by its path.
        texts: of os-release and apt's sources, by path.
        notes: what could not be read, in words.
    """

    diff_id: str
    paths: list[str]
    kinds: npt.NDArray[np.uint8]
    bytes: npt.NDArray[np.int64]
    modes: npt.NDArray[np.uint16]
    uids: npt.NDArray[np.int64]
    gids: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int32]
    targets: dict[int, str] = field(default_factory=dict)
    removed: list[tuple[str, bool]] = field(default_factory=list)
    claims: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: dict[int, list[str]] = field(default_factory=dict)
    databases: dict[str, list[Package]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    secrets: list[Secret] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def unpacked_bytes(self) -> int:
        """The bytes of the layer's files."""
        return int(self.bytes.sum())

    @property
    def files(self) -> int:
        """How many entries are no folders."""
        return int((self.kinds != DIRECTORY).sum())


def read_layer(stream: LayerStream, *, diff_id: str, doing: str) -> Layer:
    """Read a layer to its end.

    Args:
        stream: its unpacked bytes.
        diff_id: the digest that they are verified against.
        doing: what is being done, to begin an error with.

    Raises:
        DamagedContent: no tar archive, or a broken one.
        RegistryError: it has more entries or longer names than the lab holds in memory.
    """
    reading = _Reading(doing)
    for entry in walk(stream, doing=doing):
        reading.take(entry, stream)
    return reading.layer(diff_id)


def removal(path: str) -> tuple[str, bool] | None:
    """Read a whiteout: the path that it hides, and whether that is only the folder's content.

    Returns:
        None if the path is no whiteout (OCI Image Specification 1.1, layer.md, "Whiteouts").
    """
    if f"/{WHITEOUT}" not in path:
        return None
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


def is_kept(path: str) -> bool:
    """Tell if a file's content is read whole."""
    return (
        packages.is_database(path)
        or path in OS_RELEASES
        or (path.startswith(APT_SOURCES) and path.endswith((".list", ".sources")))
    )


class _Reading:
    """A layer while it is read."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.numbers: dict[str, int] = {}
        self.columns = array("q")  # for each entry: kind, bytes, mode, uid, gid
        self.targets: dict[int, str] = {}
        self.removed: dict[tuple[str, bool], None] = {}
        self.documents: dict[str, bytes] = {}
        self.suspicious: dict[int, list[tuple[int | None, str]]] = {}
        self.notes: dict[str, None] = {}
        self.text = 0
        self.held = 0
        self.lines = 0

    def take(self, entry: Entry, stream: LayerStream) -> None:
        self.text += len(entry.path) + len(entry.target)
        if len(self.numbers) + len(self.removed) >= MAX_ENTRIES or self.text > MAX_PATH_TEXT:
            raise RegistryError(
                f"{self.doing}: it has more than {MAX_ENTRIES:,} entries, or names of more than "
                f"{MAX_PATH_TEXT // 1024**2} MiB. Take an image with fewer."
            )
        if entry.outside:
            self.note(
                f"'{entry.path}' was named with '..' out of the image, which the classic Docker "
                "engine refuses"
            )
        hidden = removal(entry.path)
        if hidden:
            # Other names of this form are bookkeeping of aufs, which engines skip.
            if hidden[1] or not hidden[0].rpartition("/")[2].startswith(WHITEOUT):
                self.removed[hidden] = None
            return
        number = self.add(entry)
        if entry.kind != FILE:
            return
        if is_kept(entry.path):
            self.keep(entry, stream)
        elif secret_files.is_looked_at(entry.path, entry.stored):
            found = secret_files.suspicious_lines(entry.path, stream.read(entry.stored))
            room = secret_files.MAX_LINES - self.lines
            if len(found) > room:
                self.note(f"secrets were sought in the first {secret_files.MAX_LINES:,} lines only")
            self.lines += len(found[:room])
            if found:
                self.suspicious[number] = found[:room]

    def add(self, entry: Entry) -> int:
        number = len(self.numbers)
        if self.numbers.setdefault(entry.path, number) == number:
            self.columns.extend(entry[1:6])
        else:  # the same path again: as with tar itself, the last one stays
            number = self.numbers[entry.path]
            self.columns[5 * number : 5 * number + 5] = array("q", entry[1:6])
            self.targets.pop(number, None)
            self.suspicious.pop(number, None)
            self.documents.pop(entry.path, None)
        if entry.target:
            self.targets[number] = entry.target
        return number

    def keep(self, entry: Entry, stream: LayerStream) -> None:
        if entry.stored > MAX_DOCUMENT_BYTES or self.held + entry.stored > MAX_DOCUMENTS_BYTES:
            self.note(f"'{entry.path}' is too long to be read ({entry.stored:,} bytes)")
            return
        self.held += entry.stored
        self.documents[entry.path] = stream.read(entry.stored)

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes[text] = None

    def layer(self, diff_id: str) -> Layer:
        """Make the packed layer, once all entries are known."""
        kinds, sizes, modes, uids, gids = np.frombuffer(self.columns, np.int64).reshape(-1, 5).T
        owners = np.full(len(self.numbers), -1, np.int32)
        claims: list[tuple[str, str]] = []
        elsewhere: dict[int, list[str]] = {}
        databases: dict[str, list[Package]] = {}
        texts: dict[str, str] = {}
        # What the distribution says goes before what Python says: it is taken last.
        for path in sorted(self.documents, key=lambda name: (not packages.python_home(name), name)):
            if not packages.is_database(path):
                texts[path] = self.documents[path].decode("utf-8", "replace")
                continue
            found = packages.parse(path, self.documents[path])
            if found.broken:
                self.note(f"{found.broken:,} broken records of '{path}' were left out")
            if found.packages:
                databases[path] = found.packages
            # A RECORD comes after its METADATA, which spells the name as its author does.
            described = databases.get(f"{packages.python_home(path)}/METADATA", [])
            for package, owned in found.owned.items():
                claims.append((path, described[0]["name"] if described else package))
                for name in owned:
                    number = self.number_of(name)
                    if number is None:
                        elsewhere.setdefault(len(claims) - 1, []).append(name)
                    elif kinds[number] != DIRECTORY:
                        owners[number] = len(claims) - 1
                        for each in described:
                            each["unpacked_bytes"] += int(sizes[number])
        for name in self.numbers:
            if name.startswith(RPM_FOLDERS):
                self.note("an rpm database, which the lab can't read")
                break
        return Layer(
            diff_id=diff_id,
            paths=list(self.numbers),
            kinds=kinds.astype(np.uint8),
            bytes=sizes.copy(),
            modes=modes.astype(np.uint16),
            uids=uids.copy(),
            gids=gids.copy(),
            owners=owners,
            targets=self.targets,
            removed=list(self.removed),
            claims=claims,
            elsewhere=elsewhere,
            databases=databases,
            texts=texts,
            secrets=self.secrets(owners),
            notes=list(self.notes),
        )

    def number_of(self, path: str) -> int | None:
        """Find an entry; packages from before the merge of /usr name what is there without it."""
        found = self.numbers.get(path)
        if found is None and path.startswith(("/bin/", "/sbin/", "/lib")):
            return self.numbers.get(f"/usr{path}")
        return found

    def secrets(self, owners: npt.NDArray[np.int32]) -> list[Secret]:
        """Look closely at the suspicious lines of files that no package brought."""
        paths = list(self.numbers) if self.suspicious else []
        detector = secret_files.Detector() if self.suspicious else None
        found: dict[Secret, None] = {}
        for number, lines in self.suspicious.items():
            if detector is None or owners[number] >= 0:
                continue
            for line, text in lines:
                kinds = [text] if line is None else detector.kinds(paths[number], text)
                found.update((Secret(number, line, kind), None) for kind in itertools.chain(kinds))
        return list(found)
