"""Bundles: base images, the registry's image, wheels and known fixes, for machines offline.

A bundle is an OCI image layout in a tar: images byte for byte as the registry has them. Wheels and
fixes are blobs of it too, whose digests the index has by their names, as annotations.

Source: OCI Image Specification 1.1, image-layout.md and image-index.md.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from labapp import feedback
from labapp.bench import Bench
from labapp.errors import BaseError, DamagedContent, VulnerabilityError
from labapp.inside import image as contents
from labapp.inside import known as vulnerabilities
from labapp.inside.debian_mirror import keep_snapshot, parse_snapshot
from labapp.journey import bases, wheels
from labapp.journey.bases import NAMES, REGISTRY, Base, Place, Shelf
from labapp.machine import engine as engines
from labapp.reference import Reference
from labapp.registry.client import RegistryImage
from labapp.registry.manifests import (
    OCI_INDEX,
    Index,
    Manifest,
    Platform,
    canonical_json,
    digest_of,
    parse_config,
    parse_manifest,
)
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State

FIXES = "snapshot.json.gz"
"""What Debian had fixed in the base images' packages when the bundle was saved."""

_NAME = "org.opencontainers.image.ref.name"
_FILE = "labapp.file/"
_CHUNK_BYTES = 1024 * 1024


def save(bench: Bench, path: Path) -> None:
    """Write a lab's bundle; a file that was there is replaced once the new one is complete.

    Where Debian's mirror can't be reached, it goes without known fixes, and a line says so.
    """
    files = wheels.packed(bench.application / "wheels") | _known_fixes(bench)
    images: dict[str, Place] = {
        str(bases.at(Bundle.address, base.name)): (bench.registry, base.reference)
        for base in bench.bases
    }
    with feedback.bars(f"Saving {path.name}") as bars:
        write(path, images, files, functools.partial(bars.update, "bytes"))
    feedback.say(f"Saved {path} ({path.stat().st_size / 1e6:,.0f} MB).")


def load(state: State, path: Path, *, wheel_folder: Path | None = None) -> tuple[Base, ...]:
    """Take everything from a bundle: the registry's image first, so that a registry can run.

    The whole file is verified before anything is changed; DamagedContent if it is not whole. The
    wheels go to ``wheel_folder``, by default the application's.
    """
    bundle = Bundle(path)
    with feedback.bars(f"Verifying {path.name}") as bars:
        bundle.verify(functools.partial(bars.update, "bytes"))
    files = bundle.files()
    try:
        fixes = files.pop(FIXES, b"")
        known = parse_snapshot(fixes, f"{path}/{FIXES}") if fixes else {}
    except VulnerabilityError as error:
        raise bundle.damaged(f"its '{FIXES}' can't be read") from error
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
            shelf.load(places[REGISTRY])
        server.start(image=bases.engine_name(state))
        for failure in shelf.copy(places, came_from=path.name).values():
            raise failure
        wheels.unpack(wheel_folder or REPOSITORY / "dockerfiles" / "app" / "wheels", files)
        keep_snapshot(known, folder=_fixes_folder(state))
    return bases.recorded(server, state)


def write(
    path: Path,
    images: Mapping[str, Place],
    files: Mapping[str, bytes],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write images and files, by name, to a bundle: all of it, or none of it; tell how far."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as draft:
            try:
                _write(draft, images, files, progress)
            except BaseException:
                Path(draft.name).unlink()
                raise
        Path(draft.name).chmod(0o644)
        Path(draft.name).replace(path)
    except OSError as error:
        raise BaseError(
            f"saving the bundle '{path}': {error.strerror or error}. Name a file in a folder that "
            "exists, is writable and has a gigabyte to spare."
        ) from error


class Bundle:
    """A bundle to read from; as a source of images it does what a registry does."""

    address = "localhost"
    """What references to its images begin with."""

    def __init__(self, path: Path) -> None:
        """Read the list of what it holds, or raise ``DamagedContent``."""
        self.path = path
        try:
            # Nothing is ever unpacked under a member's name, so any name will do.
            with tarfile.open(path, "r:") as tar:
                self._members = {member.name: member for member in tar if member.isreg()}
            index = parse_manifest(b"".join(self._read("index.json")), OCI_INDEX)
        except (tarfile.TarError, DamagedContent) as error:
            raise self.damaged("it is cut off, or no bundle") from error
        except OSError as error:
            raise DamagedContent(
                f"loading the bundle '{path}': {error.strerror or error}. Check the file's name."
            ) from error
        assert isinstance(index, Index)
        self._entries = {entry.annotations.get(_NAME, ""): entry for entry in index.manifests}
        self._files = {
            name.removeprefix(_FILE): digest
            for name, digest in json.loads(index.raw).get("annotations", {}).items()
            if name.startswith(_FILE)
        }

    def verify(self, progress: Callable[[int, int], None]) -> None:
        """Compare every blob of every image, and every file, with its digest; tell how far."""
        wanted = {blob.digest for name in self._entries for blob in self._named(name).blobs}
        wanted.update(self._files.values())
        sizes = {name: member.size for name, member in self._members.items()}
        done, total = 0, sum(sizes.get(_path(digest), 0) for digest in wanted)
        for digest in sorted(wanted):
            for chunk in self.open_blob("", digest):
                done += len(chunk)
                progress(done, total)

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        """Return an image's manifest and config; a bundle is for one platform."""
        manifest = self._named(str(reference))
        config = b"".join(self.open_blob("", manifest.config.digest))
        return RegistryImage(Reference.parse(str(reference)), manifest, parse_config(config))

    def files(self) -> dict[str, bytes]:
        """Return the wheels and fixes, by name."""
        return {name: b"".join(self.open_blob("", d)) for name, d in self._files.items()}

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes; the last word, on their digest, is at the end."""
        hasher, count = hashlib.sha256(), 0
        for chunk in self._read(_path(digest)):
            hasher.update(chunk)
            count += len(chunk)
            yield chunk
        if digest != f"sha256:{hasher.hexdigest()}" or size not in (None, count):
            raise self.damaged(f"the blob {digest} does not match its digest")

    def damaged(self, cause: str) -> DamagedContent:
        """Return the error for a bundle that can't be used."""
        return DamagedContent(
            f"loading the bundle '{self.path}': {cause}. Copy the file again, or take another one "
            "that 'labapp bundle save' wrote; nothing was changed."
        )

    def _named(self, name: str) -> Manifest:
        if name not in self._entries:
            raise self.damaged(f"it has no '{name}'")
        entry = self._entries[name]
        found = parse_manifest(b"".join(self.open_blob("", entry.digest)), entry.media_type)
        if not isinstance(found, Manifest):
            raise self.damaged(f"its '{name}' is no image")
        return found

    def _read(self, name: str) -> Generator[bytes]:
        if name not in self._members:
            raise self.damaged(f"it has no '{name}'")
        left = self._members[name].size
        # A handle of its own each time, so that threads can read side by side.
        with self.path.open("rb") as file:
            file.seek(self._members[name].offset_data)
            while chunk := file.read(min(_CHUNK_BYTES, left)):
                left -= len(chunk)
                yield chunk


def _known_fixes(bench: Bench) -> dict[str, bytes]:
    """Return a snapshot of Debian's fixes for the Python base images, if there is one."""
    cache = bench.state.path("cache", "layers")
    pythons = [base.reference for base in bench.bases if base.name != REGISTRY]
    images = [contents.read(bench.registry, each, folder=cache) for each in pythons]
    try:
        return {FIXES: vulnerabilities.snapshot(images, folder=_fixes_folder(bench.state))}
    except VulnerabilityError as error:
        feedback.say(f"The bundle goes without known vulnerabilities. {error}")
        return {}


def _fixes_folder(state: State) -> Path:
    return state.path("cache", "vulnerabilities")


def _write(
    file: IO[bytes],
    images: Mapping[str, Place],
    files: Mapping[str, bytes],
    progress: Callable[[int, int], None],
) -> None:
    entries: list[dict[str, object]] = []
    blobs: dict[str, tuple[int, Iterable[bytes]]] = {}
    for name, (source, reference) in images.items():
        manifest = source.image(reference).manifest
        for blob in manifest.blobs:
            chunks: Iterable[bytes] = source.open_blob(
                reference.repository, blob.digest, size=blob.size
            )
            blobs[blob.digest] = blob.size, chunks
        blobs[manifest.digest] = len(manifest.raw), [manifest.raw]
        entries.append(
            {
                "mediaType": manifest.media_type,
                "digest": manifest.digest,
                "size": len(manifest.raw),
                "annotations": {_NAME: name},
            }
        )
    blobs |= {digest_of(data): (len(data), [data]) for data in files.values()}
    done, total = 0, sum(size for size, _ in blobs.values())
    for digest, (size, chunks) in blobs.items():
        with _member(file, _path(digest), size):
            for chunk in chunks:
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": entries,
        "annotations": {f"{_FILE}{name}": digest_of(data) for name, data in files.items()},
    }
    # The index comes last, so that a file that was cut off lacks it.
    for name, content in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
        data = canonical_json(content)
        with _member(file, name, len(data)):
            file.write(data)
    file.write(bytes(2 * tarfile.BLOCKSIZE))


@contextlib.contextmanager
def _member(file: IO[bytes], name: str, size: int) -> Iterator[None]:
    """Begin and end a member whose bytes come one by one; ``TarFile`` would want a file."""
    member = tarfile.TarInfo(name)  # without times and owners: equal content gives equal bytes
    member.size = size
    file.write(member.tobuf(tarfile.USTAR_FORMAT))
    yield
    file.write(bytes(-size % tarfile.BLOCKSIZE))


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"
