"""Images made in memory, and a registry that holds them: what is read of them is read for real."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labapp.inside import image
from labapp.inside.image import Contents
from labapp.registry.client import Registry

OCI = "application/vnd.oci.image"
PLATFORM = {"os": "linux", "architecture": "amd64"}

Files = Mapping[str, bytes | str]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def archive(files: Files) -> bytes:
    """A tar of files; ``…/`` is a folder, ``…/su`` is set-uid, and ``-> x`` is a link to x."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as written:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o4755 if name.endswith("/su") else 0o755
            if data.startswith(b"-> "):
                info.type, info.linkname, info.size = tarfile.SYMTYPE, data[3:].decode(), 0
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            written.addfile(info, io.BytesIO(data))
    return held.getvalue()


class Memory(Registry):
    """A registry in memory, as far as images are stored and read."""

    def __init__(self) -> None:
        super().__init__("r.test")
        self.held: dict[str, bytes] = {}

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
        yield self.held[digest]


def put(
    registry: Registry,
    repository: str,
    tag: str,
    layers: Sequence[Files] = (),
    *,
    platform: Mapping[str, str] = PLATFORM,
    run: Mapping[str, Any] | None = None,
    history: str = "COPY layer{} /",
) -> dict[str, Any]:
    """Store an image of such files, with the config's ``run`` part; return its descriptor."""
    plain = [archive(files) for files in layers]
    config = {
        **platform,
        "config": dict(run or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(raw) for raw in plain]},
        "history": [{"created_by": history.format(n)} for n in range(1, len(plain) + 1)],
    }
    blobs = [("config.v1+json", json.dumps(config).encode())]
    blobs += [("layer.v1.tar+gzip", gzip.compress(raw, mtime=0)) for raw in plain]
    parts = []
    for kind, data in blobs:
        digest, size = registry.upload_blob(repository, [data])
        parts.append({"mediaType": f"{OCI}.{kind}", "digest": digest, "size": size})
    kind = f"{OCI}.manifest.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "config": parts[0], "layers": parts[1:]}
    raw = json.dumps(document).encode()
    digest = registry.put_manifest(repository, tag, raw, kind)
    return {"mediaType": kind, "digest": digest, "size": len(raw), "platform": dict(platform)}


def made(*layers: Files, tag: str = "1", **options: Any) -> Contents:
    """What is inside an image of such layers, as the lab reads it."""
    registry = Memory()
    put(registry, "shop/web", tag, layers, **options)
    with tempfile.TemporaryDirectory() as folder:
        return image.read(registry, f"r.test/shop/web:{tag}", folder=Path(folder))
