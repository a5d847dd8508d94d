"""Images in one file: an OCI image layout in a tar, which ``docker load`` reads as well.

Sources: OCI Image Specification 1.1, image-layout.md; for ``manifest.json``, the archive format of
``docker save``; ``io.containerd.image.name`` is how containerd names an image in a layout.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from labapp.errors import DamagedContent, NotInRegistry
from labapp.manifests import OCI_INDEX, Index, Manifest, parse_manifest

CHUNK_BYTES = 1024 * 1024
SMALL_BYTES = 4 * 1024 * 1024
"""The largest document (manifest, config, index) that is held in memory, in bytes."""

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_REF_NAME = "org.opencontainers.image.ref.name"
_ENGINE_NAME = "io.containerd.image.name"
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_NAMES = re.compile(
    r"oci-layout|index\.json|manifest\.json|blobs/sha256/[0-9a-f]{64}|extra/[\w.+-]+/[\w.+-]+"
)


class LayoutWriter:
    """Writes a layout, blob by blob; use it in a ``with`` block, at whose end it is complete."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 closed in __exit__
        self._blobs: set[str] = set()
        self._images: list[dict[str, Any]] = []
        self._loadable: list[dict[str, Any]] = []
        self.add_file("oci-layout", _LAYOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._images}
            self.add_file("index.json", _json(index))
            if self._loadable:
                self.add_file("manifest.json", _json(self._loadable))
            self._tar.close()
        else:  # whoever opened the file throws it away
            with contextlib.suppress(OSError):
                self._tar.close()

    def add_file(self, name: str, data: bytes) -> None:
        """Add a small file beside the blobs."""
        self._tar.addfile(_member(name, len(data)), io.BytesIO(data))

    def add_blob(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Add a blob as its bytes come, unless the layout has it.

        Args:
            digest: of the blob; whoever reads the layout verifies it.
            size: its length in bytes.
            chunks: its bytes.

        Raises:
            DamagedContent: another number of bytes came.
        """
        if digest not in self._blobs:
            self._blobs.add(digest)
            reader = _Chunks(chunks)
            try:
                self._tar.addfile(_member(_blob_path(digest), size), reader)
            except tarfile.TarError as error:
                raise _wrong_length(digest, size) from error
            except OSError as error:
                # How tarfile says that a file ended too early.
                if error.errno is None:
                    raise _wrong_length(digest, size) from error
                raise
            if reader.read(1):
                raise _wrong_length(digest, size)

    def add_image(self, name: str, manifest: Manifest, *, load_as: str | None = None) -> None:
        """Add an image whose config and layers were added before.

        Args:
            name: ``repository:tag``, to find it by.
            manifest: of the image.
            load_as: the name that ``docker load`` gives it; by default, it leaves it out.
        """
        self.add_blob(manifest.digest, len(manifest.raw), [manifest.raw])
        annotations = {_REF_NAME: name}
        if load_as is not None:
            annotations[_ENGINE_NAME] = load_as  # a full name, as containerd wants
            layers = [_blob_path(layer.digest) for layer in manifest.layers]
            config = _blob_path(manifest.config.digest)
            self._loadable.append({"Config": config, "RepoTags": [load_as], "Layers": layers})
        self._images.append(
            {
                "mediaType": manifest.media_type,
                "digest": manifest.digest,
                "size": len(manifest.raw),
                "annotations": annotations,
            }
        )


@dataclass(frozen=True)
class _Place:
    offset: int
    size: int


class Layout:
    """A layout to read from; its index is read at once, its blobs as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Open a layout.

        Raises:
            DamagedContent: the file is cut off, or is no image layout in a tar, or holds a path
                that doesn't belong into one.
        """
        self.path = path
        self._places = _places(path)
        if "oci-layout" not in self._places or "index.json" not in self._places:
            raise _not_a_layout(path, "it holds no image layout")
        index = parse_manifest(self.read_file("index.json"), OCI_INDEX)
        assert isinstance(index, Index)
        self.images: Mapping[str, str] = {
            entry.annotations[_REF_NAME]: entry.digest
            for entry in index.manifests
            if _REF_NAME in entry.annotations
        }

    @property
    def blob_bytes(self) -> int:
        """The length of all blobs together, in bytes."""
        return sum(place.size for name, place in self._places.items() if _BLOB.fullmatch(name))

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder beside the blobs."""
        return sorted(name for name in self._places if name.startswith(f"{folder}/"))

    def read_file(self, name: str) -> bytes:
        """Return a file beside the blobs.

        Raises:
            NotInRegistry: there is none of this name.
            DamagedContent: it is too long to be one.
        """
        if name not in self._places:
            raise NotInRegistry(f"reading '{self.path}': it has no '{name}'. Take another file.")
        return b"".join(self._read(self._places[name]))

    def verify(self, *, progress: Callable[[int, int], None]) -> None:
        """Read every blob and compare it with its digest.

        Args:
            progress: told how many bytes have been read, of how many.

        Raises:
            DamagedContent: a blob does not match, or one that an image needs is missing.
        """
        total, done = self.blob_bytes, 0
        for name in self._places:
            if match := _BLOB.fullmatch(name):
                for chunk in self.open_blob("", f"sha256:{match[1]}"):
                    done += len(chunk)
                    progress(done, total)
        for digest in self.images.values():
            manifest = self.manifest("", digest)
            for blob in manifest.blobs if isinstance(manifest, Manifest) else ():
                if self._place("", blob.digest).size != blob.size:
                    raise _not_a_layout(self.path, f"the blob {blob.digest} has another length")

    def manifest(self, repository: str, identifier: str) -> Manifest | Index:
        """Return what a tag or digest stands for, verified."""
        digest = self.images.get(f"{repository}:{identifier}", identifier)
        return parse_manifest(self.read_blob(repository, digest))

    def read_blob(self, repository: str, digest: str) -> bytes:
        """Return a small blob, verified."""
        if self._place(repository, digest).size > SMALL_BYTES:
            raise _not_a_layout(self.path, f"the document {digest} is too long")
        return b"".join(self.open_blob(repository, digest))

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes, verified at the end, as an ``ImageSource`` does."""
        hasher = hashlib.sha256()
        for chunk in self._read(self._place(repository, digest)):
            hasher.update(chunk)
            yield chunk
        if digest != f"sha256:{hasher.hexdigest()}":
            raise _not_a_layout(self.path, f"the blob {digest} does not match its digest")

    def _place(self, repository: str, digest: str) -> _Place:
        place = self._places.get(_blob_path(digest))
        if place is None:
            raise NotInRegistry(
                f"reading '{repository or digest}' from '{self.path}': it holds no {digest}. "
                "Make the file again."
            )
        return place

    def _read(self, place: _Place) -> Generator[bytes]:
        # A handle of its own each time, so that threads can read side by side.
        with self.path.open("rb") as file:
            file.seek(place.offset)
            left = place.size
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise _not_a_layout(self.path, "it is cut off")
                left -= len(chunk)
                yield chunk


def _places(path: Path) -> dict[str, _Place]:
    """Return where each file of the tar is; nothing is unpacked, and no strange path accepted."""
    places: dict[str, _Place] = {}
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                if not member.isreg() or not _NAMES.fullmatch(member.name):
                    raise _not_a_layout(path, f"'{member.name}' does not belong into one")
                if member.name in places:
                    raise _not_a_layout(path, f"'{member.name}' is there twice")
                if member.offset_data + member.size > length:
                    raise _not_a_layout(path, "it is cut off")
                if not _BLOB.fullmatch(member.name) and member.size > 2 * SMALL_BYTES:
                    raise _not_a_layout(path, f"'{member.name}' is too long")
                places[member.name] = _Place(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise _not_a_layout(path, f"it is not a whole tar: {error}") from error
    except OSError as error:
        raise DamagedContent(
            f"opening '{path}': {error.strerror or error}. Check the file's name."
        ) from error
    return places


class _Chunks(io.RawIOBase):
    """Chunks as a file, for tarfile to read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._held) < size:
            try:
                self._held += next(self._chunks)
            except StopIteration:
                break
        found, self._held = self._held[:size], self._held[size:]
        return found


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a file; without times and owners, equal content gives equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _wrong_length(digest: str, size: int) -> DamagedContent:
    return DamagedContent(
        f"writing the blob '{digest}': it does not have the {size:,} bytes that its manifest says. "
        "Run 'python3 -m labapp start', which replaces what is damaged."
    )


def _not_a_layout(path: Path, cause: str) -> DamagedContent:
    return DamagedContent(
        f"reading images from '{path}': {cause}. Copy the file again, or take another one; "
        "nothing was changed."
    )
