"""Images made in memory, and a registry that holds them: what is read of them is read for real."""

from __future__ import annotations

import functools
import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labapp import feedback
from labapp.errors import DamagedContent
from labapp.inside import image
from labapp.inside.image import Contents
from labapp.registry.client import Registry
from labapp.registry.manifests import digest_of

OCI = "application/vnd.oci.image"
GZIP = functools.partial(gzip.compress, mtime=0)
PLATFORM = {"os": "linux", "architecture": "amd64"}
LINKS = {b"-> ": tarfile.SYMTYPE, b"=> ": tarfile.LNKTYPE}

Files = Mapping[str, bytes | str]


def archive(files: Files, modes: Mapping[str, int] | None = None) -> bytes:
    """A tar of files, with their modes by name.

    ``…/`` is a folder, ``…/su`` is set-uid, ``-> x`` is a link to x and ``=> x`` a hard link.
    """
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as written:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o4755 if name.endswith("/su") else 0o755
            info.mode = (modes or {}).get(name, info.mode)
            if data[:3] in LINKS:
                info.type, info.linkname, info.size = LINKS[data[:3]], data[3:].decode(), 0
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            written.addfile(info, io.BytesIO(data))
    return held.getvalue()


class Memory(Registry):
    """A registry in memory, as far as images are stored and read; it notes the blobs it serves."""

    def __init__(self) -> None:
        super().__init__("r.test")
        self.held: dict[str, bytes] = {}
        self.opened: list[str] = []

    def upload_blob(self, repository: str, chunks: Iterable[bytes]) -> tuple[str, int]:
        data = b"".join(chunks)
        self.held[digest_of(data)] = data
        return digest_of(data), len(data)

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> str:
        self.held[tag] = self.held[digest_of(raw)] = raw
        return digest_of(raw)

    def manifest_bytes(self, repository: str, identifier: str) -> tuple[bytes, str | None]:
        return self.held[identifier], None

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        self.opened.append(digest)
        data = self.held[digest]
        for start in range(0, len(data), 4093):
            yield data[start : start + 4093]
        if digest_of(data) != digest:
            raise DamagedContent(f"reading '{digest}': altered")


def put(
    registry: Registry,
    repository: str,
    tag: str,
    layers: Sequence[Files | bytes] = (),
    *,
    platform: Mapping[str, str] = PLATFORM,
    run: Mapping[str, Any] | None = None,
    history: str = "COPY layer{} /",
    modes: Mapping[str, int] | None = None,
    diff_ids: Sequence[str] | None = None,
    pack: Callable[[bytes], bytes] = GZIP,
    layer_type: str = f"{OCI}.layer.v1.tar+gzip",
    **more: Any,
) -> dict[str, Any]:
    """Store an image of files or archives, with a config; return its descriptor.

    Without a tag, it is stored by its digest; ``more`` is what else the manifest says.
    """
    plain = [each if isinstance(each, bytes) else archive(each, modes) for each in layers]
    diff_ids = diff_ids or [digest_of(layer) for layer in plain]
    config = {
        **platform,
        "config": dict(run or {}),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": history.format(n)} for n in range(1, len(plain) + 1)],
    }
    blobs = [(f"{OCI}.config.v1+json", json.dumps(config).encode())]
    blobs += [(layer_type, pack(layer)) for layer in plain]
    parts = []
    for kind, data in blobs:
        digest, size = registry.upload_blob(repository, [data])
        parts.append({"mediaType": kind, "digest": digest, "size": size})
    kind = f"{OCI}.manifest.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "config": parts[0], "layers": parts[1:]}
    raw = json.dumps(document | more).encode()
    digest = registry.put_manifest(repository, tag or digest_of(raw), raw, kind)
    return {"mediaType": kind, "digest": digest, "size": len(raw), "platform": dict(platform)}


def put_index(
    registry: Registry, repository: str, tag: str, images: Sequence[object], **more: object
) -> str:
    """Store an index of images, which are told by their descriptors; return its digest."""
    kind = f"{OCI}.index.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": images, **more}
    return registry.put_manifest(repository, tag, json.dumps(document).encode(), kind)


def put_image(
    registry: Registry, repository: str, tag: str = "1", architecture: str = "amd64"
) -> str:
    """Store an image with a layer of a few bytes, which are no archive; return its digest."""
    platform = {"os": "linux", "architecture": architecture}
    layer = b"a layer of " + tag.encode()
    made = put(registry, repository, tag, [layer], platform=platform, pack=bytes)
    return str(made["digest"])


def read(registry: Registry, folder: Path, tag: str = "1") -> Contents:
    """What is inside an image of a registry, as the lab reads it, without a word."""
    with feedback.using(feedback.QuietFeedback()):
        return image.read(registry, registry.image(f"r.test/shop/web:{tag}"), folder=folder)


def made(*layers: Files | bytes, tag: str = "1", **options: Any) -> Contents:
    """What is inside an image of such layers."""
    registry = Memory()
    put(registry, "shop/web", tag, layers, **options)
    with tempfile.TemporaryDirectory() as folder:
        return read(registry, Path(folder), tag)


def make_wheels(folder: Path, *files: str) -> None:
    """Make wheels with nothing in them, for every platform, where PIP_FIND_LINKS can lead to."""
    for file in files:
        name, version, _ = file.split("-", 2)
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(folder / file, "w") as wheel:
            for part, text in (("METADATA", about), ("WHEEL", kind), ("RECORD", "")):
                wheel.writestr(f"{name}-{version}.dist-info/{part}", text)


def wants(application: Path, to_run: str, to_build: str) -> None:
    """Write what an application asks of pip."""
    (application / "requirements.txt").write_text(to_run)
    (application / "pyproject.toml").write_text(f'[build-system]\nrequires = ["{to_build}"]\n')
