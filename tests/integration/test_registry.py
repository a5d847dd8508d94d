"""The lab's registry for real: what happens to it, what it holds, and what is damaged in it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import docker
import pytest
import requests
from registries import put_image

from labapp import feedback
from labapp.errors import (
    DamagedContent,
    EngineLost,
    NotInRegistry,
    RegistryError,
    RegistryUnreachable,
)
from labapp.feedback import QuietFeedback
from labapp.machine.engine import Engine
from labapp.machine.ports import free_port
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.log import COLUMNS, listening, parse_log
from labapp.registry.manifests import (
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    Platform,
    canonical_json,
    digest_of,
)
from labapp.registry.server import CONFIG, CONFIG_INSIDE, CONTENT, STORAGE, RegistryServer
from labapp.state import LABEL, ROLE_LABEL, State

REPOSITORY = "shop/damaged"


@pytest.fixture(scope="module")
def only(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, server: RegistryServer
) -> Iterator[RegistryServer]:
    """A registry of these tests alone."""
    only = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("state")))
    yield only
    only.remove(volume=True)


@pytest.fixture
def own(only: RegistryServer, server: RegistryServer) -> RegistryServer:
    """The same, started, whatever the test before has done to it."""
    only.start(image=server.image)
    return only


@pytest.fixture
def told(own: RegistryServer) -> Iterator[QuietFeedback]:
    with feedback.using(QuietFeedback()) as told:
        yield told  # type: ignore[misc]


def labelled(engine: Engine, server: RegistryServer, role: str) -> list[str]:
    """The names of the containers of a registry's lab that have a role."""
    lab_id = server.name.rpartition("-")[2]
    filters = {"label": [f"{LABEL}={lab_id}", f"{ROLE_LABEL}={role}"]}
    return [found.name or "" for found in engine.client.containers.list(all=True, filters=filters)]


def here(own: RegistryServer, name: str) -> Reference:
    return Reference.parse(f"{own.address}/{name}")


# --- start, whatever happened before


def test_what_it_makes_is_labelled_for_this_machine_and_left_alone(
    own: RegistryServer, engine: Engine
) -> None:
    assert labelled(engine, own, "registry") == [own.name]
    volume = engine.client.volumes.get(own.name)
    assert volume.attrs["Labels"][LABEL] == own.name.rpartition("-")[2]
    before = engine.client.containers.get(own.name).attrs
    ports = before["HostConfig"]["PortBindings"]
    assert [bound["HostIp"] for bound in ports["5000/tcp"]] == ["127.0.0.1"]
    assert own.start(image="labapp/no-such-image:1").address == own.address
    after = engine.client.containers.get(own.name).attrs
    assert after["State"]["StartedAt"] == before["State"]["StartedAt"]


@pytest.mark.parametrize("accident", ["stop", "kill", "pause", "remove", "replace"])
def test_it_comes_back_with_its_content_at_its_address(
    own: RegistryServer, engine: Engine, accident: str
) -> None:
    digest = put_image(own.registry(), "shop/back")
    address, container = own.address, engine.client.containers.get(own.name)
    if accident == "stop":
        own.stop()
    elif accident == "kill":
        container.kill()
    elif accident == "pause":
        container.pause()
    else:
        container.remove(force=True)
    if accident == "replace":  # as when a start was cut off before the configuration was in
        engine.client.containers.create(own.image, name=own.name, labels=container.labels)
    assert not own.is_running()
    with pytest.raises(RegistryUnreachable, match=address):
        own.registry()
    registry = own.start()
    assert registry.address == address
    assert registry.resolve("shop/back", "1") == digest


def test_stop_keeps_the_log(own: RegistryServer, told: QuietFeedback) -> None:
    own.registry().ping()
    own.stop()
    assert told.commands == [f"docker stop {own.name}"]
    before = own.logs().decode()
    assert "labapp/" in before
    own.start()
    assert own.logs().decode().count("listening on") == before.count("listening on") + 1


@pytest.mark.parametrize("removed", [True, False])
def test_a_port_that_was_taken_meanwhile(
    own: RegistryServer, told: QuietFeedback, removed: bool
) -> None:
    digest = put_image(own.registry(), "shop/moved")
    old = own.address
    own.stop()
    if removed:
        own.remove(volume=False)
    with socket.create_server(("127.0.0.1", int(old.rpartition(":")[2]))):
        registry = own.start()
    assert registry.address != old
    assert registry.resolve("shop/moved", "1") == digest
    assert any(old[-5:] in text and registry.address in text for text in told.lines)
    own.stop()
    assert own.start().address == registry.address  # the new port is kept from now on


def test_a_changed_configuration_takes_effect_and_a_wrong_one_is_told_with_the_log(
    own: RegistryServer,
) -> None:
    digest = put_image(own.registry(), "shop/kept")
    config = CONFIG.read_bytes().replace(b"enabled: true", b"enabled: false", 1)
    registry = own.start(files={CONFIG_INSIDE: config})
    assert registry.resolve("shop/kept", "1") == digest
    with pytest.raises(RegistryError, match="unsupported"):
        registry.delete_manifest("shop/kept", digest)
    with pytest.raises(
        RegistryError, match=f"no storage configuration(?s:.*)docker logs {own.name}"
    ):
        own.start(files={CONFIG_INSIDE: b"version: 0.1\nstorage: {}\n"})


def test_a_registry_that_was_never_started(tmp_path: Path, engine: Engine) -> None:
    never = RegistryServer(engine=engine, state=State.open(tmp_path))
    assert not never.is_running()
    assert never.logs() == b""
    for ask in (lambda: never.address, never.registry, lambda: never.storage(["ls"]), never.start):
        with pytest.raises(RegistryUnreachable, match=never.name):
            ask()
    never.remove(volume=True)


def test_an_engine_that_is_lost_and_an_image_that_is(
    own: RegistryServer, engine: Engine, tmp_path: Path
) -> None:
    own.remove(volume=False)
    with pytest.raises(RegistryError, match="'labapp/no-such-image:1'"):
        own.start(image="labapp/no-such-image:1")
    address = f"tcp://127.0.0.1:{free_port()}"
    lost = replace(engine, client=docker.DockerClient(base_url=address, version="1.41"))
    with pytest.raises(EngineLost):
        RegistryServer(engine=lost, state=State.open(tmp_path)).start(image="any")


def test_two_starts_at_once(tmp_path: Path, engine: Engine, server: RegistryServer) -> None:
    new = RegistryServer(engine=engine, state=State.open(tmp_path))
    try:
        with ThreadPoolExecutor(2) as threads:
            starts = [threads.submit(new.start, image=server.image) for _ in range(2)]
        assert [start.result().address for start in starts] == [new.address] * 2
        new.registry().ping()
        assert labelled(engine, new, "registry") == [new.name]
    finally:
        new.remove(volume=True)


def test_what_runs_over_its_files_is_gone_and_in_the_end_all_of_it(
    own: RegistryServer, engine: Engine
) -> None:
    assert "registry" in own.storage(["ls", "/var/lib"])
    for argv, fact in ((["sh", "-c", "echo no good; exit 3"], "no good"), (["no-such"], "no-such")):
        with pytest.raises(RegistryError, match=fact):
            own.storage(argv)
    assert labelled(engine, own, "oneshot") == []
    for _ in range(2):
        own.remove(volume=True)
        assert labelled(engine, own, "registry") == []
        assert own.name not in [volume.name for volume in engine.client.volumes.list()]


# --- what it holds


def test_an_image_is_read_and_verified_and_deleted_with_its_tags(own: RegistryServer) -> None:
    registry = own.registry()
    digest = put_image(registry, "shop/read", "1")
    put_image(registry, "shop/read", "2")
    assert "shop/read" in registry.repositories()
    assert registry.tags("shop/read") == ["1", "2"]
    image = registry.image(here(own, "shop/read:1"))
    assert image.digest == digest == registry.digest(f"{own.address}/shop/read:1")
    assert str(image.pinned) == f"{own.address}/shop/read@{digest}"
    assert registry.image(image.pinned).manifest == image.manifest
    layer = image.manifest.layers[0]
    assert b"".join(registry.open_blob("shop/read", layer.digest)) == b"a layer of 1"
    assert registry.blob_size("shop/read", layer.digest) == 12
    registry.delete_manifest("shop/read", digest)
    assert registry.tags("shop/read") == ["2"]
    for ask in (registry.resolve, registry.delete_manifest):
        with pytest.raises(NotInRegistry):
            ask("shop/read", digest)


def put_index(registry: Registry, repository: str) -> str:
    """Store an index of two images under the tag ``both``; return its digest."""
    entries = []
    for architecture in ("amd64", "arm64"):
        digest = put_image(registry, repository, architecture, architecture)
        size = len(registry.manifest(repository, digest).raw)
        platform = {"os": "linux", "architecture": architecture}
        entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": platform}
        entries.append(entry)
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return registry.put_manifest(repository, "both", canonical_json(content), OCI_INDEX)


def test_an_index_leads_to_the_image_for_a_platform(own: RegistryServer) -> None:
    registry = own.registry()
    digest = put_index(registry, "shop/both")
    for architecture in ("amd64", "arm64"):
        platform = Platform("linux", architecture)
        image = registry.image(here(own, "shop/both:both"), platform=platform)
        assert image.manifest.digest == registry.resolve("shop/both", architecture)
        assert (image.config.platform, image.digest) == (platform, digest)
    assert registry.copy(registry, image, to=here(own, "half/both:1")) == image.manifest.digest
    with pytest.raises(NotInRegistry, match=r"linux/amd64, linux/arm64"):
        registry.image(here(own, "shop/both:both"), platform=Platform("linux", "s390x"))


def test_blobs_of_any_size_are_stored_and_taken_over(own: RegistryServer) -> None:
    registry = own.registry()
    piece = os.urandom(1_000_003)
    digest, size = registry.upload_blob("shop/large", (piece for _ in range(20)))
    assert (digest, size) == (digest_of(piece * 20), 20_000_060)
    assert registry.read_blob("shop/large", digest) == piece * 20
    assert registry.upload_blob("shop/large", []) == (digest_of(b""), 0)
    assert registry.blob_size("shop/mounted", digest) is None
    assert registry.mount_blob("shop/mounted", digest, "shop/large")
    assert registry.blob_size("shop/mounted", digest) == size
    assert not registry.mount_blob("shop/mounted", "sha256:" + "2" * 64, "shop/large")


# --- copies, byte for byte


def sent(own: RegistryServer, since: datetime) -> list[str]:
    heard = [one.meaning for one in parse_log(own.logs(since=since)) if one.time >= since]
    return [one for one in heard if one.startswith(("take this blob", "start", "store"))]


def test_a_copy_has_the_digest_of_its_source_and_sends_what_is_missing(
    own: RegistryServer, registry: Registry, slim: Reference
) -> None:
    target, told = own.registry(), []
    source = registry.image(slim)
    began = datetime.now(UTC)
    to = here(own, "copied/python:slim")
    digest = target.copy(registry, source, to=to, progress=lambda *now: told.append(now))
    assert digest == slim.digest == target.digest(to)
    copied = target.image(to)
    blobs = copied.manifest.blobs
    assert copied.manifest.raw == source.manifest.raw
    assert target.damaged_blobs(to.repository, copied.manifest, contents=True) == []
    total = sum(blob.size for blob in blobs)
    assert told == sorted(told) and told[-1] == (total, total)
    uploads = ["start an upload"] * len(blobs)
    assert sent(own, began) == [*uploads, "store the manifest under tag slim"]

    began = datetime.now(UTC)
    assert target.copy(registry, source, to=to.with_tag("again")) == digest
    assert target.copy(target, copied, to=here(own, "beside/python:slim")) == digest
    mounts = ["take this blob over from copied/python"] * len(blobs)
    stored = "store the manifest under tag"
    assert sent(own, began) == [f"{stored} again", *mounts, f"{stored} slim"]


# --- the request log


def test_what_is_said_to_it_is_told_request_by_request(own: RegistryServer) -> None:
    registry, blob = own.registry(), digest_of(b"told")
    curl = requests.Session()
    curl.trust_env, curl.headers["User-Agent"] = False, "curl/8"

    def upload() -> None:
        typed = {"Content-Type": "application/octet-stream"}
        base = f"http://{own.address}"
        place = curl.post(f"{base}/v2/shop/told/blobs/uploads/").headers["Location"]
        curl.put(f"{base}{place}&digest={blob}", data=b"told", headers=typed)

    with listening(own) as wire:
        put_image(registry, "shop/told")  # the lab's own words are left out
        upload()
        curl.get(f"http://{own.address}/v2/shop/told/manifests/none")
        registry.ping()
    rows = wire.rows
    assert {name: str(kind) for name, kind in rows.dtypes.items()} == COLUMNS
    assert rows["time"].is_monotonic_increasing
    meanings = ["start an upload", "finish the upload", "give me the manifest of tag none"]
    assert list(rows["meaning"]) == meanings
    assert list(rows["status"]) == [202, 201, 404]
    assert list(rows["digest"]) == ["", blob[7:15], ""]
    assert list(rows["client"]) == ["curl"] * 3
    assert rows["bytes"].iloc[1] == 4
    with listening(own) as wire:
        upload()
        own.stop()
    assert list(wire.rows["bytes"].isna()) == [False, True]


# --- damage under it: named at once, and made good


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
        "truncated": f"truncate -s 3 {path}",
        "emptied": f"truncate -s 0 {path}",
        "deleted": f"rm {path}",
        "flipped": f"printf lab | dd of={path} bs=1 seek=2 conv=notrunc",
    }
    own.storage(["sh", "-c", commands[how]])


@pytest.mark.parametrize(
    ("how", "what", "found_bytes", "contents"),
    [
        ("truncated", "truncated", 3, False),
        ("emptied", "truncated", 0, False),
        ("deleted", "missing", None, False),
        ("flipped", "altered", 12, True),  # its bytes have to be read to find it
    ],
)
def test_a_damaged_blob_is_named_and_made_good(
    own: RegistryServer,
    manifest: Manifest,
    how: str,
    what: str,
    found_bytes: int | None,
    contents: bool,
) -> None:
    registry, blob = own.registry(), manifest.layers[0]
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


def test_a_copy_over_a_damaged_blob_tells_it(own: RegistryServer, manifest: Manifest) -> None:
    registry, layer = own.registry(), manifest.layers[0].digest
    image = registry.image(here(own, f"{REPOSITORY}:1"))
    registry.mount_blob("shop/copy", layer, REPOSITORY)
    damage(own, layer, "truncated")
    with pytest.raises(DamagedContent, match=layer):
        registry.copy(registry, image, to=here(own, "shop/copy:1"))
    own.discard_blobs([layer])


# --- what is cut off


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
    digest, size = registry.upload_blob(REPOSITORY, chunks(kill=False))
    assert registry.blob_size(REPOSITORY, digest) == size == 30_000_000


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
    digest, _ = registry.upload_blob(REPOSITORY, [blob])
    assert registry.read_blob(REPOSITORY, digest) == blob
