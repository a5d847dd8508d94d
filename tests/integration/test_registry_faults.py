"""Damage under a real registry: named at once, made good, and nothing half left behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from registries import put_image

from labapp.errors import DamagedContent, NotInRegistry, RegistryError, RegistryUnreachable
from labapp.machine.engine import Engine, tar_of
from labapp.registry.manifests import Manifest
from labapp.registry.server import CONTENT, STORAGE, RegistryServer
from labapp.state import State

REPOSITORY = "shop/damaged"


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, server: RegistryServer
) -> Iterator[RegistryServer]:
    """A registry of these tests alone, started."""
    own = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("state")))
    try:
        own.start(image=server.image)
        yield own
    finally:
        own.remove(volume=True)


@pytest.fixture
def manifest(own: RegistryServer) -> Manifest:
    """An image that is whole."""
    registry = own.registry()
    found = registry.manifest(REPOSITORY, put_image(registry, REPOSITORY))
    assert isinstance(found, Manifest)
    assert registry.damaged_blobs(REPOSITORY, found, contents=True) == []
    return found


def damage(own: RegistryServer, digest: str, how: str) -> None:
    """Damage a blob in the registry's storage, behind its back."""
    value = digest.partition(":")[2]
    path = f"{CONTENT}/blobs/sha256/{value[:2]}/{value}/data"
    commands = {
        "truncated": ["truncate", "-s", "3", path],
        "emptied": ["truncate", "-s", "0", path],
        "deleted": ["rm", path],
        "flipped": ["sh", "-c", f"printf lab | dd of={path} bs=1 seek=2 conv=notrunc"],
    }
    own.storage(commands[how])


@pytest.mark.parametrize(
    ("part", "how", "what", "found_bytes", "contents"),
    [
        ("layer", "truncated", "truncated", 3, False),
        ("layer", "emptied", "truncated", 0, False),
        ("layer", "deleted", "missing", None, False),
        ("layer", "flipped", "altered", 12, True),  # its bytes have to be read to find it
        ("config", "truncated", "truncated", 3, False),
    ],
)
def test_a_damaged_blob_is_named_and_made_good(
    own: RegistryServer,
    manifest: Manifest,
    part: str,
    how: str,
    what: str,
    found_bytes: int | None,
    contents: bool,
) -> None:
    registry = own.registry()
    blob = manifest.layers[0] if part == "layer" else manifest.config
    damage(own, blob.digest, how)
    (found,) = registry.damaged_blobs(REPOSITORY, manifest, contents=contents)
    assert (found.digest, found.what, found.found_bytes) == (blob.digest, what, found_bytes)
    assert found.expected_bytes == blob.size
    assert blob.digest in str(found)
    kind = NotInRegistry if how == "deleted" else DamagedContent
    with pytest.raises(kind, match=blob.digest):
        list(registry.open_blob(REPOSITORY, blob.digest))

    for _ in range(2):  # a second time does no harm
        own.discard_blobs([blob.digest])
        assert registry.blob_size(REPOSITORY, blob.digest) is None
    others = registry.damaged_blobs(REPOSITORY, manifest, contents=True)
    assert [other.digest for other in others] == [blob.digest]
    put_image(registry, REPOSITORY)
    assert registry.damaged_blobs(REPOSITORY, manifest, contents=True) == []


@pytest.mark.parametrize("how", ["emptied", "flipped", "deleted"])
def test_a_damaged_manifest_is_never_believed(
    own: RegistryServer, manifest: Manifest, how: str
) -> None:
    registry, name = own.registry(), f"{own.address}/{REPOSITORY}:1"
    damage(own, manifest.digest, how)
    with pytest.raises(RegistryError, match=REPOSITORY):
        registry.image(name)
    own.discard_blobs([manifest.digest])
    put_image(registry, REPOSITORY)
    assert registry.image(name).manifest == manifest


# --- half uploads


def uploads(own: RegistryServer) -> list[str]:
    """The data files of uploads in the registry's storage."""
    return own.storage(["find", CONTENT, "-path", "*/_uploads/*", "-name", "data"]).split()


def half_upload(own: RegistryServer) -> None:
    """Start an upload, send some bytes, and never come back."""
    base = f"http://{own.address}/v2/{REPOSITORY}/blobs/uploads/"
    with requests.Session() as session:
        session.trust_env = False
        place = session.post(base, timeout=10).headers["Location"]
        sent = session.patch(f"http://{own.address}{place}", data=b"half of it", timeout=10)
        assert sent.status_code == 202


def test_bytes_that_can_not_be_had_leave_no_upload_behind(own: RegistryServer) -> None:
    def failing() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(1_000_000)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        own.registry().upload_blob(REPOSITORY, failing())
    assert uploads(own) == []


def test_a_half_upload_is_purged_once_it_is_old(own: RegistryServer) -> None:
    own.purge_uploads()
    half_upload(own)
    assert own.purge_uploads(older_than=3600) == []
    assert len(uploads(own)) == 1
    (purged,) = own.purge_uploads()
    assert purged.startswith(f"{REPOSITORY}/_uploads/")
    assert uploads(own) == []
    assert own.registry().upload_blob(REPOSITORY, [b"after"])[1] == 5


def test_a_registry_killed_in_mid_upload(own: RegistryServer, engine: Engine) -> None:
    def chunks(*, kill: bool) -> Iterator[bytes]:
        for number in range(30):
            if kill and number == 15:
                engine.client.containers.get(own.name).kill()
            yield bytes([number]) * 1_000_000

    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=f"'{own.address}/{REPOSITORY}'"):
        own.registry().upload_blob(REPOSITORY, chunks(kill=True))
    assert time.monotonic() - began < 10
    registry = own.start()
    assert uploads(own) == []
    digest, size = registry.upload_blob(REPOSITORY, chunks(kill=False))
    assert registry.blob_size(REPOSITORY, digest) == size == 30_000_000


def test_a_registry_killed_in_mid_push(own: RegistryServer, engine: Engine) -> None:
    name = f"{own.address}/shop/heavy"
    archive = tar_of({"random": os.urandom(60_000_000)})
    engine.client.api.import_image_from_data(archive, name, "1")
    command, environment = ["docker", "push", f"{name}:1"], engine.environment()
    push = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        began = datetime.now(UTC)
        while "POST /v2/shop/heavy/blobs/uploads/" not in own.logs(since=began).decode():
            assert push.poll() is None, "the push ended before it could be cut off"
            time.sleep(0.05)
        engine.client.containers.get(own.name).kill()
        assert uploads(own) != []
        registry = own.start()
        push.wait(timeout=120)  # docker tries again by itself for a while
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
        image = registry.image(f"{name}:1")
        assert registry.damaged_blobs("shop/heavy", image.manifest, contents=True) == []
        assert uploads(own) == []
    finally:
        push.kill()
        push.wait()
        engine.client.images.remove(f"{name}:1")


# --- a full disk


@pytest.fixture
def small(tmp_path: Path, engine: Engine, server: RegistryServer) -> Iterator[RegistryServer]:
    """A registry whose storage holds 8 MB."""
    state = State.open(tmp_path / "state")
    small = RegistryServer(engine=engine, state=state)
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=8m"}
    engine.client.volumes.create(small.name, driver_opts=options, labels=state.labels)
    try:
        small.start(image=server.image)
        yield small
    finally:
        small.remove(volume=True)


@pytest.mark.parametrize(
    "filling",
    [
        "dd if=/dev/zero of={} bs=1M count=5",
        "dd if=/dev/zero of={} bs=4k; true",  # no upload begins at all
    ],
)
def test_a_full_disk_is_named_and_the_next_try_works(small: RegistryServer, filling: str) -> None:
    registry, filler = small.registry(), f"{STORAGE}/filler"
    blob = os.urandom(4_000_000)
    registry.upload_blob(REPOSITORY, [b"something"])
    small.storage(["sh", "-c", filling.format(filler)])
    registry.ping()  # it answers all the same
    with pytest.raises(RegistryError, match="disk"):
        registry.upload_blob(REPOSITORY, [blob])
    small.storage(["rm", filler])
    small.purge_uploads()
    digest, _ = registry.upload_blob(REPOSITORY, [blob])
    assert registry.read_blob(REPOSITORY, digest) == blob
