"""Base images in the lab's registry, from the first source that serves, byte for byte.

The sources are an instructor's registry with the same ``base/…`` images (LABAPP_MIRROR), the public
images on Docker Hub (or under another prefix, LABAPP_HUB), and Debian packages.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from labapp import feedback
from labapp.errors import (
    BaseError,
    EngineLost,
    LabError,
    NotInRegistry,
    PullError,
    RegistryError,
    RegistryUnreachable,
)
from labapp.journey import debian, transfer
from labapp.journey.debian import PYTHON
from labapp.machine.engine import Engine, tar_of
from labapp.reference import Reference
from labapp.registry.client import BlobDamage, ImageSource, Registry
from labapp.registry.manifests import Manifest, Platform, canonical_json, digest_of
from labapp.registry.server import RegistryServer
from labapp.state import SOURCE_LABEL, State

FULL, SLIM = f"python:{PYTHON}", f"python:{PYTHON}-slim"
REGISTRY = "registry"
NAMES = (REGISTRY, FULL, SLIM)
"""The base images: the registry's own, and by their public names the two of the chapters."""

MIRROR_VARIABLE = "LABAPP_MIRROR"

RECORD = "bases"
"""What the state folder keeps of them: digests and sources."""

_Got = TypeVar("_Got")

Place = tuple[ImageSource, Reference]
"""Where an image is copied from."""


@dataclass(frozen=True)
class Base:
    """A base image in the lab's registry, by its public name; ``registry`` is the registry's own.

    ``source`` is ``debian-packages``, or the way it came: ``hub``, ``mirror``, a bundle's name.
    """

    name: str
    reference: Reference
    digest: str
    source: str


def prepare(
    engine: Engine, server: RegistryServer, state: State, *, source: str = "auto"
) -> tuple[Base, ...]:
    """Start the registry and put the base images into it, unless they are there and whole.

    An interrupted run goes on where it was. Whoever calls this holds the lab's lock.
    """
    sources = order(source)
    debian.clear(state.path("roots"))
    shelf = Shelf(engine, server, state)
    if not shelf.is_loaded():
        first_that_serves(sources, shelf.load_from)
    server.start(image=engine_name(state))
    first_that_serves(sources, shelf.fill_from)
    return recorded(server, state)


def recorded(server: RegistryServer, state: State) -> tuple[Base, ...]:
    """Return the base images as they were recorded, without asking the registry."""
    record = state.read(RECORD)
    return tuple(
        Base(name, at(server.address, name).pinned(record[name]["digest"]), **record[name])
        for name in NAMES
        if name in record
    )


def order(source: str) -> list[str]:
    """Return the sources to try: all there are for ``auto``, unless LABAPP_BASES names one.

    They are an instructor's registry, Docker Hub, and Debian packages.
    """
    if source == "auto":
        source = os.environ.get("LABAPP_BASES") or "auto"
    there = [*(["mirror"] if os.environ.get(MIRROR_VARIABLE) else []), "hub", "debian"]
    if source == "auto":
        return there
    if source not in there:
        raise BaseError(
            f"choosing the base images' source '{source}': it is not there. Take one of auto, hub, "
            f"debian; or mirror, once {MIRROR_VARIABLE} names it by host and port."
        )
    return [source]


def at(address: str, name: str) -> Reference:
    """Return where a base image is in a lab's registry or in a bundle, by tag."""
    repository, _, tag = name.partition(":")
    return Reference(address, f"base/{repository}", tag or "lab")


def place_of(source: str, name: str) -> tuple[Registry, Reference]:
    """Return where the mirror or the hub has a base image; ``http://`` asks for plain HTTP."""
    if source == "mirror":
        scheme, separator, address = os.environ[MIRROR_VARIABLE].rstrip("/").rpartition("://")
        secure = scheme == "https" if separator else None
        return Registry(address, secure=secure), at(address, name)
    prefix = (os.environ.get("LABAPP_HUB") or "docker.io/library").rstrip("/")
    reference = Reference.parse(f"{prefix}/{'registry:3' if name == REGISTRY else name}")
    return Registry(reference.registry), reference


def engine_name(state: State) -> str:
    """Return what the registry's image is called on the engine; each lab has a name of its own."""
    return f"labapp/registry:{state.lab_id}"


class Shelf:
    """Where the base images of one lab go: its registry, and the record of what is in it."""

    def __init__(self, engine: Engine, server: RegistryServer, state: State) -> None:
        self._engine, self._server, self._state = engine, server, state
        self._platform = Platform.parse(engine.platform)
        self._loaded: tuple[Manifest, Mapping[str, bytes], str] | None = None

    @functools.cached_property
    def _registry(self) -> Registry:
        return self._server.registry()

    def is_loaded(self) -> bool:
        """Tell whether the engine has the registry's image, without which no registry runs."""
        return self._engine.image(engine_name(self._state)) is not None

    def load_from(self, source: str) -> None:
        """Give the engine the registry's image from ``mirror``, ``hub`` or ``debian``."""
        if source != "debian":
            place = place_of(source, REGISTRY)
            try:
                self.load(place, came_from=source)
            except RegistryError as error:
                self._pull(place[1], engine_name(self._state), error)
            return
        blobs: dict[str, bytes] = {}

        def keep(chunks: Iterable[bytes]) -> tuple[str, int]:
            data = b"".join(chunks)
            blobs[digest_of(data)] = data
            return digest_of(data), len(data)

        with debian.making([REGISTRY], self._platform, self._state.path("roots")) as roots:
            made = debian.image(debian.recipe(REGISTRY), roots[REGISTRY], keep, self._platform)
        self._load(made, blobs, came_from=source)

    def load(self, place: Place, *, came_from: str) -> None:
        """Give the engine the registry's image from a place that has it."""
        source, reference = place
        manifest = source.image(reference, platform=self._platform).manifest
        blobs = {
            blob.digest: b"".join(
                source.open_blob(reference.repository, blob.digest, size=blob.size)
            )
            for blob in manifest.blobs
        }
        self._load(manifest, blobs, came_from=came_from)

    def _load(self, manifest: Manifest, blobs: Mapping[str, bytes], *, came_from: str) -> None:
        """Give the engine an image as an archive of the form of ``docker save``."""
        name = engine_name(self._state)
        listing = {
            "Config": manifest.config.digest.partition(":")[2],
            "RepoTags": [f"docker.io/{name}"],  # a full name, as containerd wants
            "Layers": [layer.digest.partition(":")[2] for layer in manifest.layers],
        }
        files = {digest.partition(":")[2]: data for digest, data in blobs.items()}
        archive = tar_of(files | {"manifest.json": canonical_json([listing])})
        with self._engine.doing(f"loading the registry's image '{name}'", BaseError):
            self._engine.client.images.load(archive)
        # It is wanted once more, as soon as the registry runs.
        self._loaded = manifest, blobs, came_from

    def fill_from(self, source: str) -> None:
        """Put what the registry lacks into it, from ``mirror``, ``hub`` or ``debian``."""
        missing = [name for name in NAMES if not self.has(name)]
        if self._loaded is not None and REGISTRY in missing:
            manifest, blobs, came_from = self._loaded
            for data in blobs.values():
                self._registry.upload_blob(self._at(REGISTRY).repository, [data])
            self._store(REGISTRY, manifest, came_from)
            missing.remove(REGISTRY)
        if source == "debian" and missing:
            self.make(missing)
            return
        for name in missing:
            place = place_of(source, name)
            try:
                self.copy(name, place, came_from=source)
            except LabError as error:
                self._pull(place[1], self._at(name), error)
                transfer.push(self._engine, self._server, self._at(name))
                self._record(name, source)

    def has(self, name: str) -> bool:
        """Tell if a base is there and whole; what is damaged is discarded, to be stored anew."""
        record = self._state.read(RECORD).get(name)
        if record is None:
            return False
        try:
            manifest = self._registry.manifest(self._at(name).repository, record["digest"])
        except NotInRegistry:
            return False
        except RegistryUnreachable:
            raise
        except RegistryError:  # the manifest is damaged; of an empty one the registry makes a 500
            self._server.discard_blobs([record["digest"]])
            return False
        assert isinstance(manifest, Manifest)
        if damage := self._damage(name, manifest):
            what = "; ".join(map(str, damage))
            feedback.say(f"The base image '{name}' is damaged and is made again: {what}.")
        return not damage

    def copy(self, name: str, place: Place, *, came_from: str) -> None:
        """Copy a base from a registry or a bundle.

        One at a time: CNCF Distribution can't take the same blob twice at once into a repository.
        """
        source, reference = place
        with feedback.bars(f"Copying the base image {name}") as bars:
            image = source.image(reference, platform=self._platform)
            self._damage(name, image.manifest)
            show = functools.partial(bars.update, name)
            self._registry.copy(source, image, to=self._at(name), progress=show)
        self._record(name, came_from)

    def make(self, names: Collection[str]) -> None:
        """Make bases from Debian's packages; each is stored while it comes."""

        def make(name: str) -> Manifest:
            keep = functools.partial(self._registry.upload_blob, self._at(name).repository)
            return debian.image(debian.recipe(name), roots[name], keep, self._platform)

        # When this is interrupted, the roots are stopped first, and the threads end by that.
        with (
            ThreadPoolExecutor(len(NAMES)) as threads,
            debian.making(names, self._platform, self._state.path("roots")) as roots,
        ):
            started = {threads.submit(make, name): name for name in names}
            for made in as_completed(started):
                self._store(started[made], made.result(), debian.SOURCE)

    def _pull(self, public: Reference, name: Reference | str, why: LabError) -> None:
        """Have the engine pull what the lab can't reach, and name it; else the lab tells why."""
        was_there = self._engine.image(str(public)) is not None
        try:
            transfer.pull(self._engine, None, public)
        except PullError as error:
            raise BaseError(f"{why}\n    The engine, asked for the same: {error}") from why
        transfer.tag(self._engine, public, name)
        if not was_there:
            transfer.remove(self._engine, public)

    def _damage(self, name: str, manifest: Manifest) -> list[BlobDamage]:
        """Return which of a base's blobs are missing or damaged, and discard the damaged ones.

        The registry never writes over a blob that it has.
        """
        damage = self._registry.damaged_blobs(self._at(name).repository, manifest)
        there = [blob.digest for blob in damage if blob.what != "missing"]
        self._server.discard_blobs(there)
        return damage

    def _store(self, name: str, manifest: Manifest, came_from: str) -> None:
        """Store the manifest of an image whose blobs are there."""
        at = self._at(name)
        self._registry.put_manifest(at.repository, at.identifier, manifest.raw, manifest.media_type)
        self._record(name, came_from)

    def _record(self, name: str, came_from: str) -> None:
        """Write down that a base is complete, and where it comes from by its own word."""
        image = self._registry.image(self._at(name), platform=self._platform)
        source = image.config.labels.get(SOURCE_LABEL, came_from)
        entry = {name: {"digest": image.manifest.digest, "source": source}}
        self._state.write(RECORD, self._state.read(RECORD) | entry)

    def _at(self, name: str) -> Reference:
        return at(self._registry.address, name)


def first_that_serves(sources: Iterable[str], get: Callable[[str], _Got]) -> _Got:
    """Get what is missing from the first source that serves, or raise why none did."""
    causes = []
    for source in sources:
        try:
            return get(source)
        except EngineLost:
            raise
        except LabError as error:
            causes.append(f"  - {source}: {error}")
            feedback.say(f"'{source}' does not serve: {str(error).splitlines()[0]}")
    raise BaseError(
        "getting the base images: no source serves.\n" + "\n".join(causes) + "\nMend one of them, "
        "or take a file from a machine that has them: 'labapp bundle save' there, "
        "'labapp bundle load' here."
    )
