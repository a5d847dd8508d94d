"""The lab's registry for real: it comes back whatever happened to it, and says what it holds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
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
from labapp.registry import server as registry_server
from labapp.registry.client import Registry
from labapp.registry.log import COLUMNS, listening, parse_log
from labapp.registry.manifests import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Platform,
    canonical_json,
    digest_of,
)
from labapp.registry.server import CONFIG, CONFIG_INSIDE, CONTENT, RegistryServer
from labapp.state import LABEL, ROLE_LABEL, State


@pytest.fixture(scope="module")
def only(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, server: RegistryServer
) -> Iterator[RegistryServer]:
    """A registry of these tests alone."""
    only = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("state")))
    try:
        only.start(image=server.image)
        yield only
    finally:
        only.remove(volume=True)


@pytest.fixture
def own(only: RegistryServer, server: RegistryServer) -> Iterator[RegistryServer]:
    """The same, started, whatever the test before has done to it."""
    with feedback.using(QuietFeedback()):
        only.start(image=server.image)
        yield only


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


def test_all_that_it_makes_is_labelled_and_for_this_machine(
    own: RegistryServer, engine: Engine
) -> None:
    assert labelled(engine, own, "registry") == [own.name]
    volume = engine.client.volumes.get(own.name)
    assert volume.attrs["Labels"][LABEL] == own.name.rpartition("-")[2]
    ports = engine.client.containers.get(own.name).attrs["HostConfig"]["PortBindings"]
    assert [bound["HostIp"] for bound in ports["5000/tcp"]] == ["127.0.0.1"]


def test_a_registry_that_runs_is_left_alone(own: RegistryServer, engine: Engine) -> None:
    before = engine.client.containers.get(own.name).attrs["State"]["StartedAt"]
    assert own.start().address == own.address
    assert engine.client.containers.get(own.name).attrs["State"]["StartedAt"] == before


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


@pytest.mark.parametrize(("seen", "removed"), [(True, True), (True, False), (False, False)])
def test_a_port_that_was_taken_meanwhile(
    own: RegistryServer,
    told: QuietFeedback,
    monkeypatch: pytest.MonkeyPatch,
    seen: bool,
    removed: bool,
) -> None:
    if not seen:  # as with an engine in a virtual machine: only its own refusal tells
        monkeypatch.setattr(registry_server, "is_listening", lambda port, **_: False)
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


def test_a_changed_configuration_takes_effect(own: RegistryServer) -> None:
    digest = put_image(own.registry(), "shop/kept")
    config = CONFIG.read_bytes().replace(b"enabled: true", b"enabled: false", 1)
    registry = own.start(files={CONFIG_INSIDE: config})
    assert registry.resolve("shop/kept", "1") == digest
    with pytest.raises(RegistryError, match="unsupported"):
        registry.delete_manifest("shop/kept", digest)


def test_a_configuration_that_is_wrong_is_told_with_the_log(own: RegistryServer) -> None:
    with pytest.raises(RegistryError, match=f"docker logs {own.name}") as caught:
        own.start(files={CONFIG_INSIDE: b"version: 0.1\nstorage: {}\n"})
    assert "no storage configuration" in str(caught.value)


def test_a_missing_image(own: RegistryServer) -> None:
    own.start(image="labapp/no-such-image:1").ping()  # none is needed
    own.remove(volume=False)
    with pytest.raises(RegistryError, match="'labapp/no-such-image:1'"):
        own.start(image="labapp/no-such-image:1")


def test_a_registry_that_was_never_started(tmp_path: Path, engine: Engine) -> None:
    never = RegistryServer(engine=engine, state=State.open(tmp_path))
    assert not never.is_running()
    assert never.logs() == b""
    for ask in (lambda: never.address, never.registry, lambda: never.storage(["ls"]), never.start):
        with pytest.raises(RegistryUnreachable, match=never.name):
            ask()
    never.remove(volume=True)


def test_an_engine_that_is_lost(tmp_path: Path, engine: Engine) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    lost = replace(engine, client=docker.DockerClient(base_url=address, version="1.41"))
    with pytest.raises(EngineLost):
        RegistryServer(engine=lost, state=State.open(tmp_path)).start(image="any")


def test_two_starts_at_once(tmp_path: Path, engine: Engine, own: RegistryServer) -> None:
    state = State.open(tmp_path / "state")
    script = (
        "import sys; from labapp import state; from labapp.machine import engine;"
        "from labapp.registry import server as r;"
        "s = state.State.open();"
        "server = r.RegistryServer(engine=engine.find(s), state=s);"
        "print(server.start(image=sys.argv[1]).address)"
    )
    environment = engine.environment() | {"LABAPP_STATE": str(state.folder)}
    command = [sys.executable, "-c", script, own.image]
    starts = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    server = RegistryServer(engine=engine, state=state)
    try:
        ends = [start.communicate(timeout=120)[0].split()[-1] for start in starts]
        assert ends == [server.address] * 2
        server.registry().ping()
        assert labelled(engine, server, "registry") == [server.name]
    finally:
        server.remove(volume=True)


def test_remove_leaves_nothing(own: RegistryServer, engine: Engine) -> None:
    put_image(own.registry(), "shop/gone")
    own.remove(volume=True)
    assert labelled(engine, own, "registry") == []
    assert own.name not in [volume.name for volume in engine.client.volumes.list()]
    own.remove(volume=True)


def test_the_one_shot_containers_are_gone_even_after_a_failure(
    own: RegistryServer, engine: Engine
) -> None:
    assert "registry" in own.storage(["ls", "/var/lib"])
    with pytest.raises(RegistryError, match="no good"):
        own.storage(["sh", "-c", "echo no good; exit 3"])
    with pytest.raises(RegistryError, match="no-such-program"):
        own.storage(["no-such-program"])
    assert labelled(engine, own, "oneshot") == []


# --- what it holds


def test_an_image_is_read_and_verified(own: RegistryServer) -> None:
    registry = own.registry()
    digest = put_image(registry, "shop/read", "1")
    put_image(registry, "shop/read", "2")
    assert "shop/read" in registry.repositories()
    assert registry.tags("shop/read") == ["1", "2"]
    image = registry.image(here(own, "shop/read:1"))
    assert image.digest == digest == registry.digest(f"{own.address}/shop/read:1")
    assert str(image.pinned) == f"{own.address}/shop/read@{digest}"
    assert registry.image(image.pinned).manifest == image.manifest
    assert image.config.platform == Platform("linux", "amd64")
    layer = image.manifest.layers[0]
    assert b"".join(registry.open_blob("shop/read", layer.digest)) == b"a layer of 1"
    assert registry.blob_size("shop/read", layer.digest) == 12
    assert registry.damaged_blobs("shop/read", image.manifest, contents=True) == []


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
    with pytest.raises(NotInRegistry, match=r"linux/amd64, linux/arm64"):
        registry.image(here(own, "shop/both:both"), platform=Platform("linux", "s390x"))


def test_deleting_a_manifest_takes_its_tags(own: RegistryServer) -> None:
    registry = own.registry()
    digest = put_image(registry, "shop/deleted")
    registry.delete_manifest("shop/deleted", digest)
    assert registry.tags("shop/deleted") == []
    for ask in (registry.resolve, registry.delete_manifest):
        with pytest.raises(NotInRegistry):
            ask("shop/deleted", digest)


def test_a_manifest_whose_blob_is_missing_is_refused(own: RegistryServer) -> None:
    registry = own.registry()
    digest, size = registry.upload_blob("shop/holes", [b"{}"])
    config = {"mediaType": OCI_CONFIG, "digest": digest, "size": size}
    missing = {**config, "digest": "sha256:" + "1" * 64}
    raw = canonical_json({"schemaVersion": 2, "config": config, "layers": [missing]})
    with pytest.raises(RegistryError, match="blob unknown"):
        registry.put_manifest("shop/holes", "1", raw, OCI_MANIFEST)


def test_a_blob_is_taken_over_from_another_repository(own: RegistryServer) -> None:
    registry = own.registry()
    digest, size = registry.upload_blob("shop/web", [b"shared"])
    assert registry.blob_size("shop/mounted", digest) is None
    assert registry.mount_blob("shop/mounted", digest, "shop/web")
    assert registry.blob_size("shop/mounted", digest) == size
    assert not registry.mount_blob("shop/mounted", "sha256:" + "2" * 64, "shop/web")


def test_an_upload_larger_than_a_piece_and_an_empty_one(own: RegistryServer) -> None:
    registry = own.registry()
    piece = os.urandom(1_000_003)
    digest, size = registry.upload_blob("shop/large", (piece for _ in range(20)))
    assert (digest, size) == (digest_of(piece * 20), 20_000_060)
    assert registry.read_blob("shop/large", digest) == piece * 20
    assert registry.upload_blob("shop/large", []) == (digest_of(b""), 0)


# --- copies, byte for byte


def sent(own: RegistryServer, since: datetime) -> list[str]:
    heard = [one.meaning for one in parse_log(own.logs(since=since)) if one.time >= since]
    return [one for one in heard if one.startswith(("take", "start", "store"))]


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
    assert sent(own, began).count("start an upload") == len(blobs)

    began = datetime.now(UTC)
    assert target.copy(registry, source, to=to.with_tag("again")) == digest
    assert sent(own, began) == ["store the manifest under tag again"]

    began = datetime.now(UTC)
    assert target.copy(target, copied, to=here(own, "beside/python:slim")) == digest
    mounts = ["take this blob over from copied/python"] * len(blobs)
    assert sent(own, began) == [*mounts, "store the manifest under tag slim"]


def test_the_image_of_an_index_is_copied_alone(own: RegistryServer) -> None:
    registry = own.registry()
    put_index(registry, "shop/both")
    arm = registry.image(here(own, "shop/both:both"), platform=Platform("linux", "arm64"))
    digest = registry.copy(registry, arm, to=here(own, "half/both:1"))
    assert digest == arm.manifest.digest == registry.resolve("half/both", "1")


def test_a_damaged_blob_that_is_there_already_is_told_before_anything_is_sent(
    own: RegistryServer,
) -> None:
    registry = own.registry()
    put_image(registry, "shop/whole")
    image = registry.image(here(own, "shop/whole:1"))
    layer = image.manifest.layers[0].digest
    registry.mount_blob("shop/copy", layer, "shop/whole")
    value = layer.partition(":")[2]
    own.storage(["truncate", "-s", "3", f"{CONTENT}/blobs/sha256/{value[:2]}/{value}/data"])
    with pytest.raises(DamagedContent, match=layer):
        registry.copy(registry, image, to=here(own, "shop/copy:1"))
    own.discard_blobs([layer])


# --- the request log


def test_what_is_said_to_it_is_told_request_by_request(own: RegistryServer) -> None:
    registry, blob = own.registry(), digest_of(b"told")
    curl = requests.Session()
    curl.trust_env, curl.headers["User-Agent"] = False, "curl/8"

    def ask(method: str, path: str, data: bytes = b"") -> str:
        typed = {"Content-Type": "application/octet-stream"}
        answer = curl.request(method, f"http://{own.address}{path}", data=data, headers=typed)
        return answer.headers.get("Location", "")

    with listening(own) as wire:
        put_image(registry, "shop/told")  # the lab's own words are left out
        place = ask("POST", "/v2/shop/told/blobs/uploads/")
        ask("PUT", f"{place}&digest={blob}", b"told")
        ask("GET", "/v2/shop/told/manifests/none")
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
        place = ask("POST", "/v2/shop/told/blobs/uploads/")
        ask("PUT", f"{place}&digest={blob}", b"told")
        own.stop()
    assert list(wire.rows["bytes"].isna()) == [False, True]
