"""The union of an image's layers, as a container sees it, and what lies hidden below.

Source: OCI Image Specification 1.1, layer.md ("Applying Changesets", "Whiteouts").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from labapp.contents.archive import DIRECTORY, HARDLINK
from labapp.contents.layers import Layer


@dataclass(frozen=True)
class Removal:
    """A whiteout: what it hides (a folder's ``/*`` where opaque), and the bytes of it."""

    layer: int
    path: str
    wasted_bytes: int


@dataclass
class Union:
    """The layers put together; entries are numbered through all of them, lowest layer first.

    Attributes:
        layers: lowest first.
        starts: the number of each layer's first entry, and, last, how many there are.
        visible: the entry that a container sees at each path.
        changed: by entry, whether the path was there before the entry's layer.
        hides: by entry, the older bytes that became invisible by it.
        bytes: by entry; a file whose name is gone but for a hard link counts at that link.
        wasted: by layer index, its bytes that a later layer replaced or deleted.
        removals: the whiteouts.
    """

    layers: Sequence[Layer]
    starts: list[int]
    visible: dict[str, int]
    changed: npt.NDArray[np.bool_]
    hides: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    wasted: list[int]
    removals: list[Removal] = field(default_factory=list)

    def layer_of(self, entry: int) -> int:
        """Return the index, from 0, of the layer that an entry is in."""
        return bisect_right(self.starts, entry) - 1

    def layer_seeing(self, path: str) -> int | None:
        """Return the index of the layer that the visible copy of a path is in, if there is one."""
        entry = self.visible.get(path)
        return None if entry is None else self.layer_of(entry)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of all layers' entries."""
        parts = [getattr(layer, name).astype(np.int64) for layer in self.layers]
        return np.concatenate([np.empty(0, np.int64), *parts])


def union(layers: Sequence[Layer]) -> Union:
    """Put layers together, lowest first."""
    starts = list(accumulate((len(layer.paths) for layer in layers), initial=0))
    result = Union(
        layers=layers,
        starts=starts,
        visible={},
        changed=np.zeros(starts[-1], bool),
        hides=np.zeros(starts[-1], np.int64),
        bytes=np.empty(0, np.int64),
        wasted=[0] * len(layers),
    )
    result.bytes = result.column("bytes")
    merging = _Merging(result)
    for index in range(len(layers)):
        merging.apply(index)
    merging.give_to_links()
    return result


class _Merging:
    """The state while layers are applied."""

    def __init__(self, result: Union) -> None:
        self.result = result
        self.kinds = result.column("kinds")
        self.shared: dict[int, int] = {}  # entry → the entry that holds the data it shares
        self.names: dict[int, int] = {}  # that entry → how many of its names are visible

    def apply(self, index: int) -> None:
        result, layer, start = self.result, self.result.layers[index], self.result.starts[index]
        visible = result.visible
        gone = self.remove(index)
        if visible or gone:
            kinds = layer.kinds.tolist()
            # A folder that becomes something else takes along what was in it.
            replaced = {
                path: entry
                for entry, path in enumerate(layer.paths, start)
                if kinds[entry - start] != DIRECTORY
                and path in visible
                and self.kinds[visible[path]] == DIRECTORY
            }
            for path, old, cause in self.below(replaced):
                result.hides[replaced[cause]] += self.hide(path, old)
            for entry, path in enumerate(layer.paths, start):
                if path in visible:
                    result.hides[entry] += self.hide(path, visible[path])
                    result.changed[entry] = True
                elif path in gone:
                    result.changed[entry] = True
                visible[path] = entry
        else:
            visible.update(zip(layer.paths, range(start, result.starts[index + 1]), strict=True))
        for number, target in layer.targets.items():
            if layer.kinds[number] == HARDLINK:
                self.link(start + number, target)

    def remove(self, index: int) -> set[str]:
        """Carry out a layer's whiteouts, and return the paths that vanished."""
        result, layer = self.result, self.result.layers[index]
        gone: set[str] = set()
        folders: dict[str, int] = {}
        wasted = [0] * len(layer.removed)
        for at, (path, only_inside) in enumerate(layer.removed):
            old = result.visible.get(path)
            # A folder may be there without an entry of its own.
            if only_inside or old is None or self.kinds[old] == DIRECTORY:
                folders.setdefault(path, at)
            if old is not None and not only_inside:
                wasted[at] += self.hide(path, old)
                gone.add(path)
        for path, old, cause in self.below(folders):
            wasted[folders[cause]] += self.hide(path, old)
            gone.add(path)
        for (path, only_inside), lost in zip(layer.removed, wasted, strict=True):
            shown = f"{path.rstrip('/')}/*" if only_inside else path
            result.removals.append(Removal(index, shown, lost))
        return gone

    def below(self, folders: Iterable[str]) -> list[tuple[str, int, str]]:
        """Return the visible entries inside of folders: path, number, and the folder."""
        wanted = set(folders)
        if not wanted:
            return []
        found = []
        for path, entry in self.result.visible.items():
            at = path.rfind("/")
            while at >= 0:
                folder = path[:at] or "/"
                if folder in wanted and path != "/":
                    found.append((path, entry, folder))
                    break
                at = path.rfind("/", 0, at) if at > 0 else -1
        return found

    def hide(self, path: str, entry: int) -> int:
        """Take an entry from view, and return the bytes that can't be reached any more."""
        del self.result.visible[path]
        holder = self.shared.get(entry, entry)
        if holder in self.names:
            self.names[holder] -= 1
            if self.names[holder]:
                return 0
        lost = int(self.result.bytes[holder])
        self.result.wasted[self.result.layer_of(holder)] += lost
        return lost

    def link(self, entry: int, target: str) -> None:
        """Note that a hard link shares the data of what is at its target."""
        old = self.result.visible.get(target)
        if old is None or old == entry:
            return
        holder = self.shared.get(old, old)
        self.shared[entry] = self.shared[holder] = holder
        self.names[holder] = self.names.get(holder, 1) + 1

    def give_to_links(self) -> None:
        """Count a file at one of its hard links, where its own name is gone."""
        result = self.result
        if all(count == 0 or self.is_visible(holder) for holder, count in self.names.items()):
            return
        counted = set(result.visible.values())
        for entry in list(result.visible.values()):
            holder = self.shared.get(entry, entry)
            if holder not in counted:
                counted.add(holder)
                result.bytes[entry], result.bytes[holder] = result.bytes[holder], 0

    def is_visible(self, entry: int) -> bool:
        """Tell if a container sees an entry."""
        index = self.result.layer_of(entry)
        path = self.result.layers[index].paths[entry - self.result.starts[index]]
        return self.result.visible.get(path) == entry
