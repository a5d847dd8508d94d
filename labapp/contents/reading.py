"""An image's layers, from the folder of read ones or else from the registry."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import numpy as np

from labapp.contents import layer_cache, packages
from labapp.contents.archive import FILE, walk
from labapp.contents.layers import MAX_DOCUMENT_BYTES, Layer, read_layer, removal
from labapp.contents.packages import Package
from labapp.contents.streams import LayerStream, opened
from labapp.errors import DamagedContent, RegistryError
from labapp.feedback import Bars, Feedback
from labapp.manifests import Descriptor, is_digest
from labapp.registry.reader import RegistryImage, RegistryReader

MAX_ENTRIES = 4_000_000
"""How many entries of all layers together are held in memory."""

_FOREIGN = (".foreign.", ".nondistributable.")
"""What marks the media types of layers that registries don't have (OCI layer.md)."""


class Reading:
    """One image, while its layers are read."""

    def __init__(self, registry: RegistryReader, image: RegistryImage, folder: Path) -> None:
        """Check what the image says of its layers.

        Args:
            registry: where the image is.
            image: its manifest and config.
            folder: where read layers are kept.

        Raises:
            DamagedContent: the config doesn't fit the manifest.
        """
        self.registry, self.image, self.folder = registry, image, folder
        self.descriptors = image.manifest.layers
        self.diff_ids = image.config.diff_ids
        if len(self.diff_ids) != len(self.descriptors) or not all(map(is_digest, self.diff_ids)):
            raise DamagedContent(
                f"reading what is in '{image.reference}': its config has {len(self.diff_ids)} diff "
                f"IDs for {len(self.descriptors)} layers, or one that is no digest. Build and push "
                "the image again."
            )

    def layers(self, feedback: Feedback) -> tuple[Layer, ...]:
        """Read all layers, each digest once; see :func:`labapp.contents.read`."""
        held: dict[str, Layer] = {}
        with contextlib.ExitStack() as stack:
            bars = None
            for number, descriptor in enumerate(self.descriptors):
                if descriptor.digest in held:
                    continue
                layer = self.kept(number)
                if layer is None:
                    if bars is None:
                        title = f"reading what is in {self.image.reference}"
                        bars = stack.enter_context(feedback.bars(title))
                    layer = self.fetch(number, bars)
                    layer_cache.save(self.folder, descriptor.digest, layer)
                held[descriptor.digest] = layer
        layers = tuple(held[each.digest] for each in self.descriptors)
        entries = sum(len(layer.paths) for layer in layers)
        if entries > MAX_ENTRIES:
            raise RegistryError(
                f"reading what is in '{self.image.reference}': it has {entries:,} entries, more "
                f"than the {MAX_ENTRIES:,} that the lab holds in memory. Take a smaller image."
            )
        return layers

    def kept(self, number: int) -> Layer | None:
        """Return a layer that need not be fetched: left out, or read before."""
        descriptor = self.descriptors[number]
        if any(mark in descriptor.media_type for mark in _FOREIGN):
            note = f"layer {number + 1} is a foreign one, which registries don't have: left out"
            return _nothing(self.diff_ids[number], note)
        layer = layer_cache.load(self.folder, descriptor.digest)
        if layer is not None and layer.diff_id != self.diff_ids[number]:
            raise DamagedContent(
                f"{self.doing(number)}: its unpacked bytes are {layer.diff_id}, the image's config "
                f"promises {self.diff_ids[number]}. Build and push the image again."
            )
        return layer

    def fetch(self, number: int, bars: Bars) -> Layer:
        """Read a layer from the registry, verified."""
        descriptor = self.descriptors[number]
        key, fetched = f"layer {number + 1}", 0

        def counted(chunks: Generator[bytes]) -> Generator[bytes]:
            nonlocal fetched
            with contextlib.closing(chunks):
                for chunk in chunks:
                    fetched += len(chunk)
                    yield chunk

        def tell() -> None:
            bars.update(key, fetched, descriptor.size)

        with opened(
            counted(self.blob(descriptor)),
            diff_id=self.diff_ids[number],
            doing=self.doing(number),
            on_chunk=tell,
        ) as stream:
            layer = read_layer(stream, diff_id=self.diff_ids[number], doing=self.doing(number))
        bars.finish(key, "verified")
        return layer

    def databases(self, number: int) -> tuple[dict[str, list[Package]], list[tuple[str, bool]]]:
        """Read a layer only until the distribution's package database.

        Returns:
            The packages by database file, and what the layer hides of those below.
        """
        layer = self.kept(number)
        if layer is not None:
            found = layer.databases.items()
            wanted = {path: rows for path, rows in found if packages.is_distribution_database(path)}
            return wanted, layer.removed
        doing, blob = self.doing(number), self.blob(self.descriptors[number])
        with opened(blob, diff_id=self.diff_ids[number], doing=doing, whole=False) as stream:
            return _databases(stream, doing)

    def blob(self, descriptor: Descriptor) -> Generator[bytes]:
        """Open a layer's blob."""
        repository = self.image.reference.repository
        return self.registry.open_blob(repository, descriptor.digest, size=descriptor.size)

    def doing(self, number: int) -> str:
        """Begin an error about a layer."""
        digest = self.descriptors[number].digest
        return f"reading layer {number + 1} of '{self.image.reference}' ('{digest}')"


def _databases(
    stream: LayerStream, doing: str
) -> tuple[dict[str, list[Package]], list[tuple[str, bool]]]:
    found: dict[str, list[Package]] = {}
    removed: list[tuple[str, bool]] = []
    for entry in walk(stream, doing=doing):
        hidden = removal(entry.path)
        if hidden:
            removed.append(hidden)
        elif entry.kind == FILE and packages.is_distribution_database(entry.path):
            if entry.stored > MAX_DOCUMENT_BYTES:
                raise DamagedContent(
                    f"{doing}: its '{entry.path}' claims {entry.stored:,} bytes. Take another "
                    "image."
                )
            found[entry.path] = packages.parse(entry.path, stream.read(entry.stored)).packages
            if packages.is_whole_database(entry.path):
                break
    return found, removed


def _nothing(diff_id: str, note: str) -> Layer:
    """Return the layer for one that was left out."""
    none = np.empty(0, np.int64)
    kinds, modes, owners = none.astype(np.uint8), none.astype(np.uint16), none.astype(np.int32)
    return Layer(diff_id, [], kinds, none, modes, none, none, owners, notes=[note])
