"""Damage under a real registry: named at once, healed by a push, and nothing half left behind."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from labapp.engine import Engine
from labapp.errors import DamagedContent, NotInRegistry, RegistryError, RegistryUnreachable
from labapp.feedback import QuietFeedback
from labapp.manifests import Descriptor, Manifest
from labapp.registry.server import RegistryServer
from labapp.registry.storage import CONTENT, STORAGE
from labapp.state import State

REPOSITORY = "shop/damaged"


@pytest.fixture(scope="module")
def registry_image(server: RegistryServer, state: State) -> str:
    """The image that the shared registry runs, so that the damage is done to another one."""
    assert server.is_running()
    return str(state.read("registry")["image"])


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory,
    engine: Engine,
    registry_image: str,
    feedback: QuietFeedback,
) -> Iterator[RegistryServer]:
    """A registry of these tests alone, started."""
    own = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("state")))
    try:
        own.start(image=registry_image, feedback=feedback)
        yield own
    finally:
        own.remove(volume=True)


@dataclass
class Docker:
    """The docker command line, as a learner uses it."""

    engine: Engine

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["docker", *arguments],
            env=self.engine.environment(),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass
class Pushed:
    """An image that was pushed with the docker command line."""

    reference: str
    manifest: Manifest

    @property
    def layer(self) -> Descriptor:
        return self.manifest.layers[0]


@pytest.fixture
def docker_cli(engine: Engine) -> Docker:
    return Docker(engine)


def make_image(engine: Engine, reference: str, size: int) -> None:
    """Make an image of one layer of random bytes in the engine."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        inside = tarfile.TarInfo("random")
        inside.size = size
        tar.addfile(inside, io.BytesIO(os.urandom(size)))
    name, _, tag = reference.rpartition(":")
    engine.client.api.import_image_from_data(archive.getvalue(), name, tag)


@pytest.fixture
def pushed(own: RegistryServer, engine: Engine, docker_cli: Docker) -> Iterator[Pushed]:
    """An image of one random layer, in the engine and in the registry."""
    tag = f"t{random.randrange(10**9)}"
    reference = f"{own.address}/{REPOSITORY}:{tag}"
    make_image(engine, reference, 300_000)
    try:
        docker_cli("push", reference)
        manifest = own.registry().manifest(REPOSITORY, tag)
        assert isinstance(manifest, Manifest)
        yield Pushed(reference, manifest)
    finally:
        engine.client.images.remove(reference, force=True)


def blob_file(digest: str) -> str:
    value = digest.partition(":")[2]
    return f"{CONTENT}/blobs/sha256/{value[:2]}/{value}/data"


def damage(own: RegistryServer, digest: str, how: str) -> None:
    """Damage a blob in the registry's storage, behind its back."""
    path = blob_file(digest)
    commands = {
        "truncated": ["truncate", "-s", "100", path],
        "emptied": ["truncate", "-s", "0", path],
        "deleted": ["rm", path],
        "flipped": ["sh", "-c", f"printf labapp | dd of={path} bs=1 seek=50 conv=notrunc"],
    }
    own.storage(commands[how])


HOWS = [
    # how, what is found, bytes found, whether the bytes have to be read to find it
    ("truncated", "truncated", 100, False),
    ("emptied", "truncated", 0, False),
    ("deleted", "missing", None, False),
    ("flipped", "altered", -1, True),
]


@pytest.mark.parametrize(("how", "what", "found_bytes", "contents"), HOWS)
@pytest.mark.parametrize("part", ["layer", "config"])
def test_a_damaged_blob_is_named_at_once_and_healed_by_a_push(
    own: RegistryServer,
    pushed: Pushed,
    docker_cli: Docker,
    part: str,
    how: str,
    what: str,
    found_bytes: int | None,
    contents: bool,
) -> None:
    registry = own.registry()
    blob = pushed.layer if part == "layer" else pushed.manifest.config
    assert registry.damaged_blobs(REPOSITORY, pushed.manifest, contents=True) == []
    damage(own, blob.digest, how)

    began = time.monotonic()
    (found,) = registry.damaged_blobs(REPOSITORY, pushed.manifest, contents=contents)
    assert time.monotonic() - began < 1.0
    assert (found.digest, found.what) == (blob.digest, what)
    assert found.expected_bytes == blob.size
    assert found.found_bytes == (blob.size if found_bytes == -1 else found_bytes)
    assert blob.digest in str(found)
    with pytest.raises(NotInRegistry if how == "deleted" else DamagedContent) as caught:
        list(registry.open_blob(REPOSITORY, blob.digest))
    assert blob.digest in str(caught.value)

    # Why the lab looks at all: a push over damage says that all is well, and heals nothing.
    docker_cli("push", pushed.reference)
    still = registry.damaged_blobs(REPOSITORY, pushed.manifest, contents=contents)
    assert [blob.digest for blob in still] == ([] if how == "deleted" else [blob.digest])

    own.discard_blobs([blob.digest])
    assert registry.blob_size(REPOSITORY, blob.digest) is None
    docker_cli("push", pushed.reference)
    assert registry.damaged_blobs(REPOSITORY, pushed.manifest, contents=True) == []
    docker_cli("rmi", pushed.reference)
    docker_cli("pull", pushed.reference)
    assert (
        docker_cli("image", "inspect", "--format", "{{.Os}}", pushed.reference).strip() == "linux"
    )


@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "deleted"])
def test_a_damaged_manifest_is_never_believed(
    own: RegistryServer, pushed: Pushed, docker_cli: Docker, how: str
) -> None:
    damage(own, pushed.manifest.digest, how)
    with pytest.raises(RegistryError, match=REPOSITORY):
        own.registry().image(pushed.reference)
    own.discard_blobs([pushed.manifest.digest])
    docker_cli("push", pushed.reference)
    assert own.registry().image(pushed.reference).manifest == pushed.manifest


def test_only_the_discarded_blob_goes(own: RegistryServer, pushed: Pushed) -> None:
    registry = own.registry()
    other, size = registry.upload_blob(REPOSITORY, [b"a neighbour"])
    own.discard_blobs([pushed.layer.digest])
    own.discard_blobs([pushed.layer.digest])  # a second time does no harm
    own.discard_blobs([])
    assert registry.blob_size(REPOSITORY, other) == size
    assert registry.blob_size(REPOSITORY, pushed.manifest.config.digest) is not None
    assert registry.blob_size(REPOSITORY, pushed.layer.digest) is None


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


def test_a_registry_killed_in_mid_upload(
    own: RegistryServer, engine: Engine, registry_image: str, feedback: QuietFeedback
) -> None:
    def chunks(*, kill: bool) -> Iterator[bytes]:
        for number in range(30):
            if kill and number == 15:
                engine.client.containers.get(own.name).kill()
            yield bytes([number]) * 1_000_000

    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=rf"uploading a blob to '{own.address}"):
        own.registry().upload_blob(REPOSITORY, chunks(kill=True))
    assert time.monotonic() - began < 10
    registry = own.start(image=registry_image, feedback=feedback)
    assert uploads(own) == []
    digest, size = registry.upload_blob(REPOSITORY, chunks(kill=False))
    assert registry.blob_size(REPOSITORY, digest) == size == 30_000_000


def test_a_registry_killed_in_mid_push(
    own: RegistryServer,
    engine: Engine,
    registry_image: str,
    feedback: QuietFeedback,
    docker_cli: Docker,
) -> None:
    reference = f"{own.address}/shop/heavy:1"
    make_image(engine, reference, 60_000_000)
    push = subprocess.Popen(
        ["docker", "push", reference], env=engine.environment(), stdout=subprocess.DEVNULL
    )
    try:
        began = datetime.now(UTC)
        while "POST /v2/shop/heavy/blobs/uploads/" not in own.logs(since=began).decode():
            assert push.poll() is None, "the push ended before it could be cut off"
            time.sleep(0.05)
        engine.client.containers.get(own.name).kill()
        assert uploads(own) != []
        registry = own.start(image=registry_image, feedback=feedback)
        push.wait(timeout=120)  # docker tries again by itself for a while
        docker_cli("push", reference)
        image = registry.image(reference)
        assert registry.damaged_blobs("shop/heavy", image.manifest, contents=True) == []
        assert uploads(own) == []
    finally:
        push.kill()
        push.wait()
        docker_cli("rmi", reference)


# --- a full disk


@pytest.fixture
def small(
    tmp_path: Path, engine: Engine, registry_image: str, feedback: QuietFeedback
) -> Iterator[RegistryServer]:
    """A registry whose storage holds 8 MB."""
    state = State.open(tmp_path / "state")
    small = RegistryServer(engine=engine, state=state)
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=8m"}
    engine.client.volumes.create(small.name, driver_opts=options, labels=state.labels)
    try:
        small.start(image=registry_image, feedback=feedback)
        yield small
    finally:
        small.remove(volume=True)


def fill(small: RegistryServer, megabytes: int) -> None:
    small.storage(["dd", "if=/dev/zero", f"of={STORAGE}/filler", "bs=1M", f"count={megabytes}"])


@pytest.mark.parametrize("bytes_before", [0, 2_000_000])
def test_a_full_disk_is_named_and_the_next_try_works(
    small: RegistryServer, bytes_before: int
) -> None:
    registry = small.registry()
    blob = os.urandom(4_000_000)
    if bytes_before:
        registry.upload_blob(REPOSITORY, [os.urandom(bytes_before)])
    fill(small, 5)
    registry.ping()  # it answers all the same
    with pytest.raises(RegistryError, match="the disk under the registry is full") as caught:
        registry.upload_blob(REPOSITORY, [blob])
    assert str(caught.value).startswith(f"uploading a blob to '{small.address}/{REPOSITORY}': ")
    small.storage(["rm", f"{STORAGE}/filler"])
    small.purge_uploads()
    digest, size = registry.upload_blob(REPOSITORY, [blob])
    assert size == len(blob)
    assert registry.read_blob(REPOSITORY, digest) == blob


def test_a_disk_so_full_that_no_upload_begins(small: RegistryServer) -> None:
    registry = small.registry()
    small.storage(["sh", "-c", f"dd if=/dev/zero of={STORAGE}/filler bs=4k 2>/dev/null; true"])
    with pytest.raises(RegistryError, match="the disk under the registry is full"):
        registry.upload_blob(REPOSITORY, [b"a few bytes"])
    small.storage(["rm", f"{STORAGE}/filler"])
    registry.upload_blob(REPOSITORY, [b"a few bytes"])
