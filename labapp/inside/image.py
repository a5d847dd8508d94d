"""What is inside an image, as tables: its layers put together as a container sees them.

Layers are read from the registry as streams, verified, and unpacked nowhere.

Source: OCI Image Specification 1.1, layer.md ("Applying Changesets", "Whiteouts").
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labapp.inside import findings, packages
from labapp.inside.archive import DIRECTORY, FILE, HARDLINK, KINDS, SYMLINK
from labapp.inside.layers import APT_SOURCES, COLUMNS, OS_RELEASES, Layer, read_layers
from labapp.inside.packages import Package
from labapp.reference import Reference
from labapp.registry.client import Registry, RegistryImage
from labapp.registry.manifests import Platform, layer_history

if TYPE_CHECKING:
    from pandas import DataFrame

_KINDS = np.array(KINDS, dtype=object)
_CHANGES = np.array(["added", "changed"], dtype=object)
_SET_UID, _SET_GID = 0o4000, 0o2000


def read(
    registry: Registry,
    reference: Reference | str,
    *,
    folder: Path,
    platform: Platform | None = None,
) -> Contents:
    """Read what is inside an image, each layer verified by its digest and its diff ID.

    Args:
        registry: where the image is.
        reference: the image.
        folder: where read layers are kept; it is made when it is missing.
        platform: which image of an index; by default the one for this machine's processor.

    Raises:
        NotInRegistry: no such image, not for this platform, or one of its layers is missing.
        DamagedContent: bytes that do not match their digest, or a layer that is no tar archive.
        RegistryError: it has more files than the lab holds in memory.
        StateError: the folder can't be written.
    """
    image = registry.image(reference, platform=platform)
    return Contents(image, read_layers(registry, image, folder))


@dataclass(frozen=True)
class Contents:
    """What is inside an image, as tables (pandas).

    Attributes:
        image: the manifest and config that were read.
        held: what was read from each layer, lowest first; empty for a layer that was left out.
    """

    image: RegistryImage
    held: tuple[Layer, ...] = field(repr=False)

    @cached_property
    def layers(self) -> DataFrame:
        """The layers, lowest first.

        Columns: number (from 1), instruction (empty if the builder told none), digest,
        download_bytes, unpacked_bytes, files (all but folders and whiteouts), and wasted_bytes (of
        this layer's files, what a later layer replaced or deleted).
        """
        history = layer_history(self.image.manifest, self.image.config)
        rows = [
            (
                number,
                step.instruction if step else "",
                descriptor.digest,
                descriptor.size,
                layer.unpacked_bytes,
                layer.files,
                wasted,
            )
            for number, ((descriptor, step), layer, wasted) in enumerate(
                zip(history, self.held, self._union.wasted, strict=True), 1
            )
        ]
        sizes = ["download_bytes", "unpacked_bytes", "files", "wasted_bytes"]
        return _table(rows, ["number", "instruction", "digest", *sizes])

    @cached_property
    def files(self) -> DataFrame:
        """What a container sees, by path; folders that no layer has an entry for are left out.

        Columns: path, type (file, directory, symlink, hardlink, device or fifo), bytes (a file that
        hard links share counts once), mode (without the type), uid, gid (-1 where Linux has no
        such), target (of links), layer (the number of the one it is from), change (added or
        changed, by that layer), package (whose file it is; empty for none, and for folders).
        """
        from pandas import DataFrame

        union, paths = self._union, sorted(self._union.visible)
        rows = np.fromiter(map(union.visible.__getitem__, paths), np.int64, len(paths))
        entries = union.entries[rows]
        owners = np.array([*map(union.owners.get, paths, repeat(""))], object)
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

    @cached_property
    def changes(self) -> DataFrame:
        """Every entry and every whiteout of every layer.

        Columns: path (of a folder that was made opaque with ``/*``), layer, change (added, changed
        or deleted), bytes, wasted_bytes (older bytes that became invisible by this entry).
        """
        from pandas import DataFrame

        union = self._union
        removed = union.removals
        numbers, lost = (np.array([each[at] for each in removed], np.int64) for at in (0, 2))
        deleted, nothing = np.full(len(removed), "deleted", object), np.zeros_like(lost)
        table = DataFrame(
            {
                "path": [path for _, path, _ in removed] + union.paths,
                "layer": np.concatenate([numbers, union.numbers]),
                "change": np.concatenate([deleted, _CHANGES[union.changed.astype(int)]]),
                "bytes": np.concatenate([nothing, union.entries["bytes"]]),
                "wasted_bytes": np.concatenate([lost, union.hides]),
            }
        )
        return table.sort_values("layer", kind="stable", ignore_index=True) if removed else table

    @cached_property
    def packages(self) -> DataFrame:
        """What the package databases name, by kind and name.

        Columns: name, version, kind (deb, apk or python), source, source_version, architecture,
        unpacked_bytes (as the database says), layer (the number of the one it came with).
        """
        rows = sorted(
            self._union.packages(),
            key=lambda row: (row[0]["kind"], row[0]["name"], row[0]["version"]),
        )
        listed = [(*package.values(), layer) for package, layer in rows]
        return _table(listed, [*Package.__annotations__, "layer"], ["unpacked_bytes", "layer"])

    @cached_property
    def privileged(self) -> DataFrame:
        """Set-uid and set-gid files: path, bit, mode, uid, gid, bytes, layer."""
        files = self.files[(self.files["mode"] & (_SET_UID | _SET_GID)) > 0]
        columns = ["path", "bit", "mode", "uid", "gid", "bytes", "layer"]
        rows = [
            (row["path"], name, *(row[column] for column in columns[2:]))
            for row in files.to_dict("records")
            for name, bit in (("set-gid", _SET_GID), ("set-uid", _SET_UID))
            if row["mode"] & bit and row["type"] in ("file", "hardlink")
        ]
        return _table(rows, columns, columns[2:])

    @cached_property
    def tools(self) -> DataFrame:
        """Shells, compilers, package managers and network clients: name, kind, path, bytes, layer.

        Several names of one file count once for each kind.
        """
        union = self._union
        rows = []
        for tool in findings.tools(union.programs(), union.link):
            row = union.visible[tool.path]
            if union.kinds[row] in (FILE, HARDLINK):
                rows.append((*tool, union.bytes[row], union.numbers[row]))
        return _table(rows, ["name", "kind", "path", "bytes", "layer"], ["bytes", "layer"])

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
        return next(map(packages.os_release, self._texts(OS_RELEASES)), {})

    @cached_property
    def apt_sources(self) -> tuple[str, ...]:
        """The texts of apt's ``sources.list`` and ``sources.list.d/*`` (sources.list(5))."""
        paths = {path for layer in self.held for path in layer.texts}
        return tuple(self._texts(sorted(path for path in paths if path.startswith(APT_SOURCES))))

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

    def _texts(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield the texts of those paths that a container sees."""
        for path in paths:
            number = self._union.number_seen(path)
            if number and path in self.held[number - 1].texts:
                yield self.held[number - 1].texts[path]


def _table(rows: list[Any], columns: list[str], whole: Iterable[str] = ()) -> DataFrame:
    """Make a table; the columns of whole numbers have their type even if there is no row."""
    from pandas import DataFrame

    return DataFrame(rows, columns=columns).astype(dict.fromkeys(whole, "int64"))


class Union:
    """The layers put together: a row for each entry of each, lowest layer first.

    Attributes:
        paths, entries, kinds, targets, numbers: by row, the path, the columns, the kind, where a
            link leads, and the layer's number from 1.
        visible: the row that a container sees at each path.
        changed: by row, whether the path was there before the row's layer.
        hides: by row, the older bytes that became invisible by it.
        bytes: by row; a file whose name is gone but for a hard link counts at that link.
        wasted: by layer, its bytes that a later layer replaced or deleted.
        removals: of each whiteout the layer's number, what it hides, and the bytes of that.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self.layers = layers
        lengths = [len(layer.paths) for layer in layers]
        self.paths = list(chain.from_iterable(layer.paths for layer in layers))
        self.entries = np.concatenate([np.empty(0, COLUMNS), *(each.entries for each in layers)])
        self.kinds: list[int] = self.entries["kind"].tolist()
        self.numbers = np.repeat(np.arange(1, len(layers) + 1), lengths)
        self.targets = np.full(len(self.paths), "", object)
        self.visible: dict[str, int] = {}
        self.changed = np.zeros(len(self.paths), bool)
        self.hides = np.zeros(len(self.paths), np.int64)
        self.bytes = self.entries["bytes"].copy()
        self.wasted = [0] * len(layers)
        self.removals: list[tuple[int, str, int]] = []
        self._holders: dict[int, int] = {}  # row → the row that holds the data it shares
        self._names: dict[int, int] = {}  # that row → how many of its names are visible
        self._order: list[str] = []  # what is visible before a layer, sorted
        for number, end in enumerate(accumulate(lengths), 1):
            self._apply(number, range(end - lengths[number - 1], end))
        self._give_to_links()

    def number_seen(self, path: str) -> int | None:
        """Return the number of the layer that the visible copy of a path is in, if there is one."""
        row = self.visible.get(path)
        return None if row is None else int(self.numbers[row])

    def kind(self, path: str) -> int:
        """Return what is visible at a path."""
        return self.kinds[self.visible[path]]

    def link(self, path: str) -> str | None:
        """Return where a symbolic link leads; empty for another path, None for none."""
        row = self.visible.get(path)
        if row is None:
            return None
        return str(self.targets[row]) if self.kinds[row] == SYMLINK else ""

    @cached_property
    def owners(self) -> dict[str, str]:
        """The packages that visible databases give paths to, by path.

        What a distribution says goes before what Python says, and a lower layer before a higher.
        """
        found: dict[str, str] = {}
        for path, number in sorted(
            self._seen("owned"), key=lambda seen: (packages.python_home(seen[0]) == "", -seen[1])
        ):
            for package, names in self.layers[number - 1].owned[path].items():
                found.update(dict.fromkeys(names, package))
        return found

    def packages(self) -> Iterator[tuple[Package, int]]:
        """Yield the packages that the visible databases name, with the layer they came with."""
        for path, number in self._seen("databases"):
            held = (layer.databases.get(path) for layer in self.layers[:number])
            versions = {at: found for at, found in enumerate(held, 1) if found is not None}
            yield from packages.with_layers(versions)

    def programs(self) -> list[str]:
        """Return what can be run where programs are: links, and files that somebody may execute."""
        kinds, modes = self.entries["kind"], self.entries["mode"]
        runs = ((kinds == FILE) | (kinds == HARDLINK)) & ((modes & 0o111) > 0)
        wanted = (runs | (kinds == SYMLINK)).tolist()
        there = [path for path in self.visible if path.startswith(findings.PROGRAM_FOLDERS)]
        return [path for path in there if wanted[self.visible[path]]]

    def _seen(self, name: str) -> Iterator[tuple[str, int]]:
        """Yield the visible ones of the files that a mapping of the layers is about."""
        for number, layer in enumerate(self.layers, 1):
            for path in getattr(layer, name):
                if self.number_seen(path) == number:
                    yield path, number

    def _apply(self, number: int, rows: range) -> None:
        layer = self.layers[number - 1]
        if self.visible or layer.removed:
            self._order = sorted(self.visible)
            gone = self._remove(number, layer)
            self._replace(layer.paths, rows, gone)
        self.visible.update(zip(layer.paths, rows, strict=True))
        for path, target in layer.targets.items():
            row = self.visible[path]
            self.targets[row] = target
            if self.kinds[row] == HARDLINK:
                self._link(row, target)

    def _remove(self, number: int, layer: Layer) -> set[str]:
        """Carry out a layer's whiteouts, and return the paths that vanished."""
        gone: set[str] = set()
        for path, only_inside in layer.removed:
            lost = self._below(path)
            if not only_inside and path in self.visible:
                lost.append(path)
            gone.update(lost)
            shown = f"{path.rstrip('/')}/*" if only_inside else path
            self.removals.append((number, shown, sum(map(self._hide, lost))))
        return gone

    def _replace(self, paths: list[str], rows: range, gone: set[str]) -> None:
        """Hide what a layer's entries take the place of."""
        folders: set[str] = set()
        for path, row in zip(paths, rows, strict=True):
            self.changed[row] = path in gone or path in self.visible
            lost = [path] if path in self.visible else []
            # What takes the place of a folder, which may have no entry, hides what was in it.
            if self.kinds[row] != DIRECTORY:
                lost += self._below(path)
            # A file below becomes a folder where something is put in it.
            folder = path.rpartition("/")[0]
            if folder not in folders:
                folders.add(folder)
                while folder:
                    if folder in self.visible and self.kind(folder) != DIRECTORY:
                        lost.append(folder)
                    folder = folder.rpartition("/")[0]
            if lost:
                self.hides[row] = sum(map(self._hide, lost))

    def _below(self, folder: str) -> list[str]:
        """Take what is visible inside of a folder out of the order, and return it."""
        order, prefix = self._order, f"{folder.rstrip('/')}/"
        first = bisect_right(order, prefix)
        if first == len(order) or not order[first].startswith(prefix):
            return []
        last = bisect_left(order, f"{prefix[:-1]}0", first)  # "0" is what comes after "/"
        found = [path for path in order[first:last] if path in self.visible]
        del order[first:last]
        return found

    def _hide(self, path: str) -> int:
        """Take a path from view, and return the bytes that can't be reached any more."""
        row = self.visible.pop(path)
        holder = self._holders.get(row, row)
        if holder in self._names:
            self._names[holder] -= 1
            if self._names[holder]:
                return 0
        lost = int(self.bytes[holder])
        self.wasted[self.numbers[holder] - 1] += lost
        return lost

    def _link(self, row: int, target: str) -> None:
        """Note that a hard link shares the data of what is at its target."""
        old = self.visible.get(target)
        if old is None or old == row:
            return
        holder = self._holders.get(old, old)
        self._holders[row] = self._holders[holder] = holder
        self._names[holder] = self._names.get(holder, 1) + 1

    def _give_to_links(self) -> None:
        """Count a file at one of its hard links, where its own name is gone."""
        gone = {
            holder
            for holder, count in self._names.items()
            if count and self.visible.get(self.paths[holder]) != holder
        }
        for row in self.visible.values() if gone else ():
            holder = self._holders.get(row, row)
            if holder in gone:
                gone.remove(holder)
                self.bytes[row], self.bytes[holder] = self.bytes[holder], 0
