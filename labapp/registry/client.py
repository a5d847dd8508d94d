"""A registry over HTTP: tags, manifests and blobs, every byte verified; uploads and copies.

Source: OCI Distribution Specification 1.1, "Pull", "Push" and "Content Management"; the catalog is
from the Docker Registry HTTP API V2.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from labapp.errors import DamagedContent, InvalidReference, NotInRegistry, RegistryError, damaged
from labapp.reference import Reference, is_digest
from labapp.registry import http, manifests
from labapp.registry.http import Answer, Credentials, docker_credentials, same_address
from labapp.registry.manifests import Descriptor, ImageConfig, Index, Manifest, Platform, digest_of

MEBIBYTE = 1024 * 1024

_ACCEPT = {"Accept": ", ".join(manifests.MANIFEST_TYPES)}
_DOING = {"HEAD": "looking for", "GET": "reading", "PUT": "storing", "DELETE": "deleting"}


@dataclass(frozen=True)
class Stored:
    """What a registry has under a reference, be it an image, an index or anything else."""

    reference: Reference
    manifest: Manifest | Index


@dataclass(frozen=True)
class RegistryImage(Stored):
    """An image as a registry has it: what the reference led to, and the index on the way."""

    manifest: Manifest
    config: ImageConfig
    index: Index | None = None

    @property
    def digest(self) -> str:
        """The digest that the reference's tag stands for: the index's where there is one."""
        return (self.index or self.manifest).digest

    @property
    def digests(self) -> tuple[str, ...]:
        """All that it can be pinned to: of an index, also the manifest for this one platform."""
        return self.digest, self.manifest.digest

    @property
    def pinned(self) -> Reference:
        """The reference by digest, without its tag."""
        return self.reference.pinned(self.digest)


@dataclass(frozen=True)
class BlobDamage:
    """One blob that is not what its manifest says: ``missing``, ``altered``, or of a length."""

    digest: str
    what: str

    def __str__(self) -> str:
        return f"blob {self.digest} is {self.what}"


class ImageSource(Protocol):
    """Where images are copied from: a registry, or a bundle."""

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        """Read an image's manifest and config."""

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes, verified at the end."""


class Registry:
    """A registry to read from and to write to; several threads may use one at once.

    ``secure`` is whether to speak HTTPS, by default except on this machine, as docker does.
    ``credentials`` tells who the learner is at an address, once the registry asks.
    ``certificates`` is a file of the authorities to trust, for a registry's own TLS. ``platform``
    is for which images are taken out of an index, by default this machine's.
    """

    def __init__(
        self,
        address: str,
        *,
        secure: bool | None = None,
        credentials: Callable[[str], Credentials | None] = docker_credentials,
        certificates: Path | None = None,
        platform: Platform | None = None,
    ) -> None:
        self.address, self._platform = address, platform or Platform.here()
        url = http.url_of(address, secure=secure)
        self._http = http.Connection(address, url, certificates, credentials)

    def ping(self, mark: str = "") -> None:
        """Ask ``/v2/``, which all registries answer, or raise RegistryError; logs have the mark."""
        place = f"/v2/?{mark}" if mark else "/v2/"
        self._http.ask("GET", place, doing=f"asking the registry '{self.address}'")

    def repositories(self) -> list[str]:
        """Return the names of all repositories, sorted."""
        doing = f"listing the repositories of '{self.address}'"
        return self._http.names("/v2/_catalog?n=1000", "repositories", doing=doing)

    def tags(self, repository: str) -> list[str]:
        """Return a repository's tags, sorted; NotInRegistry if there is no such repository."""
        doing = f"listing the tags of '{self._name(repository)}'"
        missing = f"there is no repository '{repository}'"
        path = f"/v2/{repository}/tags/list?n=1000"
        return self._http.names(path, "tags", doing=doing, missing=missing)

    def digest(self, reference: Reference | str) -> str:
        """Return the digest that the registry serves for a reference just now.

        NotInRegistry tells the tags there are; InvalidReference is one to another registry.
        """
        name = self._mine(reference)
        return name.digest or self.resolve(name.repository, name.identifier)

    def resolve(self, repository: str, tag: str) -> str:
        """Return the digest that a tag stands for just now; as :meth:`digest`."""
        answer = self._ask_manifest("HEAD", repository, tag)
        digest = answer.headers.get("Docker-Content-Digest", "")
        return digest if is_digest(digest) else self.manifest(repository, tag).digest

    def manifest(self, repository: str, identifier: str) -> Manifest | Index:
        """Read a manifest or an index by a tag or a digest, and verify its bytes.

        NotInRegistry if there is none; DamagedContent if the bytes do not match the digest or are
        no manifest; RegistryError if they are more than 4 MiB.
        """
        return manifests.parse_manifest(*self.manifest_bytes(repository, identifier))

    def manifest_bytes(self, repository: str, identifier: str) -> tuple[bytes, str | None]:
        """Read a manifest's verified bytes, parsable or not, and its media type if it is told."""
        answer = self._ask_manifest("GET", repository, identifier)
        for digest in (identifier, answer.headers.get("Docker-Content-Digest", "")):
            if is_digest(digest) and digest != digest_of(answer.body, digest.partition(":")[0]):
                name = self._name(repository, identifier)
                raise damaged(f"reading the manifest '{name}'", f"its bytes do not match {digest}")
        is_typed = answer.media_type.startswith("application/vnd.")
        return answer.body, answer.media_type if is_typed else None

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        """Read an image's manifest and config; of an index, the image for a platform.

        The platform is by default the registry's. Raises as :meth:`digest` and :meth:`manifest`
        do, and RegistryError where there is something else by that name: a chart, a signature.
        """
        name, index = self._mine(reference), None
        found = self.manifest(name.repository, name.identifier)
        if isinstance(found, Index):
            index, entry = found, found.for_platform(platform or self._platform)
            found = self.manifest(name.repository, entry.digest)
        if isinstance(found, Index):
            raise damaged(f"reading '{name}'", "its index leads to another")
        if kind := found.other_than_image:
            raise RegistryError(
                f"reading '{name}': it is no image but a '{kind}'. Look at it with what made it."
            )
        config = self.read_blob(name.repository, found.config.digest, limit=4 * MEBIBYTE)
        return RegistryImage(name, found, manifests.parse_config(config), index)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return a stored blob's length in bytes, or None if the repository has no such blob."""
        try:
            answer = self._ask("HEAD", "blob", repository, digest)
        except NotInRegistry:
            return None
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() and len(length) < 20 else None

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes as they come; DamagedContent at the end if its digest is another.

        Where its ``size`` is told, hardly more than that is read.
        """
        doing = f"reading the blob '{self._name(repository, digest)}'"
        path, missing = f"/v2/{repository}/blobs/{digest}", "there is no such blob. Push it again"
        hasher, count = hashlib.new(digest.partition(":")[0]), 0
        with self._http.open("GET", path, doing=doing, missing=missing) as answer:
            for chunk in answer.chunks:
                hasher.update(chunk)
                count += len(chunk)
                if size is not None and count > size:
                    break
                yield chunk
        if hasher.hexdigest() != digest.partition(":")[2]:
            raise damaged(doing, f"its {count:,} bytes do not match it")

    def read_blob(self, repository: str, digest: str, *, limit: int = 64 * MEBIBYTE) -> bytes:
        """Return the bytes of a small blob, verified; RegistryError for more than ``limit``."""
        held = bytearray()
        with contextlib.closing(self.open_blob(repository, digest)) as chunks:
            for chunk in chunks:
                held += chunk
                if len(held) > limit:
                    raise RegistryError(
                        f"reading the blob '{digest}' of '{repository}': it is longer than "
                        f"{limit:,} bytes. Read it in pieces with 'open_blob'."
                    )
        return bytes(held)

    def upload_blob(self, repository: str, chunks: Iterable[bytes]) -> tuple[str, int]:
        """Store a blob as its bytes come, and return its digest and its length in bytes.

        If they end in an error, the registry removes what it has of them after an hour.
        """
        doing = f"uploading a blob to '{self._name(repository)}'"
        path, hasher, size = f"/v2/{repository}/blobs/uploads/", hashlib.sha256(), 0
        place = self._http.ask("POST", path, doing=doing).headers.get("Location", "")
        for piece in _pieces(chunks):
            hasher.update(piece)
            headers = {"Content-Range": f"{size}-{size + len(piece) - 1}"}
            # As a file, it is sent by parts, each with the time limit that else held for all of it.
            data = io.BytesIO(piece)
            answer = self._http.ask("PATCH", place, doing=doing, headers=headers, data=data)
            place, size = answer.headers.get("Location", ""), size + len(piece)
        digest = f"sha256:{hasher.hexdigest()}"
        end = f"{place}{'&' if '?' in place else '?'}digest={digest}"
        self._http.ask("PUT", end, doing=doing)
        return digest, size

    def mount_blob(self, repository: str, digest: str, from_repository: str) -> bool:
        """Take a blob over from another repository here; False if its bytes are wanted anyway."""
        source, name = self._name(from_repository, digest), self._name(repository)
        path = f"/v2/{repository}/blobs/uploads/?mount={digest}&from={from_repository}"
        answer = self._http.ask("POST", path, doing=f"mounting the blob '{source}' in '{name}'")
        return answer.status == 201

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> str:
        """Store a manifest or an index under a tag (or its own digest), and return its digest.

        RegistryError if it is refused, say because one of its blobs is missing there.
        """
        headers = {"Content-Type": media_type}
        self._ask("PUT", "manifest", repository, tag, headers=headers, data=raw)
        return digest_of(raw)

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Delete a manifest and every tag that stands for it; NotInRegistry if there is none."""
        self._ask("DELETE", "manifest", repository, digest)

    def copy(
        self,
        source: ImageSource,
        image: Stored,
        *,
        to: Reference | str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> str:
        """Copy an image into this registry, byte for byte, and return its digest.

        Of an index, that is its own bytes; what it names has to be there before.
        A blob that is there is not sent; one in another repository of this registry is taken over.
        ``progress`` is told how many of its bytes are there, and how many there will be.
        DamagedContent for bytes that do not match their digest.
        """
        target, manifest, origin = self._mine(to), image.manifest, image.reference
        done, total = 0, sum(blob.size for blob in manifest.blobs)
        is_here = same_address(origin.registry, self.address)

        def counted(blob: Descriptor) -> Iterator[bytes]:
            nonlocal done
            for chunk in source.open_blob(origin.repository, blob.digest, size=blob.size):
                yield chunk
                done += len(chunk)
                progress(done, total)

        for blob in manifest.blobs:
            if self.blob_size(target.repository, blob.digest) is not None or (
                is_here and self.mount_blob(target.repository, blob.digest, origin.repository)
            ):
                done += blob.size
                progress(done, total)
            else:
                self.upload_blob(target.repository, counted(blob))
        return self.put_manifest(
            target.repository, target.identifier, manifest.raw, manifest.media_type
        )

    def damaged_blobs(
        self, repository: str, manifest: Manifest, *, contents: bool = False
    ) -> list[BlobDamage]:
        """Return the blobs that are not as the manifest says; with ``contents``, all are read."""
        damaged = []
        for blob in manifest.blobs:
            found = self.blob_size(repository, blob.digest)
            if found is None:
                damaged.append(BlobDamage(blob.digest, "missing"))
            elif found != blob.size:
                damaged.append(BlobDamage(blob.digest, f"of {found:,} bytes, not {blob.size:,}"))
            elif contents:
                try:
                    for _ in self.open_blob(repository, blob.digest, size=blob.size):
                        pass
                except DamagedContent:
                    damaged.append(BlobDamage(blob.digest, "altered"))
        return damaged

    def _ask(self, method: str, kind: str, repository: str, identifier: str, **more: Any) -> Answer:
        doing = f"{_DOING[method]} the {kind} '{self._name(repository, identifier)}'"
        path = f"/v2/{repository}/{kind}s/{identifier}"
        missing = "the repository has no such thing"
        return self._http.ask(method, path, doing=doing, missing=missing, **more)

    def _ask_manifest(self, method: str, repository: str, identifier: str) -> Answer:
        try:
            return self._ask(method, "manifest", repository, identifier, headers=_ACCEPT)
        except NotInRegistry as error:
            name = self._name(repository, identifier)
            raise NotInRegistry(f"looking for '{name}': {self._why_not(name)}") from error

    def _why_not(self, name: Reference) -> str:
        """Tell a missing repository from a missing tag, with what there is instead."""
        try:
            tags = self.tags(name.repository)
        except NotInRegistry:
            return (
                f"there is no repository '{name.repository}' at '{self.address}'. "
                "Check the name, or push the image first."
            )
        if name.digest:
            return "the repository has no manifest with that digest. Copy all of a digest it has."
        there = f"the tags {', '.join(tags[-12:])}" if tags else "no tag at all"
        return f"there is no tag '{name.tag}', the repository has {there}. Take one, or push it."

    def _name(self, repository: str, identifier: str = "") -> Reference:
        """Return what is asked for as a reference, which refuses a wrong name before it is sent.

        A registry answers it with a bare 404, which would send the learner searching.
        """
        if ":" in identifier:
            return Reference(self.address, repository, digest=identifier)
        return Reference(self.address, repository, identifier or None)

    def _mine(self, reference: Reference | str) -> Reference:
        name = Reference.parse(reference) if isinstance(reference, str) else reference
        if not same_address(name.registry, self.address):
            raise InvalidReference(
                f"looking for '{name}': it is in the registry '{name.registry}', not in "
                f"'{self.address}'. Write it as '{self.address}/{name.repository}…'."
            )
        return name


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Gather chunks of any size into pieces of about 8 MiB, none of them empty."""
    piece = bytearray()
    for chunk in chunks:
        piece += chunk
        if len(piece) >= 8 * MEBIBYTE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
