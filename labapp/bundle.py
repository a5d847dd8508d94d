"""Bundles: base images, the registry's image, wheels and known fixes, for machines offline.

A bundle is a zip file, nothing in it compressed once more: manifests by the names of their images,
blobs by their digests, as the registry has them byte for byte, and files by their names. Of several
platforms, an image's name has an index, and its manifests are among the blobs.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from labapp import feedback
from labapp.bench import Bench
from labapp.errors import BaseError, DamagedContent, VulnerabilityError
from labapp.inside import image as contents
from labapp.inside import known as vulnerabilities
from labapp.inside.debian_mirror import keep_snapshot, parse_snapshot
from labapp.inside.inspection import CACHE
from labapp.journey import bases, wheels
from labapp.journey.bases import NAMES, REGISTRY, Base, Shelf
from labapp.machine import engine as engines
from labapp.reference import Reference
from labapp.registry.client import ImageSource, RegistryImage
from labapp.registry.manifests import (
    Index,
    Manifest,
    Platform,
    index_of,
    parse_config,
    parse_manifest,
)
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State

FIXES = "snapshot.json.gz"
"""What Debian had fixed in the base images' packages when the bundle was saved."""

_IMAGES, _BLOBS, _FILES = "images/", "blobs/", "files/"

Held = tuple[ImageSource, RegistryImage]
"""An image for one platform, and where its blobs are."""


def save(
    bench: Bench,
    path: Path,
    *,
    platforms: Sequence[Platform] = (),
    source: str = "auto",
    more: Sequence[str] = (),
) -> None:
    """Write a lab's bundle; a file that was there is replaced once the new one is complete.

    ``more`` are further images in the lab's registry, by their references.

    It is for the lab's own platform, or for those that are named. The lab's registry holds the
    images for its own; those for others come from where base images do (``source``), as they are
    there now. Where Debian's mirror can't be reached, it goes without known fixes, and a line says
    so.
    """
    own = Platform.parse(bench.engine.platform)
    images: dict[str, list[Held]] = {base.name: [] for base in bench.bases}
    files = _known_fixes(bench)
    for platform in platforms or [own]:
        is_own = own.can_run(platform)
        for base in bench.bases:
            held = bench.registry, bench.registry.image(base.reference)
            images[base.name].append(held if is_own else _elsewhere(base.name, platform, source))
        files |= _wheels(bench.application, platform, is_own=is_own)
    named = {str(bases.at(Bundle.address, name)): images[name] for name in images}
    for further in map(bench.registry.image, more):
        name = str(replace(further.reference, registry=Bundle.address))
        named[name] = [(bench.registry, further)]
    write(path, named, files)
    feedback.say(f"Saved {path} ({path.stat().st_size / 1e6:,.0f} MB).")


def load(state: State, path: Path, *, wheel_folder: Path | None = None) -> tuple[Base, ...]:
    """Take everything from a bundle: the registry's image first, so that a registry can run.

    The whole file is verified before anything is changed. The wheels go to ``wheel_folder``, by
    default the application's.
    """
    bundle = Bundle(path)
    feedback.say(f"Verifying {path}.")
    bundle.verify()
    files = bundle.files()
    fixes = files.pop(FIXES, b"")
    known = parse_snapshot(fixes, f"{path}/{FIXES}") if fixes else {}
    places = {name: (bundle, bases.at(bundle.address, name)) for name in NAMES}
    held = [bundle.images(reference) for _, reference in places.values()]
    engine = engines.start(state)
    platform = Platform.parse(engine.platform)
    for offered in ([each.config.platform for each in images] for images in held):
        if not any(map(platform.can_run, offered)):
            raise BaseError(
                f"loading the bundle '{path}': its images are for {', '.join(map(str, offered))}, "
                f"the engine runs {platform}. Take a bundle from a machine like this one, or one "
                f"that was saved with '--platform {platform}'; nothing was changed."
            )
    server = RegistryServer(engine=engine, state=state)
    shelf = Shelf(engine, server, state)
    with state.lock("prepare"):
        if not shelf.is_loaded():
            shelf.load(places[REGISTRY], came_from=path.name)
        server.start(image=bases.engine_name(state))
        for name, place in places.items():
            shelf.copy(name, place, came_from=path.name)
        for further in bundle.names() - {place[1] for place in places.values()}:
            to = replace(further, registry=server.address)
            server.registry().copy(bundle, bundle.image(further), to=to)
        others = {name: data for name, data in files.items() if name.startswith(f"{platform}/")}
        own = {name: data for name, data in files.items() if "/" not in name}
        folder = wheel_folder or REPOSITORY / "dockerfiles" / "app" / "wheels"
        wheels.unpack(folder, others or own)
        keep_snapshot(known, folder=state.path(CACHE, "vulnerabilities"))
    return bases.recorded(server, state)


def write(path: Path, images: Mapping[str, Sequence[Held]], files: Mapping[str, bytes]) -> None:
    """Write images, each for some platforms, and files to a bundle: all of it, or none of it."""
    members: dict[str, Iterable[bytes]] = {_FILES + name: [data] for name, data in files.items()}
    for name, held in images.items():
        manifests = [(image.manifest, image.config.platform) for _, image in held]
        if len(held) > 1:
            members |= {_BLOBS + each.digest: [each.raw] for each, _ in manifests}
        members[_IMAGES + name] = [index_of(manifests) if len(held) > 1 else manifests[0][0].raw]
        for source, image in held:
            for blob in image.manifest.blobs:
                repository = image.reference.repository
                stored = source.open_blob(repository, blob.digest, size=blob.size)
                members[_BLOBS + blob.digest] = stored
    draft = path.with_name(f"{path.name}.part")
    try:
        with zipfile.ZipFile(draft, "w") as archive:
            for name, chunks in members.items():
                # An entry without a time: equal content gives equal bytes.
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                    member.writelines(chunks)
        draft.replace(path)
    except OSError as error:
        raise BaseError(
            f"saving the bundle '{path}': {error.strerror or error}. Name a file in a folder that "
            "exists, is writable and has a gigabyte to spare."
        ) from error
    finally:
        draft.unlink(missing_ok=True)


class Bundle:
    """A bundle to read from; as a source of images it does what a registry does."""

    address = "localhost"
    """What references to its images begin with."""

    def __init__(self, path: Path) -> None:
        """Read the list of what it holds, or raise ``DamagedContent``."""
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self.damaged(str(error)) from error

    def verify(self) -> None:
        """Compare blobs with their digests and the rest with its checksums."""
        names = set(self._archive.namelist())
        for name in names:
            hasher = hashlib.sha256()
            for chunk in self._read(name):
                hasher.update(chunk)
            if name.startswith(_BLOBS) and name != f"{_BLOBS}sha256:{hasher.hexdigest()}":
                raise self.damaged(f"its '{name}' has another digest")
            for manifest in self._manifests(name) if name.startswith(_IMAGES) else ():
                for blob in manifest.blobs:
                    if _BLOBS + blob.digest not in names:
                        raise self.damaged(f"the blob {blob.digest} is missing")

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        """Return the image that a platform runs; the first one where no platform is told."""
        found = self.images(reference)
        fits = (e for e in found if platform is not None and platform.can_run(e.config.platform))
        return next(fits, found[0])

    def names(self) -> set[Reference]:
        """Return what its images are called."""
        names = [name for name in self._archive.namelist() if name.startswith(_IMAGES)]
        return {Reference.parse(name.removeprefix(_IMAGES)) for name in names}

    def images(self, reference: Reference | str) -> list[RegistryImage]:
        """Return an image's manifests and configs, one for each platform."""
        name, found = Reference.parse(str(reference)), []
        for manifest in self._manifests(f"{_IMAGES}{reference}"):
            config = b"".join(self.open_blob("", manifest.config.digest))
            found.append(RegistryImage(name, manifest, parse_config(config)))
        return found

    def files(self) -> dict[str, bytes]:
        """Return the wheels and fixes, by name."""
        names = [name for name in self._archive.namelist() if name.startswith(_FILES)]
        return {name.removeprefix(_FILES): b"".join(self._read(name)) for name in names}

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes."""
        return self._read(_BLOBS + digest)

    def damaged(self, cause: str) -> DamagedContent:
        """Return the error for a bundle that can't be used."""
        return DamagedContent(
            f"loading the bundle '{self.path}': {cause}. Check the file's name, copy it again, or "
            "take another one that 'labapp bundle save' wrote; nothing was changed."
        )

    def _manifests(self, name: str) -> list[Manifest]:
        found: list[Manifest | Index] = [parse_manifest(b"".join(self._read(name)))]
        if isinstance(found[0], Index):
            listed = found[0].manifests
            found = [parse_manifest(b"".join(self._read(_BLOBS + e.digest))) for e in listed]
        manifests = [each for each in found if isinstance(each, Manifest)]
        if len(manifests) < len(found) or not manifests:
            raise self.damaged(f"its '{name}' is no image")
        return manifests

    def _read(self, name: str) -> Generator[bytes]:
        try:
            with self._archive.open(name) as member:
                while chunk := member.read(1024 * 1024):
                    yield chunk
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise self.damaged(f"its '{name}' is missing, or can't be read") from error


def _elsewhere(name: str, platform: Platform, source: str) -> Held:
    """Return a base image for another platform than the lab's, from the first that serves one."""

    def get(source: str) -> Held:
        if source == "debian":
            raise BaseError("Debian packages are unpacked by programs of their own platform.")
        registry, reference = bases.place_of(source, name)
        image = registry.image(reference, platform=platform)
        if not platform.can_run(image.config.platform):
            raise BaseError(f"'{reference}' is for {image.config.platform} alone, no {platform}.")
        return registry, image

    return bases.first_that_serves(bases.order(source), get)


def _wheels(application: Path, platform: Platform, *, is_own: bool) -> dict[str, bytes]:
    """Return the wheels for a platform; those that are not for the lab's own get its name."""
    if is_own:
        return wheels.packed(application / "wheels")
    name = f"{platform.os}/{platform.architecture}"
    with tempfile.TemporaryDirectory() as folder:
        for file in ("requirements.txt", "pyproject.toml"):
            shutil.copy(application / file, folder)
        wheels.fetch(Path(folder, "wheels"), platform=name)
        return {f"{name}/{k}": v for k, v in wheels.packed(Path(folder, "wheels")).items()}


def _known_fixes(bench: Bench) -> dict[str, bytes]:
    cache = bench.state.path(CACHE, "layers")
    pythons = [base.reference for base in bench.bases if base.name != REGISTRY]
    images = [
        contents.read(bench.registry, bench.registry.image(each), folder=cache) for each in pythons
    ]
    try:
        folder = bench.state.path(CACHE, "vulnerabilities")
        return {FIXES: vulnerabilities.snapshot(images, folder=folder)}
    except VulnerabilityError as error:
        feedback.say(f"The bundle goes without known vulnerabilities. {error}")
        return {}
