"""A registry to read from and to write to: uploads, manifests, and a check that blobs are whole.

Source: OCI Distribution Specification 1.1, "Push" and "Content Management".
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from labapp.errors import DamagedContent, LabError, RegistryError
from labapp.manifests import Descriptor, Manifest, digest_of
from labapp.registry.answers import Answer
from labapp.registry.reader import RegistryReader

CHECK_THREADS = 4
PIECE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class BlobDamage:
    """One blob that is not what its manifest says; ``found_bytes`` is None if it is missing."""

    digest: str
    expected_bytes: int
    found_bytes: int | None
    what: Literal["missing", "truncated", "altered"]

    def __str__(self) -> str:
        if self.found_bytes is None:
            return f"blob {self.digest} is missing"
        if self.what == "altered":
            return f"blob {self.digest} has been altered"
        return f"blob {self.digest} has {self.found_bytes:,} bytes of {self.expected_bytes:,}"


class Registry(RegistryReader):
    """A registry to read from and to write to; several threads may use one at once."""

    def upload_blob(self, repository: str, chunks: Iterable[bytes]) -> tuple[str, int]:
        """Store a blob as its bytes come, and return its digest and its length in bytes.

        The bytes go in pieces of 8 MiB: CNCF Distribution can cancel an upload only as of its last
        whole piece. If they end in an error, the upload is cancelled and leaves nothing behind.

        Raises:
            RegistryError: the registry did not take it, say because its disk is full.
            Exception: whatever the iterable raises.
        """
        doing = f"uploading a blob to '{self.address}/{repository}'"
        path = self._path(repository, "blobs/uploads/")
        hasher, size = hashlib.sha256(), 0
        upload = _location(self._http.ask("POST", path, doing=doing, expected=(202,)), doing)
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
                upload, size = _location(answer, doing), size + len(piece)
            digest = f"sha256:{hasher.hexdigest()}"
            end = f"{upload}{'&' if '?' in upload else '?'}digest={quote(digest)}"
            self._http.ask("PUT", end, doing=doing, expected=(201, 204))
        except BaseException:
            self._cancel(upload)
            raise
        return digest, size

    def mount_blob(self, repository: str, digest: str, from_repository: str) -> bool:
        """Take a blob over from another repository of this registry, without sending it.

        Returns:
            False if the registry wants the bytes after all.
        """
        doing = f"mounting the blob '{digest}' of '{from_repository}' in '{repository}'"
        self._blob_path(from_repository, digest)  # checks them
        query = f"?mount={quote(digest)}&from={quote(from_repository)}"
        path = self._path(repository, f"blobs/uploads/{query}")
        answer = self._http.ask("POST", path, doing=doing, expected=(201, 202))
        if answer.status == 202:
            self._cancel(_location(answer, doing))
        return answer.status == 201

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> str:
        """Store a manifest or an index under a tag (or its own digest), and return its digest.

        Raises:
            RegistryError: the registry refused it, say because one of its blobs is missing there.
            DamagedContent: the registry stored other bytes.
        """
        doing = f"storing the manifest '{repository}:{tag}'"
        path = self._manifest_path(repository, tag)
        headers = {"Content-Type": media_type}
        answer = self._http.ask(
            "PUT", path, doing=doing, expected=(201, 202), headers=headers, data=raw
        )
        digest = digest_of(raw)
        if answer.headers.get("Docker-Content-Digest", digest) != digest:
            raise DamagedContent(
                f"{doing}: the registry calls it {answer.headers['Docker-Content-Digest']}, its "
                f"digest is {digest}. Try again."
            )
        return digest

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Delete a manifest and every tag that stands for it.

        Raises:
            NotInRegistry: the repository has no such manifest.
            RegistryError: the registry does not allow it.
        """
        path = self._manifest_path(repository, digest)
        doing = f"deleting the manifest '{repository}@{digest}'"
        missing = "the repository has no manifest with that digest"
        self._http.ask("DELETE", path, doing=doing, missing=missing, expected=(200, 202))

    def damaged_blobs(
        self, repository: str, manifest: Manifest, *, contents: bool = False
    ) -> list[BlobDamage]:
        """Return the blobs of an image that are missing or not as its manifest says.

        Args:
            repository: where the image is.
            manifest: of the image.
            contents: also read every blob, to find one whose bytes changed but not their number.
        """

        def check(blob: Descriptor) -> BlobDamage | None:
            found = self.blob_size(repository, blob.digest)
            if found is None:
                return BlobDamage(blob.digest, blob.size, None, "missing")
            if found != blob.size:
                what: Literal["truncated", "altered"] = "altered"
                if found < blob.size:
                    what = "truncated"
                return BlobDamage(blob.digest, blob.size, found, what)
            if contents and not self._is_intact(repository, blob):
                return BlobDamage(blob.digest, blob.size, found, "altered")
            return None

        with ThreadPoolExecutor(CHECK_THREADS) as threads:
            return [damage for damage in threads.map(check, manifest.blobs) if damage]

    def _is_intact(self, repository: str, blob: Descriptor) -> bool:
        try:
            for _ in self.open_blob(repository, blob.digest, size=blob.size):
                pass
        except DamagedContent:
            return False
        return True

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


def _location(answer: Answer, doing: str) -> str:
    location = answer.headers.get("Location")
    if not location:
        raise RegistryError(f"{doing}: the registry did not say where to. Try another registry.")
    return location
