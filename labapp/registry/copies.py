"""Whole images from one place into a registry, blob by blob, with labels added on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from labapp.errors import DamagedContent
from labapp.manifests import Index, Manifest, Platform, digest_of, parse_manifest
from labapp.registry import Registry

Progress = Callable[[int, int], None]
"""Called with the bytes that have passed and their number in all."""


class ImageSource(Protocol):
    """Where images can be read from: a registry, or an image layout in a file."""

    def manifest(self, repository: str, identifier: str) -> Manifest | Index:
        """Return what a tag or digest stands for, verified."""

    def read_blob(self, repository: str, digest: str) -> bytes:
        """Return a small blob, verified."""

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        """Yield a blob's bytes, verified at the end."""


@dataclass(frozen=True)
class Labelled:
    """An image with labels added: its layers are as before, its config and manifest are new."""

    manifest: Manifest
    config: bytes


def find_image(
    source: ImageSource, repository: str, identifier: str, *, platform: Platform
) -> Manifest:
    """Return the manifest of one image, by way of an index where there is one.

    Raises:
        NotInRegistry: no such image, or not for this platform.
        DamagedContent: an index that leads to no image, or bytes that do not match their digest.
    """
    found = source.manifest(repository, identifier)
    if isinstance(found, Index):
        found = source.manifest(repository, found.for_platform(platform).digest)
    if isinstance(found, Index):
        raise DamagedContent(
            f"reading '{repository}:{identifier}': its index leads to another index, not to an "
            "image. Push the image again."
        )
    return found


def add_labels(manifest: Manifest, config: bytes, labels: Mapping[str, str]) -> Labelled:
    """Return an image with labels added to its config.

    Args:
        manifest: of the image.
        config: the bytes of its config.
        labels: the labels to add; one that is there already is replaced.

    Raises:
        DamagedContent: the config or the manifest is not JSON.
    """
    try:
        image: dict[str, Any] = json.loads(config)
        run = image["config"] = image.get("config") or {}
        run["Labels"] = {**(run.get("Labels") or {}), **labels}
        written: dict[str, Any] = json.loads(manifest.raw)
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedContent(
            f"reading the config of the image '{manifest.digest}': {error}. Push the image again."
        ) from error
    new = _json(image)
    written["config"] = {**written["config"], "digest": digest_of(new), "size": len(new)}
    labelled = parse_manifest(_json(written), manifest.media_type)
    assert isinstance(labelled, Manifest)
    return Labelled(labelled, new)


def copy_image(
    source: ImageSource,
    target: Registry,
    repository: str,
    image: Manifest,
    *,
    tag: str,
    labels: Mapping[str, str],
    progress: Progress,
) -> str:
    """Copy an image into a registry under the same repository, and return its new digest.

    Layers that are there already are not sent; the target's word on that is checked at the end.

    Args:
        source: where the image is read.
        target: the registry to write to.
        repository: its repository, in both.
        image: its manifest.
        tag: the tag to give it.
        labels: labels to add to its config.
        progress: told how many of the image's bytes are there.

    Raises:
        DamagedContent: bytes that do not match their digest, at either end.
        RegistryError: the target did not take them.
    """
    labelled = add_labels(image, source.read_blob(repository, image.config.digest), labels)
    layers = {layer.digest: layer for layer in image.layers}.values()
    total, done = sum(layer.size for layer in layers), 0
    for layer in layers:
        if target.blob_size(repository, layer.digest) != layer.size:
            chunks = source.open_blob(repository, layer.digest, size=layer.size)
            target.upload_blob(repository, _counted(chunks, done, total, progress))
        done += layer.size
        progress(done, total)
    target.upload_blob(repository, [labelled.config])
    return put_image(target, repository, tag, labelled.manifest)


def put_image(target: Registry, repository: str, tag: str, image: Manifest) -> str:
    """Store the manifest of an image whose blobs were uploaded, and return its digest.

    Raises:
        DamagedContent: a blob is not whole there: one that was damaged before is never replaced.
        RegistryError: the target did not take it.
    """
    digest = target.put_manifest(repository, tag, image.raw, image.media_type)
    if damage := target.damaged_blobs(repository, image):
        raise DamagedContent(
            f"storing '{repository}:{tag}' in '{target.address}': {damage[0]} there. "
            "'python3 -m labapp start' replaces what is damaged."
        )
    return digest


def _counted(
    chunks: Generator[bytes], done: int, total: int, progress: Progress
) -> Generator[bytes]:
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        progress(done, total)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
