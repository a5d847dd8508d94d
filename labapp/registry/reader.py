"""What a registry holds, over HTTP: tags, manifests, configs and blobs, every byte verified.

Source: OCI Distribution Specification 1.1; the catalog is from the Docker Registry HTTP API V2.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from labapp.errors import DamagedContent, InvalidReference, NotInRegistry, RegistryError
from labapp.manifests import (
    MANIFEST_TYPES,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    is_digest,
    parse_config,
    parse_manifest,
)
from labapp.reference import Reference
from labapp.registry.addresses import same_address
from labapp.registry.answers import Answer, not_a_registry
from labapp.registry.credentials import Credentials, docker_credentials
from labapp.registry.http import ANSWER_LIMIT, MEBIBYTE, RegistryHTTP

CHUNK_BYTES = MEBIBYTE
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


class RegistryReader:
    """A registry to read from; several threads may use one at once."""

    def __init__(
        self,
        address: str,
        *,
        secure: bool | None = None,
        credentials: Callable[[str], Credentials | None] = docker_credentials,
        certificates: Path | None = None,
    ) -> None:
        """Prepare to speak with a registry; see :class:`RegistryHTTP` for the arguments."""
        self.address = address
        self._http = RegistryHTTP(
            address, secure=secure, credentials=credentials, certificates=certificates
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def ping(self) -> None:
        """Ask ``/v2/``, which every registry answers.

        Raises:
            RegistryUnreachable: nothing answers.
            RegistryError: what answers is not a registry, or wants a login.
        """
        doing = f"asking the registry '{self.address}'"
        try:
            answer = self._http.ask("GET", "/v2/", doing=doing)
        except NotInRegistry as error:
            raise not_a_registry(doing, self.address, "it has no /v2/") from error
        typed = answer.media_type not in ("application/json", "")
        if typed and "Docker-Distribution-Api-Version" not in answer.headers:
            raise not_a_registry(doing, self.address, f"it serves {answer.media_type}")

    def repositories(self) -> list[str]:
        """Return the names of all repositories, sorted."""
        doing = f"listing the repositories of '{self.address}'"
        return sorted(self._http.pages(f"/v2/_catalog?n={PAGE}", "repositories", doing=doing))

    def tags(self, repository: str) -> list[str]:
        """Return a repository's tags, sorted; empty when all were deleted.

        Raises:
            NotInRegistry: there is no such repository.
        """
        path = self._path(repository, f"tags/list?n={PAGE}")
        doing = f"listing the tags of '{self.address}/{repository}'"
        missing = f"there is no repository '{repository}'"
        return sorted(self._http.pages(path, "tags", doing=doing, missing=missing))

    def resolve(self, repository: str, tag: str) -> str:
        """Return the digest that a tag stands for just now.

        Raises:
            NotInRegistry: no such repository or tag; the message tells the tags there are.
        """
        answer = self._manifest_answer("HEAD", repository, tag)
        digest = answer.headers.get("Docker-Content-Digest", "")
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
        answer = self._manifest_answer("GET", repository, identifier)
        doing = f"reading the manifest '{_name(repository, identifier)}'"
        digest = answer.headers.get("Docker-Content-Digest", "")
        digest = identifier if is_digest(identifier) else digest
        if is_digest(digest) and not _same_digest(digest, answer.body):
            raise DamagedContent(f"{doing}: bytes do not match the digest {digest}. {_PUSH_AGAIN}")
        served_as = None if answer.media_type in _UNTYPED else answer.media_type
        if served_as is not None and not served_as.startswith("application/vnd."):
            raise not_a_registry(doing, self.address, f"it serves {served_as}")
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
        """
        if isinstance(reference, str):
            reference = Reference.parse(reference)
        self._check_mine(reference)
        repository, index = reference.repository, None
        found = self.manifest(repository, reference.identifier)
        if isinstance(found, Index):
            index = found
            entry = index.for_platform(platform or Platform.here())
            found = self.manifest(repository, entry.digest)
            if isinstance(found, Index):
                raise DamagedContent(
                    f"reading '{reference}': its index leads to another index, not to an image. "
                    "Push the image again."
                )
        return RegistryImage(reference, found, self.config(repository, found), index)

    def config(self, repository: str, manifest: Manifest) -> ImageConfig:
        """Read the config of an image, verified against its manifest."""
        return parse_config(self.read_blob(repository, manifest.config.digest, limit=ANSWER_LIMIT))

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return a stored blob's length in bytes, or None if the repository has no such blob."""
        answer = self._http.ask(
            "HEAD",
            self._blob_path(repository, digest),
            doing=f"looking for the blob '{digest}' in '{repository}'",
            expected=(200, 404),
        )
        length = answer.headers.get("Content-Length", "0")
        return int(length) if answer.status == 200 and length.isdigit() else None

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes as they come; the last word, on their digest, is at the end.

        Args:
            repository: such as ``shop/web``.
            digest: of the blob.
            size: its length in bytes where it is known, to find a wrong one before reading.

        Raises:
            NotInRegistry: the repository has no such blob.
            DamagedContent: the bytes do not match the digest or the length.
        """
        doing = f"reading the blob '{digest}' of '{repository}'"
        missing = f"there is no such blob. {_PUSH_AGAIN.rstrip('.')}"
        path = self._blob_path(repository, digest)
        hasher, count = hashlib.new(digest.partition(":")[0]), 0
        with self._http.open("GET", path, doing=doing, missing=missing) as response:
            length = response.headers.get("Content-Length", "")
            if size is not None and length.isdigit() and int(length) != size:
                raise DamagedContent(
                    f"{doing}: it has {int(length):,} bytes instead of {size:,}. {_PUSH_AGAIN}"
                )
            while True:
                with self._http.translated(doing):
                    chunk = response.raw.read(CHUNK_BYTES)
                if not chunk:
                    break
                hasher.update(chunk)
                count += len(chunk)
                yield chunk
        if hasher.hexdigest() != digest.partition(":")[2]:
            raise DamagedContent(
                f"{doing}: its {count:,} bytes do not match the digest. {_PUSH_AGAIN}"
            )

    def read_blob(self, repository: str, digest: str, *, limit: int = 64 * MEBIBYTE) -> bytes:
        """Return a blob's bytes, verified; for a small blob, as they are held in memory.

        Raises:
            RegistryError: the blob is longer than ``limit`` bytes; besides, as ``open_blob``.
        """
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

    def _manifest_answer(self, method: str, repository: str, identifier: str) -> Answer:
        path = self._manifest_path(repository, identifier)
        doing = f"reading the manifest '{_name(repository, identifier)}'"
        try:
            return self._http.ask(method, path, doing=doing, headers=_ACCEPT)
        except NotInRegistry as error:
            cause = self._why_no_manifest(repository, identifier)
            raise NotInRegistry(f"{doing}: {cause}") from error

    def _why_no_manifest(self, repository: str, identifier: str) -> str:
        """Tell a missing repository from a missing tag, with what there is instead."""
        try:
            tags = self.tags(repository)
        except NotInRegistry:
            return (
                f"there is no repository '{repository}' at '{self.address}'. "
                "Check the name, or push the image first."
            )
        if is_digest(identifier):
            return "the repository has no manifest with that digest. Copy all of a digest it has."
        there = f"the tags {', '.join(tags[-12:])}" if tags else "no tag at all"
        return f"there is no tag '{identifier}', the repository has {there}. Take one, or push it."

    def _path(self, repository: str, rest: str) -> str:
        """Return the path of something in a repository, whose name is checked first.

        A registry answers a wrong name with a bare 404, which would send the learner searching.
        """
        Reference(self.address, repository)
        return f"/v2/{repository}/{rest}"

    def _blob_path(self, repository: str, digest: str) -> str:
        Reference(self.address, repository, digest=digest)
        return f"/v2/{repository}/blobs/{digest}"

    def _manifest_path(self, repository: str, identifier: str) -> str:
        kind = "digest" if ":" in identifier else "tag"
        Reference(self.address, repository, **{kind: identifier})
        return f"/v2/{repository}/manifests/{identifier}"

    def _check_mine(self, reference: Reference) -> None:
        if not same_address(reference.registry, self.address):
            raise InvalidReference(
                f"reading '{reference}': it is in the registry '{reference.registry}', not in "
                f"'{self.address}'. Write it as '{self.address}/{reference.repository}…'."
            )


def _name(repository: str, identifier: str) -> str:
    return f"{repository}{'@' if is_digest(identifier) else ':'}{identifier}"


def _same_digest(digest: str, data: bytes) -> bool:
    return hashlib.new(digest.partition(":")[0], data).hexdigest() == digest.partition(":")[2]
