"""A registry over HTTP: tags, manifests and blobs, every byte verified; uploads and copies.

Source: OCI Distribution Specification 1.1, "Pull", "Push" and "Content Management"; the catalog is
from the Docker Registry HTTP API V2.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import quote

from labapp.errors import (
    DamagedContent,
    InvalidReference,
    LabError,
    NotInRegistry,
    RegistryError,
)
from labapp.reference import Reference, is_digest
from labapp.registry.http import Answer, RegistryHTTP, same_address, url_of
from labapp.registry.login import Credentials, Login, docker_credentials
from labapp.registry.manifests import (
    MANIFEST_TYPES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    digest_of,
    parse_config,
    parse_manifest,
)

MEBIBYTE = 1024 * 1024
PIECE_BYTES = 8 * MEBIBYTE
"""CNCF Distribution can cancel an upload only as of its last whole piece."""

PAGE = 500

_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_UNTYPED = ("", "application/json", "application/octet-stream", "text/plain")
_PUSH_AGAIN = "Push the image again; the lab then replaces what is damaged."


@dataclass(frozen=True)
class RegistryImage:
    """An image as a registry has it: what the reference led to, and the index on the way."""

    reference: Reference
    manifest: Manifest
    config: ImageConfig
    index: Index | None = None

    @property
    def digest(self) -> str:
        """The digest that the reference's tag stands for: the index's where there is one."""
        return (self.index or self.manifest).digest

    @property
    def pinned(self) -> Reference:
        """The reference by digest, without its tag."""
        return self.reference.pinned(self.digest)


@dataclass(frozen=True)
class BlobDamage:
    """One blob that is not what its manifest says; ``found_bytes`` is None if it is missing."""

    digest: str
    expected_bytes: int
    found_bytes: int | None

    @property
    def what(self) -> Literal["missing", "truncated", "altered"]:
        """How it is damaged; of the same length or longer, its bytes are others."""
        if self.found_bytes is None:
            return "missing"
        return "truncated" if self.found_bytes < self.expected_bytes else "altered"

    def __str__(self) -> str:
        words = {
            "missing": "is missing",
            "truncated": f"has {self.found_bytes or 0:,} bytes of {self.expected_bytes:,}",
            "altered": "has been altered",
        }
        return f"blob {self.digest} {words[self.what]}"


class ImageSource(Protocol):
    """Where images are copied from: a registry, or a bundle."""

    @property
    def address(self) -> str:
        """What references to its images begin with."""

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        """Read an image's manifest and config."""

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes, verified at the end."""


class Registry:
    """A registry to read from and to write to; several threads may use one at once."""

    def __init__(
        self,
        address: str,
        *,
        secure: bool | None = None,
        credentials: Callable[[str], Credentials | None] = docker_credentials,
        certificates: Path | None = None,
    ) -> None:
        """Prepare to speak with a registry.

        Args:
            address: host and port, as in ``localhost:41233``; ``docker.io`` is Docker Hub.
            secure: whether to speak HTTPS; by default except on this machine, as docker does.
            credentials: who the learner is at an address, asked for when the registry asks.
            certificates: a file of the authorities to trust, for a registry's own TLS.
        """
        self.address = address
        url = url_of(address, secure=secure)
        login = Login(address, url, credentials, certificates)
        self._http = RegistryHTTP(address, url, login, certificates)

    def __repr__(self) -> str:
        return f"Registry({self.address!r})"

    def ping(self) -> None:
        """Ask ``/v2/``, which every registry answers; RegistryError if what is there does not."""
        doing = f"asking the registry '{self.address}'"
        try:
            answer = self._http.ask("GET", "/v2/", doing=doing)
        except NotInRegistry as error:
            raise self._http.not_a_registry(doing, "it has no /v2/") from error
        typed = answer.media_type not in ("application/json", "")
        if typed and "Docker-Distribution-Api-Version" not in answer.headers:
            raise self._http.not_a_registry(doing, f"it serves {answer.media_type}")

    def repositories(self) -> list[str]:
        """Return the names of all repositories, sorted."""
        doing = f"listing the repositories of '{self.address}'"
        pages = self._http.pages(f"/v2/_catalog?n={PAGE}", "repositories", doing=doing)
        return sorted(itertools.chain.from_iterable(pages))

    def tags(self, repository: str) -> list[str]:
        """Return a repository's tags, sorted; NotInRegistry if there is no such repository."""
        return sorted(itertools.chain.from_iterable(self._tag_pages(repository)))

    def digest(self, reference: Reference | str) -> str:
        """Return the digest that the registry serves for a reference just now.

        Raises:
            InvalidReference: it is no reference, or one to another registry.
            NotInRegistry: no such repository or tag; the message tells the tags there are.
        """
        name = self._mine(reference)
        return name.digest or self.resolve(name.repository, name.identifier)

    def resolve(self, repository: str, tag: str) -> str:
        """Return the digest that a tag stands for just now; as :meth:`digest`."""
        name = self._name(repository, tag)
        digest = self._ask_manifest("HEAD", name).headers.get("Docker-Content-Digest", "")
        return digest if is_digest(digest) else self.manifest(repository, tag).digest

    def manifest(self, repository: str, identifier: str) -> Manifest | Index:
        """Read a manifest or an index, and verify its bytes.

        Args:
            repository: such as ``shop/web``.
            identifier: a tag or a digest.

        Raises:
            NotInRegistry: no such repository, tag or manifest.
            DamagedContent: the bytes do not match the digest, or are no manifest.
            RegistryError: longer than 4 MiB, or of another content type.
        """
        return parse_manifest(*self.manifest_bytes(repository, identifier))

    def manifest_bytes(self, repository: str, identifier: str) -> tuple[bytes, str | None]:
        """Read a manifest's verified bytes, parsable or not, and its media type if it is told."""
        name = self._name(repository, identifier)
        answer, doing = self._ask_manifest("GET", name), f"reading the manifest '{name}'"
        digest = name.digest or answer.headers.get("Docker-Content-Digest", "")
        if is_digest(digest) and not _is_of(digest, _hash(digest, answer.body)):
            raise DamagedContent(f"{doing}: bytes do not match the digest {digest}. {_PUSH_AGAIN}")
        served_as = None if answer.media_type in _UNTYPED else answer.media_type
        if served_as is not None and not served_as.startswith("application/vnd."):
            raise self._http.not_a_registry(doing, f"it serves {served_as}")
        return answer.body, served_as

    def image(
        self, reference: Reference | str, *, platform: Platform | None = None
    ) -> RegistryImage:
        """Read an image's manifest and config, by way of an index where there is one.

        Args:
            reference: an image in this registry; ``latest`` where it has no tag.
            platform: which image of an index; by default the one for this machine's processor.

        Raises:
            InvalidReference: the reference is to another registry.
            NotInRegistry: no such image, or not for this platform.
            DamagedContent: bytes that do not match their digest.
            RegistryError: there is something else by that name: a chart, a signature.
        """
        name, index = self._mine(reference), None
        found = self.manifest(name.repository, name.identifier)
        if isinstance(found, Index):
            index, entry = found, found.for_platform(platform or Platform.here())
            found = self.manifest(name.repository, entry.digest)
        if isinstance(found, Index):
            raise DamagedContent(f"reading '{name}': its index leads to another. {_PUSH_AGAIN}")
        if kind := found.other_than_image:
            raise RegistryError(
                f"reading '{name}': it is an artifact of the type '{kind}', not an image. Look at "
                "it with the tool that made it."
            )
        config = self.read_blob(name.repository, found.config.digest, limit=4 * MEBIBYTE)
        return RegistryImage(name, found, parse_config(config), index)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return a stored blob's length in bytes, or None if the repository has no such blob."""
        name = self._name(repository, digest)
        answer = self._http.ask(
            "HEAD",
            f"/v2/{repository}/blobs/{digest}",
            doing=f"looking for the blob '{name}'",
            expected=(200, 404),
        )
        length = answer.headers.get("Content-Length", "0")
        return int(length) if answer.status == 200 and length.isdecimal() else None

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes as they come; the last word, on their digest, is at the end.

        Args:
            repository: such as ``shop/web``.
            digest: of the blob.
            size: its length in bytes where it is known; a wrong one is found before reading, and
                more is never read.

        Raises:
            NotInRegistry: the repository has no such blob.
            DamagedContent: the bytes do not match the digest or the length.
        """
        doing = f"reading the blob '{self._name(repository, digest)}'"
        missing = "there is no such blob. Push the image again"
        path = f"/v2/{repository}/blobs/{digest}"
        hasher, count = _hash(digest), 0
        with self._http.open("GET", path, doing=doing, missing=missing) as answer:
            length = answer.headers.get("Content-Length", "")
            if size is not None and length.isdecimal() and int(length) != size:
                raise DamagedContent(
                    f"{doing}: it has {int(length):,} bytes instead of {size:,}. {_PUSH_AGAIN}"
                )
            for chunk in answer.chunks:
                hasher.update(chunk)
                count += len(chunk)
                if size is not None and count > size:
                    break
                yield chunk
        if not _is_of(digest, hasher):
            raise DamagedContent(f"{doing}: its {count:,} bytes do not match it. {_PUSH_AGAIN}")

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

        If they end in an error, the upload is cancelled and leaves nothing behind.
        """
        doing = f"uploading a blob to '{self._name(repository)}'"
        path, hasher, size = f"/v2/{repository}/blobs/uploads/", hashlib.sha256(), 0
        upload = self._http.ask("POST", path, doing=doing, expected=(202,)).location
        try:
            for piece in _pieces(chunks):
                hasher.update(piece)
                headers = {
                    "Content-Type": "application/octet-stream",
                    "Content-Range": f"{size}-{size + len(piece) - 1}",
                }
                answer = self._http.ask(
                    "PATCH", upload, doing=doing, expected=(202, 204), headers=headers, data=piece
                )
                upload, size = answer.location, size + len(piece)
            digest = f"sha256:{hasher.hexdigest()}"
            end = f"{upload}{'&' if '?' in upload else '?'}digest={quote(digest)}"
            self._http.ask("PUT", end, doing=doing, expected=(201, 204))
        except BaseException:
            self._cancel(upload)
            raise
        return digest, size

    def mount_blob(self, repository: str, digest: str, from_repository: str) -> bool:
        """Take a blob over from another repository here; False if its bytes are wanted anyway."""
        source, name = self._name(from_repository, digest), self._name(repository)
        doing = f"mounting the blob '{source}' in '{name}'"
        query = f"mount={quote(digest)}&from={quote(from_repository)}"
        path = f"/v2/{repository}/blobs/uploads/?{query}"
        answer = self._http.ask("POST", path, doing=doing, expected=(201, 202))
        if answer.status == 202:
            self._cancel(answer.location)
        return answer.status == 201

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> str:
        """Store a manifest or an index under a tag (or its own digest), and return its digest.

        Raises:
            RegistryError: the registry refused it, say because one of its blobs is missing there.
        """
        name = self._name(repository, tag)
        doing = f"storing the manifest '{name}'"
        path, headers = f"/v2/{repository}/manifests/{tag}", {"Content-Type": media_type}
        self._http.ask("PUT", path, doing=doing, expected=(201, 202), headers=headers, data=raw)
        return digest_of(raw)

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Delete a manifest and every tag that stands for it; NotInRegistry if there is none."""
        doing = f"deleting the manifest '{self._name(repository, digest)}'"
        path = f"/v2/{repository}/manifests/{digest}"
        missing = "the repository has no manifest with that digest"
        self._http.ask("DELETE", path, doing=doing, missing=missing, expected=(200, 202))

    def copy(
        self,
        source: ImageSource,
        image: RegistryImage,
        *,
        to: Reference | str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> str:
        """Copy an image into this registry, byte for byte, and return its digest.

        A blob that is there is not sent; one in another repository of this registry is taken over.

        Args:
            source: where it is read; it may be this registry.
            image: as the source read it. Of an index, it is the one image that is copied.
            to: its name here, with the tag to give it.
            progress: told how many of the image's bytes are there, and how many there will be.

        Raises:
            InvalidReference: its name is to another registry.
            DamagedContent: bytes that do not match their digest, or a blob here that is not whole:
                a registry never writes over one; ``damaged_blobs`` names it.
            RegistryError: this registry did not take it.
        """
        target, manifest, repository = self._mine(to), image.manifest, image.reference.repository
        done, total = 0, sum(blob.size for blob in manifest.blobs)

        def counted(blob: Descriptor) -> Iterator[bytes]:
            nonlocal done
            for chunk in source.open_blob(repository, blob.digest, size=blob.size):
                yield chunk
                done += len(chunk)
                progress(done, total)

        mount_from = repository if same_address(source.address, self.address) else ""
        for blob in manifest.blobs:
            if self._has(target.repository, blob, mount_from=mount_from):
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
        """Return the blobs of an image that are missing or not as its manifest says.

        With ``contents`` every blob is read, to find one whose bytes changed but not their number.
        """
        damaged = []
        for blob in manifest.blobs:
            found = self.blob_size(repository, blob.digest)
            if found != blob.size or (contents and not self._is_intact(repository, blob)):
                damaged.append(BlobDamage(blob.digest, blob.size, found))
        return damaged

    def _is_intact(self, repository: str, blob: Descriptor) -> bool:
        try:
            collections.deque(self.open_blob(repository, blob.digest, size=blob.size), maxlen=0)
        except DamagedContent:
            return False
        return True

    def _has(self, repository: str, blob: Descriptor, *, mount_from: str) -> bool:
        """Tell if a blob is there, or could be taken over from another repository here."""
        found = self.blob_size(repository, blob.digest)
        if found not in (None, blob.size):
            raise DamagedContent(
                f"copying to '{self._name(repository)}': the blob {blob.digest} has {found:,} of "
                f"{blob.size:,} bytes there. 'python3 -m labapp start' replaces what is damaged."
            )
        if found is None and mount_from:
            return self.mount_blob(repository, blob.digest, mount_from)
        return found is not None

    def _ask_manifest(self, method: str, name: Reference) -> Answer:
        path = f"/v2/{name.repository}/manifests/{name.identifier}"
        doing = f"reading the manifest '{name}'"
        try:
            return self._http.ask(method, path, doing=doing, headers=_ACCEPT)
        except NotInRegistry as error:
            raise NotInRegistry(f"{doing}: {self._why_not(name)}") from error

    def _why_not(self, name: Reference) -> str:
        """Tell a missing repository from a missing tag, with what there is instead."""
        try:
            tags = next(self._tag_pages(name.repository), [])
        except NotInRegistry:
            return (
                f"there is no repository '{name.repository}' at '{self.address}'. "
                "Check the name, or push the image first."
            )
        if name.digest:
            return "the repository has no manifest with that digest. Copy all of a digest it has."
        there = f"the tags {', '.join(sorted(tags)[-12:])}" if tags else "no tag at all"
        return f"there is no tag '{name.tag}', the repository has {there}. Take one, or push it."

    def _tag_pages(self, repository: str) -> Iterator[list[str]]:
        return self._http.pages(
            f"/v2/{repository}/tags/list?n={PAGE}",
            "tags",
            doing=f"listing the tags of '{self._name(repository)}'",
            missing=f"there is no repository '{repository}'",
        )

    def _name(self, repository: str, identifier: str = "") -> Reference:
        """Return what is asked for as a reference, which refuses a wrong name before it is sent.

        A registry answers it with a bare 404, which would send the learner searching.
        """
        if ":" in identifier:
            return Reference(self.address, repository, digest=identifier)
        return Reference(self.address, repository, identifier or None)

    def _mine(self, reference: Reference | str) -> Reference:
        """Read a reference, which must be to this registry."""
        name = Reference.parse(reference) if isinstance(reference, str) else reference
        if not same_address(name.registry, self.address):
            raise InvalidReference(
                f"looking for '{name}': it is in the registry '{name.registry}', not in "
                f"'{self.address}'. Write it as '{self.address}/{name.repository}…'."
            )
        return name

    def _cancel(self, upload: str) -> None:
        """Give an upload up; the registry's own purge gets what can't be cancelled now."""
        with contextlib.suppress(LabError):
            self._http.ask("DELETE", upload, doing="cancelling an upload", expected=(200, 204))


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Gather chunks of any size into pieces of about PIECE_BYTES, none of them empty."""
    piece = bytearray()
    for chunk in chunks:
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _hash(digest: str, data: bytes = b"") -> hashlib._Hash:
    return hashlib.new(digest.partition(":")[0], data)


def _is_of(digest: str, hasher: hashlib._Hash) -> bool:
    return hasher.hexdigest() == digest.partition(":")[2]
