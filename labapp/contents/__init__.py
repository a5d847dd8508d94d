"""What is inside an image: layers, files, packages, and what an attacker would look for.

Layers are read from the registry as streams, verified, and unpacked nowhere. What was read from one
is kept in a folder by its digest, for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pandas import DataFrame

from labapp.contents import os_release, packages, tables
from labapp.contents.layers import APT_SOURCES, OS_RELEASES, Layer, hides
from labapp.contents.merge import Union, union
from labapp.contents.packages import Package
from labapp.contents.reading import Reading
from labapp.feedback import Feedback
from labapp.manifests import Platform, layer_history
from labapp.reference import Reference
from labapp.registry.reader import RegistryImage, RegistryReader

_LAYER_COLUMNS = [
    "number",
    "instruction",
    "digest",
    "download_bytes",
    "unpacked_bytes",
    "files",
    "wasted_bytes",
]


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
        rows = []
        history = layer_history(self.image.manifest, self.image.config)
        for number, ((descriptor, step), layer, wasted) in enumerate(
            zip(history, self.held, self._union.wasted, strict=True), 1
        ):
            rows.append(
                {
                    "number": number,
                    "instruction": step.instruction if step else "",
                    "digest": descriptor.digest,
                    "download_bytes": descriptor.size,
                    "unpacked_bytes": layer.unpacked_bytes,
                    "files": layer.files,
                    "wasted_bytes": wasted,
                }
            )
        return DataFrame(rows, columns=_LAYER_COLUMNS)

    @cached_property
    def files(self) -> DataFrame:
        """What a container sees, by path; folders that no layer has an entry for are left out.

        Columns: path, type (file, directory, symlink, hardlink, device or fifo), bytes (a file that
        hard links share counts once), mode (without the type), uid, gid (-1 where Linux has no
        such), target (of links), layer (the number of the one it is from), change (added or
        changed, by that layer), package (whose file it is; empty for none, and for folders).
        """
        return tables.files(self._union)

    @cached_property
    def changes(self) -> DataFrame:
        """Every entry and every whiteout of every layer.

        Columns: path (of a folder that was made opaque with ``/*``), layer, change (added, changed
        or deleted), bytes, wasted_bytes (older bytes that became invisible by this entry).
        """
        return tables.changes(self._union)

    @cached_property
    def packages(self) -> DataFrame:
        """What the package databases name, by kind and name.

        Columns: name, version, kind (deb, apk or python), source, source_version, architecture,
        unpacked_bytes (as the database says), layer (the number of the one it came with).
        """
        return tables.packages(self._union)

    @cached_property
    def privileged(self) -> DataFrame:
        """Set-uid and set-gid files: path, bit, mode, uid, gid, bytes, layer."""
        return tables.privileged(self.files)

    @cached_property
    def tools(self) -> DataFrame:
        """Shells, compilers, package managers and network clients: name, kind, path, bytes, layer.

        Several names of one file count once for each kind.
        """
        return tables.tools(self._union)

    @cached_property
    def secrets(self) -> DataFrame:
        """What a secret scanner would flag: path, line, kind, layer, visible; never the secret.

        ``line`` is missing where a whole file is flagged; ``visible`` is False where a later layer
        replaced or deleted the file, which is still in its layer. What is looked at:
        ``labapp.contents.secret_files``.
        """
        return tables.secrets(self._union)

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
        return next((os_release.parse(text) for text in self._texts(*OS_RELEASES)), {})

    @cached_property
    def apt_sources(self) -> tuple[str, ...]:
        """The texts of apt's ``sources.list`` and ``sources.list.d/*`` (sources.list(5))."""
        paths = {
            path for layer in self.held for path in layer.texts if path.startswith(APT_SOURCES)
        }
        return tuple(self._texts(*sorted(paths)))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What could not be read, in words."""
        found = [note for layer in self.held for note in layer.notes]
        return tuple(dict.fromkeys(found))

    @cached_property
    def _union(self) -> Union:
        return union(self.held)

    def _texts(self, *paths: str) -> list[str]:
        """Return the texts of those paths that a container sees."""
        seen = ((path, self._union.layer_seeing(path)) for path in paths)
        return [
            self.held[index].texts[path]
            for path, index in seen
            if index is not None and path in self.held[index].texts
        ]


def read(
    registry: RegistryReader,
    reference: Reference | str,
    *,
    folder: Path,
    platform: Platform | None = None,
    feedback: Feedback,
) -> Contents:
    """Read what is inside an image, each layer verified by its digest and its diff ID.

    Args:
        registry: where the image is.
        reference: the image.
        folder: where read layers are kept; it is made when it is missing.
        platform: which image of an index; by default the one for this machine's processor.
        feedback: shows how far each layer is that has not been read before.

    Raises:
        NotInRegistry: no such image, not for this platform, or one of its layers is missing.
        DamagedContent: bytes that do not match their digest, or a layer that is no tar archive.
        RegistryError: it has more files than the lab holds in memory.
        StateError: the folder can't be written.
    """
    image = registry.image(reference, platform=platform)
    return Contents(image, Reading(registry, image, folder).layers(feedback))


def packages_of(
    registry: RegistryReader,
    reference: Reference | str,
    *,
    folder: Path,
    platform: Platform | None = None,
) -> DataFrame:
    """Return only the distribution's packages: from the top layer down to the package database.

    Bytes are verified as far as they are read: a layer is left as soon as the database in it has
    been read, so that its digest, which takes all of it, is known only for layers kept by ``read``.

    Args:
        registry: where the image is.
        reference: the image.
        folder: where layers are that were read before.
        platform: which image of an index; by default the one for this machine's processor.

    Returns:
        name, version, kind (deb or apk), source, source_version, architecture, unpacked_bytes, by
        kind and name.

    Raises:
        LabError: as ``read``.
    """
    image = registry.image(reference, platform=platform)
    reading = Reading(registry, image, folder)
    found: dict[str, list[Package]] = {}
    hidden: list[tuple[str, bool]] = []
    for number in reversed(range(len(image.manifest.layers))):
        databases, removed = reading.databases(number)
        for path, rows in databases.items():
            if not any(hides(path, *each) for each in hidden):
                found.setdefault(path, rows)
        hidden += removed
        if any(map(packages.is_whole_database, found)):
            break
    listed = [(package, 0) for part in found.values() for package in part]
    return tables.package_rows(listed).drop(columns="layer")
