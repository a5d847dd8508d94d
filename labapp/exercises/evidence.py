"""What checks read: tags and digests in the registry, containers on the engine, files in layers."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import docker.errors
import requests
import zstandard

from labapp.bench import Bench
from labapp.errors import NotInRegistry, RegistryError, RegistryUnreachable
from labapp.manifests import digest_of
from labapp.registry.reader import RegistryImage

LARGEST = 256 * 1024 * 1024
"""The longest layer that is looked into, in bytes; one with a compiler has about 70 MB."""


def digest(bench: Bench, repository: str, tag: str) -> str | None:
    """Return the digest that the registry serves for a tag; None when there is no such tag."""
    try:
        return bench.registry.resolve(repository, tag)
    except NotInRegistry:
        return None


def image(bench: Bench, repository: str, identifier: str) -> RegistryImage | None:
    """Return an image's manifest and config from the registry; None when there is none."""
    sign = "@" if identifier.startswith("sha256:") else ":"
    try:
        return bench.registry.image(f"{bench.registry.address}/{repository}{sign}{identifier}")
    except RegistryUnreachable:
        raise
    except RegistryError:
        # Asked for a manifest by the digest of a config, the registry fails: it can't read it.
        return None


def repositories_with(bench: Bench, tag: str, image: str) -> list[str]:
    """Return the repositories where a tag names an image, given by its digest."""
    return [name for name in bench.registry.repositories() if digest(bench, name, tag) == image]


def on_engine(bench: Bench, reference: str) -> bool:
    """Say whether the engine has an image under a name."""
    with bench.engine.doing(f"looking for the image '{reference}'"):
        try:
            bench.engine.client.images.get(reference)
        except docker.errors.ImageNotFound:
            return False
        return True


def containers(bench: Bench) -> list[dict[str, Any]]:
    """Return what the engine says of each container that was started from this lab's registry.

    Raises:
        EngineLost: the engine does not answer any more.
    """
    api = bench.engine.client.api
    found = []
    with bench.engine.doing("looking for containers"):
        for listed in api.containers(all=True):
            with contextlib.suppress(docker.errors.NotFound):
                container = api.inspect_container(listed["Id"])
                if container["Config"]["Image"].startswith(f"{bench.registry.address}/"):
                    found.append(container)
    return found


def published_port(container: dict[str, Any]) -> int | None:
    """Return the port of this machine through which a container is reached; None without one."""
    for bindings in (container["NetworkSettings"].get("Ports") or {}).values():
        for binding in bindings or ():
            return int(binding["HostPort"])
    return None


def answers(port: int, path: str) -> bool:
    """Say whether a service on a port of this machine answers a path with 200."""
    session = requests.Session()
    session.trust_env = False
    try:
        return session.get(f"http://127.0.0.1:{port}{path}", timeout=5).ok
    except requests.RequestException:
        return False


def stands_on(held: RegistryImage, below: RegistryImage) -> bool:
    """Say whether another image's layers are the lowest of an image, however they were packed."""
    diff_ids = below.config.diff_ids
    return held.config.diff_ids[: len(diff_ids)] == diff_ids


def layers(bench: Bench, held: RegistryImage) -> Iterator[bytes]:
    """Yield the unpacked layers, lowest first, that an image adds to the lab's base images."""
    below = [bench.registry.image(base.reference) for base in bench.bases]
    packed = {layer.digest for image in below for layer in image.manifest.layers}
    # An engine may pack a layer anew when it pushes: the same content, with another digest.
    plain = {digest for image in below for digest in image.config.diff_ids}
    for layer in held.manifest.layers:
        if layer.digest not in packed:
            repository = held.reference.repository
            content = _unpacked(bench.registry.read_blob(repository, layer.digest, limit=LARGEST))
            if digest_of(content) not in plain:
                yield content


def added(bench: Bench, held: RegistryImage) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield what the layers bring that an image adds to the lab's base images.

    Yields:
        Each entry's path, and a function that reads its content while it is the current one; what
        is no file has none.
    """
    for layer in layers(bench, held):
        yield from entries(layer)


def entries(layer: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield what is in an unpacked layer, as :func:`added` does; nothing if it is no archive."""
    with (
        contextlib.suppress(tarfile.TarError),
        tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as archive,
    ):
        for member in archive:
            content = functools.partial(_content, archive, member)
            yield "/" + member.name.removeprefix("./").lstrip("/"), content


def _unpacked(blob: bytes) -> bytes:
    """Unpack a layer by its first bytes (RFC 1952; RFC 8878), as engines do."""
    if blob[:2] == b"\x1f\x8b":
        return gzip.decompress(blob)
    if blob[:4] == b"\x28\xb5\x2f\xfd":
        with zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True) as reader:
            return bytes(reader.read())
    return blob


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member) if member.isreg() else None
    return file.read() if file else b""


def pinned(bench: Bench, repository: str, digest: str) -> str:
    """Return an image of the lab's registry by digest, as receipts name it."""
    return f"{bench.registry.address}/{repository}@{digest}"


def short(digest: str | None) -> str:
    """Return a digest as messages quote it: ``sha256:`` and eight digits."""
    return digest[: len("sha256:") + 8] + "…" if digest else "nothing"
