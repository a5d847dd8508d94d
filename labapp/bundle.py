"""Bundles: base images, the registry's image, wheels and known fixes, for machines offline.

A bundle is a zip file, nothing in it compressed once more: manifests by the names of their images,
blobs by their digests, as the registry has them byte for byte, and files by their names.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

from labapp import feedback
from labapp.bench import Bench
from labapp.errors import BaseError, DamagedContent, VulnerabilityError
from labapp.inside import image as contents
from labapp.inside import known as vulnerabilities
from labapp.inside.debian_mirror import keep_snapshot, parse_snapshot
from labapp.inside.inspection import CACHE
from labapp.journey import bases, wheels
from labapp.journey.bases import NAMES, REGISTRY, Base, Place, Shelf
from labapp.machine import engine as engines
from labapp.reference import Reference
from labapp.registry.client import RegistryImage
from labapp.registry.manifests import Manifest, Platform, parse_config, parse_manifest
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State

FIXES = "snapshot.json.gz"
"""What Debian had fixed in the base images' packages when the bundle was saved."""

_IMAGES, _BLOBS, _FILES = "images/", "blobs/", "files/"


def save(bench: Bench, path: Path) -> None:
    """Write a lab's bundle; a file that was there is replaced once the new one is complete.

    Where Debian's mirror can't be reached, it goes without known fixes, and a line says so.
    """
    files = wheels.packed(bench.application / "wheels") | _known_fixes(bench)
    images: dict[str, Place] = {
        str(bases.at(Bundle.address, base.name)): (bench.registry, base.reference)
        for base in bench.bases
    }
    write(path, images, files)
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
    platforms = {bundle.image(reference).config.platform for _, reference in places.values()}
    engine = engines.start(state)
    if not all(map(Platform.parse(engine.platform).can_run, platforms)):
        found = ", ".join(map(str, platforms))
        raise BaseError(
            f"loading the bundle '{path}': its images are for {found}, the engine runs "
            f"{engine.platform}. Take a bundle from a machine like this one; nothing was changed."
        )
    server = RegistryServer(engine=engine, state=state)
    shelf = Shelf(engine, server, state)
    with state.lock("prepare"):
        if not shelf.is_loaded():
            shelf.load(places[REGISTRY], came_from=path.name)
        server.start(image=bases.engine_name(state))
        for name, place in places.items():
            shelf.copy(name, place, came_from=path.name)
        wheels.unpack(wheel_folder or REPOSITORY / "dockerfiles" / "app" / "wheels", files)
        keep_snapshot(known, folder=state.path(CACHE, "vulnerabilities"))
    return bases.recorded(server, state)


def write(path: Path, images: Mapping[str, Place], files: Mapping[str, bytes]) -> None:
    """Write images and files, by name, to a bundle: all of it, or none of it."""
    members: dict[str, Iterable[bytes]] = {_FILES + name: [data] for name, data in files.items()}
    for name, (source, reference) in images.items():
        manifest = source.image(reference).manifest
        members[_IMAGES + name] = [manifest.raw]
        for blob in manifest.blobs:
            stored = source.open_blob(reference.repository, blob.digest, size=blob.size)
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
            for blob in self._manifest(name).blobs if name.startswith(_IMAGES) else ():
                if _BLOBS + blob.digest not in names:
                    raise self.damaged(f"the blob {blob.digest} is missing")

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        """Return an image's manifest and config; a bundle is for one platform."""
        manifest = self._manifest(f"{_IMAGES}{reference}")
        config = b"".join(self.open_blob("", manifest.config.digest))
        return RegistryImage(Reference.parse(str(reference)), manifest, parse_config(config))

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

    def _manifest(self, name: str) -> Manifest:
        found = parse_manifest(b"".join(self._read(name)))
        if not isinstance(found, Manifest):
            raise self.damaged(f"its '{name}' is no image")
        return found

    def _read(self, name: str) -> Generator[bytes]:
        try:
            with self._archive.open(name) as member:
                while chunk := member.read(1024 * 1024):
                    yield chunk
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise self.damaged(f"its '{name}' is missing, or can't be read") from error


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
