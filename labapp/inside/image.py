"""What is inside an image, as tables: its layers put together as a container sees them.

Layers are read from the registry as streams, verified, and unpacked nowhere.

Source: OCI Image Specification 1.1, layer.md ("Applying Changesets", "Whiteouts").
"""

from __future__ import annotations

import posixpath
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas import DataFrame, concat

from labapp.inside import findings, packages
from labapp.inside.archive import DIRECTORY, FILE, HARDLINK, KINDS, SYMLINK
from labapp.inside.layers import COLUMNS, Layer, read_layers
from labapp.inside.packages import JOIN, Document, Package
from labapp.registry.client import Registry, RegistryImage
from labapp.registry.manifests import layer_history

_KINDS = np.array(KINDS, dtype=object)
_CHANGES = np.array(["added", "changed"], dtype=object)


def read(registry: Registry, image: RegistryImage, *, folder: Path) -> Contents:
    """Read what is inside an image, each layer verified; the folder keeps what was read of them."""
    return Contents(image, read_layers(registry, image, folder))


@dataclass(frozen=True)
class Contents:
    """What is inside an image, as tables (pandas), from what was read of each layer."""

    image: RegistryImage
    held: tuple[Layer, ...] = field(repr=False)

    @cached_property
    def layers(self) -> DataFrame:
        """The layers, lowest first.

        Columns: number (from 1), instruction (empty if the builder told none), digest,
        download_bytes, unpacked_bytes, files (all but folders and whiteouts), and wasted_bytes (of
        this layer's files, what a later layer replaced or deleted).
        """
        steps = layer_history(self.image.manifest, self.image.config)
        columns = {
            "number": range(1, len(self.held) + 1),
            "instruction": [step.instruction if step else "" for _, step in steps],
            "digest": [layer.digest for layer, _ in steps],
            "download_bytes": [layer.size for layer, _ in steps],
            "unpacked_bytes": [layer.unpacked_bytes for layer in self.held],
            "files": [int((layer.entries["kind"] != DIRECTORY).sum()) for layer in self.held],
            "wasted_bytes": self._union.wasted,
        }
        return DataFrame(columns).astype(dict.fromkeys(list(columns)[3:], "int64"))

    @cached_property
    def files(self) -> DataFrame:
        """What a container sees, by path; folders that no layer has an entry for are left out.

        Columns: path, type (file, directory, symlink, hardlink, device or fifo), bytes (a file that
        hard links share counts once), mode (without the type), uid, gid, target (of links), layer
        (the number of the one it is from), change (added or changed, by that layer), package (whose
        file it is; empty for none, and for folders).
        """
        union, paths, rows = self._union, sorted(self._union.visible), self._rows
        entries = union.entries[rows]
        owners = np.array([*map(union.owners().get, paths, repeat(""))], object)
        owners[entries["kind"] == DIRECTORY] = ""
        return DataFrame(
            {
                "path": paths,
                "type": _KINDS[entries["kind"]],
                "bytes": union.bytes[rows],
                "mode": entries["mode"].astype(np.int64),
                "uid": entries["uid"],
                "gid": entries["gid"],
                "target": union.targets[rows],
                "layer": union.numbers[rows],
                "change": _CHANGES[union.changed[rows].astype(int)],
                "package": owners,
            }
        )

    @property
    def sums(self) -> list[bytes]:
        """By row of ``files``, the first half of the SHA-256 of what a file holds."""
        found: list[bytes] = self._union.entries["sum"][self._rows].tolist()
        return found

    @cached_property
    def _rows(self) -> npt.NDArray[np.int64]:
        visible = self._union.visible
        return np.fromiter(map(visible.__getitem__, sorted(visible)), np.int64, len(visible))

    @cached_property
    def changes(self) -> DataFrame:
        """Every entry and every whiteout of every layer.

        Columns: path (of a folder that was made opaque with ``/*``), layer, change (added, changed
        or deleted), bytes, wasted_bytes (older bytes that became invisible by this entry).
        """
        union = self._union
        table = DataFrame(
            {
                "path": union.paths,
                "layer": union.numbers,
                "change": _CHANGES[union.changed.astype(int)],
                "bytes": union.entries["bytes"],
                "wasted_bytes": union.hides,
            }
        )
        if not union.removals:
            return table
        removed = DataFrame(union.removals, columns=["layer", "path", "wasted_bytes"])
        both = [removed.assign(change="deleted", bytes=0)[list(table)], table]
        return concat(both).sort_values("layer", kind="stable", ignore_index=True)

    @cached_property
    def packages(self) -> DataFrame:
        """What the package databases name, by kind and name.

        Columns: name, version, kind (deb, apk or python), source, source_version, architecture,
        unpacked_bytes (as the database says), layer (the number of the one it came with).
        """
        rows = []
        for path, (last, _) in self._union.documents.items():
            since: dict[Package, int] = {}  # the layer since which the file names it
            for number, layer in enumerate(self.held[:last], 1):
                if document := layer.documents.get(path):
                    since = {each: since.get(each, number) for each in document.packages}
            rows += [(*package, number) for package, number in since.items()]
        rows.sort(key=lambda row: (row[2], row[:2]))
        return _table(rows, [*Package._fields, "layer"], ["unpacked_bytes", "layer"])

    @cached_property
    def privileged(self) -> DataFrame:
        """Set-uid and set-gid files: path, bit, mode, uid, gid, bytes, layer."""
        files = self.files[self.files["type"].isin(["file", "hardlink"])]
        bits = {"set-gid": 0o2000, "set-uid": 0o4000}
        both = [files[files["mode"] & bit > 0].assign(bit=name) for name, bit in bits.items()]
        table = concat(both).sort_values(["path", "bit"], ignore_index=True)
        return table[["path", "bit", "mode", "uid", "gid", "bytes", "layer"]]

    @cached_property
    def tools(self) -> DataFrame:
        """Shells, compilers, package managers and network clients: name, kind, path, bytes, layer.

        Several names of one file count once for each kind.
        """
        union, files = self._union, self.files
        # Who may follow a link is not told by the link's own mode.
        programs = files["path"][(files["mode"] & 0o111 > 0) | (files["type"] == "symlink")]
        found = [
            (*tool, union.bytes[union.visible[tool[2]]], union.number_seen(tool[2]))
            for tool in findings.tools(programs.tolist(), union.link)
            if union.kind(tool[2]) in (FILE, HARDLINK)
        ]
        return _table(found, ["name", "kind", "path", "bytes", "layer"], ["bytes", "layer"])

    @cached_property
    def secrets(self) -> DataFrame:
        """What a secret scanner would flag: path, line, kind, layer, visible; never the secret.

        ``line`` is missing where a whole file is flagged; ``visible`` is False where a later layer
        replaced or deleted the file, which is still in its layer. What is looked at:
        ``labapp.inside.findings``.
        """
        rows = [
            (path, line, kind, number, self._union.number_seen(path) == number)
            for number, layer in enumerate(self.held, 1)
            for path, line, kind in layer.secrets
        ]
        table = _table(rows, ["path", "line", "kind", "layer", "visible"], ["layer"])
        return table.astype({"line": "Int64", "visible": bool})

    @property
    def download_bytes(self) -> int:
        """The bytes of the compressed layers."""
        return self.image.manifest.download_bytes

    @property
    def unpacked_bytes(self) -> int:
        """The bytes of all layers' files, visible or not."""
        return sum(layer.unpacked_bytes for layer in self.held)

    @property
    def visible_bytes(self) -> int:
        """The bytes of the files that a container sees."""
        return self.unpacked_bytes - self.wasted_bytes

    @property
    def wasted_bytes(self) -> int:
        """The bytes of files that a later layer replaced or deleted."""
        return sum(self._union.wasted)

    @cached_property
    def os_release(self) -> Mapping[str, str]:
        """What ``/etc/os-release`` says (os-release(5)), by name; empty if there is none."""
        documents = self._union.documents
        texts = [documents[path][1].text for path in packages.OS_RELEASES if path in documents]
        return packages.os_release(next(filter(None, texts), ""))

    @cached_property
    def apt_sources(self) -> tuple[str, ...]:
        """The texts of apt's ``sources.list`` and ``sources.list.d/*`` (sources.list(5))."""
        documents = sorted(self._union.documents.items())
        return tuple(
            found.text for path, (_, found) in documents if path.startswith(packages.APT_SOURCES)
        )

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What could not be read, in words."""
        found = [note for layer in self.held for note in layer.notes]
        union = self._union
        for path in packages.LISTS:
            real = findings.resolve(path, union.link)
            if real and (real not in packages.LISTS or union.kind(real) == HARDLINK):
                found.append(f"'{path}' is a link, behind which the lab reads no list of packages")
        return tuple(dict.fromkeys(found))

    @cached_property
    def _union(self) -> Union:
        return Union(self.held)


def _table(rows: Iterable[Any], columns: Iterable[str], whole: Iterable[str] = ()) -> DataFrame:
    """Make a table; the columns of whole numbers have their type even if there is no row."""
    return DataFrame(list(rows), columns=list(columns)).astype(dict.fromkeys(whole, "int64"))


class Union:
    """The layers put together: a row for each entry of each, lowest layer first.

    Attributes:
        numbers: by row, the layer's number from 1.
        visible: the row that a container sees at each path.
        changed: by row, whether the path was there before the row's layer.
        hides: by row, the older bytes that became invisible by it.
        bytes: by row; a file whose name is gone but for a hard link counts at that link.
        wasted: by layer, its bytes that a later layer replaced or deleted.
        removals: of each whiteout the layer's number, what it hides, and the bytes of that.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self.layers = layers
        self.paths = [path for layer in layers for path in layer.paths]
        self.entries = np.concatenate([np.empty(0, COLUMNS), *(each.entries for each in layers)])
        self.kinds: list[int] = self.entries["kind"].tolist()
        ends = [0, *accumulate(len(layer.paths) for layer in layers)]
        self.numbers = np.repeat(np.arange(1, len(layers) + 1), np.diff(ends))
        self.targets = np.full(len(self.paths), "", object)
        self.visible: dict[str, int] = {}
        self.changed = np.zeros(len(self.paths), bool)
        self.hides = np.zeros(len(self.paths), np.int64)
        self.bytes = self.entries["bytes"].copy()
        self.wasted = [0] * len(layers)
        self.removals: list[tuple[int, str, int]] = []
        self._holders: dict[int, int] = {}  # hard link → the row that holds the data it shares
        self._names: dict[int, int] = {}  # that row → how many of its names are visible
        self._order: list[str] = []  # what is visible before a layer, sorted
        for number, layer in enumerate(layers, 1):
            self._apply(number, layer, range(ends[number - 1], ends[number]))
        for row, holder in self._holders.items():
            if self._is_seen(row) and not self._is_seen(holder):
                self.bytes[row], self.bytes[holder] = self.bytes[holder], self.bytes[row]

    def number_seen(self, path: str) -> int | None:
        """Return the number of the layer that the visible copy of a path is in, if there is one."""
        row = self.visible.get(path)
        return None if row is None else int(self.numbers[row])

    def kind(self, path: str) -> int | None:
        """Return the kind of what is visible at a path, if there is something."""
        row = self.visible.get(path)
        return None if row is None else self.kinds[row]

    def link(self, path: str) -> str | None:
        """Return where a symbolic link leads; empty for another path, None for none."""
        kind = self.kind(path)
        if kind == SYMLINK:
            return str(self.targets[self.visible[path]])
        return None if kind is None else ""

    @cached_property
    def documents(self) -> dict[str, tuple[int, Document]]:
        """The visible ones of the layers' documents, with the layer's number, by path."""
        return {
            path: (number, document)
            for number, layer in enumerate(self.layers, 1)
            for path, document in layer.documents.items()
            if self.number_seen(path) == number
        }

    def owners(self) -> dict[str, str]:
        """Return the packages that visible databases give paths to, by path.

        What a distribution says goes before what Python says, and a lower layer before a higher.
        """
        found: dict[str, str] = {}
        weakest_first = sorted(
            self.documents.items(), key=lambda each: (not each[0].endswith("/RECORD"), -each[1][0])
        )
        for _, (_, document) in weakest_first:
            for package, names in document.owned.items():
                found.update(dict.fromkeys(names.split(JOIN), package))
        return found

    def _apply(self, number: int, layer: Layer, rows: range) -> None:
        before = self.visible.copy()
        self._order = sorted(before)
        for path, only_inside in layer.removed:
            shown = f"{path.rstrip('/')}/*" if only_inside else path
            inside = path if only_inside else posixpath.dirname(path)
            lost = [*self._below(path), *([] if only_inside else [path]), *self._in_the_way(inside)]
            self.removals.append((number, shown, self._hide(lost)))
        if before:
            self._replace(layer.paths, rows, before)
        self.visible.update(zip(layer.paths, rows, strict=True))
        for path, target in layer.targets.items():
            row = self.visible[path]
            self.targets[row] = target
            shared = self.visible.get(target, row)
            if self.kinds[row] == HARDLINK and shared != row:
                holder = self._holders[row] = self._holders.get(shared, shared)
                self._names[holder] = self._names.get(holder, 1) + 1

    def _replace(self, paths: list[str], rows: range, before: Mapping[str, int]) -> None:
        """Hide what a layer's entries take the place of."""
        folders: set[str] = set()
        for path, row in zip(paths, rows, strict=True):
            self.changed[row] = path in before
            lost = [path]
            # What takes the place of a folder, which may have no entry, hides what was in it.
            if self.kinds[row] != DIRECTORY:
                lost += self._below(path)
            folder = path.rpartition("/")[0]
            if folder not in folders:
                folders.add(folder)
                lost += self._in_the_way(folder)
            self.hides[row] = self._hide(lost)

    def _in_the_way(self, folder: str) -> Iterator[str]:
        """Yield what becomes a folder, as something is put in it or deleted there."""
        while folder.strip("/"):
            if self.kind(folder) not in (None, DIRECTORY):
                yield folder
            folder = folder.rpartition("/")[0]

    def _below(self, folder: str) -> list[str]:
        """Take what is inside of a folder out of the order, and return it."""
        order, prefix = self._order, f"{folder.rstrip('/')}/"
        first = bisect_right(order, prefix)
        last = bisect_left(order, f"{prefix[:-1]}0", first)  # "0" is what comes after "/"
        found = order[first:last]
        del order[first:last]
        return found

    def _hide(self, paths: Iterable[str]) -> int:
        """Take paths from view, and return the bytes that can't be reached any more."""
        lost = 0
        for row in (self.visible.pop(path) for path in paths if path in self.visible):
            holder = self._holders.get(row, row)
            self._names[holder] = self._names.get(holder, 1) - 1
            if not self._names[holder]:
                lost += int(self.bytes[holder])
                self.wasted[self.numbers[holder] - 1] += int(self.bytes[holder])
        return lost

    def _is_seen(self, row: int) -> bool:
        return self.visible.get(self.paths[row]) == row
