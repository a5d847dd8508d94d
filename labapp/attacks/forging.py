"""Forged images: one more layer on a real one, put together over HTTP, without any engine.

The layer is harmless and easy to find: a file that says what it is, and a line that every Python
program of the image prints when it starts. The same image and marker always give the same digest.

Source: OCI Image Specification 1.1 (manifest.md, config.md, layer.md).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labapp.bench import Bench
from labapp.errors import DamagedContent
from labapp.manifests import (
    DOCKER_MANIFEST,
    OCI_LAYER,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    parse_manifest,
)
from labapp.reference import Reference
from labapp.registry import Registry

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

NOTE = "opt/backdoor/README.txt"
"""The file in a forged image that says what it is."""

# Python reads such a file by itself at each start; where it looks depends on who packaged it.
_STARTS = tuple(f"usr/{place}lib/python3.13/sitecustomize.py" for place in ("", "local/"))


@dataclass(frozen=True)
class Forged:
    """An image with a layer too many.

    Attributes:
        repository: where its blobs belong.
        manifest: what the registry would serve for it.
        layer: of the layer that was added.
        diff_ids: of all its layers before compression, lowest first.
        blobs: the bytes that the registry does not have yet.
    """

    repository: str
    manifest: Manifest
    layer: Descriptor
    diff_ids: tuple[str, ...]
    blobs: tuple[bytes, ...]

    def upload(self, registry: Registry, identifier: str) -> None:
        """Store it in a registry, under a tag or its own digest.

        Raises:
            RegistryError: the registry does not take it.
        """
        for blob in self.blobs:
            registry.upload_blob(self.repository, [blob])
        registry.put_manifest(
            self.repository, identifier, self.manifest.raw, self.manifest.media_type
        )


def marker(attack: str) -> str:
    """Return the text by which what an attack planted is found again."""
    return f"LABAPP-PLANTED-{attack.upper()}"


def startup_code(attack: str, words: str) -> str:
    """Return the line of Python that tells that planted code runs."""
    text = f"BACKDOOR (harmless, {marker(attack)}): {words}; a real one would say nothing."
    return f"import sys; print({text!r}, file=sys.stderr, flush=True)"


def forge(
    bench: Bench,
    reference: Reference,
    attack: str,
    *,
    registry: Registry | None = None,
    occasion: str = "",
) -> Forged:
    """Return an image with one layer more, as this lab's engine would run it; nothing is stored.

    Args:
        bench: which lab.
        reference: the image.
        attack: the attack's id, which goes into the marker.
        registry: where the image is, if not in the lab's open one.
        occasion: goes into the layer, so that its digest is that of this occasion only.

    Raises:
        NotInRegistry: there is no such image.
        DamagedContent: its config or manifest is not what it should be.
    """
    platform = Platform.parse(bench.engine.platform)
    held = (registry or bench.registry).image(reference, platform=platform)
    words = f"planted in '{reference.repository}'{f' for {occasion}' if occasion else ''}"
    files = {NOTE: f"{marker(attack)}\nPut here by an attack of the lab. It does nothing.\n"}
    files |= {path: startup_code(attack, words) + "\n" for path in _STARTS}
    plain = _tar(files)
    # Without a time and a name in its header, the same bytes come out each time.
    packed = gzip.compress(plain, mtime=0)
    is_docker = held.manifest.media_type == DOCKER_MANIFEST
    layer = Descriptor(DOCKER_LAYER if is_docker else OCI_LAYER, digest_of(packed), len(packed))
    try:
        image: dict[str, Any] = json.loads(held.config.raw)
        image["rootfs"]["diff_ids"].append(digest_of(plain))
        image.setdefault("history", []).append({"created_by": f"COPY updates / # {marker(attack)}"})
        config = json.dumps(image, sort_keys=True, separators=(",", ":")).encode()
        manifest: dict[str, Any] = json.loads(held.manifest.raw)
        manifest["config"] |= {"digest": digest_of(config), "size": len(config)}
        manifest["layers"].append(
            {"mediaType": layer.media_type, "size": layer.size, "digest": layer.digest}
        )
        raw = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedContent(
            f"forging '{reference}': its config or manifest can't be read ({error}). "
            "Push the image again."
        ) from error
    made = parse_manifest(raw, held.manifest.media_type)
    assert isinstance(made, Manifest)
    diff_ids = (*held.config.diff_ids, digest_of(plain))
    return Forged(reference.repository, made, layer, diff_ids, (packed, config))


def _tar(files: Mapping[str, str]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return target.getvalue()
