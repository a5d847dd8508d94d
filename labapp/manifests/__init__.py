"""What a registry stores about an image: indexes, manifests and configs, read from their bytes.

Sources: OCI Image Specification 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and
Docker's Image Manifest Version 2, Schema 2, which differs only in its media types.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from labapp.errors import DamagedContent, NotInRegistry
from labapp.manifests.fields import FieldError, Fields
from labapp.manifests.platforms import Platform as Platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFEST_TYPES = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
"""The media types that the lab can read, to be joined into an ``Accept`` header."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True)
class Descriptor:
    """A pointer to content: its media type, its digest and its length in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Manifest:
    """One image for one platform: a config and its layers in order, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)
    raw: bytes = field(repr=False)
    digest: str

    @property
    def download_bytes(self) -> int:
        """Bytes of the compressed layers; a layer that occurs twice is fetched once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The config and the layers, each once."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())


@dataclass(frozen=True)
class Index:
    """The manifests of one image for several platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)
    raw: bytes = field(repr=False)
    digest: str

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms in the index's order, without attestations (``unknown/unknown``)."""
        found = (entry.platform for entry in self.manifests)
        return tuple(platform for platform in found if platform and platform.os != "unknown")

    def for_platform(self, platform: Platform) -> Descriptor:
        """Return the entry that a machine of this platform would take: the same variant first.

        Raises:
            NotInRegistry: the index has none; the message lists what it has.
        """
        fitting = [e for e in self.manifests if e.platform and platform.can_run(e.platform)]
        if not fitting:
            offered = ", ".join(map(str, self.platforms)) or "no platform at all"
            raise NotInRegistry(
                f"choosing the image for '{platform}': the index {self.digest} offers {offered}. "
                "Name one of those platforms, or take another image."
            )
        return next((entry for entry in fitting if entry.platform == platform), fitting[0])


@dataclass(frozen=True)
class History:
    """How one step of the build changed the image; an empty layer changed the config only."""

    created_by: str
    created: datetime | None = None
    comment: str = ""
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

    Attributes:
        diff_ids: the digests of the layers before compression, lowest first.
        history: the build's steps, oldest first; empty where the builder wrote none.
    """

    platform: Platform
    created: datetime | None
    env: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    cmd: tuple[str, ...] | None
    user: str
    working_dir: str
    exposed_ports: tuple[str, ...]
    labels: Mapping[str, str] = field(hash=False)
    diff_ids: tuple[str, ...]
    history: tuple[History, ...]
    raw: bytes = field(repr=False)
    digest: str


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes: ``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    """Tell if a text is a whole digest (OCI descriptor.md, "Digests") of a known algorithm."""
    return _DIGEST.fullmatch(text) is not None


def parse_manifest(raw: bytes, media_type: str | None = None) -> Manifest | Index:
    """Read a manifest or an index from its bytes.

    Args:
        raw: the bytes as the registry served them.
        media_type: what the registry called them; by default what they say of themselves.

    Raises:
        DamagedContent: not JSON, the old schema 1, another media type, or a field missing or wrong.
    """
    digest = digest_of(raw)
    try:
        fields = Fields.read(raw)
        media_type = _media_type(fields, media_type)
        annotations = fields.mapping("annotations")
        if media_type in (OCI_INDEX, DOCKER_INDEX):
            fields.need("manifests")
            entries = tuple(_descriptor(entry) for entry in fields.objects("manifests"))
            return Index(media_type, entries, annotations, raw, digest)
        fields.need("config", "layers")
        config = _descriptor(fields.object("config"))
        layers = tuple(_descriptor(layer) for layer in fields.objects("layers"))
        return Manifest(media_type, config, layers, annotations, raw, digest)
    except FieldError as error:
        raise DamagedContent(
            f"reading the manifest '{digest}': {error}. Push the image again."
        ) from error


def parse_config(raw: bytes) -> ImageConfig:
    """Read an image's config from its bytes (OCI config.md, "Properties").

    Raises:
        DamagedContent: not JSON, or a field missing or wrong.
    """
    digest = digest_of(raw)
    try:
        fields = Fields.read(raw)
        fields.need("rootfs")
        run = fields.object("config")
        return ImageConfig(
            platform=_platform(fields),
            created=fields.time("created"),
            env=run.texts("Env") or (),
            entrypoint=run.texts("Entrypoint"),
            cmd=run.texts("Cmd"),
            user=run.text("User"),
            working_dir=run.text("WorkingDir"),
            exposed_ports=tuple(run.object("ExposedPorts").values),
            labels=run.mapping("Labels"),
            diff_ids=fields.object("rootfs").texts("diff_ids") or (),
            history=tuple(_history(step) for step in fields.objects("history")),
            raw=raw,
            digest=digest,
        )
    except FieldError as error:
        raise DamagedContent(
            f"reading the image config '{digest}': {error}. Push the image again."
        ) from error


def layer_history(
    manifest: Manifest, config: ImageConfig
) -> list[tuple[Descriptor, History | None]]:
    """Pair each layer with the step that made it, lowest first.

    Steps that made no layer are left out. Where the numbers of layers and steps differ, nothing
    tells which belongs to which, and every step is ``None``.
    """
    steps = [step for step in config.history if not step.empty_layer]
    if len(steps) != len(manifest.layers):
        return [(layer, None) for layer in manifest.layers]
    return list(zip(manifest.layers, steps, strict=True))


def _media_type(fields: Fields, served_as: str | None) -> str:
    """Settle what a document is: by the registry's word, its own, or else its fields."""
    if fields.values.get("schemaVersion") == 1:
        raise FieldError("it is of the old schema 1, which registries and engines have given up")
    says = fields.text("mediaType")
    if served_as is not None and says and says != served_as:
        raise FieldError(f"it was served as '{served_as}', but says that it is '{says}'")
    media_type = served_as or says
    if not media_type:  # OCI 1.0 allowed to leave it out
        media_type = OCI_INDEX if "manifests" in fields.values else OCI_MANIFEST
    if media_type not in MANIFEST_TYPES:
        raise FieldError(f"its media type '{media_type}' is not one of an image")
    return media_type


def _descriptor(fields: Fields) -> Descriptor:
    digest = fields.needed_text("digest")
    if not is_digest(digest):
        raise FieldError(f"its field '{fields.path}digest' is not a digest")
    return Descriptor(
        media_type=fields.needed_text("mediaType"),
        digest=digest,
        size=fields.size("size"),
        platform=_platform(fields.object("platform")) if fields.values.get("platform") else None,
        annotations=fields.mapping("annotations"),
    )


def _platform(fields: Fields) -> Platform:
    return Platform(
        os=fields.needed_text("os"),
        architecture=fields.needed_text("architecture"),
        variant=fields.text("variant") or None,
    )


def _history(fields: Fields) -> History:
    return History(
        created_by=fields.text("created_by"),
        created=fields.time("created"),
        comment=fields.text("comment"),
        empty_layer=fields.flag("empty_layer"),
    )
