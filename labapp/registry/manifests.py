"""What a registry stores about an image: indexes, manifests and configs, read from their bytes.

They come from strangers: ``read_json`` checks each field for its type, by the shapes here.

Sources: OCI Image Specification 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and
Docker's Image Manifest Version 2, Schema 2, which differs only in its media types.
"""

from __future__ import annotations

import hashlib
import json
import platform as machine
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from labapp.errors import NotInRegistry, damaged
from labapp.reference import is_digest
from labapp.registry.http import FieldError, read_json

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

MANIFEST_TYPES = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
"""The media types that the lab can read, to be joined into an ``Accept`` header."""

_USUAL = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
"""The variants that engines take an unsaid one for (containerd, platforms.Normalize)."""

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_DESCRIPTOR = {
    "mediaType": str,
    "digest": str,
    "size": int,
    "platform": {"os": str, "architecture": str, "variant": str},
}
_MANIFEST = {
    "mediaType": str,
    "artifactType": str,
    "config": _DESCRIPTOR,
    "layers": [_DESCRIPTOR],
    "manifests": [_DESCRIPTOR],
}
_RUN = {"Env": [str], "Entrypoint": [str], "Cmd": [str], "User": str, "Labels": {...: str}}
_CONFIG = {
    "os": str,
    "architecture": str,
    "variant": str,
    "config": _RUN,
    "rootfs": {"diff_ids": [str]},
    "history": [{"created_by": str, "empty_layer": bool}],
}


@dataclass(frozen=True)
class Platform:
    """What a machine must be to run an image, as in ``linux/arm64/v8``."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``os/architecture`` or ``os/architecture/variant``; ValueError for anything else."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(
                f"reading the platform '{text}': it is not of the form os/architecture or "
                "os/architecture/variant. Write it as in 'linux/amd64' or 'linux/arm64/v8'."
            )
        return cls(*parts)

    @classmethod
    def here(cls) -> Platform:
        """Return the platform of this machine's containers, which are Linux on every system."""
        processor = machine.machine().lower()
        return cls("linux", {"x86_64": "amd64", "aarch64": "arm64"}.get(processor, processor))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def level(self) -> str:
        """The variant, or the usual one; a machine runs what is for a lower one, too."""
        return self.variant or _USUAL.get(self.architecture, "")

    def can_run(self, other: Platform) -> bool:
        """Tell if an image for another platform runs here."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return not self.level or other.level <= self.level


@dataclass(frozen=True)
class Descriptor:
    """A pointer to content: its media type, its digest and its length in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None


@dataclass(frozen=True)
class Manifest:
    """One image for one platform: a config and its layers in order, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    raw: bytes = field(repr=False)
    digest: str
    artifact_type: str = ""

    @property
    def download_bytes(self) -> int:
        """Bytes of the compressed layers; a layer that occurs twice is fetched once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The config and the layers, each once."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())

    @property
    def other_than_image(self) -> str:
        """What it is if it is no image: a chart, a signature, an attestation; empty for an image.

        Source: OCI manifest.md, "Guidelines for Artifact Usage".
        """
        layers, config = [layer.media_type for layer in self.layers], self.config.media_type
        files = not layers or any(kind.startswith(_LAYERS) for kind in layers)
        if config in (OCI_CONFIG, DOCKER_CONFIG) and files:
            return ""
        says_little = config in (OCI_CONFIG, DOCKER_CONFIG, OCI_EMPTY) and layers
        return self.artifact_type or (layers[0] if says_little else config)


@dataclass(frozen=True)
class Index:
    """The manifests of one image for several platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    raw: bytes = field(repr=False)
    digest: str
    blobs: ClassVar[tuple[Descriptor, ...]] = ()

    def for_platform(self, platform: Platform) -> Descriptor:
        """Return the entry that a machine of this platform would take: the highest that runs."""
        fitting = [
            (each.platform == platform, each.platform.level, each)
            for each in self.manifests
            if each.platform and platform.can_run(each.platform)
        ]
        if not fitting:
            found = [e.platform for e in self.manifests if e.platform]
            # Attestations are for 'unknown/unknown'.
            known = ", ".join(str(one) for one in found if one.os != "unknown")
            raise NotInRegistry(
                f"choosing the image for '{platform}': the index {self.digest} offers "
                f"{known or 'none'}. Name one of those platforms, or take another image."
            )
        return max(fitting, key=lambda each: each[:2])[2]


@dataclass(frozen=True)
class History:
    """How one step of the build changed the image; an empty layer changed the config only."""

    created_by: str
    empty_layer: bool = False

    @property
    def instruction(self) -> str:
        """The instruction as a Dockerfile has it, as far as the builder kept it."""
        text = self.created_by.removesuffix("# buildkit").strip()
        # Builders write the shell, and the build arguments in force, in front of what a RUN runs.
        shell, found, command = text.partition("/bin/sh -c ")
        if found and (shell in {"", "RUN "} or shell.removeprefix("RUN ").startswith("|")):
            text = f"RUN {command}"
        text = text.replace("RUN #(nop) ", "").strip()
        # The classic builder names what it copied by a digest.
        return re.sub(r"\b(?:file|dir|multi):[0-9a-f]{64} in ", "… ", text)


@dataclass(frozen=True)
class ImageConfig:
    """How to run an image, and what it was built from.

    ``diff_ids`` are the digests of the layers before compression, lowest first; ``history`` the
    build's steps, oldest first, and empty where the builder wrote none.
    """

    platform: Platform
    env: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    cmd: tuple[str, ...] | None
    user: str
    labels: Mapping[str, str] = field(hash=False)
    diff_ids: tuple[str, ...]
    history: tuple[History, ...]
    raw: bytes = field(repr=False)


def canonical_json(content: Any) -> bytes:
    """Return the JSON that the same content always gives, byte for byte."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of some bytes: the algorithm, ``:`` and hexadecimal digits."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def parse_manifest(raw: bytes, media_type: str | None = None) -> Manifest | Index:
    """Read a manifest or an index, as the registry served it and called it, or DamagedContent."""
    digest = digest_of(raw)
    with _damaged(f"reading the manifest '{digest}'"):
        found = read_json(raw, _MANIFEST)
        says = found.get("mediaType")
        if media_type and says and says != media_type:
            raise FieldError(f"it was served as '{media_type}', but says that it is '{says}'")
        # OCI 1.0 allowed to leave it out.
        media_type = media_type or says or (OCI_INDEX if "manifests" in found else OCI_MANIFEST)
        if media_type not in MANIFEST_TYPES:
            raise FieldError(f"its media type '{media_type}' is not one of an image")
        if media_type in (OCI_INDEX, DOCKER_INDEX):
            return Index(media_type, tuple(map(_descriptor, found["manifests"])), raw, digest)
        config, layers = _descriptor(found["config"]), tuple(map(_descriptor, found["layers"]))
        kind = found.get("artifactType", "")
        return Manifest(media_type, config, layers, raw, digest, kind)


def parse_config(raw: bytes) -> ImageConfig:
    """Read an image's config (OCI config.md, "Properties"); DamagedContent if it is none."""
    with _damaged(f"reading the image config '{digest_of(raw)}'"):
        found = read_json(raw, _CONFIG)
        run = found.get("config", {})
        return ImageConfig(
            platform=Platform(found["os"], found["architecture"], found.get("variant") or None),
            env=tuple(run.get("Env", ())),
            entrypoint=tuple(run["Entrypoint"]) if "Entrypoint" in run else None,
            cmd=tuple(run["Cmd"]) if "Cmd" in run else None,
            user=run.get("User", ""),
            labels=run.get("Labels", {}),
            diff_ids=tuple(found["rootfs"].get("diff_ids", ())),
            history=tuple(
                History(step.get("created_by", ""), step.get("empty_layer", False))
                for step in found.get("history", ())
            ),
            raw=raw,
        )


def index_of(manifests: Iterable[tuple[Manifest, Platform]]) -> bytes:
    """Return an index of the manifests of one image for several platforms."""
    entries = [
        {
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": len(manifest.raw),
            "platform": {name: text for name, text in vars(platform).items() if text},
        }
        for manifest, platform in manifests
    ]
    return canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def layer_history(
    manifest: Manifest, config: ImageConfig
) -> list[tuple[Descriptor, History | None]]:
    """Pair each layer with the step that made it, lowest first.

    Where the numbers of layers and of steps that made one differ, nothing tells which belongs to
    which, and every step is ``None``.
    """
    steps = [step for step in config.history if not step.empty_layer]
    known = len(steps) == len(manifest.layers)
    return [(layer, steps[n] if known else None) for n, layer in enumerate(manifest.layers)]


@contextmanager
def _damaged(doing: str) -> Iterator[None]:
    try:
        yield
    except (FieldError, KeyError) as error:
        cause = error if isinstance(error, FieldError) else f"its field {error} is missing"
        raise damaged(doing, cause) from error


def _descriptor(found: Mapping[str, Any]) -> Descriptor:
    if not is_digest(found["digest"]):
        raise FieldError(f"its field 'digest' has '{found['digest'][:80]}', which is not one")
    if not 0 <= found["size"] < 2**63:
        raise FieldError(f"the size of '{found['digest']}' is {found['size']}")
    told = found.get("platform", {})
    platform = None  # and half of one is none, too: for no machine, and in no one's way
    if told.get("os") and told.get("architecture"):
        platform = Platform(told["os"], told["architecture"], told.get("variant") or None)
    return Descriptor(found["mediaType"], found["digest"], found["size"], platform)
