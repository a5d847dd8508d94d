"""Handing in: receipts, and the images that they name, to a registry of the class; and collecting.

All of it goes into one repository, where each layer is stored once. Images keep their bytes; each
is tagged with its own digits, so that nobody's tag moves another's, and what removes untagged
manifests leaves it. The receipts file, as it is, is an artifact under a tag for each learner.

Source: OCI Image Specification 1.1, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from labapp import feedback
from labapp.course.receipts import Receipts, Record, parse
from labapp.errors import (
    DamagedContent,
    InvalidReference,
    NotInRegistry,
    RegistryError,
    RegistryFailed,
    RegistryUnreachable,
)
from labapp.feedback import amount
from labapp.reference import Reference
from labapp.registry.client import MEBIBYTE, Registry, Stored
from labapp.registry.manifests import OCI_EMPTY, OCI_MANIFEST, Index, canonical_json, digest_of

REPOSITORY = "hand-in"
"""Where a class hands in if nobody says where."""

_RECEIPTS = "application/vnd.labapp.receipts.v1+json"
_TAG = "receipts-"


@dataclass(frozen=True)
class Place:
    """Where a class, or one learner, hands in: a repository; by default each image's own."""

    registry: Registry
    repository: str = ""

    def __str__(self) -> str:
        return f"{self.registry.address}/{self.repository}".rstrip("/")

    def has(self, image: str) -> bool:
        """Tell if an image, ``repository@digest``, is there as it was."""
        repository, _, digest = image.partition("@")
        with contextlib.suppress(NotInRegistry, DamagedContent, InvalidReference):
            self.registry.manifest_bytes(self.repository or repository, digest)
            return True
        return False


@dataclass
class Parcel:
    """What a learner has to hand in at a place.

    ``images`` are those that are not there yet, by ``repository@digest``: all their manifests, and
    last what the digest is of. A line tells of each that the lab's registry has ``lost``.
    """

    source: Registry
    place: Place
    record: Record
    content: bytes
    images: dict[str, list[Stored]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The receipts' tag: of who began with this seed and has this name."""
        who = digest_of(canonical_json([self.record.start, self.record.learner]))
        return f"{_TAG}{who[7:19]}-{re.sub('[^a-zA-Z0-9_.-]+', '-', self.record.learner)}"

    @property
    def artifact(self) -> bytes:
        """The receipts' manifest."""
        config, layer = (
            {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
            for kind, data in ((OCI_EMPTY, b"{}"), (_RECEIPTS, self.content))
        )
        kind = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": _RECEIPTS}
        return canonical_json({**kind, "config": config, "layers": [layer]})

    def is_new(self) -> bool:
        """Tell if there is anything to send."""
        with contextlib.suppress(NotInRegistry):
            there = self.place.registry.resolve(self.place.repository, self.tag)
            return bool(self.images) or there != digest_of(self.artifact)
        return True

    def lines(self) -> Iterator[str]:
        """Tell what will leave this machine, and what will not: names, numbers, bytes."""
        named, all_blobs = self.record.images, dict[str, int]()
        yield f"To '{self.place}', as '{self.record.learner}' ('progress --name' changes that):"
        yield f"  receipts of {len(self.record.passed)} exercises, {amount(len(self.content))}"
        for name, parts in self.images.items():
            all_blobs |= (blobs := _blobs(parts))
            yield f"  {_short(name)} for {named[name]}, {amount(sum(blobs.values()))}"
        size, there = sum(all_blobs.values()), len(named) - len(self.images) - len(self.lost)
        yield f"{len(self.images)} images, {amount(size)} at most: no layer is sent twice."
        yield f"There already: {there}; no longer in the lab's registry: {len(self.lost)}."
        repositories = {name.partition("@")[0] for name in named}
        others = [name for name in self.source.repositories() if name not in repositories]
        yield "Nothing else is handed in: no file, and no image that no receipt names."
        yield f"Repositories that stay here: {len(others)} ({', '.join(others)})."

    def send(self) -> None:
        """Send what is new, the receipts last; an image that turns out to be damaged is lost.

        A registry may fail when others store the same layers in the same moment; it is tried again.
        """
        for pause in (1, 3, 0):  # seconds
            try:
                return self._send()
            except RegistryFailed:
                if not pause:
                    raise
                time.sleep(pause + random.random())

    def _send(self) -> None:
        registry, repository = self.place.registry, self.place.repository
        with feedback.bars(f"Handing in at {self.place}") as bars:
            for name, parts in self.images.items():
                show, size = (
                    functools.partial(bars.update, _short(name)),
                    sum(_blobs(parts).values()),
                )
                try:
                    for each in parts:
                        tag = each.manifest.digest.partition(":")[2]
                        to = Reference(registry.address, repository, tag)
                        registry.copy(self.source, each, to=to, progress=show)
                    show(size, size)
                except (NotInRegistry, DamagedContent) as error:
                    self.lost[name] = f"{self.record.images[name]}: {error}"
            for data in (b"{}", self.content):
                if registry.blob_size(repository, digest_of(data)) is None:
                    registry.upload_blob(repository, [data])
            registry.put_manifest(repository, self.tag, self.artifact, OCI_MANIFEST)


def pack(receipts: Receipts, source: Registry, place: Place) -> Parcel:
    """Find out what a learner has to hand in; the place is asked, and nothing is sent."""
    parcel = Parcel(source, place, receipts.read(), receipts.file.read_bytes())
    for name, exercise in parcel.record.images.items():
        if place.has(name):
            continue
        repository, _, digest = name.partition("@")
        try:
            held = Reference(source.address, repository, digest=digest)
            parcel.images[name] = _whole(source, held)
        except (NotInRegistry, DamagedContent) as error:
            parcel.lost[name] = f"{exercise}: {error}"
    return parcel


def _whole(source: Registry, reference: Reference) -> list[Stored]:
    """Read what a reference leads to, last, after all the manifests that an index names."""
    found = source.manifest(reference.repository, reference.identifier)
    entries = found.manifests if isinstance(found, Index) else ()
    parts = [part for each in entries for part in _whole(source, reference.pinned(each.digest))]
    return [*parts, Stored(reference, found)]


def collect(place: Place) -> Iterator[tuple[str, Place, Callable[[], Record]]]:
    """Yield what was handed in at a place and below it: its name, its place, how to read it."""
    registry, names = place.registry, [place.repository]
    try:
        below = f"{place.repository}/"
        names += [name for name in registry.repositories() if name.startswith(below)]
    except RegistryUnreachable:
        raise
    except RegistryError as error:  # many registries don't tell
        feedback.say(f"{error} So '{place}' itself is read, and nothing below it.")
    for where in (Place(registry, name) for name in names):
        tags: list[str] = []
        with contextlib.suppress(NotInRegistry):
            tags = [tag for tag in registry.tags(where.repository) if tag.startswith(_TAG)]
        for tag in tags:
            yield f"{where}:{tag}", where, functools.partial(_read, where, tag)


def _read(place: Place, tag: str) -> Record:
    for layer in getattr(place.registry.manifest(place.repository, tag), "layers", ()):
        if layer.media_type == _RECEIPTS:
            data = place.registry.read_blob(place.repository, layer.digest, limit=4 * MEBIBYTE)
            return parse(data, f"{place}:{tag}")
    raise DamagedContent(f"reading '{place}:{tag}': it holds no receipts. Hand in once more.")


def _blobs(parts: Iterable[Stored]) -> dict[str, int]:
    """Return the digests of all their blobs, with their lengths in bytes."""
    return {blob.digest: blob.size for each in parts for blob in each.manifest.blobs}


def _short(image: str) -> str:
    return image[: image.index(":") + 9]
